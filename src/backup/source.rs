//! What a run reads: the vault's entries for the library that stores them. Fails closed.
//!
//! The library passes over what it cannot read with a line in a log; so everything that goes wrong is also noted
//! here, by path, and decides how the run ends. A file is stored only as it was at one moment: it is stored if size
//! and change time (and, beside a mount, what its daemon holds of it) say that nothing changed it while it was read. What
//! is being written beside a mount is copied first, while the daemon keeps it as it is (`held`).
//!
//! When the store has failed there is nothing more to read: the library would go on to the end.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustic_core::{ErrorKind, ReadSource, ReadSourceEntry, ReadSourceOpen, RusticError, RusticResult};

use super::backend::Backend;
use super::daemon::Daemon;
use super::held;
use super::meter::Meter;
use super::node::node_of;
use super::walk::{Entry, Missed, Walk};
use crate::format::header::{FileHeader, HEADER_XATTR};
use crate::format::ids::FileId;
use crate::vault::LowerStat;
use crate::vault::stat::{S_IFDIR, S_IFREG, TICK, stat_fd};

/// Where the vault is in a snapshot.
pub const ROOT: &str = "/vault";
/// A file that changed so shortly before it is found may be one that changes all the time.
const YOUNG: Duration = Duration::from_secs(3);
/// Why nothing is read.
const NO_STORE: &str = "the store has failed";
/// Of the files that did not change, `--paranoid` reads one in so many.
const PARANOID: u64 = 7;

/// What a pass learns from the one before it.
#[derive(Debug, Default)]
pub(super) struct Before {
    /// Files that it did not catch.
    pub(super) caught_not: BTreeSet<PathBuf>,
    /// Files that could not be copied under a lease, and why: no pass tries again.
    pub(super) too_large: BTreeMap<PathBuf, String>,
}

/// What a pass over the vault found wrong, and what is to be read again.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) meter: Arc<Meter>,
    store: Arc<Backend>,
    pub(super) daemon: Option<Arc<dyn Daemon>>,
    /// Which part of the unchanged files to read again.
    pub(super) paranoid: Option<u64>,
    before: Before,
    /// Lower inodes that are being written.
    busy: HashSet<u64>,
    /// Of those, and why they were not copied.
    too_large: Mutex<BTreeMap<PathBuf, String>>,
    /// Where copies of them may lie.
    copies: PathBuf,
    /// The daemon failed when it was asked for one, perhaps after minutes.
    no_leases: AtomicBool,
    problems: Mutex<Vec<(PathBuf, String)>>,
    changing: Mutex<BTreeSet<PathBuf>>,
    /// A directory was gone before it was read, removed or moved.
    lost_sight: AtomicBool,
}

impl Pass {
    /// `copies`: a directory of this user's.
    pub(super) fn new(
        (meter, store): (Arc<Meter>, Arc<Backend>),
        daemon: Option<Arc<dyn Daemon>>,
        paranoid: Option<u64>,
        mut before: Before,
        copies: PathBuf,
    ) -> Self {
        let too_large = Mutex::new(std::mem::take(&mut before.too_large));
        let (problems, changing) = (Mutex::default(), Mutex::default());
        let busy = daemon.as_ref().map(|daemon| daemon.busy()).transpose().unwrap_or_else(|e| {
            log::debug!("what is being written is not known: {e}");
            None
        });
        let busy = busy.into_iter().flatten().collect();
        let (no_leases, lost_sight) = (AtomicBool::new(false), AtomicBool::new(false));
        Self {
            meter,
            store,
            daemon,
            paranoid,
            before,
            too_large,
            busy,
            copies,
            no_leases,
            problems,
            changing,
            lost_sight,
        }
    }

    /// A copy of a file that is being written, made while it was kept as it is; the entry is true of it.
    fn held(&self, entry: &mut Entry) -> Option<held::Held> {
        let daemon = self.daemon.as_ref()?;
        let changes = self.before.caught_not.contains(&entry.path)
            || self.busy.contains(&entry.stat.ino)
            || entry.stat.age() < YOUNG;
        if !changes || entry.stat.kind() != S_IFREG || id_of(entry).is_none() {
            return None;
        }
        if self.no_leases.load(Ordering::Relaxed) || self.too_large.lock().contains_key(&entry.path) {
            return None;
        }
        // Without a copy it is read as any other.
        match held::copy(&**daemon, entry, &self.copies, held::HOLD) {
            Ok(held::Copied::Held(held)) => Some(held),
            Ok(held::Copied::Not) => None,
            Ok(held::Copied::TooLarge(why)) => {
                self.too_large.lock().insert(entry.path.clone(), why);
                None
            }
            Err(e) => {
                log::debug!("{}: no lease, nor of others: {e}", entry.path.display());
                self.no_leases.store(true, Ordering::Relaxed);
                None
            }
        }
    }

    fn problem(&self, path: &Path, why: impl ToString) {
        self.problems.lock().push((path.to_owned(), why.to_string()));
    }

    fn changed(&self, path: &Path) {
        self.changing.lock().insert(path.to_owned());
    }

    /// What the next pass is to know.
    pub(super) fn learned(&self) -> Before {
        Before { caught_not: self.changing(), too_large: self.too_large.lock().clone() }
    }

