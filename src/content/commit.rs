//! The one point that every change of a lower file passes.
//!
//! A [`Change`] collects what one operation does: sealed blocks, entries, groups that come to exist or no longer do,
//! and the length. In a file that is changed through the journal, [`Change::put_run`] writes blocks to their places
//! only where no map speaks for what stands there, and keeps the others; [`Change::commit`] then appends one record
//! with all the rest. In a file that is changed in place, blocks go to their places at once, and the commit writes the
//! map pages: ordinary groups, leaders, and last group 0 with the length, each page in one write. When something fails, the
//! maps in memory are what they were.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::checkpoint::tag_of;
use super::file::{File, Form};
use super::groups::{Bitmap, Entries, Loaded, WriteGuard, bit, holes, lone_leader, set_bit};
use super::journal::{Appended, Place};
use super::pending::{Pending, sealed};
use super::{Fault, Result, unless_unsupported};
use crate::format::journal::{BlockChange, Draft, GroupChange, PageTag, Where};
use crate::format::layout::{BLOCK, BLOCK_U64, BlockIndex, GROUP_BLOCKS, GroupIndex, INLINE_HEAD};
use crate::format::map::{Leader, MapPage};

/// What one operation changes in a file. Holds the slots of the groups it changes.
pub(super) struct Change<'f> {
    file: &'f File,
    journaled: bool,
    held: BTreeMap<u64, WriteGuard>,
    bitmaps: BTreeMap<u64, Bitmap>,
    dirty: BTreeSet<u64>,
    dropped: Vec<GroupIndex>,
    length: Option<Length>,
    /// Groups as they were, of a journaled change.
    before: BTreeMap<u64, Loaded>,
    /// Groups that did not exist before.
    born: BTreeSet<u64>,
    /// Blocks that may not go to their places yet, and where they are in `bytes`.
    kept: BTreeMap<u64, (usize, usize)>,
    bytes: Vec<u8>,
}

/// What becomes of the length.
#[derive(Clone, Copy)]
enum Length {
    /// Under the exclusive gate.
    Exactly(u64),
    /// Under the shared gate, where others grow the file too: decided under the slot of group 0.
    AtLeast(u64),
}

const FIRST: GroupIndex = GroupIndex(0);

impl<'f> Change<'f> {
    pub(super) fn new(file: &'f File) -> Self {
        Self {
            file,
            journaled: file.is_journaled(),
            held: BTreeMap::new(),
            bitmaps: BTreeMap::new(),
            dirty: BTreeSet::new(),
            dropped: Vec::new(),
            length: None,
            before: BTreeMap::new(),
            born: BTreeSet::new(),
            kept: BTreeMap::new(),
            bytes: Vec::new(),
        }
    }

    /// Whether blocks that are overwritten go through the journal, so that a failure halfway spoils nothing.
    pub(super) fn is_journaled(&self) -> bool {
        self.journaled
    }

    /// The entries of a group, to change; its page is written at commit. Under the shared gate, ask for
    /// ordinary groups first, ascending, then for leaders, descending.
    pub(super) fn entries(&mut self, group: GroupIndex) -> Result<&mut Entries> {
        self.dirty.insert(group.0);
        self.hold(group)
    }

    fn hold(&mut self, group: GroupIndex) -> Result<&mut Entries> {
        if !self.held.contains_key(&group.0) {
            let guard = self.file.entries_mut(group)?;
            if self.journaled {
                self.before.insert(group.0, guard.clone().unwrap_or_else(Loaded::hole));
            }
            self.held.insert(group.0, guard);
        }
        let guard = self.held.get_mut(&group.0).expect("held since the lines above");
        Ok(&mut guard.get_or_insert_with(Loaded::hole).entries)
    }

    /// A leader that the file now reaches: starts with no group but itself.
    pub(super) fn add_leader(&mut self, leader: GroupIndex) {
        let mut guard = self.file.groups().write(leader);
        *guard = Some(Loaded::hole());
        self.before.insert(leader.0, Loaded::hole());
        self.held.insert(leader.0, guard);
        self.bitmaps.insert(leader.0, lone_leader());
        self.dirty.insert(leader.0);
        self.born.insert(leader.0);
    }

    /// An ordinary group that is a hole from now on.
    pub(super) fn drop_group(&mut self, group: GroupIndex) {
        self.dropped.push(group);
        self.dirty.insert(group.leader().0);
    }

    /// The length from now on.
    pub(super) fn set_length(&mut self, len: u64) {
        self.length = Some(Length::Exactly(len));
        self.dirty.insert(FIRST.0);
    }

    /// The length is raised to `len` if it is below it then.
    pub(super) fn grow_to(&mut self, len: u64) {
        self.length = Some(Length::AtLeast(len));
        self.dirty.insert(FIRST.0);
    }

