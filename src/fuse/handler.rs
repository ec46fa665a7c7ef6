//! What a filesystem has to answer: one method for each operation of the protocol, typed, callable from any thread.
//!
//! A method that is not written answers ENOSYS, at which the kernel does without (and mostly does not ask again).
//! Names are bytes without a slash or NUL; `ino` is the number that an [`Entry`] gave, 1 for the top.

use std::time::Duration;

use rustix::io::Errno;

use super::abi;
use super::entries::Entries;
use super::notify::Notifier;
use crate::fs::{Attr, Caller, FoundLock, Granted, Ino, LockAsk, SetAttr, StatFs};

/// An answer, or the errno that the caller shall see.
pub type Answer<T> = Result<T, Errno>;

/// What a name leads to; counts as one reference of the kernel's, given back by [`Handler::forget`].
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Attributes, and the number by which the kernel will ask.
    pub attr: Attr,
    /// Tells apart inodes that had the same number one after the other.
    pub generation: u64,
    /// How long the kernel may believe the name.
    pub name_for: Duration,
    /// How long the kernel may believe the attributes.
    pub attr_for: Duration,
}

/// What a lookup found.
#[derive(Clone, Copy, Debug)]
pub enum Looked {
    /// An inode.
    Found(Entry),
    /// Nothing; the kernel may believe that for so long. Not a reference.
    Missing(Duration),
}

/// Attributes and how long the kernel may believe them.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    /// They.
    pub attr: Attr,
    /// So long.
    pub valid: Duration,
}

/// An open file or directory.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// The number by which the kernel will speak of it.
    pub fh: u64,
    /// What the kernel has cached of it stays valid.
    pub keep_cache: bool,
    /// The kernel may keep the listing (directories only).
    pub cache_dir: bool,
}

impl Opened {
    pub(super) fn flags(&self) -> u32 {
        let keep = if self.keep_cache { abi::FOPEN_KEEP_CACHE } else { 0 };
        let list = if self.cache_dir { abi::FOPEN_CACHE_DIR } else { 0 };
        keep | list
    }
}

/// Permissions that a new inode shall have.
#[derive(Clone, Copy, Debug)]
pub struct NewMode {
    /// `st_mode`; the umask is not applied yet.
    pub mode: u32,
    /// Device number of a device node.
    pub rdev: u32,
}

/// Arguments of `copy_file_range`.
#[derive(Clone, Copy, Debug)]
pub struct Copying {
    /// Handle and offset of the source.
    pub from: (u64, u64),
    /// Handle and offset of the target.
    pub to: (u64, u64),
    /// Inode of the target.
    pub to_ino: Ino,
    /// Bytes.
    pub len: u64,
}