    /// Everything that is wrong or missing in the snapshot, by lower path.
    pub(super) fn problems(&self) -> Vec<(PathBuf, String)> {
        self.problems.lock().clone()
    }

    /// Whether another pass may find what this one has missed, and cannot name.
    pub(super) fn has_lost_sight(&self) -> bool {
        self.lost_sight.load(Ordering::Relaxed)
    }

    /// Files that changed while they were read, and what was moved meanwhile: the snapshot has not got them.
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
    fn given(&self, mut entry: Entry) -> ReadSourceEntry<Opening> {
        let pass = &self.pass;
        let held = pass.held(&mut entry);
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
        // A change after the lease may bear the time that the copy has.
        let read_anew = pass.paranoid.is_some_and(|part| is_in_part(&entry.path, part))
            || held.as_ref().is_some_and(|held| held.hot);
        let copy = held.map(|held| held.copy);
        let node = node_of(&entry, &name, read_anew && entry.stat.kind() == S_IFREG);
        let open = (entry.stat.kind() == S_IFREG).then(|| Opening::new(entry, copy, Arc::clone(pass)));
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
            if self.pass.store.has_failed() {
                return None;
            }
            match self.walk.as_mut()?.next()? {
                Ok(entry) => return Some(Ok(self.given(entry))),
                Err(Missed::Unread { path, why }) => self.pass.problem(&path, why),
                Err(Missed::Moved(path)) => self.pass.changed(&path),
                Err(Missed::Gone(path)) => {
                    log::debug!("{}: gone before it was read", path.display());
                    self.pass.lost_sight.store(true, Ordering::Relaxed);
                }
            }
        }
    }
}

/// A regular file that may be read.
#[derive(Debug)]
pub(super) struct Opening {
    entry: Entry,
    copy: Option<held::Copy>,
    pass: Arc<Pass>,
}

impl Opening {
    fn new(entry: Entry, copy: Option<held::Copy>, pass: Arc<Pass>) -> Self {
        debug_assert_ne!(entry.stat.kind(), S_IFDIR, "only files are opened");
        Self { entry, copy, pass }
    }

    /// The lower file, if it is what the walk saw, and holds all of itself.
    fn file(&self) -> io::Result<Option<File>> {
        let file = File::from(self.entry.open()?);
        if !self.is_still(&file)? && self.entry.stat.is_hot() {
            std::thread::sleep(TICK);
        }
        Ok(if self.is_still(&file)? { Some(file) } else { None })
    }

    /// Whether the file is what the walk saw, and holds all of itself: its daemon holds no part of it back.
    fn is_still(&self, file: &File) -> io::Result<bool> {
        let now = stat_fd(file)?;
        let pending = match (&self.pass.daemon, id_of(&self.entry)) {
            (Some(daemon), Some(id)) => daemon.is_pending(id)?,
            _ => false,
        };
        Ok(!pending && is_same(&self.entry.stat, &now) && !now.is_hot())
    }
}

/// The id in a file's header.
fn id_of(entry: &Entry) -> Option<FileId> {
    let (_, header) = entry.xattrs.iter().find(|(name, _)| name == HEADER_XATTR)?;
    FileHeader::decode(header).ok().map(|header| header.file_id)
}

/// Whether nothing changed a file between two looks at it.
fn is_same(before: &LowerStat, after: &LowerStat) -> bool {
    before.same_inode(after) && before.size == after.size && before.ctime == after.ctime
}

impl ReadSourceOpen for Opening {
    type Reader = Reader;

    fn open(mut self) -> RusticResult<Reader> {
        if self.pass.store.has_failed() {
            return Err(RusticError::new(ErrorKind::Backend, NO_STORE));
        }
        let bytes = match self.copy.take() {
            Some(copy) => Ok(Some(Bytes::Copy(copy))),
            None => self.file().map(|file| file.map(Bytes::Lower)),
        };
        let Entry { path, stat, .. } = self.entry;
        match bytes {
            Ok(Some(bytes)) => {
                self.pass.meter.files.add(1);
                Ok(Reader { bytes, stat, path, pass: self.pass, read: 0, failed: false })
            }
            Ok(None) => {
                self.pass.changed(&path);
                Err(RusticError::new(ErrorKind::InputOutput, "the file is changing"))
            }
            Err(e) => {
                self.pass.problem(&path, format!("not read: {e}"));
                Err(RusticError::with_source(ErrorKind::InputOutput, "the file is not read", e))
            }
        }
    }
}

/// Where a file's bytes come from.
#[derive(Debug)]
enum Bytes {
    Lower(File),
    Copy(held::Copy),
}

/// Reads a file to its end, which is an error where the file changed meanwhile.
#[derive(Debug)]
pub(super) struct Reader {
    bytes: Bytes,
    stat: LowerStat,
    path: PathBuf,
    pass: Arc<Pass>,
    read: u64,
    failed: bool,
}

impl Reader {
    fn end(&mut self) -> io::Result<usize> {
        let still = match &self.bytes {
            Bytes::Lower(file) => is_same(&self.stat, &stat_fd(file)?),
            Bytes::Copy(_) => true,
        };
        if self.read == self.stat.size && still {
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
        if self.pass.store.has_failed() {
            return Err(io::Error::other(NO_STORE));
        }
        let read = match &mut self.bytes {
            Bytes::Lower(file) => file.read(buf),
            Bytes::Copy(copy) => copy.read(buf),
        };
        match read {
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
