//! Derivations: HKDF-SHA256, every label in one list.

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{Secret, VaultKey};

/// Labels keep keys of different purposes apart. Never reuse one, never edit one.
pub const BLOCK_KEY: &[u8] = b"envelopefs/v1/block";
/// Authenticates map pages.
pub const MAP_KEY: &[u8] = b"envelopefs/v1/map";
/// Names in one directory.
pub const DIR_KEY: &[u8] = b"envelopefs/v1/dir-names";
/// Symlink targets.
pub const LINK_KEY: &[u8] = b"envelopefs/v1/symlink";
/// User xattrs of one inode.
pub const XATTR_KEY: &[u8] = b"envelopefs/v1/xattr";
/// The volume config's authenticator.
pub const CONFIG_KEY: &[u8] = b"envelopefs/v1/config";
/// Logs of the journal.
pub const JOURNAL_KEY: &[u8] = b"envelopefs/v1/journal";
/// How far an interrupted repair came.
pub const REPAIR_KEY: &[u8] = b"envelopefs/v1/repair";
/// The authenticator of the list of key-encryption keys.
pub const KEKS_KEY: &[u8] = b"envelopefs/v1/keks";
/// What a key-encryption key wraps data keys with.
pub const ENVELOPE_KEY: &[u8] = b"envelopefs/v1/envelope";
/// What a recovery key wraps with, from a key agreement.
pub const RECOVERY_KEY: &[u8] = b"envelopefs/v1/recovery";
/// Marks headers that an interrupted rewrap has done.
pub const REWRAP_KEY: &[u8] = b"envelopefs/v1/rewrap";

/// Opens a vault's backup repositories where their key file is lost.
pub const BACKUP_KEY: &[u8] = b"envelopefs/v1/backup";

/// HKDF-SHA256 (RFC 5869) to 32 bytes.
pub fn hkdf(key: &[u8; 32], salt: &[u8], label: &[u8]) -> Secret<32> {
    let [out] = hkdf_each(key, salt, [label]);
    out
}

/// [`hkdf()`] for several labels under one key and salt, which are mixed once.
pub fn hkdf_each<const N: usize>(key: &[u8; 32], salt: &[u8], labels: [&[u8]; N]) -> [Secret<32>; N] {
    let mixed = Hkdf::<Sha256>::new(Some(salt), key);
    labels.map(|label| {
        let mut out = Secret::zeroed();
        mixed.expand(label, out.expose_mut()).expect("HKDF-SHA256 gives up to 8160 bytes");
        out
    })
}

/// The key that opens every backup repository of a vault.
pub fn backup_key(vault_key: &VaultKey) -> Secret<32> {
    hkdf(vault_key.0.expose(), &[], BACKUP_KEY)
}

fn hmac(vault_key: &VaultKey, label: &[u8], body: &[u8]) -> Hmac<Sha256> {
    let key = hkdf(vault_key.0.expose(), &[], label);
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes keys of any length");
    mac.update(body);
    mac
}

/// HMAC-SHA256 of a volume config's body under the config key.
pub fn config_mac(vault_key: &VaultKey, body: &[u8]) -> [u8; 32] {
    hmac(vault_key, CONFIG_KEY, body).finalize().into_bytes().into()
}

/// Checks a volume config's authenticator in constant time.
pub fn config_mac_matches(vault_key: &VaultKey, body: &[u8], mac: &[u8; 32]) -> bool {
    hmac(vault_key, CONFIG_KEY, body).verify_slice(mac).is_ok()
}

/// HMAC-SHA256 of the body of the list of key-encryption keys.
pub fn keks_mac(vault_key: &VaultKey, body: &[u8]) -> [u8; 32] {
    hmac(vault_key, KEKS_KEY, body).finalize().into_bytes().into()
}

/// Checks that list's authenticator in constant time.
pub fn keks_mac_matches(vault_key: &VaultKey, body: &[u8], mac: &[u8; 32]) -> bool {
    hmac(vault_key, KEKS_KEY, body).verify_slice(mac).is_ok()
}

/// Marks a header as one that a rewrap wrote: the first 16 bytes of an HMAC-SHA256 over the run's id and the header.
pub fn rewrap_mark(vault_key: &VaultKey, run: &[u8; 16], header: &[u8]) -> [u8; 16] {
    let mut mac = hmac(vault_key, REWRAP_KEY, run);
    mac.update(header);
    let whole: [u8; 32] = mac.finalize().into_bytes().into();
    std::array::from_fn(|i| whole[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5869 has no case with a key of 32 bytes and 32 bytes of output; this one was made with Python's `hmac`.
    #[test]
    fn hkdf_is_that_of_the_rfc() {
        let key: [u8; 32] = std::array::from_fn(|i| i as u8);
        let out = hkdf(&key, b"salt", b"label");
        assert_eq!(
            hex::encode(out.expose()),
            "826784cd94275b7ff8cd433521c1a2bc3e4267987ece804daf6c7989d4ae3eaa"
        );
    }

    #[test]
    fn labels_and_salts_keep_keys_apart() {
        let labels = [
            BLOCK_KEY,
            MAP_KEY,
            DIR_KEY,
            LINK_KEY,
            XATTR_KEY,
            CONFIG_KEY,
            JOURNAL_KEY,
            REPAIR_KEY,
            KEKS_KEY,
            ENVELOPE_KEY,
            RECOVERY_KEY,
            REWRAP_KEY,
            BACKUP_KEY,
        ];
        let mut keys: Vec<_> = labels
            .iter()
            .flat_map(|label| [&b""[..], b"a", b"b"].map(|salt| *hkdf(&[1; 32], salt, label).expose()))
            .collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 39);
    }

    #[test]
    fn a_config_is_bound_to_each_of_its_bytes_and_to_the_vault_key() {
        let key = |byte| VaultKey(Secret::from_slice(&[byte; 32]).unwrap());
        let body = b"format = 1\n".to_vec();
        let mac = config_mac(&key(1), &body);
        assert!(config_mac_matches(&key(1), &body, &mac));
        assert!(!config_mac_matches(&key(2), &body, &mac));
        for at in 0..body.len() {
            let mut changed = body.clone();
            changed[at] ^= 1;
            assert!(!config_mac_matches(&key(1), &changed, &mac), "byte {at}");
        }
        for at in 0..32 {
            let mut changed = mac;
            changed[at] ^= 0x80;
            assert!(!config_mac_matches(&key(1), &body, &changed), "byte {at} of the mac");
        }
    }
}
