//! Names to inodes: lookup, forget, hard links, symlink targets.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::dirs::OpenDir;
use super::inode::{Entered, Inode};
use super::{Found, Fs, FsError, Ino, Result, TOP};
use crate::vault::stat::S_IFLNK;
use crate::vault::{LowerStat, entry, stat};

/// How often a lookup looks again while entries are being renamed out of the directory. What it may then remember
/// is one name too many, which the next walk notices.
const PATIENCE: u32 = 16;

impl Fs {
    /// Looks a name up; one reference.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Found> {
        let above = self.inode(parent)?;
        let dir = self.dir(parent)?;
        let name = self.encode(&dir, name)?;
        self.enter(&above, &dir, &name.lower)
    }

    /// Gives back `count` references.
    pub fn forget(&self, ino: Ino, count: u64) {
        if ino != TOP && self.table.forget(ino, count) {
            self.dirs.remove(ino);
        }
    }

    /// Looks a lower name up; one reference.
    pub(super) fn enter(&self, above: &Inode, dir: &OpenDir, lower: &str) -> Result<Found> {
        let (inode, stat) = self.enter_inode(above, dir, lower)?;
        Ok(self.found(&inode, &stat))
    }

    fn enter_inode(&self, above: &Inode, dir: &OpenDir, lower: &str) -> Result<(Arc<Inode>, LowerStat)> {
        let mut replace = false;
        for attempt in 0.. {
            let moves = (attempt < PATIENCE).then(|| above.moves.load(Ordering::Acquire));
            let stat = stat::stat_at(dir, lower)?;
            if stat.dev != self.top_inode.first.dev {
                // Numbers of another filesystem mounted below the vault would collide with ours.
                return Err(Errno::XDEV.into());
            }
            let ino = self.ino_of(stat.ino);
            match self.table.enter((ino, &stat), (above, lower), moves, replace) {
                Entered::Yes(inode) => {
                    if replace {
                        self.dirs.remove(ino);
                    }
                    return Ok((inode, stat));
                }
                Entered::Moved => {}
                Entered::Other => replace = true,
            }
        }
        Err(Errno::STALE.into())
    }

    /// The answer to a lookup.
    pub(super) fn found(&self, inode: &Inode, stat: &LowerStat) -> Found {
        Found { attr: self.attr(inode, stat), generation: inode.generation }
    }

    /// Makes a hard link.
    pub fn link(&self, ino: Ino, new_parent: Ino, new_name: &[u8]) -> Result<Found> {
        self.changeable()?;
        let inode = self.inode(ino)?;
        if inode.is_dir() {
            return Err(Errno::PERM.into());
        }
        let above = self.inode(new_parent)?;
        let dir = self.dir(new_parent)?;
        let name = self.encode(&dir, new_name)?;
        let anchor = self.anchor(&inode)?;
        let nameless = inode.links().is_empty() && inode.pin().is_some();
        let _long = self.long_guard(&[&name]);
        self.put_sidecar(&dir, &name)?;
        if let Err(e) = entry::link(&anchor, &*dir, &name.lower) {
            self.drop_sidecar(&dir, &name);
            return Err(e.into());
        }
        inode.attributes_changed();
        let found = self.enter(&above, &dir, &name.lower).inspect_err(|_| {
            let _ = entry::unlink(&*dir, &name.lower);
            self.drop_sidecar(&dir, &name);
        })?;
        if nameless {
            self.named(&inode);
        }
        Ok(found)
    }

    /// A file that was made without a name has one: no descriptor needed, unless the name is going already.
    fn named(&self, inode: &Inode) {
        let _still = self.barrier.write();
        if self.stat_by_name(inode).is_ok() {
            inode.ways.lock().pin = None;
        }
    }

    /// Target of a symlink.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let inode = self.inode(ino)?;
        if inode.first.kind() != S_IFLNK {
            return Err(Errno::INVAL.into());
        }
        let target = entry::readlink(self.anchor(&inode)?)?;
        self.link_key
            .decode(&target)
            .map_err(|_| FsError::Undecodable("the symlink's target does not decode"))
    }
}
