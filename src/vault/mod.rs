//! Ciphertext on the backing disk: files, directories, atomic replacement. No keys, no plaintext.

pub mod file;

pub use file::{DiskFile, LowerFile};
