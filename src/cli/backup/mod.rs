//! `backup`: the commands, their reports, and the two ways to a repository's key. All else is `crate::backup`'s.
//!
//! A repository has two passwords: a random one in a key file, for the nightly job, which therefore holds no key that
//! opens a file of the vault; and one derived from the vault's key, for the day when only the bucket and the master
//! key are left.

mod args;
mod connect;
mod deep;
mod look;
mod print;
mod progress;

use std::path::Path;

use crate::backup::{
    BackupError, Keep, Meter, Repo, Restore, RunOptions, Snapshot, SnapshotHook, Verify, restore, vault_at,
};
use crate::format::config::{CONFIG_FILE, VolumeConfig};
use crate::format::keks::KEKS_FILE;
use crate::format::names::VAULT_DIR;
use crate::keys::{self, OpenError};

use super::error::CliError;
use super::exit::Exit;
use args::{BackupCommand, ForgetArgs, InitArgs, ListArgs, PruneArgs, RestoreArgs, RunArgs, VerifyArgs};
use progress::Progress;

pub(super) use args::BackupArgs;
pub(super) use print::notes;

/// Seconds in a day.
const DAY: u64 = 86_400;

pub(super) fn run(args: &BackupArgs) -> Result<Exit, CliError> {
    crate::vault::limits::raise_descriptor_limit();
    match &args.command {
        BackupCommand::Init(args) => init(args),
        BackupCommand::Run(args) => store(args),
        BackupCommand::List(args) => list(args),
        BackupCommand::Restore(args) => bring_back(args),
        BackupCommand::Verify(args) => verify(args),
        BackupCommand::Forget(args) => forget(args),
        BackupCommand::Prune(args) => prune(args),
        BackupCommand::Mount(args) => look::mount(args),
    }
}

/// The volume config as it lies on the disk, and decoded.
fn config_of(vault: &Path) -> Result<(Vec<u8>, VolumeConfig), CliError> {
    let config = keys::read_config(vault)?;
    let path = vault.join(VAULT_DIR).join(CONFIG_FILE);
    Ok((std::fs::read(&path).map_err(CliError::io(&path))?, config))
}

/// The key-encryption keys as they lie on the disk, in envelope mode.
fn keks_of(vault: &Path) -> Result<Option<Vec<u8>>, CliError> {
    let path = vault.join(VAULT_DIR).join(KEKS_FILE);
    match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).map_err(CliError::io(&path)),
    }
}

fn init(args: &InitArgs) -> Result<Exit, CliError> {
    let (text, config) = config_of(&args.vault)?;
    let keyring = keys::open_vault(&args.vault, &args.key.unlock_vault(&args.vault)?)?;
    let derived = connect::derived_password(keyring.vault_key());
    let key_file = args.store.key_file()?;
    let meter = Meter::default().into();
    let objects = connect::objects(&args.store, &meter)?;
    let nightly = connect::make_key_file(&key_file)?;
    let repo = Repo::init(
        objects,
        &args.store.options(),
        &args.store.cache_dir()?,
        [nightly.as_str(), derived.as_str()],
        &config.vault_id.to_string(),
        meter,
    )?;
    repo.put_extras(
        &text,
        keks_of(&args.vault)?.as_deref(),
        &print::readme(repo.location(), &config.vault_id.to_string()),
    )?;
    let keeps = repo.keeps_objects()?;
    print::initialised(args.json, repo.location(), &key_file, keeps);
    Ok(Exit::Ok)
}

fn store(args: &RunArgs) -> Result<Exit, CliError> {
    let (text, config) = match config_of(&args.vault) {
        // The disk with the vault is not mounted, perhaps: not a good night.
        Err(CliError::Vault(OpenError::NotAVault(_))) => {
            return Err(BackupError::NotAVault(args.vault.clone()).into());
        }
        other => other.map_err(|e| CliError::NothingStored(Box::new(e)))?,
    };
    let meter = Meter::default().into();
    let repo = connect::repo(&args.store, None, &meter)?;
    let vault_id = config.vault_id.to_string();
    repo.put_extras(&text, keks_of(&args.vault)?.as_deref(), &print::readme(repo.location(), &vault_id))?;
    let days =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_secs() / DAY);
    let hook = args.snapshot_hook.clone().map(|program| SnapshotHook { program });
    let options = RunOptions { all: args.all, paranoid: args.paranoid.then_some(days), vault_id, hook };
    let progress = Progress::start(&meter, args.json);
    let report = repo.run(&args.vault, &options);
    progress.end();
    let report = report?;
    print::run(args.json, &report);
    if report.is_complete() {
        return Ok(Exit::Ok);
    }
    if let (Some(why), true) = (&report.left, report.problems.is_empty()) {
        return Err(CliError::Incomplete(format!(
            "stored as {}, complete; but the snapshot of the filesystem below is still there: {why}",
            &report.snapshot.id[..8]
        )));
    }
    Err(CliError::Incomplete(format!(
        "stored as {}, but {} of the vault's entries are missing in it or have no good header",
        &report.snapshot.id[..8],
        report.problems.len()
    )))
}

