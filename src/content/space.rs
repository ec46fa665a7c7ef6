//! `fallocate`: reserving space, punching holes, zeroing ranges.

use parking_lot::RwLockWriteGuard;
use zeroize::Zeroizing;

use super::commit::Change;
use super::file::{File, Form};
use super::groups::bit;
use super::span::{Span, spans};
use super::write::{SPAN_PLAIN, Source, end_of};
use super::{Result, unless_unsupported};
use crate::format::layout::{BLOCK_U64, BlockIndex, GROUP_PLAIN, GroupIndex, disk_len, is_inline};
use crate::format::map::Entry;

/// What becomes of the lower space of blocks that turn into holes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    Freed,
    Kept,
}

impl File {
    /// `fallocate`: reserves space; grows the file unless `keep_size`.
    pub fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        let end = end_of(offset, len)?;
        self.overwrites(self.len(), end)?;
        self.with_room(|| self.allocate_once(offset, end, keep_size))
    }

    fn allocate_once(&self, offset: u64, end: u64, keep_size: bool) -> Result<()> {
        let mut form = self.change_gate()?;
        // First what may fail for want of space: nothing has changed then.
        self.reserve(&form, offset, end)?;
        if keep_size || end <= self.len() {
            return Ok(());
        }
        let done = self.resize(&mut form, end);
        self.settle(&mut form, done)
    }

    /// `fallocate` with PUNCH_HOLE: the range reads as zeros, its space is freed; the length stays.
    pub fn punch_hole(&self, offset: u64, len: u64) -> Result<()> {
        self.overwrites(offset, 0)?;
        self.with_room(|| {
            let mut form = self.change_gate()?;
            let done = self.clear(&mut form, offset, offset.saturating_add(len), Space::Freed);
            self.settle(&mut form, done)
        })
    }

    /// `fallocate` with ZERO_RANGE: the range reads as zeros and stays reserved; grows unless `keep_size`.
    pub fn zero_range(&self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        let end = end_of(offset, len)?;
        self.overwrites(offset.min(self.len()), end)?;
        self.with_room(|| self.zero_once(offset, end, keep_size))
    }

    fn zero_once(&self, offset: u64, end: u64, keep_size: bool) -> Result<()> {
        let mut form = self.change_gate()?;
        self.reserve(&form, offset, end)?;
        let mut done = self.clear(&mut form, offset, end, Space::Kept);
        if done.is_ok() && !keep_size && end > self.len() {
            done = self.resize(&mut form, end);
        }
        self.settle(&mut form, done)
    }

    /// Reserves the lower space of a stretch that may lie behind the end.
    fn reserve(&self, form: &Form, start: u64, end: u64) -> Result<()> {
        if start == end {
            return Ok(());
        }
        if matches!(form, Form::Inline(_)) && is_inline(end) {
            return unless_unsupported(self.lower().reserve(0, disk_len(end)));
        }
        self.reserve_blocks(start, end)
    }

    /// Reserves the lower space of the blocks of a stretch that is not empty, and of its first map page.
    pub(super) fn reserve_blocks(&self, start: u64, end: u64) -> Result<()> {
        let lower = self.lower();
        let from = BlockIndex::of(start).disk_start();
        let to = BlockIndex::of(end - 1).disk_start() + BLOCK_U64;
        unless_unsupported(lower.reserve(GroupIndex::of(start).disk_start(), BLOCK_U64))?;
        unless_unsupported(lower.reserve(from, to - from))
    }

    /// Makes `start..end`, as far as the file reaches, a hole.
    fn clear(&self, form: &mut RwLockWriteGuard<'_, Form>, start: u64, end: u64, space: Space) -> Result<()> {
        let end = end.min(self.len());
        if end <= start {
            return Ok(());
        }
        match &**form {
            Form::Inline(plain) => {
                let mut new = Zeroizing::new(plain.to_vec());
                new[start as usize..end as usize].fill(0);
                self.put_record(form, new)
            }
            Form::Grouped => self.clear_grouped(start, end, space),
        }
    }

    /// Whole blocks become holes; the edges that do not fill a block are overwritten with zeros.
    fn clear_grouped(&self, start: u64, end: u64, space: Space) -> Result<()> {
        let first = start.next_multiple_of(BLOCK_U64);
        let last = if end == self.len() { end.next_multiple_of(BLOCK_U64) } else { end - end % BLOCK_U64 };
        if first >= last {
            return self.put(start, end, Source::Zeros);
        }
        self.put(start, first, Source::Zeros)?;
        self.put(last, end, Source::Zeros)?;
        let mut at = first;
        while at < last {
            let behind = last.min(GroupIndex::of(at).leader().plain_start() + SPAN_PLAIN);
            self.clear_blocks(at, behind, space)?;
            at = behind;
        }
        Ok(())
    }

    /// Forgets whole blocks within one leader's span: first the maps, then the space.
    fn clear_blocks(&self, start: u64, end: u64, space: Space) -> Result<()> {
        let Some(bitmap) = self.bitmap(GroupIndex::of(start).leader())? else { return Ok(()) };
        let existing: Vec<Span> = spans(start, end).filter(|s| bit(&bitmap, s.group)).collect();
        let mut change = Change::new(self);
        for span in &existing {
            if let Err(e) = self.forget_blocks(&mut change, span) {
                change.abandon();
                return Err(e);
            }
        }
        change.commit()?;
        if space == Space::Freed && self.is_journaled() {
            let blocks = |s: &Span| s.start / BLOCK_U64..s.end.div_ceil(BLOCK_U64);
            self.pending().punched.extend(existing.iter().map(blocks));
        } else if space == Space::Freed {
            for span in existing {
                let from = BlockIndex::of(span.start).disk_start();
                unless_unsupported(self.lower().punch(from, span.end - span.start))?;
            }
        }
        Ok(())
    }

    fn forget_blocks(&self, change: &mut Change<'_>, span: &Span) -> Result<()> {
        let group = span.group;
        let to_end = span.end == group.plain_start() + GROUP_PLAIN || span.end >= self.len();
        if span.start == group.plain_start() && to_end && !group.is_leader() {
            change.drop_group(group);
            return Ok(());
        }
        let entries = change.entries(group)?;
        for part in span.parts() {
            entries[part.block.slot()] = Entry::HOLE;
        }
        Ok(())
    }
}
