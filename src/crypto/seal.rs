//! A general AEAD key: AES-256-GCM-SIV over short messages, associated data given by the caller.
//!
//! For wrapped keys and stored records; file content and names have types of their own.

use aes_gcm_siv::aead::{AeadInOut, KeyInit};
use aes_gcm_siv::{Aes256GcmSiv, Nonce, Tag};

use super::{Secret, Tampered, random};

/// Bytes of a nonce.
pub const NONCE: usize = 12;
/// Bytes of a tag.
pub const TAG: usize = 16;
/// What a sealed message is longer than its plaintext: nonce in front, tag behind.
pub const OVERHEAD: usize = NONCE + TAG;

/// A key that seals and opens short messages. The key schedule is made for each call and wiped after it, so that
/// only the locked bytes stay.
#[derive(Debug)]
pub struct SealKey {
    key: Secret<32>,
}

impl SealKey {
    /// Takes the key bytes.
    pub fn new(key: Secret<32>) -> Self {
        Self { key }
    }

    /// Encrypts `buf` in place under a nonce that is fresh, or names this message alone; gives the tag.
    pub fn seal_with(&self, nonce: &[u8; NONCE], ad: &[u8], buf: &mut [u8]) -> [u8; TAG] {
        self.cipher()
            .encrypt_inout_detached(&Nonce::from(*nonce), ad, buf.into())
            .expect("messages and associated data are far below 64 GiB")
            .into()
    }

    /// Decrypts `buf` in place. On failure `buf` is zeroed.
    pub fn open_with(
        &self,
        nonce: &[u8; NONCE],
        ad: &[u8],
        buf: &mut [u8],
        tag: &[u8; TAG],
    ) -> Result<(), Tampered> {
        let opened = self.cipher().decrypt_inout_detached(
            &Nonce::from(*nonce),
            ad,
            (&mut *buf).into(),
            &Tag::from(*tag),
        );
        opened.map_err(|_| {
            buf.fill(0);
            Tampered
        })
    }

    /// A key of another purpose, which tells nothing of this one: 32 zero bytes sealed under the all-zero nonce with the
    /// label as associated data. AES-GCM-SIV derives keys and counter from key, nonce and label, so the ciphertext is
    /// pseudo-random (RFC 8452, section 4); no message is ever sealed under that nonce.
    pub fn subkey(&self, label: &[u8]) -> Secret<32> {
        let mut out = Secret::zeroed();
        self.seal_with(&[0; NONCE], label, out.expose_mut());
        out
    }

    /// Seals a message under a random nonce: nonce, ciphertext, tag.
    pub fn seal(&self, ad: &[u8], plain: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE] = random::array();
        let mut out = Vec::with_capacity(plain.len() + OVERHEAD);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(plain);
        let tag = self.seal_with(&nonce, ad, out.get_mut(NONCE..).expect("the nonce was just written"));
        out.extend_from_slice(&tag);
        out
    }

    /// Opens what [`SealKey::seal`] gave. The plaintext is wiped when dropped.
    pub fn open(&self, ad: &[u8], sealed: &[u8]) -> Result<zeroize::Zeroizing<Vec<u8>>, Tampered> {
        let (nonce, rest) = sealed.split_first_chunk().ok_or(Tampered)?;
        let (ciphertext, tag) = rest.split_last_chunk().ok_or(Tampered)?;
        let mut plain = zeroize::Zeroizing::new(ciphertext.to_vec());
        self.open_with(nonce, ad, &mut plain, tag)?;
        Ok(plain)
    }

    fn cipher(&self) -> Aes256GcmSiv {
        Aes256GcmSiv::new(self.key.expose().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sealed message opens under its key and associated data, and under no other; no changed bit opens.
    #[test]
    fn a_changed_message_does_not_open() {
        let key = SealKey::new(Secret::random());
        let sealed = key.seal(b"ad", b"plain");
        assert_eq!(sealed.len(), 5 + OVERHEAD);
        assert_eq!(key.open(b"ad", &sealed).unwrap().as_slice(), b"plain");
        assert!(key.open(b"da", &sealed).is_err());
        assert!(SealKey::new(Secret::random()).open(b"ad", &sealed).is_err());
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(key.open(b"ad", &changed).is_err(), "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert!(key.open(b"ad", &sealed[..len]).is_err(), "cut to {len}");
        }
    }

    /// A buffer that did not open holds no unauthenticated plaintext.
    #[test]
    fn a_refused_buffer_is_zeroed() {
        let key = SealKey::new(Secret::random());
        let mut buf = *b"plain";
        let tag = key.seal_with(&[1; 12], b"", &mut buf);
        assert_eq!(key.open_with(&[2; 12], b"", &mut buf, &tag), Err(Tampered));
        assert_eq!(buf, [0; 5]);
    }
}
