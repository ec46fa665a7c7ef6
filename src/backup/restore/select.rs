//! What comes back of a snapshot: all of it, or one path with what it needs to be seen.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::super::error::{BackupError, Result};
use super::super::repo::{Item, Reader, Snapshot};
use super::own::{Kept, Own, is_log, own_path};
use super::refuse_pending;
use crate::format::config::CONFIG_FILE;
use crate::format::header::DIR_XATTR;
use crate::format::journal::{HEADER, JOURNAL_DIR};
use crate::format::keks::KEKS_FILE;
use crate::format::names::{LowerName, VAULT_DIR, parse, sidecar_name};

/// What is to be restored.
#[derive(Debug)]
pub(super) struct Selection<'s> {
    reader: &'s Reader,
    snapshot: &'s Snapshot,
    below: &'s Path,
    /// Entries that a part needs beside itself, in an order in which they can be made.
    with: Vec<Item>,
    /// What of the target's own files stays.
    pub(super) kept: Kept,
    /// Whether the vault's own files come back at all.
    pub(super) brings_own: bool,
    /// The vault's own files of the snapshot.
    pub(super) comes: Own,
    /// Those of them that are damaged, and do not come.
    damaged: Vec<PathBuf>,
    /// The journal that the snapshot has.
    pub(super) journal: Journal,
    /// What cannot come back as it was.
    pub(super) problems: Vec<(PathBuf, String)>,
}

impl<'s> Selection<'s> {
    /// Refuses a target that this snapshot, or this part of it, must not come over. Writes nothing.
    pub(super) fn new(
        reader: &'s Reader,
        snapshot: &'s Snapshot,
        below: &'s Path,
        target: &Path,
    ) -> Result<Self> {
        let mut problems = Vec::new();
        let comes = Own::of_snapshot(reader, snapshot, &mut problems)?;
        let there = Own::of_vault(target)?;
        let from = comes.vault_id(Path::new(&snapshot.id))?;
        there.refuse_another(target, from.as_deref().unwrap_or(&snapshot.vault))?;
        let kept = there.kept(&comes);
        let journal = journal(reader, snapshot)?;
        let damaged = problems.iter().map(|(path, _)| path.clone()).collect();
        let brings_own = below.as_os_str().is_empty() || below.starts_with(VAULT_DIR) || !there.is_vault();
        let with = Vec::new();
        let mut this =
            Self { reader, snapshot, below, with, kept, brings_own, comes, damaged, journal, problems };
        if !below.as_os_str().is_empty() {
            this.part(&there, target)?;
        }
        Ok(this)
    }

    /// Whether all of it comes back.
    pub(super) fn is_whole(&self) -> bool {
        self.below.as_os_str().is_empty()
    }

    fn part(&mut self, there: &Own, target: &Path) -> Result<()> {
        if self.below.starts_with(own_path(JOURNAL_DIR)) {
            return Err(BackupError::JournalAlone(self.below.to_owned()));
        }
        if there.is_vault() {
            refuse_pending(target)?;
            if there.vault_id(target)?.is_none() {
                let why = "it does not decode: restore the whole vault, or to another directory".into();
                return Err(BackupError::Format { path: target.join(own_path(CONFIG_FILE)), why });
            }
        }
        let mut above: Vec<&Path> = self.below.ancestors().collect();
        above.reverse();
        for path in above {
            self.sidecar(path)?;
            if path != self.below {
                let dir = self.reader.item(self.snapshot, path)?;
                // Those of a vault that has them stay as they are.
                if !there.is_vault() || !is_same_dir(&dir, target) {
                    self.with.push(dir);
                }
            }
        }
        if !there.is_vault() && !self.below.starts_with(VAULT_DIR) {
            self.with.push(self.reader.item(self.snapshot, Path::new(VAULT_DIR))?);
            self.with.push(self.reader.item(self.snapshot, &own_path(CONFIG_FILE))?);
            match self.reader.item(self.snapshot, &own_path(KEKS_FILE)) {
                Err(BackupError::NoPath(..)) => {}
                other => self.with.push(other?),
            }
        }
        if self.journal == Journal::Changes && !self.below.starts_with(VAULT_DIR) {
            let why = "the snapshot has changes in its journal, which come back with the whole vault only: what is \
                       restored may lack them, and may not open without them";
            self.problems.push((own_path(JOURNAL_DIR), why.into()));
        }
        if there.is_vault() {
            let (reader, snapshot, below) = (self.reader, self.snapshot, self.below);
            reader.walk(snapshot, below, &mut |item| {
                self.problems.extend(there.lacks(&item).map(|why| (item.path, why)));
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The file that holds a long name, without which nothing shows under it.
    fn sidecar(&mut self, path: &Path) -> Result<()> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
        let LowerName::Long(hash) = parse(name.as_bytes()) else { return Ok(()) };
        match self.reader.item(self.snapshot, &dir.join(sidecar_name(&hash))) {
            Err(BackupError::NoPath(..)) => {
                let why = "the snapshot has no sidecar with its name: it cannot be shown".into();
                self.problems.push((path.to_owned(), why));
            }
            other => self.with.push(other?),
        }
        Ok(())
    }

    /// Calls `each` with every entry, in an order in which they can be made.
    pub(super) fn each(&self, each: &mut dyn FnMut(Item) -> Result<()>) -> Result<()> {
        let whole = self.is_whole();
        let mut each = |item: Item| {
            let is_journal = item.path.starts_with(own_path(JOURNAL_DIR));
            let stays = self.kept.stays(&item.path) || self.damaged.contains(&item.path);
            if stays || (is_journal && !whole) { Ok(()) } else { each(item) }
        };
        self.with.iter().cloned().try_for_each(&mut each)?;
        self.reader.walk(self.snapshot, self.below, &mut each)
    }
}

/// What of a journal a snapshot has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Journal {
    /// None: every file is as it lies.
    None,
    /// Logs with nothing in them.
    Empty,
    /// Changes that are not in their places.
    Changes,
}

/// The journal of a snapshot.
pub fn journal(reader: &Reader, snapshot: &Snapshot) -> Result<Journal> {
    let found = match reader.children(snapshot, &own_path(JOURNAL_DIR)) {
        Err(BackupError::NoPath(..)) => Vec::new(),
        other => other?,
    };
    let logs = found.iter().filter(|item| is_log(&item.path));
    Ok(logs.fold(Journal::None, |most, item| match most {
        Journal::Changes => most,
        _ if item.size > HEADER as u64 => Journal::Changes,
        _ => Journal::Empty,
    }))
}

/// Whether the target has this directory, the same one, by its id.
fn is_same_dir(item: &Item, target: &Path) -> bool {
    let id = item.xattrs.iter().find(|(name, _)| name == DIR_XATTR).map(|(_, id)| &id[..]);
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
    let there = rustix::fs::open(target.join(&item.path), flags, rustix::fs::Mode::empty());
    let found = there.and_then(|fd| crate::vault::xattr::get(fd, DIR_XATTR));
    id.zip(found.ok().as_deref()).is_some_and(|(a, b)| a == b)
}
