//! Ciphertext on the backing disk: files, directories, atomic replacement. No keys, no plaintext.
//!
//! Everything here works on directory descriptors and lower names, never on paths of the vault, and never
//! follows a symlink of the lower filesystem. Errors are the system's own ([`rustix::io::Errno`]).

pub mod access;
pub mod copy;
pub mod direct;
pub mod entry;
pub mod file;
pub mod fresh;
pub mod journal;
pub mod leftovers;
pub mod limits;
pub mod list;
pub mod lock;
pub mod locks;
pub mod sidecar;
pub mod stat;
pub mod umask;
pub mod xattr;

pub use direct::DirectFile;
pub use file::{DiskFile, LowerFile};
pub use fresh::FreshFile;
pub use journal::{DiskJournal, JournalStore};
pub use list::{Listing, RawEntry};
pub use lock::VaultLock;
pub use stat::LowerStat;

use std::os::fd::{AsFd, AsRawFd};

/// The path under which this process reaches whatever a descriptor stands for, `O_PATH` ones included.
pub fn proc_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}
