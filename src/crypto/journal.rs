//! Authenticators of the journal. What its records hold is sealed already, or no secret.

use super::derive::{JOURNAL_KEY, hkdf};
use super::kernel::{BlockKernel, Kernel};
use super::{Locked, Secret, VaultKey};

/// Sequence number of a log's header; records count from 1.
pub const HEADER_SEQUENCE: u64 = 0;

/// What the keys of all of a vault's logs derive from.
#[derive(Debug)]
pub struct JournalRoot(Secret<32>);

/// The key of one log: AES-256-GCM-SIV of the empty message, AD = the bytes, nonce = the sequence number.
pub struct JournalKey(Locked<Kernel>);

impl JournalRoot {
    /// Derives it from the vault key.
    pub fn derive(vault_key: &VaultKey) -> Self {
        Self(hkdf(vault_key.0.expose(), &[], JOURNAL_KEY))
    }

    /// The key of the log with this salt.
    pub fn key(&self, salt: &[u8; 16]) -> JournalKey {
        JournalKey(Kernel::locked(hkdf(self.0.expose(), salt, JOURNAL_KEY).expose()))
    }
}

impl std::fmt::Debug for JournalKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JournalKey(..)")
    }
}

fn nonce(sequence: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&sequence.to_le_bytes());
    nonce
}

impl JournalKey {
    /// The tag of bytes whose own tag is zero.
    pub fn sign(&self, sequence: u64, bytes: &[u8]) -> [u8; 16] {
        self.0.seal(&nonce(sequence), bytes, &mut [])
    }

    /// Checks a tag, in constant time.
    pub fn verify(&self, sequence: u64, bytes: &[u8], tag: &[u8; 16]) -> bool {
        self.0.open(&nonce(sequence), bytes, &mut [], tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record verifies in its log, at its place, unchanged, and nowhere else.
    #[test]
    fn a_tag_binds_vault_log_place_and_bytes() {
        let root = |byte| JournalRoot::derive(&VaultKey(Secret::from_slice(&[byte; 32]).unwrap()));
        let key = root(1).key(&[2; 16]);
        let tag = key.sign(5, b"record");
        assert!(key.verify(5, b"record", &tag));
        assert!(!key.verify(6, b"record", &tag));
        assert!(!key.verify(5, b"recorD", &tag));
        assert!(!root(1).key(&[3; 16]).verify(5, b"record", &tag));
        assert!(!root(2).key(&[2; 16]).verify(5, b"record", &tag));
    }
}
