//! `rewrap`, `rekey`, `keys`: work on all headers of a vault.

use std::fs::File;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use rustix::io::Errno;
use serde::Serialize;

use super::args::{KeysArgs, RekeyArgs, RewrapArgs};
use super::error::CliError;
use super::exit::Exit;
use super::inspect::vault_of;
use super::{signals, walk};
use crate::backup::Control;
use crate::format::config::CONFIG_FILE;
use crate::format::names::VAULT_DIR;
use crate::fs;
use crate::keys::{self, Keyring};
use crate::upkeep::{self, Failures, Inventory, Mounts, Outcome, Pace, UpkeepError, Watch};
use crate::vault::VaultLock;

/// Redraws of the progress bar.
const TICK: Duration = Duration::from_millis(100);
/// Files at once where nobody says: a provider far away is what is waited for.
const JOBS: usize = 8;

#[derive(Serialize)]
struct Report {
    files: u64,
    changed: u64,
    without_header: u64,
    skipped: Vec<Named>,
    failed: Vec<Named>,
    failed_count: u64,
    interrupted: bool,
}

#[derive(Serialize)]
struct Named {
    lower: PathBuf,
    why: String,
}

#[derive(Serialize)]
struct Key {
    row: u8,
    uri: Option<String>,
    active: bool,
    version: Option<u16>,
    files: u64,
}

#[derive(Serialize)]
struct Keys {
    vault: PathBuf,
    files: u64,
    without_header: u64,
    unreadable_header: u64,
    keys: Vec<Key>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interrupted_rewrap: Option<String>,
}

pub(super) fn rewrap(args: &RewrapArgs) -> Result<Exit, CliError> {
    keys::read_config(&args.vault)?;
    let unlock = args.key.unlock_vault_with(&args.vault, args.to.as_deref())?;
    let watched = Watched::start(&args.vault)?;
    let keyring = keys::open_vault(&args.vault, &unlock)?;
    let vault = args.vault.canonicalize().map_err(CliError::io(&args.vault))?;
    let alone = upkeep::WorkLock::take(&vault)?;
    if let Some(uri) = &args.to {
        match keyring.add_recipient(uri, true) {
            Ok(row) => eprintln!("new files are wrapped with key {row}, {uri}"),
            Err(e) => return Err(e.into()),
        }
    }
    let pace = Pace { jobs: args.jobs.unwrap_or(JOBS), rate: args.rate };
    let outcome = watched.run(|watch| {
        upkeep::rewrap(&alone, &keyring, args.only_key_version, pace, watch, &MountOf(&vault))
    })?;
    let exit = report(&outcome, args.json, "rewrapped");
    if outcome.interrupted {
        eprintln!(
            "interrupted: what is done is done; go on with: envelopefs rewrap {}",
            args.vault.display()
        );
    }
    Ok(exit)
}

pub(super) fn rekey(args: &RekeyArgs) -> Result<Exit, CliError> {
    let is_vault = args.path.join(VAULT_DIR).join(CONFIG_FILE).is_file();
    let vault = if is_vault {
        args.path.canonicalize().map_err(CliError::io(&args.path))?
    } else {
        vault_of(&args.path).ok_or_else(|| CliError::NotALowerFile(args.path.clone()))?
    };
    let unlock = args.key.unlock_vault(&vault)?;
    let watched = Watched::start(&vault)?;
    let keyring = keys::open_vault(&vault, &unlock)?;
    let _alone = alone(&vault, &keyring)?;
    if !is_vault {
        let file = args.path.canonicalize().map_err(CliError::io(&args.path))?;
        let below = file.strip_prefix(&vault).map_err(|_| CliError::NotALowerFile(args.path.clone()))?;
        upkeep::rekey_file(&vault, below, &keyring)?;
        return Ok(Exit::Ok);
    }
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let pace = Pace { jobs: args.jobs.unwrap_or_else(cores), rate: None };
    let outcome = watched.run(|watch| upkeep::rekey_vault(&vault, &keyring, pace, watch))?;
    Ok(report(&outcome, args.json, "rekeyed"))
}

/// The mount of a vault on this machine, asked by its socket.
pub(super) struct MountOf<'a>(pub(super) &'a Path);

impl Mounts for MountOf<'_> {
    fn follow(&self) -> bool {
        let asked = Control::connect(self.0).and_then(|daemon| daemon.follow_keys());
        asked
            .inspect_err(|e| log::warn!("the daemon of the mount is not to be asked ({e}): waiting a moment"))
            .is_ok()
    }
}

/// Takes the vault and brings its journal in: a change that waits there is of the old file.
fn alone(vault: &Path, keyring: &Keyring) -> Result<VaultLock, CliError> {
    let top = File::open(vault).map_err(CliError::io(vault))?;
    let lock = VaultLock::take(&top, false).map_err(|e| match e {
        Errno::WOULDBLOCK => CliError::InUse(vault.to_owned()),
        other => CliError::Io(vault.to_owned(), other.into()),
    })?;
    fs::replay(&top, keyring, false).map_err(|e| CliError::Top(vault.to_owned(), e))?;
    Ok(lock)
}

