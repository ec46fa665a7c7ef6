//! Ciphers, key types, derivations, locked memory. The main island of `unsafe`.
//!
//! One type per purpose; no key type is `Clone`, prints its bytes or leaves them behind.

pub mod block;
pub mod derive;
pub mod kernel;
pub mod locked;
pub mod names;
pub mod random;
pub mod seal;

pub use block::{FileKeys, Tampered};
pub use locked::{LockStatus, Locked, Secret, lock_status};
pub use names::{DirKey, LinkKey, XattrKey};
pub use seal::SealKey;

/// The key of one file's content. Only wrapped copies of it are stored.
#[derive(Debug)]
pub struct DataKey(pub Secret<32>);

/// The key of a vault's names, symlinks, xattrs and config. Only wrapped copies of it are stored.
#[derive(Debug)]
pub struct VaultKey(pub Secret<32>);
