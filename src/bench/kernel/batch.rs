//! Blocks that are sealed and opened, and what belongs to each of them.

use crate::crypto::random;

/// Blocks of a batch: those of one part of a split request of the pipeline.
pub(super) const BLOCKS: usize = 32;
/// What a block's tag binds: as long as a file's block has it.
pub(super) const AD: usize = 9;

/// A batch of blocks of one length.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    pub(super) block: usize,
    pub(super) nonces: Vec<[u8; 12]>,
    pub(super) tags: Vec<[u8; 16]>,
    pub(super) ads: Vec<[u8; AD]>,
    /// All blocks, one behind the other.
    pub(super) data: Vec<u8>,
}

impl Batch {
    /// A batch of random blocks of `block` bytes.
    pub(super) fn new(block: usize) -> Self {
        let mut data = vec![0; block * BLOCKS];
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = u8::try_from(at.wrapping_mul(2_654_435_761) >> 13 & 0xff).unwrap_or(0);
        }
        let nonces = (0..BLOCKS).map(|_| random::array()).collect();
        Self { block, nonces, tags: vec![[0; 16]; BLOCKS], ads: (0..BLOCKS as u64).map(ad).collect(), data }
    }

    /// Nonce, associated data, tag and bytes of each block.
    pub(super) fn blocks(&mut self) -> impl Iterator<Item = Block<'_>> {
        let parts = self.data.chunks_mut(self.block).zip(&mut self.tags).zip(&self.nonces).zip(&self.ads);
        parts.map(|(((buf, tag), nonce), ad)| Block { nonce, ad, tag, buf })
    }
}

/// One of them.
pub(super) struct Block<'a> {
    pub(super) nonce: &'a [u8; 12],
    pub(super) ad: &'a [u8],
    pub(super) tag: &'a mut [u8; 16],
    pub(super) buf: &'a mut [u8],
}

/// As a file's block is bound to its place.
fn ad(index: u64) -> [u8; AD] {
    let mut ad = [b'B'; AD];
    ad[1..].copy_from_slice(&index.to_le_bytes());
    ad
}
