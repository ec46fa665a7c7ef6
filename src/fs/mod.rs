//! POSIX: inodes, names, handles, permissions' residue. Knows no `fuser` type and no `clap`.
//!
//! Every method may be called at once from any thread. Names are plaintext bytes, 1 to 255 long.

use std::path::Path;

use crate::keys::Keyring;

/// Inode number as the mount shows it: 1 for the top, else the lower one.
pub type Ino = u64;

/// How a vault is mounted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Nothing is written, not even times.
    pub read_only: bool,
    /// Other hosts may change the vault: nothing is cached beyond a request.
    pub shared: bool,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Filesystem user id.
    pub uid: u32,
    /// Filesystem group id.
    pub gid: u32,
    /// The caller's umask; applied unless the directory has a default ACL. 0 where unknown.
    pub umask: u32,
}

/// Seconds and nanoseconds since the epoch.
pub type Time = (i64, u32);

/// Attributes of an inode, sizes in plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Plaintext length.
    pub size: u64,
    /// 512-byte blocks that the lower file takes.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of attributes.
    pub ctime: Time,
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u32,
    /// Preferred I/O size.
    pub blksize: u32,
}

/// An inode that a lookup found; counts as one kernel reference, given back by `forget`.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Its attributes.
    pub attr: Attr,
    /// Tells apart inodes that had the same number one after the other.
    pub generation: u64,
}

/// A new timestamp.
#[derive(Clone, Copy, Debug)]
pub enum SetTime {
    /// The time of the call.
    Now,
    /// A given one.
    At(Time),
}

/// What `setattr` shall change.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permissions.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Plaintext length.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
}

/// One entry of a directory.
#[derive(Clone, Debug)]
pub struct DirEntry<'a> {
    /// Inode number.
    pub ino: Ino,
    /// Cookie of the entry behind this one.
    pub next: u64,
    /// `S_IFMT` bits.
    pub kind: u32,
    /// Plaintext name.
    pub name: &'a [u8],
    /// With `readdirplus`: attributes and a reference, but for `.` and `..`.
    pub found: Option<Found>,
}

/// Filesystem figures, in `bsize` units.
#[derive(Clone, Copy, Debug)]
pub struct StatFs {
    /// Total blocks.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Blocks free for ordinary users.
    pub bavail: u64,
    /// Total inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Block size.
    pub bsize: u32,
    /// Longest name.
    pub namelen: u32,
    /// Fragment size.
    pub frsize: u32,
}