    /// Takes sealed blocks of one group, one behind the other, whose entries are not changed yet.
    pub(super) fn put_run(&mut self, first: BlockIndex, run: &[u8]) -> Result<()> {
        if !self.journaled {
            return self.file.put_blocks(first, run);
        }
        let group = first.group();
        let now = self.before.get(&group.0).map_or(0, |loaded| sealed(loaded));
        let mut taken = self.file.pending().taken(group, now);
        if group == FIRST && self.file.len() == 0 {
            // What an inline file had stands in its record alone: were its block lost, a hole would not do.
            taken |= 1;
        }
        let blocks: Vec<_> = (first.0..).map(BlockIndex).zip(run.chunks(BLOCK)).collect();
        for part in blocks.chunk_by(|(a, _), (b, _)| (taken >> a.slot()) & 1 == (taken >> b.slot()) & 1) {
            let Some((start, _)) = part.first() else { continue };
            let at = (start.0 - first.0) as usize * BLOCK;
            let len: usize = part.iter().map(|(_, bytes)| bytes.len()).sum();
            let bytes = &run[at..at + len];
            if (taken >> start.slot()) & 1 == 0 {
                self.file.put_blocks(*start, bytes)?;
                continue;
            }
            for (block, bytes) in part {
                self.kept.insert(block.0, (self.bytes.len(), bytes.len()));
                self.bytes.extend_from_slice(bytes);
            }
        }
        Ok(())
    }

    /// Makes the change true: in the journal or in the lower file's pages, then in memory.
    pub(super) fn commit(mut self) -> Result<()> {
        let done = if self.journaled { self.write_record() } else { self.write_pages() };
        if done.is_err() {
            self.fall_back();
        }
        done
    }

    fn write_pages(&mut self) -> Result<()> {
        self.hold_leaders()?;
        for (group, is_ordinary) in self.page_order() {
            self.write_page(group, is_ordinary)?;
        }
        self.make_true();
        Ok(())
    }

    fn make_true(&mut self) {
        self.held.values_mut().filter_map(|guard| guard.as_mut()).for_each(|loaded| loaded.stale = 0);
        for (leader, bitmap) in std::mem::take(&mut self.bitmaps) {
            self.file.groups().set_bitmap(GroupIndex(leader), bitmap);
        }
        for group in &self.dropped {
            self.file.groups().forget(*group);
        }
        if self.length.is_some() {
            self.file.set_plain_len(self.new_length());
        }
    }

    /// Takes the slots of the leaders that change and works their bitmaps out.
    fn hold_leaders(&mut self) -> Result<()> {
        let mut born = Vec::new();
        for group in self.dirty.iter().map(|g| GroupIndex(*g)).filter(|g| !g.is_leader()) {
            if !self.file.exists(group)? {
                born.push(group);
            }
        }
        self.born.extend(born.iter().map(|g| g.0));
        self.dirty.extend(born.iter().map(|g| g.leader().0));
        let leaders: Vec<_> = self.dirty.iter().map(|g| GroupIndex(*g)).filter(|g| g.is_leader()).collect();
        for leader in leaders.into_iter().rev() {
            self.hold(leader)?;
            if !self.bitmaps.contains_key(&leader.0) {
                let bitmap = self.file.bitmap(leader)?.unwrap_or_else(lone_leader);
                self.bitmaps.insert(leader.0, bitmap);
            }
        }
        let changes = born.iter().map(|g| (*g, true)).chain(self.dropped.iter().map(|g| (*g, false)));
        for (group, exists) in changes {
            if let Some(bitmap) = self.bitmaps.get_mut(&group.leader().0) {
                set_bit(bitmap, group, exists);
            }
        }
        Ok(())
    }

    /// Stable while the slot of group 0 is held, which it is where the length changes.
    fn new_length(&self) -> u64 {
        match self.length {
            None => self.file.len(),
            Some(Length::Exactly(len)) => len,
            Some(Length::AtLeast(len)) => len.max(self.file.len()),
        }
    }

    /// Ordinary groups, then leaders from the last to group 0, which carries the length.
    fn page_order(&self) -> Vec<(GroupIndex, bool)> {
        let dropped: BTreeSet<u64> = self.dropped.iter().map(|g| g.0).collect();
        let dirty = || self.dirty.iter().map(|g| GroupIndex(*g));
        let ordinary = dirty().filter(|g| !g.is_leader() && !dropped.contains(&g.0)).map(|g| (g, true));
        ordinary.chain(dirty().rev().filter(|g| g.is_leader()).map(|g| (g, false))).collect()
    }

