//! What the audit log can fail with.

use std::path::{Path, PathBuf};

/// Why an event was not written, or the log not read.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The disk below the log.
    #[error("audit log {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The head was changed, or is another store's.
    #[error("audit log {}: the head does not authenticate: it was changed, or is another store's", .0.display())]
    Head(PathBuf),
}

impl AuditError {
    /// Attaches the file to what the system said.
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
