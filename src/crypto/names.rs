//! Deterministic encryption of names, and of symlink targets and xattrs with random nonces.

use super::{Tampered, VaultKey};
use crate::format::ids::DirId;

/// The key of the names in one directory: derived from the vault key and the directory id.
pub struct DirKey {
    _private: (),
}

/// The key of symlink targets in a vault.
pub struct LinkKey {
    _private: (),
}

/// The key of one inode's user xattrs: derived from the vault key and the file id or directory id.
pub struct XattrKey {
    _private: (),
}

/// A name as it goes to the lower filesystem.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EncodedName {
    /// The lower file name.
    pub lower: String,
    /// For long names: the sidecar's name and content.
    pub sidecar: Option<(String, Vec<u8>)>,
}

impl DirKey {
    /// Derives the key of a directory.
    pub fn derive(_vault_key: &VaultKey, _dir: &DirId) -> Self {
        todo!()
    }

    /// Encrypts a plaintext name of 1 to 255 bytes.
    pub fn encode(&self, _name: &[u8]) -> EncodedName {
        todo!()
    }

    /// Decrypts sealed bytes (tag and ciphertext): a short name's, or a sidecar's content.
    /// Refuses a result that is no file name: empty, `.`, `..`, or with `/` or NUL.
    pub fn decode(&self, _sealed: &[u8]) -> Result<Vec<u8>, Tampered> {
        todo!()
    }
}

impl LinkKey {
    /// Derives the key.
    pub fn derive(_vault_key: &VaultKey) -> Self {
        todo!()
    }

    /// The lower symlink's target for a plaintext target.
    pub fn encode(&self, _target: &[u8]) -> Vec<u8> {
        todo!()
    }

    /// The plaintext target of a lower symlink.
    pub fn decode(&self, _lower: &[u8]) -> Result<Vec<u8>, Tampered> {
        todo!()
    }

    /// Length of the plaintext target for the length of a lower one, as `lstat` shows it; 0 where none fits.
    pub fn plain_len(_lower_len: u64) -> u64 {
        todo!()
    }
}

impl XattrKey {
    /// Derives the key of an inode. `id` is its file id or directory id.
    pub fn derive(_vault_key: &VaultKey, _id: &[u8]) -> Self {
        todo!()
    }

    /// Lower name for a full plaintext name such as `user.colour`.
    pub fn encode_name(&self, _name: &[u8]) -> String {
        todo!()
    }

    /// Lower value for a plaintext value. The name is bound; a name too long for its lower form travels inside.
    pub fn encode_value(&self, _name: &[u8], _value: &[u8]) -> Vec<u8> {
        todo!()
    }

    /// Full plaintext name of a lower xattr; `value` is needed (and used) only for long names.
    pub fn decode_name(
        &self,
        _lower: &str,
        _value: impl FnOnce() -> Option<Vec<u8>>,
    ) -> Result<Vec<u8>, Tampered> {
        todo!()
    }

    /// Plaintext value of the xattr `name`.
    pub fn decode_value(&self, _name: &[u8], _lower: &[u8]) -> Result<Vec<u8>, Tampered> {
        todo!()
    }
}
