//! Verifies a vault: opens every name, directory id, symlink target, xattr, header and block, and lists each fault
//! with its lower path and, where the names decode, its plaintext path.
//!
//! Reads only, and never follows a symlink of the lower filesystem. A vault that changes meanwhile may show faults
//! that are none; the caller holds the vault's lock.

mod content;
mod names;
mod report;
mod walk;

pub use report::{Fault, Kind, Report};
pub use walk::{Progress, check};
