//! The one error type of the commands: what failed, why, what to do, and the exit code.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::exit::Exit;
use super::mount_point::MountPointFault;
use crate::backup::{BackupError, StoreFault};
use crate::bench::BenchError;
use crate::content::ContentError;
use crate::format::config::ConfigError;
use crate::fs::FsError;
use crate::fuse::{MountError, NoRings};
use crate::keys::{self, KeyError, OpenError};
use crate::upkeep::UpkeepError;

/// What `backup run` and `backup restore` end with when something is missing.
const INCOMPLETE: u8 = 3;

/// Why a command failed.
#[derive(Debug)]
pub(super) enum CliError {
    /// A vault that does not open, or cannot be made.
    Vault(OpenError),
    /// Another mount has the vault.
    InUse(PathBuf),
    /// The vault's top directory.
    Top(PathBuf, FsError),
    /// A key.
    Key(KeyError),
    /// A `kms` command, or the store of the embedded KMS.
    Kms(Box<dyn std::error::Error>),
    /// An `hsm` command.
    Hsm(Box<dyn std::error::Error>),
    /// A backup, or its way back.
    Backup(BackupError),
    /// A backup that is stored, or was restored, but lacks something, which was listed.
    Incomplete(String),
    /// A run that did not come so far as to store anything.
    NothingStored(Box<CliError>),
    /// A measurement.
    Bench(BenchError),
    /// A mount point that cannot be used.
    MountPoint(PathBuf, MountPointFault),
    /// FUSE.
    Mount(PathBuf, MountError),
    /// The background process ended before the mount was ready; it has said why.
    Daemon(u8),
    /// No secret could be had.
    Secret(String),
    /// No protection was chosen for a new store, and nobody can be asked.
    NoProtection(PathBuf),
    /// A file.
    Io(PathBuf, io::Error),
    /// A file that is no lower file of a vault.
    NotALowerFile(PathBuf),
    /// A header that does not decode.
    Header(PathBuf, crate::format::header::HeaderError),
    /// Content that does not open.
    Content(PathBuf, ContentError),
    /// Unmounting failed because something in the mount is in use.
    Busy(PathBuf),
    /// Nothing of ours is mounted there.
    NotMounted(PathBuf),
    /// fusermount3, in its words.
    Unmount(PathBuf, String),
    /// The daemon still writes after the time that `umount` waits.
    StillWriting(PathBuf),
    /// The wrapping keys of a vault.
    Recipient(keys::RecipientError),
    /// A wrapping key that headers still name.
    StillNamed {
        /// Its row.
        row: u8,
        /// Files with a copy for it.
        named: u64,
        /// Files that it alone opens.
        sole: u64,
        /// Files whose header cannot be read, so that they may have one, too.
        unread: u64,
        /// The vault.
        vault: PathBuf,
    },
    /// Work on all files of a vault.
    Upkeep(UpkeepError),
    /// The command line.
    Usage(String),
}

