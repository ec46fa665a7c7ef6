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

use super::layout::{GROUP_BLOCKS, GroupIndex, MAP_PAGE, MAX_PLAIN_LEN, is_inline};

/// First byte of a map page.
pub const KIND_MAP: u8 = 2;
/// Where the authenticator's nonce stands.
pub const NONCE_AT: usize = 4;
/// Where the authenticator's tag stands.
pub const TAG_AT: usize = 16;
/// Where the group index stands.
pub const GROUP_AT: usize = 32;
/// Where the length stands.
pub const LENGTH_AT: usize = 40;
/// Where the bytes that are zero for now begin.
pub const RESERVED_AT: usize = 48;
/// Where the bitmap stands.
pub const BITMAP_AT: usize = 256;
/// Flag: the page is a leader's.
pub const FLAG_LEADER: u8 = 1;
/// Flag: the page carries the file's length.
pub const FLAG_LENGTH: u8 = 2;
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

/// A decoded map page. Decoding says nothing about authenticity: `crypto::FileKeys::open_page` does, on the bytes.
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
    /// The bitmap of a leader denies the leader.
    #[error("map page: the leader's own bit at byte {BITMAP_AT} is not set")]
    Bitmap,
    /// A byte that must be zero is not.
    #[error("map page: reserved byte {0} is not zero")]
    Reserved(usize),
}

impl MapPage {
    /// A page of holes. `plain_len` is stored for group 0 and ignored elsewhere.
    pub fn new(group: GroupIndex, plain_len: u64) -> Self {
        let leader = group.is_leader().then(|| {
            let mut leader = Leader { bitmap: [0; 256], plain_len: (group.0 == 0).then_some(plain_len) };
            leader.set(group.bit(), true);
            leader
        });
        Self { group, leader, entries: Box::new([Entry::HOLE; GROUP_BLOCKS]) }
    }

    /// The page's bytes, authenticator (nonce and tag) zero.
    pub fn encode(&self) -> Box<[u8; MAP_PAGE]> {
        let mut page = Box::new([0; MAP_PAGE]);
        let (head, entries) = page.split_at_mut(ENTRIES_AT);
        put(head, 0, &[KIND_MAP, self.flags()]);
        put(head, GROUP_AT, &self.group.0.to_le_bytes());
        if let Some(leader) = &self.leader {
            put(head, LENGTH_AT, &leader.plain_len.unwrap_or(0).to_le_bytes());
            put(head, BITMAP_AT, &leader.bitmap);
        }
        for (slot, entry) in entries.chunks_exact_mut(ENTRY).zip(self.entries.iter()) {
            put(slot, 0, &entry.nonce);
            put(slot, entry.nonce.len(), &entry.tag);
        }
        page
    }

    fn flags(&self) -> u8 {
        match &self.leader {
            None => 0,
            Some(Leader { plain_len: None, .. }) => FLAG_LEADER,
            Some(Leader { plain_len: Some(_), .. }) => FLAG_LEADER | FLAG_LENGTH,
        }
    }

    /// Decodes a page that was verified, for the group it was read as.
    pub fn decode(bytes: &[u8; MAP_PAGE], group: GroupIndex) -> Result<Self, MapError> {
        let [kind, flags, ..] = *bytes;
        if kind != KIND_MAP {
            return Err(MapError::Kind(kind));
        }
        let found = u64::from_le_bytes(take(bytes, GROUP_AT));
        if found != group.0 {
            return Err(MapError::Group { found, expected: group.0 });
        }
        let page = Self { entries: decode_entries(bytes), ..Self::new(group, 0) };
        if flags != page.flags() {
            return Err(MapError::Flags(flags));
        }
        zero(bytes, 2..NONCE_AT)?;
        zero(bytes, RESERVED_AT..BITMAP_AT)?;
        let plain_len = u64::from_le_bytes(take(bytes, LENGTH_AT));
        let fits = if group.0 == 0 { is_grouped(plain_len) } else { plain_len == 0 };
        if !fits {
            return Err(MapError::Length(plain_len));
        }
        let leader = Self::decode_leader(bytes, group, plain_len)?;
        Ok(Self { leader, ..page })
    }

    fn decode_leader(
        bytes: &[u8; MAP_PAGE],
        group: GroupIndex,
        plain_len: u64,
    ) -> Result<Option<Leader>, MapError> {
        if !group.is_leader() {
            zero(bytes, BITMAP_AT..ENTRIES_AT)?;
            return Ok(None);
        }
        let leader =
            Leader { bitmap: take(bytes, BITMAP_AT), plain_len: (group.0 == 0).then_some(plain_len) };
        if leader.exists(group.bit()) { Ok(Some(leader)) } else { Err(MapError::Bitmap) }
    }
}

/// Whether a file of this length has map pages.
const fn is_grouped(plain_len: u64) -> bool {
    !is_inline(plain_len) && plain_len <= MAX_PLAIN_LEN
}

fn decode_entries(bytes: &[u8; MAP_PAGE]) -> Box<[Entry; GROUP_BLOCKS]> {
    let mut entries = Box::new([Entry::HOLE; GROUP_BLOCKS]);
    let slots = bytes.get(ENTRIES_AT..).unwrap_or_default().chunks_exact(ENTRY);
    for (entry, slot) in entries.iter_mut().zip(slots) {
        *entry = Entry { nonce: take(slot, 0), tag: take(slot, 12) };
    }
    entries
}

/// Copies `part` to `at`. All places are constants inside the page.
fn put(page: &mut [u8], at: usize, part: &[u8]) {
    if let Some(place) = page.get_mut(at..).and_then(|rest| rest.get_mut(..part.len())) {
        place.copy_from_slice(part);
    }
}

