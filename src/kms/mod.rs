//! The embedded KMS, first cut: keys with versions and aliases in a private, sealed, durable store.
//!
//! Operations, errors and limits follow AWS KMS. Key material never leaves this folder; data keys leave it once,
//! when they are made or unwrapped. Not here: policies, grants, quotas, the wire protocol.

mod arn;
pub mod audit;
mod blob;
mod context;
mod crypt;
mod dir;
mod engine;
mod error;
mod hex;
mod keys;
mod labels;
pub mod policy;
pub mod quota;
mod records;
mod root;
mod store;
mod table;
#[cfg(test)]
mod tests;
pub mod usage;

pub use context::{EncryptionContext, canonical};
pub use crypt::{Compact, Decrypted, Encrypted};
pub use dir::default_dir;
pub use engine::{Engine, Limits, reprotect};
pub use error::KmsError;
pub use records::{AliasEntry, KeyEntry, KeyMetadata, RotationEntry};
pub use root::{Cost, Protection, ProtectionKind, protection};
