//! Entries of lower directories: open without following, make, link, rename, remove, change owner and times.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid};
use rustix::io::{Errno, Result};

use super::stat::{LowerStat, S_IFDIR, stat_fd};
use super::{access, proc_path, umask, xattr};

/// Opens an entry as `O_PATH`: a symlink itself, a FIFO without waiting, a file of any mode.
pub fn open_path(dir: impl AsFd, name: &str) -> Result<OwnedFd> {
    rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Opens a directory entry as `O_PATH`.
pub fn open_dir_path(dir: impl AsFd, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Opens the directory that an `O_PATH` descriptor stands for, for listing and syncing.
pub fn open_dir_read(dir: impl AsFd, no_atime: bool) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if no_atime {
        match rustix::fs::openat(&dir, c".", flags | OFlags::NOATIME, Mode::empty()) {
            Err(Errno::PERM) => {}
            other => return other,
        }
    }
    rustix::fs::openat(dir, c".", flags, Mode::empty())
}

/// Changes the owner of what `fd` (also an `O_PATH` one) stands for. Set-id bits of files go, as `chown(2)` has it.
pub fn chown(fd: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    rustix::fs::chownat(fd, c"", uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::EMPTY_PATH)
}

/// Gives a fresh inode to `owner`, keeping its permissions with set-id bits. A group inherited from a set-gid
/// parent stays. Gives its attributes then, but for the times.
pub fn give_to(fd: impl AsFd, made: &LowerStat, parent: impl AsFd, owner: (u32, u32)) -> Result<LowerStat> {
    let uid = (made.uid != owner.0).then_some(owner.0);
    let mut gid = (made.gid != owner.1).then_some(owner.1);
    if gid.is_some() && stat_fd(parent)?.mode & libc::S_ISGID != 0 {
        gid = None;
    }
    if uid.is_some() || gid.is_some() {
        chown(&fd, uid, gid)?;
        if made.permissions() & 0o6000 != 0 && made.kind() != S_IFDIR {
            access::chmod(fd, made.permissions())?;
        }
    }
    Ok(LowerStat { uid: uid.unwrap_or(made.uid), gid: gid.unwrap_or(made.gid), ..*made })
}

/// Makes an entry that is whole, and its owner's, before its name appears: `make` and `finish` work under the name
/// `temporary`. Where anything fails, nothing stays. Gives its attributes.
fn make(
    dir: impl AsFd + Copy,
    (temporary, name): (&str, &str),
    owner: (u32, u32),
    make: impl FnOnce() -> Result<()>,
    finish: impl FnOnce(&OwnedFd) -> Result<()>,
) -> Result<LowerStat> {
    make()?;
    let done = || {
        let fd = open_path(dir, temporary)?;
        let made = stat_fd(&fd)?;
        finish(&fd)?;
        let given = give_to(&fd, &made, dir, owner)?;
        settle(dir, temporary, name)?;
        // The change of name shows in its times. It is there now, whatever happens.
        Ok(stat_fd(&fd).unwrap_or(given))
    };
    done().inspect_err(|_| {
        let _ = discard(dir, temporary);
    })
}

/// Makes a directory that has its id when its name appears. `mode`: permissions, umask.
pub fn mkdir(
    dir: impl AsFd + Copy,
    names: (&str, &str),
    (permissions, mask): (u32, u32),
    owner: (u32, u32),
    id: (&str, &[u8]),
) -> Result<LowerStat> {
    let new =
        || umask::with_umask(mask, || rustix::fs::mkdirat(dir, names.0, Mode::from_raw_mode(permissions)));
    make(dir, names, owner, new, |fd| xattr::set(fd, id.0, id.1, 0))
}

/// Makes a FIFO, socket or device node. `mode`: type and permissions, umask.
pub fn mknod(
    dir: impl AsFd + Copy,
    names: (&str, &str),
    (mode, mask): (u32, u32),
    rdev: u32,
    owner: (u32, u32),
) -> Result<LowerStat> {
    let (kind, permissions) = (FileType::from_raw_mode(mode), Mode::from_raw_mode(mode & 0o7777));
    let new =
        || umask::with_umask(mask, || rustix::fs::mknodat(dir, names.0, kind, permissions, u64::from(rdev)));
    make(dir, names, owner, new, |_| Ok(()))
}

/// Makes a symlink.
pub fn symlink(
    dir: impl AsFd + Copy,
    names: (&str, &str),
    target: &[u8],
    owner: (u32, u32),
) -> Result<LowerStat> {
    make(dir, names, owner, || rustix::fs::symlinkat(target, dir, names.0), |_| Ok(()))
}

/// Links what `fd` stands for to a new name; fails where the name is taken.
pub fn link(fd: impl AsFd, dir: impl AsFd, name: &str) -> Result<()> {
    // Without walking through /proc where the kernel lets this user; ENOENT is its refusal (linkat(2)).
    match rustix::fs::linkat(&fd, c"", &dir, name, AtFlags::EMPTY_PATH) {
        Err(Errno::NOENT) => {
            rustix::fs::linkat(CWD, proc_path(fd).as_str(), dir, name, AtFlags::SYMLINK_FOLLOW)
        }
        other => other,
    }
}

/// Renames, `flags` as `renameat2(2)` has them.
pub fn rename(from: impl AsFd, old: &str, to: impl AsFd, new: &str, flags: RenameFlags) -> Result<()> {
    rustix::fs::renameat_with(from, old, to, new, flags)
}

/// Gives a temporary entry its final name, failing where that is taken, on filesystems without NOREPLACE too.
pub fn settle(dir: impl AsFd + Copy, temporary: &str, name: &str) -> Result<()> {
    match rename(dir, temporary, dir, name, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => {}
        other => return other,
    }
    match rustix::fs::linkat(dir, temporary, dir, name, AtFlags::empty()) {
        Ok(()) => unlink(dir, temporary),
        // A directory cannot be linked: look, then rename.
        Err(Errno::PERM) => match super::stat::stat_at(dir, name) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => rename(dir, temporary, dir, name, RenameFlags::empty()),
            Err(e) => Err(e),
        },
        Err(e) => Err(e),
    }
}

