//! The KMS: AWS's keys, aliases, grants and operations on a private, sealed, durable store.
//!
//! Operations, errors and limits follow AWS KMS. Key material never leaves this folder; data keys leave it once,
//! when they are made or unwrapped. [`Engine::call`] is AWS's API; the typed operations beside it are the filesystem's.

mod access;
mod api;
mod arn;
pub mod audit;
mod backup;
mod blob;
mod caller;
mod check;
mod cloudhsm;
mod console;
mod context;
#[cfg(test)]
mod cost;
mod crypt;
mod dir;
mod engine;
mod error;
mod grants;
mod hex;
mod hsm;
mod index;
mod keys;
mod labels;
mod owner;
mod pk;
pub mod policy;
mod principals;
pub mod quota;
mod records;
mod report;
mod root;
mod rotate;
mod seams;
mod seed;
pub mod server;
mod sigv4;
mod spec;
mod state;
mod store;
mod table;
#[cfg(test)]
mod tests;
pub mod usage;
mod uses;
mod watch;

pub use api::{Member, actions, members};
pub use arn::Scope;
pub use backup::BackupReport;
pub use caller::{ADMIN_POLICY, Caller, new_request_id};
pub use check::CheckReport;
pub use context::{EncryptionContext, canonical};
pub use crypt::{Compact, Decrypted, Encrypted};
pub use dir::default_dir;
pub use engine::{Engine, Limits, reprotect};
pub use error::KmsError;
pub use hsm::{ClusterError, HsmCluster, HsmSession};
pub use principals::{NewPrincipal, Principal};
pub use records::{AliasEntry, KeyEntry, KeyMetadata, RotationEntry};
pub use report::{filter as audit_filter, report_json};
pub use root::{Cost, Protection, ProtectionKind, RootSecrets, protection, root_uri};
pub use seams::{CallRecord, Observer, RootSealer, RootTokens, ServiceRecord};
pub use sigv4::sign_post;
pub use watch::{audit_dir, usage_file};
