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
/// Rows that a vault can ever have: a header names one by a byte.
pub const MAX_ROWS: u16 = 256;
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
    /// Rows from this number on, up to 255, were never given to a key: a number is not used again, since old headers
    /// name it. Above every row.
    pub next_row: u16,
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
            "{COMMENT}format = {}\nvault_id = \"{}\"\ncreated = {}\n",
            self.format, self.vault_id, self.created
        );
        if self.next_row > above(&self.keys) {
            out += &format!("next_row = {}\n", self.next_row);
        }
        out += "keys = [\n";
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
        format!("{body}{MAC_OPEN}{}{MAC_CLOSE}", hex::encode(mac))
    }

    /// Splits and decodes a config file.
    ///
    /// The format is looked at before anything else: a newer config may have any shape.
    pub fn parse(text: &[u8]) -> Result<SignedConfig<'_>, ConfigError> {
        let syntax = |e: &dyn std::fmt::Display| ConfigError::Syntax(e.to_string());
        if text.len() > MAX_CONFIG {
            return Err(syntax(&format_args!("{} bytes, at most {MAX_CONFIG} are read", text.len())));
        }
        let utf8 = std::str::from_utf8(text).map_err(|e| match e.error_len() {
            None => ConfigError::NoMac,
            Some(_) => syntax(&e),
        })?;
        if let Ok(Probe { format }) = toml::from_str(utf8)
            && format > i64::from(FORMAT_VERSION)
        {
            return Err(ConfigError::Newer { found: u32::try_from(format).unwrap_or(u32::MAX) });
        }
        let (body, mac) = split_mac(utf8).ok_or(ConfigError::NoMac)?;
        let fields: Fields = toml::from_str(body).map_err(|e| syntax(&e))?;
        Ok(SignedConfig { body: body.as_bytes(), mac, config: fields.check().map_err(ConfigError::Syntax)? })
    }

    /// Brings [`VolumeConfig::next_row`] above the rows that there are now.
    pub fn note_rows(&mut self) {
        self.next_row = self.next_row.max(above(&self.keys));
    }

    /// The key that new files are wrapped with.
    pub fn active(&self) -> Option<&WrappingKey> {
        self.keys.iter().find(|k| k.active)
    }
}

