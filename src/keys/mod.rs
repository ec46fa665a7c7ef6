//! Wraps data keys under keys that never leave their KMS or HSM.
//!
//! Invariant: this module never sees file content, and `content` never sees a provider.
//! No lock is held over a provider call.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::crypto::{DataKey, FileKeys, Secret, VaultKey};
use crate::format::config::VolumeConfig;
use crate::format::header::{FileHeader, Wrapped};
use crate::format::ids::{FileId, VaultId};

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
        todo!()
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

/// The keys of one open vault: providers by row, cache of unwrapped data keys, pool of ready ones.
pub struct Keyring {
    _private: (),
}

impl Keyring {
    /// The vault key, for names, symlinks and xattrs.
    pub fn vault_key(&self) -> &VaultKey {
        todo!()
    }

    /// The volume config this keyring was opened from.
    pub fn config(&self) -> &VolumeConfig {
        todo!()
    }

    /// Takes a ready data key from the pool (which refills in the background), or asks the provider.
    pub fn new_file(&self) -> Result<NewFile, KeyError> {
        todo!()
    }

    /// The keys of an existing file: from the cache, or unwrapped by the first recipient that can.
    pub fn open_file(&self, _header: &FileHeader) -> Result<Arc<FileKeys>, KeyError> {
        todo!()
    }

    /// Wrapping keys by row.
    pub fn describe(&self) -> Vec<(u8, Result<KeyInfo, KeyError>)> {
        todo!()
    }

    /// How many unwraps and generate calls the providers were asked for, for tests that count them.
    pub fn provider_calls(&self) -> (u64, u64) {
        todo!()
    }
}

/// Why a vault cannot be opened or made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No `.envelopefs/vault.toml`.
    #[error("{0} is no vault: it has no .envelopefs/vault.toml")]
    NotAVault(String),
    /// There is one already.
    #[error("{0} is a vault already")]
    Exists(String),
    /// The directory for a new vault holds something.
    #[error("{0} is not empty")]
    NotEmpty(String),
    /// The lower filesystem keeps no user xattrs.
    #[error("{0}: this filesystem does not keep user extended attributes, which hold the wrapped keys")]
    NoXattrs(String),
    /// The config does not decode.
    #[error("{path}: {source}")]
    Config {
        /// The file.
        path: String,
        /// What is wrong.
        source: crate::format::config::ConfigError,
    },
    /// The config's authenticator does not match.
    #[error("{0}: the volume config was changed: its authenticator does not match")]
    Tampered(String),
    /// The provider.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The lower filesystem.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Makes a vault in an empty (or new) directory: vault key, config, root directory id. Durable when it returns.
pub fn init_vault(_dir: &Path, _key_uri: &str, _unlock: &Unlock) -> Result<VolumeConfig, OpenError> {
    todo!()
}

/// Reads and decodes the config without any key; not to be trusted.
pub fn read_config(_dir: &Path) -> Result<VolumeConfig, OpenError> {
    todo!()
}

/// Opens a vault: reads the config, unwraps the vault key, checks the config's authenticator.
pub fn open_vault(_dir: &Path, _unlock: &Unlock) -> Result<Keyring, OpenError> {
    todo!()
}