/// A filesystem as the kernel asks it.
#[expect(unused_variables, reason = "the names tell what an argument is")]
pub trait Handler: Send + Sync + 'static {
    /// Called once, before the first request: whoever wants to tell the kernel something keeps the notifier.
    fn start(&self, notifier: &Notifier) {}

    /// Looks a name up.
    fn lookup(&self, parent: Ino, name: &[u8]) -> Answer<Looked> {
        Err(Errno::NOSYS)
    }

    /// The kernel gives back `count` references.
    fn forget(&self, ino: Ino, count: u64) {}

    /// Attributes.
    fn getattr(&self, ino: Ino) -> Answer<Attributes> {
        Err(Errno::NOSYS)
    }

    /// Attributes, asked for with the birth time (which goes to the kernel only so).
    fn statx(&self, ino: Ino) -> Answer<Attributes> {
        Err(Errno::NOSYS)
    }

    /// Changes attributes.
    fn setattr(&self, caller: &Caller, ino: Ino, set: &SetAttr) -> Answer<Attributes> {
        Err(Errno::NOSYS)
    }

    /// Target of a symlink.
    fn readlink(&self, ino: Ino) -> Answer<Vec<u8>> {
        Err(Errno::NOSYS)
    }

    /// Makes a file, FIFO, socket or device node.
    fn mknod(&self, caller: &Caller, parent: Ino, name: &[u8], new: NewMode) -> Answer<Entry> {
        Err(Errno::NOSYS)
    }

    /// Makes a directory.
    fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Answer<Entry> {
        Err(Errno::NOSYS)
    }

    /// Makes a symlink.
    fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Answer<Entry> {
        Err(Errno::NOSYS)
    }

    /// Removes a name that is no directory's.
    fn unlink(&self, parent: Ino, name: &[u8]) -> Answer<()> {
        Err(Errno::NOSYS)
    }

    /// Removes an empty directory.
    fn rmdir(&self, parent: Ino, name: &[u8]) -> Answer<()> {
        Err(Errno::NOSYS)
    }

    /// Renames (`flags`: RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT).
    fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), flags: u32) -> Answer<()> {
        Err(Errno::NOSYS)
    }

    /// Makes a hard link.
    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Answer<Entry> {
        Err(Errno::NOSYS)
    }

    /// Makes and opens a regular file. `flags` are those of open(2).
    fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        flags: i32,
    ) -> Answer<(Entry, Opened)> {
        Err(Errno::NOSYS)
    }

    /// Makes and opens a regular file without a name (O_TMPFILE).
    fn tmpfile(&self, caller: &Caller, parent: Ino, mode: u32, flags: i32) -> Answer<(Entry, Opened)> {
        Err(Errno::NOSYS)
    }

    /// Opens a regular file.
    fn open(&self, ino: Ino, flags: i32) -> Answer<Opened> {
        Err(Errno::NOSYS)
    }

    /// Reads into `buf`; short only at the end. What `buf` holds goes to the kernel as it is.
    fn read(&self, ino: Ino, fh: u64, offset: u64, buf: &mut [u8]) -> Answer<usize> {
        Err(Errno::NOSYS)
    }

    /// Writes all of `data`. `kill_priv`: drop set-id bits and capabilities.
    fn write(&self, ino: Ino, fh: u64, offset: u64, data: &[u8], kill_priv: bool) -> Answer<()> {
        Err(Errno::NOSYS)
    }

    /// As `write`, through a descriptor that appends (O_APPEND): `offset` is the end as the kernel knows it.
    fn append(&self, ino: Ino, fh: u64, offset: u64, data: &[u8], kill_priv: bool) -> Answer<()> {
        self.write(ino, fh, offset, data, kill_priv)
    }

    /// A descriptor was closed by `owner`, whose locks of ranges end. ENOSYS: nothing is ever to be done then.
    fn flush(&self, ino: Ino, fh: u64, owner: u64) -> Answer<()> {
        Err(Errno::NOSYS)
    }

    /// Whether locks are kept here; else the kernel keeps them, for this mount alone. Such a mount has no rings.
    fn keeps_locks(&self) -> bool {
        false
    }

    /// Locks, or lets go; EAGAIN while another is in the way, also where the caller is ready to wait.
    fn set_lock(&self, ino: Ino, ask: &LockAsk) -> Answer<Granted> {
        Err(Errno::NOSYS)
    }

    /// What keeps from locking so.
    fn find_lock(&self, ino: Ino, ask: &LockAsk) -> Answer<Option<FoundLock>> {
        Err(Errno::NOSYS)
    }

    /// The last descriptor of a handle was closed: the locks that are its own end.
    fn release(&self, ino: Ino, fh: u64) {}

    /// Makes a file durable.
    fn fsync(&self, ino: Ino, fh: u64, data_only: bool) -> Answer<()> {
        Err(Errno::NOSYS)
    }

    /// Opens a directory.
    fn opendir(&self, ino: Ino) -> Answer<Opened> {
        Err(Errno::NOSYS)
    }

    /// Lists from cookie `offset` on (0 is the beginning) until `into` is full.
    fn readdir(&self, ino: Ino, fh: u64, offset: u64, into: &mut Entries<'_>) -> Answer<()> {
        Err(Errno::NOSYS)
    }

    /// The last descriptor of a directory's handle was closed.
    fn releasedir(&self, ino: Ino, fh: u64) {}

    /// Makes a directory's entries durable.
    fn fsyncdir(&self, ino: Ino, fh: u64) -> Answer<()> {
        Err(Errno::NOSYS)
    }

    /// Figures of the filesystem.
    fn statfs(&self) -> Answer<StatFs> {
        Err(Errno::NOSYS)
    }

    /// Sets an xattr (`flags`: XATTR_CREATE, XATTR_REPLACE). `kill_sgid`: the ACL takes the set-gid bit away.
    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: i32, kill_sgid: bool) -> Answer<()> {
        Err(Errno::NOSYS)
    }

    /// Value of an xattr.
    fn getxattr(&self, ino: Ino, name: &[u8]) -> Answer<Vec<u8>> {
        Err(Errno::NOSYS)
    }

    /// Names of the xattrs, each ended by NUL.
    fn listxattr(&self, ino: Ino) -> Answer<Vec<u8>> {
        Err(Errno::NOSYS)
    }

    /// Removes an xattr.
    fn removexattr(&self, ino: Ino, name: &[u8]) -> Answer<()> {
        Err(Errno::NOSYS)
    }

    /// `fallocate` with its flags.
    fn fallocate(&self, ino: Ino, fh: u64, offset: u64, len: u64, mode: i32) -> Answer<()> {
        Err(Errno::NOSYS)
    }

    /// SEEK_DATA or SEEK_HOLE.
    fn lseek(&self, ino: Ino, fh: u64, offset: u64, whence: i32) -> Answer<u64> {
        Err(Errno::NOSYS)
    }

    /// Copies within the filesystem; gives the bytes copied, which may be fewer than asked for.
    fn copy_file_range(&self, ino: Ino, copying: &Copying) -> Answer<u64> {
        Err(Errno::NOSYS)
    }
}
