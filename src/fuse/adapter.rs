//! [`Handler`] over [`Fs`]: each method translates, calls, answers, and logs what the operator should see.

use std::sync::Arc;
use std::time::Duration;

use log::warn;
use rustix::io::Errno;

use super::convert::errno;
use super::corrected::{Corrected, Verdict};
use super::entries::{Entries, Listed};
use super::handler::{Answer, Attributes, Copying, Entry, Handler, Looked, NewMode, Opened};
use super::notify::Notifier;
use super::report::Report;
use super::seek::Seeks;
use crate::fs::{Attr, Caller, Found, FoundLock, Fs, FsError, Granted, Ino, LockAsk, SetAttr, StatFs};

/// How long the kernel trusts names and attributes: every change passes through it, so only its memory bounds them.
const TTL: Duration = Duration::from_secs(3600);
/// How long it trusts that a name does not exist: what a tool brings back into the vault shows after that.
const MISSING: Duration = Duration::from_secs(60);
/// Bytes of one `copy_file_range` step: a bounded time without a reply; the kernel asks again for the rest.
const MAX_COPY: u64 = 64 << 20;

/// The filesystem as the kernel asks it.
pub(super) struct Adapter {
    fs: Arc<Fs>,
    report: Report,
    seeks: Seeks,
    shared: bool,
    corrected: Corrected,
}

impl Adapter {
    pub(super) fn new(fs: Arc<Fs>, shared: bool) -> Self {
        let (report, seeks, corrected) = (Report::new(), Seeks::default(), Corrected::default());
        Self { fs, report, seeks, shared, corrected }
    }

    fn ttl(&self) -> Duration {
        if self.shared { Duration::ZERO } else { TTL }
    }

    /// The errno of a failure, which is logged where it is noteworthy.
    fn say<T>(&self, what: &'static str, ino: Ino, done: Result<T, FsError>) -> Answer<T> {
        done.map_err(|error| {
            self.report.failed(what, ino, &error);
            errno(&error)
        })
    }

    fn attributes(&self, attr: Attr) -> Attributes {
        Attributes { attr: self.corrected.attr(attr), valid: self.ttl() }
    }

    fn entry(&self, found: Found) -> Entry {
        let found = self.corrected.found(found);
        Entry { attr: found.attr, generation: found.generation, name_for: self.ttl(), attr_for: self.ttl() }
    }

    fn opened(&self, fh: u64) -> Opened {
        Opened { fh, keep_cache: !self.shared, cache_dir: false }
    }

    fn written(&self, ino: Ino, kill_priv: bool, done: Result<(), FsError>) -> Answer<()> {
        self.say("write", ino, done)?;
        // The kernel keeps the mode it knew over a write; set-id bits that are gone must show as gone.
        if kill_priv && let Some(notifier) = self.seeks.notifier() {
            let _ = notifier.inval_inode(ino, -1, 0);
        }
        Ok(())
    }

    /// Whether the kernel has a wrong length of a file that was just opened, and has to look its name up again. Shared
    /// mounts need none of it: without write-back the kernel takes every length it is told.
    fn must_look_again(&self, ino: Ino, fh: u64) -> bool {
        let Some((told, truth)) = self.fs.misled(fh).filter(|_| !self.shared) else { return false };
        match self.corrected.note(ino, told, truth) {
            Verdict::Known => false,
            Verdict::LookAgain | Verdict::Full => {
                warn!(
                    "inode {ino}: the lower file is longer than its content: a crash left it, or someone appended to it"
                );
                true
            }
        }
    }
}

