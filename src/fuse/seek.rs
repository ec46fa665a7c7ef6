//! SEEK_HOLE and SEEK_DATA while the kernel may hold changed pages that `fs` has not seen.
//!
//! The thread that answers asks the kernel to write the inode's pages back, and waits. The pages come back as WRITE
//! requests, which other threads have to serve meanwhile: so only a few may wait at once.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use log::debug;

use super::notify::Notifier;
use crate::fs::Ino;

/// Seeks that may wait at once. Every way that requests come has more threads than this that serve it.
pub(super) const WAITING: usize = 2;

/// Writes pages back for seeks.
#[derive(Default)]
pub(super) struct Seeks {
    notifier: OnceLock<Notifier>,
    waiting: AtomicUsize,
}

impl Seeks {
    /// From now on it can speak to the kernel.
    pub(super) fn start(&self, notifier: &Notifier) {
        let _ = self.notifier.set(notifier.clone());
    }

    /// The way to the kernel.
    pub(super) fn notifier(&self) -> Option<&Notifier> {
        self.notifier.get()
    }

    /// Has the kernel write back what it holds of an inode. False when it did not: the seek must then take all for
    /// data, which is always allowed and costs the caller a copy of zeros, never a byte.
    pub(super) fn write_back(&self, ino: Ino) -> bool {
        let Some(notifier) = self.notifier.get() else { return false };
        let before = self.waiting.fetch_add(1, Ordering::AcqRel);
        let done = before < WAITING
            && notifier
                .inval_inode(ino, 0, 0)
                .inspect_err(|e| debug!("write-back before a seek in inode {ino}: {e}"))
                .is_ok();
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        done
    }
}
