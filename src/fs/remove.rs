//! Names that go. An inode that the kernel still knows is pinned by a descriptor before its last known name goes.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::dirs::OpenDir;
use super::inode::Inode;
use super::{Fs, Ino, Result};
use crate::vault::stat::S_IFDIR;
use crate::vault::{LowerStat, entry, leftovers, stat};

/// An inode whose name is about to go.
pub(super) struct Leaving {
    /// `O_PATH`.
    pub(super) fd: Arc<OwnedFd>,
    /// As it was before.
    pub(super) stat: LowerStat,
    inode: Option<Arc<Inode>>,
    /// Whether it had no pin before.
    pinned: bool,
}

impl Fs {
    /// Removes a name.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(parent, name, |dir, lower, _| Ok(entry::unlink(dir, lower)?))
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(parent, name, |dir, lower, leaving| {
            emptied(leaving.fd.as_fd(), || entry::rmdir(dir, lower))
        })
    }

    fn remove(
        &self,
        parent: Ino,
        name: &[u8],
        lower_remove: impl FnOnce(&OpenDir, &str, &Leaving) -> Result<()>,
    ) -> Result<()> {
        self.changeable()?;
        let above = self.inode(parent)?;
        let dir = self.dir(parent)?;
        let name = self.encode(&dir, name)?;
        let _long = self.long_guard(&[&name]);
        {
            let _moving = self.barrier.read();
            let leaving = self.pin(&dir, &name.lower)?;
            match lower_remove(&dir, &name.lower, &leaving) {
                Ok(()) => self.left(&leaving, &above, &name.lower),
                Err(e) => {
                    self.stays(&leaving);
                    return Err(e);
                }
            }
        }
        self.drop_sidecar(&dir, &name);
        Ok(())
    }

    /// Pins the inode of an entry. Callers hold `barrier` shared until they say `left` or `stays`.
    pub(super) fn pin(&self, dir: &OpenDir, lower: &str) -> Result<Leaving> {
        let fd = Arc::new(entry::open_path(dir, lower)?);
        let stat = stat::stat_fd(&*fd)?;
        let known = self.table.get(self.ino_of(stat.ino));
        let inode = known.filter(|i| i.first.same_inode(&stat));
        let mut pinned = false;
        if let Some(inode) = &inode {
            let mut ways = inode.ways.lock();
            pinned = ways.pin.is_none();
            ways.pin.get_or_insert_with(|| Arc::clone(&fd));
        }
        Ok(Leaving { fd, stat, inode, pinned })
    }

    /// The name did not go after all, or not through us.
    pub(super) fn stays(&self, leaving: &Leaving) {
        let Some(inode) = leaving.inode.as_ref().filter(|_| leaving.pinned) else { return };
        // A name leads to it: no descriptor needed.
        if self.stat_by_name(inode).is_ok() {
            inode.ways.lock().pin = None;
        }
    }

    /// The name went.
    pub(super) fn left(&self, leaving: &Leaving, above: &Inode, lower: &str) {
        let ino = self.ino_of(leaving.stat.ino);
        self.table.moved((ino, &leaving.stat), (above, lower), None);
        if let Some(file) = leaving.inode.as_ref().and_then(|i| i.open.lock().file().cloned()) {
            file.content.mark_attributes();
            if leaving.stat.nlink == 1 {
                file.content.moved(true);
            }
        }
        if leaving.stat.nlink > 1 && leaving.stat.kind() != S_IFDIR {
            self.stays(leaving);
        }
    }
}

/// Runs `op`, which needs the directory `target` to be empty; where that holds leftovers that do not show in the
/// mount, removes them and runs it once more.
pub(super) fn emptied(target: impl AsFd + Copy, op: impl Fn() -> rustix::io::Result<()>) -> Result<()> {
    match op() {
        Err(e @ (Errno::NOTEMPTY | Errno::EXIST)) => {
            if leftovers::clear(target).unwrap_or(false) {
                Ok(op()?)
            } else {
                Err(e.into())
            }
        }
        other => Ok(other?),
    }
}
