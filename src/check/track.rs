//! How far a walk came: directories in the order of their paths, and which of them are done.
//!
//! The walk goes through directories in the order of their lower paths, each before those in it. All up to the
//! *cursor* are done; those among them that had a fault are listed and looked at again, so that a resumed run reports
//! every fault that is there.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::report::Counts;

/// Directories with faults that are remembered; beyond that the cursor stays where it is.
const MOST_FAULTED: usize = 256;

/// A directory that is being looked at.
pub(super) struct Home {
    /// Its path from the vault's top.
    path: PathBuf,
    /// Files that a worker still has, and one while it is being listed.
    pending: AtomicUsize,
    faulted: AtomicBool,
    counts: Mutex<Counts>,
}

impl Home {
    /// Something is wrong with it, or with what lies in it.
    pub(super) fn faulted(&self) {
        self.faulted.store(true, Ordering::Relaxed);
    }

    /// A file was handed to a worker.
    pub(super) fn begin(&self) {
        self.pending.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts what was looked at.
    pub(super) fn count(&self, add: impl FnOnce(&mut Counts)) {
        add(&mut self.counts.lock());
    }
}

/// How far an earlier run came.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Reached {
    /// The last directory that is done; `None` before the first.
    pub(super) cursor: Option<PathBuf>,
    /// Directories up to it that had a fault.
    pub(super) faulted: BTreeSet<PathBuf>,
    /// What was looked at in those that had none.
    pub(super) counts: Counts,
}

impl Reached {
    /// Whether what lies in a directory, not deeper, is done.
    pub(super) fn covers(&self, dir: &Path) -> bool {
        self.cursor.as_deref().is_some_and(|cursor| dir <= cursor) && !self.faulted.contains(dir)
    }

    /// Whether a directory and everything below it is done.
    pub(super) fn covers_below(&self, dir: &Path) -> bool {
        let passed = self.cursor.as_deref().is_some_and(|cursor| dir < cursor && !cursor.starts_with(dir));
        passed && !self.faulted.iter().any(|faulted| faulted.starts_with(dir))
    }
}

/// The directories of a walk that are not done, in order, and how far it came.
#[derive(Default)]
pub(super) struct Track {
    open: VecDeque<Arc<Home>>,
    reached: Reached,
    total: Counts,
    full: bool,
}

impl Track {
    /// Goes on from where an earlier run was.
    pub(super) fn from(earlier: Reached) -> Self {
        Self { total: earlier.counts, reached: earlier, ..Self::default() }
    }

    /// The walk comes to a directory.
    pub(super) fn enter(&mut self, path: PathBuf) -> Arc<Home> {
        let home = Arc::new(Home {
            path,
            pending: AtomicUsize::new(1),
            faulted: AtomicBool::new(false),
            counts: Mutex::default(),
        });
        self.open.push_back(Arc::clone(&home));
        home
    }

    /// One thing of a directory is done: a file, or its listing. Moves the cursor.
    pub(super) fn done(&mut self, home: &Home) {
        home.pending.fetch_sub(1, Ordering::Relaxed);
        while self.open.front().is_some_and(|home| home.pending.load(Ordering::Relaxed) == 0) {
            let Some(home) = self.open.pop_front() else { break };
            let counts = *home.counts.lock();
            self.total += counts;
            let faulted = home.faulted.load(Ordering::Relaxed);
            let known = &mut self.reached.faulted;
            self.full |= faulted && known.len() >= MOST_FAULTED && !known.contains(&home.path);
            if self.full {
                continue;
            }
            if faulted {
                known.insert(home.path.clone());
            } else {
                known.remove(&home.path);
                self.reached.counts += counts;
            }
            // A directory that is looked at again lies before the cursor.
            if self.reached.cursor.as_ref().is_none_or(|cursor| *cursor < home.path) {
                self.reached.cursor = Some(home.path.clone());
            }
        }
    }

    /// How far the walk came.
    pub(super) fn reached(&self) -> &Reached {
        &self.reached
    }

    /// What was looked at, also in directories that are not done.
    pub(super) fn total(&self) -> Counts {
        let mut total = self.total;
        self.open.iter().for_each(|home| total += *home.counts.lock());
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reached(cursor: &str, faulted: &[&str]) -> Reached {
        Reached {
            cursor: Some(cursor.into()),
            faulted: faulted.iter().map(PathBuf::from).collect(),
            counts: Counts::default(),
        }
    }

    /// What lies before the cursor is skipped, but never a directory on the way to it or one that had a fault.
    #[test]
    fn a_resumed_walk_skips_what_is_done_and_nothing_else() {
        let at = reached("b/c", &["a/x"]);
        for (dir, own, below) in [
            ("", true, false),
            ("a", true, false),
            ("a/w", true, true),
            ("a/x", false, false),
            ("a/x/deep", true, true),
            ("b", true, false),
            ("b/b", true, true),
            ("b/c", true, false),
            ("b/c/d", false, false),
            ("b/d", false, false),
            ("c", false, false),
        ] {
            assert_eq!((at.covers(Path::new(dir)), at.covers_below(Path::new(dir))), (own, below), "{dir}");
        }
    }

    /// The cursor waits for the slowest directory, and what is behind it counts when it is done.
    #[test]
    fn the_cursor_waits_for_the_slowest() {
        let mut track = Track::default();
        let slow = track.enter("a".into());
        let fast = track.enter("b".into());
        slow.begin();
        slow.count(|c| c.files += 1);
        fast.count(|c| c.files += 2);
        fast.faulted();
        track.done(&slow);
        track.done(&fast);
        assert_eq!(track.reached().cursor, None);
        assert_eq!(track.total().files, 3);
        track.done(&slow);
        assert_eq!(track.reached().cursor.as_deref(), Some(Path::new("b")));
        assert_eq!(track.reached().counts.files, 1);
        assert!(!track.reached().covers(Path::new("b")));
        let resumed = Track::from(track.reached().clone());
        assert_eq!(resumed.total().files, 1);
    }

    /// However many directories have faults, what is remembered is bounded; the rest is looked at again.
    #[test]
    fn a_vault_of_faults_is_remembered_in_part() {
        let mut track = Track::default();
        for n in 0..1000 {
            let home = track.enter(format!("{n:04}").into());
            home.faulted();
            track.done(&home);
        }
        assert_eq!(track.reached().faulted.len(), MOST_FAULTED);
        assert_eq!(track.reached().cursor.as_deref(), Some(Path::new("0255")));
    }
}
