//! Between `fs`'s types and the kernel's structures: attributes, times, lifetimes, errors.

use std::time::Duration;

use rustix::io::Errno;

use super::abi::{self, SxTime};
use super::entries::Listed;
use super::handler::{Attributes, Entry};
use crate::fs::{Attr, FoundLock, FsError, LockKind, StatFs, Time};

/// Attributes as the kernel takes them.
pub(super) fn attr(attr: &Attr) -> abi::Attr {
    abi::Attr {
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime.0,
        mtime: attr.mtime.0,
        ctime: attr.ctime.0,
        atimensec: attr.atime.1,
        mtimensec: attr.mtime.1,
        ctimensec: attr.ctime.1,
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

/// Attributes of an entry that is only listed: the kernel reads number and type.
pub(super) fn bare(listed: &Listed<'_>) -> abi::Attr {
    abi::Attr { ino: listed.ino, mode: listed.kind, nlink: 1, blksize: 4096, ..abi::Attr::default() }
}

/// An entry.
pub(super) fn entry(entry: &Entry) -> abi::EntryOut {
    abi::EntryOut {
        nodeid: entry.attr.ino,
        generation: entry.generation,
        entry_valid: entry.name_for.as_secs(),
        attr_valid: entry.attr_for.as_secs(),
        entry_valid_nsec: entry.name_for.subsec_nanos(),
        attr_valid_nsec: entry.attr_for.subsec_nanos(),
        attr: attr(&entry.attr),
    }
}

/// A name that does not exist, for so long.
pub(super) fn missing(valid: Duration) -> abi::EntryOut {
    abi::EntryOut {
        entry_valid: valid.as_secs(),
        entry_valid_nsec: valid.subsec_nanos(),
        ..abi::EntryOut::default()
    }
}

/// The reply to GETATTR and SETATTR.
pub(super) fn attributes(a: &Attributes) -> abi::AttrOut {
    abi::AttrOut {
        attr_valid: a.valid.as_secs(),
        attr_valid_nsec: a.valid.subsec_nanos(),
        dummy: 0,
        attr: attr(&a.attr),
    }
}

/// The reply to STATX.
pub(super) fn statx(a: &Attributes) -> abi::StatxOut {
    let Attributes { attr, valid } = a;
    let born = attr.btime.map_or(0, |_| libc::STATX_BTIME);
    let rdev = u64::from(attr.rdev);
    abi::StatxOut {
        attr_valid: valid.as_secs(),
        attr_valid_nsec: valid.subsec_nanos(),
        mask: libc::STATX_BASIC_STATS | born,
        blksize: attr.blksize,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        // The upper half of a mode is empty.
        mode: u16::try_from(attr.mode & 0xffff).unwrap_or(0),
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        btime: time(attr.btime.unwrap_or((0, 0))),
        ctime: time(attr.ctime),
        mtime: time(attr.mtime),
        rdev_major: libc::major(rdev),
        rdev_minor: libc::minor(rdev),
        ..abi::StatxOut::default()
    }
}

fn time((secs, nanos): Time) -> SxTime {
    SxTime { secs, nanos, reserved: 0 }
}

/// The reply to STATFS.
pub(super) fn statfs(s: &StatFs) -> abi::StatfsOut {
    abi::StatfsOut {
        blocks: s.blocks,
        bfree: s.bfree,
        bavail: s.bavail,
        files: s.files,
        ffree: s.ffree,
        bsize: s.bsize,
        namelen: s.namelen,
        frsize: s.frsize,
        ..abi::StatfsOut::default()
    }
}

/// The reply to GETLK.
pub(super) fn lock(found: Option<FoundLock>) -> abi::LkOut {
    let code = |kind: libc::c_int| kind.unsigned_abs();
    let Some(FoundLock { range, kind, pid }) = found else {
        return abi::LkOut { kind: code(libc::F_UNLCK), ..abi::LkOut::default() };
    };
    let kind = match kind {
        LockKind::Read => code(libc::F_RDLCK),
        LockKind::Write => code(libc::F_WRLCK),
    };
    abi::LkOut { start: range.first, end: range.last, kind, pid }
}

/// The errno of an error.
pub(super) fn errno(error: &FsError) -> Errno {
    Errno::from_raw_os_error(error.errno())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times before 1970 with a fraction go to the kernel as they are, and the birth time only where there is one.
    #[test]
    fn times_go_to_the_kernel_as_they_are() {
        let time = (-2, 800_000_000);
        let born = Attr { mtime: time, btime: Some(time), mode: libc::S_IFREG | 0o4755, ..Attr::default() };
        let sent = statx(&Attributes { attr: born, valid: Duration::from_millis(1500) });
        assert_eq!((sent.btime.secs, sent.mtime.nanos), (-2, 800_000_000));
        assert_eq!((sent.attr_valid, sent.attr_valid_nsec), (1, 500_000_000));
        assert_eq!((sent.mask & libc::STATX_BTIME, sent.mode), (libc::STATX_BTIME, 0o104_755));
        let unborn = statx(&Attributes { attr: Attr { btime: None, ..born }, valid: Duration::ZERO });
        assert_eq!(unborn.mask, libc::STATX_BASIC_STATS);
        assert_eq!((attr(&born).mtime, attr(&born).mtimensec), time);
    }
}