impl CliError {
    /// An I/O error of `path`.
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |e| Self::Io(path.to_owned(), e)
    }

    /// What the process ends with; the background process has chosen already.
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Daemon(code) => *code,
            Self::Incomplete(_) => INCOMPLETE,
            other => other.exit().code(),
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Vault(e) => vault_exit(e),
            Self::InUse(_) => Exit::InUse,
            Self::Key(e) => key_exit(e),
            Self::Top(_, FsError::Key(e)) => key_exit(e),
            Self::Hsm(e) => super::hsm::exit_of(e.as_ref()),
            Self::Kms(e) => super::store::exit_of(e.as_ref()),
            Self::MountPoint(..) | Self::Busy(_) | Self::NotMounted(_) => Exit::MountPoint,
            Self::Mount(..) => Exit::Fuse,
            Self::Secret(_) | Self::NoProtection(_) => Exit::KeyDenied,
            Self::NotALowerFile(_) => Exit::NotAVault,
            Self::Header(..) => Exit::Format,
            Self::Content(_, ContentError::Damaged(_)) => Exit::Faults,
            Self::Recipient(e) => recipient_exit(e),
            Self::Upkeep(UpkeepError::Key(e)) => key_exit(e),
            Self::Upkeep(UpkeepError::Busy) => Exit::InUse,
            Self::Usage(_) => Exit::Usage,
            // Whatever the reason: 3 would say that something was stored.
            Self::Backup(_) | Self::Incomplete(_) | Self::NothingStored(_) => Exit::Failure,
            Self::Daemon(_)
            | Self::Bench(_)
            | Self::Top(..)
            | Self::Io(..)
            | Self::StillNamed { .. }
            | Self::Upkeep(UpkeepError::Io { .. } | UpkeepError::File { .. })
            | Self::Content(..)
            | Self::Unmount(..)
            | Self::StillWriting(_) => Exit::Failure,
        }
    }

    /// Prints what failed and what to do.
    pub(super) fn print(&self) {
        if matches!(self, Self::Daemon(_)) {
            return;
        }
        eprintln!("envelopefs: {self}");
        if let Some(advice) = self.advice() {
            for line in advice.lines() {
                eprintln!("  {line}");
            }
        }
    }

    /// What to do about it. All advice of the program stands here.
    fn advice(&self) -> Option<String> {
        let text = match self {
            Self::Vault(OpenError::NotAVault(dir)) => format!("Make one with: envelopefs init {dir}"),
            Self::Vault(OpenError::Exists(dir)) => format!("Mount it with: envelopefs mount {dir} MOUNTPOINT"),
            Self::Vault(OpenError::NotEmpty(_)) => "Give an empty or a new directory.".into(),
            Self::Vault(OpenError::NoXattrs(_)) => {
                "Use a directory on ext4, XFS, Btrfs, ZFS or tmpfs (Linux 6.6 or later).".into()
            }
            Self::Vault(OpenError::Tampered(_)) => {
                "Nothing was mounted. Restore .envelopefs/vault.toml from a backup you trust.".into()
            }
            Self::Vault(OpenError::Config { source: ConfigError::Newer { .. }, .. }) => return None,
            Self::Vault(OpenError::Config { .. }) => "Restore the file from a backup you trust.".into(),
            Self::Vault(OpenError::Key(e)) | Self::Key(e) | Self::Top(_, FsError::Key(e)) => return key_advice(e),
            Self::Top(dir, FsError::Replay(e)) => return Some(replay_advice(dir, e)),
            Self::InUse(dir) => format!(
                "See where it is mounted: findmnt -S {}\nSeveral mounts at once, of several hosts, need --shared.",
                dir.display()
            ),
            Self::MountPoint(path, fault) => return fault.advice(path),
            Self::Mount(_, MountError::NoDevice(e)) if e.kind() == io::ErrorKind::PermissionDenied => {
                "Its mode lets only root open it; on most systems it is 0666: chmod 666 /dev/fuse".into()
            }
            Self::Mount(_, MountError::NoDevice(_)) => {
                "Load the module with: modprobe fuse. In a container, pass --device /dev/fuse --cap-add SYS_ADMIN.".into()
            }
            Self::Mount(_, MountError::NoHelper(_)) => "Install it with: apt install fuse3".into(),
            Self::Mount(_, MountError::AllowOther) => {
                "Ask root to put the line user_allow_other into /etc/fuse.conf, or mount without allow_other.".into()
            }
            Self::Mount(_, MountError::NoRings(NoRings::SwitchedOff)) => {
                "As root: echo Y > /sys/module/fuse/parameters/enable_uring. Or mount with --transport device.".into()
            }
            Self::Mount(_, MountError::NoRings(_)) => "Mount with --transport device.".into(),
            Self::NoProtection(_) => "Choose one:\n\
                 --kms-key-file         a key file beside the store, mode 0600: starts unattended\n\
                 --passphrase-file F    a passphrase, read from a file\n\
                 --passphrase-fd N      a passphrase, read from a descriptor\n\
                 ENVELOPEFS_PASSPHRASE  a passphrase, from the environment\n\
                 or run the command on a terminal to be asked."
                .into(),
            Self::NotALowerFile(_) => {
                "Give a file of the vault itself (ciphertext), not one seen through the mount.".into()
            }
            Self::Backup(e) => return backup_advice(e),
            Self::NothingStored(e) => return e.advice(),
            Self::Busy(path) => format!(
                "See who uses it: fuser -vm {}\nOr let go of it as soon as it is idle: envelopefs umount --lazy {0}",
                path.display()
            ),
            Self::Bench(BenchError::Missing(program)) => format!("Install it with: apt install {program}"),
            Self::StillNamed { named: 0, vault, .. } => format!(
                "See which and why: envelopefs check {}\n\
                 New files are no longer wrapped for it. Take it away all the same with --force.",
                vault.display()
            ),
            Self::StillNamed { vault, .. } => format!(
                "Bring them to the other keys, then remove it again: envelopefs rewrap {0}\n\
                 New files are no longer wrapped for it.",
                vault.display()
            ),
            Self::Recipient(keys::RecipientError::Open(OpenError::Key(e))) | Self::Upkeep(UpkeepError::Key(e)) => {
                return key_advice(e);
            }
            Self::StillWriting(_) => "It ends when everything is on the disk; wait before you copy the vault.".into(),
            _ => return None,
        };
        Some(text)
    }
}

