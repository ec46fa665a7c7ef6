//! The map page: which blocks of a group exist, and the nonce and tag of each.
//!
//! ```text
//!    0  kind (2)          1 byte        kind 1 is an inline record, see `inline`
//!    1  flags             1 byte        bit 0: leader; bit 1: carries plain_len (group 0)
//!    2  zero              2 bytes
//!    4  nonce             12 bytes      of the page's authenticator
//!   16  tag               16 bytes      AES-256-GCM-SIV of the empty message, AD = the page with this field zero
//!   32  group index       u64 LE
//!   40  plain_len         u64 LE        group 0 only, else zero
//!   48  zero              208 bytes
//!  256  bitmap            256 bytes     leaders only, else zero; bit i%8 of byte i/8: group leader+i exists
//!  512  entries           128 * 28 bytes: nonce (12), tag (16); all zero = hole
//! ```

use super::layout::{GROUP_BLOCKS, GroupIndex, MAP_PAGE};

/// First byte of a map page.
pub const KIND_MAP: u8 = 2;
/// Where the authenticator's nonce stands.
pub const NONCE_AT: usize = 4;
/// Where the authenticator's tag stands.
pub const TAG_AT: usize = 16;
/// Bytes of one entry.
pub const ENTRY: usize = 28;
/// Where the entries begin.
pub const ENTRIES_AT: usize = 512;

/// Nonce and tag of one sealed block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    /// Random 96-bit nonce.
    pub nonce: [u8; 12],
    /// AES-256-GCM-SIV tag.
    pub tag: [u8; 16],
}

impl Entry {
    /// A block that was never written: reads as zeros.
    pub const HOLE: Self = Self { nonce: [0; 12], tag: [0; 16] };

    /// Whether the block is a hole.
    pub fn is_hole(&self) -> bool {
        *self == Self::HOLE
    }
}

/// What only leaders carry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leader {
    /// Which of the 2,048 groups from this one on exist. The leader's own bit is always set.
    pub bitmap: [u8; 256],
    /// Authenticated length of the file: `Some` in group 0, `None` in later leaders.
    pub plain_len: Option<u64>,
}

/// A decoded map page. Decoding says nothing about authenticity: `crypto::MapKey::verify` does, on the bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapPage {
    /// The group this page describes.
    pub group: GroupIndex,
    /// `Some` exactly where [`GroupIndex::is_leader`].
    pub leader: Option<Leader>,
    /// One entry a block.
    pub entries: Box<[Entry; GROUP_BLOCKS]>,
}

/// Why bytes are no map page.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MapError {
    /// Wrong first byte.
    #[error("map page: kind {0} at byte 0, expected {KIND_MAP}")]
    Kind(u8),
    /// The page belongs elsewhere.
    #[error("map page: group {found} at byte 32, expected {expected}")]
    Group {
        /// As stored.
        found: u64,
        /// As asked for.
        expected: u64,
    },
    /// Flags that do not fit the group.
    #[error("map page: flags {0:#04x} at byte 1 do not fit its group")]
    Flags(u8),
    /// A length that no file has.
    #[error("map page: length {0} at byte 40 is out of range")]
    Length(u64),
    /// A byte that must be zero is not.
    #[error("map page: reserved byte {0} is not zero")]
    Reserved(usize),
}

impl MapPage {
    /// A page of holes. `plain_len` is stored for group 0 and ignored elsewhere.
    pub fn new(_group: GroupIndex, _plain_len: u64) -> Self {
        todo!()
    }

    /// The page's bytes, authenticator (nonce and tag) zero.
    pub fn encode(&self) -> Box<[u8; MAP_PAGE]> {
        todo!()
    }

    /// Decodes a page that was verified, for the group it was read as.
    pub fn decode(_bytes: &[u8; MAP_PAGE], _group: GroupIndex) -> Result<Self, MapError> {
        todo!()
    }
}

impl Leader {
    /// Whether the group at `bit` (`GroupIndex::bit`) exists.
    pub fn exists(&self, bit: usize) -> bool {
        self.bitmap.get(bit / 8).is_some_and(|b| b & (1 << (bit % 8)) != 0)
    }

    /// Notes that the group at `bit` exists, or no longer does.
    pub fn set(&mut self, bit: usize, exists: bool) {
        if let Some(b) = self.bitmap.get_mut(bit / 8) {
            let mask = 1 << (bit % 8);
            if exists { *b |= mask } else { *b &= !mask }
        }
    }
}
