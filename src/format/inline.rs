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

use super::layout::{INLINE_HEAD, INLINE_MAX};

/// First byte of an inline record.
pub const KIND_INLINE: u8 = 1;
/// Where the nonce stands.
pub const NONCE_AT: usize = 4;
/// Where the tag stands.
pub const TAG_AT: usize = 16;

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
        let mut out = [0; INLINE_HEAD];
        let (bound, rest) = out.split_at_mut(NONCE_AT);
        let (nonce, tag) = rest.split_at_mut(TAG_AT - NONCE_AT);
        bound.copy_from_slice(&self.bound());
        nonce.copy_from_slice(&self.nonce);
        tag.copy_from_slice(&self.tag);
        out
    }

    /// Decodes the head of a lower file.
    ///
    /// Only the head is looked at: how `plain_len` fits the length of the lower file is the caller's to judge.
    pub fn decode(bytes: &[u8]) -> Result<Self, InlineError> {
        let (head, _) = bytes.split_first_chunk::<INLINE_HEAD>().ok_or(InlineError::Short(bytes.len()))?;
        let [kind, zero, a, b, rest @ ..] = head;
        if *kind != KIND_INLINE {
            return Err(InlineError::Kind(*kind));
        }
        if *zero != 0 {
            return Err(InlineError::Reserved(1));
        }
        let plain_len = u16::from_le_bytes([*a, *b]);
        if u64::from(plain_len) > INLINE_MAX {
            return Err(InlineError::Length(plain_len));
        }
        let (mut nonce, mut tag) = ([0; 12], [0; 16]);
        let (n, t) = rest.split_at(TAG_AT - NONCE_AT);
        nonce.copy_from_slice(n);
        tag.copy_from_slice(t);
        Ok(Self { plain_len, nonce, tag })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEAD: InlineHead = InlineHead { plain_len: 0x0102, nonce: [3; 12], tag: [4; 16] };

    #[test]
    fn the_bytes_stand_where_the_format_says() {
        let bytes = HEAD.encode();
        assert_eq!(bytes[..4], [1, 0, 2, 1]);
        assert_eq!((&bytes[4..16], &bytes[16..]), (&[3; 12][..], &[4; 16][..]));
    }

    #[test]
    fn each_wrong_byte_is_named() {
        let with = |at: usize, value| {
            let mut bytes = HEAD.encode();
            bytes[at] = value;
            InlineHead::decode(&bytes)
        };
        assert_eq!(with(0, 2), Err(InlineError::Kind(2)));
        assert_eq!(with(1, 1), Err(InlineError::Reserved(1)));
        assert_eq!(with(3, 0x10), Err(InlineError::Length(0x1002)));
        assert_eq!(InlineHead::decode(&HEAD.encode()[..31]), Err(InlineError::Short(31)));
        let longest = InlineHead { plain_len: 4064, ..HEAD };
        assert_eq!(InlineHead::decode(&longest.encode()), Ok(longest));
        let longer = InlineHead { plain_len: 4065, ..HEAD };
        assert_eq!(InlineHead::decode(&longer.encode()), Err(InlineError::Length(4065)));
    }

    proptest! {
        #[test]
        fn whatever_decodes_is_encoded_to_the_same_bytes(mut bytes: [u8; 40], tame: bool) {
            if tame {
                bytes[..2].copy_from_slice(&[KIND_INLINE, 0]);
                bytes[3] &= 15;
            }
            if let Ok(head) = InlineHead::decode(&bytes) {
                prop_assert_eq!(&head.encode()[..], &bytes[..32]);
            }
        }
    }
}