/// Why a request failed. One place turns it into an errno: [`FsError::errno`].
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// A plain errno of POSIX semantics (ENOENT, EEXIST, ...): not worth a log line.
    #[error("{0}")]
    Errno(#[from] rustix::io::Errno),
    /// Content that cannot be read or written.
    #[error(transparent)]
    Content(#[from] crate::content::ContentError),
    /// A key that cannot be had.
    #[error(transparent)]
    Key(#[from] crate::keys::KeyError),
    /// A regular file without its header: a tool dropped the xattr.
    #[error("the file has no header (xattr user.efs.key): a tool dropped it; restore it from a backup")]
    NoHeader,
    /// A name, symlink target, xattr or directory id that does not decode.
    #[error("{0}")]
    Undecodable(&'static str),
}

impl FsError {
    /// The errno for the caller.
    pub fn errno(&self) -> i32 {
        todo!()
    }

    /// Whether the operator should see a log line: damage and key trouble, not ENOENT.
    pub fn is_noteworthy(&self) -> bool {
        !matches!(self, Self::Errno(_))
    }
}

/// Result of a filesystem operation.
pub type Result<T> = std::result::Result<T, FsError>;

/// A mounted vault.
pub struct Fs {
    _private: (),
}

#[expect(unused_variables, reason = "skeleton")]
impl Fs {
    /// Opens the vault's top directory. Takes the vault's lock (one mount at a time unless `shared`).
    pub fn open(vault_dir: &Path, keyring: Keyring, options: Options) -> Result<Self> {
        todo!()
    }

    /// Looks a name up; one reference.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Found> {
        todo!()
    }

    /// Gives back `count` references.
    pub fn forget(&self, ino: Ino, count: u64) {
        todo!()
    }

    /// Attributes.
    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        todo!()
    }

    /// Changes attributes.
    pub fn setattr(&self, caller: &Caller, ino: Ino, set: &SetAttr) -> Result<Attr> {
        todo!()
    }

    /// Target of a symlink.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        todo!()
    }

    /// Makes a file, FIFO, socket or device node.
    pub fn mknod(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, rdev: u32) -> Result<Found> {
        todo!()
    }

    /// Makes a directory.
    pub fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Found> {
        todo!()
    }

    /// Makes a symlink.
    pub fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Found> {
        todo!()
    }

    /// Makes a hard link.
    pub fn link(&self, ino: Ino, new_parent: Ino, new_name: &[u8]) -> Result<Found> {
        todo!()
    }

    /// Removes a name.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        todo!()
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        todo!()
    }

    /// Renames. `flags`: 0, RENAME_NOREPLACE, RENAME_EXCHANGE.
    pub fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: u32,
    ) -> Result<()> {
        todo!()
    }

    /// Creates and opens a regular file; gives its handle.
    pub fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        flags: i32,
    ) -> Result<(Found, u64)> {
        todo!()
    }

    /// Opens a regular file; gives its handle.
    pub fn open_file(&self, ino: Ino, flags: i32) -> Result<u64> {
        todo!()
    }

    /// Reads; short only at the end.
    pub fn read(&self, fh: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        todo!()
    }

    /// Writes all of `data`. `kill_priv`: drop set-id bits and capabilities (FUSE_WRITE_KILL_SUIDGID).
    pub fn write(&self, fh: u64, offset: u64, data: &[u8], kill_priv: bool) -> Result<()> {
        todo!()
    }

    /// A descriptor was closed.
    pub fn flush(&self, fh: u64) -> Result<()> {
        todo!()
    }

    /// The last descriptor of a handle was closed.
    pub fn release(&self, fh: u64) {
        todo!()
    }

    /// Makes a file durable.
    pub fn fsync(&self, fh: u64, data_only: bool) -> Result<()> {
        todo!()
    }

    /// Whether some handle of the inode is open for writing (the kernel may hold dirty pages of it).
    pub fn has_writers(&self, ino: Ino) -> bool {
        todo!()
    }

    /// `fallocate` with its flags; those not served give EOPNOTSUPP.
    pub fn fallocate(&self, fh: u64, offset: u64, len: u64, mode: i32) -> Result<()> {
        todo!()
    }

    /// SEEK_DATA or SEEK_HOLE.
    pub fn lseek(&self, fh: u64, offset: u64, whence: i32) -> Result<u64> {
        todo!()
    }

    /// Copies within the vault; gives the bytes copied, which may be fewer than asked for.
    pub fn copy_file_range(&self, from: u64, from_off: u64, to: u64, to_off: u64, len: u64) -> Result<u64> {
        todo!()
    }

    /// Opens a directory; gives its handle.
    pub fn opendir(&self, ino: Ino) -> Result<u64> {
        todo!()
    }

    /// Lists from cookie `offset` on until `sink` returns false (full; the entry it refused is not consumed).
    /// With `plus`, entries carry attributes and a reference; a refused entry's reference is given back here.
    pub fn readdir(
        &self,
        fh: u64,
        offset: u64,
        plus: bool,
        sink: &mut dyn FnMut(&DirEntry<'_>) -> bool,
    ) -> Result<()> {
        todo!()
    }

    /// Closes a directory.
    pub fn releasedir(&self, fh: u64) {
        todo!()
    }

    /// Makes a directory's entries durable.
    pub fn fsyncdir(&self, fh: u64) -> Result<()> {
        todo!()
    }

    /// Figures of the lower filesystem.
    pub fn statfs(&self) -> Result<StatFs> {
        todo!()
    }

    /// Sets an xattr (`flags`: XATTR_CREATE, XATTR_REPLACE).
    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        todo!()
    }

    /// Value of an xattr.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        todo!()
    }

    /// Names of the xattrs, each ended by NUL.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<u8>> {
        todo!()
    }

    /// Removes an xattr.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        todo!()
    }

    /// Flushes everything and lets go of the vault; called once, after the last request.
    pub fn close(&self) {
        todo!()
    }
}
