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

/// HKDF-SHA256 (RFC 5869) to 32 bytes.
pub fn hkdf(key: &[u8; 32], salt: &[u8], label: &[u8]) -> Secret<32> {
    let [out] = hkdf_each(key, salt, [label]);
    out
}

/// [`hkdf`] for several labels under one key and salt, which are mixed once.
pub fn hkdf_each<const N: usize>(key: &[u8; 32], salt: &[u8], labels: [&[u8]; N]) -> [Secret<32>; N] {
    let mixed = Hkdf::<Sha256>::new(Some(salt), key);
    labels.map(|label| {
        let mut out = Secret::zeroed();
        mixed.expand(label, out.expose_mut()).expect("HKDF-SHA256 gives up to 8160 bytes");
        out
    })
}

fn config_hmac(vault_key: &VaultKey, body: &[u8]) -> Hmac<Sha256> {
    let key = hkdf(vault_key.0.expose(), &[], CONFIG_KEY);
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes keys of any length");
    mac.update(body);
    mac
}

/// HMAC-SHA256 of a volume config's body under the config key.
pub fn config_mac(vault_key: &VaultKey, body: &[u8]) -> [u8; 32] {
    config_hmac(vault_key, body).finalize().into_bytes().into()
}

/// Checks a volume config's authenticator in constant time.
pub fn config_mac_matches(vault_key: &VaultKey, body: &[u8], mac: &[u8; 32]) -> bool {
    config_hmac(vault_key, body).verify_slice(mac).is_ok()
}
