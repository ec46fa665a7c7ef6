//! The vault's lock: one mount at a time, or several that all said `--shared`.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::{Errno, Result};

use super::entry::open_dir_path;
use crate::format::names::VAULT_DIR;

/// File below the vault's own directory whose `flock` says that the vault is in use.
pub const LOCK_FILE: &str = "lock";

/// Held while a vault is mounted; the lock goes when it is dropped.
#[derive(Debug)]
pub struct VaultLock {
    _fd: Option<OwnedFd>,
}

impl VaultLock {
    /// Takes the lock, or EWOULDBLOCK. On a read-only disk without a lock file there is nothing to guard.
    pub fn take(top: impl AsFd, shared: bool) -> Result<Self> {
        let dir = open_dir_path(top, VAULT_DIR)?;
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&dir, LOCK_FILE, flags, Mode::RUSR | Mode::WUSR) {
            Err(Errno::ROFS | Errno::ACCESS) => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match rustix::fs::openat(&dir, LOCK_FILE, flags, Mode::empty()) {
                    Err(Errno::NOENT) => return Ok(Self { _fd: None }),
                    other => other?,
                }
            }
            other => other?,
        };
        let operation = if shared {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        rustix::fs::flock(&fd, operation)?;
        Ok(Self { _fd: Some(fd) })
    }
}
