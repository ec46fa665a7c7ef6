//! The volume config `.envelopefs/vault.toml`: what describes a vault.
//!
//! TOML text; its last line is `mac = "…"` (hex), the authenticator over every byte before that line.
//! Decoding checks form only; who made the text is `crypto::derive::config_mac_matches`'s to say.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::ids::VaultId;

/// File name below the vault directory.
pub const CONFIG_FILE: &str = "vault.toml";
/// The newest format this build reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// The most wrapping keys of one vault.
pub const MAX_WRAPPING_KEYS: usize = 64;
/// The longest config that is read.
pub const MAX_CONFIG: usize = 1 << 20;
/// For whoever opens the file in an editor.
const COMMENT: &str = "# EnvelopeFS volume config. It is authenticated: an edited copy is refused.\n";
const MAC_OPEN: &str = "mac = \"";
const MAC_CLOSE: &str = "\"\n";

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
        let mut out = format!(
            "{COMMENT}format = {}\nvault_id = \"{}\"\ncreated = {}\nkeys = [\n",
            self.format, self.vault_id, self.created
        );
        for key in &self.keys {
            let WrappingKey { index, uri, wrapped_vault_key, active } = key;
            let uri = toml::Value::from(uri.as_str());
            let wrapped = STANDARD.encode(wrapped_vault_key);
            out += &format!(
                "  {{ index = {index}, active = {active}, uri = {uri}, wrapped_vault_key = \"{wrapped}\" }},\n"
            );
        }
        out + "]\n"
    }

    /// Body and `mac` line.
    pub fn join(body: &str, mac: &[u8; 32]) -> String {
        let mut out = format!("{body}{MAC_OPEN}");
        for byte in mac {
            out += &format!("{byte:02x}");
        }
        out + MAC_CLOSE
    }

    /// Splits and decodes a config file.
    ///
    /// The format is looked at before anything else: a newer config may have any shape.
    pub fn parse(text: &[u8]) -> Result<SignedConfig<'_>, ConfigError> {
        let syntax = |e: &dyn std::fmt::Display| ConfigError::Syntax(e.to_string());
        if text.len() > MAX_CONFIG {
            return Err(syntax(&format_args!("{} bytes, at most {MAX_CONFIG} are read", text.len())));
        }
        let utf8 = std::str::from_utf8(text).map_err(|e| syntax(&e))?;
        if let Ok(Probe { format }) = toml::from_str(utf8)
            && format > i64::from(FORMAT_VERSION)
        {
            return Err(ConfigError::Newer { found: u32::try_from(format).unwrap_or(u32::MAX) });
        }
        let (body, mac) = split_mac(utf8).ok_or(ConfigError::NoMac)?;
        let fields: Fields = toml::from_str(body).map_err(|e| syntax(&e))?;
        Ok(SignedConfig { body: body.as_bytes(), mac, config: fields.check().map_err(ConfigError::Syntax)? })
    }

    /// The key that new files are wrapped with.
    pub fn active(&self) -> Option<&WrappingKey> {
        self.keys.iter().find(|k| k.active)
    }
}

/// What every format has.
#[derive(Deserialize)]
struct Probe {
    format: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    format: u32,
    vault_id: String,
    created: u64,
    keys: Vec<KeyFields>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFields {
    index: u8,
    active: bool,
    uri: String,
    wrapped_vault_key: String,
}

impl Fields {
    fn check(self) -> Result<VolumeConfig, String> {
        if self.format != FORMAT_VERSION {
            return Err(format!("format {} never existed", self.format));
        }
        let id = unhex(&self.vault_id).ok_or("`vault_id` is not 32 lowercase hex digits")?;
        if self.keys.len() > MAX_WRAPPING_KEYS {
            return Err(format!("{} keys, at most {MAX_WRAPPING_KEYS}", self.keys.len()));
        }
        if !self.keys.is_sorted_by(|a, b| a.index < b.index) {
            return Err("`keys` are not in the order of their index, or one is twice there".into());
        }
        let keys = self.keys.into_iter().map(KeyFields::check).collect::<Result<_, _>>()?;
        Ok(VolumeConfig { format: self.format, vault_id: VaultId(id), created: self.created, keys })
    }
}

impl KeyFields {
    fn check(self) -> Result<WrappingKey, String> {
        let Self { index, active, uri, wrapped_vault_key } = self;
        let wrapped_vault_key = STANDARD
            .decode(wrapped_vault_key)
            .map_err(|e| format!("`wrapped_vault_key` of key {index} is not base64: {e}"))?;
        Ok(WrappingKey { index, uri, wrapped_vault_key, active })
    }
}

/// Body and authenticator of a config that ends with the `mac` line, spelled exactly as [`VolumeConfig::join`] does.
fn split_mac(text: &str) -> Option<(&str, [u8; 32])> {
    let rest = text.strip_suffix(MAC_CLOSE)?;
    let (rest, hex) = rest.split_at_checked(rest.len().checked_sub(64)?)?;
    let body = rest.strip_suffix(MAC_OPEN)?;
    (body.is_empty() || body.ends_with('\n')).then_some((body, unhex(hex)?))
}

/// Bytes of lowercase hex digits.
fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let mut out = [0; N];
    if pairs.len() != N {
        return None;
    }
    for (byte, [high, low]) in out.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(out)
}

const fn digit(c: u8) -> Option<u8> {
    match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    }
}
