//! `fuser::Filesystem` over [`Fs`]: each method translates, calls, replies, and logs what the operator should see.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use log::warn;

use super::convert::{attr, bare_attr, caller, errno, kind, set_time};
use super::corrected::{Corrected, Verdict};
use super::report::Report;
use super::seek::{Seek, SeekQueue};
use super::{buffer, negotiate, seek};
use crate::fs::{Found, Fs, FsError, SetAttr};

/// How long the kernel trusts names and attributes: every change passes through it, so only its memory bounds them.
const TTL: Duration = Duration::from_secs(3600);
/// Added to the number of an entry that could not be looked at: the kernel must not take it for the inode that it may
/// know by that number, and asks for the name when it is used.
const NOT_LOOKED_AT: u64 = 1 << 63;
/// The largest read that is served: `fuser`'s own request bound, above every `max_pages_limit` in use.
const MAX_READ: u32 = 16 << 20;
/// Bytes of one `copy_file_range` step: a bounded time without a reply; the kernel asks again for the rest.
const MAX_COPY: u64 = 64 << 20;

/// The filesystem as `fuser` calls it.
pub(super) struct Adapter {
    pub(super) fs: Arc<Fs>,
    pub(super) report: Arc<Report>,
    pub(super) seeks: SeekQueue,
    /// Set before the first request is served.
    pub(super) notifier: Arc<OnceLock<Notifier>>,
    pub(super) shared: bool,
    pub(super) corrected: Corrected,
}

/// Replies with an error and, where it is noteworthy, logs it.
macro_rules! fail {
    ($self:ident, $what:literal, $ino:expr, $reply:ident, $error:expr) => {{
        let error: &FsError = &$error;
        $self.report.failed($what, $ino.0, error);
        $reply.error(errno(error))
    }};
}

impl Adapter {
    fn ttl(&self) -> Duration {
        if self.shared { Duration::ZERO } else { TTL }
    }

    /// Whether the kernel has a wrong length of a file that was just opened, and has to look its name up again. Shared
    /// mounts need none of it: without write-back the kernel takes every length it is told.
    fn must_look_again(&self, ino: INodeNo, fh: u64) -> bool {
        let Some((told, truth)) = self.fs.misled(fh).filter(|_| !self.shared) else { return false };
        match self.corrected.note(ino.0, told, truth) {
            Verdict::Known => false,
            Verdict::LookAgain | Verdict::Full => {
                warn!(
                    "inode {ino}: the lower file is longer than its content: a crash left it, or someone appended to it"
                );
                true
            }
        }
    }

    fn file_flags(&self) -> FopenFlags {
        if self.shared { FopenFlags::empty() } else { FopenFlags::FOPEN_KEEP_CACHE }
    }

    fn dir_flags(&self) -> FopenFlags {
        if self.shared {
            FopenFlags::empty()
        } else {
            FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR
        }
    }

    fn entry(&self, what: &'static str, ino: INodeNo, found: Result<Found, FsError>, reply: ReplyEntry) {
        match found {
            Ok(found) => {
                let found = self.corrected.found(found);
                reply.entry(&self.ttl(), &attr(&found.attr), Generation(found.generation));
            }
            Err(error) => {
                self.report.failed(what, ino.0, &error);
                reply.error(errno(&error));
            }
        }
    }

    fn empty(&self, what: &'static str, ino: INodeNo, done: Result<(), FsError>, reply: ReplyEmpty) {
        match done {
            Ok(()) => reply.ok(),
            Err(error) => {
                self.report.failed(what, ino.0, &error);
                reply.error(errno(&error));
            }
        }
    }

