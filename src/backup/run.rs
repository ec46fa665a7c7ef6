//! One run of a backup: passes over the vault until everything is stored that can be, then one snapshot.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustic_core::repofile::{SnapshotFile, StringList};
use rustic_core::{BackupOptions, IndexedIdsStatus, ParentOptions, Repository};
use rustix::io::Errno;
use serde::Serialize;

use super::daemon::{Control, Daemon};
use super::error::{BackupError, Result};
use super::hook::SnapshotHook;
use super::meter::Reading;
use super::repo::{INCOMPLETE, Repo, Snapshot, host};
use super::running::Running;
use super::source::{Before, Pass, ROOT, VaultSource};
use super::walk::{Walk, open_top};
use crate::vault::VaultLock;

/// Passes over a vault: files that changed while they were read are read again in the next one, and what was moved meanwhile is
/// found at its new place.
const PASSES: u32 = 4;
/// Before each further pass, so that what is changing may come to rest.
const PAUSE: Duration = Duration::from_millis(200);
/// What may use the library's parents: snapshots of the same vault.
const GROUP: &str = "label,paths";

/// How to run.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Read every file, whatever the last snapshot says.
    pub all: bool,
    /// Read a seventh of the files that did not change, another one each day.
    pub paranoid: Option<u64>,
    /// Id of the vault, as snapshots carry it.
    pub vault_id: String,
    /// Makes a snapshot of the filesystem below, which is stored in the vault's stead.
    pub hook: Option<SnapshotHook>,
}

/// How a run ended.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// What was stored.
    pub snapshot: Snapshot,
    /// Files that are new since the snapshot before, that changed, and that did not.
    pub new: u64,
    /// See `new`.
    pub changed: u64,
    /// See `new`.
    pub unchanged: u64,
    /// Passes over the vault.
    pub passes: u32,
    /// What is missing in the snapshot or wrong with it: lower path and reason.
    pub problems: Vec<(PathBuf, String)>,
    /// The vault was mounted, and its daemon was asked to bring files to their places.
    pub mounted: bool,
    /// A snapshot of the filesystem below was stored: everything is as it was at one moment.
    pub frozen: bool,
    /// Why such a snapshot, of this run or one before, is not removed.
    pub left: Option<String>,
    /// Counters.
    pub meter: Reading,
}

impl RunReport {
    /// Whether everything of the vault is in the snapshot, whole, and nothing is left to do.
    pub fn is_complete(&self) -> bool {
        self.problems.is_empty() && self.left.is_none()
    }
}

/// What keeps a vault readable while it is read.
#[derive(Debug)]
pub struct Access {
    /// The daemon of the mount that the vault has, if it has one with a journal.
    pub daemon: Option<Arc<dyn Daemon>>,
    /// Nobody else mounts the vault while this is held, but with `--shared`.
    pub lock: Option<VaultLock>,
    /// What lies in the journal is true: nobody changes it.
    pub journal: bool,
}

/// Asks the daemon where there is a mount; else keeps mounts out, but for shared ones, which write in place.
pub fn access(vault: &Path) -> Result<Access> {
    let top = open_top(vault)?;
    match VaultLock::take(&top, true) {
        Ok(lock) => Ok(Access { daemon: None, lock: Some(lock), journal: true }),
        Err(Errno::WOULDBLOCK) => {
            let daemon = Control::connect(vault).map_err(|e| BackupError::Io {
                path: vault.to_owned(),
                source: std::io::Error::new(
                    e.kind(),
                    format!("the vault is mounted, or being checked, and its daemon is not to be asked: {e}"),
                ),
            })?;
            Ok(Access { daemon: Some(Arc::new(daemon)), lock: None, journal: false })
        }
        Err(e) => Err(BackupError::errno(vault)(e)),
    }
}

/// The outcome of the passes over a vault.
struct Passed {
    snapshot: SnapshotFile,
    problems: Vec<(PathBuf, String)>,
    passes: u32,
}

impl Repo {
    /// Stores the vault as it is now. An error means that nothing was stored.
    pub fn run(&self, vault: &Path, options: &RunOptions) -> Result<RunReport> {
        self.backend.begin_run();
        // The store's failure is what it was, not what became of it on the way through the library.
        self.run_once(vault, options).map_err(|e| self.backend.failure().unwrap_or(e))
    }

    fn run_once(&self, vault: &Path, options: &RunOptions) -> Result<RunReport> {
        let mut running = Running::begin(self)?;
        let census = self.census()?;
        let lossy = census.lost > 0;
        if running.cut_off {
            // What it stored is in packs that no index knows; now the index knows them.
            log::info!("the last run did not end: looking for what it stored");
            self.index_packs(census.unknown)?;
        }
        let frozen = options.hook.as_ref().map(|hook| running.freeze(hook, vault)).transpose()?;
        let (frozen, mut mounted) = frozen.map_or((None, false), |(frozen, mounted)| (Some(frozen), mounted));
        let was_frozen = frozen.is_some();
        let stored = self.store(frozen.as_ref().map_or(vault, |frozen| &frozen.vault), options, lossy);
        let left = running.thaw(frozen);
        let (Passed { snapshot, problems, passes }, beside) = stored?;
        mounted |= beside;
        running.end();
        let summary = snapshot.summary.clone().unwrap_or_default();
        Ok(RunReport {
            snapshot: Snapshot::of(&snapshot),
            new: summary.files_new,
            changed: summary.files_changed,
            unchanged: summary.files_unmodified,
            passes,
            problems,
            mounted,
            frozen: was_frozen,
            left,
            meter: self.meter.read(),
        })
    }

