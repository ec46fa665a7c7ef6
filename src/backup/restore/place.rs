//! Putting one entry in its place in a vault: whole before it has its name, compared when it has it.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid, XattrFlags};
use rustix::io::Errno;

use super::super::headers::reach;
use super::super::meter::Meter;
use super::super::repo::Item;
use super::super::walk::is_kept;
use super::Restored;
use crate::format::header::DIR_XATTR;
use crate::format::names::{LowerName, TMP_PREFIX, parse};
use crate::vault::entry::{self, NewTime};
use crate::vault::file::LowerFile;
use crate::vault::stat::{stat_at, stat_fd};
use crate::vault::{DiskFile, FreshFile, Listing, access, proc_path};

/// What went well, or why it did not.
pub(in crate::backup) type Step<T> = std::result::Result<T, String>;

/// Of a directory whose name something else has.
const NO_DIRECTORY: &str = "something that is no directory is in its place; move it away";

fn said(what: &'static str) -> impl Fn(Errno) -> String {
    move |e| format!("{what}: {e}")
}

/// Where the bytes of files come from.
pub(in crate::backup) trait Contents: Sync {
    /// Whether a file of the right length holds an item's bytes already.
    fn is_there(&self, file: &DiskFile, item: &Item) -> Step<bool>;
    /// Gives an item's bytes, one piece behind the other.
    fn each(&self, item: &Item, piece: &mut dyn FnMut(&[u8]) -> Step<()>) -> Step<()>;
}

/// Puts entries below a vault's top.
pub(in crate::backup) struct Placer<'r> {
    pub(in crate::backup) contents: &'r dyn Contents,
    pub(in crate::backup) top: OwnedFd,
    pub(in crate::backup) meter: &'r Meter,
    count: AtomicU64,
    pub(in crate::backup) done: Mutex<Restored>,
}

impl<'r> Placer<'r> {
    pub(in crate::backup) fn new(contents: &'r dyn Contents, top: OwnedFd, meter: &'r Meter) -> Self {
        Self { contents, top, meter, count: AtomicU64::new(0), done: Mutex::default() }
    }

    /// Counts an entry that is right, or notes why it is not.
    pub(in crate::backup) fn note(&self, item: &Item, done: Step<bool>) {
        let mut report = self.done.lock();
        match done {
            Err(why) => report.problems.push((item.path.clone(), why)),
            Ok(kept) if item.kind == libc::S_IFREG => {
                report.files += 1;
                report.kept += u64::from(kept);
            }
            Ok(_) => report.others += 1,
        }
    }

    fn temporary(&self) -> String {
        format!("{TMP_PREFIX}restore.{}.{}", std::process::id(), self.count.fetch_add(1, Relaxed))
    }

