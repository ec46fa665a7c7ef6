//! Map pages in memory: verified once, kept while the budget lasts, never ahead of what the lower file holds.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lru::LruCache;
use parking_lot::lock_api::{ArcRwLockReadGuard, ArcRwLockWriteGuard};
use parking_lot::{Mutex, RawRwLock, RwLock};

use super::checkpoint::tag_of;
use super::file::File;
use super::pending::{Mask, sealed};
use super::{ContentError, Fault, Result};
use crate::format::journal::{NO_PAGE, PageTag};
use crate::format::layout::{BLOCK_U64, GROUP_BLOCKS, GroupIndex, MAP_PAGE, disk_len};
use crate::format::map::{Entry, Leader, MapPage};

/// Map pages kept by all open files together: 32 MiB, the maps of 4 GiB of plaintext.
const BUDGET: usize = 8192;
/// Map pages that an open file may keep whatever the others do.
const RESERVED: usize = 8;
/// Slots looked at for eviction when the budget is spent; bounds the work of one miss.
const EVICTION_TRIES: usize = 4;

static KEPT: AtomicUsize = AtomicUsize::new(0);

/// Nonces and tags of one group.
pub(super) type Entries = Box<[Entry; GROUP_BLOCKS]>;

/// A group's entries, and what they were read from.
#[derive(Clone)]
pub(super) struct Loaded {
    /// Nonces and tags.
    pub(super) entries: Entries,
    /// Tag of the page that stands in the lower file, or is about to.
    pub(super) tag: PageTag,
    /// Blocks behind the file's end for which that page has entries all the same: a killed process left them. Here they
    /// are holes; the page shall not have them when the file reaches that far.
    pub(super) stale: Mask,
}

impl Loaded {
    /// A group that is a hole.
    pub(super) fn hole() -> Self {
        Self { entries: holes(), tag: NO_PAGE, stale: 0 }
    }
}

impl std::ops::Deref for Loaded {
    type Target = Entries;

    fn deref(&self) -> &Entries {
        &self.entries
    }
}

impl std::ops::DerefMut for Loaded {
    fn deref_mut(&mut self) -> &mut Entries {
        &mut self.entries
    }
}

/// One group's place in memory; `None` until it is read, and after a write of its page failed.
pub(super) type Slot = RwLock<Option<Loaded>>;
pub(super) type ReadGuard = ArcRwLockReadGuard<RawRwLock, Option<Loaded>>;
pub(super) type WriteGuard = ArcRwLockWriteGuard<RawRwLock, Option<Loaded>>;
/// Which groups of a leader's span exist.
pub(super) type Bitmap = Box<[u8; 256]>;

pub(super) fn holes() -> Entries {
    Box::new([Entry::HOLE; GROUP_BLOCKS])
}

/// The bitmap of a span in which only the leader itself exists.
pub(super) fn lone_leader() -> Bitmap {
    let mut bitmap = Box::new([0; 256]);
    bitmap[0] = 1;
    bitmap
}

/// The maps of one open file.
pub(super) struct Groups {
    slots: Mutex<LruCache<u64, Arc<Slot>>>,
    /// By leader. 256 bytes for each GiB that was touched; never evicted while the file is open.
    bitmaps: Mutex<HashMap<u64, Bitmap>>,
}

impl Groups {
    pub(super) fn new() -> Self {
        Self { slots: Mutex::new(LruCache::unbounded()), bitmaps: Mutex::default() }
    }

