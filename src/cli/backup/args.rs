//! The command line of `backup`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::super::error::CliError;
use super::super::secrets::KeyArgs;
use crate::backup::StoreOptions;

#[derive(Debug, Args)]
#[command(after_help = "Begin with:\n  \
    envelopefs backup init ~/vault s3://BUCKET/PREFIX\n  \
    envelopefs backup run ~/vault s3://BUCKET/PREFIX\n  \
    envelopefs backup restore s3://BUCKET/PREFIX ~/vault\n\n\
    Exit codes: 0 complete, 3 stored (or restored) but incomplete, with a list; 1 nothing stored; verify: 11 faults found,\n\
    1 not verified.")]
pub(in crate::cli) struct BackupArgs {
    #[command(subcommand)]
    pub(super) command: BackupCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum BackupCommand {
    /// Makes a repository for a vault, or completes one that was left unfinished. Needs the vault's key, once.
    Init(InitArgs),
    /// Stores the vault as it is now. Needs the key file only, no key of the vault.
    Run(RunArgs),
    /// Lists what was stored.
    List(ListArgs),
    /// Brings a vault back, and compares what was written.
    Restore(RestoreArgs),
    /// Looks whether the repository is whole and every file has its header.
    Verify(VerifyArgs),
    /// Removes snapshots that no rule keeps, but never a vault's newest complete one.
    Forget(ForgetArgs),
    /// Frees what no snapshot needs any more.
    Prune(PruneArgs),
    /// Shows a snapshot's plaintext, read-only, straight from the repository. Needs the vault's key.
    Mount(MountArgs),
}

/// Where the repository is and how it is reached.
#[derive(Clone, Debug, Args)]
pub(super) struct StoreArgs {
    /// s3://BUCKET/PREFIX, or a local directory.
    #[arg(value_name = "REPOSITORY")]
    pub(super) place: String,
    /// File with the repository's password, mode 0600 [default: $XDG_CONFIG_HOME/envelopefs/backup.key].
    #[arg(long, value_name = "FILE", env = "ENVELOPEFS_BACKUP_KEY", help_heading = "Repository")]
    key_file: Option<PathBuf>,
    /// Endpoint of an S3 server that is not AWS's, such as http://127.0.0.1:8333.
    #[arg(long, value_name = "URL", env = "AWS_ENDPOINT_URL", help_heading = "Repository")]
    endpoint: Option<String>,
    /// Region [default: that of the profile or environment, else us-east-1].
    #[arg(long, value_name = "REGION", help_heading = "Repository")]
    region: Option<String>,
    /// Profile of ~/.aws/config.
    #[arg(long, value_name = "NAME", help_heading = "Repository")]
    profile: Option<String>,
    /// KiB a second, in each direction.
    #[arg(long, value_name = "KIB", help_heading = "Repository")]
    limit: Option<u64>,
    /// Objects that are sent at once, 32 MiB of memory each.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=64), help_heading = "Repository")]
    parallel: u64,
    /// Seconds until a request without an answer is sent again.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600), help_heading = "Repository")]
    timeout: u64,
    /// Seconds for which a request is sent again and again.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, help_heading = "Repository")]
    patience: u64,
    /// Directory for the repository's metadata [default: $XDG_CACHE_HOME/envelopefs/backup].
    #[arg(long, value_name = "DIR", env = "ENVELOPEFS_BACKUP_CACHE", help_heading = "Repository")]
    cache_dir: Option<PathBuf>,
}

/// A directory by the XDG rules: a variable, or a place below the home directory.
fn xdg(variable: &str, below_home: &str) -> Option<PathBuf> {
    let given = std::env::var_os(variable).map(PathBuf::from).filter(|p| p.is_absolute());
    given.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(below_home)))
}

impl StoreArgs {
    pub(super) fn options(&self) -> StoreOptions {
        StoreOptions {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            profile: self.profile.clone(),
            limit: self.limit.map(|kib| kib.saturating_mul(1024)),
            parallel: usize::try_from(self.parallel).unwrap_or(1),
            timeout: Duration::from_secs(self.timeout),
            patience: Duration::from_secs(self.patience),
        }
    }

