//! Rename. The lower name changes with the directory, since each directory has its own name key.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::attr::plain_len;
use super::dirs::OpenDir;
use super::inode::Inode;
use super::remove::{Leaving, emptied};
use super::{Fs, Ino, Result};
use crate::crypto::names::EncodedName;
use crate::vault::access::{self, Want};
use crate::vault::stat::{S_IFDIR, S_IFREG};
use crate::vault::{LowerStat, entry, stat};

/// One end of a rename.
struct End {
    above: Arc<Inode>,
    dir: Arc<OpenDir>,
    name: EncodedName,
}

impl End {
    fn stat(&self) -> rustix::io::Result<LowerStat> {
        stat::stat_at(&*self.dir, &self.name.lower)
    }
}

impl Fs {
    fn end(&self, parent: Ino, name: &[u8]) -> Result<End> {
        let above = self.inode(parent)?;
        let dir = self.dir(parent)?;
        let name = self.encode(&dir, name)?;
        Ok(End { above, dir, name })
    }

    /// Renames. `flags`: 0, RENAME_NOREPLACE, RENAME_EXCHANGE.
    pub fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: u32,
    ) -> Result<()> {
        self.changeable()?;
        let flags = RenameFlags::from_bits_retain(flags);
        if ![RenameFlags::empty(), RenameFlags::NOREPLACE, RenameFlags::EXCHANGE].contains(&flags) {
            return Err(Errno::INVAL.into());
        }
        let from = self.end(parent, name)?;
        let to = self.end(new_parent, new_name)?;
        let _long = self.long_guard(&[&from.name, &to.name]);
        let source = from.stat()?;
        if to.stat().is_ok_and(|target| target.same_inode(&source)) {
            // Two names of one inode: both stay (POSIX).
            return if flags == RenameFlags::NOREPLACE { Err(Errno::EXIST.into()) } else { Ok(()) };
        }
        if flags != RenameFlags::NOREPLACE {
            self.sync_before_replacing(&from, &to)?;
        }
        if flags == RenameFlags::EXCHANGE {
            self.sync_before_replacing(&to, &from)?;
        }
        self.put_sidecar(&to.dir, &to.name)?;
        let done = if flags == RenameFlags::EXCHANGE {
            self.exchange(&from, &to)
        } else {
            self.rename_over(&from, &to, &source, flags)
        };
        // Whichever of the two names has no entry now: the old one, or after an error the new one.
        self.drop_sidecar(&from.dir, &from.name);
        self.drop_sidecar(&to.dir, &to.name);
        done
    }

    /// Makes the content of a file durable that is about to take the name of another one with content. A crash must
    /// not leave the name with neither: programs that replace a file this way count on it, and not all of them sync.
    fn sync_before_replacing(&self, from: &End, to: &End) -> Result<()> {
        // What is not there is for the rename to tell.
        let (Ok(source), Ok(target)) = (from.stat(), to.stat()) else { return Ok(()) };
        let regular = source.kind() == S_IFREG && target.kind() == S_IFREG;
        if !regular || plain_len(target.size) == 0 {
            return Ok(());
        }
        let known = self.table.get(self.ino_of(source.ino)).filter(|i| i.first.same_inode(&source));
        let open = known.and_then(|i| i.open.lock().file().cloned());
        if let Some(file) = open {
            return Ok(file.content.sync(true)?);
        }
        let fd = entry::open_path(&*from.dir, &from.name.lower)?;
        let (file, _) = access::open_content(fd, Want::ReadOnly)?;
        Ok(rustix::fs::fdatasync(file)?)
    }

    fn exchange(&self, from: &End, to: &End) -> Result<()> {
        let _moving = self.barrier.read();
        let (one, other) = (from.stat()?, to.stat()?);
        lower_rename(from, to, RenameFlags::EXCHANGE)?;
        self.relink(&one, from, to);
        self.relink(&other, to, from);
        Ok(())
    }

    fn rename_over(&self, from: &End, to: &End, source: &LowerStat, flags: RenameFlags) -> Result<()> {
        let _moving = self.barrier.read();
        let target = match flags {
            RenameFlags::NOREPLACE => None,
            _ => match self.pin(&to.dir, &to.name.lower) {
                Ok(target) => Some(target),
                Err(e) if e.errno() == libc::ENOENT => None,
                Err(e) => return Err(e),
            },
        };
        match rename_onto(from, to, flags, target.as_ref()) {
            Ok(()) => {}
            Err(e) => {
                target.iter().for_each(|t| self.stays(t));
                return Err(e);
            }
        }
        target.iter().for_each(|t| self.left(t, &to.above, &to.name.lower));
        self.relink(source, from, to);
        Ok(())
    }

    fn relink(&self, stat: &LowerStat, from: &End, to: &End) {
        let ino = self.ino_of(stat.ino);
        self.table.moved((ino, stat), (&from.above, &from.name.lower), Some((to.above.ino, &to.name.lower)));
        let inode = self.table.get(ino).filter(|i| i.first.same_inode(stat));
        if let Some(file) = inode.and_then(|i| i.open.lock().file().cloned()) {
            file.content.moved(false);
        }
    }
}

fn lower_rename(from: &End, to: &End, flags: RenameFlags) -> rustix::io::Result<()> {
    entry::rename(&*from.dir, &from.name.lower, &*to.dir, &to.name.lower, flags)
}

fn rename_onto(from: &End, to: &End, flags: RenameFlags, target: Option<&Leaving>) -> Result<()> {
    match target.filter(|t| t.stat.kind() == S_IFDIR) {
        Some(dir) => emptied(dir.fd.as_fd(), || lower_rename(from, to, flags)),
        None => Ok(lower_rename(from, to, flags)?),
    }
}
