//! Open files: one `content::File` for each inode, shared by all its handles.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;

use super::inode::{Inode, Table};
use super::resolve::Anchor;
use super::{Fs, FsError, Result};
use crate::content::{self, Journal, Keeper, Link};
use crate::format::header::{FileHeader, HEADER_XATTR};
use crate::format::ids::FileId;
use crate::format::layout::disk_len;
use crate::vault::access::{self, Want};
use crate::vault::stat::S_IFREG;
use crate::vault::{DirectFile, DiskFile, LowerFile, xattr};

/// How long an open file of a vault that others change too is taken for what it was. Whoever opens it anew, or sees another
/// length of the lower file, does not wait for it.
const TRUSTED: Duration = Duration::from_secs(1);
/// The content of an inode that has handles.
pub(super) struct OpenFile {
    /// Its plaintext.
    pub(super) content: Arc<content::File>,
    lower: RwLock<Arc<DiskFile>>,
    writable: AtomicBool,
    /// When its first page was read last; of a vault that others change too.
    looked: Mutex<Instant>,
    /// Whether set-id bits and capabilities are known to be gone, so that a write need not look.
    pub(super) unprivileged: AtomicBool,
}

impl OpenFile {
    /// Content over a lower file.
    pub(super) fn new(content: Arc<content::File>, lower: Arc<DiskFile>, writable: bool) -> Self {
        Self {
            content,
            lower: RwLock::new(lower),
            writable: AtomicBool::new(writable),
            looked: Mutex::new(Instant::now()),
            unprivileged: AtomicBool::new(false),
        }
    }

    /// The lower file.
    pub(super) fn lower(&self) -> Arc<DiskFile> {
        Arc::clone(&self.lower.read())
    }

    /// Forgets what is known of its content, where others may change it.
    pub(super) fn look_again(&self) -> Result<()> {
        let mut looked = self.looked.lock();
        let now = Instant::now();
        self.content.refresh()?;
        *looked = now;
        Ok(())
    }

    /// As `look_again`, where it was looked at a second ago or earlier.
    pub(super) fn look_at_times(&self) -> Result<()> {
        let due = self.looked.lock().elapsed() >= TRUSTED;
        if due { self.look_again() } else { Ok(()) }
    }

    /// Makes a file that was opened for reading writable. Callers hold the inode's `open` lock.
    fn make_writable(&self, direct: bool) -> Result<()> {
        if self.writable.load(Ordering::Acquire) {
            return Ok(());
        }
        let before = self.lower();
        let (file, _) = access::open_content(&before.0, Want::Write)?;
        access::read_alike(&file, &before.0);
        let lower = Arc::new(DiskFile(file));
        self.content.replace_lower(lower_file(&lower, direct));
        *self.lower.write() = lower;
        self.writable.store(true, Ordering::Release);
        Ok(())
    }
}

impl std::fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OpenFile")
    }
}

/// A lower file as `content` takes it.
pub(super) fn lower_file(file: &Arc<DiskFile>, direct: bool) -> Box<dyn LowerFile> {
    if direct {
        match DirectFile::over(file) {
            Ok(direct) => return Box::new(direct),
            Err(e) => log::debug!("a lower file is not opened past the page cache: {e}"),
        }
    }
    Box::new(Arc::clone(file))
}

/// An inode's open content and how many hold it.
#[derive(Debug, Default)]
pub(super) struct OpenState {
    file: Option<Arc<OpenFile>>,
    holders: usize,
}

impl OpenState {
    /// The content, while it is open.
    pub(super) fn file(&self) -> Option<&Arc<OpenFile>> {
        self.file.as_ref()
    }

    /// Puts the content of a file that was just made here, held once.
    pub(super) fn start(&mut self, file: Arc<OpenFile>) {
        *self = Self { file: Some(file), holders: 1 };
    }

    fn join(&mut self, write: bool, direct: bool) -> Result<Option<Arc<OpenFile>>> {
        let Some(file) = &self.file else { return Ok(None) };
        if write {
            file.make_writable(direct)?;
        }
        self.holders += 1;
        Ok(Some(Arc::clone(file)))
    }
}

/// An inode's open content, held for reading or writing; given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    /// The inode.
    pub(super) inode: Arc<Inode>,
    /// Its content.
    pub(super) file: Arc<OpenFile>,
    /// Whether it may be written.
    pub(super) write: bool,
    /// Where a reference is held.
    table: Option<Arc<Table>>,
}

/// Keeps the content of a closed file until the journal has brought its changes to their places: who opens or looks
/// at the file until then needs it.
struct Linger {
    table: Arc<Table>,
    inode: Arc<Inode>,
}

impl Drop for Linger {
    fn drop(&mut self) {
        {
            let mut open = self.inode.open.lock();
            if open.holders == 0 && open.file.as_ref().is_some_and(|f| !f.content.is_pending()) {
                open.file = None;
            }
        }
        self.table.forget(self.inode.ino, 1);
    }
}

impl Held {
    /// Wraps content whose holder was counted already.
    pub(super) fn new(inode: Arc<Inode>, file: Arc<OpenFile>, write: bool, table: &Arc<Table>) -> Self {
        if write {
            inode.writers.fetch_add(1, Ordering::AcqRel);
        }
        let table = table.hold(&inode).then(|| Arc::clone(table));
        Self { inode, file, write, table }
    }

