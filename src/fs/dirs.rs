//! Directories that are at hand: a descriptor and the name key. Bounded, so that known directories may be many.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use lru::LruCache;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::{FsError, Ino, Result};
use crate::crypto::{DirKey, VaultKey};
use crate::format::header::DIR_XATTR;
use crate::format::ids::DirId;
use crate::vault::xattr;

/// Parts of the cache that are locked apart from one another.
const SHARDS: u64 = 16;
/// The most descriptors kept for directories.
const MOST: u64 = 16384;

/// A lower directory behind an `O_PATH` descriptor.
pub(super) struct OpenDir {
    fd: Arc<OwnedFd>,
    key: OnceLock<(DirId, DirKey)>,
}

impl OpenDir {
    /// A directory whose id is not known yet.
    pub(super) fn new(fd: Arc<OwnedFd>) -> Self {
        Self { fd, key: OnceLock::new() }
    }

    /// The descriptor, to be kept longer than this.
    pub(super) fn shared_fd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.fd)
    }

    fn keyed(&self, vault_key: &VaultKey) -> Result<&(DirId, DirKey)> {
        if let Some(known) = self.key.get() {
            return Ok(known);
        }
        let id = match xattr::get(&*self.fd, DIR_XATTR) {
            Ok(value) => DirId::from_slice(&value),
            Err(Errno::NODATA) => None,
            Err(e) => return Err(e.into()),
        };
        let id = id.ok_or(FsError::Undecodable(
            "the directory has no id (xattr user.efs.dir): a tool dropped it; restore it from a backup",
        ))?;
        Ok(self.key.get_or_init(|| (id, DirKey::derive(vault_key, &id))))
    }

    /// The key of its names.
    pub(super) fn names(&self, vault_key: &VaultKey) -> Result<&DirKey> {
        Ok(&self.keyed(vault_key)?.1)
    }

    /// Its id.
    pub(super) fn id(&self, vault_key: &VaultKey) -> Result<DirId> {
        Ok(self.keyed(vault_key)?.0)
    }
}

impl AsFd for OpenDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The most recently used directories.
pub(super) struct Dirs {
    shards: Vec<Mutex<LruCache<Ino, Arc<OpenDir>>>>,
}

impl Dirs {
    /// A cache that takes at most half of `descriptors`.
    pub(super) fn new(descriptors: u64) -> Self {
        let each = (descriptors / 2).min(MOST) / SHARDS;
        let each = NonZeroUsize::new(usize::try_from(each).unwrap_or(1)).unwrap_or(NonZeroUsize::MIN);
        Self { shards: (0..SHARDS).map(|_| Mutex::new(LruCache::new(each))).collect() }
    }

    fn shard(&self, ino: Ino) -> &Mutex<LruCache<Ino, Arc<OpenDir>>> {
        &self.shards[(ino % SHARDS) as usize]
    }

    /// A directory that is at hand.
    pub(super) fn get(&self, ino: Ino) -> Option<Arc<OpenDir>> {
        self.shard(ino).lock().get(&ino).cloned()
    }

    /// Keeps a directory at hand.
    pub(super) fn put(&self, ino: Ino, dir: &Arc<OpenDir>) {
        // What is pushed out may close a descriptor: after the lock.
        let out = self.shard(ino).lock().push(ino, Arc::clone(dir));
        drop(out);
    }

    /// Lets go of a directory.
    pub(super) fn remove(&self, ino: Ino) {
        let out = self.shard(ino).lock().pop(&ino);
        drop(out);
    }

    /// Lets go of all.
    pub(super) fn clear(&self) {
        self.shards.iter().for_each(|s| s.lock().clear());
    }
}
