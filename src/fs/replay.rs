//! Before the first request: what a crash left in the journal is brought in.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::dirs::OpenDir;
use super::recover;
use super::{FsError, Options, Result};
use crate::content::Journal;
use crate::content::journal::{Finder, Found, Limits, Replay, Replayed};
use crate::crypto::JournalRoot;
use crate::format::header::{FileHeader, HEADER_XATTR};
use crate::format::ids::FileId;
use crate::format::journal::Time;
use crate::format::names::VAULT_DIR;
use crate::keys::{KeyError, Keyring};
use crate::vault::journal::forget_restored;
use crate::vault::stat::{S_IFDIR, S_IFREG};
use crate::vault::{DiskFile, DiskJournal, Listing, entry, proc_path, stat, xattr};

/// A replay that takes longer says how far it is, this often.
const PATIENCE: Duration = Duration::from_secs(1);
/// Directories above one another that are looked into.
const MAX_DEPTH: usize = 4096;

/// Replays what is there, then begins the journal of this mount, if it shall have one.
pub(super) fn start(top: &OpenDir, keyring: &Keyring, options: &Options) -> Result<Option<Arc<Journal>>> {
    let mut crashed = false;
    match replay(top, keyring, false) {
        Ok(replayed) => crashed = replayed.is_some(),
        // What cannot be written cannot be mended, nor does it get worse.
        Err(FsError::Replay(e)) if options.read_only && is_unwritable(&e) => {
            log::warn!("the journal is not brought in: {e}; newer changes do not show");
        }
        Err(e) => return Err(e),
    }
    if options.read_only {
        return Ok(None);
    }
    forget_restored(top);
    if options.no_journal || options.shared {
        let noted =
            DiskJournal::open(top, true).and_then(|store| store.map_or(Ok(()), |s| s.note_in_place()));
        if let Err(e) = noted {
            log::warn!("the journal's directory: {e}");
        }
        return Ok(None);
    }
    let root = JournalRoot::derive(keyring.vault_key());
    let begun = DiskJournal::open(top, true)
        .and_then(|store| store.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound)))
        .and_then(|store| Journal::start(Box::new(store.after_crash(crashed)), root, Limits::default()));
    match begun {
        Ok(journal) => Ok(Some(journal)),
        Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => {
            log::warn!("no room for a journal ({e}): files are changed in place, as with --no-journal");
            Ok(None)
        }
        Err(e) => Err(FsError::Replay(e)),
    }
}

/// Whether a disk is read-only or full.
fn is_unwritable(e: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(e.kind(), ReadOnlyFilesystem | StorageFull | QuotaExceeded)
}

/// What a crash left, and what became of it.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Changes that stood in the journal.
    pub replayed: Replayed,
    /// Files that were being made when the power went.
    pub fresh: recover::Outcome,
}

/// Brings in what a crash left in the journal; after a power cut also mends files that were being made. `None`: nothing
/// was left. What the disk or the KMS keeps from being brought in is put aside if the replay `goes_on`; otherwise that
/// ends it, and everything stays for the next one. The caller holds the vault's lock.
pub fn replay(top: impl AsFd, keyring: &Keyring, goes_on: bool) -> Result<Option<Recovered>> {
    let Some(store) = DiskJournal::open(&top, false).map_err(FsError::Replay)? else { return Ok(None) };
    let root = JournalRoot::derive(keyring.vault_key());
    let Some(replay) = Replay::read(Box::new(store), root).map_err(FsError::Replay)? else { return Ok(None) };
    log::warn!("the vault was not unmounted: bringing in the journal's changes of {} files", replay.len());
    if replay.unreadable() > 0 {
        log::error!(
            "journal: {} logs do not verify; they are put aside in .envelopefs/lost+found",
            replay.unreadable()
        );
    }
    if replay.is_copy() {
        log::warn!(
            "files and journal were restored or copied: a file that was being written at that moment may be damaged, and \
             is left as it is; `envelopefs check` names it"
        );
    }
    let suspects = replay.suspects_since();
    let mut finder = DiskFinder::new(&top, keyring, suspects, goes_on).map_err(FsError::Replay)?;
    let mut fresh = recover::Outcome::default();
    // The logs stay until this is done too: a cut meanwhile must find them again.
    let look = || {
        let Some(born_since) = suspects else { return Ok(()) };
        log::info!("looking at files made since {}, which may not have reached the disk", born_since.0);
        fresh = recover::mend_fresh(proc_path(&top).as_ref(), keyring, born_since, &())?;
        match &fresh.trouble {
            Some((path, e)) if !goes_on => Err(named(path.as_os_str().as_bytes(), *e)),
            _ => Ok(()),
        }
    };
    let replayed = replay.run_then(&mut finder, look).map_err(FsError::Replay)?;
    for (file, why) in &replayed.refused {
        log::error!("journal: file {file}: {why}; its records are put aside in .envelopefs/lost+found");
    }
    log::info!("journal: {} files brought up to date, {} are gone", replayed.files, replayed.missing);
    Ok(Some(Recovered { replayed, fresh }))
}

