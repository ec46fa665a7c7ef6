//! The inline record: a whole small file in one page.
//!
//! ```text
//!    0  kind (1)          1 byte
//!    1  zero              1 byte
//!    2  plain_len         u16 LE, at most 4064
//!    4  nonce             12 bytes
//!   16  tag               16 bytes      AD = label and bytes 0..4
//!   32  ciphertext        plain_len bytes
//! ```

use super::layout::INLINE_HEAD;

/// First byte of an inline record.
pub const KIND_INLINE: u8 = 1;

/// The decoded head of an inline record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InlineHead {
    /// Bytes of plaintext, at most 4064.
    pub plain_len: u16,
    /// Random nonce.
    pub nonce: [u8; 12],
    /// AES-256-GCM-SIV tag.
    pub tag: [u8; 16],
}

/// Why bytes are no inline record.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InlineError {
    /// Fewer than 32 bytes.
    #[error("inline record: {0} bytes, shorter than its head of {INLINE_HEAD}")]
    Short(usize),
    /// Wrong first byte.
    #[error("inline record: kind {0} at byte 0, expected {KIND_INLINE}")]
    Kind(u8),
    /// A byte that must be zero is not.
    #[error("inline record: reserved byte {0} is not zero")]
    Reserved(usize),
    /// A length beyond 4064.
    #[error("inline record: length {0} at byte 2 is out of range")]
    Length(u16),
}

impl InlineHead {
    /// The first four bytes, which the tag binds.
    pub fn bound(&self) -> [u8; 4] {
        let [a, b] = self.plain_len.to_le_bytes();
        [KIND_INLINE, 0, a, b]
    }

    /// The head's 32 bytes.
    pub fn encode(&self) -> [u8; INLINE_HEAD] {
        todo!()
    }

    /// Decodes the head of a lower file.
    pub fn decode(_bytes: &[u8]) -> Result<Self, InlineError> {
        todo!()
    }
}
