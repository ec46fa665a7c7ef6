//! What a run reads: the vault's entries for the library that stores them. Fails closed.
//!
//! The library passes over what it cannot read with a line in a log; so everything that goes wrong is also noted
//! here, by path, and decides how the run ends. A file is stored only as it was at one moment: it is stored if size
//! and change time (and, beside a mount, what its daemon holds of it) say that nothing changed it while it was read.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustic_core::{ErrorKind, ReadSource, ReadSourceEntry, ReadSourceOpen, RusticError, RusticResult};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::daemon::Daemon;
use super::meter::Meter;
use super::node::node_of;
use super::walk::{Entry, Walk};
use crate::format::header::{FileHeader, HEADER_XATTR};
use crate::format::ids::FileId;
use crate::vault::stat::{S_IFDIR, S_IFREG, stat_fd};
use crate::vault::{LowerStat, proc_path};

/// Where the vault is in a snapshot.
pub const ROOT: &str = "/vault";
/// A file that changed so shortly before it is read may change again without another change time: the kernel's clock
/// for files ticks at least a hundred times a second.
const TICK: Duration = Duration::from_millis(20);
/// Of the files that did not change, `--paranoid` reads one in so many.
const PARANOID: u64 = 7;

/// What a pass over the vault found wrong, and what is to be read again.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) meter: Arc<Meter>,
    pub(super) daemon: Option<Arc<dyn Daemon>>,
    /// Which part of the unchanged files to read again.
    pub(super) paranoid: Option<u64>,
    problems: Mutex<Vec<(PathBuf, String)>>,
    changing: Mutex<BTreeSet<PathBuf>>,
}

impl Pass {
    pub(super) fn new(meter: Arc<Meter>, daemon: Option<Arc<dyn Daemon>>, paranoid: Option<u64>) -> Self {
        let (problems, changing) = (Mutex::default(), Mutex::default());
        Self { meter, daemon, paranoid, problems, changing }
    }

    fn problem(&self, path: &Path, why: impl ToString) {
        self.problems.lock().push((path.to_owned(), why.to_string()));
    }

    fn changed(&self, path: &Path) {
        self.changing.lock().insert(path.to_owned());
    }

    /// Everything that is wrong or missing in the snapshot, by lower path.
    pub(super) fn problems(&self) -> Vec<(PathBuf, String)> {
        self.problems.lock().clone()
    }

    /// Files that changed while they were read, which the snapshot has not got.
    pub(super) fn changing(&self) -> BTreeSet<PathBuf> {
        self.changing.lock().clone()
    }
}

/// A vault as a source.
#[derive(Debug)]
pub(super) struct VaultSource {
    walk: Mutex<Option<Walk>>,
    pass: Arc<Pass>,
}

impl VaultSource {
    pub(super) fn new(walk: Walk, pass: Arc<Pass>) -> Self {
        Self { walk: Mutex::new(Some(walk)), pass }
    }
}

impl ReadSource for VaultSource {
    type Open = Opening;
    type Iter = Entries;

    fn size(&self) -> RusticResult<Option<u64>> {
        Ok(None)
    }

    fn entries(&self) -> Entries {
        Entries { walk: self.walk.lock().take(), pass: Arc::clone(&self.pass) }
    }
}

/// The entries of one pass.
#[derive(Debug)]
pub(super) struct Entries {
    walk: Option<Walk>,
    pass: Arc<Pass>,
}

impl Entries {
    fn given(&self, entry: Entry) -> ReadSourceEntry<Opening> {
        let pass = &self.pass;
        pass.meter.entries.add(1);
        let path = if entry.path.as_os_str().is_empty() {
            PathBuf::from(ROOT)
        } else {
            Path::new(ROOT).join(&entry.path)
        };
        if let Some(why) = &entry.fault {
            pass.problem(&entry.path, why);
        }
        let name = path.file_name().unwrap_or(OsStr::new("vault")).to_owned();
        let read_anew = pass.paranoid.is_some_and(|part| is_in_part(&entry.path, part));
        let node = node_of(&entry, &name, read_anew && entry.stat.kind() == S_IFREG);
        let open = (entry.stat.kind() == S_IFREG).then(|| Opening::new(entry, Arc::clone(pass)));
        ReadSourceEntry { path, node, open }
    }
}

/// Which seventh a path is in.
fn is_in_part(path: &Path, part: u64) -> bool {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish() % PARANOID == part % PARANOID
}

