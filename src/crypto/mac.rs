//! HMAC-SHA256 (RFC 2104) under a key of its own.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::Secret;

/// Authenticates bytes that are no secret: the audit log's lines.
pub struct MacKey(Secret<32>);

impl std::fmt::Debug for MacKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MacKey(..)")
    }
}

impl MacKey {
    /// The key of one purpose.
    pub fn new(key: Secret<32>) -> Self {
        Self(key)
    }

    /// The authenticator of the parts, joined.
    pub fn sign(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.over(parts).finalize().into_bytes().into()
    }

    /// Whether `tag` is the authenticator of the parts, in constant time.
    pub fn verify(&self, parts: &[&[u8]], tag: &[u8; 32]) -> bool {
        self.over(parts).verify_slice(tag).is_ok()
    }

    fn over(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.expose()).expect("HMAC takes keys of any length");
        parts.iter().for_each(|part| mac.update(part));
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As RFC 4231's first case, with a key of 32 bytes; made with Python's `hmac`.
    #[test]
    fn tags_are_those_of_hmac_sha256() {
        let key = MacKey::new(Secret::from_slice(&[0x0b; 32]).unwrap());
        let tag = key.sign(&[b"Hi ", b"There"]);
        assert_eq!(hex::encode(tag), "198a607eb44bfbc69903a0f1cf2bbdc5ba0aa3f3d9ae3c1c7a3b1696a0b68cf7");
        assert!(key.verify(&[b"Hi There"], &tag) && !key.verify(&[b"Hi there"], &tag));
    }
}