    fn slot(&self, group: GroupIndex) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.get(&group.0) {
            return Arc::clone(slot);
        }
        if KEPT.load(Ordering::Relaxed) >= BUDGET && slots.len() >= RESERVED {
            evict(&mut slots);
        }
        let slot = Arc::new(Slot::default());
        slots.put(group.0, Arc::clone(&slot));
        KEPT.fetch_add(1, Ordering::Relaxed);
        slot
    }

    pub(super) fn write(&self, group: GroupIndex) -> WriteGuard {
        self.slot(group).write_arc()
    }

    pub(super) fn set_bitmap(&self, leader: GroupIndex, bitmap: Bitmap) {
        self.bitmaps.lock().insert(leader.0, bitmap);
    }

    pub(super) fn forget_bitmap(&self, leader: GroupIndex) {
        self.bitmaps.lock().remove(&leader.0);
    }

    /// Forgets a group that nobody holds. Only under the exclusive gate.
    pub(super) fn forget(&self, group: GroupIndex) {
        if self.slots.lock().pop(&group.0).is_some() {
            KEPT.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Forgets every group behind `last` and every leader behind its own. Only under the exclusive gate.
    pub(super) fn truncate(&self, last: GroupIndex) {
        self.bitmaps.lock().retain(|leader, _| *leader <= last.leader().0);
        let mut slots = self.slots.lock();
        let gone: Vec<u64> = slots.iter().map(|(group, _)| *group).filter(|g| *g > last.0).collect();
        for group in gone {
            slots.pop(&group);
            KEPT.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Takes what another has, in the place of all that is here. Only under the exclusive gate.
    pub(super) fn take_over(&self, other: &Self) {
        self.clear();
        std::mem::swap(&mut *self.bitmaps.lock(), &mut *other.bitmaps.lock());
        std::mem::swap(&mut *self.slots.lock(), &mut *other.slots.lock());
    }

    /// Forgets everything. Only under the exclusive gate.
    pub(super) fn clear(&self) {
        self.bitmaps.lock().clear();
        let mut slots = self.slots.lock();
        KEPT.fetch_sub(slots.len(), Ordering::Relaxed);
        slots.clear();
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Makes room among the longest unused slots that nobody holds: a slot in use must stay the only one of its group.
fn evict(slots: &mut LruCache<u64, Arc<Slot>>) {
    let idle: Vec<u64> = slots
        .iter()
        .rev()
        .take(EVICTION_TRIES)
        .filter(|(_, slot)| Arc::strong_count(slot) == 1)
        .map(|(group, _)| *group)
        .collect();
    for group in idle {
        slots.pop(&group);
        KEPT.fetch_sub(1, Ordering::Relaxed);
    }
}

impl File {
    /// Reads and verifies a map page; gives its tag as well.
    pub(super) fn read_page(&self, group: GroupIndex) -> Result<(MapPage, PageTag)> {
        let lower = self.lower();
        let mut bytes = Box::new([0; MAP_PAGE]);
        if lower.read_at(&mut bytes[..], group.disk_start())? < MAP_PAGE {
            return Err(Fault::Cut { found: lower.len()?, expected: disk_len(self.len()) }.into());
        }
        let page = self.keys().open_page(&bytes, group);
        let page = page.map_err(|e| ContentError::Damaged(Fault::Page { group, why: e.to_string() }))?;
        Ok((page, tag_of(&bytes[..])))
    }

    /// A copy of a leader's bitmap; `None` where the file does not reach that far.
    pub(super) fn bitmap(&self, leader: GroupIndex) -> Result<Option<Bitmap>> {
        let mut bitmaps = self.groups().bitmaps.lock();
        if let Some(bitmap) = bitmaps.get(&leader.0) {
            return Ok(Some(bitmap.clone()));
        }
        if leader.plain_start() >= self.len() {
            return Ok(None);
        }
        let (page, _) = self.read_page(leader)?;
        let Some(Leader { bitmap, .. }) = page.leader else {
            return Err(Fault::Page { group: leader, why: "a leader without bitmap".into() }.into());
        };
        let bitmap = Box::new(bitmap);
        bitmaps.insert(leader.0, bitmap.clone());
        Ok(Some(bitmap))
    }

    /// Whether a group has a map page. Groups without one are holes.
    pub(super) fn exists(&self, group: GroupIndex) -> Result<bool> {
        {
            let bitmaps = self.groups().bitmaps.lock();
            if let Some(bitmap) = bitmaps.get(&group.leader().0) {
                return Ok(bit(bitmap, group));
            }
        }
        Ok(self.bitmap(group.leader())?.is_some_and(|bitmap| bit(&bitmap, group)))
    }

    fn load(&self, group: GroupIndex) -> Result<Loaded> {
        if !self.exists(group)? {
            return Ok(Loaded::hole());
        }
        let (mut page, tag) = self.read_page(group)?;
        let end = self.len().div_ceil(BLOCK_U64).saturating_sub(group.first_block().0);
        let end = usize::try_from(end).map_or(GROUP_BLOCKS, |end| end.min(GROUP_BLOCKS));
        let all = sealed(&page.entries);
        page.entries[end..].fill(Entry::HOLE);
        let stale = all & !sealed(&page.entries);
        Ok(Loaded { entries: page.entries, tag, stale })
    }

    /// A group's entries, to read. They stay true while the guard is held.
    pub(super) fn entries(&self, group: GroupIndex) -> Result<ReadGuard> {
        let slot = self.groups().slot(group);
        let guard = slot.read_arc();
        if guard.is_some() {
            return Ok(guard);
        }
        drop(guard);
        let mut guard = slot.write_arc();
        if guard.is_none() {
            *guard = Some(self.load(group)?);
        }
        Ok(ArcRwLockWriteGuard::downgrade(guard))
    }

    /// A group's entries, to change.
    pub(super) fn entries_mut(&self, group: GroupIndex) -> Result<WriteGuard> {
        let mut guard = self.groups().write(group);
        if guard.is_none() {
            *guard = Some(self.load(group)?);
        }
        Ok(guard)
    }
}

pub(super) fn bit(bitmap: &[u8; 256], group: GroupIndex) -> bool {
    bitmap[group.bit() / 8] & (1 << (group.bit() % 8)) != 0
}

pub(super) fn set_bit(bitmap: &mut [u8; 256], group: GroupIndex, exists: bool) {
    let mask = 1 << (group.bit() % 8);
    let byte = &mut bitmap[group.bit() / 8];
    if exists { *byte |= mask } else { *byte &= !mask }
}
