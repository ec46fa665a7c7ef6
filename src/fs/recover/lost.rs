//! `lost+found`: where a repair keeps what it cannot place, and copies of what it changes.
//!
//! Beside each object stands a note with where it was, its lower path and never its plaintext one: whoever reads the
//! vault reads this too.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::{Errno, Result};
use serde::Serialize;

use crate::format::names::{LOST_FOUND, VAULT_DIR};
use crate::vault::copy::copy_data;
use crate::vault::sidecar::errno;
use crate::vault::{LowerStat, access, entry, stat, xattr};

/// Ends the name of a note.
const NOTE: &str = ".json";
/// Names tried for one object.
const TRIES: u32 = 10_000;

/// The open `lost+found` of a vault.
#[derive(Debug)]
pub struct LostFound {
    dir: OwnedFd,
}

/// What a note says.
#[derive(Serialize)]
struct Note<'a> {
    /// Lower path that the object had, from the vault's top.
    lower: String,
    /// Why it is here.
    why: &'a str,
    /// When it came here, in seconds since 1970.
    kept: u64,
}

impl LostFound {
    /// Opens it, making it where it is missing.
    pub fn open(top: impl AsFd) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let vault = rustix::fs::openat(top, VAULT_DIR, flags, Mode::empty())?;
        match rustix::fs::mkdirat(&vault, LOST_FOUND, Mode::RWXU) {
            Ok(()) => rustix::fs::fsync(&vault)?,
            Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
        Ok(Self { dir: rustix::fs::openat(&vault, LOST_FOUND, flags, Mode::empty())? })
    }

    /// Copies a lower file with everything that it has; durable when this returns. Gives the copy's path from the
    /// vault's top.
    pub fn copy(&self, file: &File, at: &LowerStat, lower: &Path, why: &str) -> Result<PathBuf> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (name, copy) = named("torn", at.ino, |name| {
            rustix::fs::openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR)
        })?;
        let copy = File::from(copy);
        let filled = fill(&copy, file, at).and_then(|()| self.note(&name, lower, why));
        filled.inspect_err(|_| {
            let _ = entry::unlink(&self.dir, &name);
            let _ = entry::unlink(&self.dir, &format!("{name}{NOTE}"));
        })?;
        Ok(kept_at(&name))
    }

    /// Moves an entry here, with all it has. Gives its path from the vault's top.
    pub fn take(&self, dir: impl AsFd, name: &str, ino: u64, lower: &Path, why: &str) -> Result<PathBuf> {
        let (new, ()) = named("unplaced", ino, |new| {
            match rustix::fs::statx(&self.dir, new, AtFlags::SYMLINK_NOFOLLOW, rustix::fs::StatxFlags::TYPE) {
                Ok(_) => return Err(Errno::EXIST),
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
            // The note comes first: an object without one would have lost where it belongs.
            self.note(new, lower, why)?;
            match entry::rename(&dir, name, &self.dir, new, RenameFlags::NOREPLACE) {
                // A lower filesystem without NOREPLACE; the name was free a moment ago, and nobody else is here.
                Err(Errno::INVAL | Errno::NOSYS) => {
                    entry::rename(&dir, name, &self.dir, new, RenameFlags::empty())
                }
                other => other,
            }
            .inspect_err(|_| {
                let _ = entry::unlink(&self.dir, &format!("{new}{NOTE}"));
            })
        })?;
        rustix::fs::fsync(&self.dir)?;
        Ok(kept_at(&new))
    }

    /// How many objects are kept in a vault.
    pub fn count(top: &Path) -> io::Result<u64> {
        let dir = match std::fs::read_dir(top.join(VAULT_DIR).join(LOST_FOUND)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
            other => other?,
        };
        let mut count = 0;
        for entry in dir {
            count += u64::from(!entry?.file_name().to_string_lossy().ends_with(NOTE));
        }
        Ok(count)
    }

    fn note(&self, name: &str, lower: &Path, why: &str) -> Result<()> {
        let kept = seconds();
        let note = Note { lower: lower.to_string_lossy().into_owned(), why, kept };
        let text = serde_json::to_vec(&note).map_err(|_| Errno::INVAL)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, format!("{name}{NOTE}"), flags, Mode::RUSR | Mode::WUSR)?;
        let file = File::from(file);
        file.write_all_at(&text, 0).map_err(errno)?;
        rustix::fs::fsync(&file)?;
        rustix::fs::fsync(&self.dir)
    }
}

/// Runs `make` with names that tell what, when and which inode, until one is free.
fn named<T>(kind: &str, ino: u64, make: impl Fn(&str) -> Result<T>) -> Result<(String, T)> {
    let at = seconds();
    for n in 0..TRIES {
        let name = if n == 0 { format!("{kind}.{at}.{ino}") } else { format!("{kind}.{at}.{ino}.{n}") };
        match make(&name) {
            Ok(made) => return Ok((name, made)),
            Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
    }
    Err(Errno::EXIST)
}

fn kept_at(name: &str) -> PathBuf {
    [VAULT_DIR, LOST_FOUND, name].iter().collect()
}

fn seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Content, xattrs, owner, mode and times, synced.
fn fill(copy: &File, from: &File, at: &LowerStat) -> Result<()> {
    // Shared extents cost no space and no time where the filesystem has them.
    if rustix::fs::ioctl_ficlone(copy, from).is_err() {
        copy_data(copy, from, at.size, |_| Ok(())).map_err(errno)?;
    }
    for name in xattr::list(from)? {
        let value = xattr::get(from, &name)?;
        match rustix::fs::fsetxattr(copy, name.as_str(), &value, XattrFlags::empty()) {
            // Labels and capabilities are for the superuser to give; ours are all below `user.`.
            Err(_) if !name.starts_with("user.") => {}
            other => other?,
        }
    }
    let made = stat::stat_fd(copy)?;
    let (uid, gid) = ((made.uid != at.uid).then_some(at.uid), (made.gid != at.gid).then_some(at.gid));
    // An ordinary user's vault holds his own files; a copy that stays his is still a copy.
    let _ = entry::chown(copy, uid, gid);
    access::chmod(copy, at.permissions())?;
    let spec = |(tv_sec, nanos): (i64, u32)| Timespec { tv_sec, tv_nsec: nanos.into() };
    let times = Timestamps { last_access: spec(at.atime), last_modification: spec(at.mtime) };
    rustix::fs::utimensat(CWD, crate::vault::proc_path(copy), &times, AtFlags::empty())?;
    rustix::fs::fsync(copy)
}
