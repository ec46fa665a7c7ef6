//! SEEK_HOLE and SEEK_DATA while the kernel may hold changed pages that `fs` has not seen.
//!
//! The thread that answers asks the kernel to write the inode's pages back, and waits. The pages come back as WRITE
//! requests, which other threads have to serve meanwhile: so only a few may wait at once.

use std::sync::OnceLock;

use log::debug;

use super::notify::Notifier;
use crate::fs::Ino;
use crate::fs::waits::LONG_WAITS;

/// Writes pages back for seeks.
#[derive(Default)]
pub(super) struct Seeks(OnceLock<Notifier>);

impl Seeks {
    /// From now on it can speak to the kernel.
    pub(super) fn start(&self, notifier: &Notifier) {
        let _ = self.0.set(notifier.clone());
    }

    /// The way to the kernel.
    pub(super) fn notifier(&self) -> Option<&Notifier> {
        self.0.get()
    }

    /// Has the kernel write back what it holds of an inode. False when it did not: the seek must then take all for
    /// data, which is always allowed and costs the caller a copy of zeros, never a byte.
    pub(super) fn write_back(&self, ino: Ino) -> bool {
        let Some(notifier) = self.0.get() else { return false };
        let Some(_place) = LONG_WAITS.take() else { return false };
        notifier
            .inval_inode(ino, 0, 0)
            .inspect_err(|e| debug!("write-back before a seek in inode {ino}: {e}"))
            .is_ok()
    }
}
