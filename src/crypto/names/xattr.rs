//! User xattrs: names, the same each time within an inode, and values.

use sha2::{Digest, Sha256};

use super::{TAG, open_fixed, open_random, seal_fixed, seal_random};
use crate::crypto::derive::{XATTR_KEY, hkdf};
use crate::crypto::kernel::Kernel;
use crate::crypto::{Locked, Tampered, VaultKey};
use crate::format::names::{
    LONG_XATTR_PREFIX, MAX_SHORT_XATTR_SEALED, MIN_SEALED, NAME_MAX, XATTR_PREFIX, b64, unb64,
};

/// What a sealed name's tag binds.
const NAME_AD: &[u8] = b"n";
/// What a sealed value's tag binds, in front of the name.
const VALUE_AD: u8 = b'v';

/// The key of one inode's user xattrs: derived from the vault key and the file id or directory id.
#[derive(Debug)]
pub struct XattrKey {
    kernel: Locked<Kernel>,
}

impl XattrKey {
    /// Derives the key of an inode. `id` is its file id or directory id.
    pub fn derive(vault_key: &VaultKey, id: &[u8]) -> Self {
        let key = hkdf(vault_key.0.expose(), id, XATTR_KEY);
        Self { kernel: Kernel::locked(key.expose()) }
    }

    /// Lower name for a full plaintext name such as `user.colour`, of 1 to 255 bytes.
    pub fn encode_name(&self, name: &[u8]) -> String {
        let sealed = seal_fixed(&self.kernel, NAME_AD, name);
        if is_long(name) {
            format!("{LONG_XATTR_PREFIX}{}", b64(&Sha256::digest(&sealed)))
        } else {
            format!("{XATTR_PREFIX}{}", b64(&sealed))
        }
    }

    /// Lower value for a plaintext value. The name is bound; a name too long for its lower form travels inside.
    pub fn encode_value(&self, name: &[u8], value: &[u8]) -> Vec<u8> {
        let record = seal_random(&self.kernel, &value_ad(name), value);
        if is_long(name) { [self.carried(name), record].concat() } else { record }
    }

    /// Full plaintext name of a lower xattr; `value` is needed (and used) only for long names.
    pub fn decode_name(
        &self,
        lower: &str,
        value: impl FnOnce() -> Option<Vec<u8>>,
    ) -> Result<Vec<u8>, Tampered> {
        let sealed = match (lower.strip_prefix(XATTR_PREFIX), lower.strip_prefix(LONG_XATTR_PREFIX)) {
            (Some(text), _) => {
                let sealed = unb64(text.as_bytes()).ok_or(Tampered)?;
                in_range(sealed, MIN_SEALED..=MAX_SHORT_XATTR_SEALED)?
            }
            (_, Some(text)) => {
                let hash = unb64(text.as_bytes()).ok_or(Tampered)?;
                let value = value().ok_or(Tampered)?;
                let (sealed, _) = split_carried(&value).ok_or(Tampered)?;
                if Sha256::digest(sealed)[..] != hash[..] {
                    return Err(Tampered);
                }
                in_range(sealed.to_vec(), MAX_SHORT_XATTR_SEALED + 1..=NAME_MAX + TAG)?
            }
            _ => return Err(Tampered),
        };
        let name = open_fixed(&self.kernel, NAME_AD, &sealed)?;
        if name.contains(&0) { Err(Tampered) } else { Ok(name) }
    }

    /// Plaintext value of the xattr `name`.
    pub fn decode_value(&self, name: &[u8], lower: &[u8]) -> Result<Vec<u8>, Tampered> {
        let record =
            if is_long(name) { lower.strip_prefix(&self.carried(name)[..]).ok_or(Tampered)? } else { lower };
        open_random(&self.kernel, &value_ad(name), record)
    }

    /// What a long name puts in front of its value: length and sealed name.
    fn carried(&self, name: &[u8]) -> Vec<u8> {
        let sealed = seal_fixed(&self.kernel, NAME_AD, name);
        let len = u16::try_from(sealed.len()).expect("xattr names have at most 255 bytes");
        [&len.to_le_bytes()[..], &sealed].concat()
    }
}

