//! Mending what a crash leaves in a vault that nobody has mounted: temporary names, sidecars without a name, lower
//! files longer than their length says, and fresh files whose content a power cut tore.
//!
//! Used by a mount after a power cut and by `check --repair`. Nothing is thrown away: a torn file is copied whole
//! into `.envelopefs/lost+found`, durably, before it becomes what it was at its creation, an empty file; what cannot
//! be placed is moved there. What no crash explains (a settled file that does not open, a missing header, a name
//! that does not decode) is left as it is, for `check` to report.
//!
//! Works on descriptors of directories and never follows a symlink of the lower filesystem.

mod content;
mod dir;
mod lost;
mod names;
mod walk;

use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::io::Errno;
use serde::Serialize;

use crate::format::layout::disk_len;
use crate::format::names::VAULT_DIR;
use crate::vault::entry;
pub use lost::LostFound;
pub use walk::{mend, mend_fresh};

/// A time of the lower filesystem: seconds since 1970 and nanoseconds.
pub type Born = (i64, u32);

/// File below the vault's own directory that says how far an interrupted repair came.
pub const REPAIR_STATE: &str = "repair.state";

/// Length of the lower file of an empty file.
const EMPTY: u64 = disk_len(0);

/// Who watches a repair.
pub trait Watch: Sync {
    /// One more regular file was looked at; false stops the repair.
    fn looked_at(&self) -> bool;
}

/// Watches nothing, stops nothing.
impl Watch for () {
    fn looked_at(&self) -> bool {
        true
    }
}

/// Whether an error comes from a failing or full disk or a busy machine, so that another try may not meet it. Others
/// (permissions, names) stay what they are.
pub(super) fn may_pass(e: Errno) -> bool {
    let passing = [
        Errno::IO,
        Errno::NOSPC,
        Errno::DQUOT,
        Errno::NOMEM,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NODEV,
        Errno::TIMEDOUT,
        Errno::STALE,
        Errno::ROFS,
    ];
    passing.contains(&e)
}

/// Called by a mount that may change the vault: an interrupted repair has to begin anew.
pub fn forget_state(top: impl AsFd) {
    // Without one there is nothing to forget; on a read-only disk nothing changes.
    let _ = entry::open_dir_path(top, VAULT_DIR).and_then(|dir| entry::unlink(dir, REPAIR_STATE));
}

/// What was done to a lower object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deed {
    /// The lower file was cut to what its authenticated length needs.
    Cut,
    /// A fresh file that a power cut tore is empty now; a copy of what it was is kept.
    Emptied,
    /// A leftover without content was removed.
    Removed,
    /// Something that cannot be placed was moved to `lost+found`.
    Kept,
    /// Changes that stood in the journal were brought to their places.
    Replayed,
}

/// One thing that was mended.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Mended {
    /// Path in the vault, from its top.
    pub lower: PathBuf,
    /// Path as the mount shows it, as far as its names decode.
    pub plain: Option<PathBuf>,
    /// What was done.
    pub deed: Deed,
    /// Why, in words.
    pub why: String,
    /// Where what it was is kept, from the vault's top.
    pub kept: Option<PathBuf>,
}

/// What a repair did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// What was mended, by lower path.
    pub mended: Vec<Mended>,
    /// What could not be mended, with the reason: lower path, plaintext path, words.
    pub failed: Vec<(PathBuf, Option<PathBuf>, String)>,
    /// The first that failed with an error that may pass.
    pub trouble: Option<(PathBuf, Errno)>,
    /// Regular files that were looked at.
    pub files: u64,
    /// Whether someone stopped the repair before its end.
    pub interrupted: bool,
}