    /// Stores what is in a vault, and tells whether it is mounted.
    fn store(&self, vault: &Path, options: &RunOptions, lossy: bool) -> Result<(Passed, bool)> {
        let access = access(vault)?;
        let mut passed = self.passes(vault, &access, options, lossy)?;
        passed.snapshot = self.publish(passed.snapshot, passed.problems.is_empty())?;
        Ok((passed, access.daemon.is_some()))
    }

    /// Reads the vault until everything is stored that can be. `lossy`: an index names packs that are not there.
    fn passes(&self, vault: &Path, access: &Access, options: &RunOptions, lossy: bool) -> Result<Passed> {
        let mut parent = self.parent(options)?;
        self.backend.hold_snapshots(true);
        let (mut first, mut done) = (None, None);
        let mut before = Before::default();
        for pass_number in 1..=PASSES {
            if let Some(daemon) = &access.daemon {
                daemon.checkpoint().map_err(BackupError::io(vault))?;
            }
            let paranoid = options.paranoid.filter(|_| pass_number == 1);
            let (ends, daemon) =
                ((Arc::clone(&self.meter), Arc::clone(&self.backend)), access.daemon.clone());
            let pass = Arc::new(Pass::new(ends, daemon, paranoid, before, self.state.clone()));
            let walk = Walk::new(vault, access.journal)?;
            let census = lossy.then(|| self.census()).transpose()?;
            let repo = self.indexed_ids(census)?;
            let snapshot = self.pass(&repo, walk, &pass, parent.as_deref(), options)?;
            parent = Some(snapshot.id.to_hex().to_string());
            first.get_or_insert_with(|| snapshot.summary.clone());
            before = pass.learned();
            let changing = before.caught_not.len();
            let again = (changing > 0 || pass.has_lost_sight()) && pass_number < PASSES;
            done = Some((snapshot, pass, pass_number));
            if !again {
                break;
            }
            log::debug!("pass {pass_number}: {changing} files changed while they were read");
            std::thread::sleep(PAUSE * pass_number);
        }
        let (mut snapshot, pass, passes) = done.expect("there is at least one pass");
        let mut problems = pass.problems();
        let Before { caught_not, too_large } = pass.learned();
        problems.extend(caught_not.into_iter().map(|path| {
            let large =
                too_large.get(&path).map_or_else(String::new, |why| format!(", and is not copied: {why}"));
            (path, format!("it changes all the time{large}"))
        }));
        // The counts of the first pass tell what is new since the last run.
        if let (Some(Some(first)), Some(last)) = (first, &mut snapshot.summary) {
            last.files_new = first.files_new;
            last.files_changed = first.files_changed;
            last.files_unmodified = first.files_unmodified;
        }
        Ok(Passed { snapshot, problems, passes })
    }

    /// The newest snapshot of the vault.
    fn parent(&self, options: &RunOptions) -> Result<Option<String>> {
        if options.all {
            return Ok(None);
        }
        let of_it = self.snapshots()?.into_iter().rev().find(|s| s.vault == options.vault_id);
        Ok(of_it.map(|s| s.id))
    }

    fn pass(
        &self,
        repo: &Repository<IndexedIdsStatus>,
        walk: Walk,
        pass: &Arc<Pass>,
        parent: Option<&str>,
        options: &RunOptions,
    ) -> Result<SnapshotFile> {
        let mut parents = ParentOptions::default();
        parents.force = parent.is_none();
        parents.parents = parent.map(str::to_owned).into_iter().collect();
        parents.group_by = GROUP.parse().ok();
        // The library compares inode numbers where this is set, and does not where it is not.
        parents.ignore_inode = true;
        let mut backup = BackupOptions::default();
        backup.parent_opts = parents;
        backup.no_scan = true;
        let mut snapshot =
            SnapshotFile { label: options.vault_id.clone(), hostname: host(), ..SnapshotFile::default() };
        snapshot.program_version = concat!("envelopefs ", env!("CARGO_PKG_VERSION")).into();
        let source = VaultSource::new(walk, Arc::clone(pass));
        repo.archive(&backup, &source, snapshot, &[PathBuf::from(ROOT)]).map_err(self.failed())
    }

    /// Writes the last pass's snapshot.
    fn publish(&self, mut snapshot: SnapshotFile, complete: bool) -> Result<SnapshotFile> {
        self.backend.hold_snapshots(false);
        snapshot.parent = None;
        snapshot.parents.clear();
        let mut tags = StringList::default();
        if !complete {
            tags.add(INCOMPLETE.to_owned());
        }
        snapshot.tags = tags;
        self.repo.save_snapshots(vec![snapshot.clone()]).map_err(self.failed())?;
        if let Some(id) = self.backend.last_snapshot() {
            snapshot.id = id.into();
        }
        Ok(snapshot)
    }
}
