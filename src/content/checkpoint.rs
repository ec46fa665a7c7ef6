//! From the journal to the lower file. `journal` calls these steps in this order, each for many files, and syncs
//! between them.

use std::io::IoSlice;
use std::sync::Arc;

use super::file::{File, Form};
use super::groups::bit;
use super::pending::{Flight, Keeper, Landing, sealed};
use super::{ContentError, Result, unless_unsupported};
use crate::format::journal::{Draft, PageTag};
use crate::format::layout::{BLOCK, BLOCK_U64, BlockIndex, GROUP_BLOCKS, GroupIndex, disk_len, groups_in};
use crate::format::map::{Leader, MapPage, TAG_AT};

/// Pages in one record of images.
const PAGES: usize = 64;

/// Where a sealed page or inline record has its tag.
pub(super) fn tag_of(page: &[u8]) -> PageTag {
    page.get(TAG_AT..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default()
}

impl File {
    /// Takes what is pending as it is now; changes that come later are pending anew. Gives whether there is anything.
    pub(super) fn snapshot(&self) -> Result<bool> {
        let form = self.gate.write();
        let mut pending = self.pending();
        if pending.flight.is_some() {
            // A checkpoint that failed: the same again.
            return Ok(true);
        }
        if pending.is_empty() {
            return Ok(false);
        }
        let len = self.len();
        let mut flight = Flight { len, as_of: self.position(), ..Flight::default() };
        let groups: Vec<u64> = pending.groups.keys().copied().collect();
        let mut pages = Vec::new();
        if matches!(*form, Form::Grouped) {
            for group in groups.iter().map(|g| GroupIndex(*g)).filter(|g| g.0 < groups_in(len)) {
                if self.bitmap(group.leader())?.is_some_and(|bitmap| bit(&bitmap, group)) {
                    pages.push((group, self.sealed_page(group, len)?));
                }
            }
        }
        flight.pages = Arc::new(pages);
        flight.inline = pending.inline.take();
        for (group, dirty) in std::mem::take(&mut pending.groups) {
            let landing = Landing { old: dirty.old | dirty.fresh | dirty.kept, new: 0, _pin: dirty.pin };
            flight.groups.insert(group, landing);
        }
        for (group, page) in flight.pages.iter() {
            let mut guard = self.entries_mut(*group)?;
            guard.as_mut().expect("loaded").tag = tag_of(&page[..]);
            let new = sealed(guard.as_ref().expect("loaded"));
            flight.groups.entry(group.0).and_modify(|landing| landing.new = new);
        }
        flight.overlay = std::mem::take(&mut pending.overlay);
        flight.cut = pending.cut.take();
        flight.punched = std::mem::take(&mut pending.punched);
        pending.high = len;
        pending.flight = Some(flight);
        Ok(true)
    }

    fn sealed_page(&self, group: GroupIndex, len: u64) -> Result<Box<[u8; crate::format::layout::MAP_PAGE]>> {
        let bitmap = if group.is_leader() { self.bitmap(group)? } else { None };
        let leader =
            bitmap.map(|bitmap| Leader { bitmap: *bitmap, plain_len: (group.0 == 0).then_some(len) });
        let guard = self.entries(group)?;
        let entries =
            guard.as_ref().expect("`entries` loads the slot before it gives the guard").entries.clone();
        Ok(self.keys().seal_page(&MapPage { group, leader, entries }))
    }

    /// The pages of the checkpoint, as records.
    pub(super) fn images(&self) -> Vec<Draft> {
        let pending = self.pending();
        let Some(flight) = &pending.flight else { return Vec::new() };
        let draft = |pages: &[(GroupIndex, Box<[u8; crate::format::layout::MAP_PAGE]>)]| {
            Draft::image(self.id(), flight.as_of, pages.iter().map(|(group, page)| (*group, &**page)))
        };
        flight.pages.chunks(PAGES).map(draft).collect()
    }

    /// Writes blocks and pages to their places. Nobody else does: new blocks go to places that these do not have.
    pub(super) fn fill_places(&self) -> Result<()> {
        let _one = self.one_fill();
        let (overlay, pages, inline, len) = {
            let pending = self.pending();
            let Some(flight) = &pending.flight else { return Ok(()) };
            (flight.overlay.clone(), Arc::clone(&flight.pages), flight.inline.clone(), flight.len)
        };
        let lower = self.lower();
        let _still = self.hold_times();
        let modified = lower.modified()?;
        let mut run: Vec<u8> = Vec::new();
        let mut first = None;
        for (block, place) in &overlay {
            let block = BlockIndex(*block);
            let follows = first.is_some_and(|f: BlockIndex| {
                run.len() == (block.0 - f.0) as usize * BLOCK && f.group() == block.group()
            });
            if !follows && let Some(first) = first.replace(block) {
                lower.write_at(&[IoSlice::new(&run)], first.disk_start())?;
                run.clear();
            }
            let at = run.len();
            run.resize(at + place.len, 0);
            place.log.read(&mut run[at..], place.at)?;
        }
        if let Some(first) = first {
            lower.write_at(&[IoSlice::new(&run)], first.disk_start())?;
        }
        if lower.len()? < disk_len(len) {
            lower.set_len(disk_len(len))?;
        }
        for (group, page) in pages.iter() {
            lower.write_at(&[IoSlice::new(&page[..])], group.disk_start())?;
        }
        if let Some(record) = inline {
            lower.write_at(&[IoSlice::new(&record)], 0)?;
        }
        // Not before: a sync of somebody else meanwhile would take it away.
        self.mark_places();
        modified.map_or(Ok(()), |time| lower.set_modified(time))?;
        Ok(())
    }

    /// Everything is in its place, durably: frees what it took, cuts and punches what is no more. Gives what was kept
    /// until now, to be dropped where no lock is held that its owner may want, and whether the lower file was cut.
    pub(super) fn land(&self) -> Result<(Option<Keeper>, bool)> {
        let _one = self.one_fill();
        let _gate = self.gate.write();
        let mut pending = self.pending();
        let Some(flight) = pending.flight.take() else { return Ok((None, false)) };
        for (group, landing) in &flight.groups {
            if let Some(dirty) = pending.groups.get_mut(group) {
                dirty.old = landing.new;
            }
        }
        let high = pending.high.max(flight.len).max(self.len());
        let ranges = punchable(&flight, &pending, high);
        let cut = match self.free_space(high, ranges) {
            Ok(cut) => cut,
            Err(e) => {
                pending.flight = Some(flight);
                return Err(e);
            }
        };
        self.set_overlay(pending.has_overlay());
        Ok((if self.is_done(&pending) { pending.keeper.take() } else { None }, cut))
    }

    /// Whether a checkpoint has something of the file under way.
    pub(super) fn is_in_flight(&self) -> bool {
        self.pending().flight.is_some()
    }

    /// What was kept while the file was pending, if it is not any more; to be dropped as that of `land`.
    pub(super) fn done(&self) -> Option<Keeper> {
        let mut pending = self.pending();
        if self.is_done(&pending) { pending.keeper.take() } else { None }
    }

    fn free_space(&self, high: u64, ranges: Vec<(BlockIndex, u64)>) -> Result<bool> {
        let lower = self.lower();
        let end = disk_len(high);
        let longer = lower.len()? > end;
        if !longer && ranges.is_empty() {
            return Ok(false);
        }
        let _still = self.hold_times();
        let modified = lower.modified()?;
        if longer {
            lower.set_len(end)?;
            self.mark_places();
        }
        for (first, blocks) in ranges {
            unless_unsupported(lower.punch(first.disk_start(), blocks * BLOCK_U64))?;
        }
        modified.map_or(Ok(()), |time| lower.set_modified(time))?;
        Ok(longer)
    }
}

/// Runs of blocks whose space nothing speaks for any more.
fn punchable(flight: &Flight, pending: &super::pending::Pending, high: u64) -> Vec<(BlockIndex, u64)> {
    let end = high.div_ceil(BLOCK_U64);
    let mut runs: Vec<(BlockIndex, u64)> = Vec::new();
    for block in flight.punched.iter().flat_map(|r| r.start..r.end.min(end)).map(BlockIndex) {
        let group = block.group();
        let landed = flight.groups.get(&group.0).map_or(0, |l| l.new);
        let since = pending.groups.get(&group.0).map_or(0, |d| d.old | d.fresh | d.kept);
        if (landed | since) & (1 << block.slot()) != 0 {
            continue;
        }
        match runs.last_mut() {
            Some((first, count)) if first.0 + *count == block.0 && block.slot() % GROUP_BLOCKS != 0 => {
                *count += 1
            }
            _ => runs.push((block, 1)),
        }
    }
    runs
}

impl From<ContentError> for std::io::Error {
    fn from(e: ContentError) -> Self {
        match e {
            ContentError::Io(e) => e,
            other => Self::other(other.to_string()),
        }
    }
}