fn list(args: &ListArgs) -> Result<Exit, CliError> {
    let repo = connect::repo(&args.store, Some(&args.open), &Meter::default().into())?;
    print::list(args.json, &repo.snapshots()?);
    Ok(Exit::Ok)
}

/// The snapshot that is asked for: of the vault that the target is, unless something else is said.
fn to_restore(args: &RestoreArgs, repo: &Repo) -> Result<Snapshot, CliError> {
    let there = vault_at(&args.target)?;
    match repo.snapshot(&args.snapshot, args.vault_id.as_deref().or(there.as_deref())) {
        // One of another vault is refused by name.
        Err(BackupError::NoSnapshot(..)) if args.vault_id.is_none() => {
            Ok(repo.snapshot(&args.snapshot, None)?)
        }
        other => Ok(other?),
    }
}

fn bring_back(args: &RestoreArgs) -> Result<Exit, CliError> {
    let meter = Meter::default().into();
    let repo = connect::repo(&args.store, Some(&args.open), &meter)?;
    let snapshot = to_restore(args, &repo)?;
    if !snapshot.complete {
        eprintln!(
            "envelopefs: snapshot {} of {} is incomplete: it lacked something of the vault when it was made",
            &snapshot.id[..8],
            snapshot.when
        );
    }
    let options = Restore { below: args.path.clone().unwrap_or_default(), jobs: args.jobs };
    let progress = Progress::start(&meter, args.json);
    let done = repo.reader().and_then(|reader| restore(&reader, &snapshot, &args.target, &options, &meter));
    progress.end();
    let done = done?;
    print::restored(args.json, &snapshot, &done, &meter.read());
    if !done.problems.is_empty() {
        let count = done.problems.len();
        return Err(CliError::Incomplete(format!("{count} entries are not what the snapshot holds")));
    }
    if !snapshot.complete {
        return Err(CliError::Incomplete(format!(
            "all of snapshot {} is there, but it lacked something of the vault when it was made",
            &snapshot.id[..8]
        )));
    }
    Ok(Exit::Ok)
}

fn verify(args: &VerifyArgs) -> Result<Exit, CliError> {
    let meter = Meter::default().into();
    let repo = connect::repo(&args.store, Some(&args.open), &meter)?;
    let progress = Progress::start(&meter, args.json);
    if args.deep {
        let done = deep::verify(args, &repo);
        progress.end();
        let report = done?;
        print::deep(args.json, &report);
        return match report.faults.len() {
            0 => Ok(Exit::Ok),
            count if report.journal => Err(CliError::Incomplete(format!(
                "{count} faults that may be none: the snapshot has changes in a journal, which only a mount of what is \
                 restored brings in. Restore it, mount it, and check that"
            ))),
            _ => Ok(Exit::Faults),
        };
    }
    let found = repo.verify(&Verify { read: args.read.clone() });
    progress.end();
    let found = found?;
    print::verified(args.json, &found, &meter.read());
    Ok(if found.is_clean() { Exit::Ok } else { Exit::Faults })
}

fn forget(args: &ForgetArgs) -> Result<Exit, CliError> {
    let keep = Keep {
        last: args.keep_last,
        hourly: args.keep_hourly,
        daily: args.keep_daily,
        weekly: args.keep_weekly,
        monthly: args.keep_monthly,
        yearly: args.keep_yearly,
        within_days: args.keep_within_days,
    };
    let repo = connect::repo(&args.store, None, &Meter::default().into())?;
    print::forgotten(args.json, &repo.forget(&keep, args.dry_run)?, args.dry_run);
    Ok(Exit::Ok)
}

fn prune(args: &PruneArgs) -> Result<Exit, CliError> {
    let meter = Meter::default().into();
    let repo = connect::repo(&args.store, None, &meter)?;
    let progress = Progress::start(&meter, args.json);
    let done = repo.prune(args.at_once);
    progress.end();
    print::pruned(args.json, &done?);
    Ok(Exit::Ok)
}
