//! From an inode to a lower descriptor, by handle, pin or name, without ever following a lower symlink.
//!
//! Walking takes no lock, so a rename or unlink may move the ground under it. It then finds nothing or the wrong
//! inode, which is noticed, and walks again while renames and unlinks stand still (`barrier`). What is not found
//! then was changed behind our back: ESTALE.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::dirs::OpenDir;
use super::inode::Inode;
use super::{Fs, FsError, Ino, Result, TOP};
use crate::vault::{DiskFile, LowerStat, entry, stat};

/// Directories above one another that are walked at most; a path of 4095 bytes has fewer.
const MAX_DEPTH: usize = 1 << 16;

/// A descriptor of an inode: of an open file, or `O_PATH`.
#[derive(Debug)]
pub(super) enum Anchor {
    /// Shared with a cache or a pin.
    Shared(Arc<OwnedFd>),
    /// For this operation alone.
    Own(OwnedFd),
    /// The lower file of open content.
    File(Arc<DiskFile>),
}

const STALE: FsError = FsError::Errno(Errno::STALE);

/// A name that does not lead where it did.
fn lost(e: Errno) -> FsError {
    match e {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => STALE,
        other => other.into(),
    }
}

impl Fs {
    /// The inode of a number that the kernel gave.
    pub(super) fn inode(&self, ino: Ino) -> Result<Arc<Inode>> {
        if ino == TOP {
            return Ok(Arc::clone(&self.top_inode));
        }
        self.table.get(ino).ok_or(STALE)
    }

    /// Number in the mount of a lower inode number.
    pub(super) fn ino_of(&self, lower: u64) -> Ino {
        match lower {
            n if n == self.top_inode.first.ino => TOP,
            TOP => self.top_inode.first.ino,
            n => n,
        }
    }

    /// Runs `walk`; if it lost its way, once more while nothing is renamed or removed.
    fn settled<T>(&self, walk: impl Fn() -> Result<T>) -> Result<T> {
        match walk() {
            Err(FsError::Errno(Errno::STALE)) => {}
            other => return other,
        }
        let _still = self.barrier.write();
        walk()
    }

    /// A directory, opened again by its name where it is not at hand.
    pub(super) fn dir(&self, ino: Ino) -> Result<Arc<OpenDir>> {
        if let Some(dir) = self.at_hand(ino) {
            return Ok(dir);
        }
        let inode = self.inode(ino)?;
        self.with_room(|| self.settled(|| self.walk_dir(&inode)))
    }

    /// A descriptor of any inode.
    pub(super) fn anchor(&self, inode: &Arc<Inode>) -> Result<Anchor> {
        if inode.is_dir() {
            return Ok(Anchor::Shared(self.dir(inode.ino)?.shared_fd()));
        }
        self.with_room(|| self.settled(|| self.walk(inode)))
    }

    fn walk(&self, inode: &Inode) -> Result<Anchor> {
        if let Some(file) = inode.open.lock().file() {
            return Ok(Anchor::File(file.lower()));
        }
        if let Some(pin) = inode.pin() {
            return Ok(Anchor::Shared(pin));
        }
        for link in inode.links() {
            let found = self.walk_parent(link.parent).and_then(|dir| {
                let fd = entry::open_path(&*dir, &link.lower).map_err(lost)?;
                if inode.first.same_inode(&stat::stat_fd(&fd)?) { Ok(fd) } else { Err(STALE) }
            });
            match found {
                Ok(fd) => return Ok(Anchor::Own(fd)),
                Err(FsError::Errno(Errno::STALE)) => {}
                Err(e) => return Err(e),
            }
        }
        // An unlink may have pinned it since we looked.
        inode.pin().map(Anchor::Shared).ok_or(STALE)
    }

    /// Attributes of an inode: one `statx` where all goes well.
    pub(super) fn stat(&self, inode: &Arc<Inode>) -> Result<LowerStat> {
        if let Some(dir) = self.at_hand(inode.ino) {
            return Ok(stat::stat_fd(&*dir)?);
        }
        let lower = inode.open.lock().file().map(|f| f.lower());
        if let Some(lower) = lower {
            return Ok(stat::stat_fd(&lower.0)?);
        }
        if let Some(pin) = inode.pin() {
            return Ok(stat::stat_fd(&*pin)?);
        }
        match self.stat_by_name(inode) {
            Err(FsError::Errno(Errno::STALE)) => Ok(stat::stat_fd(self.anchor(inode)?)?),
            other => other,
        }
    }

    /// Attributes of an inode under one of the names it is known by.
    pub(super) fn stat_by_name(&self, inode: &Inode) -> Result<LowerStat> {
        for link in inode.links() {
            let Ok(dir) = self.walk_parent(link.parent) else { continue };
            match stat::stat_at(&*dir, &link.lower) {
                Ok(found) if inode.first.same_inode(&found) => return Ok(found),
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(STALE)
    }

    fn at_hand(&self, ino: Ino) -> Option<Arc<OpenDir>> {
        if ino == TOP { Some(Arc::clone(&self.top)) } else { self.dirs.get(ino) }
    }

    fn walk_parent(&self, ino: Ino) -> Result<Arc<OpenDir>> {
        match self.at_hand(ino) {
            Some(dir) => Ok(dir),
            None => self.walk_dir(&self.inode(ino)?),
        }
    }

    /// Climbs to the next directory that is at hand, then opens its way down, checking each step.
    fn walk_dir(&self, inode: &Arc<Inode>) -> Result<Arc<OpenDir>> {
        if !inode.is_dir() {
            return Err(Errno::NOTDIR.into());
        }
        let mut down = Vec::new();
        let mut at = Arc::clone(inode);
        let mut dir = loop {
            if let Some(dir) = self.at_hand(at.ino) {
                break dir;
            }
            if let Some(pin) = at.pin() {
                break Arc::new(OpenDir::new(pin));
            }
            let link = at.links().into_iter().next().ok_or(STALE)?;
            let above = self.inode(link.parent)?;
            down.push((at, link.lower));
            if down.len() > MAX_DEPTH {
                return Err(STALE);
            }
            at = above;
        };
        for (inode, lower) in down.into_iter().rev() {
            let fd = entry::open_dir_path(&*dir, &lower).map_err(lost)?;
            if !inode.first.same_inode(&stat::stat_fd(&fd)?) {
                return Err(STALE);
            }
            dir = Arc::new(OpenDir::new(Arc::new(fd)));
            self.dirs.put(inode.ino, &dir);
        }
        Ok(dir)
    }
}
