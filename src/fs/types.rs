//! What requests and answers are made of. Plain values, nothing of the FUSE protocol among them.

/// Inode number as the mount shows it: 1 for the top, else the lower one.
pub type Ino = u64;

/// How a vault is mounted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Nothing is written, not even times.
    pub read_only: bool,
    /// Other hosts may change the vault: nothing is cached beyond a request.
    pub shared: bool,
    /// Reading leaves access times alone.
    pub no_atime: bool,
    /// Durable files are changed in place, without a journal: a power cut may tear what is being overwritten.
    pub no_journal: bool,
    /// Blocks are read and written past the lower page cache, where the lower filesystem can.
    pub direct_lower: bool,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// Birth, where the lower filesystem keeps it.
    pub btime: Option<Time>,
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
