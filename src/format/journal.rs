//! The journal: changes of files that are not in their places yet.
//!
//! A log is a header of 512 bytes and records one behind the other. All integers little-endian.
//!
//! ```text
//! header      0  magic "EFSJRNL1"     8 bytes
//!             8  generation           u64     the highest one is the newest
//!            16  oldest               u64     the oldest generation that counted when this one began
//!            24  salt                 16 bytes, of this generation's key
//!            40  born since           i64 seconds, u32 nanoseconds: younger files may not be durable yet
//!            52  zero                 4 bytes
//!            56  boot id              16 bytes \ where the lower filesystem was mounted: the same ones again
//!            72  mount id             u64      / mean that its page cache survived
//!            80  tag                  16 bytes, zero while it is computed
//!            96  zero                 up to 512
//!
//! record      0  length               u32     of the whole record, a multiple of 8
//!             4  kind                 1 byte
//!             5  zero                 3 bytes
//!             8  sequence             u64     1, 2, 3...
//!            16  tag                  16 bytes, zero while it is computed
//!            32  body, zeros up to a multiple of 8
//! ```

use super::ids::FileId;
use super::layout::{BLOCK, BlockIndex, GROUP_BLOCKS, GroupIndex, INLINE_HEAD, MAP_PAGE};
use super::map::Entry;

/// Directory of the logs, below the vault's own directory.
pub const JOURNAL_DIR: &str = "journal";
/// Bytes of a log's header.
pub const HEADER: usize = 512;
/// Bytes in front of a record's body.
pub const RECORD_HEAD: usize = 32;
/// Where header and record hold their tags.
pub const HEADER_TAG_AT: usize = 80;
/// Where a record holds its tag.
pub const RECORD_TAG_AT: usize = 16;
/// The longest record: 512 blocks with their entries, twice over.
pub const MAX_RECORD: usize = 8 << 20;

const MAGIC: &[u8; 8] = b"EFSJRNL1";
/// In a change: the length of the file is set.
const HAS_LENGTH: u8 = 1;
/// In a group of a change: what it held before does not count.
const RESET: u8 = 1;
/// The longest lower path that is written down; a longer one is found by its inode number.
pub const MAX_PATH: usize = 4096;

/// Seconds and nanoseconds since 1970.
pub type Time = (i64, u32);
/// The tag of a map page or inline record; zero where there is none.
pub type PageTag = [u8; 16];

/// No page.
pub const NO_PAGE: PageTag = [0; 16];

/// The first 512 bytes of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Number of the generation.
    pub generation: u64,
    /// The oldest generation that counted when this one began.
    pub oldest: u64,
    /// Salt of the generation's key.
    pub salt: [u8; 16],
    /// Files born later may not be durable.
    pub born_since: Time,
    /// Which boot and which mount of the lower filesystem wrote it.
    pub home: Home,
}

/// A boot of the machine and a mount of the lower filesystem. Zeros where that cannot be known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Home {
    /// Random id of the boot.
    pub boot: [u8; 16],
    /// Unique id of the mount within the boot.
    pub mount: u64,
}

impl Home {
    /// Whether two logs' worth of page cache are the same: nothing of what was written was lost.
    pub fn is_same(&self, other: &Self) -> bool {
        self.mount != 0 && self == other
    }
}

impl Header {
    /// The header's bytes, tag zero.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        let parts: [&[u8]; 8] = [
            MAGIC,
            &self.generation.to_le_bytes(),
            &self.oldest.to_le_bytes(),
            &self.salt,
            &self.born_since.0.to_le_bytes(),
            &u64::from(self.born_since.1).to_le_bytes(),
            &self.home.boot,
            &self.home.mount.to_le_bytes(),
        ];
        let bytes = parts.concat();
        out.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        out
    }

    /// Decodes a header; whether it is authentic is for `crypto::JournalKey` to say. `None`: no header.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut at = Cursor(bytes.get(..HEADER)?);
        if at.array::<8>()? != *MAGIC {
            return None;
        }
        let (generation, oldest, salt) = (at.u64()?, at.u64()?, at.array()?);
        let born_since = at.time()?;
        Some(Self {
            generation,
            oldest,
            salt,
            born_since,
            home: Home { boot: at.array()?, mount: at.u64()? },
        })
    }
}

