//! Reading: sealed blocks go straight into the caller's buffer and are opened there.

use super::file::{File, Form};
use super::groups::Entries;
use super::span::{Part, Span, spans};
use super::{Fault, Result};
use crate::format::layout::{BLOCK, BlockIndex};
use crate::pipeline::{self, BLOCKS_PER_PART, Piece};

impl File {
    /// Reads into `buf` from `offset`; short only at the end of the file.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let form = self.gate.read();
        match &*form {
            Form::Inline(plain) => Ok(read_inline(plain, offset, buf)),
            Form::Grouped => self.read_grouped(offset, buf),
        }
    }

    /// As `read`, for a caller that holds the gate of a grouped file.
    pub(super) fn read_grouped(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let end = self.len().min(offset.saturating_add(buf.len() as u64));
        if end <= offset {
            return Ok(0);
        }
        let wanted = (end - offset) as usize;
        let mut rest = &mut buf[..wanted];
        for span in spans(offset, end) {
            let (part, behind) = rest.split_at_mut(span.len());
            self.read_span(span, part)?;
            rest = behind;
        }
        Ok(wanted)
    }

    /// Reads within one group. The slot is held until the blocks are open: a writer changes a block and its
    /// entry under the same slot. A long stretch is shared out in parts that stay in a core's cache from the
    /// read to the opening.
    fn read_span(&self, span: Span, buf: &mut [u8]) -> Result<()> {
        let guard = self.entries(span.group)?;
        let entries = guard.as_ref().expect("`entries` loads the slot before it gives the guard");
        let len = self.len();
        let mut parts = Vec::new();
        let mut rest = buf;
        for stretch in span.stretches(BLOCKS_PER_PART) {
            let (out, behind) = std::mem::take(&mut rest).split_at_mut(stretch.len());
            rest = behind;
            parts.push((stretch, out));
        }
        let outcome = parking_lot::Mutex::new(Ok(()));
        pipeline::share(parts, |(stretch, out)| {
            if let Err(e) = self.read_stretch(*stretch, entries, len, out) {
                *outcome.lock() = Err(e);
            }
        });
        outcome.into_inner()
    }

    /// Fetches and opens some blocks of a group.
    fn read_stretch(&self, span: Span, entries: &Entries, len: u64, buf: &mut [u8]) -> Result<()> {
        self.fetch_runs(span, entries, len, buf)?;
        let mut pieces = Vec::with_capacity(span.blocks());
        let mut rest = buf;
        for part in span.parts() {
            let (out, behind) = std::mem::take(&mut rest).split_at_mut(part.range.len());
            rest = behind;
            let entry = entries[part.block.slot()];
            if entry.is_hole() {
                out.fill(0);
            } else if is_whole(&part, len) {
                pieces.push(Piece::new(part.block, entry, out));
            } else {
                let mut block = [0; BLOCK];
                let plain = self.read_block(part.block, entries, len, &mut block)?;
                out.copy_from_slice(&plain[part.range]);
            }
        }
        pipeline::open_here(self.keys(), &mut pieces);
        match pieces.iter().find(|p| p.failed) {
            Some(piece) => Err(Fault::Block(piece.index).into()),
            None => Ok(()),
        }
    }

    /// Reads the ciphertext of whole blocks, one read for each run of neighbours.
    fn fetch_runs(&self, span: Span, entries: &Entries, len: u64, buf: &mut [u8]) -> Result<()> {
        let mut at = 0;
        let mut run: Option<(BlockIndex, std::ops::Range<usize>)> = None;
        for part in span.parts() {
            let bytes = part.range.len();
            if !entries[part.block.slot()].is_hole() && is_whole(&part, len) {
                match &mut run {
                    Some((_, range)) => range.end += bytes,
                    None => run = Some((part.block, at..at + bytes)),
                }
            } else if let Some((first, range)) = run.take() {
                self.fetch(first, &mut buf[range])?;
            }
            at += bytes;
        }
        match run {
            Some((first, range)) => self.fetch(first, &mut buf[range]),
            None => Ok(()),
        }
    }

    /// Ciphertext of neighbouring blocks of a group, from the journal or from their places.
    fn fetch(&self, first: BlockIndex, buf: &mut [u8]) -> Result<()> {
        if self.has_overlay() {
            return self.fetch_both(first, buf);
        }
        self.fetch_in_place(first, buf)
    }

    fn fetch_both(&self, first: BlockIndex, buf: &mut [u8]) -> Result<()> {
        let places: Vec<_> = {
            let pending = self.pending();
            (first.0..).zip(buf.chunks(BLOCK)).map(|(block, _)| pending.place(block).cloned()).collect()
        };
        let mut at = 0;
        for run in places.chunk_by(|a, b| a.is_none() && b.is_none()) {
            let end = buf.len().min((at + run.len()) * BLOCK);
            let part = &mut buf[at * BLOCK..end];
            match &run[0] {
                Some(place) => place.log.read(part, place.at)?,
                None => self.fetch_in_place(BlockIndex(first.0 + at as u64), part)?,
            }
            at += run.len();
        }
        Ok(())
    }

    fn fetch_in_place(&self, first: BlockIndex, buf: &mut [u8]) -> Result<()> {
        if self.lower().read_at(buf, first.disk_start())? < buf.len() {
            return Err(self.cut());
        }
        Ok(())
    }

    /// One whole block of a file of `len` bytes: opened, or zeros where it is a hole.
    pub(super) fn read_block<'b>(
        &self,
        block: BlockIndex,
        entries: &Entries,
        len: u64,
        buf: &'b mut [u8; BLOCK],
    ) -> Result<&'b mut [u8]> {
        let plain = &mut buf[..block.len_in(len)];
        let entry = &entries[block.slot()];
        if entry.is_hole() {
            plain.fill(0);
        } else {
            self.fetch(block, plain)?;
            self.keys().open_block(block, entry, plain).map_err(|_| Fault::Block(block))?;
        }
        Ok(plain)
    }
}

/// Whether a part is all that its block has in a file of `len` bytes.
fn is_whole(part: &Part, len: u64) -> bool {
    part.range.start == 0 && part.range.end == part.block.len_in(len)
}

fn read_inline(plain: &[u8], offset: u64, buf: &mut [u8]) -> usize {
    let from = plain.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
    let n = buf.len().min(plain.len() - from);
    buf[..n].copy_from_slice(&plain[from..from + n]);
    n
}
