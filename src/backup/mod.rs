//! Backup of a vault's ciphertext to S3, and its way back. Imports neither `crypto` nor `keys`: it cannot decrypt.
//!
//! A repository has the format of restic, which `rustic_core` writes: deduplicated, compressed lightly (trees are text, map
//! pages have empty ends), in chunks of exactly one group of a lower file, so that what changed of a file is what is sent.
//! Nothing of the library's own reading and restoring is used, since both pass over what they cannot do: a run names
//! every file that it could not store whole, and a restore compares what it wrote.
//!
//! `docs/BACKUP.md` says what is promised.

mod backend;
mod census;
mod daemon;
mod error;
pub mod headers;
mod held;
mod hook;
mod import;
mod meter;
mod node;
mod repo;
mod restore;
mod run;
mod running;
mod s3;
mod source;
mod stored;
mod verify;
mod walk;

pub use daemon::{Control, Daemon, SOCKET};
pub use error::{BackupError, Result, StoreFault};
pub use hook::SnapshotHook;
pub use import::import;
pub use meter::{Meter, Reading};
pub use repo::{ContentRef, Forgotten, Item, Keep, Pruned, Reader, Repo, Snapshot, new_password};
pub use restore::own::vault_at;
pub use restore::{Journal, Restore, Restored, journal, restore};
pub use run::{Access, RunOptions, RunReport, access};
pub use s3::{Objects, Place, StoreOptions, is_location};
pub use source::ROOT;
pub use stored::StoredFile;
pub use verify::{Verified, Verify};
pub use walk::{Entry, Missed, Tree, Walk, Xattr};
