//! Writing: blocks are sealed straight from the caller's bytes; only those that keep some of what they had are
//! merged first.

use std::cell::RefCell;

use parking_lot::RwLockWriteGuard;
use zeroize::Zeroizing;

use super::commit::Change;
use super::file::{File, Form};
use super::groups::{Entries, Loaded, lone_leader};
use super::span::{Part, Span, spans};
use super::{ContentError, Result};
use crate::crypto::random;
use crate::format::layout::{
    BLOCK, BLOCK_U64, BlockIndex, GROUP_PLAIN, GroupIndex, LEADER_SPAN, MAX_PLAIN_LEN, is_inline,
};
use crate::format::map::Entry;
use crate::pipeline::{self, Piece};

/// Plaintext bytes that one leader answers for: 1 GiB.
pub(super) const SPAN_PLAIN: u64 = LEADER_SPAN * GROUP_PLAIN;
/// Blocks sealed in one go: bounds the buffer of a thread (2 MiB) whatever a caller writes at once.
pub(super) const BLOCKS_AT_ONCE: u64 = 512;
/// A thread's buffer is given back to the system when it grew beyond this.
const KEEP_BUFFER: usize = (BLOCKS_AT_ONCE as usize + 2) * BLOCK;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What is written.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// Bytes, the first of which belongs at this offset.
    Bytes(&'a [u8], u64),
    /// Zeros; holes stay holes.
    Zeros,
}

/// A block that was sealed, and where it lies in the buffer.
struct Sealed {
    block: BlockIndex,
    entry: Entry,
    at: usize,
    len: usize,
}

