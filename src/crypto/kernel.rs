//! AES-256-GCM-SIV over many blocks.

/// What seals and opens blocks. Implementations must agree byte for byte (RFC 8452).
pub trait BlockKernel: Send + Sync {
    /// Name for `--kernel` and the log.
    fn name(&self) -> &'static str;
    /// Encrypts `buf` in place, gives the tag.
    fn seal(&self, nonce: &[u8; 12], ad: &[u8], buf: &mut [u8]) -> [u8; 16];
    /// Decrypts `buf` in place. On a wrong tag `buf` is zeroed and `false` comes back.
    fn open(&self, nonce: &[u8; 12], ad: &[u8], buf: &mut [u8], tag: &[u8; 16]) -> bool;
}
