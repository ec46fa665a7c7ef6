//! SEEK_DATA and SEEK_HOLE, from the maps alone.

use std::time::{Duration, Instant};

use super::file::{File, Form};
use super::groups::bit;
use super::waits::{LONG_WAITS, LongWait, LongWaits};
use super::{Result, span};
use crate::format::layout::{BLOCK_U64, GROUP_PLAIN, GroupIndex};

/// Groups that any search may look at: 256 map pages of a disk that has to move its arm take two seconds.
const FREE: usize = 256;
/// How long a search may go on behind those, while it holds one of the few places of those that wait.
const LONGEST: Duration = Duration::from_secs(10);

/// How far a search has come.
enum Step {
    Found(u64),
    /// Nothing up to the end.
    End,
    /// Nothing up to here.
    On(u64),
}

/// How long a search may take: it holds a thread that serves requests.
struct Bound<'w> {
    waits: &'w LongWaits,
    steps: usize,
    place: Option<(LongWait<'w>, Instant)>,
}

impl<'w> Bound<'w> {
    fn new(waits: &'w LongWaits) -> Self {
        Self { waits, steps: 0, place: None }
    }

    /// Whether it may take another step.
    fn goes_on(&mut self) -> bool {
        self.steps += 1;
        if self.steps < FREE {
            return true;
        }
        if self.place.is_none() {
            self.place = self.waits.take().map(|place| (place, Instant::now()));
        }
        self.place.as_ref().is_some_and(|(_, since)| since.elapsed() < LONGEST)
    }
}

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

    /// First offset from `offset` on whose block is data, or is none. A search that takes too long takes what is left for
    /// data, which is always allowed.
    fn seek(&self, offset: u64, data: bool) -> Result<Option<u64>> {
        let mut bound = Bound::new(&LONG_WAITS);
        let mut at = offset;
        loop {
            at = match self.seek_from(at, data)? {
                Step::Found(found) => return Ok(Some(found)),
                Step::End => return Ok(None),
                Step::On(next) => next,
            };
            if !bound.goes_on() {
                return Ok((data && at < self.len()).then_some(at));
            }
        }
    }

    /// Looks as far as one group that exists, or one leader's span. The gate is held no longer, so that changes and
    /// checkpoints come in between.
    fn seek_from(&self, offset: u64, data: bool) -> Result<Step> {
        let form = self.gate.read();
        let len = self.len();
        if offset >= len {
            return Ok(Step::End);
        }
        if matches!(*form, Form::Inline(_)) {
            return Ok(if data { Step::Found(offset) } else { Step::End });
        }
        let leader = GroupIndex::of(offset).leader();
        let bitmap = self.bitmap(leader)?;
        let mut at = offset;
        while at < len && GroupIndex::of(at).leader() == leader {
            let group = GroupIndex::of(at);
            let exists = bitmap.as_ref().is_some_and(|b| bit(b, group));
            let end = len.min(group.plain_start() + GROUP_PLAIN);
            if let Some(found) = self.seek_group(at, end, exists, data)? {
                return Ok(Step::Found(found));
            }
            at = end;
            if exists {
                break;
            }
        }
        Ok(Step::On(at))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A short search needs no place; a long one goes on while it has one.
    #[test]
    fn long_searches_need_a_place() {
        let waits = LongWaits::default();
        let mut all: Vec<_> = std::iter::from_fn(|| waits.take()).collect();
        let mut bound = Bound::new(&waits);
        assert!((1..FREE).all(|_| bound.goes_on()));
        assert!(!bound.goes_on());
        all.pop();
        assert!(bound.goes_on() && bound.goes_on());
        assert!(waits.take().is_none());
        drop(bound);
        assert!(waits.take().is_some());
    }
}
