//! What a check found.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::fs::recover::Mended;

/// What sort of fault: a script may treat leftovers of a crash unlike damage.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A name that does not decode, or whose sidecar is missing or wrong.
    Name,
    /// A directory without id, or with one that is no id.
    Directory,
    /// A regular file without header: a tool dropped the xattr.
    NoHeader,
    /// A header that does not decode, or whose key does not unwrap.
    Key,
    /// Content that does not open.
    Content,
    /// A symlink target that does not decode.
    Symlink,
    /// An extended attribute that does not decode.
    Xattr,
    /// Nothing this program wrote.
    Foreign,
    /// Left by a crash: harmless, takes space.
    Leftover,
    /// The lower filesystem failed.
    Io,
}

/// One fault.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Fault {
    /// Path in the vault, from its top.
    pub lower: PathBuf,
    /// Path as the mount shows it, as far as its names decode.
    pub plain: Option<PathBuf>,
    /// What sort.
    pub kind: Kind,
    /// What is wrong, in words.
    pub what: String,
}

/// What was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Regular files.
    pub files: u64,
    /// Directories, with the top.
    pub directories: u64,
    /// Symlinks.
    pub symlinks: u64,
    /// FIFOs, sockets, device nodes.
    pub others: u64,
    /// Bytes of lower files that were read.
    pub bytes: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.files += more.files;
        self.directories += more.directories;
        self.symlinks += more.symlinks;
        self.others += more.others;
        self.bytes += more.bytes;
    }
}

/// What was looked at, what was found, and what was mended.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Report {
    /// What was looked at.
    #[serde(flatten)]
    pub counts: Counts,
    /// Every fault that is there now, by lower path.
    pub faults: Vec<Fault>,
    /// What a repair mended, by lower path.
    pub mended: Vec<Mended>,
    /// Objects in `.envelopefs/lost+found`.
    pub lost_found: u64,
    /// What an interrupted repair had found whole was not looked at again.
    pub resumed: bool,
    /// The vault was mounted: nothing was mended, and a file that changed meanwhile may look damaged.
    pub mounted: bool,
    /// Whether someone stopped the check before its end.
    pub interrupted: bool,
}

impl Report {
    /// Whether nothing is damaged: leftovers of a crash are no damage.
    pub fn is_clean(&self) -> bool {
        self.faults.iter().all(|f| f.kind == Kind::Leftover)
    }
}