fn recipient_exit(e: &keys::RecipientError) -> Exit {
    use keys::RecipientError as E;
    match e {
        E::Open(e) => vault_exit(e),
        E::Unknown(_) => Exit::KeyUnavailable,
        E::OneWay(..) => Exit::KeyDenied,
        E::Exists(_) | E::Last(_) | E::Full(_) | E::Envelope(_) | E::Spent | E::Overtaken => Exit::Failure,
    }
}

fn backup_advice(e: &BackupError) -> Option<String> {
    let text = match e {
        BackupError::NotAVault(_) => "Give the directory with the ciphertext, not its mount point.".into(),
        BackupError::Exists(place) => format!("Store into it with: envelopefs backup run VAULT {place}"),
        BackupError::NoRepository(place) => format!("Make one with: envelopefs backup init VAULT {place}"),
        BackupError::WrongKey(_) => {
            "Give its key file with --key-file FILE; with the vault's master key, --vault-key opens it too.".into()
        }
        BackupError::NoXattrs(_) => {
            "Nothing was written. Give a directory on ext4, XFS, Btrfs, ZFS or tmpfs (Linux 6.6 or later).".into()
        }
        BackupError::NoSpace { .. } => "Nothing was written. Free space, or give another directory.".into(),
        BackupError::NoSnapshot(place, _) => format!("List them with: envelopefs backup list {place}"),
        BackupError::NoPath(..) => "Paths are those of the ciphertext, from the vault's top.".into(),
        BackupError::Mounted(_) => "Unmount it first, or restore to another directory.".into(),
        BackupError::OtherVault { .. } => {
            "Nothing was written. Restore to another directory; --vault-id ID takes snapshots of one vault only.".into()
        }
        BackupError::Pending(_) => {
            "Nothing was written. Mount the vault once, which brings them in, or restore to another directory.".into()
        }
        BackupError::SeveralVaults(..) => "Say which one with --vault-id ID.".into(),
        BackupError::Store { fault: StoreFault::Denied, .. } => {
            "Credentials come from the environment (AWS_ACCESS_KEY_ID, ...), --profile, web identity or the instance.\n\
             `backup run` needs s3:GetObject, s3:PutObject and s3:ListBucket."
                .into()
        }
        BackupError::Store { fault: StoreFault::NotFound, .. } => {
            "Is the bucket there, and the endpoint (--endpoint URL) right?".into()
        }
        BackupError::Store { fault: StoreFault::Clock, .. } => "Set this machine's clock.".into(),
        BackupError::Store { fault: StoreFault::Unreachable, .. } => {
            "Run it again when the store answers: what was stored so far is kept.".into()
        }
        BackupError::Hook { .. } => {
            "The program is run as `PROGRAM make VAULT`, which prints a path, and `PROGRAM remove PATH`: docs/BACKUP.md.".into()
        }
        BackupError::KeyFile { .. }
        | BackupError::JournalAlone(_)
        | BackupError::Location(..)
        | BackupError::Repository { .. }
        | BackupError::Format { .. }
        | BackupError::Io { .. }
        | BackupError::Store { .. } => return None,
    };
    Some(text)
}

fn vault_exit(e: &OpenError) -> Exit {
    match e {
        OpenError::NotAVault(_) => Exit::NotAVault,
        OpenError::Exists(_) | OpenError::NotEmpty(_) | OpenError::NoXattrs(_) => Exit::Unsuitable,
        OpenError::Config { .. } => Exit::Format,
        OpenError::Tampered(_) => Exit::Tampered,
        OpenError::Key(e) => key_exit(e),
        OpenError::Io { .. } => Exit::Failure,
    }
}

fn replay_advice(dir: &Path, e: &io::Error) -> String {
    if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return "Free space on the vault's filesystem, then mount again. To read it as it is meanwhile: -o ro".into();
    }
    format!(
        "Mount again when the disk is well. To bring in what can be, the rest put aside in .envelopefs/lost+found:\n\
         envelopefs check --repair {}",
        dir.display()
    )
}

