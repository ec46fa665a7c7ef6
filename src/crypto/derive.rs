//! Derivations: HKDF-SHA256, every label in one list.

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
pub fn hkdf(_key: &[u8; 32], _salt: &[u8], _label: &[u8]) -> Secret<32> {
    todo!()
}

/// HMAC-SHA256 of a volume config's body under the config key.
pub fn config_mac(_vault_key: &VaultKey, _body: &[u8]) -> [u8; 32] {
    todo!()
}

/// Checks a volume config's authenticator in constant time.
pub fn config_mac_matches(_vault_key: &VaultKey, _body: &[u8], _mac: &[u8; 32]) -> bool {
    todo!()
}
