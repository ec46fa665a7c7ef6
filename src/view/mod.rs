//! Mounts that show ciphertext: a vault with its headers inside the files, for tools that keep nothing but bytes; and a
//! snapshot of a repository as a lower directory, over which `fs` shows the plaintext.
//!
//! Both are read-only and know no key.

mod ciphertext;
mod nodes;
mod snapshot;

pub use ciphertext::CiphertextView;
pub use snapshot::SnapshotView;
