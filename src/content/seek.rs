//! SEEK_DATA and SEEK_HOLE, from the maps alone.

use super::file::{File, Form};
use super::groups::{Bitmap, bit};
use super::{Result, span};
use crate::format::layout::{BLOCK_U64, GROUP_PLAIN, GroupIndex};

impl File {
    /// SEEK_DATA: first offset from `offset` on that holds data; `None` is ENXIO.
    pub fn seek_data(&self, offset: u64) -> Result<Option<u64>> {
        self.seek(offset, true)
    }

    /// SEEK_HOLE: first offset from `offset` on in a hole (the end counts as one); `None` is ENXIO.
    pub fn seek_hole(&self, offset: u64) -> Result<Option<u64>> {
        let len = self.len();
        if offset >= len {
            return Ok(None);
        }
        Ok(Some(self.seek(offset, false)?.unwrap_or(len)))
    }

    /// First offset from `offset` on whose block is data, or is none.
    fn seek(&self, offset: u64, data: bool) -> Result<Option<u64>> {
        let form = self.gate.read();
        let len = self.len();
        if offset >= len {
            return Ok(None);
        }
        if matches!(*form, Form::Inline(_)) {
            return Ok(data.then_some(offset));
        }
        let mut known: Option<(GroupIndex, Option<Bitmap>)> = None;
        let mut at = offset;
        while at < len {
            let group = GroupIndex::of(at);
            if known.as_ref().is_none_or(|(leader, _)| *leader != group.leader()) {
                known = Some((group.leader(), self.bitmap(group.leader())?));
            }
            let exists = known.as_ref().and_then(|(_, b)| b.as_ref()).is_some_and(|b| bit(b, group));
            let end = len.min(group.plain_start() + GROUP_PLAIN);
            match self.seek_group(at, end, exists, data)? {
                Some(found) => return Ok(Some(found)),
                None => at = end,
            }
        }
        Ok(None)
    }

    fn seek_group(&self, start: u64, end: u64, exists: bool, data: bool) -> Result<Option<u64>> {
        if !exists {
            return Ok((!data).then_some(start));
        }
        let guard = self.entries(GroupIndex::of(start))?;
        let entries = guard.as_ref().expect("`entries` loads the slot before it gives the guard");
        Ok(span::spans(start, end)
            .flat_map(span::Span::parts)
            .find(|part| entries[part.block.slot()].is_hole() != data)
            .map(|part| start.max(part.block.0 * BLOCK_U64)))
    }
}
