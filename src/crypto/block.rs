//! Sealing and opening the content of one file: blocks, inline records, map pages.

use zeroize::Zeroize;

use super::derive::{BLOCK_KEY, MAP_KEY, hkdf_each};
use super::kernel::{BlockKernel, Kernel};
use super::piece::{Piece, block_ad};
use super::{DataKey, Locked, random};
use crate::format::ids::FileId;
use crate::format::inline::InlineHead;
use crate::format::layout::{BlockIndex, GroupIndex, INLINE_HEAD, INLINE_MAX, MAP_PAGE};
use crate::format::map::{Entry, MapError, MapPage, NONCE_AT, TAG_AT};

/// Bytes of a nonce.
const NONCE: usize = 12;
/// Bytes of a tag.
const TAG: usize = 16;

/// Ciphertext that its key did not make, or not for this place.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
#[error("authentication failed: the ciphertext was changed, moved, or belongs to another file")]
pub struct Tampered;

/// Why a map page is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PageError {
    /// The authenticator does not match.
    #[error(transparent)]
    Tampered(#[from] Tampered),
    /// Authentic, yet not a page of this place: a bug or another version's page.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// The keys of one file, derived from its data key with the file id as salt. Expanded, in locked memory.
pub struct FileKeys {
    kernels: Locked<Kernels>,
}

struct Kernels {
    block: Kernel,
    map: Kernel,
}

impl std::fmt::Debug for FileKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FileKeys(..)")
    }
}

/// What an inline record's tag binds beside its content.
fn inline_ad(head: &InlineHead) -> [u8; 5] {
    let mut ad = [b'I'; 5];
    ad[1..].copy_from_slice(&head.bound());
    ad
}

impl FileKeys {
    /// Derives block key and map key.
    pub fn derive(data_key: &DataKey, file_id: &FileId) -> Self {
        let [block, map] = hkdf_each(data_key.0.expose(), &file_id.0, [BLOCK_KEY, MAP_KEY]);
        let kernels = Kernels { block: Kernel::of(block.expose()), map: Kernel::of(map.expose()) };
        Self { kernels: Locked::new(kernels) }
    }

    /// Seals a block in place. `nonce` must be fresh and random. AD binds the block's index; the tag its length.
    pub fn seal_block(&self, index: BlockIndex, nonce: [u8; NONCE], buf: &mut [u8]) -> Entry {
        let tag = self.kernels.block.seal(&nonce, &block_ad(index), buf);
        Entry { nonce, tag }
    }

    /// As [`Self::seal_block`], from `plain` into `sealed`, which is as long.
    pub fn seal_block_into(
        &self,
        index: BlockIndex,
        nonce: [u8; NONCE],
        plain: &[u8],
        sealed: &mut [u8],
    ) -> Entry {
        let tag = self.kernels.block.seal_into(&nonce, &block_ad(index), plain, sealed);
        Entry { nonce, tag }
    }

    /// Opens a block in place. On failure `buf` is zeroed. A hole's entry opens nothing: holes hold no ciphertext.
    pub fn open_block(&self, index: BlockIndex, entry: &Entry, buf: &mut [u8]) -> Result<(), Tampered> {
        if entry.is_hole() {
            buf.zeroize();
            return Err(Tampered);
        }
        let opened = self.kernels.block.open(&entry.nonce, &block_ad(index), buf, &entry.tag);
        if opened { Ok(()) } else { Err(Tampered) }
    }