pub(super) fn keys(args: &KeysArgs) -> Result<Exit, CliError> {
    let config = keys::read_config(&args.vault)?;
    let found = all_headers(&args.vault)?;
    let key = |(used, files): (&upkeep::Used, &u64)| {
        let row = config.keys.iter().find(|key| key.index == used.row);
        Key {
            row: used.row,
            uri: row.map(|key| key.uri.clone()),
            active: row.is_some_and(|key| key.active),
            version: used.version,
            files: *files,
        }
    };
    let report = Keys {
        vault: args.vault.clone(),
        files: found.files,
        without_header: found.bare,
        unreadable_header: found.unread,
        keys: found.copies.iter().map(key).collect(),
        interrupted_rewrap: upkeep::interrupted(&args.vault),
    };
    if args.json {
        println!("{}", super::json(&report));
    } else {
        print_keys(&report);
    }
    Ok(if found.interrupted { Exit::Interrupted } else { Exit::Ok })
}

/// Every header of a vault, counted.
pub(super) fn all_headers(vault: &Path) -> Result<Inventory, CliError> {
    let watched = Watched::start(vault)?;
    let vault = vault.canonicalize().map_err(CliError::io(vault))?;
    let pace = Pace { jobs: JOBS, rate: None };
    watched.run(|watch| upkeep::inventory(&vault, pace, watch))
}

fn print_keys(report: &Keys) {
    println!("{:>10}  row  version  key", "files");
    for key in &report.keys {
        let version = key.version.map_or("-".to_owned(), |v| v.to_string());
        let uri = key.uri.as_deref().unwrap_or("(not in the volume config)");
        let retired = if key.active || key.uri.is_none() { "" } else { " (retired)" };
        println!("{:>10}  {:<3}  {version:<7}  {uri}{retired}", key.files, key.row);
    }
    println!("{} files", report.files);
    if report.without_header > 0 {
        println!("{} files have no header (see: envelopefs check)", report.without_header);
    }
    if report.unreadable_header > 0 {
        println!(
            "{} files have a header that cannot be read or does not decode (see: envelopefs check)",
            report.unreadable_header
        );
    }
    if let Some(target) = &report.interrupted_rewrap {
        println!("a rewrap was interrupted (to {target}); go on with: envelopefs rewrap");
    }
}

fn report(outcome: &Outcome, json: bool, verb: &str) -> Exit {
    let named = |failures: &Failures| {
        failures.named.iter().map(|(lower, why)| Named { lower: lower.clone(), why: why.clone() }).collect()
    };
    if json {
        let report = Report {
            files: outcome.files,
            changed: outcome.changed,
            without_header: outcome.bare,
            skipped: named(&outcome.skipped),
            failed: named(&outcome.failed),
            failed_count: outcome.failed.count,
            interrupted: outcome.interrupted,
        };
        println!("{}", super::json(&report));
    } else {
        for (lower, why) in outcome.failed.named.iter().chain(&outcome.skipped.named) {
            println!("{}: {why}", lower.display());
        }
        let Outcome { files, changed, bare, .. } = outcome;
        let (failed, skipped) = (outcome.failed.count, outcome.skipped.count);
        println!(
            "{files} files: {changed} {verb}, {skipped} left alone, {bare} without header, {failed} failed"
        );
    }
    match outcome {
        Outcome { interrupted: true, .. } => Exit::Interrupted,
        Outcome { failed: Failures { count: 1.., .. }, .. } => Exit::Faults,
        _ => Exit::Ok,
    }
}

/// A progress bar, and the signals that stop the work.
struct Watched {
    bar: ProgressBar,
    stop: AtomicBool,
    blocked: signals::Blocked,
}

impl Watched {
    /// Before any thread is started.
    fn start(vault: &Path) -> Result<Self, CliError> {
        let blocked = signals::block().map_err(CliError::io(vault))?;
        let total = std::io::stderr().is_terminal().then(|| walk::count(vault).ok()).flatten();
        let bar = match total {
            None => ProgressBar::hidden(),
            Some(counts) => {
                let style = ProgressStyle::with_template("{bar:40} {pos}/{len} files {per_sec} {eta} left");
                let bar = ProgressBar::new(counts.files);
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar.enable_steady_tick(TICK);
                bar
            }
        };
        Ok(Self { bar, stop: AtomicBool::new(false), blocked })
    }

    fn run<T>(self, work: impl FnOnce(&dyn Watch) -> Result<T, UpkeepError>) -> Result<T, CliError> {
        let wishes = signals::listen(self.blocked).map_err(CliError::io(Path::new("signals")))?;
        let done = std::thread::scope(|scope| {
            let (done, end) = crossbeam::channel::bounded::<()>(0);
            let stop = &self.stop;
            scope.spawn(move || {
                crossbeam::channel::select! {
                    recv(wishes) -> _ => stop.store(true, Relaxed),
                    recv(end) -> _ => {}
                }
            });
            let result = work(&self);
            drop(done);
            result
        });
        self.bar.finish_and_clear();
        Ok(done?)
    }
}

impl Watch for Watched {
    fn file_done(&self) -> bool {
        self.bar.inc(1);
        !self.stop.load(Relaxed)
    }
}
