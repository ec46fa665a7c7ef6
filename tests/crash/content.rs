//! One file's content over time, and what of it may be there after a cut.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use crate::model::{BLOCK, Moment, Op};

/// From an operation on, a block is this.
type Written = (Op, Arc<[u8]>);

/// When operations began, and which of them were acknowledged when.
#[derive(Clone, Default)]
struct Course {
    begins: Vec<Moment>,
    acks: Vec<(Moment, Op)>,
}

impl Course {
    fn begin(&mut self, at: Moment) -> Op {
        self.begins.push(at);
        self.begins.len()
    }

    fn ack(&mut self, at: Moment) {
        self.acks.push((at, self.begins.len()));
    }

    /// The operations that may be missing after a cut: behind the first, up to the last.
    fn open(&self, cut: Moment) -> (Op, Op) {
        let sure = self.acks.iter().filter(|(at, _)| *at <= cut).map(|(_, op)| *op).max().unwrap_or(0);
        (sure, self.begins.partition_point(|at| *at <= cut).max(sure))
    }
}

/// What was read of a file.
#[derive(Default)]
pub(crate) struct Read {
    /// The bytes, zeros where reading failed.
    pub(crate) bytes: Vec<u8>,
    /// Blocks that gave an error.
    pub(crate) failed: BTreeSet<usize>,
    /// Why the file as a whole could not be read.
    pub(crate) refused: Option<String>,
}

/// One file's content over time.
#[derive(Clone, Default)]
pub(crate) struct Content {
    course: Course,
    now: Vec<u8>,
    lengths: Vec<(Op, usize)>,
    /// Of each block, padded with zeros: from which operation on it is what.
    blocks: BTreeMap<usize, Vec<Written>>,
}

impl Content {
    /// What it holds now.
    pub(crate) fn now(&self) -> &[u8] {
        &self.now
    }

    /// Changes it; `touched` are the bytes that may be different then, whatever the length.
    pub(crate) fn change(&mut self, at: Moment, touched: Range<usize>, change: impl FnOnce(&mut Vec<u8>)) {
        let op = self.course.begin(at);
        change(&mut self.now);
        self.lengths.push((op, self.now.len()));
        if touched.is_empty() {
            return;
        }
        for block in touched.start / BLOCK..=(touched.end - 1) / BLOCK {
            let mut bytes = vec![0; BLOCK];
            let there = self.now.get(block * BLOCK..).unwrap_or_default();
            let len = there.len().min(BLOCK);
            bytes[..len].copy_from_slice(&there[..len]);
            self.blocks.entry(block).or_default().push((op, bytes.into()));
        }
    }

    /// All that was done is durable from `at` on.
    pub(crate) fn ack(&mut self, at: Moment) {
        self.course.ack(at);
    }

    /// Whether a length may be there: one that the file had, or had on its way while it grew.
    fn may_have(&self, len: usize, (sure, last): (Op, Op)) -> bool {
        let at = |op: Op| self.lengths[..op].last().map_or(0, |(_, len)| *len);
        at(sure) == len
            || (sure + 1..=last).any(|op| {
                let (before, after) = (at(op - 1), at(op));
                len == after || (before..after).contains(&len)
            })
    }

    /// What of `read` may not be there.
    pub(crate) fn judge(&self, cut: Moment, read: &Read) -> Verdict {
        let mut verdict = Verdict::default();
        let (sure, last) = self.course.open(cut);
        let sure_len = self.lengths[..sure].last().map_or(0, |(_, len)| *len);
        if let Some(why) = &read.refused {
            verdict.wrong.extend((sure_len > 0).then(|| format!("{sure_len} bytes: {why}")));
            return verdict;
        }
        if !self.may_have(read.bytes.len(), (sure, last)) {
            verdict.wrong.push(format!("length {}, acknowledged were {sure_len}", read.bytes.len()));
        }
        for (block, found) in read.bytes.chunks(BLOCK).enumerate() {
            let versions = self.blocks.get(&block).map(Vec::as_slice).unwrap_or_default();
            let may = Candidates::new(versions, (sure, last));
            if read.failed.contains(&block) {
                if may.base.iter().any(|b| *b != 0) {
                    verdict.wrong.push(format!("block {block} does not read"));
                }
                continue;
            }
            match may.find(found) {
                Match::Version => {}
                Match::Mixture => verdict.mixed += 1,
                Match::None(at) => verdict.wrong.push(format!(
                    "block {block} byte {at}: {}, acknowledged was operation {sure}, begun {last}",
                    origin(found, versions)
                )),
            }
        }
        verdict
    }
}

/// What was found of a file, compared with what may be there.
#[derive(Default)]
pub(crate) struct Verdict {
    /// What may not be there, in words.
    pub(crate) wrong: Vec<String>,
    /// Blocks that are none of their versions, but made of them.
    pub(crate) mixed: usize,
}

/// What a block may be after a cut.
struct Candidates<'a> {
    /// The version that was acknowledged.
    base: Arc<[u8]>,
    /// Those that were begun since.
    later: Vec<&'a [u8]>,
}

enum Match {
    Version,
    Mixture,
    /// From this byte on.
    None(usize),
}

impl<'a> Candidates<'a> {
    fn new(versions: &'a [Written], (sure, last): (Op, Op)) -> Self {
        let first = versions.partition_point(|(op, _)| *op <= sure);
        let base = first.checked_sub(1).map_or_else(|| vec![0; BLOCK].into(), |i| Arc::clone(&versions[i].1));
        let later = versions[first..].iter().take_while(|(op, _)| *op <= last).map(|(_, bytes)| &**bytes);
        Self { base, later: later.collect() }
    }