    pub(super) fn key_file(&self) -> Result<PathBuf, CliError> {
        let default = || xdg("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("envelopefs/backup.key"));
        self.key_file.clone().or_else(default).ok_or_else(|| {
            CliError::Usage(
                "neither XDG_CONFIG_HOME nor HOME is set: give the key file with --key-file".into(),
            )
        })
    }

    pub(super) fn cache_dir(&self) -> Result<PathBuf, CliError> {
        let default = || xdg("XDG_CACHE_HOME", ".cache").map(|dir| dir.join("envelopefs/backup"));
        self.cache_dir.clone().or_else(default).ok_or_else(|| {
            CliError::Usage(
                "neither XDG_CACHE_HOME nor HOME is set: give a directory with --cache-dir".into(),
            )
        })
    }
}

/// The other way to the repository's key.
#[derive(Clone, Debug, Args)]
pub(super) struct OpenArgs {
    /// Open the repository with the vault's key instead of the key file: after a loss, the bucket, its credentials
    /// and the master key suffice.
    #[arg(long, help_heading = "Keys")]
    pub(super) vault_key: bool,
    #[command(flatten)]
    pub(super) key: KeyArgs,
}

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// The vault's directory (ciphertext).
    pub(super) vault: PathBuf,
    #[command(flatten)]
    pub(super) store: StoreArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) key: KeyArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "A file is stored as it was at one moment, its header with it; the tree as a whole is not of one moment\n\
    unless nobody changes the vault meanwhile, or a snapshot of the filesystem below is stored (--snapshot-hook).\n\n\
    Ends with 0 complete, 3 stored but incomplete (listed), 1 nothing stored."
)]
pub(super) struct RunArgs {
    /// The vault's directory (ciphertext); it may be mounted and in use.
    pub(super) vault: PathBuf,
    #[command(flatten)]
    pub(super) store: StoreArgs,
    /// Read every file, also those that look unchanged.
    #[arg(long)]
    pub(super) all: bool,
    /// Read also a seventh of the files that look unchanged, another one each day.
    #[arg(long, conflicts_with = "all")]
    pub(super) paranoid: bool,
    /// Store a snapshot of the filesystem below: `PROGRAM make VAULT` makes one and prints the vault's path in it,
    /// `PROGRAM remove PATH` removes it. Then the tree, too, is of one moment.
    #[arg(long, value_name = "PROGRAM", env = "ENVELOPEFS_SNAPSHOT_HOOK")]
    pub(super) snapshot_hook: Option<PathBuf>,
    /// Print JSON: a line each second, then the report.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    pub(super) store: StoreArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) open: OpenArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    envelopefs backup restore s3://BUCKET/PREFIX ~/vault                        the newest state\n  \
    envelopefs backup restore --snapshot 2026-11-20 s3://BUCKET/PREFIX ~/vault  as it was on a day\n  \
    envelopefs backup restore --vault-key --kms-dir DIR s3://BUCKET/PREFIX ~/vault\n\n\
    What is there already and right is not fetched again: an interrupted restore goes on, a damaged vault is mended.\n\
    Ends with 0 when all is as it was, 3 when something is not (listed), or the snapshot is incomplete; 1 otherwise.")]
pub(super) struct RestoreArgs {
    #[command(flatten)]
    pub(super) store: StoreArgs,
    /// A new or empty directory, or a vault that is not mounted.
    pub(super) target: PathBuf,
    /// latest, the beginning of an id, a day or a time (the last snapshot before it).
    #[arg(long, value_name = "WHICH", default_value = "latest")]
    pub(super) snapshot: String,
    /// Snapshots of this vault only (the beginning of its id) [default: the target's, where it is a vault].
    #[arg(long, value_name = "ID")]
    pub(super) vault_id: Option<String>,
    /// This file or directory of the ciphertext only. A target that is no vault gets the directories above it and the volume
    /// config too; one that is a vault keeps its own.
    // Names of the ciphertext may begin with a hyphen.
    #[arg(long, value_name = "PATH", allow_hyphen_values = true)]
    pub(super) path: Option<PathBuf>,
    /// Files that are written at once.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(super) jobs: usize,
    /// Print JSON: a line each second, then the report.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) open: OpenArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Without --read and --deep: every pack is there, every tree leads somewhere, every file has a header.\n\
    Ends with 0 when nothing is wrong, 11 when something is; 1 when the store does not answer; with --deep, 3 when files do not\n\
    open that a journal in the snapshot may explain."
)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    pub(super) store: StoreArgs,
    /// Read data too: all, a random part such as 5%, or one of several parts such as 3/7.
    #[arg(long, value_name = "PART", conflicts_with = "deep")]
    pub(super) read: Option<String>,
    /// With the vault's key: fetch every file, unwrap its key, open every block. Needs no disk.
    #[arg(long)]
    pub(super) deep: bool,
    /// With --deep: the snapshot.
    #[arg(long, value_name = "WHICH", default_value = "latest")]
    pub(super) snapshot: String,
    /// With --deep: snapshots of this vault only (the beginning of its id).
    #[arg(long, value_name = "ID")]
    pub(super) vault_id: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) open: OpenArgs,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("rules").required(true).multiple(true))]