/// The `N` bytes at `at`. All places are constants inside the page.
fn take<const N: usize>(page: &[u8], at: usize) -> [u8; N] {
    page.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

/// Refuses the first byte of `range` that is not zero.
fn zero(page: &[u8; MAP_PAGE], range: std::ops::Range<usize>) -> Result<(), MapError> {
    let start = range.start;
    match page.get(range).unwrap_or_default().iter().position(|b| *b != 0) {
        Some(at) => Err(MapError::Reserved(start + at)),
        None => Ok(()),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::layout::LEADER_SPAN;

    fn entries(seed: u8) -> Box<[Entry; GROUP_BLOCKS]> {
        let mut entries = Box::new([Entry::HOLE; GROUP_BLOCKS]);
        for (i, entry) in entries.iter_mut().enumerate().filter(|(i, _)| i % 3 > 0) {
            *entry = Entry { nonce: [i as u8 ^ seed; 12], tag: [i as u8; 16] };
        }
        entries
    }

    /// First pages of their file, of a later span, and in between.
    fn pages() -> [MapPage; 3] {
        [0, LEADER_SPAN, 5].map(|group| {
            let mut page = MapPage::new(GroupIndex(group), 70_000);
            page.entries = entries(7);
            page.leader.iter_mut().for_each(|l| l.set(9, true));
            page
        })
    }

    #[test]
    fn the_bytes_stand_where_the_format_says() {
        let [first, later, _] = pages();
        let bytes = first.encode();
        assert_eq!(bytes[..4], [2, 3, 0, 0]);
        assert_eq!(bytes[4..32], [0; 28], "the authenticator is left to `crypto`");
        assert_eq!(bytes[32..40], 0u64.to_le_bytes());
        assert_eq!(bytes[40..48], 70_000u64.to_le_bytes());
        assert_eq!(bytes[256..259], [1, 2, 0]);
        assert_eq!(bytes[512..540], [0; 28], "block 0 is a hole");
        assert_eq!((&bytes[540..552], &bytes[552..568]), (&[6; 12][..], &[1; 16][..]));
        let bytes = later.encode();
        assert_eq!((bytes[1], &bytes[32..48]), (1, &[0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..]));
    }

    #[test]
    fn pages_survive_encoding() {
        for page in pages() {
            assert_eq!(MapPage::decode(&page.encode(), page.group), Ok(page));
        }
    }

    /// Outside the authenticator and the entries each changed byte means an error, or another page.
    #[test]
    fn no_byte_of_a_page_is_ignored() {
        for page in pages() {
            for at in (0..NONCE_AT).chain(GROUP_AT..MAP_PAGE) {
                let mut bytes = page.encode();
                bytes[at] ^= 0x40;
                assert_ne!(MapPage::decode(&bytes, page.group), Ok(page.clone()), "byte {at}");
            }
        }
    }

    #[test]
    fn each_wrong_byte_is_named() {
        let [first, later, between] = pages();
        let with = |page: &MapPage, at: usize, value: &[u8]| {
            let mut bytes = page.encode();
            bytes[at..at + value.len()].copy_from_slice(value);
            MapPage::decode(&bytes, page.group).unwrap_err()
        };
        assert_eq!(with(&first, 0, &[1]), MapError::Kind(1));
        assert_eq!(with(&first, 1, &[1]), MapError::Flags(1));
        assert_eq!(with(&between, 1, &[1]), MapError::Flags(1));
        assert_eq!(with(&later, 1, &[0x81]), MapError::Flags(0x81));
        assert_eq!(with(&first, 3, &[1]), MapError::Reserved(3));
        assert_eq!(with(&first, 32, &[1]), MapError::Group { found: 1, expected: 0 });
        assert_eq!(with(&first, 40, &4064u64.to_le_bytes()), MapError::Length(4064));
        assert_eq!(with(&first, 40, &(MAX_PLAIN_LEN + 1).to_le_bytes()), MapError::Length(MAX_PLAIN_LEN + 1));
        assert_eq!(with(&later, 40, &[1]), MapError::Length(1));
        assert_eq!(with(&between, 48, &[1]), MapError::Reserved(48));
        assert_eq!(with(&first, 255, &[1]), MapError::Reserved(255));
        assert_eq!(with(&between, 300, &[1]), MapError::Reserved(300));
        assert_eq!(with(&later, 256, &[2]), MapError::Bitmap);
    }

    #[test]
    fn a_leader_knows_each_of_its_groups() {
        let mut leader = MapPage::new(GroupIndex(0), 5000).leader.unwrap();
        assert!((1..3000).all(|bit| !leader.exists(bit)) && leader.exists(0));
        leader.set(2047, true);
        assert!(leader.exists(2047) && !leader.exists(2046));
        leader.set(2047, false);
        leader.set(2048, true);
        assert!((1..3000).all(|bit| !leader.exists(bit)));
    }

    proptest! {
        #[test]
        fn whatever_decodes_is_encoded_to_the_same_bytes(
            noise in proptest::collection::vec((0..MAP_PAGE, any::<u8>()), 0..4),
            which in 0..3usize,
        ) {
            let page = &pages()[which];
            let mut bytes = page.encode();
            noise.into_iter().for_each(|(at, value)| bytes[at] = value);
            if let Ok(page) = MapPage::decode(&bytes, page.group) {
                bytes[NONCE_AT..GROUP_AT].fill(0);
                prop_assert_eq!(page.encode(), bytes);
            }
        }
    }
}
