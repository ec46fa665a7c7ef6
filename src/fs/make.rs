//! New inodes. A regular file's header, a directory's id and everything's owner are in place before the name appears.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::dirs::OpenDir;
use super::inode::{Entered, Inode};
use super::opened::{Held, OpenFile, lower_file};
use super::{Caller, Found, Fs, Ino, Result, temporary_name};
use crate::content;
use crate::crypto::names::EncodedName;
use crate::crypto::random;
use crate::format::header::{DIR_XATTR, HEADER_XATTR};
use crate::format::ids::DirId;
use crate::keys::NewFile;
use crate::vault::stat::{S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use crate::vault::{DiskFile, FreshFile, LowerStat, entry, stat};

/// Where a new inode goes.
struct Place {
    above: Arc<Inode>,
    dir: Arc<OpenDir>,
    name: EncodedName,
}

impl Fs {
    fn place(&self, parent: Ino, name: &[u8]) -> Result<Place> {
        self.changeable()?;
        let above = self.inode(parent)?;
        let dir = self.dir(parent)?;
        let name = self.encode(&dir, name)?;
        Ok(Place { above, dir, name })
    }

    /// Creates and opens a regular file; gives its handle.
    ///
    /// A name that is taken gives EEXIST with O_EXCL; without it ESTALE, at which the kernel looks the name up again
    /// and opens what it finds with all checks of permission.
    pub fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        flags: i32,
    ) -> Result<(Found, u64)> {
        let place = self.place(parent, name)?;
        let flags = OFlags::from_bits_retain(flags.cast_unsigned());
        let (found, held) = match self.with_room(|| self.make_file(caller, &place, mode, writes(flags))) {
            Err(e) if e.errno() == libc::EEXIST && !flags.contains(OFlags::EXCL) => {
                return Err(Errno::STALE.into());
            }
            other => other?,
        };
        Ok((found, self.files.put(held)))
    }

    /// Makes and opens a regular file without a name (O_TMPFILE); gives its handle. It comes to have one by `link`.
    ///
    /// EOPNOTSUPP where the lower filesystem has no such files.
    pub fn tmpfile(&self, caller: &Caller, parent: Ino, mode: u32, flags: i32) -> Result<(Found, u64)> {
        self.changeable()?;
        let dir = self.dir(parent)?;
        let flags = OFlags::from_bits_retain(flags.cast_unsigned());
        let (found, held) = self.with_room(|| self.make_nameless(caller, &dir, mode, writes(flags)))?;
        Ok((found, self.files.put(held)))
    }

    fn make_nameless(&self, caller: &Caller, dir: &OpenDir, mode: u32, write: bool) -> Result<(Found, Held)> {
        let _birth = self.births.read();
        let new = self.keyring.new_file()?;
        let fresh = FreshFile::make(dir.as_fd(), (mode & 0o7777, caller.umask), temporary_name)?;
        if !fresh.is_nameless() {
            return Err(Errno::OPNOTSUPP.into());
        }
        fresh.set_xattr(HEADER_XATTR, &new.header)?;
        let lower = Arc::clone(fresh.file());
        let made = stat::stat_fd(&lower.0)?;
        let pin = Arc::new(rustix::io::fcntl_dupfd_cloexec(&lower.0, 3)?);
        let ino = self.ino_of(made.ino);
        let inode = self.table.enter_nameless((ino, &made), pin);
        self.dirs.remove(ino);
        inode.bare.store(!self.options.shared, Ordering::Release);
        let finish = || {
            let content = self.make_content(&inode, &lower, new)?;
            let stat = entry::give_to(&lower.0, &made, dir.as_fd(), (caller.uid, caller.gid))?;
            let file = Arc::new(OpenFile::new(content, Arc::clone(&lower), true));
            inode.open.lock().start(Arc::clone(&file));
            let held = Held::new(Arc::clone(&inode), file, write, &self.table);
            Ok((self.found(&inode, &stat), held))
        };
        finish().inspect_err(|_| self.forget(ino, 1))
    }

    /// Makes a file, FIFO, socket or device node.
    pub fn mknod(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, rdev: u32) -> Result<Found> {
        let place = self.place(parent, name)?;
        match mode & S_IFMT {
            S_IFREG | 0 => Ok(self.make_file(caller, &place, mode, false)?.0),
            S_IFDIR => Err(Errno::PERM.into()),
            S_IFLNK => Err(Errno::INVAL.into()),
            _ => self.make_entry(&place, |dir, names| {
                entry::mknod(dir, names, (mode, caller.umask), rdev, (caller.uid, caller.gid))
            }),
        }
    }

    /// Makes a symlink.
    pub fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Found> {
        let place = self.place(parent, name)?;
        let lower = self.link_key.encode(target).ok_or(Errno::NAMETOOLONG)?;
        self.make_entry(&place, |dir, names| entry::symlink(dir, names, &lower, (caller.uid, caller.gid)))
    }

    /// Makes a directory.
    pub fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Found> {
        let place = self.place(parent, name)?;
        let id = DirId(random::array());
        let mode = (mode & 0o7777, caller.umask);
        self.make_entry(&place, |dir, names| {
            entry::mkdir(dir, names, mode, (caller.uid, caller.gid), (DIR_XATTR, &id.0))
        })
    }

    /// `make` is given the directory, and a temporary and the final name.
    fn make_entry(
        &self,
        place: &Place,
        make: impl FnOnce(BorrowedFd<'_>, (&str, &str)) -> rustix::io::Result<LowerStat>,
    ) -> Result<Found> {
        let _long = self.long_guard(&[&place.name]);
        self.put_sidecar(&place.dir, &place.name)?;
        let made = make(place.dir.as_fd(), (&temporary_name(), &place.name.lower)).inspect_err(|_| {
            self.drop_sidecar(&place.dir, &place.name);
        })?;
        let inode = self.enter_fresh(place, &made);
        Ok(self.found(&inode, &made))
    }

    fn make_file(&self, caller: &Caller, place: &Place, mode: u32, write: bool) -> Result<(Found, Held)> {
        let _birth = self.births.read();
        let new = self.keyring.new_file()?;
        let dir = place.dir.as_fd();
        let fresh = FreshFile::make(dir, (mode & 0o7777, caller.umask), temporary_name)?;
        fresh.set_xattr(HEADER_XATTR, &new.header)?;
        let lower = Arc::clone(fresh.file());
        let made = stat::stat_fd(&lower.0)?;
        // Known and open before the name appears: who finds the name shares this content.
        let inode = self.enter_fresh(place, &made);
        let finish = || {
            let content = self.make_content(&inode, &lower, new)?;
            let given = entry::give_to(&lower.0, &made, dir, (caller.uid, caller.gid))?;
            let file = Arc::new(OpenFile::new(content, Arc::clone(&lower), true));
            inode.open.lock().start(Arc::clone(&file));
            let held = Held::new(Arc::clone(&inode), file, write, &self.table);
            self.publish(place, fresh)?;
            // The name is there now, whatever happens.
            let stat = stat::stat_fd(&lower.0).unwrap_or(given);
            Ok((self.found(&inode, &stat), held))
        };
        finish().inspect_err(|_| {
            inode.remove_link(place.above.ino, &place.name.lower);
            self.forget(inode.ino, 1);
        })
    }

    fn make_content(
        &self,
        inode: &Arc<Inode>,
        lower: &Arc<DiskFile>,
        new: NewFile,
    ) -> Result<Arc<content::File>> {
        let lower = lower_file(lower, self.options.direct_lower);
        Ok(match &self.journal {
            Some(journal) => {
                let link = self.journal_link(journal, inode, new.file_id);
                content::File::create_linked(lower, new.keys, link)?
            }
            None => Arc::new(content::File::create(lower, new.keys)?),
        })
    }

    fn enter_fresh(&self, place: &Place, made: &LowerStat) -> Arc<Inode> {
        let ino = self.ino_of(made.ino);
        let at = (&*place.above, place.name.lower.as_str());
        match self.table.enter((ino, made), at, None, true) {
            Entered::Yes(inode) => {
                self.dirs.remove(ino);
                inode.bare.store(!self.options.shared, Ordering::Release);
                inode
            }
            Entered::Moved | Entered::Other => unreachable!("entered without a count of moves, to replace"),
        }
    }

    fn publish(&self, place: &Place, fresh: FreshFile<'_>) -> Result<()> {
        let _long = self.long_guard(&[&place.name]);
        self.put_sidecar(&place.dir, &place.name)?;
        fresh.publish(&place.name.lower).map_err(|e| {
            self.drop_sidecar(&place.dir, &place.name);
            e.into()
        })
    }
}

/// Whether open flags ask for writing.
pub(super) fn writes(flags: OFlags) -> bool {
    flags & OFlags::RWMODE != OFlags::RDONLY
}