impl Iterator for Entries {
    type Item = RusticResult<ReadSourceEntry<Opening>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.walk.as_mut()?.next()? {
                Ok(entry) => return Some(Ok(self.given(entry))),
                Err(missed) => self.pass.problem(&missed.path, missed.why),
            }
        }
    }
}

/// A regular file that may be read.
#[derive(Debug)]
pub(super) struct Opening {
    path: PathBuf,
    stat: LowerStat,
    fd: OwnedFd,
    id: Option<FileId>,
    pass: Arc<Pass>,
}

impl Opening {
    fn new(entry: Entry, pass: Arc<Pass>) -> Self {
        let header = entry.xattrs.iter().find(|(name, _)| name == HEADER_XATTR);
        let id = header.and_then(|(_, value)| FileHeader::decode(value).ok()).map(|h| h.file_id);
        debug_assert_ne!(entry.stat.kind(), S_IFDIR, "only files are opened");
        Self { path: entry.path, stat: entry.stat, fd: entry.fd, id, pass }
    }

    fn file(&self) -> rustix::io::Result<File> {
        let path = proc_path(&self.fd);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags | OFlags::NOATIME, Mode::empty()) {
            Err(Errno::PERM) => Ok(rustix::fs::open(&path, flags, Mode::empty())?.into()),
            other => Ok(other?.into()),
        }
    }

    /// Whether the file is what the walk saw, and holds all of itself: its daemon holds no part of it back.
    fn is_still(&self, file: &File) -> io::Result<bool> {
        let now = stat_fd(file)?;
        let pending = match (&self.pass.daemon, self.id) {
            (Some(daemon), Some(id)) => daemon.is_pending(id)?,
            _ => false,
        };
        Ok(!pending && is_same(&self.stat, &now) && !is_hot(&now))
    }
}

/// Whether nothing changed a file between two looks at it.
fn is_same(before: &LowerStat, after: &LowerStat) -> bool {
    before.same_inode(after) && before.size == after.size && before.ctime == after.ctime
}

/// Whether a file changed in this moment.
fn is_hot(stat: &LowerStat) -> bool {
    let now = clock_gettime(ClockId::Realtime);
    let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let age = nanos(now.tv_sec, now.tv_nsec) - nanos(stat.ctime.0, stat.ctime.1.into());
    age.unsigned_abs() < TICK.as_nanos()
}

impl ReadSourceOpen for Opening {
    type Reader = Reader;

    fn open(self) -> RusticResult<Reader> {
        let opened = self.file().map_err(io::Error::from).and_then(|file| {
            if !self.is_still(&file)? && is_hot(&self.stat) {
                std::thread::sleep(TICK);
            }
            Ok((self.is_still(&file)?, file))
        });
        match opened {
            Ok((true, file)) => {
                self.pass.meter.files.add(1);
                Ok(Reader { file, stat: self.stat, path: self.path, pass: self.pass, read: 0, failed: false })
            }
            Ok((false, _)) => {
                self.pass.changed(&self.path);
                Err(RusticError::new(ErrorKind::InputOutput, "the file is changing"))
            }
            Err(e) => {
                self.pass.problem(&self.path, format!("not read: {e}"));
                Err(RusticError::with_source(ErrorKind::InputOutput, "the file is not read", e))
            }
        }
    }
}

/// Reads a file to its end, which is an error where the file changed meanwhile.
#[derive(Debug)]
pub(super) struct Reader {
    file: File,
    stat: LowerStat,
    path: PathBuf,
    pass: Arc<Pass>,
    read: u64,
    failed: bool,
}

impl Reader {
    fn end(&mut self) -> io::Result<usize> {
        let now = stat_fd(&self.file)?;
        if self.read == self.stat.size && is_same(&self.stat, &now) {
            return Ok(0);
        }
        self.failed = true;
        self.pass.changed(&self.path);
        Err(io::Error::other("the file changed while it was read"))
    }
}

impl Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.failed {
            return Err(io::Error::other("the file changed while it was read"));
        }
        match self.file.read(buf) {
            Ok(0) if !buf.is_empty() => self.end(),
            Ok(len) => {
                self.read += len as u64;
                self.pass.meter.bytes.add(len as u64);
                if self.read > self.stat.size {
                    // It grows: reading on could go on for ever.
                    return self.end();
                }
                Ok(len)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(e),
            Err(e) => {
                self.failed = true;
                self.pass.problem(&self.path, format!("not read: {e}"));
                Err(e)
            }
        }
    }
}
