//! Names of files and directories, below one directory.

use sha2::{Digest, Sha256};

use super::{open_fixed, seal_fixed};
use crate::crypto::derive::{DIR_KEY, hkdf};
use crate::crypto::kernel::Kernel;
use crate::crypto::{Locked, Tampered, VaultKey};
use crate::format::ids::DirId;
use crate::format::names::{MAX_SHORT_SEALED, NAME_MAX, long_name, short_name, sidecar_name};

/// The key of the names in one directory: derived from the vault key and the directory id.
#[derive(Debug)]
pub struct DirKey {
    kernel: Locked<Kernel>,
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
        Self { kernel: Kernel::locked(key.expose()) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Secret;
    use crate::format::names::{LowerName, parse};

    fn key(dir: u8) -> DirKey {
        DirKey::derive(&VaultKey(Secret::from_slice(&[7; 32]).unwrap()), &DirId([dir; 16]))
    }

    #[test]
    fn names_of_every_length_come_back() {
        for len in 1..=NAME_MAX {
            let name = vec![b'x'; len];
            let encoded = key(1).encode(&name);
            assert!(encoded.lower.len() <= NAME_MAX);
            match (parse(encoded.lower.as_bytes()), encoded.sidecar) {
                (LowerName::Short(sealed), None) if len <= 175 => {
                    assert_eq!(key(1).decode(&sealed), Ok(name))
                }
                (LowerName::Long(hash), Some((beside, sealed))) if len > 175 => {
                    assert_eq!(parse(beside.as_bytes()), LowerName::Sidecar(hash));
                    assert_eq!(key(1).decode_long(&hash, &sealed), Ok(name));
                    assert_eq!(key(1).decode_long(&[0; 32], &sealed), Err(Tampered));
                }
                other => panic!("{len}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_name_is_the_same_in_its_directory_and_another_in_each_other() {
        assert_eq!(key(1).encode(b"letter"), key(1).encode(b"letter"));
        assert_ne!(key(1).encode(b"letter"), key(2).encode(b"letter"));
        assert_ne!(key(1).encode(b"letter"), key(1).encode(b"lettes"));
        let LowerName::Short(sealed) = parse(key(1).encode(b"letter").lower.as_bytes()) else { panic!() };
        assert_eq!(key(2).decode(&sealed), Err(Tampered));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(key(1).decode(&changed), Err(Tampered), "byte {at}");
        }
        assert_eq!(key(1).decode(&sealed[..15]), Err(Tampered));
    }

    /// Whoever holds the vault key could seal such names; a mount must not walk out of itself by them.
    #[test]
    fn what_is_no_file_name_is_refused() {
        let key = key(1);
        for name in [&b""[..], b".", b"..", b"a/b", b"/", b"nul\0", &[b'x'; 256]] {
            assert_eq!(key.decode(&seal_fixed(&key.kernel, &[], name)), Err(Tampered), "{name:?}");
        }
        let short = seal_fixed(&key.kernel, &[], b"short");
        let hash = Sha256::digest(&short).into();
        assert_eq!(key.decode_long(&hash, &short), Err(Tampered), "a short name has no sidecar");
        assert_eq!(key.decode(&short), Ok(b"short".to_vec()));
        assert_eq!(key.decode(&seal_fixed(&key.kernel, &[], b"...")), Ok(b"...".to_vec()));
    }
}
