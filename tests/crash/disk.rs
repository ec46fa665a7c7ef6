//! A disk that remembers every write and every flush in the order in which they arrived: one file, `disk`, in a FUSE
//! filesystem of this process, for a loop device to stand on. Nothing of it is cached by the kernel.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request, WriteFlags,
};
use parking_lot::Mutex;
use tempfile::TempDir;

/// What a disk keeps or drops as one, if it does not tear it.
pub(crate) const PAGE: usize = 4096;
const FILE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(3600);

type Page = [u8; PAGE];

/// The bytes of a disk. A clone shares its pages, so that a thousand images cost what is different in them.
#[derive(Clone)]
pub(crate) struct Image(Vec<Option<Arc<Page>>>);

impl Image {
    fn zeros(len: u64) -> Self {
        Self(vec![None; usize::try_from(len).unwrap() / PAGE])
    }

    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let (mut at, total) = (usize::try_from(offset).unwrap(), self.0.len() * PAGE);
        let end = (at + len).min(total);
        let mut out = Vec::with_capacity(end.saturating_sub(at));
        while at < end {
            let part = at % PAGE..PAGE.min(at % PAGE + end - at);
            at += part.len();
            match &self.0[(at - 1) / PAGE] {
                Some(page) => out.extend_from_slice(&page[part]),
                None => out.resize(out.len() + part.len(), 0),
            }
        }
        out
    }

    pub(crate) fn write(&mut self, offset: u64, mut bytes: &[u8]) {
        let mut at = usize::try_from(offset).unwrap();
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(PAGE - at % PAGE));
            let page = self.0[at / PAGE].get_or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[at % PAGE..at % PAGE + now.len()].copy_from_slice(now);
            at += now.len();
            bytes = rest;
        }
    }

    /// Writes it to a sparse file.
    pub(crate) fn save(&self, path: &Path) {
        let file = File::create(path).unwrap();
        file.set_len((self.0.len() * PAGE) as u64).unwrap();
        for (i, page) in self.0.iter().enumerate() {
            if let Some(page) = page {
                file.write_all_at(&page[..], (i * PAGE) as u64).unwrap();
            }
        }
    }
}

/// What reached the disk.
#[derive(Clone)]
pub(crate) enum Event {
    /// Bytes, in the disk's cache.
    Write(u64, Arc<[u8]>),
    /// All that was written before is on the platter.
    Flush,
}

struct State {
    image: Image,
    recording: bool,
    events: Vec<Event>,
}

/// The disk, served by a thread of this process until it is dropped.
pub(crate) struct Disk {
    state: Arc<Mutex<State>>,
    session: Option<BackgroundSession>,
    dir: TempDir,
}

impl Disk {
    /// An empty one.
    pub(crate) fn new(len: u64) -> Self {
        let state = State { image: Image::zeros(len), recording: false, events: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let dir = tempfile::tempdir().unwrap();
        let served = Served { state: Arc::clone(&state), len };
        let session = fuser::spawn_mount(served, dir.path(), &Config::default()).unwrap();
        Self { state, session: Some(session), dir }
    }

    /// The file to put a loop device on.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// How much was recorded up to now; 0 while nothing is.
    pub(crate) fn now(&self) -> usize {
        self.state.lock().events.len()
    }

    /// Records from here on; gives what the disk holds now.
    pub(crate) fn record(&self) -> Image {
        let mut state = self.state.lock();
        state.recording = true;
        state.events.clear();
        state.image.clone()
    }

    /// Ends recording.
    pub(crate) fn recorded(&self) -> Vec<Event> {
        let mut state = self.state.lock();
        state.recording = false;
        std::mem::take(&mut state.events)
    }

    /// Replaces what the disk holds; nothing may have it mounted.
    pub(crate) fn load(&self, image: Image) {
        let old = std::mem::replace(&mut self.state.lock().image, image);
        drop(old);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
    }
}

struct Served {
    state: Arc<Mutex<State>>,
    len: u64,
}

impl Served {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let file = ino == FILE;
        FileAttr {
            ino,
            size: if file { self.len } else { 0 },
            blocks: if file { self.len / 512 } else { 0 },
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if file { FileType::RegularFile } else { FileType::Directory },
            perm: if file { 0o600 } else { 0o700 },
            nlink: if file { 1 } else { 2 },
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Served {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == "disk" {
            reply.entry(&TTL, &self.attr(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let bytes = self.state.lock().image.read(offset, size as usize);
        reply.data(&bytes);
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if offset + data.len() as u64 > self.len {
            return reply.error(Errno::ENOSPC);
        }
        let mut state = self.state.lock();
        state.image.write(offset, data);
        if state.recording {
            state.events.push(Event::Write(offset, data.into()));
        }
        drop(state);
        reply.written(u32::try_from(data.len()).unwrap());
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // A close, not a flush of the disk.
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let mut state = self.state.lock();
        if state.recording {
            state.events.push(Event::Flush);
        }
        drop(state);
        reply.ok();
    }
}
