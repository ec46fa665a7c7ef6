//! Access that the lower permissions refuse to their owner: opening a file of mode 0000 or 0444 for writing, reading
//! a header below 0200.
//!
//! The kernel has checked the caller's permissions on the mount already; what the lower mode still refuses is refused
//! only because the daemon is an ordinary user. It owns the inode then, so it lends itself the bits for a moment.

use std::fs::File;
use std::os::fd::AsFd;

use parking_lot::RwLock;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{Errno, Result};

use super::proc_path;
use super::stat::stat_fd;

/// Taken shared by every change of mode, alone while bits are lent: a change in between would be undone.
static LENDING: RwLock<()> = RwLock::new(());

fn chmod_unlocked(fd: impl AsFd, mode: u32) -> Result<()> {
    rustix::fs::chmodat(CWD, proc_path(fd), Mode::from_raw_mode(mode & 0o7777), rustix::fs::AtFlags::empty())
}

/// Changes the permissions of what `fd` (also an `O_PATH` one) stands for.
pub fn chmod(fd: impl AsFd, mode: u32) -> Result<()> {
    let _shared = LENDING.read();
    chmod_unlocked(fd, mode)
}

/// Runs `op`; if the lower permissions refuse it, runs it again with `bits` added to them for the time of the call.
/// `op` must not lend itself.
pub fn lent<T>(fd: impl AsFd, bits: u32, op: impl Fn() -> Result<T>) -> Result<T> {
    match op() {
        Err(Errno::ACCESS) => {}
        other => return other,
    }
    let _alone = LENDING.write();
    let mode = stat_fd(&fd)?.permissions();
    if mode & bits == bits {
        return op();
    }
    chmod_unlocked(&fd, mode | bits).map_err(|_| Errno::ACCESS)?;
    let result = op();
    let back = chmod_unlocked(&fd, mode);
    let value = result?;
    back?;
    Ok(value)
}

/// From now on reading through `file` leaves its access time alone, where this user may ask for that (his own file,
/// or a capability).
pub fn leave_atime(file: impl AsFd) {
    let _ = rustix::fs::fcntl_getfl(&file)
        .and_then(|flags| rustix::fs::fcntl_setfl(&file, flags | OFlags::NOATIME));
}

/// Gives `file` what [`leave_atime`] gave to `other`.
pub fn read_alike(file: impl AsFd, other: impl AsFd) {
    if rustix::fs::fcntl_getfl(other).is_ok_and(|flags| flags.contains(OFlags::NOATIME)) {
        leave_atime(file);
    }
}

/// How a content file shall be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// Reading and writing, or the error.
    Write,
    /// Reading; writing too where the lower filesystem lets us, so that a later writer finds it open.
    Read,
    /// Reading only, leaving even the access time alone where that is permitted.
    ReadOnly,
}

/// Opens the regular file that `fd` stands for. Gives whether it is open for writing.
pub fn open_content(fd: impl AsFd, want: Want) -> Result<(File, bool)> {
    let path = proc_path(&fd);
    let open =
        |flags: OFlags| rustix::fs::open(&path, flags | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty());
    let write = || open(OFlags::RDWR);
    let read = || open(OFlags::RDONLY);
    match want {
        Want::Write => Ok((lent(&fd, 0o600, write)?.into(), true)),
        Want::Read => match write() {
            Ok(file) => Ok((file.into(), true)),
            Err(Errno::ACCESS | Errno::ROFS | Errno::PERM | Errno::TXTBSY) => {
                Ok((lent(&fd, 0o400, read)?.into(), false))
            }
            Err(e) => Err(e),
        },
        Want::ReadOnly => match open(OFlags::RDONLY | OFlags::NOATIME) {
            Ok(file) => Ok((file.into(), false)),
            Err(Errno::PERM | Errno::ACCESS) => Ok((lent(&fd, 0o400, read)?.into(), false)),
            Err(e) => Err(e),
        },
    }
}
