//! What still opens of a damaged file, block by block. Nothing is given out that does not open.
//!
//! Unlike [`super::File`], this goes on where a part is missing that all reading rests on. Without the page of group 0
//! the length is taken from the lower file, and without a leader each group is asked for itself: a page names its group
//! and is authenticated alone. What is found that way opens, but may be older than the file.

use std::io;

use zeroize::Zeroizing;

use crate::crypto::FileKeys;
use crate::format::inline::InlineHead;
use crate::format::layout::{
    BLOCK, BLOCK_U64, BlockIndex, GROUP_BLOCKS, GROUP_BLOCKS_U64, GROUP_DISK, GROUP_PLAIN, GroupIndex,
    INLINE_HEAD, LEADER_SPAN, MAP_PAGE, MAX_PLAIN_LEN, groups_in, plain_len,
};
use crate::format::map::{Entry, Leader, MapPage};
use crate::pipeline::{self, Piece};
use crate::vault::LowerFile;

/// What became of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It opened.
    Good,
    /// An authenticated map page says that it was never written: zeros.
    Hole,
    /// It is there and does not open, or its map page does not.
    Lost,
    /// Nothing is there, and what would say whether that is a hole does not open.
    Unsure,
}

/// Neighbouring blocks with one fate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stretch {
    /// The first block.
    pub first: BlockIndex,
    /// How many.
    pub blocks: u64,
    /// What became of them.
    pub fate: Fate,
    /// Why, where there is more to say.
    pub why: Option<String>,
}

/// What was found in a file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Salvaged {
    /// Length of the plaintext.
    pub plain_len: u64,
    /// Whether that length is authenticated; else it follows from the lower file's.
    pub length_known: bool,
    /// Every block, in order.
    pub stretches: Vec<Stretch>,
    /// Whether someone stopped it before the end.
    pub interrupted: bool,
}

impl Salvaged {
    /// How many blocks have a fate.
    pub fn count(&self, fate: Fate) -> u64 {
        self.stretches.iter().filter(|s| s.fate == fate).map(|s| s.blocks).sum()
    }

    /// Whether all of the file is there.
    pub fn is_whole(&self) -> bool {
        self.length_known && self.stretches.iter().all(|s| matches!(s.fate, Fate::Good | Fate::Hole))
    }

    fn note(&mut self, first: BlockIndex, blocks: u64, fate: Fate, why: Option<&str>) {
        if blocks == 0 {
            return;
        }
        if let Some(last) = self.stretches.last_mut()
            && last.first.0 + last.blocks == first.0
            && (last.fate, last.why.as_deref()) == (fate, why)
        {
            last.blocks += blocks;
            return;
        }
        self.stretches.push(Stretch { first, blocks, fate, why: why.map(str::to_owned) });
    }
}

/// Where plaintext goes: its offset and the bytes.
pub type Out<'o> = dyn FnMut(u64, &[u8]) -> io::Result<()> + 'o;

/// Opens every block that still opens and hands it to `out`; `progress` hears of the lower bytes done now and then and
/// may stop it. An error is only what the lower filesystem or `out` says.
pub fn salvage(
    lower: &dyn LowerFile,
    keys: &FileKeys,
    out: &mut Out<'_>,
    progress: &mut dyn FnMut(u64) -> bool,
) -> io::Result<Salvaged> {
    let disk = lower.len()?;
    let mut page = [0; MAP_PAGE];
    let read = read_what_can(lower, &mut page, 0);
    let mut found = Salvaged::default();
    let why = match open_record(&page[..read], keys) {
        Ok(plain) => {
            found.plain_len = plain.len() as u64;
            found.length_known = true;
            out(0, &plain)?;
            found.note(BlockIndex(0), u64::from(!plain.is_empty()), Fate::Good, None);
            return Ok(found);
        }
        Err(why) => why,
    };
    let first = open_page(&page[..read], keys, GroupIndex(0));
    if disk <= BLOCK_U64 && first.is_err() {
        found.plain_len = plain_len(disk).unwrap_or(0);
        found.note(BlockIndex(0), 1, Fate::Lost, Some(&why));
        return Ok(found);
    }
    let mut groups = Groups { lower, keys, out, found, tail: None };
    groups.all(first, disk, progress)?;
    Ok(groups.found)
}

/// A file of groups on the way.
struct Groups<'a, 'o> {
    lower: &'a dyn LowerFile,
    keys: &'a FileKeys,
    out: &'a mut Out<'o>,
    found: Salvaged,
    /// Where the length is not known: the end of a last block that opened as a short one.
    tail: Option<u64>,
}

