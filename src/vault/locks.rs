//! Locks of a lower file, never waited for: ranges (open file description locks, fcntl(2)) and the whole file (flock(2)).
//!
//! Both belong to the open file: whoever shall have locks of his own needs a descriptor that was opened for him.
//!
//! `unsafe`: `fcntl` of libc is variadic, and no safe interface offers locks of ranges that belong to an open file, or
//! tells the error of a close.

#![expect(unsafe_code, reason = "fcntl with a structure; close with its error")]

use std::os::fd::{AsFd, AsRawFd, IntoRawFd};

use rustix::fs::FlockOperation;
use rustix::io::{Errno, Result};

/// The last byte that a range may have: locks that reach it have no end.
pub const LAST: u64 = i64::MAX.cast_unsigned();

/// What a lock keeps others from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockKind {
    /// Writing: others may lock for reading.
    Read,
    /// All.
    Write,
}

/// Bytes, the last one included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// The first.
    pub first: u64,
    /// The last, at most [`LAST`].
    pub last: u64,
}

impl Range {
    /// All bytes that there may be.
    pub const WHOLE: Self = Self { first: 0, last: LAST };

    /// Whether some byte is in both.
    pub fn meets(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// As fcntl(2) takes it.
    fn request(self, kind: libc::c_int) -> Result<libc::flock> {
        let first = i64::try_from(self.first).map_err(|_| Errno::INVAL)?;
        let last = i64::try_from(self.last).map_err(|_| Errno::INVAL)?;
        let len = match last {
            i64::MAX => 0,
            last if last < first => return Err(Errno::INVAL),
            last => last - first + 1,
        };
        let kind = libc::c_short::try_from(kind).map_err(|_| Errno::INVAL)?;
        let whence = libc::c_short::try_from(libc::SEEK_SET).map_err(|_| Errno::INVAL)?;
        Ok(libc::flock { l_type: kind, l_whence: whence, l_start: first, l_len: len, l_pid: 0 })
    }
}

fn code(kind: LockKind) -> libc::c_int {
    match kind {
        LockKind::Read => libc::F_RDLCK,
        LockKind::Write => libc::F_WRLCK,
    }
}

fn call(file: impl AsFd, command: libc::c_int, request: &mut libc::flock) -> Result<()> {
    // SAFETY: the descriptor is open, since it is borrowed. Both commands read one `flock`, and F_OFD_GETLK writes one,
    // where the pointer leads: to a whole one that is borrowed mutably until the call returns.
    let done = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, std::ptr::from_mut(request)) };
    if done == -1 { Err(last_error()) } else { Ok(()) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Closes another descriptor of an open file: at each close a network filesystem stores what was written, and tells when
/// it could not.
pub fn close_another(file: impl AsFd) -> Result<()> {
    let another = rustix::io::fcntl_dupfd_cloexec(file, 0)?.into_raw_fd();
    // SAFETY: the number was owned here alone, and is not used again: also where it fails, Linux has closed it.
    match unsafe { libc::close(another) } {
        -1 => Err(last_error()),
        _ => Ok(()),
    }
}

/// Locks a range, in the place of what the open file had locked of it; EAGAIN while another has it.
pub fn lock(file: impl AsFd, range: Range, kind: LockKind) -> Result<()> {
    retried(|| call(&file, libc::F_OFD_SETLK, &mut range.request(code(kind))?))
}

/// Lets go of a range.
pub fn unlock(file: impl AsFd, range: Range) -> Result<()> {
    retried(|| call(&file, libc::F_OFD_SETLK, &mut range.request(libc::F_UNLCK)?))
}

/// A lock of another that keeps the open file from locking a range so.
pub fn in_the_way(file: impl AsFd, range: Range, kind: LockKind) -> Result<Option<(Range, LockKind)>> {
    let mut request = range.request(code(kind))?;
    retried(|| call(&file, libc::F_OFD_GETLK, &mut request))?;
    let kind = match libc::c_int::from(request.l_type) {
        libc::F_RDLCK => LockKind::Read,
        libc::F_WRLCK => LockKind::Write,
        _ => return Ok(None),
    };
    let first = u64::try_from(request.l_start).map_err(|_| Errno::IO)?;
    let last = match u64::try_from(request.l_len).map_err(|_| Errno::IO)? {
        0 => LAST,
        len => first.saturating_add(len - 1).min(LAST),
    };
    Ok(Some((Range { first, last }, kind)))
}

/// `flock`; EAGAIN while another has it.
pub fn lock_whole(file: impl AsFd, kind: LockKind) -> Result<()> {
    let operation = match kind {
        LockKind::Read => FlockOperation::NonBlockingLockShared,
        LockKind::Write => FlockOperation::NonBlockingLockExclusive,
    };
    retried(|| rustix::fs::flock(&file, operation))
}

/// Lets go of what `lock_whole` got.
pub fn unlock_whole(file: impl AsFd) -> Result<()> {
    retried(|| rustix::fs::flock(&file, FlockOperation::NonBlockingUnlock))
}

/// A network filesystem may be interrupted where a local one is not. Bounded: it is asked again by whoever waits.
fn retried(mut call: impl FnMut() -> Result<()>) -> Result<()> {
    const TRIES: usize = 16;
    for _ in 1..TRIES {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
    call()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn range(first: u64, last: u64) -> Range {
        Range { first, last }
    }

    /// Two open files of one process keep each other from a range, to its last byte, and `in_the_way` names it.
    #[test]
    fn ranges_belong_to_the_open_file() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("f");
        let open = || File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let (one, other) = (open().expect("a file"), open().expect("a file"));
        lock(&one, range(10, 19), LockKind::Write).expect("free");
        assert_eq!(lock(&other, range(19, 30), LockKind::Read), Err(Errno::AGAIN));
        lock(&other, range(20, 30), LockKind::Read).expect("free");
        let found = in_the_way(&other, Range::WHOLE, LockKind::Read).expect("asked");
        assert_eq!(found, Some((range(10, 19), LockKind::Write)));
        assert_eq!(in_the_way(&one, range(0, 9), LockKind::Write), Ok(None));
        lock(&one, range(31, LAST), LockKind::Write).expect("free");
        let found = in_the_way(&other, range(40, 40), LockKind::Write).expect("asked");
        assert_eq!(found, Some((range(31, LAST), LockKind::Write)));
        unlock(&one, Range::WHOLE).expect("held");
        assert_eq!(in_the_way(&other, Range::WHOLE, LockKind::Write), Ok(None));
        assert_eq!(lock(&one, range(5, 4), LockKind::Read), Err(Errno::INVAL));
        assert_eq!(lock(&one, range(0, u64::MAX), LockKind::Read), Err(Errno::INVAL));
    }
}