/// The number behind the last row.
fn above(keys: &[WrappingKey]) -> u16 {
    keys.iter().map(|key| u16::from(key.index) + 1).max().unwrap_or(0)
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
    next_row: Option<u16>,
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
        let keys = self.keys.into_iter().map(KeyFields::check).collect::<Result<Vec<_>, _>>()?;
        let least = above(&keys);
        let next_row = match self.next_row {
            None => least,
            Some(next) if next > least && next <= MAX_ROWS => next,
            Some(next) => {
                return Err(format!("`next_row` is {next}: it goes from {} to {MAX_ROWS}", least + 1));
            }
        };
        Ok(VolumeConfig { format: self.format, vault_id: VaultId(id), created: self.created, keys, next_row })
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
pub(super) fn split_mac(text: &str) -> Option<(&str, [u8; 32])> {
    let rest = text.strip_suffix(MAC_CLOSE)?;
    let (rest, hex) = rest.split_at_checked(rest.len().checked_sub(64)?)?;
    let body = rest.strip_suffix(MAC_OPEN)?;
    (body.is_empty() || body.ends_with('\n')).then_some((body, unhex(hex)?))
}

/// Bytes of lowercase hex digits.
pub(super) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config() -> VolumeConfig {
        let key = |index, uri: &str, active| WrappingKey {
            index,
            uri: uri.into(),
            wrapped_vault_key: vec![index; 50],
            active,
        };
        VolumeConfig {
            format: 1,
            vault_id: VaultId([0xab; 16]),
            created: 1_700_000_000,
            keys: vec![
                key(0, "kms:embedded/alias/main", false),
                key(3, "pkcs11:token=a\"b\\c;object=\u{e4}", true),
            ],
            next_row: 4,
        }
    }

    fn text(body: &str) -> Vec<u8> {
        VolumeConfig::join(body, &[0x5a; 32]).into_bytes()
    }

    fn why(text: &[u8]) -> String {
        VolumeConfig::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_config_survives_encoding() {
        let body = config().encode_body();
        let text = text(&body);
        let signed = VolumeConfig::parse(&text).unwrap();
        assert_eq!((signed.body, signed.mac, &signed.config), (body.as_bytes(), [0x5a; 32], &config()));
        assert_eq!(signed.config.active().map(|k| k.index), Some(3));
        let whole: toml::Table = toml::from_str(std::str::from_utf8(&text).unwrap()).unwrap();
        assert_eq!(whole["mac"].as_str().map(str::len), Some(64), "the whole file is one TOML document");
    }

    /// The number of a row that was removed is remembered, and written where the rows do not tell it.
    #[test]
    fn numbers_of_removed_rows_are_remembered() {
        assert!(!config().encode_body().contains("next_row"));
        let mut less = config();
        less.keys.pop();
        less.note_rows();
        let text = text(&less.encode_body());
        assert!(std::str::from_utf8(&text).unwrap().contains("\nnext_row = 4\n"));
        assert_eq!(VolumeConfig::parse(&text).unwrap().config, less);
        less.keys.push(WrappingKey { index: 255, ..less.keys[0].clone() });
        less.note_rows();
        assert_eq!(less.next_row, MAX_ROWS);
    }

    #[test]
    fn a_newer_config_is_told_from_a_broken_one_whatever_its_shape() {
        for newer in ["format = 2\nshape = \"new\"\n", "format = 2\n[x]\ny = 1\n", "format = 4294967296\n"] {
            assert!(
                matches!(VolumeConfig::parse(newer.as_bytes()), Err(ConfigError::Newer { .. })),
                "{newer}"
            );
            assert!(matches!(VolumeConfig::parse(&text(newer)), Err(ConfigError::Newer { .. })), "{newer}");
        }
        assert!(matches!(VolumeConfig::parse(&text("format = 7\n")), Err(ConfigError::Newer { found: 7 })));
        assert!(
            why(&text(&config().encode_body().replace("format = 1", "format = 0"))).contains("never existed")
        );
    }

    #[test]
    fn a_config_without_its_last_line_is_cut() {
        let whole = text(&config().encode_body());
        for end in 0..whole.len() {
            assert!(matches!(VolumeConfig::parse(&whole[..end]), Err(ConfigError::NoMac)), "{end}");
        }
        let upper = String::from_utf8(whole.clone()).unwrap().replace("5a", "5A");
        assert!(matches!(VolumeConfig::parse(upper.as_bytes()), Err(ConfigError::NoMac)));
        assert!(matches!(VolumeConfig::parse(&[&whole[..], b"\n"].concat()), Err(ConfigError::NoMac)));
        let joined = text(config().encode_body().trim_end());
        assert!(matches!(VolumeConfig::parse(&joined), Err(ConfigError::NoMac)));
    }

    #[test]
    fn wrong_fields_are_named() {
        let body = config().encode_body();
        let with = |from: &str, to: &str| {
            assert!(body.contains(from), "{from}");
            why(&text(&body.replace(from, to)))
        };
        assert!(with("created = 1700000000", "shoe_size = 44").contains("shoe_size"));
        assert!(with("created = 1700000000\n", "").contains("created"));
        assert!(with("abab", "ABAB").contains("vault_id"));
        assert!(with("created = 1700000000", "created = -1").contains("created"));
        assert!(with("index = 3", "index = 0").contains("order of their index"));
        assert!(with("index = 3", "index = 256").contains("256"));
        for wrong in ["4", "257"] {
            assert!(with("keys = [", &format!("next_row = {wrong}\nkeys = [")).contains("from 5 to 256"));
        }
        assert!(with("AAAA", "A~AA").contains("base64"));
        assert!(with("active = true", "active = true, extra = 1").contains("extra"));
        assert!(why(&text(&body.replace("  { index = 0", "  { index = 0, index = 0"))).contains("duplicate"));
        assert!(why(b"\xff").contains("utf-8"));
        assert!(why(&vec![b'#'; MAX_CONFIG + 1]).contains("at most"));
        let many = (0..65u8).map(|index| WrappingKey { index, ..config().keys[0].clone() }).collect();
        assert!(why(&text(&VolumeConfig { keys: many, ..config() }.encode_body())).contains("at most 64"));
    }

    proptest! {
        #[test]
        fn any_uri_and_any_bytes_survive(uri in any::<String>(), bytes in proptest::collection::vec(any::<u8>(), 0..99)) {
            let mut config = config();
            config.keys[1].uri = uri;
            config.keys[1].wrapped_vault_key = bytes;
            let text = text(&config.encode_body());
            prop_assert_eq!(VolumeConfig::parse(&text).unwrap().config, config);
        }
    }
}