    /// The size protocol of xattrs: 0 asks for the length, too small is ERANGE.
    fn xattr(
        &self,
        what: &'static str,
        ino: INodeNo,
        size: u32,
        value: Result<Vec<u8>, FsError>,
        reply: ReplyXattr,
    ) {
        match value {
            Ok(bytes) => match u32::try_from(bytes.len()) {
                Ok(len) if size == 0 => reply.size(len),
                Ok(len) if len <= size => reply.data(&bytes),
                _ => reply.error(Errno::ERANGE),
            },
            Err(error) => {
                self.report.failed(what, ino.0, &error);
                reply.error(errno(&error));
            }
        }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        negotiate::negotiate(config, self.shared);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.entry("lookup in directory", parent, self.fs.lookup(parent.0, name.as_bytes()), reply);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.fs.forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.fs.getattr(ino.0) {
            Ok(found) => reply.attr(&self.ttl(), &attr(&self.corrected.attr(found))),
            Err(e) => fail!(self, "stat", ino, reply, e),
        }
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr { mode, uid, gid, size, atime: atime.map(set_time), mtime: mtime.map(set_time) };
        match self.fs.setattr(&caller(req, 0), ino.0, &set) {
            Ok(found) => {
                if size.is_some() {
                    self.corrected.changed(ino.0);
                }
                reply.attr(&self.ttl(), &attr(&self.corrected.attr(found)));
            }
            Err(e) => fail!(self, "change of attributes", ino, reply, e),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.fs.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(e) => fail!(self, "readlink", ino, reply, e),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let made = self.fs.mknod(&caller(req, umask), parent.0, name.as_bytes(), mode, rdev);
        self.entry("mknod in directory", parent, made, reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let made = self.fs.mkdir(&caller(req, umask), parent.0, name.as_bytes(), mode);
        self.entry("mkdir in directory", parent, made, reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.empty("unlink in directory", parent, self.fs.unlink(parent.0, name.as_bytes()), reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.empty("rmdir in directory", parent, self.fs.rmdir(parent.0, name.as_bytes()), reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        let made = self.fs.symlink(&caller(req, 0), parent.0, link_name.as_bytes(), target);
        self.entry("symlink in directory", parent, made, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, newname) = (name.as_bytes(), newname.as_bytes());
        let done = self.fs.rename(parent.0, name, newparent.0, newname, flags.bits());
        self.empty("rename in directory", parent, done, reply);
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.entry("link", ino, self.fs.link(ino.0, newparent.0, newname.as_bytes()), reply);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        match self.fs.create(&caller(req, umask), parent.0, name.as_bytes(), mode, flags) {
            Ok((found, fh)) => {
                let generation = Generation(found.generation);
                reply.created(&self.ttl(), &attr(&found.attr), generation, FileHandle(fh), self.file_flags());
            }
            Err(e) => fail!(self, "create in directory", parent, reply, e),
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.fs.open_file(ino.0, flags.0) {
            Ok(fh) if self.must_look_again(ino, fh) => {
                self.fs.release(fh);
                reply.error(Errno::ESTALE);
            }
            Ok(fh) => reply.opened(FileHandle(fh), self.file_flags()),
            Err(e) => fail!(self, "open", ino, reply, e),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        buffer::with(size.min(MAX_READ) as usize, |bytes| match self.fs.read(fh.0, offset, bytes) {
            Ok(n) => reply.data(bytes.get(..n).unwrap_or(bytes)),
            Err(e) => fail!(self, "read", ino, reply, e),
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill_priv = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        self.corrected.changed(ino.0);
        match self.fs.write(fh.0, offset, data, kill_priv) {
            Ok(()) => {
                // The kernel keeps the mode it knew over a write; set-id bits that are gone must show as gone.
                if kill_priv && let Some(notifier) = self.notifier.get() {
                    let _ = notifier.inval_inode(ino, -1, 0);
                }
                reply.written(u32::try_from(data.len()).expect("a request is shorter than 4 GiB"));
            }
            Err(e) => fail!(self, "write", ino, reply, e),
        }
    }

    fn flush(&self, _req: &Request, ino: INodeNo, fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        self.empty("close", ino, self.fs.flush(fh.0), reply);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.fs.release(fh.0);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.empty("fsync", ino, self.fs.fsync(fh.0, datasync), reply);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.fs.opendir(ino.0) {
            Ok(fh) => reply.opened(FileHandle(fh), self.dir_flags()),
            Err(e) => fail!(self, "opendir", ino, reply, e),
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let done = self.fs.readdir(fh.0, offset, false, &mut |entry| {
            !reply.add(INodeNo(entry.ino), entry.next, kind(entry.kind), OsStr::from_bytes(entry.name))
        });
        match done {
            Ok(()) => reply.ok(),
            Err(e) => fail!(self, "readdir", ino, reply, e),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let ttl = self.ttl();
        let done = self.fs.readdir(fh.0, offset, true, &mut |entry| {
            let (attrs, generation, ttl) = match &entry.found {
                Some(found) => {
                    let found = self.corrected.found(*found);
                    (attr(&found.attr), found.generation, ttl)
                }
                None if matches!(entry.name, b"." | b"..") => {
                    (bare_attr(entry.ino, entry.kind), 0, Duration::ZERO)
                }
                // Must be looked up before it is used: no attribute of it is true, and it has no reference.
                None => (bare_attr(entry.ino | NOT_LOOKED_AT, entry.kind), 0, Duration::ZERO),
            };
            let name = OsStr::from_bytes(entry.name);
            !reply.add(INodeNo(entry.ino), entry.next, name, &ttl, &attrs, Generation(generation))
        });
        match done {
            Ok(()) => reply.ok(),
            Err(e) => fail!(self, "readdir", ino, reply, e),
        }
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.fs.releasedir(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.empty("fsyncdir", ino, self.fs.fsyncdir(fh.0), reply);
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match self.fs.statfs() {
            Ok(s) => {
                reply.statfs(s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize)
            }
            Err(e) => fail!(self, "statfs", ino, reply, e),
        }
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.empty("setxattr", ino, self.fs.setxattr(ino.0, name.as_bytes(), value, flags), reply);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.xattr("getxattr", ino, size, self.fs.getxattr(ino.0, name.as_bytes()), reply);
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.xattr("listxattr", ino, size, self.fs.listxattr(ino.0), reply);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.empty("removexattr", ino, self.fs.removexattr(ino.0, name.as_bytes()), reply);
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: fuser::AccessFlags, reply: ReplyEmpty) {
        // The kernel checks permissions itself (default_permissions) and never asks again after ENOSYS.
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: fuser::ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: fuser::PollNotifier,
        _events: fuser::PollEvents,
        _flags: fuser::PollFlags,
        reply: fuser::ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.corrected.changed(ino.0);
        self.empty("fallocate", ino, self.fs.fallocate(fh.0, offset, length, mode), reply);
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        if whence != libc::SEEK_HOLE && whence != libc::SEEK_DATA {
            return reply.error(Errno::EINVAL);
        }
        let seek = Seek { ino: ino.0, fh: fh.0, offset, whence, reply };
        if !self.shared && self.fs.has_writers(ino.0) {
            self.seeks.push(&self.fs, seek);
        } else {
            seek::answer(&self.fs, &self.report, seek);
        }
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.corrected.changed(ino_out.0);
        match self.fs.copy_file_range(fh_in.0, offset_in, fh_out.0, offset_out, len.min(MAX_COPY)) {
            Ok(copied) => reply.written(u32::try_from(copied).unwrap_or(u32::MAX)),
            Err(e) => fail!(self, "copy_file_range", ino_in, reply, e),
        }
    }
}
