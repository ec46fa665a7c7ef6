//! The way back: from a snapshot to a vault. What was written is compared with what should have been.
//!
//! Refuses a target that cannot hold the headers, or not all of the data, before it writes. Content that is there
//! already is taken if its bytes are right, so that an interrupted restore goes on, and a damaged vault is mended by
//! restoring over it. A file appears under its name only when it is whole. Nothing is removed that the snapshot has
//! not got. A vault's own files are not replaced by those of another vault, nor by older ones that open less (`own`).

mod links;
pub(super) mod own;
pub(super) mod place;
mod select;

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crossbeam::channel::{Receiver, bounded};
use rustix::fs::{Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::Serialize;

use super::error::{BackupError, Result};
use super::meter::Meter;
use super::repo::{Item, Reader, Snapshot, sha256};
use crate::format::header::{HEADER_XATTR, MAX_HEADER};
use crate::format::journal::JOURNAL_DIR;
use crate::format::names::{LOST_FOUND, TMP_PREFIX, VAULT_DIR};
use crate::vault::file::LowerFile;
use crate::vault::journal::note_restored;
use crate::vault::{DiskFile, FreshFile, VaultLock, entry};
use links::{Links, Name};
use own::{Kept, Own, has_logs};
use place::{Contents, Placer, Step, is_plain};
use select::Selection;
pub use select::{Journal, journal};

/// Files that wait for a worker.
const QUEUE: usize = 64;
/// Of a directory whose name another directory has.
const ANOTHER_DIRECTORY: &str = "another directory, with another id, is in its place: under this one's id nothing in it would \
     show; move it away, or restore to another directory";
/// Space that is left free beside the files' bytes: their inodes, directories, xattrs.
const SLACK: u64 = 8 << 20;

/// What to restore, and how.
#[derive(Clone, Debug)]
pub struct Restore {
    /// Lower path; empty for all. The directories above it come along and, where the target is no vault, the volume config.
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
    /// What became of the vault's own files that were there.
    pub notes: Vec<String>,
}

/// What there is to restore.
#[derive(Debug, Default)]
struct Survey {
    bytes: u64,
    header: usize,
}

/// The chunks of a repository.
struct Stored<'r>(&'r Reader);

impl Contents for Stored<'_> {
    fn is_there(&self, file: &DiskFile, item: &Item) -> Step<bool> {
        let mut at = 0;
        for chunk in 0..item.content.chunks() {
            let len = self.0.chunk_len(&item.content, chunk).map_err(|e| e.to_string())?;
            let mut bytes = vec![0; usize::try_from(len).map_err(|e| e.to_string())?];
            let read = file.read_at(&mut bytes, at).map_err(|e| e.to_string())?;
            if read < bytes.len() || item.content.digest(chunk) != Some(sha256(&bytes)) {
                return Ok(false);
            }
            at += len;
        }
        Ok(at == item.size)
    }

    fn each(&self, item: &Item, piece: &mut dyn FnMut(&[u8]) -> Step<()>) -> Step<()> {
        for chunk in 0..item.content.chunks() {
            piece(&self.0.chunk(&item.content, chunk).map_err(|e| e.to_string())?)?;
        }
        Ok(())
    }
}

/// Calls its argument with each entry, in an order in which they can be made.
pub(super) type Items<'a> = &'a mut dyn FnMut(&mut dyn FnMut(Item) -> Result<()>) -> Result<()>;

/// Restores a snapshot, or a part of it, to `target`: a new or empty directory, or a vault.
pub fn restore(
    reader: &Reader,
    snapshot: &Snapshot,
    target: &Path,
    options: &Restore,
    meter: &Arc<Meter>,
) -> Result<Restored> {
    if options.below.as_os_str().is_empty() {
        reader.read_whole_packs();
    }
    let mut selection = Selection::new(reader, snapshot, &options.below, target)?;
    let survey = survey(&selection, target)?;
    probe(target, survey.bytes, survey.header)?;
    let (top, _lock) = begin(target)?;
    let mut notes = Vec::new();
    if selection.brings_own {
        (selection.kept, notes) = keep_own(&top, target, &selection.comes)?;
    }
    if selection.is_whole() {
        put_journal_aside(&top).map_err(BackupError::errno(target))?;
        if selection.journal != Journal::None {
            // Before the first log: also a restore that is cut off leaves none that is taken for these files' own.
            note_restored(&top).map_err(BackupError::errno(target))?;
        }
    }
    let stored = Stored(reader);
    let placer = Placer::new(&stored, top, meter);
    placer.place_all(options.jobs, &mut |each| selection.each(each))?;
    let mut done = placer.done.into_inner();
    done.notes = notes;
    done.problems.append(&mut selection.problems);
    done.problems.sort();
    Ok(done)
}

/// Refuses a target whose journal holds what was not brought to its place: it is about the files that are there.
pub(super) fn refuse_pending(target: &Path) -> Result<()> {
    if !has_logs(target) {
        return Ok(());
    }
    // A mount's journal is its own affair.
    let (_top, _lock) = begin(target)?;
    Err(BackupError::Pending(target.to_owned()))
}