impl Handler for Adapter {
    fn start(&self, notifier: &Notifier) {
        self.seeks.start(notifier);
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Answer<Looked> {
        match self.fs.lookup(parent, name) {
            Ok(found) => Ok(Looked::Found(self.entry(found))),
            Err(e) if e.errno() == libc::ENOENT && !self.shared => Ok(Looked::Missing(MISSING)),
            Err(e) => self.say("lookup in directory", parent, Err(e)),
        }
    }

    fn forget(&self, ino: Ino, count: u64) {
        self.fs.forget(ino, count);
    }

    fn getattr(&self, ino: Ino) -> Answer<Attributes> {
        self.say("stat", ino, self.fs.getattr(ino)).map(|attr| self.attributes(attr))
    }

    fn statx(&self, ino: Ino) -> Answer<Attributes> {
        self.getattr(ino)
    }

    fn setattr(&self, caller: &Caller, ino: Ino, set: &SetAttr) -> Answer<Attributes> {
        let attr = self.say("change of attributes", ino, self.fs.setattr(caller, ino, set))?;
        if set.size.is_some() {
            self.corrected.changed(ino);
        }
        Ok(self.attributes(attr))
    }

    fn readlink(&self, ino: Ino) -> Answer<Vec<u8>> {
        self.say("readlink", ino, self.fs.readlink(ino))
    }

    fn mknod(&self, caller: &Caller, parent: Ino, name: &[u8], new: NewMode) -> Answer<Entry> {
        let made = self.fs.mknod(caller, parent, name, new.mode, new.rdev);
        self.say("mknod in directory", parent, made).map(|found| self.entry(found))
    }

    fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Answer<Entry> {
        let made = self.fs.mkdir(caller, parent, name, mode);
        self.say("mkdir in directory", parent, made).map(|found| self.entry(found))
    }

    fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Answer<Entry> {
        let made = self.fs.symlink(caller, parent, name, target);
        self.say("symlink in directory", parent, made).map(|found| self.entry(found))
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Answer<()> {
        self.say("unlink in directory", parent, self.fs.unlink(parent, name))
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Answer<()> {
        self.say("rmdir in directory", parent, self.fs.rmdir(parent, name))
    }

    fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), flags: u32) -> Answer<()> {
        let done = self.fs.rename(from.0, from.1, to.0, to.1, flags);
        self.say("rename in directory", from.0, done)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Answer<Entry> {
        self.say("link", ino, self.fs.link(ino, parent, name)).map(|found| self.entry(found))
    }

    fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        flags: i32,
    ) -> Answer<(Entry, Opened)> {
        let made = self.fs.create(caller, parent, name, mode, flags);
        let (found, fh) = self.say("create in directory", parent, made)?;
        Ok((self.entry(found), self.opened(fh)))
    }

    fn tmpfile(&self, caller: &Caller, parent: Ino, mode: u32, flags: i32) -> Answer<(Entry, Opened)> {
        let made = self.fs.tmpfile(caller, parent, mode, flags);
        let (found, fh) = self.say("create of a nameless file in directory", parent, made)?;
        Ok((self.entry(found), self.opened(fh)))
    }

    fn open(&self, ino: Ino, flags: i32) -> Answer<Opened> {
        let fh = self.say("open", ino, self.fs.open_file(ino, flags))?;
        if self.must_look_again(ino, fh) {
            self.fs.release(fh);
            return Err(Errno::STALE);
        }
        Ok(self.opened(fh))
    }

    fn read(&self, ino: Ino, fh: u64, offset: u64, buf: &mut [u8]) -> Answer<usize> {
        self.say("read", ino, self.fs.read(fh, offset, buf))
    }

    fn write(&self, ino: Ino, fh: u64, offset: u64, data: &[u8], kill_priv: bool) -> Answer<()> {
        self.corrected.changed(ino);
        let done = self.fs.write(fh, offset, data, kill_priv);
        self.written(ino, kill_priv, done)
    }

    fn append(&self, ino: Ino, fh: u64, offset: u64, data: &[u8], kill_priv: bool) -> Answer<()> {
        if !self.shared {
            return self.write(ino, fh, offset, data, kill_priv);
        }
        // The kernel's end is that of its last look; others may have appended since.
        let done = self.fs.append(fh, data, kill_priv);
        self.written(ino, kill_priv, done)
    }

    fn flush(&self, ino: Ino, fh: u64, owner: u64) -> Answer<()> {
        if !self.shared {
            // Each write was answered with its own error, there is nothing left to report at a close, and the kernel
            // stops asking.
            return Err(Errno::NOSYS);
        }
        self.say("close", ino, self.fs.flush(fh, owner))
    }

    fn keeps_locks(&self) -> bool {
        self.shared
    }

    fn set_lock(&self, ino: Ino, ask: &LockAsk) -> Answer<Granted> {
        self.say("lock", ino, self.fs.set_lock(ask))
    }

    fn find_lock(&self, ino: Ino, ask: &LockAsk) -> Answer<Option<FoundLock>> {
        self.say("lock", ino, self.fs.find_lock(ask))
    }

    fn release(&self, _ino: Ino, fh: u64) {
        self.fs.release(fh);
    }

    fn fsync(&self, ino: Ino, fh: u64, data_only: bool) -> Answer<()> {
        self.say("fsync", ino, self.fs.fsync(fh, data_only))
    }

    fn opendir(&self, ino: Ino) -> Answer<Opened> {
        let fh = self.say("opendir", ino, self.fs.opendir(ino))?;
        Ok(Opened { cache_dir: !self.shared, ..self.opened(fh) })
    }

    fn readdir(&self, ino: Ino, fh: u64, offset: u64, into: &mut Entries<'_>) -> Answer<()> {
        let plus = into.plus();
        let done = self.fs.readdir(fh, offset, plus, &mut |entry| {
            let listed = Listed { ino: entry.ino, next: entry.next, kind: entry.kind, name: entry.name };
            match entry.found {
                Some(found) => into.add_entry(&listed, &self.entry(found)),
                // `.`, `..`, and what could not be looked at: the kernel looks it up before it is used.
                None => into.add(&listed),
            }
        });
        self.say("readdir", ino, done)
    }

    fn releasedir(&self, _ino: Ino, fh: u64) {
        self.fs.releasedir(fh);
    }

    fn fsyncdir(&self, ino: Ino, fh: u64) -> Answer<()> {
        self.say("fsyncdir", ino, self.fs.fsyncdir(fh))
    }

    fn statfs(&self) -> Answer<StatFs> {
        self.say("statfs", super::abi::ROOT, self.fs.statfs())
    }

    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: i32, kill_sgid: bool) -> Answer<()> {
        let set = self.fs.setxattr(ino, name, value, flags);
        let done = set.and_then(|()| if kill_sgid { self.fs.drop_set_gid(ino) } else { Ok(()) });
        self.say("setxattr", ino, done)
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Answer<Vec<u8>> {
        self.say("getxattr", ino, self.fs.getxattr(ino, name))
    }

    fn listxattr(&self, ino: Ino) -> Answer<Vec<u8>> {
        self.say("listxattr", ino, self.fs.listxattr(ino))
    }

    fn removexattr(&self, ino: Ino, name: &[u8]) -> Answer<()> {
        self.say("removexattr", ino, self.fs.removexattr(ino, name))
    }

    fn fallocate(&self, ino: Ino, fh: u64, offset: u64, len: u64, mode: i32) -> Answer<()> {
        self.corrected.changed(ino);
        self.say("fallocate", ino, self.fs.fallocate(fh, offset, len, mode))
    }

    fn lseek(&self, ino: Ino, fh: u64, offset: u64, whence: i32) -> Answer<u64> {
        if whence != libc::SEEK_HOLE && whence != libc::SEEK_DATA {
            return Err(Errno::INVAL);
        }
        if !self.shared && self.fs.has_writers(ino) && !self.seeks.write_back(ino) {
            let size = self.say("seek", ino, self.fs.getattr(ino))?.size;
            return match whence {
                _ if offset >= size => Err(Errno::NXIO),
                libc::SEEK_HOLE => Ok(size),
                _ => Ok(offset),
            };
        }
        self.say("seek", ino, self.fs.lseek(fh, offset, whence))
    }

    fn copy_file_range(&self, ino: Ino, copying: &Copying) -> Answer<u64> {
        self.corrected.changed(copying.to_ino);
        let ((from, from_at), (to, to_at)) = (copying.from, copying.to);
        let done = self.fs.copy_file_range(from, from_at, to, to_at, copying.len.min(MAX_COPY));
        self.say("copy_file_range", ino, done)
    }
}
