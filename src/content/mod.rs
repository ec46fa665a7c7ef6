//! One encrypted file as a byte array: read, write, truncate, punch, seek.
//!
//! Never sees a provider or a name. Every change of a lower file passes `commit`. A file that is durable as it lies is
//! changed through the journal: nothing that its map speaks for is overwritten before the journal has what it is
//! overwritten with. A file that was just made, or that has no journal, is changed in place, in an order that keeps
//! what was there readable (data, map pages, length; when shrinking: length, then data).
//!
//! Locks, in the order they are taken: the file's gate (shared for reads and for writes that stay on whole
//! blocks, else exclusive), slots of ordinary groups ascending, slots of leaders descending, bitmaps, what is pending,
//! the journal's own. A change passes its file's turnstile (`lease`) before all of them.

mod checkpoint;
mod commit;
mod file;
mod groups;
pub mod journal;
mod lease;
mod map;
mod pending;
mod read;
mod resize;
pub mod salvage;
mod seek;
mod space;
mod span;
mod sync;
mod verify;
pub mod waits;
mod write;

use crate::format::layout::{BlockIndex, GroupIndex};

pub use file::{File, Link, LowerPlace};
pub use journal::Journal;
pub use lease::Lease;
pub use map::MapReport;
pub use pending::Keeper;

/// Why an operation on a file's content failed.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The lower filesystem.
    #[error("lower file: {0}")]
    Io(#[from] std::io::Error),
    /// A damaged or forged place, named.
    #[error("{0}")]
    Damaged(#[from] Fault),
    /// Beyond 16 TiB (EFBIG).
    #[error("beyond the longest file, 16 TiB")]
    TooLong,
}

/// One place in a lower file that does not hold what was written there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Block whose ciphertext does not open.
    #[error("block {}: authentication failed", .0.0)]
    Block(BlockIndex),
    /// Map page that does not verify.
    #[error("map page of group {}: {why}", group.0)]
    Page {
        /// Which.
        group: GroupIndex,
        /// In words.
        why: String,
    },
    /// Inline record that does not open.
    #[error("inline record: {0}")]
    Inline(String),
    /// The lower file is shorter than its authenticated length needs.
    #[error("cut: lower file has {found} bytes, its authenticated length needs {expected}")]
    Cut {
        /// Bytes there are.
        found: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// The lower file is longer than its authenticated length: a crash; readable, mended by the next write.
    #[error("overlong: lower file has {found} bytes, its authenticated length needs {expected}")]
    Overlong {
        /// Bytes there are.
        found: u64,
        /// Bytes there should be.
        expected: u64,
    },
}

/// Result of an operation on content.
pub type Result<T> = std::result::Result<T, ContentError>;

/// A lower filesystem that can neither reserve nor free space takes nothing away from what the file reads as.
fn unless_unsupported(done: std::io::Result<()>) -> Result<()> {
    match done {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => Ok(()),
        other => Ok(other?),
    }
}