/// Makes the target where it is missing, opens it, and keeps mounts out.
pub(super) fn begin(target: &Path) -> Result<(OwnedFd, Option<VaultLock>)> {
    std::fs::create_dir_all(target).map_err(BackupError::io(target))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(target, flags, Mode::empty()).map_err(BackupError::errno(target))?;
    let lock = alone(&top, target)?;
    Ok((top, lock))
}

/// Puts aside what will be replaced of the vault's own files. Gives what stays, and what is to be said.
pub(super) fn keep_own(top: &OwnedFd, target: &Path, comes: &Own) -> Result<(Kept, Vec<String>)> {
    let there = Own::of_vault(target)?;
    let kept = there.kept(comes);
    let notes = there.put_aside(top, comes, kept).map_err(BackupError::errno(target))?;
    Ok((kept, notes))
}

fn survey(selection: &Selection<'_>, target: &Path) -> Result<Survey> {
    let mut found = Survey::default();
    selection.each(&mut |item| {
        if item.kind == libc::S_IFREG {
            let there =
                std::fs::symlink_metadata(target.join(&item.path)).is_ok_and(|m| m.len() == item.size);
            found.bytes = found.bytes.saturating_add(if there { 0 } else { item.size });
            let header = item.xattrs.iter().find(|(name, _)| name == HEADER_XATTR);
            found.header = found.header.max(header.map_or(0, |(_, value)| value.len()));
        }
        Ok(())
    })?;
    Ok(found)
}

/// Whether the target's filesystem keeps the longest header and has room. Leaves nothing behind.
pub(super) fn probe(target: &Path, bytes: u64, header: usize) -> Result<()> {
    let there = target.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(there, flags, Mode::empty()).map_err(BackupError::errno(there))?;
    let temporary = || format!("{TMP_PREFIX}probe.{}", std::process::id());
    let fresh = FreshFile::make(dir.as_fd(), (0o600, 0), temporary).map_err(BackupError::errno(there))?;
    let header = vec![0; header.clamp(1, MAX_HEADER)];
    match fresh.set_xattr(HEADER_XATTR, &header) {
        Err(Errno::OPNOTSUPP | Errno::PERM) => return Err(BackupError::NoXattrs(there.to_owned())),
        other => other.map_err(BackupError::errno(there))?,
    }
    let space = rustix::fs::fstatvfs(&dir).map_err(BackupError::errno(there))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let need = bytes.saturating_add(SLACK);
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
    own::lost_found(&own)?;
    let aside = format!("{LOST_FOUND}/{JOURNAL_DIR}-{}", std::process::id());
    match entry::rename(&own, JOURNAL_DIR, &own, &aside, RenameFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

impl Placer<'_> {
    /// Puts all entries in their places, files by several threads.
    pub(super) fn place_all(&self, jobs: usize, all: Items<'_>) -> Result<()> {
        let mut dirs = Vec::new();
        // Directories whose names others have.
        let mut closed: Vec<PathBuf> = Vec::new();
        let mut links = Links::default();
        let (sender, items) = bounded::<Item>(QUEUE);
        std::thread::scope(|scope| {
            for _ in 0..jobs.clamp(1, 64) {
                let items: Receiver<Item> = items.clone();
                scope.spawn(move || items.iter().for_each(|item| self.note(&item, self.file(&item))));
            }
            drop(items);
            all(&mut |item| {
                match item.kind {
                    _ if !is_plain(&item.path) => {
                        self.note(&item, Err("its path leads out of the vault".into()))
                    }
                    _ if closed.iter().any(|dir| item.path.starts_with(dir)) => {
                        self.note(&item, Err("its directory is not there: another one has its name".into()));
                    }
                    libc::S_IFDIR => match self.dir(&item) {
                        Ok(true) => dirs.push(item),
                        Ok(false) => {
                            self.note(&item, Err(ANOTHER_DIRECTORY.into()));
                            closed.push(item.path);
                        }
                        Err(why) => self.note(&item, Err(why)),
                    },
                    kind => match links.take(item) {
                        None => {}
                        Some(item) if kind == libc::S_IFREG => drop(sender.send(item)),
                        Some(item) => self.note(&item, self.other(&item)),
                    },
                }
                Ok(())
            })?;
            drop(sender);
            Ok::<(), BackupError>(())
        })?;
        let failed: HashSet<PathBuf> =
            self.done.lock().problems.iter().map(|(path, _)| path.clone()).collect();
        for Name { first, path, item } in links.left() {
            let given = if failed.contains(&first) {
                Err(format!("its other name, {}, is not right", first.display()))
            } else {
                self.link(&first, &path)
            };
            match item {
                Some(item) => self.note(&item, given),
                // It was counted when its older state was written.
                None => self.done.lock().problems.extend(given.err().map(|why| (path, why))),
            }
        }
        // Their times last: what is made in a directory changes them.
        for dir in dirs.iter().rev() {
            self.note(dir, self.finish_dir(dir));
        }
        rustix::fs::syncfs(&self.top).map_err(BackupError::errno(Path::new("syncfs")))
    }
}