/// Finds files by path, by inode number, by id.
struct DiskFinder<'k> {
    top: OwnedFd,
    keyring: &'k Keyring,
    /// Regular files by inode number; filled by the first search.
    inodes: Option<HashMap<u64, Vec<u8>>>,
    /// Regular files by id; filled by the first search that the numbers did not end.
    ids: Option<HashMap<FileId, Vec<u8>>>,
    told: Instant,
    /// Something could not be looked at: a file that is not found need not be gone.
    trouble: Option<Trouble>,
    /// After a power cut: files that are younger may be torn.
    born_since: Option<Time>,
    goes_on: bool,
}

/// Where looking failed, and with what.
type Trouble = (Vec<u8>, Errno);

/// An error that names a path of the vault, relative to its top.
fn named(path: &[u8], e: Errno) -> std::io::Error {
    let path = if path.is_empty() { ".".into() } else { String::from_utf8_lossy(path) };
    let e = std::io::Error::from(e);
    std::io::Error::new(e.kind(), format!("{path}: {e}"))
}

fn is_younger(file: &File, since: Time) -> bool {
    stat::stat_fd(file).is_ok_and(|stat| stat.btime.unwrap_or(stat.ctime) >= since)
}

impl<'k> DiskFinder<'k> {
    fn new(
        top: impl AsFd,
        keyring: &'k Keyring,
        born_since: Option<Time>,
        goes_on: bool,
    ) -> std::io::Result<Self> {
        let top = entry::open_dir_path(top, ".")?;
        let (told, trouble) = (Instant::now(), None);
        Ok(Self { top, keyring, inodes: None, ids: None, told, trouble, born_since, goes_on })
    }

    /// Opens the regular file at a path if it has this id, with its header.
    fn at(&mut self, path: &[u8], id: &FileId) -> Option<(File, FileHeader)> {
        let opened = open_at(&self.top, path).and_then(|file| Ok((xattr::get(&file, HEADER_XATTR)?, file)));
        match opened {
            Ok((header, file)) => {
                let header = FileHeader::decode(&header).ok()?;
                (header.file_id == *id).then_some((file, header))
            }
            Err(e) => {
                note(&mut self.trouble, path, e);
                None
            }
        }
    }

    fn search(&mut self, id: &FileId, inode: u64) -> Option<(File, FileHeader)> {
        if self.inodes.is_none() {
            log::info!("journal: searching the vault for a file that was renamed or removed");
            let mut found = HashMap::new();
            let mut seen = |path: &[u8], inode| {
                found.insert(inode, path.to_vec());
            };
            walk(&self.top, &mut Vec::new(), &mut seen, &mut self.trouble);
            self.inodes = Some(found);
        }
        let path = self.inodes.as_ref()?.get(&inode).cloned();
        let by_number = path.and_then(|path| self.at(&path, id));
        if by_number.is_some() {
            return by_number;
        }
        if self.ids.is_none() {
            let paths = self.inodes.as_ref()?.values();
            let (top, trouble) = (&self.top, &mut self.trouble);
            let of = |path: &Vec<u8>| {
                let header = open_at(top, path).and_then(|file| xattr::get(&file, HEADER_XATTR));
                let header = header.inspect_err(|e| note(trouble, path, *e)).ok()?;
                Some((FileHeader::decode(&header).ok()?.file_id, path.clone()))
            };
            self.ids = Some(paths.filter_map(of).collect());
        }
        let path = self.ids.as_ref()?.get(id).cloned();
        path.and_then(|path| self.at(&path, id))
    }
}