impl Groups<'_, '_> {
    fn all(
        &mut self,
        first: Result<MapPage, String>,
        disk: u64,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> io::Result<()> {
        let known = first.as_ref().ok().and_then(|page| page.leader.as_ref()?.plain_len);
        self.found.length_known = known.is_some();
        self.found.plain_len = known.unwrap_or_else(|| guess(disk));
        // A block whose map page is the last thing of a cut file is a loss to be told as well.
        let groups =
            groups_in(self.found.plain_len).max(if known.is_some() { 0 } else { disk.div_ceil(GROUP_DISK) });
        let mut first = Some(first);
        for leader in (0..groups).step_by(LEADER_SPAN as usize).map(GroupIndex) {
            let page = first.take().unwrap_or_else(|| self.page(leader));
            let bitmap = page.as_ref().ok().and_then(|page| page.leader.clone());
            let mut page = Some(page);
            for group in (leader.0..groups.min(leader.0 + LEADER_SPAN)).map(GroupIndex) {
                if !progress(group.disk_start().min(disk)) {
                    self.found.interrupted = true;
                    return Ok(());
                }
                let page = page.take();
                self.group(group, page, bitmap.as_ref())?;
            }
        }
        if let Some(tail) = self.tail {
            self.found.plain_len = tail;
        }
        Ok(())
    }

    /// One group; `page` is there for leaders, whose page was read already.
    fn group(
        &mut self,
        group: GroupIndex,
        page: Option<Result<MapPage, String>>,
        leader: Option<&Leader>,
    ) -> io::Result<()> {
        let first = group.first_block();
        if leader.is_some_and(|leader| !leader.exists(group.bit())) {
            self.found.note(first, self.blocks(group), Fate::Hole, None);
            return Ok(());
        }
        let is_leader = page.is_some();
        match page.unwrap_or_else(|| self.page(group)) {
            Ok(page) => {
                let why = leader.is_none().then_some("found without its leader: may be older than the file");
                self.open_blocks(group, &page.entries, why)
            }
            Err(_) if leader.is_none() && !is_leader && self.is_bare(group) => {
                let why = "its leader does not open, which would say whether this is a hole";
                self.found.note(first, self.blocks(group), Fate::Unsure, Some(why));
                Ok(())
            }
            Err(why) => {
                let why = format!("map page of group {}: {why}", group.0);
                self.found.note(first, self.blocks(group).max(1), Fate::Lost, Some(&why));
                Ok(())
            }
        }
    }

    /// How many blocks of a group lie within the file.
    fn blocks(&self, group: GroupIndex) -> u64 {
        let rest = self.found.plain_len.saturating_sub(group.plain_start());
        rest.div_ceil(BLOCK_U64).min(GROUP_BLOCKS_U64)
    }

    fn page(&self, group: GroupIndex) -> Result<MapPage, String> {
        let mut bytes = [0; MAP_PAGE];
        let read = read_what_can(self.lower, &mut bytes, group.disk_start());
        open_page(&bytes[..read], self.keys, group)
    }

    /// Whether nothing stands in the place of a group's page.
    fn is_bare(&self, group: GroupIndex) -> bool {
        let mut bytes = [0; MAP_PAGE];
        read_what_can(self.lower, &mut bytes, group.disk_start());
        bytes.iter().all(|b| *b == 0)
    }

    fn open_blocks(
        &mut self,
        group: GroupIndex,
        entries: &[Entry; GROUP_BLOCKS],
        why: Option<&str>,
    ) -> io::Result<()> {
        let first = group.first_block();
        let mut buf = Zeroizing::new(vec![0; GROUP_PLAIN as usize]);
        let read = read_what_can(self.lower, &mut buf, first.disk_start());
        // Without a length the last block that is there may be of any.
        let last = if self.found.length_known { None } else { entries.iter().rposition(|e| !e.is_hole()) };
        let mut lens = [0; GROUP_BLOCKS];
        let mut pieces = Vec::with_capacity(GROUP_BLOCKS);
        for (slot, chunk) in buf.chunks_exact_mut(BLOCK).enumerate() {
            let block = BlockIndex(first.0 + slot as u64);
            let there = read.saturating_sub(slot * BLOCK).min(BLOCK);
            let want = if last.is_some() { there } else { block.len_in(self.found.plain_len) };
            if !entries[slot].is_hole() && want > 0 && want <= there {
                lens[slot] = want;
                pieces.push(Piece::new(block, entries[slot], &mut chunk[..want]));
            }
        }
        pipeline::open(self.keys, &mut pieces);
        for slot in pieces.iter().filter(|p| p.failed).map(|p| p.index.slot()).collect::<Vec<_>>() {
            lens[slot] = 0;
        }
        if let Some(slot) = last {
            let chunk = &mut buf[slot * BLOCK..(slot + 1) * BLOCK];
            if lens[slot] == 0 {
                lens[slot] = self.try_lengths(BlockIndex(first.0 + slot as u64), &entries[slot], chunk);
            }
            let end = BlockIndex(first.0 + slot as u64).plain_start() + lens[slot] as u64;
            self.tail = (0 < lens[slot] && lens[slot] < BLOCK).then_some(end);
            // What is behind the length that the lower file tells is there all the same.
            self.found.plain_len = self.found.plain_len.max(end);
        }
        self.tell(group, entries, &lens, why);
        self.give(group, &lens, &buf)
    }

    /// Opens a block of unknown length, trying each; zeros and 0 where none opens.
    fn try_lengths(&self, block: BlockIndex, entry: &Entry, out: &mut [u8]) -> usize {
        let mut sealed = [0; BLOCK];
        let there = read_what_can(self.lower, &mut sealed, block.disk_start());
        for len in (1..=there).rev() {
            out[..len].copy_from_slice(&sealed[..len]);
            if self.keys.open_block(block, entry, &mut out[..len]).is_ok() {
                return len;
            }
        }
        out.fill(0);
        0
    }

    fn tell(
        &mut self,
        group: GroupIndex,
        entries: &[Entry; GROUP_BLOCKS],
        lens: &[usize; GROUP_BLOCKS],
        why: Option<&str>,
    ) {
        let within = self.blocks(group);
        for (block, (entry, len)) in (group.first_block().0..).map(BlockIndex).zip(entries.iter().zip(lens)) {
            let inside = (block.slot() as u64) < within;
            match (entry.is_hole(), *len) {
                (true, _) if inside => self.found.note(block, 1, Fate::Hole, why),
                (true, _) => {}
                (false, 0) => self.found.note(block, 1, Fate::Lost, Some("does not open, or was cut off")),
                (false, _) => self.found.note(block, 1, Fate::Good, why),
            }
        }
    }

    /// Hands out runs of blocks that opened.
    fn give(&mut self, group: GroupIndex, lens: &[usize; GROUP_BLOCKS], buf: &[u8]) -> io::Result<()> {
        let mut slot = 0;
        while slot < GROUP_BLOCKS {
            let run = lens[slot..].iter().take_while(|len| **len > 0).count();
            if run > 0 {
                let end = (slot + run - 1) * BLOCK + lens[slot + run - 1];
                (self.out)(group.plain_start() + (slot * BLOCK) as u64, &buf[slot * BLOCK..end])?;
            }
            slot += run.max(1);
        }
        Ok(())
    }
}

/// The plaintext length that a lower file of `disk` bytes has room for.
fn guess(disk: u64) -> u64 {
    let groups = disk.div_ceil(GROUP_DISK);
    let full = groups.saturating_sub(1);
    let last = (disk - full * GROUP_DISK).saturating_sub(BLOCK_U64);
    (full * GROUP_PLAIN + last).min(MAX_PLAIN_LEN)
}

/// Reads as much as there is; a place that the disk cannot read any more is read as zeros, page by page.
fn read_what_can(lower: &dyn LowerFile, buf: &mut [u8], offset: u64) -> usize {
    if let Ok(read) = lower.read_at(buf, offset) {
        return read;
    }
    let mut end = 0;
    for (at, page) in (0..).step_by(BLOCK).zip(buf.chunks_mut(BLOCK)) {
        match lower.read_at(page, offset + at as u64) {
            Ok(0) => break,
            Ok(read) => end = at + read,
            Err(_) => {
                page.fill(0);
                end = at + page.len();
            }
        }
    }
    end
}

fn open_record(bytes: &[u8], keys: &FileKeys) -> Result<Zeroizing<Vec<u8>>, String> {
    let head = InlineHead::decode(bytes).map_err(|e| e.to_string())?;
    let sealed = bytes.get(INLINE_HEAD..INLINE_HEAD + usize::from(head.plain_len));
    let mut plain = Zeroizing::new(sealed.ok_or("inline record: cut")?.to_vec());
    keys.open_inline(&head, &mut plain).map_err(|e| format!("inline record: {e}"))?;
    Ok(plain)
}

fn open_page(bytes: &[u8], keys: &FileKeys, group: GroupIndex) -> Result<MapPage, String> {
    let page = bytes.try_into().map_err(|_| "cut".to_owned())?;
    keys.open_page(page, group).map_err(|e| e.to_string())
}