/// The head of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHead {
    /// Bytes of the whole record.
    pub len: usize,
    /// What it is.
    pub kind: u8,
    /// Its place in the log.
    pub sequence: u64,
    /// Its authenticator.
    pub tag: [u8; 16],
}

impl RecordHead {
    /// Decodes a head; `None` where there is none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut at = Cursor(bytes.get(..RECORD_HEAD)?);
        let len = usize::try_from(at.u32()?).ok()?;
        let [kind, zeros @ ..] = at.array::<4>()?;
        let fits = (RECORD_HEAD..=MAX_RECORD).contains(&len) && len.is_multiple_of(8) && zeros == [0; 3];
        fits.then_some(Self { len, kind, sequence: at.u64()?, tag: at.array()? })
    }
}

/// Finishes a record whose body was written behind [`RECORD_HEAD`] zeros: pads it and fills the head, the tag left zero.
pub fn close_record(bytes: &mut Vec<u8>, kind: u8, sequence: u64) {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let len = u32::try_from(bytes.len()).expect("records are far below 4 GiB");
    put(bytes, 0, &len.to_le_bytes());
    put(bytes, 4, &[kind, 0, 0, 0]);
    put(bytes, 8, &sequence.to_le_bytes());
    put(bytes, RECORD_TAG_AT, &[0; 16]);
}

/// Puts the tag into a closed record or a header.
pub fn put_tag(bytes: &mut [u8], at: usize, tag: &[u8; 16]) {
    put(bytes, at, tag);
}

fn put(bytes: &mut [u8], at: usize, part: &[u8]) {
    if let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..part.len())) {
        place.copy_from_slice(part);
    }
}

/// Where a sealed block of a change is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Where {
    /// Nowhere: the block is a hole now.
    Hole,
    /// In its place in the lower file.
    InPlace,
    /// In the record: this stretch of the log, counted from the record's start.
    Record(usize, usize),
}

/// One block of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockChange {
    /// Which.
    pub block: BlockIndex,
    /// Its new entry.
    pub entry: Entry,
    /// Its ciphertext.
    pub at: Where,
}

/// One group of a change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupChange {
    /// Which.
    pub group: GroupIndex,
    /// Tag of the page that stood in the lower file, or zero.
    pub base: PageTag,
    /// Whether the group was all holes before.
    pub reset: bool,
    /// What changed.
    pub blocks: Vec<BlockChange>,
}

/// A record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record<'a> {
    /// Where a file was when it was first changed in this generation.
    Name {
        /// Its id.
        file: FileId,
        /// Its lower inode number.
        inode: u64,
        /// Its lower path from the vault's top; empty where that is not known.
        path: &'a [u8],
    },
    /// A change of a grouped file.
    Change {
        /// Its id.
        file: FileId,
        /// Its length from now on.
        length: Option<u64>,
        /// Groups with changed pages.
        groups: Vec<GroupChange>,
        /// Groups that no longer exist.
        dropped: Vec<GroupIndex>,
    },
    /// The file is this inline record from now on.
    Inline {
        /// Its id.
        file: FileId,
        /// Tag of what stood in its first page.
        base: PageTag,
        /// The sealed record.
        sealed: &'a [u8],
    },
    /// Map pages that are about to be written.
    Image {
        /// The file's id.
        file: FileId,
        /// Generation and sequence number of the record behind which they are what the file is.
        as_of: (u64, u64),
        /// Pages by group.
        pages: Vec<(GroupIndex, &'a [u8; MAP_PAGE])>,
    },
    /// The file lost its last name.
    Gone {
        /// Its id.
        file: FileId,
    },
    /// Everything born before is durable.
    Settled {
        /// When.
        born_since: Time,
    },
    /// When the file's content changed last, whatever time its lower inode has after a power cut.
    Times {
        /// Its id.
        file: FileId,
        /// When.
        modified: Time,
    },
    /// The times in this generation's records and older ones are durable in the lower inodes, and count no more.
    Landed {
        /// The generation.
        generation: u64,
    },
}

const NAME: u8 = 1;
const CHANGE: u8 = 2;
const INLINE: u8 = 3;
const IMAGE: u8 = 4;
const GONE: u8 = 5;
const SETTLED: u8 = 6;
const TIMES: u8 = 7;
const LANDED: u8 = 8;

/// A record that is being written: [`RECORD_HEAD`] zeros and the body so far.
#[derive(Debug)]
pub struct Draft {
    /// Bytes so far.
    pub bytes: Vec<u8>,
    /// For [`close_record`].
    pub kind: u8,
}

