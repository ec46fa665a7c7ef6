//! Numbers for what the kernel holds open.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use rustix::io::Errno;

use super::Result;

/// Parts that are locked apart from one another.
const SHARDS: u64 = 16;

/// Open things by number. A number is used once.
pub(super) struct Handles<T> {
    shards: Vec<RwLock<HashMap<u64, Arc<T>>>>,
    next: AtomicU64,
}

impl<T> Handles<T> {
    /// None open.
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| RwLock::default()).collect(), next: AtomicU64::new(1) }
    }

    fn shard(&self, fh: u64) -> &RwLock<HashMap<u64, Arc<T>>> {
        &self.shards[(fh % SHARDS) as usize]
    }

    /// Gives a number to an open thing.
    pub(super) fn put(&self, open: T) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        self.shard(fh).write().insert(fh, Arc::new(open));
        fh
    }

    /// The thing of a number.
    pub(super) fn get(&self, fh: u64) -> Result<Arc<T>> {
        Ok(self.shard(fh).read().get(&fh).cloned().ok_or(Errno::BADF)?)
    }

    /// Closes a number.
    pub(super) fn remove(&self, fh: u64) {
        // Dropped after the lock: closing content may take I/O.
        let gone = self.shard(fh).write().remove(&fh);
        drop(gone);
    }

    /// Closes all.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            let gone = std::mem::take(&mut *shard.write());
            drop(gone);
        }
    }
}