    fn write_page(&mut self, group: GroupIndex, is_ordinary: bool) -> Result<()> {
        let length = self.new_length();
        let leader = if is_ordinary {
            None
        } else {
            let bitmap = self.bitmaps.get(&group.0).expect("hold_leaders filled every dirty leader's");
            debug_assert!(bit(bitmap, group));
            Some(Leader { bitmap: **bitmap, plain_len: (group == FIRST).then_some(length) })
        };
        let entries = std::mem::replace(self.hold(group)?, holes());
        let page = MapPage { group, leader, entries };
        let bytes = self.file.keys().seal_page(&page);
        let written = self.file.lower().write_at(&[IoSlice::new(&bytes[..])], group.disk_start());
        self.file.mark_unsynced();
        *self.hold(group)? = page.entries;
        if let Some(Some(loaded)) = self.held.get_mut(&group.0).map(|guard| &mut **guard) {
            loaded.tag = tag_of(&bytes[..]);
        }
        Ok(written?)
    }

    /// Appends the record and notes what is pending now.
    fn write_record(&mut self) -> Result<()> {
        if self.dirty.is_empty() && self.dropped.is_empty() {
            return Ok(());
        }
        // A file that was inline until now: nothing of its first page counts.
        if self.file.len() == 0 && self.dirty.contains(&FIRST.0) {
            self.born.insert(FIRST.0);
        }
        self.hold_leaders()?;
        for group in self.born.iter().map(|g| GroupIndex(*g)) {
            // A checkpoint must find room for the page.
            unless_unsupported(self.file.lower().reserve(group.disk_start(), BLOCK_U64))?;
        }
        let order = self.page_order();
        let (bases, pages) = self.bases(&order);
        let mut groups: Vec<_> =
            order.iter().zip(&bases).map(|((group, _), base)| self.group_change(*group, *base)).collect();
        self.put_data_in_order(&mut groups);
        let length = self.length.map(|_| self.new_length());
        let (draft, data_at) = Draft::change(self.file.id(), length, &groups, &self.dropped, &self.bytes);
        let appended = self.file.record(draft, pages)?;
        self.note_pending(&groups, &appended, data_at);
        self.make_true();
        Ok(())
    }

    /// Tags of the pages that stand in the lower file, and how many of them the journal did not hold back yet.
    fn bases(&self, order: &[(GroupIndex, bool)]) -> (Vec<PageTag>, usize) {
        let mut pending = self.file.pending();
        let before = pending.groups.len();
        let first = pending.first;
        let bases = order
            .iter()
            .map(|(group, _)| {
                let loaded = self.before.get(&group.0);
                let was_inline = *group == FIRST && self.born.contains(&FIRST.0);
                let tag = if was_inline { first } else { loaded.map_or([0; 16], |l| l.tag) };
                pending.dirty(*group, loaded.map_or(0, |l| sealed(l)), tag).base
            })
            .collect();
        (bases, pending.groups.len() - before)
    }

    fn group_change(&self, group: GroupIndex, base: PageTag) -> GroupChange {
        let reset = self.born.contains(&group.0);
        let mut blocks = Vec::new();
        if let (Some(before), Some(Some(now))) =
            (self.before.get(&group.0), self.held.get(&group.0).map(|guard| &**guard))
        {
            let differs =
                |slot: &usize| before.entries[*slot] != now.entries[*slot] || before.stale >> slot & 1 != 0;
            for slot in (0..GROUP_BLOCKS).filter(differs) {
                let block = BlockIndex(group.first_block().0 + slot as u64);
                let entry = now.entries[slot];
                let at = match self.kept.get(&block.0) {
                    _ if entry.is_hole() => Where::Hole,
                    Some((at, len)) => Where::Record(*at, *len),
                    None => Where::InPlace,
                };
                blocks.push(BlockChange { block, entry, at });
            }
        }
        GroupChange { group, base, reset, blocks }
    }

    /// The data of a record stands in the order of its blocks.
    fn put_data_in_order(&mut self, groups: &mut [GroupChange]) {
        let mut next = 0;
        let mut in_order = true;
        for place in groups.iter().flat_map(|g| &g.blocks) {
            if let Where::Record(at, len) = place.at {
                in_order &= at == next;
                next += len;
            }
        }
        if in_order && next == self.bytes.len() {
            return;
        }
        let mut bytes = Vec::with_capacity(next);
        for place in groups.iter_mut().flat_map(|g| &mut g.blocks) {
            if let Where::Record(at, len) = &mut place.at {
                let moved = bytes.len();
                bytes.extend_from_slice(&self.bytes[*at..*at + *len]);
                *at = moved;
            }
        }
        self.bytes = bytes;
    }

