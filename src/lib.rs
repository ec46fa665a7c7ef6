//! EnvelopeFS: a FUSE filesystem that encrypts each file with its own data key.
//!
//! The layers, lowest first, and what each may import, stand in `docs/ARCHITECTURE.md`;
//! `tests/architecture.rs` keeps their direction.

pub mod backup;
pub mod bench;
pub mod check;
pub mod cli;
pub mod content;
pub mod crypto;
pub mod format;
pub mod fs;
pub mod fuse;
pub mod hsm;
pub mod keys;
pub mod kms;
pub mod pipeline;
pub mod upkeep;
pub mod vault;
pub mod view;
