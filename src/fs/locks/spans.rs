//! What one owner has locked of a file, range by range, as POSIX has it: a new lock takes the place of what it covers,
//! neighbours of one kind become one.
//!
//! The lower filesystem decides; this remembers, to tell which process of this mount has a lock.

use rustix::io::Errno;

use crate::vault::locks::{LockKind, Range};

/// Ranges that one owner may have in one file.
const MOST: usize = 16_384;

/// A locked range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    pub(super) range: Range,
    pub(super) kind: LockKind,
    /// The process that asked for it.
    pub(super) pid: u32,
}

/// Locked ranges, ascending, none meeting another.
#[derive(Debug, Default)]
pub(super) struct Spans(Vec<Span>);

impl Spans {
    /// Whether nothing is locked.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one change more is possible: it adds two ranges at most.
    pub(super) fn has_room(&self) -> Result<(), Errno> {
        if self.0.len() + 2 <= MOST { Ok(()) } else { Err(Errno::NOLCK) }
    }

    /// Every range.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Span> {
        self.0.iter()
    }

    /// The first range that keeps others from locking `range` so.
    pub(super) fn in_the_way(&self, range: &Range, kind: LockKind) -> Option<Span> {
        let keeps =
            |s: &&Span| s.range.meets(range) && (s.kind == LockKind::Write || kind == LockKind::Write);
        self.0.iter().find(keeps).copied()
    }

    /// Whether all of `range` is locked.
    pub(super) fn cover(&self, range: &Range) -> bool {
        let mut next = range.first;
        for span in self.0.iter().filter(|s| s.range.meets(range)) {
            if span.range.first > next {
                return false;
            }
            if span.range.last >= range.last {
                return true;
            }
            next = span.range.last + 1;
        }
        false
    }

    /// Forgets what was locked of a range.
    pub(super) fn remove(&mut self, range: &Range) {
        let mut kept = Vec::with_capacity(self.0.len() + 1);
        for span in self.0.drain(..) {
            if !span.range.meets(range) {
                kept.push(span);
                continue;
            }
            if span.range.first < range.first {
                let before = Range { first: span.range.first, last: range.first - 1 };
                kept.push(Span { range: before, ..span });
            }
            if span.range.last > range.last {
                let behind = Range { first: range.last + 1, last: span.range.last };
                kept.push(Span { range: behind, ..span });
            }
        }
        self.0 = kept;
    }

    /// Remembers a lock, in the place of what was locked of its range.
    pub(super) fn put(&mut self, new: Span) {
        self.remove(&new.range);
        let at = self.0.partition_point(|s| s.range.first < new.range.first);
        self.0.insert(at, new);
        self.0.dedup_by(|next, one| {
            let alike = next.kind == one.kind && next.pid == one.pid;
            // The last byte that there may be is followed by none.
            let touching = one.range.last.checked_add(1) == Some(next.range.first);
            if alike && touching {
                one.range.last = next.range.last;
            }
            alike && touching
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::locks::LAST;

    const LENGTH: u64 = 24;

    fn span(first: u64, last: u64, kind: LockKind) -> Span {
        Span { range: Range { first, last }, kind, pid: 7 }
    }

    /// Random locks and unlocks leave what a table of single bytes says, in ranges that are ascending and as long as can be.
    #[test]
    fn ranges_are_what_single_bytes_say() {
        let mut word = 0x2545_f491_4f6c_dd1d_u64;
        let mut below = |n: u64| {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            word % n
        };
        let (mut spans, mut bytes) = (Spans::default(), [None; LENGTH as usize]);
        for _ in 0..20_000 {
            let first = below(LENGTH);
            let range = Range { first, last: first + below(LENGTH - first) };
            let kind = [None, Some(LockKind::Read), Some(LockKind::Write)][below(3) as usize];
            match kind {
                Some(kind) => spans.put(span(range.first, range.last, kind)),
                None => spans.remove(&range),
            }
            bytes[range.first as usize..=range.last as usize].fill(kind);
            let mut expected: Vec<Span> = Vec::new();
            for (at, kind) in (0..).zip(bytes) {
                let Some(kind) = kind else { continue };
                match expected.last_mut() {
                    Some(last) if last.kind == kind && last.range.last + 1 == at => last.range.last = at,
                    _ => expected.push(span(at, at, kind)),
                }
            }
            assert_eq!(spans.0, expected);
            let asked = Range { first: below(LENGTH), last: LENGTH - 1 };
            let all = bytes[asked.first as usize..].iter().all(Option::is_some);
            assert_eq!(spans.cover(&asked), all);
            let write = bytes[asked.first as usize..].contains(&Some(LockKind::Write));
            assert_eq!(spans.in_the_way(&asked, LockKind::Read).is_some(), write);
        }
    }

    /// A lock without an end stays one, and nothing is counted beyond the last byte.
    #[test]
    fn a_lock_without_an_end_is_cut_and_joined() {
        let mut spans = Spans::default();
        spans.put(span(0, LAST, LockKind::Write));
        spans.remove(&Range { first: 10, last: 19 });
        assert_eq!(spans.0, [span(0, 9, LockKind::Write), span(20, LAST, LockKind::Write)]);
        assert!(spans.cover(&Range { first: 30, last: LAST }) && !spans.cover(&Range::WHOLE));
        spans.put(span(10, LAST, LockKind::Write));
        assert_eq!(spans.0, [span(0, LAST, LockKind::Write)]);
        spans.remove(&Range::WHOLE);
        assert!(spans.is_empty());
    }
}