impl File {
    /// Writes all of `data` at `offset`, growing the file as needed.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let end = end_of(offset, data.len() as u64)?;
        if data.is_empty() {
            return Ok(());
        }
        self.overwrites(offset, end)?;
        self.with_room(|| self.write_once(offset, end, data))
    }

    fn write_once(&self, offset: u64, end: u64, data: &[u8]) -> Result<()> {
        let source = Source::Bytes(data, offset);
        {
            let form = self.gate.read();
            if matches!(*form, Form::Grouped) && !self.is_overlong() && self.keeps_blocks_whole(offset, end) {
                let done = self.put(offset, end, source);
                if done.is_ok() {
                    return done;
                }
                drop(form);
                return self.settle(&mut self.gate.write(), done);
            }
        }
        let mut form = self.change_gate()?;
        if let Form::Inline(plain) = &*form {
            if is_inline(end) {
                let new = overlaid(plain, offset, data);
                return self.put_record(&mut form, new);
            }
            self.spread(&mut form, end)?;
        }
        let done = if end > self.len() { self.forget_behind_end() } else { Ok(()) };
        let done = done.and_then(|()| self.reach(offset, end));
        let done = done.and_then(|()| self.put(offset, end, source));
        self.settle(&mut form, done)
    }

    /// Whether a write may run beside others under the shared gate: it leaves no block shorter than full but one
    /// that is so already and stays untouched, and needs no new leader.
    fn keeps_blocks_whole(&self, offset: u64, end: u64) -> bool {
        let len = self.len();
        let aligned = |at: u64| at.is_multiple_of(BLOCK_U64);
        let within = |at: u64| at.next_multiple_of(BLOCK_U64) <= len;
        let tail = len - len % BLOCK_U64;
        let tail_untouched = aligned(len) || end <= tail;
        let tail_replaced = offset <= tail && end >= tail + BLOCK_U64;
        (aligned(offset) || within(offset))
            && (aligned(end) || within(end))
            && (tail_untouched || tail_replaced)
            && end <= len.next_multiple_of(SPAN_PLAIN)
    }

    /// Turns an inline file that is about to grow to `end` into a grouped one in memory; the lower file follows
    /// with the first commit, which replaces the record by the page of group 0.
    pub(super) fn spread(&self, form: &mut RwLockWriteGuard<'_, Form>, end: u64) -> Result<()> {
        let Form::Inline(plain) = &**form else { return Ok(()) };
        let plain = plain.clone();
        self.groups().clear();
        self.groups().set_bitmap(GroupIndex(0), lone_leader());
        *self.groups().write(GroupIndex(0)) = Some(Loaded::hole());
        self.set_plain_len(0);
        **form = Form::Grouped;
        if plain.is_empty() {
            return Ok(());
        }
        let mut block = Zeroizing::new(vec![0; end.min(BLOCK_U64) as usize]);
        block[..plain.len()].copy_from_slice(&plain);
        let done = self.put(0, block.len() as u64, Source::Bytes(&block, 0));
        if done.is_err() {
            **form = Form::Inline(plain.clone());
            self.set_plain_len(plain.len() as u64);
        }
        self.settle(form, done)
    }

    /// After a failed change, under the exclusive gate: a file that was empty is still its inline record, and what
    /// was written behind the end is cut off again (or before the next change, if that fails too).
    pub(super) fn settle(&self, form: &mut RwLockWriteGuard<'_, Form>, done: Result<()>) -> Result<()> {
        if done.is_ok() {
            return done;
        }
        if matches!(**form, Form::Grouped) && self.len() == 0 {
            **form = Form::Inline(Zeroizing::default());
        }
        if matches!(**form, Form::Inline(_)) {
            self.groups().clear();
        }
        self.mark_overlong();
        let _ = self.mend_length();
        done
    }

    /// Makes a grouped file ready for a write at `offset..end` behind its length: the last block is filled up with
    /// zeros, leaders that are reached come to exist. Under the exclusive gate.
    pub(super) fn reach(&self, offset: u64, end: u64) -> Result<()> {
        let len = self.len();
        let tail_end = len.next_multiple_of(BLOCK_U64);
        if offset >= tail_end && tail_end > len {
            self.put(len, tail_end, Source::Zeros)?;
        }
        let mut leader = len.next_multiple_of(SPAN_PLAIN).max(SPAN_PLAIN);
        let mut change = Change::new(self);
        let mut added = 0;
        while leader < end {
            change.add_leader(GroupIndex::of(leader));
            leader += SPAN_PLAIN;
            added += 1;
            if added == LEADERS_AT_ONCE {
                std::mem::replace(&mut change, Change::new(self)).commit()?;
                added = 0;
            }
        }
        change.commit()
    }

    /// Seals and writes `start..end`, raising the length to `end` where it is below. The caller holds the gate,
    /// exclusively unless `keeps_blocks_whole`.
    pub(super) fn put(&self, start: u64, end: u64, source: Source<'_>) -> Result<()> {
        let mut at = start;
        while at < end {
            let next = end.min((at - at % BLOCK_U64).saturating_add(BLOCKS_AT_ONCE * BLOCK_U64));
            self.put_some(at, next, source)?;
            at = next;
        }
        Ok(())
    }

    fn put_some(&self, start: u64, end: u64, source: Source<'_>) -> Result<()> {
        let mut change = Change::new(self);
        let (leaders, ordinary): (Vec<_>, Vec<_>) = spans(start, end).partition(|s| s.group.is_leader());
        let done = match source {
            // What is overwritten stays as it is until the journal has all of it.
            Source::Bytes(..) if change.is_journaled() => Ok(()),
            Source::Bytes(..) => self.make_room(&mut change, ordinary.iter().chain(&leaders)),
            Source::Zeros => Ok(()),
        };
        let done = done.and_then(|()| self.seal_spans(&mut change, &ordinary, end, source));
        let done = done.and_then(|()| self.seal_spans(&mut change, &leaders, end, source));
        if let Err(e) = done {
            change.abandon();
            return Err(e);
        }
        if end > self.len() {
            if matches!(source, Source::Zeros) {
                // Holes write nothing: the lower file must reach the length before the length says so.
                if let Err(e) = self.stretch_lower(end) {
                    change.abandon();
                    return Err(e);
                }
            }
            change.grow_to(end);
        }
        change.commit()
    }

    /// Before a write that overwrites some blocks and needs space for others: reserves that space. A disk that turns
    /// out to be full halfway would leave overwritten blocks without their entries, which are written last.
    fn make_room<'s>(&self, change: &mut Change<'_>, spans: impl Iterator<Item = &'s Span>) -> Result<()> {
        let (mut overwrites, mut fresh) = (false, Vec::new());
        for span in spans {
            let entries = change.entries(span.group)?;
            let holes = span.parts().filter(|part| entries[part.block.slot()].is_hole()).count();
            overwrites |= holes < span.blocks();
            if holes > 0 {
                fresh.push(span);
            }
        }
        if overwrites {
            fresh.into_iter().try_for_each(|span| self.reserve_blocks(span.start, span.end))?;
        }
        Ok(())
    }

    /// Seals the blocks of some groups together, writes each group's to its place, enters them in the change.
    fn seal_spans(
        &self,
        change: &mut Change<'_>,
        spans: &[Span],
        end: u64,
        source: Source<'_>,
    ) -> Result<()> {
        let count: usize = spans.iter().map(Span::blocks).sum();
        if count == 0 {
            return Ok(());
        }
        BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(buffer.len().max((count + 1) * BLOCK), 0);
            // On a page: lower files that are written past the page cache ask for it.
            let skip = buffer.as_ptr().align_offset(BLOCK).min(BLOCK);
            let done = self.seal_into(change, spans, end, source, &mut buffer[skip..]);
            if buffer.len() > KEEP_BUFFER {
                *buffer = Vec::new();
            }
            done
        })
    }

    fn seal_into(
        &self,
        change: &mut Change<'_>,
        spans: &[Span],
        end: u64,
        source: Source<'_>,
        buffer: &mut [u8],
    ) -> Result<()> {
        let mut nonces = vec![[0; 12]; spans.iter().map(Span::blocks).sum()];
        random::fill(nonces.as_flattened_mut());
        let mut pieces = Vec::with_capacity(nonces.len());
        let mut places = Vec::with_capacity(nonces.len());
        let mut slots = buffer.chunks_exact_mut(BLOCK).zip(nonces).enumerate();
        for span in spans {
            let entries = change.entries(span.group)?;
            let len = self.len();
            for part in span.parts() {
                let (place, (out, nonce)) = slots.next().expect("a buffer and a nonce for each block");
                let out = out.first_chunk_mut().expect("chunks of BLOCK");
                let entry = Entry { nonce, tag: [0; 16] };
                if let Some(plain) = whole(&part, len, end, source) {
                    pieces.push(Piece::of(part.block, entry, plain, &mut out[..plain.len()]));
                } else if let Some(out) = self.merge(&part, entries, len, end, source, out)? {
                    pieces.push(Piece::new(part.block, entry, out));
                } else {
                    continue;
                }
                places.push(place * BLOCK);
            }
        }
        pipeline::seal(self.keys(), &mut pieces);
        let sealed: Vec<_> = pieces
            .iter()
            .zip(places)
            .map(|(p, at)| Sealed { block: p.index, entry: p.entry, at, len: p.buf.len() })
            .collect();
        drop(pieces);
        write_runs(change, &sealed, buffer)?;
        for done in sealed {
            change.entries(done.block.group())?[done.block.slot()] = done.entry;
        }
        Ok(())
    }

    /// The new plaintext of a block: what there was, overlaid by the source. `None` leaves a hole a hole.
    fn merge<'b>(
        &self,
        part: &Part,
        entries: &Entries,
        len: u64,
        end: u64,
        source: Source<'_>,
        out: &'b mut [u8; BLOCK],
    ) -> Result<Option<&'b mut [u8]>> {
        let new_len = part.block.len_in(len.max(end));
        let is_hole = entries[part.block.slot()].is_hole();
        if is_hole && matches!(source, Source::Zeros) {
            return Ok(None);
        }
        if part.range.start > 0 || part.range.end < new_len {
            let old = self.read_block(part.block, entries, len, out)?.len();
            out[old..].fill(0);
        }
        let target = &mut out[part.range.clone()];
        match source {
            Source::Zeros => target.fill(0),
            Source::Bytes(bytes, origin) => {
                let from = (part.block.plain_start() + part.range.start as u64 - origin) as usize;
                target.copy_from_slice(&bytes[from..from + part.range.len()]);
            }
        }
        Ok(Some(&mut out[..new_len]))
    }
}