/// Removes an entry that is no directory.
pub fn unlink(dir: impl AsFd, name: &str) -> Result<()> {
    rustix::fs::unlinkat(dir, name, AtFlags::empty())
}

/// Removes an empty directory.
pub fn rmdir(dir: impl AsFd, name: &str) -> Result<()> {
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// Removes an entry that nobody needs, an empty directory among others.
pub fn discard(dir: impl AsFd, name: &str) -> Result<()> {
    match unlink(&dir, name) {
        Err(Errno::ISDIR | Errno::PERM) => rmdir(dir, name),
        other => other,
    }
}

/// Target bytes of the symlink that an `O_PATH` descriptor stands for.
pub fn readlink(fd: impl AsFd) -> Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(fd, c"", Vec::new())?.into_bytes())
}

/// A new value for one timestamp.
#[derive(Clone, Copy, Debug)]
pub enum NewTime {
    /// As it is.
    Keep,
    /// The lower kernel's clock.
    Now,
    /// Seconds and nanoseconds.
    At(i64, u32),
}

impl NewTime {
    fn spec(self) -> Timespec {
        match self {
            Self::Keep => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
            Self::Now => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
            Self::At(tv_sec, nanos) => Timespec { tv_sec, tv_nsec: nanos.into() },
        }
    }
}

/// Sets access and modification time of what `fd` (also an `O_PATH` one) stands for.
pub fn set_times(fd: impl AsFd, access: NewTime, modification: NewTime) -> Result<()> {
    let times = Timestamps { last_access: access.spec(), last_modification: modification.spec() };
    rustix::fs::utimensat(CWD, proc_path(fd), &times, AtFlags::empty())
}