impl Draft {
    fn new(kind: u8, file: Option<FileId>, room: usize) -> Self {
        let mut bytes = Vec::with_capacity(RECORD_HEAD + 64 + room);
        bytes.resize(RECORD_HEAD, 0);
        if let Some(file) = file {
            bytes.extend_from_slice(&file.0);
        }
        Self { bytes, kind }
    }

    /// See [`Record::Name`].
    pub fn name(file: FileId, inode: u64, path: &[u8]) -> Self {
        let path = if path.len() > MAX_PATH { &[] } else { path };
        let mut draft = Self::new(NAME, Some(file), path.len());
        let len = u32::try_from(path.len()).unwrap_or(0);
        draft.bytes.extend_from_slice(&len.to_le_bytes());
        draft.bytes.extend_from_slice(&inode.to_le_bytes());
        draft.bytes.extend_from_slice(path);
        draft
    }

    /// See [`Record::Change`]; `data` is what the blocks' [`Where::Record`] count from: their place in it. Gives also
    /// where `data` begins in the record.
    pub fn change(
        file: FileId,
        length: Option<u64>,
        groups: &[GroupChange],
        dropped: &[GroupIndex],
        data: &[u8],
    ) -> (Self, usize) {
        let entries: usize = groups.iter().map(|g| g.blocks.len()).sum();
        let room = 32 * (groups.len() + entries) + 8 * dropped.len() + data.len();
        let mut draft = Self::new(CHANGE, Some(file), room);
        let out = &mut draft.bytes;
        out.extend_from_slice(&[if length.is_some() { HAS_LENGTH } else { 0 }, 0, 0, 0]);
        out.extend_from_slice(&length.unwrap_or(0).to_le_bytes());
        let count = |n: usize| u32::try_from(n).expect("a change has few groups").to_le_bytes();
        out.extend_from_slice(&count(groups.len()));
        out.extend_from_slice(&count(dropped.len()));
        for group in groups {
            out.extend_from_slice(&group.group.0.to_le_bytes());
            out.extend_from_slice(&group.base);
            out.extend_from_slice(&[if group.reset { RESET } else { 0 }, 0, 0, 0]);
            out.extend_from_slice(&count(group.blocks.len()));
            for change in &group.blocks {
                let (kind, len) = match change.at {
                    Where::Hole => (0, 0),
                    Where::InPlace => (1, 0),
                    Where::Record(_, len) => (2, len),
                };
                let slot = u8::try_from(change.block.slot()).expect("a slot is below 128");
                out.extend_from_slice(&[slot, kind]);
                out.extend_from_slice(&u16::try_from(len).expect("a block has 4096 bytes").to_le_bytes());
                out.extend_from_slice(&change.entry.nonce);
                out.extend_from_slice(&change.entry.tag);
            }
        }
        dropped.iter().for_each(|g| out.extend_from_slice(&g.0.to_le_bytes()));
        let at = out.len();
        out.extend_from_slice(data);
        (draft, at)
    }

    /// See [`Record::Inline`].
    pub fn inline(file: FileId, base: &PageTag, sealed: &[u8]) -> Self {
        let mut draft = Self::new(INLINE, Some(file), sealed.len());
        draft.bytes.extend_from_slice(base);
        draft.bytes.extend_from_slice(&u32::try_from(sealed.len()).unwrap_or(0).to_le_bytes());
        draft.bytes.extend_from_slice(sealed);
        draft
    }

    /// See [`Record::Image`].
    pub fn image<'p>(
        file: FileId,
        as_of: (u64, u64),
        pages: impl Iterator<Item = (GroupIndex, &'p [u8; MAP_PAGE])>,
    ) -> Self {
        let mut draft = Self::new(IMAGE, Some(file), MAP_PAGE);
        draft.bytes.extend_from_slice(&as_of.0.to_le_bytes());
        draft.bytes.extend_from_slice(&as_of.1.to_le_bytes());
        let at = draft.bytes.len();
        draft.bytes.extend_from_slice(&[0; 4]);
        let mut count = 0u32;
        for (group, page) in pages {
            draft.bytes.extend_from_slice(&group.0.to_le_bytes());
            draft.bytes.extend_from_slice(page);
            count += 1;
        }
        put(&mut draft.bytes, at, &count.to_le_bytes());
        draft
    }