    /// The directory that an entry belongs in, and its name there.
    fn place<'i>(&self, path: &'i Path) -> Step<(OwnedFd, &'i str)> {
        let dir = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().and_then(|n| n.to_str()).ok_or("its name is no text")?;
        Ok((reach(&self.top, dir).map_err(said("its directory"))?, name))
    }

    /// Content from the repository or from what is there; then everything else. Gives whether it was there.
    pub(in crate::backup) fn file(&self, item: &Item) -> Step<bool> {
        let (dir, name) = self.place(&item.path)?;
        if let Some(there) = self.is_there(&dir, name, item)? {
            self.attributes(&there, item)?;
            self.compare(&there, item)?;
            return Ok(true);
        }
        let fresh =
            FreshFile::make(dir.as_fd(), (0o600, 0), || self.temporary()).map_err(said("not made"))?;
        self.content(fresh.file(), item)?;
        self.attributes(&fresh.file().0, item)?;
        let file = Arc::clone(fresh.file());
        match fresh.replace(name, self.temporary()) {
            Err(Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY) => {
                return Err("a directory is in its place; move it away".into());
            }
            other => other.map_err(said("not named"))?,
        }
        self.compare(&file.0, item)?;
        Ok(false)
    }

    /// The file that has an item's name, if its bytes are the item's.
    fn is_there(&self, dir: &OwnedFd, name: &str, item: &Item) -> Step<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(fd) = rustix::fs::openat(dir, name, flags, Mode::empty()) else { return Ok(None) };
        let stat = stat_fd(&fd).map_err(said("stat"))?;
        if stat.kind() != libc::S_IFREG || stat.size != item.size {
            return Ok(None);
        }
        let file = DiskFile(fd.try_clone().map_err(|e| e.to_string())?.into());
        Ok(self.contents.is_there(&file, item)?.then_some(fd))
    }

    fn content(&self, file: &DiskFile, item: &Item) -> Step<()> {
        let text = |e: std::io::Error| format!("not written: {e}");
        let mut at = 0;
        self.contents.each(item, &mut |bytes| {
            // What was a hole becomes one again.
            if bytes.iter().any(|b| *b != 0) {
                file.write_at(&[IoSlice::new(bytes)], at).map_err(text)?;
            }
            at += bytes.len() as u64;
            self.meter.bytes.add(bytes.len() as u64);
            Ok(())
        })?;
        if at != item.size {
            return Err(format!("{at} of its {} bytes are there to be had", item.size));
        }
        file.set_len(at).map_err(text)?;
        self.meter.files.add(1);
        self.done.lock().bytes += at;
        Ok(())
    }

    /// Owner, xattrs, permissions, times, in an order in which none undoes another.
    fn attributes(&self, fd: impl AsFd, item: &Item) -> Step<()> {
        self.owner(&fd, item)?;
        if item.kind != libc::S_IFLNK {
            self.xattrs(&fd, item)?;
            access::chmod(&fd, item.mode).map_err(said("permissions"))?;
        }
        self.times(fd, item)
    }

    fn times(&self, fd: impl AsFd, item: &Item) -> Step<()> {
        let Some((seconds, nanos)) = item.modified else { return Ok(()) };
        let time = NewTime::At(seconds, nanos);
        entry::set_times(fd, time, time).map_err(said("times"))
    }

    fn owner(&self, fd: impl AsFd, item: &Item) -> Step<()> {
        let now = stat_fd(&fd).map_err(said("stat"))?;
        if (now.uid, now.gid) == item.owner {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(item.owner.0), Gid::from_raw(item.owner.1));
        match rustix::fs::chownat(&fd, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH) {
            Err(Errno::PERM) => {
                self.done.lock().owners += 1;
                Ok(())
            }
            other => other.map_err(said("owner")),
        }
    }

    fn xattrs(&self, fd: impl AsFd, item: &Item) -> Step<()> {
        let path = proc_path(&fd);
        for name in crate::vault::xattr::list(&fd).map_err(said("xattrs"))? {
            if is_kept(&name) && !item.xattrs.iter().any(|(n, _)| *n == name) {
                rustix::fs::removexattr(&path, &name).map_err(said("xattrs"))?;
            }
        }
        for (name, value) in &item.xattrs {
            let set = rustix::fs::setxattr(&path, name, value, XattrFlags::empty());
            set.map_err(|e| format!("xattr {name}: {e}"))?;
        }
        Ok(())
    }

    /// Whether what stands on the disk is the item: header, other xattrs, length, permissions, time.
    fn compare(&self, fd: impl AsFd, item: &Item) -> Step<()> {
        let stat = stat_fd(&fd).map_err(said("stat"))?;
        for (name, value) in &item.xattrs {
            match crate::vault::xattr::get(&fd, name) {
                Ok(there) if there == *value => {}
                Ok(_) => return Err(format!("xattr {name} is not what was written")),
                Err(e) => return Err(format!("xattr {name}, which was written, is not read: {e}")),
            }
        }
        if item.kind == libc::S_IFREG && stat.size != item.size {
            return Err(format!("it has {} bytes, not {}", stat.size, item.size));
        }
        if item.kind != libc::S_IFLNK && stat.permissions() != item.mode {
            return Err(format!("its permissions are {:o}, not {:o}", stat.permissions(), item.mode));
        }
        if item.modified.is_some_and(|time| time != stat.mtime) {
            return Err("its time is not what was set".into());
        }
        Ok(())
    }

    /// Makes a directory, or takes one that is there. False: one with another id is there, and something is in it.
    pub(in crate::backup) fn dir(&self, item: &Item) -> Step<bool> {
        if item.path.as_os_str().is_empty() {
            return self.give_id(&self.top, item);
        }
        let (dir, name) = self.place(&item.path)?;
        match rustix::fs::mkdirat(&dir, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(format!("not made: {e}")),
        }
        let fd = entry::open_dir_path(&dir, name).map_err(|_| NO_DIRECTORY.to_owned())?;
        self.give_id(&fd, item)
    }

    /// Names in a directory are sealed under its id: one that has names keeps it.
    fn give_id(&self, fd: &OwnedFd, item: &Item) -> Step<bool> {
        let comes = item.xattrs.iter().find(|(name, _)| name == DIR_XATTR).map(|(_, id)| id);
        let differs = |there: Vec<u8>| comes.is_some_and(|id| *id != there);
        if crate::vault::xattr::get(fd, DIR_XATTR).is_ok_and(differs)
            && has_names(fd).map_err(said("not listed"))?
        {
            return Ok(false);
        }
        self.xattrs(fd, item).map(|()| true)
    }

    pub(in crate::backup) fn finish_dir(&self, item: &Item) -> Step<bool> {
        let fd = reach(&self.top, &item.path).map_err(said("not opened"))?;
        // What came into its place meanwhile would be given a directory's xattrs, and lose its own.
        if stat_fd(&fd).map_err(said("stat"))?.kind() != libc::S_IFDIR {
            return Err(NO_DIRECTORY.into());
        }
        self.attributes(&fd, item)?;
        self.compare(&fd, item)?;
        Ok(false)
    }

    /// Gives the file at `first` one more name.
    pub(in crate::backup) fn link(&self, first: &Path, path: &Path) -> Step<bool> {
        let (dir, name) = self.place(path)?;
        let source = reach(&self.top, first).map_err(said("its other name"))?;
        let is_one =
            stat_fd(&source).ok().zip(stat_at(&dir, name).ok()).is_some_and(|(a, b)| a.same_inode(&b));
        if is_one {
            return Ok(true);
        }
        let temporary = self.temporary();
        entry::link(&source, &dir, &temporary).map_err(said("not linked"))?;
        let renamed = entry::rename(&dir, &temporary, &dir, name, RenameFlags::empty());
        // Where both are one inode already, the rename does nothing.
        let _ = entry::unlink(&dir, &temporary);
        renamed.map_err(said("not named"))?;
        Ok(false)
    }

    /// Symlinks and nodes without content.
    pub(in crate::backup) fn other(&self, item: &Item) -> Step<bool> {
        let (dir, name) = self.place(&item.path)?;
        let temporary = self.temporary();
        match (&item.target, item.kind) {
            (Some(target), _) => {
                rustix::fs::symlinkat(&target[..], &dir, &temporary).map_err(said("not made"))?
            }
            (None, kind) => {
                let kind = FileType::from_raw_mode(kind);
                rustix::fs::mknodat(&dir, &temporary, kind, Mode::RUSR | Mode::WUSR, item.device)
                    .map_err(said("not made"))?;
            }
        }
        let fd = entry::open_path(&dir, &temporary).map_err(said("not opened"))?;
        let finished = self.attributes(&fd, item).and_then(|()| {
            entry::rename(&dir, &temporary, &dir, name, RenameFlags::empty()).map_err(said("not named"))
        });
        if finished.is_err() {
            let _ = entry::unlink(&dir, &temporary);
        }
        finished?;
        self.compare(&fd, item)?;
        Ok(false)
    }
}

/// Whether anything of a vault is in a directory.
fn has_names(dir: &OwnedFd) -> rustix::io::Result<bool> {
    let mut listing = Listing::new(entry::open_dir_read(dir, false)?);
    while let Some(found) = listing.peek()? {
        if matches!(parse(&found.name), LowerName::Short(_) | LowerName::Long(_)) {
            return Ok(true);
        }
        listing.advance();
    }
    Ok(false)
}

/// Whether a path stays in the vault.
pub(in crate::backup) fn is_plain(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(name) if !name.as_bytes().is_empty()))
}
