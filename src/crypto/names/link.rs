//! Symlink targets.

use super::{open_random, seal_random};
use crate::crypto::derive::{LINK_KEY, hkdf};
use crate::crypto::kernel::PortableKernel;
use crate::crypto::{Locked, Tampered, VaultKey};
use crate::format::links;

/// The key of symlink targets in a vault.
#[derive(Debug)]
pub struct LinkKey {
    kernel: Locked<PortableKernel>,
}

impl LinkKey {
    /// Derives the key.
    pub fn derive(vault_key: &VaultKey) -> Self {
        let key = hkdf(vault_key.0.expose(), &[], LINK_KEY);
        Self { kernel: PortableKernel::locked(key.expose()) }
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