pub(super) fn key_exit(e: &KeyError) -> Exit {
    match e {
        KeyError::Uri { .. } => Exit::Usage,
        KeyError::Disabled(_) | KeyError::Denied(_) | KeyError::Foreign => Exit::KeyDenied,
        KeyError::NotFound(_) | KeyError::Unreachable(_) | KeyError::NoSuchRow(_) => Exit::KeyUnavailable,
        KeyError::Header(_) => Exit::Format,
    }
}

fn key_advice(e: &KeyError) -> Option<String> {
    let text = match e {
        KeyError::Uri { .. } => {
            "For the embedded KMS: kms:embedded/alias/NAME or kms:embedded/KEY-ID\nFor AWS KMS: kms:aws/KEY-ARN. For a KMS server: kms:https://HOST[:PORT]/KEY-ARN\nFor a PKCS#11 token: pkcs11:token=TOKEN;object=LABEL?module-path=/path/module.so"
        }
        KeyError::NotFound(why) if why.starts_with("pkcs11:") => {
            "List the keys with: pkcs11-tool --module MODULE --login --list-objects"
        }
        KeyError::NotFound(_) => "List the keys with: envelopefs kms list-keys. Another store: --kms-dir DIR",
        KeyError::Disabled(_) => "Ask the key's administrator to enable it.",
        KeyError::Foreign => {
            "If the KMS store was restored or replaced, give the right one with --kms-dir DIR."
        }
        KeyError::Denied(_) | KeyError::Unreachable(_) | KeyError::NoSuchRow(_) | KeyError::Header(_) => {
            return None;
        }
    };
    Some(text.into())
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vault(e) => e.fmt(f),
            Self::InUse(dir) => write!(f, "{}: the vault is mounted already", dir.display()),
            Self::Top(dir, e) => write!(f, "{}: {e}", dir.display()),
            Self::Key(e) => e.fmt(f),
            Self::Kms(e) | Self::Hsm(e) => e.fmt(f),
            Self::Backup(e) => e.fmt(f),
            Self::Incomplete(what) => f.write_str(what),
            Self::NothingStored(e) => e.fmt(f),
            Self::Bench(e) => e.fmt(f),
            Self::MountPoint(path, fault) => write!(f, "{}: {fault}", path.display()),
            Self::Mount(path, e) => write!(f, "{}: {e}", path.display()),
            Self::Daemon(code) => write!(f, "the background process ended with status {code}"),
            Self::Recipient(e) => e.fmt(f),
            Self::Upkeep(e) => e.fmt(f),
            Self::StillNamed { row, named: 0, unread, .. } => {
                write!(f, "wrapping key {row} may be named by {unread} files whose header cannot be read")
            }
            Self::StillNamed { row, named, sole, unread, .. } => {
                write!(
                    f,
                    "wrapping key {row} is named by {named} files, {sole} of which no other key opens"
                )?;
                match unread {
                    0 => Ok(()),
                    n => write!(f, "; {n} more have a header that cannot be read"),
                }
            }
            Self::Secret(why) | Self::Usage(why) => f.write_str(why),
            Self::NoProtection(dir) => {
                write!(f, "{}: a new KMS store needs a protection for its root key", dir.display())
            }
            Self::Io(path, e) => write!(f, "{}: {e}", path.display()),
            Self::NotALowerFile(path) => {
                write!(f, "{}: no lower file of a vault (it has no xattr user.efs.key)", path.display())
            }
            Self::Header(path, e) => write!(f, "{}: {e}", path.display()),
            Self::Content(path, e) => write!(f, "{}: {e}", path.display()),
            Self::Busy(path) => write!(f, "{}: in use", path.display()),
            Self::NotMounted(path) => write!(f, "{}: no EnvelopeFS mount", path.display()),
            Self::Unmount(path, why) => write!(f, "{}: {why}", path.display()),
            Self::StillWriting(path) => {
                write!(f, "{}: unmounted, but its daemon is still writing to the vault", path.display())
            }
        }
    }
}

impl From<OpenError> for CliError {
    fn from(e: OpenError) -> Self {
        Self::Vault(e)
    }
}

impl From<keys::RecipientError> for CliError {
    fn from(e: keys::RecipientError) -> Self {
        Self::Recipient(e)
    }
}

impl From<UpkeepError> for CliError {
    fn from(e: UpkeepError) -> Self {
        Self::Upkeep(e)
    }
}

impl From<KeyError> for CliError {
    fn from(e: KeyError) -> Self {
        Self::Key(e)
    }
}

impl From<BackupError> for CliError {
    fn from(e: BackupError) -> Self {
        Self::Backup(e)
    }
}
