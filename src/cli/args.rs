//! The command line, as clap sees it: help, completions and man pages are made from here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::backup::BackupArgs;
use super::bench::BenchArgs;
use super::headers::HeadersArgs;
use super::hsm::HsmArgs;
use super::import::ImportArgs;
use super::kms::KmsArgs;
use super::secrets::KeyArgs;
use crate::upkeep::MOST_JOBS;

/// Encrypts a directory: each file with its own key, wrapped by a KMS.
#[derive(Debug, Parser)]
#[command(name = "envelopefs", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Begin with:\n  envelopefs init ~/vault\n  envelopefs mount ~/vault ~/plain\n\n\
    Exit codes: 0 done, 2 usage, 3 no vault, 4 format, 5 tampered, 6 key refused, 7 key not to be had,\n\
    8 mount point, 9 FUSE, 10 in use, 11 faults found, 12 unsuitable directory, 130 interrupted, 1 anything else.")]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Makes a vault in a new or empty directory.
    Init(InitArgs),
    /// Shows a vault's plaintext at a mount point.
    Mount(Box<MountArgs>),
    /// Ends a mount; returns when the vault is quiet.
    Umount(UmountArgs),
    /// Tells what a vault is: config, wrapping keys, counts.
    Info(InfoArgs),
    /// Tells what a lower file is: header, key, lengths, block map.
    Inspect(InspectArgs),
    /// Opens every name and block of a vault; lists the faults.
    Check(CheckArgs),
    /// Copies out of a damaged lower file every block that still opens.
    Salvage(SalvageArgs),
    /// Adds, removes and lists the wrapping keys of a vault.
    Recipient(RecipientArgs),
    /// Makes a recovery key for a vault and prints it, for paper.
    RecoveryKey(RecoveryKeyArgs),
    /// Tells which keys and versions a vault's files are wrapped with.
    Keys(KeysArgs),
    /// Brings the headers of all files to the newest keys, or to another key; contents are not touched.
    Rewrap(RewrapArgs),
    /// Gives files new data keys: contents are sealed anew.
    Rekey(RekeyArgs),
    /// Stores a vault's ciphertext in S3, and brings it back.
    Backup(Box<BackupArgs>),
    /// Makes a vault of a copy of its ciphertext view.
    Import(ImportArgs),
    /// Keeps all headers of a vault in one file, and puts them back where a copy lost them.
    Headers(HeadersArgs),
    /// Works on the keys of the embedded KMS.
    Kms(KmsArgs),
    /// Runs and manages a software HSM.
    Hsm(HsmArgs),
    /// Measures.
    Bench(BenchArgs),
    /// Prints a completion script for a shell.
    Completions(CompletionsArgs),
    /// Writes the man pages into a directory.
    Man(ManArgs),
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  \
    envelopefs init ~/vault                              asks for a passphrase\n  \
    envelopefs init --kms-key-file /srv/vault            for unattended mounts\n  \
    envelopefs init --embedded-hsm ~/vault               the key in an HSM of this machine, which a mount hosts\n  \
    envelopefs init --key-uri kms:embedded/alias/payroll ~/vault   a key made before by kms create-key, create-alias\n  \
    envelopefs init --key-uri 'pkcs11:token=hsm;object=key?module-path=/usr/lib/libenvelopefs.so' ~/vault")]