    /// See [`Record::Gone`].
    pub fn gone(file: FileId) -> Self {
        Self::new(GONE, Some(file), 0)
    }

    /// See [`Record::Settled`].
    pub fn settled(born_since: Time) -> Self {
        Self::new(SETTLED, None, 16).with_time(born_since)
    }

    /// See [`Record::Times`].
    pub fn times(file: FileId, modified: Time) -> Self {
        Self::new(TIMES, Some(file), 16).with_time(modified)
    }

    /// Whether this is a [`Record::Times`].
    pub fn is_times(&self) -> bool {
        self.kind == TIMES
    }

    /// See [`Record::Landed`].
    pub fn landed(generation: u64) -> Self {
        let mut draft = Self::new(LANDED, None, 8);
        draft.bytes.extend_from_slice(&generation.to_le_bytes());
        draft
    }

    fn with_time(mut self, (seconds, nanos): Time) -> Self {
        self.bytes.extend_from_slice(&seconds.to_le_bytes());
        self.bytes.extend_from_slice(&u64::from(nanos).to_le_bytes());
        self
    }
}

impl<'a> Record<'a> {
    /// Decodes a whole record that was found authentic. `None`: a kind or shape that this version does not write.
    pub fn decode(kind: u8, record: &'a [u8]) -> Option<Self> {
        let mut at = Cursor(record.get(RECORD_HEAD..)?);
        if kind == SETTLED {
            return Some(Self::Settled { born_since: at.time()? });
        }
        if kind == LANDED {
            return Some(Self::Landed { generation: at.u64()? });
        }
        let file = FileId(at.array()?);
        Some(match kind {
            NAME => {
                let len = usize::try_from(at.u32()?).ok()?;
                Self::Name { file, inode: at.u64()?, path: at.take(len)? }
            }
            CHANGE => Self::change(file, at, record.len())?,
            INLINE => {
                let base = at.array()?;
                let len = usize::try_from(at.u32()?).ok()?;
                let sealed = at.take(len).filter(|s| (INLINE_HEAD..=BLOCK).contains(&s.len()))?;
                Self::Inline { file, base, sealed }
            }
            IMAGE => {
                let (as_of, count) = ((at.u64()?, at.u64()?), at.u32()?);
                let mut page = || Some((GroupIndex(at.u64()?), at.take(MAP_PAGE)?.first_chunk()?));
                Self::Image { file, as_of, pages: (0..count).map(|_| page()).collect::<Option<_>>()? }
            }
            GONE => Self::Gone { file },
            TIMES => Self::Times { file, modified: at.time()? },
            _ => return None,
        })
    }

    fn change(file: FileId, mut at: Cursor<'_>, whole: usize) -> Option<Self> {
        let [flags, ..] = at.array::<4>()?;
        let length = Some(at.u64()?).filter(|_| flags & HAS_LENGTH != 0);
        let (count, gone) = (at.u32()?, at.u32()?);
        let mut groups = Vec::new();
        for _ in 0..count {
            groups.push(Self::group(&mut at)?);
        }
        let dropped = (0..gone).map(|_| at.u64().map(GroupIndex)).collect::<Option<_>>()?;
        let mut start = whole - at.0.len();
        for change in groups.iter_mut().flat_map(|g| &mut g.blocks) {
            if let Where::Record(place, len) = &mut change.at {
                at.take(*len)?;
                *place = start;
                start += *len;
            }
        }
        Some(Self::Change { file, length, groups, dropped })
    }

    fn group(at: &mut Cursor<'_>) -> Option<GroupChange> {
        let group = GroupIndex(at.u64()?);
        let base = at.array()?;
        let [flags, ..] = at.array::<4>()?;
        let count = usize::try_from(at.u32()?).ok().filter(|n| *n <= GROUP_BLOCKS)?;
        let first = group.0.checked_mul(GROUP_BLOCKS as u64)?;
        let mut block = || {
            let [slot, kind] = at.array()?;
            let len = usize::from(u16::from_le_bytes(at.array()?));
            let entry = Entry { nonce: at.array()?, tag: at.array()? };
            let at = match kind {
                0 => Where::Hole,
                1 => Where::InPlace,
                2 if len <= BLOCK => Where::Record(0, len),
                _ => return None,
            };
            let slot = Some(u64::from(slot)).filter(|s| *s < GROUP_BLOCKS as u64)?;
            Some(BlockChange { block: BlockIndex(first.checked_add(slot)?), entry, at })
        };
        let blocks = (0..count).map(|_| block()).collect::<Option<_>>()?;
        Some(GroupChange { group, base, reset: flags & RESET != 0, blocks })
    }
}

