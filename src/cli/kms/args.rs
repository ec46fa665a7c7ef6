//! The command line of `envelopefs kms`, and where it gets passphrases from.

use std::io;
use std::path::{Path, PathBuf};

use clap::{ArgMatches, Args, Command, Subcommand};
use zeroize::Zeroizing;

use super::actions::{self, Asked};
use super::audit::AuditArgs;
use super::measure::MeasureArgs;
use super::principal::PrincipalArgs;
use super::serve::ServeArgs;
use super::simulate::SimulateArgs;
use super::usage::UsageArgs;
use crate::cli::secrets::first_line;

/// `envelopefs kms`.
#[derive(Debug, Args)]
pub(crate) struct KmsArgs {
    #[command(subcommand)]
    pub(super) command: KmsCommand,
    /// Directory of the embedded KMS [default: $XDG_DATA_HOME/envelopefs/kms].
    #[arg(long, value_name = "DIR", env = "ENVELOPEFS_KMS_DIR", hide_env_values = true, global = true)]
    #[arg(help_heading = "Keys")]
    pub(super) kms_dir: Option<PathBuf>,
    /// Ask a KMS server instead of the store: its URL (http://, https://, unix:PATH). Credentials as for AWS, from
    /// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
    #[arg(long, value_name = "URL", global = true, help_heading = "Server")]
    pub(super) endpoint_url: Option<String>,
    /// Region [default: AWS_REGION, AWS_DEFAULT_REGION, us-east-1].
    #[arg(long, value_name = "REGION", global = true, help_heading = "Server")]
    pub(super) region: Option<String>,
    /// Certificates that a server's is checked against [default: AWS_CA_BUNDLE, the system's].
    #[arg(long, value_name = "FILE", global = true, help_heading = "Server")]
    pub(super) ca_bundle: Option<PathBuf>,
    /// Read the passphrase of the KMS store from the first line of a file.
    #[arg(long, value_name = "FILE", global = true, help_heading = "Keys")]
    passphrase_file: Option<PathBuf>,
    /// Read the passphrase from an open descriptor (also: environment ENVELOPEFS_PASSPHRASE).
    #[arg(long, value_name = "N", global = true, help_heading = "Keys", conflicts_with = "passphrase_file")]
    passphrase_fd: Option<u32>,
}

/// What a `kms` command does: one of ours, or an action of AWS's API.
#[derive(Debug)]
pub(super) enum KmsCommand {
    Fixed(Fixed),
    /// Read from the command line, or what is wrong with it.
    Action(Box<Result<Asked, String>>),
}

#[derive(Debug, Subcommand)]
pub(super) enum Fixed {
    /// Make an empty KMS store, protected by a passphrase, a key file, or a key in a PKCS#11 token.
    Init {
        /// Keep the root key sealed under a key file (mode 0600) in the store: opens unattended, for whoever reads it.
        #[arg(long)]
        key_file: bool,
        /// Seal the root key by an AES key of a PKCS#11 token (pkcs11:...): opens where that token is, with its PIN.
        #[arg(long, value_name = "URI", conflicts_with = "key_file")]
        kms_key_uri: Option<String>,
    },
    /// Protect the store by another passphrase, a key file, or a key in a PKCS#11 token. Keys stay as they are.
    Passwd {
        /// Protect it by a key file from now on.
        #[arg(long, conflicts_with = "new_passphrase_file")]
        key_file: bool,
        /// Protect it by an AES key of a PKCS#11 token (pkcs11:...) from now on.
        #[arg(long, value_name = "URI", conflicts_with_all = ["key_file", "new_passphrase_file"])]
        kms_key_uri: Option<String>,
        /// Read the new passphrase from the first line of a file.
        #[arg(long, value_name = "FILE")]
        new_passphrase_file: Option<PathBuf>,
    },
    /// Serve the store to AWS SDKs and the AWS CLI.
    Serve(Box<ServeArgs>),
    /// Write the whole KMS into one file under a passphrase: keys, aliases, grants, principals.
    Backup {
        /// The new file.
        #[arg(value_name = "FILE")]
        to: PathBuf,
        /// Read the backup's passphrase from the first line of a file; asked for on a terminal.
        #[arg(long, value_name = "FILE")]
        backup_passphrase_file: Option<PathBuf>,
    },
    /// Make a new KMS store from a backup.
    Restore {
        /// The backup.
        #[arg(value_name = "FILE")]
        from: PathBuf,
        /// Read the backup's passphrase from the first line of a file; asked for on a terminal.
        #[arg(long, value_name = "FILE")]
        backup_passphrase_file: Option<PathBuf>,
        /// Protect the new store by a key file (mode 0600) instead of a passphrase.
        #[arg(long)]
        key_file: bool,
        /// Protect the new store by an AES key of a PKCS#11 token (pkcs11:...).
        #[arg(long, value_name = "URI", conflicts_with = "key_file")]
        kms_key_uri: Option<String>,
    },
    /// Read every record of the store and follow every reference; list what is wrong.
    Check {
        #[command(flatten)]
        output: Output,
    },
    /// Measure GenerateDataKey on the server at --endpoint-url.
    Measure(MeasureArgs),
    /// Say whether a request would be allowed, and by which statement or grant.
    SimulatePolicy(Box<SimulateArgs>),
    /// Show requests and keys by month, and what AWS would ask for them.
    Usage(UsageArgs),
    /// Verify the audit log, or find events in it.
    Audit(Box<AuditArgs>),
    /// Work on the principals that may sign requests.
    Principal(PrincipalArgs),
}

impl clap::FromArgMatches for KmsCommand {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        if let Some((name, inner)) = matches.subcommand()
            && let Some(action) = actions::action_of(name)
        {
            return Ok(Self::Action(Box::new(actions::asked(action, inner))));
        }
        Fixed::from_arg_matches(matches).map(Self::Fixed)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Subcommand for KmsCommand {
    fn augment_subcommands(command: Command) -> Command {
        actions::add_to(Fixed::augment_subcommands(command))
    }

    fn augment_subcommands_for_update(command: Command) -> Command {
        Self::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        Fixed::has_subcommand(name) || actions::action_of(name).is_some()
    }
}

#[derive(Debug, Args)]
pub(super) struct Output {
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

impl KmsArgs {
    /// The passphrase from the file or the descriptor, where one was named.
    pub(super) fn given(&self) -> io::Result<Option<Zeroizing<String>>> {
        let fd = |n: u32| PathBuf::from(format!("/dev/fd/{n}"));
        let path = self.passphrase_file.clone().or_else(|| self.passphrase_fd.map(fd));
        path.map(|path| read_passphrase(&path)).transpose()
    }
}

/// The first line of a file or a descriptor.
pub(super) fn read_passphrase(path: &Path) -> io::Result<Zeroizing<String>> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    std::fs::File::open(path).and_then(first_line).map_err(named)
}