    /// Seals a span of blocks and sets their tags; each has a fresh random nonce. Neighbours are worked on side by side.
    pub fn seal_blocks(&self, pieces: &mut [Piece<'_>]) {
        self.kernels.block.seal_blocks(pieces);
    }

    /// Opens a span of blocks in place; those that do not open are zeroed and have `failed` set, holes among them.
    pub fn open_blocks(&self, pieces: &mut [Piece<'_>]) {
        self.kernels.block.open_blocks(pieces);
        for piece in pieces.iter_mut().filter(|piece| piece.entry.is_hole()) {
            piece.buf.zeroize();
            piece.failed = true;
        }
    }

    /// Seals an inline file: the whole lower file, head and ciphertext. `plain` has at most 4064 bytes.
    pub fn seal_inline(&self, plain: &[u8]) -> Vec<u8> {
        let plain_len = u16::try_from(plain.len()).expect("an inline file has at most 4064 bytes");
        assert!(u64::from(plain_len) <= INLINE_MAX, "an inline file has at most 4064 bytes");
        let mut head = InlineHead { plain_len, nonce: random::array(), tag: [0; TAG] };
        let mut record = Vec::with_capacity(INLINE_HEAD + plain.len());
        record.extend_from_slice(&[0; INLINE_HEAD]);
        record.extend_from_slice(plain);
        let (place, text) = record.split_at_mut(INLINE_HEAD);
        head.tag = self.kernels.block.seal(&head.nonce, &inline_ad(&head), text);
        place.copy_from_slice(&head.encode());
        record
    }

    /// Opens the ciphertext behind a decoded head in place (`buf.len()` must be `head.plain_len`).
    /// On failure `buf` is zeroed.
    pub fn open_inline(&self, head: &InlineHead, buf: &mut [u8]) -> Result<(), Tampered> {
        let opened = self.kernels.block.open(&head.nonce, &inline_ad(head), buf, &head.tag);
        if opened { Ok(()) } else { Err(Tampered) }
    }

    /// Encodes a map page and signs it with a fresh nonce.
    pub fn seal_page(&self, page: &MapPage) -> Box<[u8; MAP_PAGE]> {
        let mut bytes = page.encode();
        let nonce = random::array();
        bytes[NONCE_AT..NONCE_AT + NONCE].copy_from_slice(&nonce);
        let tag = self.kernels.map.seal(&nonce, &bytes[..], &mut []);
        bytes[TAG_AT..TAG_AT + TAG].copy_from_slice(&tag);
        bytes
    }

    /// Verifies and decodes a map page read at `group`.
    pub fn open_page(&self, bytes: &[u8; MAP_PAGE], group: GroupIndex) -> Result<MapPage, PageError> {
        let mut signed = *bytes;
        let mut nonce = [0; NONCE];
        let mut tag = [0; TAG];
        nonce.copy_from_slice(&signed[NONCE_AT..NONCE_AT + NONCE]);
        tag.copy_from_slice(&signed[TAG_AT..TAG_AT + TAG]);
        signed[TAG_AT..TAG_AT + TAG].fill(0);
        if !self.kernels.map.open(&nonce, &signed, &mut [], &tag) {
            return Err(Tampered.into());
        }
        Ok(MapPage::decode(bytes, group)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Secret;

    fn keys(file: u8) -> FileKeys {
        FileKeys::derive(&DataKey(Secret::from_slice(&[7; 32]).unwrap()), &FileId([file; 12]))
    }

    #[test]
    fn a_block_opens_only_where_it_was_sealed() {
        let mut buf = b"four words of text".to_vec();
        let entry = keys(1).seal_block(BlockIndex(3), random::array(), &mut buf);
        let sealed = buf.clone();
        assert!(sealed != b"four words of text");
        assert_eq!(keys(1).open_block(BlockIndex(3), &entry, &mut buf), Ok(()));
        assert_eq!(buf, b"four words of text");
        let refused = |keys: FileKeys, index, entry, mut buf: Vec<u8>| {
            assert_eq!(keys.open_block(BlockIndex(index), &entry, &mut buf), Err(Tampered));
            assert!(buf.iter().all(|b| *b == 0), "a refused block leaves nothing in the buffer");
        };
        refused(keys(1), 4, entry, sealed.clone());
        refused(keys(2), 3, entry, sealed.clone());
        refused(keys(1), 3, Entry::HOLE, sealed.clone());
        refused(keys(1), 3, entry, sealed[..17].to_vec());
        refused(keys(1), 3, entry, [&sealed[..], &[0]].concat());
    }

    #[test]
    fn a_block_sealed_into_another_buffer_is_the_same_block() {
        let keys = keys(1);
        for len in [0, 1, 16, 4095, 4096] {
            let plain: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let (mut in_place, mut apart) = (plain.clone(), vec![0xEE; len]);
            let a = keys.seal_block(BlockIndex(9), [4; 12], &mut in_place);
            let b = keys.seal_block_into(BlockIndex(9), [4; 12], &plain, &mut apart);
            assert_eq!((a, in_place), (b, apart));
        }
    }

    #[test]
    fn an_inline_record_opens_and_its_length_is_bound() {
        let keys = keys(1);
        for len in [0, 1, 63, 4064] {
            let record = keys.seal_inline(&vec![9; len]);
            assert_eq!(record.len(), len + 32);
            let head = InlineHead::decode(&record).unwrap();
            let mut buf = record[32..].to_vec();
            keys.open_inline(&head, &mut buf).unwrap();
            assert_eq!(buf, vec![9; len]);
            if len > 0 {
                let cut = InlineHead { plain_len: head.plain_len - 1, ..head };
                assert_eq!(keys.open_inline(&cut, &mut record[32..len + 31].to_vec()), Err(Tampered));
                assert_eq!(keys.open_inline(&cut, &mut record[32..].to_vec()), Err(Tampered));
            }
        }
    }

    #[test]
    fn a_page_of_one_group_is_refused_as_another() {
        let page = MapPage::new(GroupIndex(1), 0);
        let bytes = keys(1).seal_page(&page);
        assert_eq!(keys(1).open_page(&bytes, GroupIndex(1)), Ok(page));
        assert!(matches!(keys(1).open_page(&bytes, GroupIndex(2)), Err(PageError::Map(_))));
        assert_eq!(keys(2).open_page(&bytes, GroupIndex(1)), Err(Tampered.into()));
    }

    #[test]
    fn every_flipped_bit_of_a_page_is_refused() {
        let keys = keys(1);
        let mut bytes = keys.seal_page(&MapPage::new(GroupIndex(0), 1 << 20));
        for bit in 0..MAP_PAGE * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(keys.open_page(&bytes, GroupIndex(0)), Err(Tampered.into()), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        keys.open_page(&bytes, GroupIndex(0)).unwrap();
    }
}
