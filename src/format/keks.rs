//! The key-encryption keys of a vault in envelope mode, `.envelopefs/keks.toml`.
//!
//! TOML text with a last line `mac = "…"`, as the volume config has it. Decoding checks form only; who made the text
//! is `crypto::derive::keks_mac_matches`'s to say.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::config::{ConfigError, VolumeConfig, split_mac, unhex};
use super::header::MAX_RECIPIENTS;
use super::ids::VaultId;

/// File name below the vault's own directory.
pub const KEKS_FILE: &str = "keks.toml";
/// The most key-encryption keys of one vault: one a month for 85 years.
pub const MAX_KEKS: usize = 1024;
/// The longest file that is read.
pub const MAX_KEKS_FILE: usize = 8 << 20;
/// For whoever opens the file in an editor.
const COMMENT: &str = "# EnvelopeFS key-encryption keys. Authenticated: an edited copy is refused.\n";

/// A key that wraps data keys inside the process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kek {
    /// Its number: the key version in compact headers. From 1, never used again.
    pub number: u16,
    /// When it was made, seconds since the epoch.
    pub created: u64,
    /// Data keys that it may have wrapped: mounts take them in portions, so this is never too low.
    pub reserved: u64,
    /// The key, wrapped by rows of the volume config (row, provider's bytes); any one opens it.
    pub wrapped: Vec<(u8, Vec<u8>)>,
}

/// The decoded file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KekFile {
    /// The vault it belongs to.
    pub vault_id: VaultId,
    /// By number.
    pub keks: Vec<Kek>,
}

/// Text split into what is authenticated and the authenticator.
#[derive(Debug)]
pub struct SignedKeks<'a> {
    /// Every byte before the `mac` line.
    pub body: &'a [u8],
    /// The authenticator.
    pub mac: [u8; 32],
    /// The decoded body. Not to be trusted before the authenticator was checked.
    pub file: KekFile,
}

impl KekFile {
    /// The text that the authenticator covers.
    pub fn encode_body(&self) -> String {
        let mut out = format!("{COMMENT}vault_id = \"{}\"\nkeks = [\n", self.vault_id);
        for Kek { number, created, reserved, wrapped } in &self.keks {
            let copies: Vec<String> = wrapped
                .iter()
                .map(|(index, bytes)| {
                    format!("{{ index = {index}, wrapped = \"{}\" }}", STANDARD.encode(bytes))
                })
                .collect();
            out += &format!(
                "  {{ number = {number}, created = {created}, reserved = {reserved}, keys = [{}] }},\n",
                copies.join(", ")
            );
        }
        out + "]\n"
    }

    /// Body and `mac` line.
    pub fn join(body: &str, mac: &[u8; 32]) -> String {
        VolumeConfig::join(body, mac)
    }

    /// Splits and decodes the file.
    pub fn parse(text: &[u8]) -> Result<SignedKeks<'_>, ConfigError> {
        let syntax = |e: &dyn std::fmt::Display| ConfigError::Syntax(format!("key-encryption keys: {e}"));
        if text.len() > MAX_KEKS_FILE {
            return Err(syntax(&format_args!("{} bytes, at most {MAX_KEKS_FILE} are read", text.len())));
        }
        let utf8 = std::str::from_utf8(text).map_err(|e| syntax(&e))?;
        let (body, mac) = split_mac(utf8).ok_or(ConfigError::NoMac)?;
        let fields: Fields = toml::from_str(body).map_err(|e| syntax(&e))?;
        Ok(SignedKeks { body: body.as_bytes(), mac, file: fields.check().map_err(|e| syntax(&e))? })
    }

    /// The key that new data keys are wrapped with.
    pub fn newest(&self) -> Option<&Kek> {
        self.keks.last()
    }

    /// The key with a number.
    pub fn find(&self, number: u16) -> Option<&Kek> {
        self.keks.iter().find(|kek| kek.number == number)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    vault_id: String,
    keks: Vec<KekFields>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KekFields {
    number: u16,
    created: u64,
    reserved: u64,
    keys: Vec<CopyFields>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CopyFields {
    index: u8,
    wrapped: String,
}

impl Fields {
    fn check(self) -> Result<KekFile, String> {
        let id = unhex(&self.vault_id).ok_or("`vault_id` is not 32 lowercase hex digits")?;
        if self.keks.len() > MAX_KEKS {
            return Err(format!("{} keys, at most {MAX_KEKS}", self.keks.len()));
        }
        if self.keks.first().is_some_and(|kek| kek.number == 0)
            || !self.keks.is_sorted_by(|a, b| a.number < b.number)
        {
            return Err("`keks` are not in the order of their numbers, from 1".into());
        }
        let keks = self.keks.into_iter().map(KekFields::check).collect::<Result<_, _>>()?;
        Ok(KekFile { vault_id: VaultId(id), keks })
    }
}

impl KekFields {
    fn check(self) -> Result<Kek, String> {
        let Self { number, created, reserved, keys } = self;
        if keys.is_empty() || keys.len() > 8 * MAX_RECIPIENTS {
            return Err(format!("key {number} has {} copies", keys.len()));
        }
        let copy = |CopyFields { index, wrapped }| {
            let bytes = STANDARD.decode(wrapped).map_err(|e| format!("copy {index} of key {number}: {e}"))?;
            Ok((index, bytes))
        };
        let wrapped = keys.into_iter().map(copy).collect::<Result<_, String>>()?;
        Ok(Kek { number, created, reserved, wrapped })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> KekFile {
        let kek = |number, copies: &[u8]| Kek {
            number,
            created: 1_700_000_000,
            reserved: 65536,
            wrapped: copies.iter().map(|index| (*index, vec![*index; 3])).collect(),
        };
        KekFile { vault_id: VaultId([7; 16]), keks: vec![kek(1, &[0]), kek(2, &[0, 3])] }
    }

    #[test]
    fn the_file_survives_encoding() {
        let file = file();
        let body = file.encode_body();
        let text = KekFile::join(&body, &[9; 32]);
        let signed = KekFile::parse(text.as_bytes()).unwrap();
        assert_eq!((signed.body, signed.mac), (body.as_bytes(), [9; 32]));
        assert_eq!(signed.file, file);
        assert_eq!((file.newest().unwrap().number, file.find(1).unwrap().wrapped.len()), (2, 1));
    }

    #[test]
    fn what_is_out_of_order_or_cut_is_refused() {
        let parse = |file: &KekFile| {
            let text = KekFile::join(&file.encode_body(), &[0; 32]);
            KekFile::parse(text.as_bytes()).map(|_| ()).map_err(|e| e.to_string())
        };
        let mut swapped = file();
        swapped.keks.reverse();
        assert!(parse(&swapped).unwrap_err().contains("order"));
        let mut zero = file();
        zero.keks[0].number = 0;
        assert!(parse(&zero).unwrap_err().contains("order"));
        let mut bare = file();
        bare.keks[1].wrapped.clear();
        assert!(parse(&bare).unwrap_err().contains("0 copies"));
        let text = KekFile::join(&file().encode_body(), &[0; 32]);
        for cut in 0..text.len() {
            assert!(KekFile::parse(&text.as_bytes()[..cut]).is_err(), "cut at {cut}");
        }
    }
}
