//! Work on all files of a vault at once: headers brought to other keys, new data keys, an inventory.
//!
//! Reads and writes the lower files only. `rewrap` and `inventory` run beside a mount; `rekey` wants the vault alone.

mod inventory;
mod rekey;
mod rewrap;
mod state;
#[cfg(test)]
mod tests;
mod walk;

use std::num::NonZeroU32;
use std::path::PathBuf;

pub use inventory::{Inventory, Used, inventory};
pub use rekey::{rekey_file, rekey_vault};
pub use rewrap::{Mounts, rewrap, settle};
pub use state::{WorkLock, interrupted};

/// Failures that are kept by name; the rest is counted.
const NAMED: usize = 1000;

/// Who watches.
pub trait Watch: Sync {
    /// One more file is done; false stops the work.
    fn file_done(&self) -> bool;
}

impl Watch for () {
    fn file_done(&self) -> bool {
        true
    }
}

/// Files at once, at most: each takes a thread and a descriptor.
pub const MOST_JOBS: usize = 256;

/// How the work is done.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Files at once, 1 to [`MOST_JOBS`].
    pub jobs: usize,
    /// Files a second at most.
    pub rate: Option<NonZeroU32>,
}

/// What became of the files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Files that were looked at in the last pass.
    pub files: u64,
    /// Of all passes: files that were changed.
    pub changed: u64,
    /// Files without a header.
    pub bare: u64,
    /// Files left as they are, and why (lower path).
    pub skipped: Failures,
    /// Files that failed, and why.
    pub failed: Failures,
    /// Whether it was stopped.
    pub interrupted: bool,
}

/// Files by name, up to a bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// How many.
    pub count: u64,
    /// The first of them: lower path below the vault, reason.
    pub named: Vec<(PathBuf, String)>,
}

impl Failures {
    fn add(&mut self, path: PathBuf, why: String) {
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push((path, why));
        }
    }
}

/// Why the work did not begin, or could not be finished.
#[derive(Debug, thiserror::Error)]
pub enum UpkeepError {
    /// A key that all of it needs.
    #[error(transparent)]
    Key(#[from] crate::keys::KeyError),
    /// The vault's own files.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another one is at work.
    #[error("another rewrap, rekey or change of the wrapping keys is at work on this vault")]
    Busy,
    /// One file that was asked for.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

impl UpkeepError {
    fn io(path: impl Into<PathBuf>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.into();
        |e| Self::Io { path, source: e.into() }
    }
}