    /// A block that has changes which nobody synced may be any mixture of what was written, byte by byte. Since Linux
    /// 6.16 the kernel sends a page of its writeback cache to the daemon as it lies there, while `write` goes on
    /// changing it (before, it sent a copy that it made under a lock); the page stays dirty and is sent once more, but
    /// the power may go between the two. A write that was not synced promises no more on a local filesystem: there, a
    /// page that is being written to the disk changes meanwhile as well. A block in which everything was synced is
    /// exactly that.
    fn find(&self, found: &[u8]) -> Match {
        let all = || std::iter::once(&*self.base).chain(self.later.iter().copied());
        if all().any(|version| version[..found.len()] == *found) {
            return Match::Version;
        }
        match (0..found.len()).find(|at| !all().any(|version| version[*at] == found[*at])) {
            Some(at) => Match::None(at),
            None => Match::Mixture,
        }
    }
}

/// Where bytes come from that may not be there, in words.
fn origin(found: &[u8], versions: &[Written]) -> String {
    if found.iter().all(|b| *b == 0) {
        return "zeros".to_owned();
    }
    match versions.iter().rfind(|(_, version)| version[..found.len()] == *found) {
        Some((op, _)) => format!("operation {op}'s"),
        None => mixture(found, versions),
    }
}

/// What bytes are made of that no version has as a whole, in words: each run with the operation that has the longest
/// one from there on.
fn mixture(part: &[u8], versions: &[Written]) -> String {
    /// Shorter runs may be alike by chance.
    const RUN: usize = 8;
    let zeros: Written = (0, vec![0; BLOCK].into());
    let mut runs: Vec<(usize, Option<Op>)> = Vec::new();
    let mut from = 0;
    while from < part.len() {
        let alike = |(op, bytes): &Written| {
            let there = bytes[from..].iter().zip(&part[from..]);
            (there.take_while(|(a, b)| a == b).count(), *op)
        };
        let (len, op) = versions.iter().chain([&zeros]).map(alike).max().unwrap_or_default();
        let known = len >= RUN.min(part.len() - from);
        let op = known.then_some(op);
        if runs.last().is_none_or(|(_, last)| *last != op) {
            runs.push((from, op));
        }
        from += if known { len } else { 1 };
    }
    let told = |(from, op): &(usize, Option<Op>)| match op {
        Some(op) => format!("from {from} operation {op}'s"),
        None => format!("from {from} nobody's"),
    };
    let ops: Vec<_> = versions.iter().map(|(op, _)| *op).collect();
    let runs: Vec<_> = runs.iter().map(told).collect();
    format!("bytes that were never there together ({}; to {}; of {ops:?})", runs.join(", "), part.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of one block: 1 everywhere and synced, then 2 and 3 written into it.
    fn written() -> Content {
        let mut content = Content::default();
        content.change(1, 0..BLOCK, |now| now.resize(BLOCK, 1));
        content.ack(2);
        content.change(3, 0..1000, |now| now[..1000].fill(2));
        content.change(4, 500..2000, |now| now[500..2000].fill(3));
        content
    }

    fn judged(content: &Content, cut: Moment, parts: &[(u8, usize)]) -> (usize, usize) {
        let bytes = parts.iter().flat_map(|(byte, len)| std::iter::repeat_n(*byte, *len)).collect();
        let verdict = content.judge(cut, &Read { bytes, ..Read::default() });
        (verdict.wrong.len(), verdict.mixed)
    }

    /// What was written and not synced may be there in any part; a page that the kernel sent while it changed is such.
    #[test]
    fn unsynced_writes_may_be_mixed() {
        let content = written();
        for (parts, mixed) in [
            (&[(1, BLOCK)][..], 0),
            (&[(2, 1000), (1, BLOCK - 1000)], 0),
            (&[(2, 500), (3, 1500), (1, BLOCK - 2000)], 0),
            (&[(2, 784), (1, BLOCK - 784)], 1),
            (&[(2, 600), (3, 16), (2, 384), (1, BLOCK - 1000)], 1),
            (&[(1, 500), (3, 1500), (1, BLOCK - 2000)], 1),
        ] {
            assert_eq!(judged(&content, 9, parts), (0, mixed), "{parts:?}");
        }
    }

    /// Nothing else may be there, nor anything but what was synced where all of it was; and it is told what it is.
    #[test]
    fn what_was_synced_or_never_written_is_not_mixed_in() {
        let mut content = written();
        let torn: &[_] = &[(2, 784), (1, BLOCK - 784)];
        for parts in [
            &[(0, BLOCK)][..],
            &[(1, 1000), (2, 1), (1, BLOCK - 1001)],
            &[(2, 499), (3, 1501), (1, BLOCK - 2000)],
            &[(9, 1), (1, BLOCK - 1)],
        ] {
            assert_eq!(judged(&content, 9, parts), (1, 0), "{parts:?}");
        }
        assert_eq!(judged(&content, 2, torn), (1, 0), "of a write that had not begun");
        content.ack(5);
        assert_eq!(judged(&content, 9, torn), (1, 0), "of a write that was synced");
        assert_eq!(judged(&content, 9, &[(2, 500), (3, 1500), (1, BLOCK - 2000)]), (0, 0));
        let bytes = torn.iter().flat_map(|(byte, len)| std::iter::repeat_n(*byte, *len)).collect();
        let told = content.judge(9, &Read { bytes, ..Read::default() }).wrong.concat();
        assert!(told.contains("from 0 operation 2's, from 784 operation 1's; to 4096"), "{told}");
    }
}