pub(super) struct InitArgs {
    /// Directory of the new vault; made if missing.
    pub(super) vault: PathBuf,
    /// Wrapping key; the default one is made if missing, any other must exist.
    #[arg(long, value_name = "URI", default_value = "kms:embedded/alias/envelopefs", help_heading = "Keys")]
    pub(super) key_uri: String,
    /// Wrap data keys in this process, under keys that the wrapping key wraps: one call for many files
    /// (docs/KEYS.md says what that gives up).
    #[arg(long, help_heading = "Keys")]
    pub(super) envelope: bool,
    /// Protect a new KMS store by a key file (mode 0600) instead of a passphrase.
    #[arg(long, help_heading = "Keys", conflicts_with_all = ["passphrase_file", "passphrase_fd"])]
    pub(super) kms_key_file: bool,
    #[command(flatten)]
    pub(super) key: KeyArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    envelopefs mount ~/vault ~/plain\n  \
    envelopefs mount -o ro,allow_other /srv/vault /srv/plain\n  \
    /etc/fstab:  /srv/vault  /srv/plain  fuse.envelopefs  allow_other,kms-dir=/etc/envelopefs/kms,_netdev  0 0")]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(super) struct MountArgs {
    /// The vault's directory (ciphertext).
    pub(super) vault: PathBuf,
    /// Where the plaintext shall appear: an empty directory.
    pub(super) mount_point: PathBuf,
    /// Stay in the foreground; log to stderr.
    #[arg(long, short, help_heading = "Process")]
    pub(super) foreground: bool,
    /// Append the log to a file (default: syslog).
    #[arg(long, value_name = "FILE", help_heading = "Process")]
    pub(super) log_file: Option<PathBuf>,
    /// Run without landlock and seccomp.
    #[arg(long, help_heading = "Process")]
    pub(super) no_sandbox: bool,
    /// Refuse every change.
    #[arg(long, short, help_heading = "Mount")]
    pub(super) read_only: bool,
    /// Let other users in; the kernel checks permissions.
    #[arg(long, help_heading = "Mount")]
    pub(super) allow_other: bool,
    /// Other hosts may have the vault mounted too: keep nothing of names and contents for longer than a second; locks go to
    /// the filesystem below.
    #[arg(long, help_heading = "Mount")]
    pub(super) shared: bool,
    /// Mount over a directory that is not empty.
    #[arg(long, help_heading = "Mount")]
    pub(super) nonempty: bool,
    /// Change files in place, for scratch data: gives up that a power cut loses nothing that fsync covered.
    #[arg(long, help_heading = "Mount")]
    pub(super) no_journal: bool,
    /// Cipher kernel: portable, aesni, vaes256 or vaes512 (default: the fastest that the processor has).
    #[arg(long, value_name = "NAME", help_heading = "Process")]
    pub(super) kernel: Option<String>,
    /// How the kernel's requests come: by io_uring (uring), by /dev/fuse (device), or by what is there and faster.
    #[arg(long, value_name = "WAY", default_value = "auto", value_parser = ["auto", "device", "uring"], help_heading = "Mount")]
    pub(super) transport: String,
    /// What to show: ciphertext is the vault itself, read-only, each file with its header inside, for tools that keep
    /// no extended attributes (`import` makes a vault of a copy). Needs no key.
    #[arg(long, value_name = "WHAT", value_parser = ["plaintext", "ciphertext"], default_value = "plaintext", help_heading = "Mount")]
    pub(super) view: String,
    /// Options as mount(8) takes them: ro, noatime, allow_other, suid, dev, noexec, shared, no-journal, direct-lower,
    /// transport=WAY, key_cache=SECONDS, prefetch-keys=N, kms-dir=DIR, no-sandbox, ... (docs/CLI.md has them all).
    #[arg(long, short, value_name = "LIST", value_delimiter = ',', help_heading = "Mount")]
    pub(super) options: Vec<String>,
    #[command(flatten)]
    pub(super) key: KeyArgs,
    /// This is the background process of `mount`.
    #[arg(long, hide = true)]
    pub(super) daemon_child: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  envelopefs umount ~/plain")]
pub(super) struct UmountArgs {
    /// The mount point.
    pub(super) mount_point: PathBuf,
    /// Detach now, end when nothing uses it any more; does not wait.
    #[arg(long, short)]
    pub(super) lazy: bool,
    /// Seconds to wait for the daemon to finish writing.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(super) timeout: u64,
}

#[derive(Debug, Args)]
#[command(after_help = "Without a passphrase, what needs the key store is left out.")]
pub(super) struct InfoArgs {
    /// The vault's directory.
    pub(super) vault: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
    /// Do not walk the vault to count files and bytes.
    #[arg(long)]
    pub(super) no_counts: bool,
    #[command(flatten)]
    pub(super) key: KeyArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  envelopefs inspect ~/vault/kS0cq...")]
pub(super) struct InspectArgs {
    /// A lower file (ciphertext) of a vault.
    pub(super) file: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
    /// Show which blocks exist; needs the keys.
    #[arg(long)]
    pub(super) map: bool,
    #[command(flatten)]
    pub(super) key: KeyArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    envelopefs check ~/vault             changes nothing\n  \
    envelopefs check --repair ~/vault    after a crash; go on after an interruption by running it again\n\n\
    Ends with 0 when the vault is whole (afterwards), 11 when faults are there, 10 when --repair found none but\n\
    could mend nothing because the vault is mounted, 130 when interrupted.")]
pub(super) struct CheckArgs {
    /// The vault's directory; it must not be mounted for writing meanwhile.
    pub(super) vault: PathBuf,
    /// Mend what a crash can leave; what cannot be placed goes to .envelopefs/lost+found.
    #[arg(long)]
    pub(super) repair: bool,
    /// With --repair, for a vault mounted without journal: files born since then that do not open were torn by a
    /// power cut [seconds since 1970; default: what the journal says].
    #[arg(long, value_name = "TIME", requires = "repair")]
    pub(super) fresh_since: Option<i64>,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
    /// Files that are opened at once, 1 to 256 (default: one a core).
    #[arg(long, value_name = "N", value_parser = jobs())]
    pub(super) jobs: Option<usize>,
    #[command(flatten)]
    pub(super) key: KeyArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Ends with 0 when all of the file opened, 11 when something is lost.\n\n\
    Examples:\n  \
    envelopefs salvage ~/vault/kS0cq... -o letter\n  \
    envelopefs salvage --vault ~/vault /backup/kS0cq... -o letter")]
pub(super) struct SalvageArgs {
    /// A lower file (ciphertext): in a vault, in its lost+found, or a copy that has its xattrs.
    pub(super) file: PathBuf,
    /// Where the plaintext goes, with a map of its blocks beside it in OUT.map; never in the vault [default:
    /// salvaged-FILEID].
    #[arg(long, short, value_name = "OUT")]
    pub(super) out: Option<PathBuf>,
    /// The vault that the file is from, where it does not lie in it.
    #[arg(long, value_name = "VAULT")]
    pub(super) vault: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) key: KeyArgs,
}

#[derive(Debug, Args)]
pub(super) struct RecipientArgs {
    #[command(subcommand)]
    pub(super) command: RecipientCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum RecipientCommand {
    /// Adds a wrapping key: it opens the vault, and new files are wrapped for it.
    #[command(after_help = "Example:\n  envelopefs recipient add ~/vault kms:embedded/alias/second")]
    Add {
        /// The vault's directory; it may be mounted.
        vault: PathBuf,
        /// The key; it must exist.
        uri: String,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Retires a wrapping key, and removes it when no file's header names it any more.
    Remove {
        /// The vault's directory; it may be mounted.
        vault: PathBuf,
        /// Row or URI, as `recipient list` shows them.
        recipient: String,
        /// Remove it although headers name it: files that no other key opens are lost.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Lists the wrapping keys.
    List {
        /// The vault's directory.
        vault: PathBuf,
        /// Print a JSON array.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "The key goes to stdout alone; it is not stored and not shown again.\n\n\
    Examples:\n  \
    envelopefs recovery-key ~/vault | lp\n  \
    envelopefs mount --recovery-key ~/vault ~/plain     when the KMS is gone")]
pub(super) struct RecoveryKeyArgs {
    /// The vault's directory; it may be mounted.
    pub(super) vault: PathBuf,
    #[command(flatten)]
    pub(super) key: KeyArgs,
}

#[derive(Debug, Args)]
pub(super) struct KeysArgs {
    /// The vault's directory; it may be mounted.
    pub(super) vault: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    envelopefs rewrap ~/vault                      after a rotation, or for a new recipient\n  \
    envelopefs rewrap ~/vault --to kms:aws/KEY-ARN     to another key or provider\n\n\
    It may be interrupted at any moment; run it again to go on. Ends with 0 when every header is as it shall be,\n\
    11 when some could not be rewrapped, 130 when interrupted.")]
pub(super) struct RewrapArgs {
    /// The vault's directory; it may be mounted.
    pub(super) vault: PathBuf,
    /// Wrap new files, and all there are, for this key (and recovery keys) instead of the present ones.
    #[arg(long, value_name = "URI")]
    pub(super) to: Option<String>,
    /// Only headers with a key of this version.
    #[arg(long, value_name = "N")]
    pub(super) only_key_version: Option<u16>,
    /// Files at once, 1 to 256 [default: 8].
    #[arg(long, value_name = "N", value_parser = jobs())]
    pub(super) jobs: Option<usize>,
    /// Files a second at most.
    #[arg(long, value_name = "N")]
    pub(super) rate: Option<std::num::NonZeroU32>,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) key: KeyArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "The vault must not be mounted. Each file is written anew beside the old one and takes its name when it is\n\
    whole: a crash leaves either. Files with several names (hard links) are left alone, and named."
)]
pub(super) struct RekeyArgs {
    /// A vault, or one lower file (ciphertext) of a vault.
    pub(super) path: PathBuf,
    /// Files at once, 1 to 256 [default: one a core].
    #[arg(long, value_name = "N", value_parser = jobs())]
    pub(super) jobs: Option<usize>,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) key: KeyArgs,
}

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell.
    pub(super) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Directory for the pages; made if missing.
    pub(super) dir: PathBuf,
}

/// A number of files at once that is one.
fn jobs() -> clap::builder::RangedU64ValueParser<usize> {
    clap::builder::RangedU64ValueParser::new().range(1..=MOST_JOBS as u64)
}