    /// The content, if it may be written.
    pub(super) fn writable(&self) -> Result<&OpenFile> {
        if self.write { Ok(&self.file) } else { Err(Errno::BADF.into()) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.write {
            self.inode.writers.fetch_sub(1, Ordering::AcqRel);
        }
        let linger = self.table.take().map(|table| Linger { table, inode: Arc::clone(&self.inode) });
        let done: Option<Keeper> = {
            let mut open = self.inode.open.lock();
            open.holders = open.holders.saturating_sub(1);
            // Also where it has no name any more: until that is durable, the file must come back whole.
            match linger {
                Some(linger) if open.holders == 0 && self.file.content.is_pending() => {
                    self.file.content.keep_until_done(Box::new(linger))
                }
                linger => {
                    if open.holders == 0 {
                        // Closed under the lock: who opens the inode next finds all of it in the lower file.
                        open.file = None;
                    }
                    linger.map(|l| Box::new(l) as _)
                }
            }
        };
        // It takes the lock.
        drop(done);
    }
}

impl Inode {
    /// The lower inode's attributes were changed. Called behind the change: whoever opens the file later looks for himself.
    pub(super) fn attributes_changed(&self) {
        if let Some(file) = self.open.lock().file() {
            file.content.mark_attributes();
        }
    }

    /// As `attributes_changed`, for the time of the last change.
    pub(super) fn modified(&self) {
        if let Some(file) = self.open.lock().file() {
            file.content.mark_modified();
        }
    }
}

impl AsFd for Anchor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Shared(fd) => fd.as_fd(),
            Self::Own(fd) => fd.as_fd(),
            Self::File(file) => file.0.as_fd(),
        }
    }
}

impl Fs {
    /// The header of a regular file.
    pub(super) fn header(&self, fd: impl AsFd) -> Result<FileHeader> {
        match xattr::get(fd, HEADER_XATTR) {
            Ok(value) => Ok(FileHeader::decode(&value).map_err(crate::keys::KeyError::from)?),
            Err(Errno::NODATA) => Err(FsError::NoHeader),
            Err(e) => Err(e.into()),
        }
    }

    /// What ties an inode's content to the journal.
    pub(super) fn journal_link(&self, journal: &Arc<Journal>, inode: &Arc<Inode>, id: FileId) -> Link {
        let (table, inode) = (Arc::clone(&self.table), Arc::downgrade(inode));
        let place = move || inode.upgrade().map(|inode| table.place(&inode)).unwrap_or_default();
        Link { journal: Arc::clone(journal), id, place: Box::new(place) }
    }

    /// Runs `open`; where descriptors have run out, lets go of the directories at hand and runs it once more.
    pub(super) fn with_room<T>(&self, open: impl Fn() -> Result<T>) -> Result<T> {
        match open() {
            Err(e) if e.errno() == libc::EMFILE => {
                self.dirs.clear();
                open()
            }
            other => other,
        }
    }

    /// Opens the content of a regular file, or joins those who have it open.
    pub(super) fn hold(&self, inode: &Arc<Inode>, write: bool) -> Result<Held> {
        self.again(inode, || self.with_room(|| self.hold_once(inode, write)))
    }

    fn hold_once(&self, inode: &Arc<Inode>, write: bool) -> Result<Held> {
        if inode.first.kind() != S_IFREG {
            return Err(if inode.is_dir() { Errno::ISDIR } else { Errno::INVAL }.into());
        }
        let held = |file| Held::new(Arc::clone(inode), file, write, &self.table);
        let joined = inode.open.lock().join(write, self.options.direct_lower)?;
        if let Some(file) = joined {
            let held = held(file);
            if self.options.shared {
                // A handle that was closed long ago may not be released yet: the kernel does not wait for that.
                held.file.look_again()?;
            }
            return Ok(held);
        }
        let anchor = self.anchor(inode)?;
        // The provider may take long: asked before the lock.
        let header = self.header(&anchor)?;
        let keys = self.keyring.open_file(&header)?;
        let mut open = inode.open.lock();
        if let Some(file) = open.join(write, self.options.direct_lower)? {
            drop(open);
            return Ok(held(file));
        }
        let want = match (self.options.read_only, write) {
            (true, _) => Want::ReadOnly,
            (false, true) => Want::Write,
            (false, false) => Want::Read,
        };
        let (file, writable) = access::open_content(&anchor, want)?;
        if self.options.no_atime {
            access::leave_atime(&file);
        }
        let lower = Arc::new(DiskFile(file));
        let lower_file = lower_file(&lower, self.options.direct_lower);
        let content = match &self.journal {
            Some(journal) => {
                let link = self.journal_link(journal, inode, header.file_id);
                let durable = journal.is_durable(inode.first.btime);
                content::File::open_linked(lower_file, keys, link, durable)?
            }
            None => Arc::new(content::File::open(lower_file, keys)?),
        };
        // Under the lock: a lease that comes later finds the file open.
        self.leases.apply(inode.ino, &content);
        let file = Arc::new(OpenFile::new(content, lower, writable));
        open.start(Arc::clone(&file));
        drop(open);
        Ok(held(file))
    }

    /// Plaintext length of an open file whose lower file has `disk` bytes. Another length than the one that is known was
    /// perhaps given by another mount.
    pub(super) fn len_of(&self, file: &OpenFile, disk: u64) -> u64 {
        let known = || file.content.len();
        if self.options.shared && disk != disk_len(known()) && file.content.found_overlong().is_none() {
            // Whoever reads it is told what is wrong.
            if let Err(e) = file.look_again() {
                log::debug!("an open file whose length was changed: {e}");
            }
        }
        known()
    }
}
