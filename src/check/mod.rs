//! Verifies a vault: opens every name, directory id, symlink target, xattr, header and block, and lists each fault
//! with its lower path and, where the names decode, its plaintext path.
//!
//! A check reads only, and never follows a symlink of the lower filesystem. A vault that changes meanwhile may show faults
//! that are none; the caller holds the vault's lock. A repair first mends what a crash can leave ([`crate::fs::recover`]).

mod content;
mod names;
mod repair;
mod report;
mod state;
mod track;
mod walk;

pub use repair::repair;
pub use report::{Counts, Fault, Kind, Report};
pub use walk::{Progress, check};
