//! The way back: from a snapshot to a vault. What was written is compared with what should have been.
//!
//! Refuses a target that cannot hold the headers, or not all of the data, before it writes. Content that is there
//! already is taken if its bytes are right, so that an interrupted restore goes on, and a damaged vault is mended by
//! restoring over it. A file appears under its name only when it is whole. Nothing is removed that the snapshot has
//! not got.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam::channel::{Receiver, bounded};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid, XattrFlags};
use rustix::io::Errno;
use serde::Serialize;

use super::error::{BackupError, Result};
use super::headers::reach;
use super::meter::Meter;
use super::repo::{Item, Reader, Snapshot, sha256};
use super::walk::is_kept;
use crate::format::header::{HEADER_XATTR, MAX_HEADER};
use crate::format::journal::JOURNAL_DIR;
use crate::format::names::{LOST_FOUND, TMP_PREFIX, VAULT_DIR};
use crate::vault::entry::{self, NewTime};
use crate::vault::file::LowerFile;
use crate::vault::stat::{stat_at, stat_fd};
use crate::vault::{DiskFile, FreshFile, VaultLock, access, proc_path};

/// Files that wait for a worker.
const QUEUE: usize = 64;
/// Space that is left free beside the files' bytes: their inodes, directories, xattrs.
const SLACK: u64 = 8 << 20;

/// What to restore, and how.
#[derive(Clone, Debug)]
pub struct Restore {
    /// Lower path; empty for all. The directories above it and the vault's own come along.
    pub below: PathBuf,
    /// Files that are written at once.
    pub jobs: usize,
}

/// What a restore did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Restored {
    /// Regular files that are right now.
    pub files: u64,
    /// Of them, those whose content was there already.
    pub kept: u64,
    /// Directories, symlinks and other nodes that are right now.
    pub others: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Entries that belong to this user now, who may not give them to their owner.
    pub owners: u64,
    /// Lower path and reason of each entry that is not what it should be.
    pub problems: Vec<(PathBuf, String)>,
}

/// What there is to restore.
#[derive(Debug, Default)]
struct Survey {
    bytes: u64,
    header: usize,
}

struct Job<'r> {
    reader: &'r Reader,
    top: OwnedFd,
    meter: &'r Meter,
    count: AtomicU64,
    done: Mutex<Restored>,
}

type Step<T> = std::result::Result<T, String>;

fn said(what: &'static str) -> impl Fn(Errno) -> String {
    move |e| format!("{what}: {e}")
}

/// Restores a snapshot, or a part of it, to `target`: a new or empty directory, or a vault.
pub fn restore(
    reader: &Reader,
    snapshot: &Snapshot,
    target: &Path,
    options: &Restore,
    meter: &Arc<Meter>,
) -> Result<Restored> {
    let survey = survey(reader, snapshot, target, &options.below)?;
    probe(target, &survey)?;
    std::fs::create_dir_all(target).map_err(BackupError::io(target))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(target, flags, Mode::empty()).map_err(BackupError::errno(target))?;
    let _lock = alone(&top, target)?;
    if options.below.as_os_str().is_empty() {
        put_journal_aside(&top).map_err(BackupError::errno(target))?;
        reader.read_whole_packs();
    }
    let job = Job { reader, top, meter, count: AtomicU64::new(0), done: Mutex::default() };
    job.run(snapshot, options)?;
    let mut done = job.done.into_inner();
    done.problems.sort();
    Ok(done)
}

/// Goes through a snapshot's entries in an order in which they can be made.
fn each_item(
    reader: &Reader,
    snapshot: &Snapshot,
    below: &Path,
    each: &mut dyn FnMut(Item) -> Result<()>,
) -> Result<()> {
    if below.as_os_str().is_empty() {
        return reader.walk(snapshot, below, each);
    }
    let mut above: Vec<&Path> = below.ancestors().skip(1).collect();
    above.reverse();
    for dir in above {
        each(reader.item(snapshot, dir)?)?;
    }
    if !below.starts_with(VAULT_DIR) {
        reader.walk(snapshot, Path::new(VAULT_DIR), each)?;
    }
    reader.walk(snapshot, below, each)
}

