//! The command line of `envelopefs kms`, and where it gets passphrases from.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use zeroize::Zeroizing;

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
    /// Read the passphrase of the KMS store from the first line of a file.
    #[arg(long, value_name = "FILE", global = true, help_heading = "Keys")]
    passphrase_file: Option<PathBuf>,
    /// Read the passphrase from an open descriptor (also: environment ENVELOPEFS_PASSPHRASE).
    #[arg(long, value_name = "N", global = true, help_heading = "Keys", conflicts_with = "passphrase_file")]
    passphrase_fd: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub(super) enum KmsCommand {
    /// Make an empty KMS store, protected by a passphrase or a key file.
    Init {
        /// Keep the root key sealed under a key file (mode 0600) in the store: opens unattended, for whoever reads it.
        #[arg(long)]
        key_file: bool,
    },
    /// Make a key.
    CreateKey {
        /// What the key is for.
        #[arg(long, default_value = "", value_name = "TEXT")]
        description: String,
        /// An alias for it.
        #[arg(long, value_name = "alias/NAME")]
        alias: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// List the keys.
    ListKeys {
        #[command(flatten)]
        output: Output,
    },
    /// Show a key.
    DescribeKey {
        #[command(flatten)]
        key: KeyName,
        #[command(flatten)]
        output: Output,
    },
    /// Give a key new material, now. What it wrapped before still unwraps.
    RotateKey {
        #[command(flatten)]
        key: KeyName,
        #[command(flatten)]
        output: Output,
    },
    /// List the rotations of a key.
    ListKeyRotations {
        #[command(flatten)]
        key: KeyName,
        #[command(flatten)]
        output: Output,
    },
    /// Make an alias for a key.
    CreateAlias {
        /// The alias.
        #[arg(value_name = "alias/NAME")]
        alias: String,
        #[command(flatten)]
        key: KeyName,
    },
    /// List the aliases.
    ListAliases {
        #[command(flatten)]
        output: Output,
    },
    /// Let a key be used again.
    EnableKey {
        #[command(flatten)]
        key: KeyName,
    },
    /// Stop all use of a key: no file that it wrapped opens until it is enabled again.
    DisableKey {
        #[command(flatten)]
        key: KeyName,
    },
    /// Protect the store by another passphrase, or by a key file. Keys stay as they are.
    Passwd {
        /// Protect it by a key file from now on.
        #[arg(long, conflicts_with = "new_passphrase_file")]
        key_file: bool,
        /// Read the new passphrase from the first line of a file.
        #[arg(long, value_name = "FILE")]
        new_passphrase_file: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Output {
    /// Print AWS KMS's answer as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct KeyName {
    /// Key id, key ARN, alias/NAME or alias ARN.
    #[arg(value_name = "KEY")]
    pub(super) name: String,
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