    fn note_pending(&mut self, groups: &[GroupChange], appended: &Appended, data_at: usize) {
        let len = self.new_length();
        let mut pending = self.file.pending();
        for change in groups {
            let pin = self.held.get(&change.group.0).map(|guard| Arc::clone(WriteGuard::rwlock(guard)));
            for block in &change.blocks {
                pending.overlay.remove(&block.block.0);
                if let Where::Record(at, len) = block.at {
                    let at = appended.at + (data_at + at) as u64;
                    let place = Place { log: Arc::clone(&appended.log), at, len };
                    pending.overlay.insert(block.block.0, place);
                }
            }
            if let Some(dirty) = pending.groups.get_mut(&change.group.0) {
                dirty.pin = pin;
                for block in &change.blocks {
                    match block.at {
                        Where::InPlace => dirty.fresh |= 1 << block.block.slot(),
                        // A block that stands in the journal once is changed there: a hole would not do for it.
                        Where::Record(..) => dirty.kept |= 1 << block.block.slot(),
                        Where::Hole => {}
                    }
                }
            }
        }
        self.dropped.iter().for_each(|group| pending.drop_group(*group));
        if len < self.file.len() {
            pending.cut(len, self.file.len());
        }
        pending.inline = None;
        pending.high = pending.high.max(len);
        self.file.set_overlay(pending.has_overlay());
    }

    /// Forgets what was prepared. Where pages were written, the next use reads the lower file again.
    fn fall_back(&mut self) {
        if self.journaled {
            for (group, guard) in &mut self.held {
                **guard = self.before.remove(group);
            }
            return;
        }
        for guard in self.held.values_mut() {
            **guard = None;
        }
        for leader in self.dirty.iter().map(|g| GroupIndex(*g)).filter(|g| g.is_leader()) {
            self.file.groups().forget_bitmap(leader);
        }
    }

    /// Gives up a change whose data could not be written.
    pub(super) fn abandon(mut self) {
        self.fall_back();
    }
}

impl File {
    /// Writes a run of sealed blocks to its place: blocks of one group, one behind the other.
    pub(super) fn put_blocks(&self, first: BlockIndex, sealed: &[u8]) -> Result<()> {
        let written = self.lower().write_at(&[IoSlice::new(sealed)], first.disk_start());
        self.mark_unsynced();
        Ok(written?)
    }

    /// The file is an inline one with this content from now on.
    pub(super) fn put_record(&self, form: &mut Form, plain: Zeroizing<Vec<u8>>) -> Result<()> {
        let record = self.keys().seal_inline(&plain);
        if self.is_journaled() {
            self.record_inline(form, record)?;
        } else {
            self.write_inline(&record)?;
        }
        self.groups().clear();
        self.set_plain_len(plain.len() as u64);
        *form = Form::Inline(plain);
        Ok(())
    }

    fn write_inline(&self, record: &[u8]) -> Result<()> {
        let lower = self.lower();
        let before = self.len();
        lower.write_at(&[IoSlice::new(record)], 0)?;
        self.mark_unsynced();
        if before > (record.len() - INLINE_HEAD) as u64 {
            lower.set_len(record.len() as u64)?;
        }
        self.pending().first = tag_of(record);
        Ok(())
    }

    fn record_inline(&self, form: &Form, record: Vec<u8>) -> Result<()> {
        let tag = tag_of(&record);
        let (len, before) = ((record.len() - INLINE_HEAD) as u64, self.len());
        let grouped = matches!(form, Form::Grouped);
        let loaded = if grouped { self.entries(FIRST)?.as_ref().map(|l| (sealed(l), l.tag)) } else { None };
        let base = {
            let mut pending = self.pending();
            let (now, tag) = loaded.unwrap_or((0, pending.first));
            pending.dirty(FIRST, now, tag).base
        };
        self.record(Draft::inline(self.id(), &base, &record), 1)?;
        let mut pending = self.pending();
        if grouped {
            // Its blocks may be needed until the record stands in the place of its first page.
            pending.cut(0, before);
        }
        self.set_inline_pending(&mut pending, record, tag);
        pending.high = pending.high.max(len);
        Ok(())
    }

    fn set_inline_pending(&self, pending: &mut Pending, record: Vec<u8>, tag: PageTag) {
        pending.inline = Some(record);
        pending.first = tag;
        if let Some(dirty) = pending.groups.get_mut(&FIRST.0) {
            dirty.base = tag;
            dirty.pin = None;
        }
        self.set_overlay(pending.has_overlay());
    }

    /// The error for a lower file that ended before a block that its map has.
    pub(super) fn cut(&self) -> super::ContentError {
        match self.lower().len() {
            Ok(found) => Fault::Cut { found, expected: crate::format::layout::disk_len(self.len()) }.into(),
            Err(e) => e.into(),
        }
    }
}
