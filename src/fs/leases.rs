//! Leases: somebody copies lower files of a mounted vault, and each is kept as it is while he does.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;

use super::{Fs, Ino, Result};
use crate::content::{self, Lease};

/// How long changes of a file wait at most.
const HOLD: Duration = Duration::from_secs(5);
/// Leases at once.
const MOST: usize = 16;

/// The leases of a mount, by inode.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<HashMap<Ino, Arc<Lease>>>);

/// A file that is kept as it is until this is given back, or for five seconds.
#[derive(Debug)]
pub struct Leased {
    ino: Ino,
    lease: Arc<Lease>,
}

impl Leases {
    /// Content that was just opened is kept as it is, too. Called before others may find it.
    pub(super) fn apply(&self, ino: Ino, content: &content::File) {
        if let Some(lease) = self.0.lock().get(&ino) {
            content.keep_still(lease);
        }
    }

    fn add(&self, ino: Ino) -> Option<Leased> {
        let mut all = self.0.lock();
        if all.len() >= MOST {
            all.retain(|_, lease| {
                let over = lease.is_over();
                if over {
                    lease.give_way();
                }
                !over
            });
        }
        if all.len() >= MOST || all.get(&ino).is_some_and(|lease| !lease.is_over()) {
            return None;
        }
        let lease = Lease::new(HOLD);
        if let Some(over) = all.insert(ino, Arc::clone(&lease)) {
            over.give_way();
        }
        Some(Leased { ino, lease })
    }

    fn remove(&self, leased: &Leased) -> bool {
        let mut all = self.0.lock();
        if all.get(&leased.ino).is_some_and(|lease| Arc::ptr_eq(lease, &leased.lease)) {
            all.remove(&leased.ino);
        }
        leased.lease.end()
    }
}

impl Fs {
    /// Brings everything of a file to its place and keeps it so. `lower`: the number of its lower inode. `None` where there
    /// are too many leases, or that did not come to an end in time.
    pub fn lease(&self, lower: u64) -> Result<Option<Leased>> {
        let ino = self.ino_of(lower);
        // What can be done before anybody has to wait.
        self.settle(ino)?;
        let Some(leased) = self.leases.add(ino) else { return Ok(None) };
        match self.hold_still(&leased) {
            Ok(true) => Ok(Some(leased)),
            other => {
                self.leases.remove(&leased);
                other.map(|_| None)
            }
        }
    }

    /// Gives a lease back: whether the file was as it is all the time.
    pub fn end_lease(&self, leased: &Leased) -> bool {
        self.leases.remove(leased)
    }

    fn hold_still(&self, leased: &Leased) -> Result<bool> {
        // Whoever opens the file from here on finds the lease.
        let open = self.table.get(leased.ino).and_then(|inode| inode.open.lock().file().cloned());
        if open.is_some_and(|file| !file.content.keep_still(&leased.lease)) {
            return Ok(false);
        }
        self.settle(leased.ino)?;
        Ok(!leased.lease.is_over() && !self.has_pending(leased.ino))
    }

    fn has_pending(&self, ino: Ino) -> bool {
        // A file with something in the journal stays in the table, closed or not.
        let open = self.table.get(ino).and_then(|inode| inode.open.lock().file().cloned());
        open.is_some_and(|file| file.content.is_pending())
    }

    fn settle(&self, ino: Ino) -> Result<()> {
        if self.has_pending(ino) { self.checkpoint() } else { Ok(()) }
    }

    /// Numbers of the lower inodes that are open for writing or not in their places; so many at most.
    pub fn busy(&self, most: usize) -> Vec<u64> {
        let is_busy = |inode: &super::inode::Inode| {
            inode.writers.load(Ordering::Acquire) > 0
                || inode.open.lock().file().is_some_and(|file| file.content.is_pending())
        };
        let all = self.table.all().into_iter();
        all.filter(|inode| is_busy(inode)).map(|inode| inode.first.ino).take(most).collect()
    }
}