/// Puts sealed blocks away, one call for each run of neighbours in a group. Only a file's last block is shorter
/// than full, so a run's bytes lie together in the buffer as well.
fn write_runs(change: &mut Change<'_>, sealed: &[Sealed], buffer: &[u8]) -> Result<()> {
    let neighbours =
        |a: &Sealed, b: &Sealed| a.block.0 + 1 == b.block.0 && a.block.group() == b.block.group();
    for run in sealed.chunk_by(neighbours) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
        change.put_run(first.block, &buffer[first.at..last.at + last.len])?;
    }
    Ok(())
}

/// An inline file's plaintext after a write.
fn overlaid(plain: &[u8], offset: u64, data: &[u8]) -> Zeroizing<Vec<u8>> {
    let from = offset as usize;
    let mut new = Zeroizing::new(plain.to_vec());
    new.resize(plain.len().max(from + data.len()), 0);
    new[from..from + data.len()].copy_from_slice(data);
    new
}

/// The bytes that a block is sealed from as they stand in the source: where they are all that it will have.
fn whole<'s>(part: &Part, len: u64, end: u64, source: Source<'s>) -> Option<&'s [u8]> {
    let all = part.range.start == 0 && part.range.end == part.block.len_in(len.max(end));
    match source {
        Source::Bytes(bytes, origin) if all => {
            let from = (part.block.plain_start() - origin) as usize;
            bytes.get(from..from + part.range.end)
        }
        Source::Bytes(..) | Source::Zeros => None,
    }
}

/// Leaders written in one commit; bounds the slots it holds.
const LEADERS_AT_ONCE: usize = 64;

/// End of a stretch, refused beyond the longest file.
pub(super) fn end_of(offset: u64, len: u64) -> Result<u64> {
    offset.checked_add(len).filter(|end| *end <= MAX_PLAIN_LEN).ok_or(ContentError::TooLong)
}