/// Whether a name travels inside its value.
const fn is_long(name: &[u8]) -> bool {
    name.len() + TAG > MAX_SHORT_XATTR_SEALED
}

fn value_ad(name: &[u8]) -> Vec<u8> {
    [&[VALUE_AD][..], name].concat()
}

/// Sealed name and record in a long name's value.
fn split_carried(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = value.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))
}

fn in_range(sealed: Vec<u8>, range: std::ops::RangeInclusive<usize>) -> Result<Vec<u8>, Tampered> {
    if range.contains(&sealed.len()) { Ok(sealed) } else { Err(Tampered) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Secret;

    fn key(id: &[u8]) -> XattrKey {
        XattrKey::derive(&VaultKey(Secret::from_slice(&[7; 32]).unwrap()), id)
    }

    fn name(len: usize) -> Vec<u8> {
        [b"user.".to_vec(), vec![b'n'; len - 5]].concat()
    }

    #[test]
    fn names_and_values_of_every_length_come_back() {
        let key = key(&[1; 12]);
        for len in [6, 7, 166, 167, 168, 200, 255] {
            let name = name(len);
            let (lower, value) = (key.encode_name(&name), key.encode_value(&name, b"blue"));
            assert!(lower.len() <= 255 && lower.starts_with("user.efs."));
            assert_eq!(lower.starts_with(LONG_XATTR_PREFIX), len > 167, "{len}");
            assert_eq!(lower, key.encode_name(&name), "a name is found again by its lower name");
            assert_ne!(value, key.encode_value(&name, b"blue"), "a value is sealed anew each time");
            assert_eq!(key.decode_value(&name, &value), Ok(b"blue".to_vec()));
            let mut asked = false;
            let given = key.decode_name(&lower, || {
                asked = true;
                Some(value)
            });
            assert_eq!((given, asked), (Ok(name), len > 167));
        }
        assert_eq!(key.decode_value(b"user.e", &key.encode_value(b"user.e", b"")), Ok(vec![]));
    }

    #[test]
    fn a_value_under_another_name_or_inode_is_refused() {
        let key = key(&[1; 12]);
        for len in [11, 200] {
            let (mine, mut other) = (name(len), name(len));
            other[6] = b'o';
            let value = key.encode_value(&mine, b"blue");
            assert_eq!(key.decode_value(&other, &value), Err(Tampered));
            let elsewhere = super::tests::key(&[2; 12]);
            assert_eq!(elsewhere.decode_value(&mine, &value), Err(Tampered));
            assert_eq!(elsewhere.decode_name(&key.encode_name(&mine), || Some(value.clone())), Err(Tampered));
            for at in 0..value.len() {
                let mut changed = value.clone();
                changed[at] ^= 1;
                assert_eq!(key.decode_value(&mine, &changed), Err(Tampered), "byte {at}");
            }
        }
    }

    #[test]
    fn foreign_lower_names_and_swapped_long_names_are_refused() {
        let key = key(&[1; 16]);
        let (long, other) = (name(200), [name(199), b"o".to_vec()].concat());
        let value = key.encode_value(&other, b"x");
        assert_eq!(key.decode_name(&key.encode_name(&long), || Some(value)), Err(Tampered));
        assert_eq!(key.decode_name(&key.encode_name(&long), || None), Err(Tampered));
        assert_eq!(key.decode_name(&key.encode_name(&long), || Some(vec![255; 40])), Err(Tampered));
        for lower in ["user.colour", "user.efs.key", "user.efs.x.", "user.efs.x.AAAA", "user.efs.y.", ""] {
            assert_eq!(key.decode_name(lower, || Some(vec![0; 60])), Err(Tampered), "{lower}");
        }
        // One name has one lower form: a short name in the long form is refused.
        let sealed = seal_fixed(&key.kernel, NAME_AD, b"user.colour");
        let lower = format!("{LONG_XATTR_PREFIX}{}", b64(&Sha256::digest(&sealed)));
        let value = [&[sealed.len() as u8, 0][..], &sealed, &[0; 28]].concat();
        assert_eq!(key.decode_name(&lower, || Some(value)), Err(Tampered));
    }
}
