//! Why a backup, or its way back, failed. What to do about each stands in `cli`.

use std::io;
use std::path::{Path, PathBuf};

/// What a store answered, as far as it decides what to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreFault {
    /// No such bucket or object.
    NotFound,
    /// The credentials are missing, wrong, too old, or do not permit this.
    Denied,
    /// An object is there already that must not be.
    Exists,
    /// The clock of this machine and the store's differ too much.
    Clock,
    /// No answer in time, or one that says "later", again and again.
    Unreachable,
    /// Anything else.
    Other,
}

/// Why a backup command failed.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The local disk.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The directory is no vault.
    #[error("{0} is no vault: it has no .envelopefs/vault.toml")]
    NotAVault(PathBuf),
    /// Text that names no place for a repository.
    #[error("repository {0}: {1}")]
    Location(String, String),
    /// The store.
    #[error("{location}: {what}: {why}")]
    Store {
        /// The repository.
        location: String,
        /// What was being done.
        what: String,
        /// What to make of it.
        fault: StoreFault,
        /// The store's words.
        why: String,
    },
    /// A repository is there already.
    #[error("{0}: there is a repository already")]
    Exists(String),
    /// There is none.
    #[error("{0}: no repository")]
    NoRepository(String),
    /// No key file or vault key opens the repository.
    #[error("{0}: the repository key does not open it")]
    WrongKey(String),
    /// The key file.
    #[error("{path}: {why}")]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The repository, in the words of the library below.
    #[error("{location}: {why}")]
    Repository {
        /// The repository.
        location: String,
        /// What failed.
        why: String,
    },
    /// No snapshot fits.
    #[error("{0}: no snapshot {1}")]
    NoSnapshot(String, String),
    /// A path that the snapshot does not have.
    #[error("snapshot {0} has no {1}")]
    NoPath(String, PathBuf),
    /// The target keeps no user xattrs.
    #[error("{0}: this filesystem does not keep user extended attributes, which hold the wrapped keys")]
    NoXattrs(PathBuf),
    /// The target is too small.
    #[error("{path}: {need} bytes are needed, {free} are free")]
    NoSpace {
        /// The target.
        path: PathBuf,
        /// Bytes to be written.
        need: u64,
        /// Bytes free.
        free: u64,
    },
    /// The target vault is mounted.
    #[error("{0}: the vault is mounted")]
    Mounted(PathBuf),
    /// The target is another vault than the one that comes back.
    #[error("{path}: it is vault {there}, and what comes back is of vault {comes}")]
    OtherVault {
        /// The target.
        path: PathBuf,
        /// Its vault's id.
        there: String,
        /// That of what would come.
        comes: String,
    },
    /// The target has a journal that was not brought in.
    #[error("{0}: its journal has changes that are not in their places yet")]
    Pending(PathBuf),
    /// A journal without the files that it is about.
    #[error("{0}: a journal comes back with the whole vault only")]
    JournalAlone(PathBuf),
    /// The newest snapshot is asked for, and there are several vaults.
    #[error("{0}: it holds snapshots of several vaults: {1}")]
    SeveralVaults(String, String),
    /// The program that makes and removes snapshots.
    #[error("snapshot hook {program} {verb}: {why}")]
    Hook {
        /// The program.
        program: PathBuf,
        /// What it was asked for.
        verb: String,
        /// What went wrong.
        why: String,
    },
    /// A file of exported headers, or a file of the ciphertext view, that does not decode.
    #[error("{path}: {why}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Result of the backup's functions.
pub type Result<T> = std::result::Result<T, BackupError>;

impl BackupError {
    /// The same once more, for somebody else who is to learn of it.
    pub(super) fn again(&self) -> Self {
        match self {
            Self::Store { location, what, fault, why } => Self::Store {
                location: location.clone(),
                what: what.clone(),
                fault: *fault,
                why: why.clone(),
            },
            Self::Repository { location, why } => {
                Self::Repository { location: location.clone(), why: why.clone() }
            }
            other => Self::Repository { location: "the store".into(), why: other.to_string() },
        }
    }

    /// An I/O error of `path`.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    /// A system call's error of `path`.
    pub(super) fn errno(path: &Path) -> impl FnOnce(rustix::io::Errno) -> Self + '_ {
        move |e| Self::Io { path: path.to_owned(), source: e.into() }
    }
}
