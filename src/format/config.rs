//! The volume config `.envelopefs/vault.toml`: what describes a vault.
//!
//! TOML text; its last line is `mac = "…"` (hex), the authenticator over every byte before that line.

use super::ids::VaultId;

/// File name below the vault directory.
pub const CONFIG_FILE: &str = "vault.toml";
/// The newest format this build reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// The most wrapping keys of one vault.
pub const MAX_WRAPPING_KEYS: usize = 64;
/// The longest config that is read.
pub const MAX_CONFIG: usize = 1 << 20;

/// A wrapping key that opens this vault.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WrappingKey {
    /// Row number, as file headers name it. Rows are never renumbered.
    pub index: u8,
    /// Provider and key: `kms:embedded/KEY-ID`, `kms:https://…`, `pkcs11:…`.
    pub uri: String,
    /// The vault key, wrapped by this key (provider's bytes).
    pub wrapped_vault_key: Vec<u8>,
    /// Whether new files are wrapped with this key.
    pub active: bool,
}

/// The decoded volume config.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeConfig {
    /// Format version of the vault.
    pub format: u32,
    /// Identity of the vault.
    pub vault_id: VaultId,
    /// Creation time, seconds since the epoch. Informative.
    pub created: u64,
    /// Every wrapping key, by index.
    pub keys: Vec<WrappingKey>,
}

/// Why text is no volume config.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not UTF-8, not TOML, or a field is missing or of the wrong type.
    #[error("volume config: {0}")]
    Syntax(String),
    /// Written by a newer build.
    #[error("volume config: format {found}, this build reads up to {FORMAT_VERSION}; use a newer envelopefs")]
    Newer {
        /// As stored.
        found: u32,
    },
    /// No `mac` line at the end.
    #[error("volume config: its last line is not the `mac` line: the file is cut or was edited")]
    NoMac,
}

/// Config text split into what is authenticated and the authenticator.
#[derive(Debug)]
pub struct SignedConfig<'a> {
    /// Every byte before the `mac` line.
    pub body: &'a [u8],
    /// The authenticator, 32 bytes.
    pub mac: [u8; 32],
    /// The decoded body. Not to be trusted before the authenticator was checked.
    pub config: VolumeConfig,
}

impl VolumeConfig {
    /// The text that the authenticator covers.
    pub fn encode_body(&self) -> String {
        todo!()
    }

    /// Body and `mac` line.
    pub fn join(_body: &str, _mac: &[u8; 32]) -> String {
        todo!()
    }

    /// Splits and decodes a config file.
    pub fn parse(_text: &[u8]) -> Result<SignedConfig<'_>, ConfigError> {
        todo!()
    }

    /// The key that new files are wrapped with.
    pub fn active(&self) -> Option<&WrappingKey> {
        self.keys.iter().find(|k| k.active)
    }
}
