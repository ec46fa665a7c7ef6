//! The one point that every change of a lower file passes. Here a journal will stand.
//!
//! A [`Change`] collects what one operation does to the maps: entries, groups that come to exist or no longer do,
//! and the length. Data goes to its place first ([`File::put_blocks`]); [`Change::commit`] then writes map pages: ordinary
//! groups, leaders, and last group 0 with the length. Each page is one write. When a write fails, the maps in
//! memory fall back to what the lower file holds.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;

use super::file::File;
use super::groups::{Bitmap, Entries, WriteGuard, bit, holes, lone_leader, set_bit};
use super::{Fault, Result};
use crate::format::layout::{BlockIndex, GroupIndex};
use crate::format::map::{Leader, MapPage};

/// What one operation changes in the maps of a file. Holds the slots of the groups it changes.
pub(super) struct Change<'f> {
    file: &'f File,
    held: BTreeMap<u64, WriteGuard>,
    bitmaps: BTreeMap<u64, Bitmap>,
    dirty: BTreeSet<u64>,
    dropped: Vec<GroupIndex>,
    length: Option<Length>,
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
            held: BTreeMap::new(),
            bitmaps: BTreeMap::new(),
            dirty: BTreeSet::new(),
            dropped: Vec::new(),
            length: None,
        }
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
            self.held.insert(group.0, guard);
        }
        let guard = self.held.get_mut(&group.0).expect("held since the lines above");
        Ok(guard.get_or_insert_with(holes))
    }

    /// A leader that the file now reaches: starts with no group but itself.
    pub(super) fn add_leader(&mut self, leader: GroupIndex) {
        let mut guard = self.file.groups().write(leader);
        *guard = Some(holes());
        self.held.insert(leader.0, guard);
        self.bitmaps.insert(leader.0, lone_leader());
        self.dirty.insert(leader.0);
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

    /// Writes the pages and makes the change true in memory.
    pub(super) fn commit(mut self) -> Result<()> {
        let done = self.write_pages();
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
        for (leader, bitmap) in std::mem::take(&mut self.bitmaps) {
            self.file.groups().set_bitmap(GroupIndex(leader), bitmap);
        }
        for group in &self.dropped {
            self.file.groups().forget(*group);
        }
        if self.length.is_some() {
            self.file.set_plain_len(self.new_length());
        }
        Ok(())
    }

    /// Takes the slots of the leaders that change and works their bitmaps out.
    fn hold_leaders(&mut self) -> Result<()> {
        let mut born = Vec::new();
        for group in self.dirty.iter().map(|g| GroupIndex(*g)).filter(|g| !g.is_leader()) {
            if !self.file.exists(group)? {
                born.push(group);
            }
        }
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
        *self.hold(group)? = page.entries;
        Ok(written?)
    }

    /// Forgets what was prepared: the next use reads the lower file again.
    fn fall_back(&mut self) {
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
        Ok(self.lower().write_at(&[IoSlice::new(sealed)], first.disk_start())?)
    }

    /// Writes the record of an inline file; `before` is the length of the one that stood there.
    pub(super) fn put_record(&self, plain: &[u8], before: u64) -> Result<()> {
        let record = self.keys().seal_inline(plain);
        let lower = self.lower();
        lower.write_at(&[IoSlice::new(&record)], 0)?;
        if before > plain.len() as u64 {
            lower.set_len(record.len() as u64)?;
        }
        self.set_plain_len(plain.len() as u64);
        Ok(())
    }

    /// The error for a lower file that ended before a block that its map has.
    pub(super) fn cut(&self) -> super::ContentError {
        match self.lower().len() {
            Ok(found) => Fault::Cut { found, expected: crate::format::layout::disk_len(self.len()) }.into(),
            Err(e) => e.into(),
        }
    }
}
