//! Truncating and extending.

use zeroize::Zeroizing;

use super::commit::Change;
use super::file::{File, Form};
use super::groups::bit;
use super::write::{Source, end_of};
use super::{Fault, Result};
use crate::crypto::random;
use crate::format::layout::{BLOCK, BLOCK_U64, BlockIndex, GROUP_BLOCKS, GroupIndex, LEADER_SPAN, is_inline};
use crate::format::map::Entry;

impl File {
    /// Truncates or extends (with a hole).
    pub fn set_len(&self, len: u64) -> Result<()> {
        end_of(len, 0)?;
        self.overwrites(len.min(self.len()), len)?;
        self.with_room(|| {
            let mut form = self.change_gate()?;
            let done = self.resize(&mut form, len);
            self.settle(&mut form, done)
        })
    }

    /// As `set_len`, for a caller that holds the exclusive gate and settles.
    pub(super) fn resize(&self, form: &mut parking_lot::RwLockWriteGuard<'_, Form>, len: u64) -> Result<()> {
        if let Form::Inline(plain) = &**form {
            if is_inline(len) {
                let mut new = Zeroizing::new(plain.to_vec());
                new.resize(len as usize, 0);
                return if new == *plain { Ok(()) } else { self.put_record(form, new) };
            }
            self.spread(form, len)?;
        }
        if len >= self.len() {
            self.extend(len)
        } else if is_inline(len) {
            self.gather(form, len)
        } else {
            self.shrink(len)
        }
    }

    /// Grows a grouped file with a hole: the lower file first, then the length.
    fn extend(&self, len: u64) -> Result<()> {
        let old = self.len();
        let tail_end = old.next_multiple_of(BLOCK_U64);
        if len == old {
            return Ok(());
        }
        self.forget_behind_end()?;
        if tail_end > old {
            self.put(old, len.min(tail_end), Source::Zeros)?;
        }
        if len > tail_end {
            self.reach(tail_end, len)?;
        }
        self.stretch_lower(len)?;
        let mut change = Change::new(self);
        change.set_length(len);
        change.commit()
    }

    /// Before the file grows by a hole: maps that a process, killed while the file grew, wrote before the length speak
    /// for blocks behind the end, which must not show up in the hole.
    pub(super) fn forget_behind_end(&self) -> Result<()> {
        let len = self.len();
        if len == 0 {
            return Ok(());
        }
        let last = GroupIndex::of(len - 1);
        let mut change = Change::new(self);
        if self.exists(last)? && self.entries(last)?.as_ref().is_some_and(|loaded| loaded.stale != 0) {
            change.entries(last)?;
        }
        if let Some(bitmap) = self.bitmap(last.leader())? {
            let behind = last.0 + 1..last.leader().0 + LEADER_SPAN;
            behind.map(GroupIndex).filter(|g| bit(&bitmap, *g)).for_each(|group| change.drop_group(group));
        }
        change.commit()
    }

    /// Shortens a file that stays grouped: the length first, then the lower file.
    fn shrink(&self, len: u64) -> Result<()> {
        let mut change = Change::new(self);
        let last = GroupIndex::of(len - 1);
        let prepared = self.shorten(&mut change, last, len);
        if let Err(e) = prepared {
            change.abandon();
            return Err(e);
        }
        change.set_length(len);
        change.commit()?;
        self.groups().truncate(last);
        if self.is_journaled() {
            // The lower file is cut when it knows its new length.
            return Ok(());
        }
        // A failure here leaves the lower file overlong, which `settle` notes.
        self.mark_overlong();
        self.mend_length()
    }

    /// Cuts the last block, forgets the blocks and groups behind it.
    fn shorten(&self, change: &mut Change<'_>, last: GroupIndex, len: u64) -> Result<()> {
        self.cut_block(change, len)?;
        let first_gone = BlockIndex(len.div_ceil(BLOCK_U64));
        if self.exists(last)? && first_gone.group() == last {
            let gone = first_gone.slot()..GROUP_BLOCKS;
            let entries = change.entries(last)?;
            if entries[gone.clone()].iter().any(|e| !e.is_hole()) {
                entries[gone].fill(Entry::HOLE);
            }
        }
        if let Some(bitmap) = self.bitmap(last.leader())? {
            let behind = last.0 + 1..last.leader().0 + LEADER_SPAN;
            for group in behind.map(GroupIndex).filter(|g| bit(&bitmap, *g)) {
                change.drop_group(group);
            }
        }
        Ok(())
    }

    /// Seals the last block anew where it becomes shorter.
    fn cut_block(&self, change: &mut Change<'_>, len: u64) -> Result<()> {
        let block = BlockIndex::of(len);
        let keep = block.len_in(len);
        if keep == 0 || !self.exists(block.group())? {
            return Ok(());
        }
        let old = self.len();
        let entries = change.entries(block.group())?;
        if entries[block.slot()].is_hole() {
            return Ok(());
        }
        let mut buf = Zeroizing::new([0; BLOCK]);
        let plain = self.read_block(block, entries, old, &mut buf)?;
        let sealed = &mut plain[..keep];
        entries[block.slot()] = self.keys().seal_block(block, random::array(), sealed);
        change.put_run(block, sealed)
    }

    /// Turns a grouped file that shrinks to at most 4,064 bytes into an inline record.
    fn gather(&self, form: &mut parking_lot::RwLockWriteGuard<'_, Form>, len: u64) -> Result<()> {
        let mut plain = Zeroizing::new(vec![0; len as usize]);
        let read = self.read_grouped(0, &mut plain)?;
        if read < plain.len() {
            return Err(Fault::Inline("the file ended while it was shortened".into()).into());
        }
        // The record replaces group 0's page in one write; from then on it is what the file is.
        self.put_record(form, plain)
    }
}
