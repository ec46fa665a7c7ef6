//! What a file's journal records say and its lower file does not hold yet.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::groups::{Entries, Slot};
use super::journal::Place;
use crate::format::journal::{NO_PAGE, PageTag};
use crate::format::layout::{BLOCK_U64, GROUP_BLOCKS_U64, GroupIndex, MAP_PAGE};

/// Something that is dropped when nothing of a file is pending any more.
pub type Keeper = Box<dyn Send + Sync>;

/// One bit a block of a group.
pub(super) type Mask = u128;

/// Blocks that are no holes.
pub(super) fn sealed(entries: &Entries) -> Mask {
    entries.iter().enumerate().filter(|(_, e)| !e.is_hole()).fold(0, |mask, (slot, _)| mask | 1 << slot)
}

/// The blocks of `range` that lie in a group.
pub(super) fn within(range: Option<&Range<u64>>, group: GroupIndex) -> Mask {
    let Some(range) = range else { return 0 };
    let first = group.first_block().0;
    let from = range.start.saturating_sub(first).min(GROUP_BLOCKS_U64);
    let to = range.end.saturating_sub(first).min(GROUP_BLOCKS_U64);
    (from..to).fold(0, |mask, slot| mask | 1 << slot)
}

/// A group whose page in the lower file is behind.
pub(super) struct Dirty {
    /// Tag of the page that stands in the lower file.
    pub(super) base: PageTag,
    /// Blocks whose places that page speaks for: not to be written.
    pub(super) old: Mask,
    /// Blocks that were written to their places since.
    pub(super) fresh: Mask,
    /// Blocks that were written to the journal since: what replaces them must not get lost with its place.
    pub(super) kept: Mask,
    /// Keeps the entries in memory.
    pub(super) pin: Option<Arc<Slot>>,
}

/// A group on its way to the lower file.
pub(super) struct Landing {
    /// Blocks whose places the old page or its records speak for.
    pub(super) old: Mask,
    /// Blocks whose places the new page speaks for.
    pub(super) new: Mask,
    /// Keeps the entries in memory.
    pub(super) _pin: Option<Arc<Slot>>,
}

/// What a checkpoint brings to its place.
#[derive(Default)]
pub(super) struct Flight {
    pub(super) groups: BTreeMap<u64, Landing>,
    pub(super) overlay: BTreeMap<u64, Place>,
    pub(super) pages: Arc<Vec<(GroupIndex, Box<[u8; MAP_PAGE]>)>>,
    /// The record of an inline file.
    pub(super) inline: Option<Vec<u8>>,
    /// Plaintext length.
    pub(super) len: u64,
    /// See [`Pending::cut`].
    pub(super) cut: Option<Range<u64>>,
    /// See [`Pending::punched`].
    pub(super) punched: Vec<Range<u64>>,
    /// The last record that it includes.
    pub(super) as_of: (u64, u64),
}

/// What a file's journal records say and its lower file does not hold yet.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) groups: BTreeMap<u64, Dirty>,
    /// Blocks that stand in the journal.
    pub(super) overlay: BTreeMap<u64, Place>,
    /// The sealed record of an inline file.
    pub(super) inline: Option<Vec<u8>>,
    /// Tag of an inline file's newest record, which need not be in the lower file yet.
    pub(super) first: PageTag,
    /// Blocks that were cut off: the lower file's old map may speak for their places.
    pub(super) cut: Option<Range<u64>>,
    /// Blocks whose space is to be freed.
    pub(super) punched: Vec<Range<u64>>,
    /// The longest plaintext that the lower file must have room for.
    pub(super) high: u64,
    pub(super) flight: Option<Flight>,
    /// Held until nothing is pending.
    pub(super) keeper: Option<Keeper>,
}

impl Pending {
    /// Whether the lower file holds all there is.
    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.inline.is_none() && self.cut.is_none() && self.flight.is_none()
    }

    /// Whether some block stands in the journal.
    pub(super) fn has_overlay(&self) -> bool {
        !self.overlay.is_empty() || self.flight.as_ref().is_some_and(|f| !f.overlay.is_empty())
    }

    /// Where the journal holds a block.
    pub(super) fn place(&self, block: u64) -> Option<&Place> {
        self.overlay.get(&block).or_else(|| self.flight.as_ref()?.overlay.get(&block))
    }

    /// Blocks of a group whose places must not be written. `now`: those that its entries have.
    pub(super) fn taken(&self, group: GroupIndex, now: Mask) -> Mask {
        match self.groups.get(&group.0) {
            Some(dirty) => dirty.old | dirty.fresh | dirty.kept,
            None => now | self.taken_before(group),
        }
    }

    fn taken_before(&self, group: GroupIndex) -> Mask {
        let flight = self.flight.as_ref();
        let landing = flight.and_then(|f| f.groups.get(&group.0)).map_or(0, |l| l.old | l.new);
        landing | within(self.cut.as_ref(), group) | within(flight.and_then(|f| f.cut.as_ref()), group)
    }

    /// Notes that a group's page will be behind. `now`: the blocks that its entries had until now, `tag` that of the page
    /// they were read from.
    pub(super) fn dirty(&mut self, group: GroupIndex, now: Mask, tag: PageTag) -> &mut Dirty {
        let old = now | self.taken_before(group);
        self.groups.entry(group.0).or_insert(Dirty { base: tag, old, fresh: 0, kept: 0, pin: None })
    }

    /// Notes that a group is a hole from now on, whatever its page in the lower file says.
    pub(super) fn drop_group(&mut self, group: GroupIndex) {
        let dirty = self.dirty(group, Mask::MAX, NO_PAGE);
        dirty.pin = None;
        let first = group.first_block().0;
        self.drop_overlay(first..first + GROUP_BLOCKS_U64);
    }

    /// Forgets that blocks stand in the journal. What a checkpoint has under way stays: no entry leads to it.
    pub(super) fn drop_overlay(&mut self, range: Range<u64>) {
        let mut rest = self.overlay.split_off(&range.start);
        let mut behind = rest.split_off(&range.end);
        self.overlay.append(&mut behind);
    }

    /// Notes that the file ends at `len` from now on, and had `before` bytes.
    pub(super) fn cut(&mut self, len: u64, before: u64) {
        let mut range = len.div_ceil(BLOCK_U64)..before.div_ceil(BLOCK_U64);
        // Of this cut alone: the blocks of an earlier one may have been written again.
        self.drop_overlay(range.start..u64::MAX);
        if let Some(cut) = &self.cut {
            range = range.start.min(cut.start)..range.end.max(cut.end);
        }
        let last = GroupIndex::of(len.saturating_sub(1));
        for (group, dirty) in &mut self.groups {
            dirty.old |= within(Some(&range), GroupIndex(*group));
            if *group > last.0 {
                dirty.pin = None;
            }
        }
        self.cut = Some(range);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_covers_the_blocks_of_a_group_that_it_has() {
        let group = GroupIndex(2);
        assert_eq!(within(None, group), 0);
        assert_eq!(within(Some(&(0..256)), group), 0);
        assert_eq!(within(Some(&(0..257)), group), 1);
        assert_eq!(within(Some(&(383..u64::MAX)), group), 1 << 127);
        assert_eq!(within(Some(&(0..u64::MAX)), group), Mask::MAX);
        assert_eq!(within(Some(&(384..400)), group), 0);
    }
}
