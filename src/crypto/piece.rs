//! A block on its way: where it belongs, where its bytes are, what came of it.

use crate::format::layout::BlockIndex;
use crate::format::map::Entry;

/// One block and where it belongs. Sealing fills `entry` (its nonce is set by the caller); opening reads it.
#[derive(Debug)]
pub struct Piece<'a> {
    /// Index of the block in its file.
    pub index: BlockIndex,
    /// Nonce and tag.
    pub entry: Entry,
    /// Plaintext or ciphertext, changed in place. At most 4096 bytes.
    pub buf: &'a mut [u8],
    /// Where the plaintext is that is sealed, if not in `buf`; as long as `buf`. Opening does not look at it.
    pub source: Option<&'a [u8]>,
    /// Set by opening where authentication failed; the buffer is zeroed then.
    pub failed: bool,
}

impl<'a> Piece<'a> {
    /// A block that is about to be sealed with this nonce, or opened with this entry.
    pub fn new(index: BlockIndex, entry: Entry, buf: &'a mut [u8]) -> Self {
        Self { index, entry, buf, source: None, failed: false }
    }

    /// A block that is about to be sealed from elsewhere: saves the caller a copy.
    pub fn of(index: BlockIndex, entry: Entry, source: &'a [u8], buf: &'a mut [u8]) -> Self {
        Self { index, entry, buf, source: Some(source), failed: false }
    }

    /// What the block's tag binds beside its content.
    #[inline]
    pub fn ad(&self) -> [u8; 9] {
        block_ad(self.index)
    }
}

/// What a block's tag binds beside its content.
#[inline]
pub(super) fn block_ad(index: BlockIndex) -> [u8; 9] {
    let mut ad = [b'B'; 9];
    ad[1..].copy_from_slice(&index.0.to_le_bytes());
    ad
}
