//! A lower file that has no name yet: its header and first record are in place before the name appears.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};

use super::file::{DiskFile, LowerFile};
use super::{access, entry, umask, xattr};

/// A lower file on its way to a name. Dropped before [`FreshFile::publish`], it leaves nothing behind.
#[derive(Debug)]
pub struct FreshFile<'d> {
    file: Arc<DiskFile>,
    dir: BorrowedFd<'d>,
    /// Its temporary name, on filesystems without `O_TMPFILE`.
    temporary: Option<String>,
}

impl<'d> FreshFile<'d> {
    /// Makes an empty file in `dir`, open for reading and writing whatever `mode` (permissions, umask) says.
    /// `temporary` is the name to use where the lower filesystem has no nameless files.
    pub fn make(dir: BorrowedFd<'d>, mode: (u32, u32), temporary: impl FnOnce() -> String) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let permissions = Mode::from_raw_mode(mode.0);
        let nameless = umask::with_umask(mode.1, || rustix::fs::openat(dir, c".", flags, permissions));
        match nameless {
            Ok(fd) => Ok(Self { file: Arc::new(DiskFile(File::from(fd))), dir, temporary: None }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Self::make_named(dir, mode, temporary()),
            // ext4's answer for a directory that was removed.
            Err(Errno::PERM) if super::stat::stat_fd(dir)?.nlink == 0 => Err(Errno::NOENT),
            Err(e) => Err(e),
        }
    }

    /// As `make`, where the lower filesystem has no nameless files.
    fn make_named(dir: BorrowedFd<'d>, (permissions, mask): (u32, u32), name: String) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let permissions = Mode::from_raw_mode(permissions);
        let fd = umask::with_umask(mask, || rustix::fs::openat(dir, name.as_str(), flags, permissions))?;
        Ok(Self { file: Arc::new(DiskFile(File::from(fd))), dir, temporary: Some(name) })
    }

    /// The open file.
    pub fn file(&self) -> &Arc<DiskFile> {
        &self.file
    }

    /// Stores an xattr that must be there before the name is.
    pub fn set_xattr(&self, name: &str, value: &[u8]) -> Result<()> {
        let set = || rustix::fs::fsetxattr(&self.file.0, name, value, rustix::fs::XattrFlags::empty());
        access::lent(&self.file.0, 0o600, set)
    }

    /// Whether it can stay without a name; false on filesystems without `O_TMPFILE`, where it has a temporary one.
    pub fn is_nameless(&self) -> bool {
        self.temporary.is_none()
    }

    /// Gives the file its name; fails where that is taken.
    pub fn publish(mut self, name: &str) -> Result<()> {
        match &self.temporary {
            None => entry::link(&self.file.0, self.dir, name),
            Some(temporary) => {
                entry::settle(self.dir, temporary, name)?;
                self.temporary = None;
                Ok(())
            }
        }
    }

    /// Gives the file its name in the place of what has it now. `temporary` is used on the way.
    pub fn replace(mut self, name: &str, temporary: String) -> Result<()> {
        if self.temporary.is_none() {
            entry::link(&self.file.0, self.dir, &temporary)?;
            self.temporary = Some(temporary);
        }
        let from = self.temporary.clone().unwrap_or_default();
        entry::rename(self.dir, &from, self.dir, name, rustix::fs::RenameFlags::empty())?;
        self.temporary = None;
        Ok(())
    }
}

impl Drop for FreshFile<'_> {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = entry::unlink(self.dir, temporary);
        }
    }
}

/// Removes set-id bits, as the kernel does on a write by someone without CAP_FSETID.
pub fn drop_set_id(fd: impl AsFd) -> Result<()> {
    let mode = super::stat::stat_fd(&fd)?.permissions();
    let mut kept = mode & !libc::S_ISUID;
    if mode & libc::S_IXGRP != 0 {
        kept &= !libc::S_ISGID;
    }
    if kept != mode {
        access::chmod(fd, kept)?;
    }
    Ok(())
}

/// One lower file with several owners: `content`, which reads and writes it, and `fs`, which asks for its attributes.
impl<T: LowerFile + ?Sized> LowerFile for Arc<T> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.as_ref().read_at(buf, offset)
    }

    fn write_at(&self, bufs: &[std::io::IoSlice<'_>], offset: u64) -> std::io::Result<()> {
        self.as_ref().write_at(bufs, offset)
    }

    fn len(&self) -> std::io::Result<u64> {
        self.as_ref().len()
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.as_ref().set_len(len)
    }

    fn reserve(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.as_ref().reserve(offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.as_ref().punch(offset, len)
    }

    fn sync(&self, data_only: bool) -> std::io::Result<()> {
        self.as_ref().sync(data_only)
    }

    fn modified(&self) -> std::io::Result<Option<(i64, u32)>> {
        self.as_ref().modified()
    }

    fn set_modified(&self, time: (i64, u32)) -> std::io::Result<()> {
        self.as_ref().set_modified(time)
    }
}

/// Whether an inode has any xattr that `wanted` names, without needing permission to read it.
pub fn has_xattr(fd: impl AsFd, wanted: impl Fn(&str) -> bool) -> Result<bool> {
    Ok(xattr::list(fd)?.iter().any(|name| wanted(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &std::path::Path) -> Vec<String> {
        let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    /// Nameless or named on the way, a file that is not published leaves nothing, one whose name is taken does not
    /// replace what has it, and one that replaces does.
    #[test]
    fn a_fresh_file_appears_whole_or_not_at_all() {
        for named in [false, true] {
            let base = tempfile::tempdir().unwrap();
            let dir = File::open(base.path()).unwrap();
            let make = |content: &[u8]| {
                let temporary = || ".efs.tmp.1".to_owned();
                let fresh = if named {
                    FreshFile::make_named(dir.as_fd(), (0o600, 0), temporary())
                } else {
                    FreshFile::make(dir.as_fd(), (0o600, 0), temporary)
                };
                let fresh = fresh.unwrap();
                fresh.set_xattr("user.test", b"x").unwrap();
                fresh.file().write_at(&[std::io::IoSlice::new(content)], 0).unwrap();
                fresh
            };
            drop(make(b"dropped"));
            assert!(names(base.path()).is_empty());
            make(b"first").publish("name").unwrap();
            assert_eq!(make(b"second").publish("name"), Err(Errno::EXIST));
            assert_eq!(names(base.path()), ["name"]);
            assert_eq!(std::fs::read(base.path().join("name")).unwrap(), b"first");
            make(b"third").replace("name", ".efs.tmp.2".to_owned()).unwrap();
            assert_eq!(names(base.path()), ["name"]);
            assert_eq!(std::fs::read(base.path().join("name")).unwrap(), b"third");
        }
    }

    /// Set-id bits go, but a set-gid bit without group execution marks something else and stays.
    #[test]
    fn set_id_bits_are_dropped() {
        let file = tempfile::tempfile().unwrap();
        for (before, after) in [(0o6777, 0o777), (0o4755, 0o755), (0o2745, 0o2745), (0o640, 0o640)] {
            access::chmod(&file, before).unwrap();
            drop_set_id(&file).unwrap();
            assert_eq!(super::super::stat::stat_fd(&file).unwrap().permissions(), after);
        }
    }
}
