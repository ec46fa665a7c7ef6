//! Symlink targets.

use super::{open_random, seal_random};
use crate::crypto::derive::{LINK_KEY, hkdf};
use crate::crypto::kernel::Kernel;
use crate::crypto::{Locked, Tampered, VaultKey};
use crate::format::links;

/// The key of symlink targets in a vault.
#[derive(Debug)]
pub struct LinkKey {
    kernel: Locked<Kernel>,
}

impl LinkKey {
    /// Derives the key.
    pub fn derive(vault_key: &VaultKey) -> Self {
        let key = hkdf(vault_key.0.expose(), &[], LINK_KEY);
        Self { kernel: Kernel::locked(key.expose()) }
    }

    /// The lower symlink's target for a plaintext target; `None` where it is too long (`ENAMETOOLONG`: more than
    /// [`links::TARGET_MAX`] bytes) or empty.
    pub fn encode(&self, target: &[u8]) -> Option<Vec<u8>> {
        if target.len() > links::TARGET_MAX {
            return None;
        }
        links::encode(&seal_random(&self.kernel, &[], target))
    }

    /// The plaintext target of a lower symlink.
    pub fn decode(&self, lower: &[u8]) -> Result<Vec<u8>, Tampered> {
        let record = links::decode(lower).ok_or(Tampered)?;
        let target = open_random(&self.kernel, &[], &record)?;
        if target.is_empty() || target.contains(&0) { Err(Tampered) } else { Ok(target) }
    }

    /// Length of the plaintext target for the length of a lower one, as `lstat` shows it; 0 where none fits.
    pub fn plain_len(lower_len: u64) -> u64 {
        usize::try_from(lower_len).ok().and_then(links::plain_len).map_or(0, |n| n as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Secret;

    fn key(vault: u8) -> LinkKey {
        LinkKey::derive(&VaultKey(Secret::from_slice(&[vault; 32]).unwrap()))
    }

    #[test]
    fn targets_come_back_with_their_length() {
        for len in [1, 2, 3, 100, 101, 102, 1000, 4023, 4024] {
            let target = vec![b'/'; len];
            let lower = key(1).encode(&target).unwrap();
            assert!(lower.len() <= 4095 && !lower.contains(&0));
            assert_eq!(LinkKey::plain_len(lower.len() as u64), len as u64);
            assert_eq!(key(1).decode(&lower), Ok(target));
        }
        assert_eq!(key(1).encode(&[b'/'; 4025]), None);
        assert_eq!(key(1).encode(b""), None);
        assert_eq!([0, 38, 41, 4096, u64::MAX].map(LinkKey::plain_len), [0; 5]);
    }

    #[test]
    fn targets_are_random_and_authentic() {
        let lower = key(1).encode(b"../target").unwrap();
        assert_ne!(key(1).encode(b"../target").unwrap(), lower);
        assert_eq!(key(2).decode(&lower), Err(Tampered));
        let long = key(1).encode(&[b'y'; 300]).unwrap();
        for lower in [lower, long] {
            for at in 0..lower.len() {
                let mut changed = lower.clone();
                changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
                assert_eq!(key(1).decode(&changed), Err(Tampered), "byte {at}");
            }
            assert_eq!(key(1).decode(&lower[1..]), Err(Tampered));
        }
        let nul = links::encode(&seal_random(&key(1).kernel, &[], b"a\0b")).unwrap();
        assert_eq!(key(1).decode(&nul), Err(Tampered));
    }
}
