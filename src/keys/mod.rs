//! Wraps data keys under keys that never leave their KMS or HSM.
//!
//! Invariant: this module never sees file content, and `content` never sees a provider.
//! No lock is held over a provider call.

mod cache;
mod embedded;
mod init;
mod keyring;
mod open;
mod pool;
#[cfg(test)]
mod tests;
mod uri;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::crypto::{DataKey, FileKeys, Secret};
use crate::format::header::Wrapped;
use crate::format::ids::{FileId, VaultId};

pub use embedded::{EnsuredKey, ensure_embedded_key};
pub use init::init_vault;
pub use keyring::{Keyring, Tuning};
pub use open::{OpenError, open_vault, open_vault_tuned, read_config};
pub use uri::{DEFAULT_URI, KeyUri};

/// What a wrapped key is bound to: the KMS's encryption context, an AEAD's associated data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrapContext {
    /// The vault.
    pub vault: VaultId,
    /// The file, or `None` for the vault key itself.
    pub file: Option<FileId>,
}

impl WrapContext {
    /// As an AWS KMS EncryptionContext: `envelopefs:vault`, `envelopefs:purpose`, `envelopefs:file`.
    pub fn encryption_context(&self) -> BTreeMap<String, String> {
        let purpose = if self.file.is_some() { "file" } else { "vault" };
        let mut context = BTreeMap::from([
            ("envelopefs:vault".to_owned(), self.vault.to_string()),
            ("envelopefs:purpose".to_owned(), purpose.to_owned()),
        ]);
        if let Some(file) = &self.file {
            context.insert("envelopefs:file".to_owned(), file.to_string());
        }
        context
    }
}

/// Why a key operation failed. Callers tell "denied" from "unreachable" by the variant.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The URI names no provider of this build.
    #[error("key URI {uri}: {why}")]
    Uri {
        /// As given.
        uri: String,
        /// What is wrong with it.
        why: String,
    },
    /// The provider knows no such key (or version).
    #[error("{0}: no such key")]
    NotFound(String),
    /// The key is disabled or waits for deletion.
    #[error("{0}: the key is not enabled")]
    Disabled(String),
    /// The provider refused: wrong passphrase, policy.
    #[error("{0}")]
    Denied(String),
    /// The provider does not answer; trying again later may help.
    #[error("{0}")]
    Unreachable(String),
    /// The wrapped key is not this provider's, or was made for another vault or file, or was changed.
    #[error("the wrapped key does not open: it was changed, or belongs to another file, vault or key")]
    Foreign,
    /// No wrapping key of the volume config fits the header.
    #[error("the header names wrapping key {0}, which the volume config does not have")]
    NoSuchRow(u8),
    /// The header's bytes.
    #[error(transparent)]
    Header(#[from] crate::format::header::HeaderError),
}

/// What an auditor is shown of a wrapping key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// URI as in the volume config.
    pub uri: String,
    /// Stable key id (ARN, CKA_ID).
    pub key_id: String,
    /// Version new keys are wrapped with, where the provider has versions.
    pub version: Option<u16>,
}

/// A master-key provider: embedded KMS, KMS over the wire, PKCS#11.
pub trait Provider: Send + Sync {
    /// Identity and current version of the wrapping key.
    fn describe(&self) -> Result<KeyInfo, KeyError>;
    /// Makes and wraps one data key for each context (AWS GenerateDataKey), in order. One call, many keys: a
    /// provider that opens a store or a connection does so once.
    fn generate(&self, contexts: &[WrapContext]) -> Result<Vec<(DataKey, Wrapped)>, KeyError>;
    /// Wraps a given key (recipients, vault key).
    fn wrap(&self, key: &Secret<32>, context: &WrapContext) -> Result<Wrapped, KeyError>;
    /// Unwraps (AWS Decrypt).
    fn unwrap(&self, wrapped: &Wrapped, context: &WrapContext) -> Result<Secret<32>, KeyError>;
    /// A number that changes when new keys would be wrapped differently (a rotation). Asked for about once a second,
    /// so it must be cheap; `None` where the provider cannot tell cheaply.
    fn wrapping_version(&self) -> Option<u16> {
        None
    }
}

/// A ready identity for a file that is about to be created.
#[derive(Debug)]
pub struct NewFile {
    /// Its id.
    pub file_id: FileId,
    /// Value of its header xattr.
    pub header: Vec<u8>,
    /// Its keys.
    pub keys: Arc<FileKeys>,
}

/// How the provider behind a vault is unlocked. Built by `cli`, which alone prompts.
#[derive(Debug, Default)]
pub struct Unlock {
    /// Directory of the embedded KMS's store; `None` for the default.
    pub kms_dir: Option<std::path::PathBuf>,
    /// Passphrase of the embedded KMS's root key, where it has one.
    pub passphrase: Option<zeroize::Zeroizing<String>>,
}
