//! Wraps data keys under keys that never leave their KMS or HSM.
//!
//! Invariant: this module never sees file content, and `content` never sees a provider.
//! No lock of this module is held over a provider call.

mod breaker;
mod cache;
mod edit;
mod embedded;
mod envelope;
mod init;
mod keyring;
mod open;
mod outage;
mod pool;
mod prefetch;
mod providers;
mod recipients;
mod recovery;
#[cfg(feature = "aws")]
mod remote;
mod rewrap;
mod table;
#[cfg(test)]
mod tests;
pub mod token;
mod uri;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::crypto::{DataKey, FileKeys, Secret};
use crate::format::header::Wrapped;
use crate::format::ids::{FileId, VaultId};

pub use embedded::{EnsuredKey, ensure_embedded_key};
pub use envelope::Renewal;
pub use init::{Mode, init_vault, init_vault_as};
pub use keyring::{Keyring, Tuning};
pub use open::{OpenError, open_vault, open_vault_tuned, read_config};
pub use prefetch::Ahead;
pub use recipients::RecipientError;
pub use recovery::{RecoveryKey, RecoveryTextError};
pub use rewrap::{Rewrapped, Target};
pub use token::TokenUri;
pub use uri::{DEFAULT_URI, KeyUri, RemoteKey};

/// What a wrapped key is the key of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject {
    /// The vault: names, symlinks, xattrs, config.
    Vault,
    /// One file's content.
    File(FileId),
    /// The data keys of a vault in envelope mode: the key-encryption key with this number.
    Envelope(u16),
}

/// What a wrapped key is bound to: the KMS's encryption context, an AEAD's associated data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrapContext {
    /// The vault.
    pub vault: VaultId,
    /// What the key is for.
    pub subject: Subject,
}

impl WrapContext {
    /// Of the vault key.
    pub fn of_vault(vault: VaultId) -> Self {
        Self { vault, subject: Subject::Vault }
    }

    /// Of a file's data key.
    pub fn of_file(vault: VaultId, file: FileId) -> Self {
        Self { vault, subject: Subject::File(file) }
    }

    /// Of a key-encryption key.
    pub fn of_envelope(vault: VaultId, number: u16) -> Self {
        Self { vault, subject: Subject::Envelope(number) }
    }

    /// The file, where the key is a data key.
    pub fn file(&self) -> Option<&FileId> {
        match &self.subject {
            Subject::File(file) => Some(file),
            Subject::Vault | Subject::Envelope(_) => None,
        }
    }

    /// As an AWS KMS EncryptionContext: `envelopefs:vault`, `envelopefs:purpose`, and `envelopefs:file` or
    /// `envelopefs:number`.
    pub fn encryption_context(&self) -> BTreeMap<String, String> {
        let (purpose, more) = match &self.subject {
            Subject::Vault => ("vault", None),
            Subject::File(file) => ("file", Some(("envelopefs:file", file.to_string()))),
            Subject::Envelope(number) => ("envelope", Some(("envelopefs:number", number.to_string()))),
        };
        let fixed =
            [("envelopefs:vault", self.vault.to_string()), ("envelopefs:purpose", purpose.to_owned())];
        fixed.into_iter().chain(more).map(|(key, value)| (key.to_owned(), value)).collect()
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

impl KeyError {
    /// Whether the provider gives no keys at all just now, rather than not this one.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Denied(_) | Self::Disabled(_) | Self::NotFound(_) => true,
            Self::Uri { .. } | Self::Foreign | Self::NoSuchRow(_) | Self::Header(_) => false,
        }
    }
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
    /// provider that opens a store or a connection does so once. One that stops answering midway may give fewer, in
    /// order, but at least one.
    fn generate(&self, contexts: &[WrapContext]) -> Result<Vec<(DataKey, Wrapped)>, KeyError>;
    /// Wraps a given key (recipients, vault key).
    fn wrap(&self, key: &Secret<32>, context: &WrapContext) -> Result<Wrapped, KeyError>;
    /// Wraps many given keys, in order; a provider that is far away does several at once.
    fn wrap_each(&self, keys: &[(&Secret<32>, WrapContext)]) -> Result<Vec<Wrapped>, KeyError> {
        keys.iter().map(|(key, context)| self.wrap(key, context)).collect()
    }
    /// Unwraps (AWS Decrypt).
    fn unwrap(&self, wrapped: &Wrapped, context: &WrapContext) -> Result<Secret<32>, KeyError>;
    /// A number that changes when new keys would be wrapped differently (a rotation). Asked for about once a second,
    /// so it must be cheap; `None` where the provider cannot tell cheaply.
    fn wrapping_version(&self) -> Option<u16> {
        None
    }
    /// Whether it can unwrap at all: a recovery key wraps without its secret half.
    fn can_unwrap(&self) -> bool {
        true
    }
    /// Whether who knows a public half can wrap: then only keys whose list is authenticated may be (envelope mode).
    /// Known once the key was described.
    fn is_forgeable(&self) -> bool {
        false
    }
    /// Whether a call goes over a network: then keys are made ahead in small batches, many at once.
    fn is_far(&self) -> bool {
        false
    }
    /// The service that holds the key, where keys of one service can be exchanged inside it (AWS ReEncrypt).
    fn service(&self) -> Option<&str> {
        None
    }
    /// Wraps anew what a key of the same [`Provider::service`] wrapped, without the plaintext key leaving it.
    /// `from` is that key, as [`Provider::describe`] of it names it.
    fn re_encrypt(
        &self,
        _from: &str,
        _wrapped: &Wrapped,
        _context: &WrapContext,
    ) -> Result<Wrapped, KeyError> {
        Err(KeyError::Foreign)
    }
    /// Ends its threads; the next call starts new ones. For a process that is about to restrict itself: threads keep
    /// the rights they were started with.
    fn settle(&self) {}
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
#[derive(Clone, Default)]
pub struct Unlock {
    /// Directory of the embedded KMS's store; `None` for the default.
    pub kms_dir: Option<std::path::PathBuf>,
    /// Passphrase of the embedded KMS's root key, where it has one.
    pub passphrase: Option<zeroize::Zeroizing<String>>,
    /// The secret half of a recovery key.
    pub recovery: Option<Arc<RecoveryKey>>,
    /// Address of the HSM that our own PKCS#11 module talks to; `None` for that of the environment.
    pub hsm: Option<String>,
    /// PIN of the PKCS#11 tokens whose URIs name no file for it.
    pub pin: Option<zeroize::Zeroizing<String>>,
}

impl std::fmt::Debug for Unlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unlock")
            .field("kms_dir", &self.kms_dir)
            .field("passphrase", &self.passphrase.as_ref().map(|_| ".."))
            .field("recovery", &self.recovery.as_ref().map(|_| ".."))
            .finish()
    }
}