pub(super) struct ForgetArgs {
    #[command(flatten)]
    pub(super) store: StoreArgs,
    /// Keep the newest N.
    #[arg(long, value_name = "N", group = "rules", value_parser = clap::value_parser!(i32).range(1..))]
    pub(super) keep_last: Option<i32>,
    /// Keep one of each of N hours.
    #[arg(long, value_name = "N", group = "rules", value_parser = clap::value_parser!(i32).range(1..))]
    pub(super) keep_hourly: Option<i32>,
    /// Keep one of each of N days.
    #[arg(long, value_name = "N", group = "rules", value_parser = clap::value_parser!(i32).range(1..))]
    pub(super) keep_daily: Option<i32>,
    /// Keep one of each of N weeks.
    #[arg(long, value_name = "N", group = "rules", value_parser = clap::value_parser!(i32).range(1..))]
    pub(super) keep_weekly: Option<i32>,
    /// Keep one of each of N months.
    #[arg(long, value_name = "N", group = "rules", value_parser = clap::value_parser!(i32).range(1..))]
    pub(super) keep_monthly: Option<i32>,
    /// Keep one of each of N years.
    #[arg(long, value_name = "N", group = "rules", value_parser = clap::value_parser!(i32).range(1..))]
    pub(super) keep_yearly: Option<i32>,
    /// Keep all of the N days before the newest.
    #[arg(long, value_name = "N", group = "rules", value_parser = clap::value_parser!(i64).range(1..=36500))]
    pub(super) keep_within_days: Option<i64>,
    /// Remove nothing, tell what would be.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Runs may go on meanwhile: what is no longer needed is marked now and removed by a prune a day later."
)]
pub(super) struct PruneArgs {
    #[command(flatten)]
    pub(super) store: StoreArgs,
    /// Remove at once. Only when no run is going on anywhere.
    #[arg(long)]
    pub(super) at_once: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Stays in the foreground; ends with Ctrl-C, or by: envelopefs umount MOUNTPOINT")]
pub(super) struct MountArgs {
    #[command(flatten)]
    pub(super) store: StoreArgs,
    /// Where the plaintext shall appear: an empty directory.
    pub(super) mount_point: PathBuf,
    /// latest, the beginning of an id, a day or a time (the last snapshot before it).
    #[arg(long, value_name = "WHICH", default_value = "latest")]
    pub(super) snapshot: String,
    /// Snapshots of this vault only (the beginning of its id).
    #[arg(long, value_name = "ID")]
    pub(super) vault_id: Option<String>,
    #[command(flatten)]
    pub(super) open: OpenArgs,
}
