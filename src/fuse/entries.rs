//! The listing of a directory on its way to the kernel: `fuse_dirent`s or `fuse_direntplus`es in a bounded buffer.

use zerocopy::IntoBytes;

use super::abi;
use super::convert;
use super::handler::Entry;
use crate::fs::Ino;

/// Records are padded to this.
const ALIGN: usize = 8;

/// Takes entries until it is full.
#[derive(Debug)]
pub struct Entries<'a> {
    out: &'a mut [u8],
    used: usize,
    plus: bool,
}

/// An entry of a listing.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// Inode number to show.
    pub ino: Ino,
    /// Cookie of the entry behind this one.
    pub next: u64,
    /// `S_IFMT` bits.
    pub kind: u32,
    /// The name.
    pub name: &'a [u8],
}

impl<'a> Entries<'a> {
    pub(super) fn new(out: &'a mut [u8], plus: bool) -> Self {
        Self { out, used: 0, plus }
    }

    /// Whether the kernel wants attributes with the entries: then [`Entries::add_entry`] can give them.
    pub fn plus(&self) -> bool {
        self.plus
    }

    /// Adds an entry without attributes; false when it does not fit (and is not consumed).
    #[must_use]
    pub fn add(&mut self, listed: &Listed<'_>) -> bool {
        // With number 0 the kernel takes the name and type, and looks the name up when it is used.
        self.put(listed, abi::EntryOut { attr: convert::bare(listed), ..abi::EntryOut::default() })
    }

    /// Adds an entry with its attributes, as a lookup gives them; false when it does not fit (and is no reference).
    #[must_use]
    pub fn add_entry(&mut self, listed: &Listed<'_>, entry: &Entry) -> bool {
        self.put(listed, convert::entry(entry))
    }

    /// Bytes that were taken.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    fn put(&mut self, listed: &Listed<'_>, entry: abi::EntryOut) -> bool {
        let Ok(namelen) = u32::try_from(listed.name.len()) else { return false };
        let kind = (listed.kind & libc::S_IFMT) >> 12;
        let dirent = abi::Dirent { ino: listed.ino, off: listed.next, namelen, kind };
        let before = if self.plus { entry.as_bytes() } else { &[] };
        let parts = [before, dirent.as_bytes(), listed.name];
        let bare: usize = parts.iter().map(|p| p.len()).sum();
        let whole = bare.next_multiple_of(ALIGN);
        let Some(mut space) = self.out.get_mut(self.used..self.used + whole) else { return false };
        for part in parts {
            let (here, behind) = space.split_at_mut(part.len());
            here.copy_from_slice(part);
            space = behind;
        }
        space.fill(0);
        self.used += whole;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry takes its structure, its name and padding; one that does not fit leaves the buffer as it was.
    #[test]
    fn a_full_buffer_takes_no_half_entry() {
        let mut out = [0xff; 70];
        let mut entries = Entries::new(&mut out, false);
        let listed = Listed { ino: 9, next: 3, kind: libc::S_IFDIR, name: b"abc" };
        assert!(entries.add(&listed) && entries.add(&listed));
        assert!(!entries.add(&listed));
        assert_eq!(entries.used(), 64);
        assert_eq!(out[..8], 9_u64.to_le_bytes());
        assert_eq!(out[20..32], [4, 0, 0, 0, b'a', b'b', b'c', 0, 0, 0, 0, 0]);
        assert_eq!(out[64..], [0xff; 6]);
    }
}
