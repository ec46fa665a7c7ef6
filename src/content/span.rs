//! A stretch of plaintext cut at group and block boundaries.

use std::ops::Range;

use crate::format::layout::{BLOCK_U64, BlockIndex, GROUP_PLAIN, GroupIndex};

/// A stretch of plaintext within one group; not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) group: GroupIndex,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// The part of a span that lies in one block, as offsets within the block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) block: BlockIndex,
    pub(super) range: Range<usize>,
}

/// Cuts `start..end` at group boundaries, in order.
pub(super) fn spans(start: u64, end: u64) -> impl Iterator<Item = Span> {
    let mut at = start;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let group = GroupIndex::of(at);
        let span = Span { group, start: at, end: end.min(group.plain_start() + GROUP_PLAIN) };
        at = span.end;
        Some(span)
    })
}

impl Span {
    /// Bytes, at most 512 KiB.
    pub(super) fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Blocks touched, at most 128.
    pub(super) fn blocks(&self) -> usize {
        (self.end.div_ceil(BLOCK_U64) - self.start / BLOCK_U64) as usize
    }

    /// Cuts the span into spans of at most `blocks` blocks, in order.
    pub(super) fn stretches(self, blocks: usize) -> impl Iterator<Item = Self> {
        let step = blocks as u64 * BLOCK_U64;
        let mut at = self.start;
        std::iter::from_fn(move || {
            let start = at;
            at = self.end.min((at - at % BLOCK_U64) + step);
            (start < at).then_some(Self { start, end: at, ..self })
        })
    }

    /// The parts, in order.
    pub(super) fn parts(self) -> impl Iterator<Item = Part> {
        (self.start / BLOCK_U64..self.end.div_ceil(BLOCK_U64)).map(move |index| {
            let block = BlockIndex(index);
            let from = self.start.saturating_sub(block.plain_start());
            let to = (self.end - block.plain_start()).min(BLOCK_U64);
            Part { block, range: from as usize..to as usize }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of the spans cover the stretch once, without gaps.
    #[test]
    fn parts_cover_a_stretch_once() {
        for (start, end) in [(0, 1), (1, 4096), (4095, 4097), (524_287, 524_289), (5, 2_000_001), (7, 7)] {
            let mut at = start;
            for span in spans(start, end) {
                assert_eq!(span.start, at);
                assert_eq!(span.parts().count(), span.blocks());
                let cut: Vec<_> = span.stretches(3).collect();
                assert!(cut.iter().all(|s| s.blocks() <= 3 && s.len() > 0));
                assert!(cut.iter().flat_map(|s| s.parts()).eq(span.parts()));
                for part in span.parts() {
                    assert_eq!(part.block.plain_start() + part.range.start as u64, at);
                    assert_eq!(part.block.group(), span.group);
                    at += part.range.len() as u64;
                }
                assert_eq!(at, span.end);
            }
            assert_eq!(at, end);
        }
    }
}