/// Bytes that are yet to be read.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (part, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(part)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.first_chunk().copied()
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn time(&mut self) -> Option<Time> {
        Some((self.u64()?.cast_signed(), u32::try_from(self.u64()?).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(mut draft: Draft) -> (u8, Vec<u8>) {
        close_record(&mut draft.bytes, draft.kind, 7);
        (draft.kind, draft.bytes)
    }

    #[test]
    fn a_header_survives_encoding() {
        let header = Header {
            generation: 3,
            oldest: 2,
            salt: [9; 16],
            born_since: (-5, 999_999_999),
            home: Home { boot: [1; 16], mount: 77 },
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Some(header));
        assert!(bytes[HEADER_TAG_AT..].iter().all(|b| *b == 0));
        assert_eq!(Header::decode(&bytes[..511]), None);
        assert_eq!(Header::decode(&[0; 512]), None);
    }

    #[test]
    fn records_survive_encoding() {
        let file = FileId([4; 12]);
        let entry = |n| Entry { nonce: [n; 12], tag: [n; 16] };
        let groups = vec![
            GroupChange {
                group: GroupIndex(0),
                base: [5; 16],
                reset: false,
                blocks: vec![
                    BlockChange { block: BlockIndex(3), entry: entry(1), at: Where::Record(0, 4096) },
                    BlockChange { block: BlockIndex(4), entry: Entry::HOLE, at: Where::Hole },
                ],
            },
            GroupChange {
                group: GroupIndex(9),
                base: NO_PAGE,
                reset: true,
                blocks: vec![
                    BlockChange { block: BlockIndex(9 * 128), entry: entry(2), at: Where::InPlace },
                    BlockChange {
                        block: BlockIndex(9 * 128 + 1),
                        entry: entry(3),
                        at: Where::Record(4096, 10),
                    },
                ],
            },
        ];
        let data: Vec<u8> = (0..4106).map(|i| i as u8).collect();
        let (draft, at) = Draft::change(file, Some(70_000), &groups, &[GroupIndex(4)], &data);
        let (kind, bytes) = closed(draft);
        let Some(Record::Change { file: id, length, groups: found, dropped }) = Record::decode(kind, &bytes)
        else {
            panic!("a change")
        };
        assert_eq!((id, length, dropped), (file, Some(70_000), vec![GroupIndex(4)]));
        let mut shifted = groups;
        for change in shifted.iter_mut().flat_map(|g| &mut g.blocks) {
            if let Where::Record(place, _) = &mut change.at {
                *place += at;
            }
        }
        assert_eq!(found, shifted);
        assert_eq!(&bytes[at..at + data.len()], data);
        let head = RecordHead::decode(&bytes).unwrap();
        assert_eq!((head.len, head.kind, head.sequence), (bytes.len(), kind, 7));

        let page = [8; MAP_PAGE];
        let sealed = vec![1; 40];
        for (draft, record) in [
            (Draft::name(file, 12, b"a/b"), Record::Name { file, inode: 12, path: b"a/b" }),
            (Draft::inline(file, &[2; 16], &sealed), Record::Inline { file, base: [2; 16], sealed: &sealed }),
            (
                Draft::image(file, (3, 4), [(GroupIndex(6), &page)].into_iter()),
                Record::Image { file, as_of: (3, 4), pages: vec![(GroupIndex(6), &page)] },
            ),
            (Draft::gone(file), Record::Gone { file }),
            (Draft::settled((1, 2)), Record::Settled { born_since: (1, 2) }),
            (Draft::times(file, (-3, 4)), Record::Times { file, modified: (-3, 4) }),
            (Draft::landed(5), Record::Landed { generation: 5 }),
        ] {
            let (kind, bytes) = closed(draft);
            assert_eq!(Record::decode(kind, &bytes), Some(record));
            // Whatever is cut off, decoding ends with an answer.
            for len in RECORD_HEAD..bytes.len().min(200) {
                let _ = Record::decode(kind, &bytes[..len]);
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn noise_never_panics(kind in 0..10u8, bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600)) {
            let _ = Record::decode(kind, &bytes);
            let _ = RecordHead::decode(&bytes);
            let _ = Header::decode(&bytes);
        }
    }
}
