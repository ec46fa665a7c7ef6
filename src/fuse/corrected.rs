//! Lengths that the kernel was told wrong, and how it comes to believe the right ones.
//!
//! `lookup` tells a length by the lower file's alone, without any key. Where a crash (or an attacker) left more bytes
//! behind the authenticated end, that is too long, and with write-back the kernel never takes a smaller length for an
//! inode it knows: it would read zeros behind the end. So the open that finds out is answered ESTALE; the kernel then
//! looks the name up again, gets the true length under a new generation, and makes a new inode of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::fs::{Attr, Found, Ino};

/// Files that are remembered: crashes leave a few. Beyond it an overlong file does not open until the next mount.
const MAX: usize = 4096;

#[derive(Default)]
pub(super) struct Corrected {
    /// Whether there is any: what each request has to look at.
    any: AtomicBool,
    by_ino: Mutex<HashMap<Ino, Correction>>,
}

#[derive(Default)]
struct Correction {
    /// What was told, and what is true; `None` once the file was changed through the mount.
    lengths: Option<(u64, u64)>,
    /// Added to the inode's generation, for ever: an earlier inode must not come back.
    generation: u64,
}

/// What an open that was misled shall answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// The kernel knows the true length.
    Known,
    /// It must look again.
    LookAgain,
    /// Too many such files.
    Full,
}

impl Corrected {
    /// Notes that `told` was told of an inode whose length is `truth`.
    pub(super) fn note(&self, ino: Ino, told: u64, truth: u64) -> Verdict {
        let mut map = self.by_ino.lock();
        if map.len() >= MAX && !map.contains_key(&ino) {
            return Verdict::Full;
        }
        let entry = map.entry(ino).or_default();
        if entry.lengths.is_some_and(|(before, _)| before == told) {
            return Verdict::Known;
        }
        entry.lengths = Some((told, truth));
        entry.generation += 1;
        self.any.store(true, Ordering::Release);
        Verdict::LookAgain
    }

    /// The file is changed through the mount: from now on its lower length tells the truth.
    pub(super) fn changed(&self, ino: Ino) {
        if self.any.load(Ordering::Acquire)
            && let Some(entry) = self.by_ino.lock().get_mut(&ino)
        {
            entry.lengths = None;
        }
    }

    /// Attributes with the true length.
    pub(super) fn attr(&self, mut attr: Attr) -> Attr {
        if self.any.load(Ordering::Acquire)
            && let Some((told, truth)) = self.by_ino.lock().get(&attr.ino).and_then(|entry| entry.lengths)
            && attr.size == told
        {
            attr.size = truth;
        }
        attr
    }

    /// What a lookup found, with the true length and the generation that goes with it.
    pub(super) fn found(&self, mut found: Found) -> Found {
        if self.any.load(Ordering::Acquire) {
            let added = self.by_ino.lock().get(&found.attr.ino).map_or(0, |entry| entry.generation);
            found.generation = found.generation.wrapping_add(added);
            found.attr = self.attr(found.attr);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(ino: Ino, size: u64) -> Found {
        let attr = Attr { ino, size, mode: libc::S_IFREG, nlink: 1, blksize: 4096, ..Attr::default() };
        Found { attr, generation: 7 }
    }

    /// The first open of a misjudged file makes the kernel look again; the lookup then shows the true length under a
    /// new generation, and the second open goes through.
    #[test]
    fn a_wrong_length_is_corrected_once() {
        let corrected = Corrected::default();
        assert_eq!(corrected.note(5, 9000, 100), Verdict::LookAgain);
        let after = corrected.found(found(5, 9000));
        assert_eq!((after.attr.size, after.generation), (100, 8));
        assert_eq!(corrected.note(5, 9000, 100), Verdict::Known);
        assert_eq!(corrected.found(found(6, 9000)).attr.size, 9000);
    }

    /// A file that was written through the mount may grow to the very length that was wrong before.
    #[test]
    fn a_changed_file_is_not_corrected_any_more() {
        let corrected = Corrected::default();
        corrected.note(5, 9000, 100);
        corrected.changed(5);
        let after = corrected.found(found(5, 9000));
        assert_eq!((after.attr.size, after.generation), (9000, 8));
        assert_eq!(corrected.note(5, 9000, 200), Verdict::LookAgain);
    }
}
