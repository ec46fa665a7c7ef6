//! Attributes of a lower inode: one `statx` each, symlinks never followed.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::fs::{AtFlags, Statx, StatxFlags};
use rustix::io::Result;
use rustix::time::{ClockId, clock_gettime};

/// What `statx` tells of a lower inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LowerStat {
    /// Inode number.
    pub ino: u64,
    /// Device, as `(major, minor)`.
    pub dev: (u32, u32),
    /// Birth time, where the lower filesystem keeps it: tells a reused inode number from its predecessor.
    pub btime: Option<(i64, u32)>,
    /// `st_mode`.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length of the lower file.
    pub size: u64,
    /// 512-byte blocks.
    pub blocks: u64,
    /// Last access.
    pub atime: (i64, u32),
    /// Last change of content.
    pub mtime: (i64, u32),
    /// Last change of attributes.
    pub ctime: (i64, u32),
    /// Device number of a device node, in the kernel's 32-bit encoding.
    pub rdev: u32,
}

/// Type bits of `st_mode`.
pub const S_IFMT: u32 = libc::S_IFMT;
/// Type bits of a regular file.
pub const S_IFREG: u32 = libc::S_IFREG;
/// Type bits of a directory.
pub const S_IFDIR: u32 = libc::S_IFDIR;
/// Type bits of a symlink.
pub const S_IFLNK: u32 = libc::S_IFLNK;

/// What changed so shortly ago may change again without another change time: the kernel's clock for files ticks at least a
/// hundred times a second.
pub const TICK: Duration = Duration::from_millis(20);

/// Time between two moments, in seconds and nanoseconds since 1970, in whatever order.
pub fn between(one: (i64, u32), other: (i64, u32)) -> Duration {
    let nanos = |(seconds, nanos): (i64, u32)| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    Duration::from_nanos(u64::try_from((nanos(one) - nanos(other)).unsigned_abs()).unwrap_or(u64::MAX))
}

impl LowerStat {
    /// How long ago it changed, or will have where a clock was set back.
    pub fn age(&self) -> Duration {
        let now = clock_gettime(ClockId::Realtime);
        between(self.ctime, (now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or(0)))
    }

    /// Whether it changed in this moment: the next change may bear the same time.
    pub fn is_hot(&self) -> bool {
        self.age() < TICK
    }

    /// `S_IFMT` bits.
    pub fn kind(&self) -> u32 {
        self.mode & S_IFMT
    }

    /// Permission bits with set-id and sticky.
    pub fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }

    /// Whether both are the same inode, not one number used twice.
    pub fn same_inode(&self, other: &Self) -> bool {
        self.ino == other.ino
            && self.dev == other.dev
            && self.btime == other.btime
            && self.kind() == other.kind()
    }
}

fn convert(s: &Statx) -> LowerStat {
    let time = |t: rustix::fs::StatxTimestamp| (t.tv_sec, t.tv_nsec);
    let born = s.stx_mask & StatxFlags::BTIME.bits() != 0;
    // The kernel's 32-bit form is the low half of the C library's.
    #[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
    let rdev = rustix::fs::makedev(s.stx_rdev_major, s.stx_rdev_minor) as u32;
    LowerStat {
        ino: s.stx_ino,
        dev: (s.stx_dev_major, s.stx_dev_minor),
        btime: born.then(|| time(s.stx_btime)),
        mode: u32::from(s.stx_mode),
        nlink: s.stx_nlink,
        uid: s.stx_uid,
        gid: s.stx_gid,
        size: s.stx_size,
        blocks: s.stx_blocks,
        atime: time(s.stx_atime),
        mtime: time(s.stx_mtime),
        ctime: time(s.stx_ctime),
        rdev,
    }
}

const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// Attributes of an entry.
pub fn stat_at(dir: impl AsFd, name: &str) -> Result<LowerStat> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    Ok(convert(&rustix::fs::statx(dir, name, flags, WANTED)?))
}

/// Attributes of what a descriptor stands for.
pub fn stat_fd(fd: impl AsFd) -> Result<LowerStat> {
    Ok(convert(&rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, WANTED)?))
}
