//! Names of files and directories, below one directory.

use sha2::{Digest, Sha256};

use super::{open_fixed, seal_fixed};
use crate::crypto::derive::{DIR_KEY, hkdf};
use crate::crypto::kernel::PortableKernel;
use crate::crypto::{Locked, Tampered, VaultKey};
use crate::format::ids::DirId;
use crate::format::names::{MAX_SHORT_SEALED, NAME_MAX, long_name, short_name, sidecar_name};

/// The key of the names in one directory: derived from the vault key and the directory id.
#[derive(Debug)]
pub struct DirKey {
    kernel: Locked<PortableKernel>,
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
    pub fn derive(vault_key: &VaultKey, dir: &DirId) -> Self {
        let key = hkdf(vault_key.0.expose(), &dir.0, DIR_KEY);
        Self { kernel: PortableKernel::locked(key.expose()) }
    }

    /// Encrypts a plaintext name of 1 to 255 bytes.
    pub fn encode(&self, name: &[u8]) -> EncodedName {
        let sealed = seal_fixed(&self.kernel, &[], name);
        if sealed.len() <= MAX_SHORT_SEALED {
            return EncodedName { lower: short_name(&sealed), sidecar: None };
        }
        let hash = Sha256::digest(&sealed).into();
        EncodedName { lower: long_name(&hash), sidecar: Some((sidecar_name(&hash), sealed)) }
    }

    /// Decrypts sealed bytes (tag and ciphertext): a short name's, or a sidecar's content.
    /// Refuses a result that is no file name: empty, `.`, `..`, longer than 255 bytes, or with `/` or NUL.
    ///
    /// That the sidecar is the one the long name asks for, its hash says: see [`Self::decode_long`].
    pub fn decode(&self, sealed: &[u8]) -> Result<Vec<u8>, Tampered> {
        let name = open_fixed(&self.kernel, &[], sealed)?;
        if is_file_name(&name) { Ok(name) } else { Err(Tampered) }
    }

    /// Decrypts a sidecar's content for the hash in the long name it stands beside.
    pub fn decode_long(&self, hash: &[u8; 32], sealed: &[u8]) -> Result<Vec<u8>, Tampered> {
        if sealed.len() <= MAX_SHORT_SEALED || <[u8; 32]>::from(Sha256::digest(sealed)) != *hash {
            return Err(Tampered);
        }
        self.decode(sealed)
    }
}

fn is_file_name(name: &[u8]) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && !matches!(name, b"." | b"..")
        && !name.iter().any(|b| matches!(b, 0 | b'/'))
}
