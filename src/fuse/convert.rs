//! Between `fs`'s types and `fuser`'s: attributes, times, kinds, errors.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, Request, TimeOrNow};

use crate::fs::{Attr, Caller, FsError, SetTime, Time};

/// Type of an inode from its `st_mode`. An unknown type shows as a socket: it cannot be opened.
pub(super) fn kind(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFREG => FileType::RegularFile,
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::Socket,
    }
}

/// Attributes as the kernel takes them.
pub(super) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: kind(attr.mode),
        perm: permissions(attr.mode),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

/// Attributes of `.` and `..` in a listing: the kernel reads number and type, and ignores the rest.
pub(super) fn bare_attr(ino: u64, mode: u32) -> FileAttr {
    let none = (0, 0);
    attr(&Attr {
        ino,
        size: 0,
        blocks: 0,
        atime: none,
        mtime: none,
        ctime: none,
        mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
    })
}

/// The twelve permission bits.
fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

/// A time that `SystemTime` cannot hold shows as the epoch.
fn system_time((secs, nanos): Time) -> SystemTime {
    let whole = Duration::new(secs.unsigned_abs(), 0);
    let base = if secs >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
    base.and_then(|t| t.checked_add(Duration::new(0, nanos))).unwrap_or(UNIX_EPOCH)
}

/// The time of a request. `fuser` 0.18 takes (-2 s, +0.8 s) for -2.8 s instead of -1.2 s; undone here.
fn request_time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(d) => (i64::try_from(d.as_secs()).unwrap_or(i64::MAX), d.subsec_nanos()),
        Err(before) => {
            let d = before.duration();
            (0_i64.checked_sub_unsigned(d.as_secs()).unwrap_or(i64::MIN), d.subsec_nanos())
        }
    }
}

/// A timestamp to set.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(t) => SetTime::At(request_time(t)),
    }
}

/// Who asks.
pub(super) fn caller(req: &Request, umask: u32) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), umask }
}

/// The errno of an error.
pub(super) fn errno(error: &FsError) -> Errno {
    Errno::from_i32(error.errno())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times before 1970 with a fraction go to the kernel as they are: -1.2 s is (-2 s, +0.8 s).
    #[test]
    fn times_before_the_epoch_keep_their_fraction() {
        let shown = system_time((-2, 800_000_000));
        assert_eq!(UNIX_EPOCH.duration_since(shown).expect("before").as_millis(), 1200);
    }

    /// What `fuser` makes of (-2 s, +0.8 s) in a request is read as what the kernel meant.
    #[test]
    fn a_request_time_before_the_epoch_is_what_the_kernel_sent() {
        let fusers = UNIX_EPOCH - Duration::new(2, 800_000_000);
        assert_eq!(request_time(fusers), (-2, 800_000_000));
        assert_eq!(request_time(UNIX_EPOCH + Duration::new(7, 9)), (7, 9));
    }

    /// A time no clock can hold does not end the event loop.
    #[test]
    fn absurd_times_show_as_the_epoch() {
        assert_eq!(system_time((i64::MAX, 4_000_000_000)), UNIX_EPOCH);
    }
}