impl Finder for DiskFinder<'_> {
    fn find(&mut self, id: &FileId, inode: u64, paths: &[Vec<u8>], gone: bool) -> Found {
        let by_path = paths.iter().find_map(|path| self.at(path, id));
        let found = by_path.or_else(|| if gone { None } else { self.search(id, inode) });
        let Some((file, header)) = found else {
            return match &self.trouble {
                None => Found::Missing,
                Some((path, e)) if recover::may_pass(*e) => Found::Failed(named(path, *e)),
                Some((path, e)) => {
                    Found::Unusable(format!("it may be in what cannot be read: {}", named(path, *e)))
                }
            };
        };
        match self.keyring.open_file(&header) {
            Ok(keys) => {
                let fresh = self.born_since.is_some_and(|since| is_younger(&file, since));
                Found::File(Box::new(DiskFile(file)), keys, fresh)
            }
            Err(e @ (KeyError::Foreign | KeyError::Header(_) | KeyError::Uri { .. })) => {
                Found::Unusable(e.to_string())
            }
            // Its key may be had another day.
            Err(e) => Found::Failed(std::io::Error::other(format!("the key of file {id}: {e}"))),
        }
    }

    fn goes_on(&self) -> bool {
        self.goes_on
    }

    fn progress(&mut self, done: usize, all: usize) {
        if self.told.elapsed() >= PATIENCE {
            self.told = Instant::now();
            log::info!("journal: {done} of {all} files");
        }
    }
}

/// Opens a regular file for reading and writing, following no symlink on the way.
fn open_at(top: &OwnedFd, path: &[u8]) -> rustix::io::Result<File> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match std::str::from_utf8(part) {
            Ok(part) if !matches!(part, "" | "." | "..") => parts.push(part),
            _ => return Err(Errno::INVAL),
        }
    }
    let (name, above) = parts.split_last().ok_or(Errno::INVAL)?;
    let mut dir = entry::open_dir_path(top, ".")?;
    for part in above {
        dir = entry::open_dir_path(&dir, part)?;
    }
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(&dir, *name, flags, Mode::empty()) {
        // Its mode may keep even its owner from writing.
        Err(Errno::ACCESS) => {
            let path = entry::open_path(&dir, name)?;
            crate::vault::access::open_content(&path, crate::vault::access::Want::Write)?.0
        }
        other => File::from(other?),
    };
    if stat::stat_fd(&file)?.kind() != S_IFREG {
        return Err(Errno::INVAL);
    }
    Ok(file)
}

/// Remembers an error that says nothing about whether a file is there, one that may pass rather than another.
fn note(trouble: &mut Option<Trouble>, path: &[u8], e: Errno) {
    let absent =
        [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::INVAL, Errno::NODATA, Errno::ISDIR, Errno::NXIO];
    let heavier =
        trouble.as_ref().is_none_or(|(_, before)| recover::may_pass(e) && !recover::may_pass(*before));
    if !absent.contains(&e) && heavier {
        *trouble = Some((path.to_vec(), e));
    }
}

/// Calls `found` with path and inode number of every regular file; notes what cannot be listed.
fn walk(dir: &OwnedFd, path: &mut Vec<u8>, found: &mut dyn FnMut(&[u8], u64), trouble: &mut Option<Trouble>) {
    let listed = match entry::open_dir_read(dir, true) {
        Ok(listed) => listed,
        Err(e) => return note(trouble, path, e),
    };
    let mut listing = Listing::new(listed);
    let mut below = Vec::new();
    loop {
        let entry = match listing.peek() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(e) => {
                note(trouble, path, e);
                break;
            }
        };
        let (name, inode, mut kind) = (entry.name.clone(), entry.ino, entry.kind);
        listing.advance();
        let Ok(text) = String::from_utf8(name) else { continue };
        if matches!(text.as_str(), "." | "..") || (path.is_empty() && text == VAULT_DIR) {
            continue;
        }
        if kind == 0 {
            let stat = stat::stat_at(dir, &text).inspect_err(|e| note(trouble, path, *e));
            kind = stat.map_or(0, |stat| stat.kind());
        }
        let before = path.len();
        if before > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(text.as_bytes());
        match kind {
            S_IFREG => found(path, inode),
            S_IFDIR => below.push(text),
            _ => {}
        }
        path.truncate(before);
    }
    // One descriptor a level is enough.
    drop(listing);
    if path.iter().filter(|b| **b == b'/').count() >= MAX_DEPTH {
        return note(trouble, path, Errno::NAMETOOLONG);
    }
    for name in below {
        let inner = match entry::open_dir_path(dir, &name) {
            Ok(inner) => inner,
            Err(e) => {
                note(trouble, path, e);
                continue;
            }
        };
        let before = path.len();
        if before > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        walk(&inner, path, found, trouble);
        path.truncate(before);
    }
}