fn survey(reader: &Reader, snapshot: &Snapshot, target: &Path, below: &Path) -> Result<Survey> {
    let mut found = Survey::default();
    each_item(reader, snapshot, below, &mut |item| {
        if item.kind == libc::S_IFREG {
            let there =
                std::fs::symlink_metadata(target.join(&item.path)).is_ok_and(|m| m.len() == item.size);
            found.bytes += if there { 0 } else { item.size };
            let header = item.xattrs.iter().find(|(name, _)| name == HEADER_XATTR);
            found.header = found.header.max(header.map_or(0, |(_, value)| value.len()));
        }
        Ok(())
    })?;
    Ok(found)
}

/// Whether the target's filesystem keeps the longest header and has room. Leaves nothing behind.
fn probe(target: &Path, survey: &Survey) -> Result<()> {
    let there = target.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(there, flags, Mode::empty()).map_err(BackupError::errno(there))?;
    let temporary = || format!("{TMP_PREFIX}probe.{}", std::process::id());
    let fresh = FreshFile::make(dir.as_fd(), (0o600, 0), temporary).map_err(BackupError::errno(there))?;
    let header = vec![0; survey.header.clamp(1, MAX_HEADER)];
    match fresh.set_xattr(HEADER_XATTR, &header) {
        Err(Errno::OPNOTSUPP | Errno::PERM) => return Err(BackupError::NoXattrs(there.to_owned())),
        other => other.map_err(BackupError::errno(there))?,
    }
    let space = rustix::fs::fstatvfs(&dir).map_err(BackupError::errno(there))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let need = survey.bytes.saturating_add(SLACK);
    // A filesystem that does not tell says 0 of 0.
    if space.f_blocks > 0 && free < need {
        return Err(BackupError::NoSpace { path: there.to_owned(), need, free });
    }
    Ok(())
}

/// Keeps mounts out of a vault that is restored over.
fn alone(top: &OwnedFd, target: &Path) -> Result<Option<VaultLock>> {
    match VaultLock::take(top, false) {
        Ok(lock) => Ok(Some(lock)),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::WOULDBLOCK) => Err(BackupError::Mounted(target.to_owned())),
        Err(e) => Err(BackupError::errno(target)(e)),
    }
}

