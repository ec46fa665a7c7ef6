//! Why an appliance does not start or a management command fails. PKCS#11 calls answer with CK_RV instead.

use std::io;
use std::path::{Path, PathBuf};

/// What failed, why, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum HsmError {
    /// The operating system refused something on a path.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or socket.
        path: PathBuf,
        /// The system's own words.
        source: io::Error,
    },
    /// There is no appliance in the directory.
    #[error("{dir}: no HSM here; make one with: envelopefs hsm cluster create --dir {dir}", dir = .0.display())]
    NoHsm(PathBuf),
    /// The directory holds something already.
    #[error("{}: not empty; give a new or an empty directory", .0.display())]
    Exists(PathBuf),
    /// Others could read what only the appliance may.
    #[error("{}: {why}", path.display())]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Mode or owner, and the cure.
        why: String,
    },
    /// A file was changed, cut, or is of another version.
    #[error("{}: {why}; restore the HSM from a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which part.
        why: String,
    },
    /// A wrong passphrase, or none.
    #[error("{0}")]
    Denied(String),
    /// The appliance's answer to a management command, or a setting that cannot be.
    #[error("{0}")]
    Refused(String),
    /// Another process serves this directory.
    #[error("{}: another process serves this HSM; stop it first", .0.display())]
    Busy(PathBuf),
    /// No appliance answers.
    #[error("{at}: {why}")]
    Unreachable {
        /// The address.
        at: String,
        /// What went wrong, and what to do.
        why: String,
    },
}

impl HsmError {
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn damaged(path: &Path, why: impl std::fmt::Display) -> Self {
        Self::Damaged { path: path.to_owned(), why: why.to_string() }
    }
}