/// A journal is about the files that were there; about those that come back it would lie.
fn put_journal_aside(top: &OwnedFd) -> rustix::io::Result<()> {
    let own = match entry::open_dir_path(top, VAULT_DIR) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    match rustix::fs::mkdirat(&own, LOST_FOUND, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e),
    }
    let aside = format!("{LOST_FOUND}/{JOURNAL_DIR}-{}", std::process::id());
    match entry::rename(&own, JOURNAL_DIR, &own, &aside, RenameFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

impl Job<'_> {
    fn run(&self, snapshot: &Snapshot, options: &Restore) -> Result<()> {
        let mut dirs = Vec::new();
        let mut links: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
        let mut linked = Vec::new();
        let (sender, items) = bounded::<Item>(QUEUE);
        std::thread::scope(|scope| {
            for _ in 0..options.jobs.clamp(1, 64) {
                let items: Receiver<Item> = items.clone();
                scope.spawn(move || items.iter().for_each(|item| self.note(&item, self.file(&item))));
            }
            drop(items);
            each_item(self.reader, snapshot, &options.below, &mut |item| {
                let first =
                    item.inode.map(|inode| links.entry(inode).or_insert_with(|| item.path.clone()).clone());
                match item.kind {
                    _ if !is_plain(&item.path) => {
                        self.note(&item, Err("its path leads out of the vault".into()))
                    }
                    libc::S_IFDIR => {
                        if let Err(why) = self.dir(&item) {
                            self.note(&item, Err(why));
                        }
                        dirs.push(item);
                    }
                    _ if first.as_ref().is_some_and(|first| *first != item.path) => {
                        linked.extend(first.map(|first| (first, item)));
                    }
                    libc::S_IFREG => drop(sender.send(item)),
                    _ => self.note(&item, self.other(&item)),
                }
                Ok(())
            })?;
            drop(sender);
            Ok::<(), BackupError>(())
        })?;
        for (first, item) in linked {
            self.note(&item, self.link(&first, &item));
        }
        // Their times last: what is made in a directory changes them.
        for dir in dirs.iter().rev() {
            self.note(dir, self.finish_dir(dir));
        }
        rustix::fs::syncfs(&self.top).map_err(BackupError::errno(Path::new("syncfs")))
    }

    fn note(&self, item: &Item, done: Step<bool>) {
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

    /// The directory that an item belongs in, and its name there.
    fn place<'i>(&self, item: &'i Item) -> Step<(OwnedFd, &'i str)> {
        let dir = item.path.parent().unwrap_or(Path::new(""));
        let name = item.path.file_name().and_then(|n| n.to_str()).ok_or("its name is no text")?;
        Ok((reach(&self.top, dir).map_err(said("its directory"))?, name))
    }

    /// Content from the repository or from what is there; then everything else. Gives whether it was there.
    fn file(&self, item: &Item) -> Step<bool> {
        let (dir, name) = self.place(item)?;
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
        let mut at = 0;
        for chunk in 0..item.content.chunks() {
            let len = self.reader.chunk_len(&item.content, chunk).map_err(|e| e.to_string())?;
            let mut bytes = vec![0; usize::try_from(len).map_err(|e| e.to_string())?];
            let read = file.read_at(&mut bytes, at).map_err(|e| e.to_string())?;
            if read < bytes.len() || item.content.digest(chunk) != Some(sha256(&bytes)) {
                return Ok(None);
            }
            at += len;
        }
        Ok((at == item.size).then_some(fd))
    }

    fn content(&self, file: &DiskFile, item: &Item) -> Step<()> {
        let text = |e: std::io::Error| format!("not written: {e}");
        let mut at = 0;
        for chunk in 0..item.content.chunks() {
            let bytes = self.reader.chunk(&item.content, chunk).map_err(|e| e.to_string())?;
            // What was a hole becomes one again.
            if bytes.iter().any(|b| *b != 0) {
                file.write_at(&[IoSlice::new(&bytes)], at).map_err(text)?;
            }
            at += bytes.len() as u64;
            self.meter.bytes.add(bytes.len() as u64);
        }
        if at != item.size {
            return Err(format!("the snapshot holds {at} of its {} bytes", item.size));
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

    fn dir(&self, item: &Item) -> Step<()> {
        if item.path.as_os_str().is_empty() {
            return self.xattrs(&self.top, item);
        }
        let (dir, name) = self.place(item)?;
        match rustix::fs::mkdirat(&dir, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(format!("not made: {e}")),
        }
        let fd = entry::open_dir_path(&dir, name)
            .map_err(|_| "something that is no directory is in its place; move it away".to_owned())?;
        self.xattrs(fd, item)
    }

    fn finish_dir(&self, item: &Item) -> Step<bool> {
        let fd = reach(&self.top, &item.path).map_err(said("not opened"))?;
        self.attributes(&fd, item)?;
        self.compare(&fd, item)?;
        Ok(false)
    }

    fn link(&self, first: &Path, item: &Item) -> Step<bool> {
        let (dir, name) = self.place(item)?;
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
    fn other(&self, item: &Item) -> Step<bool> {
        let (dir, name) = self.place(item)?;
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

/// Whether a path stays in the vault.
fn is_plain(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(name) if !name.as_bytes().is_empty()))
}
