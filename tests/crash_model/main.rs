//! Random operations on an encrypted file, with kills and power cuts between and within them, against a plain model,
//! over a disk that forgets what was not synced.
//!
//! After a kill every completed operation is there. After a power cut each block is one of the versions that it had
//! since the last sync, whole, and the length one of the lengths; whatever was synced is there, and nothing gives an
//! error.

#![allow(clippy::unwrap_used)]

mod disk;
mod model;

use std::sync::Arc;

use disk::{Chance, Disk};
use envelopefs::content::{ContentError, Fault, File};
use envelopefs::crypto::{DataKey, FileKeys, Secret};
use envelopefs::format::ids::FileId;
use model::Model;
use proptest::prelude::*;

/// Number of the file among the disk's files.
const FILE: u64 = 0;

/// Plaintext of a group.
const GROUP: u64 = 524_288;

/// A change of the content.
#[derive(Clone, Debug)]
enum Change {
    Write(u64, usize, u8),
    SetLen(u64),
    Punch(u64, u64),
    Zero(u64, u64, bool),
    Allocate(u64, u64, bool),
}

#[derive(Clone, Debug)]
enum Op {
    Change(Change),
    Sync,
    Reopen,
    Kill,
    Cut(u64),
    /// The process dies when the work has reached the disk so many times; the power may fail too.
    Die(Work, u32, Option<u64>),
}

/// What is being done when the process dies.
#[derive(Clone, Debug)]
enum Work {
    Change(Change),
    Sync,
}

/// What the code under test stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stands {
    /// Kills between operations and while whole blocks are added, cuts right behind a sync.
    Little,
}

fn keys() -> Arc<FileKeys> {
    Arc::new(FileKeys::derive(&DataKey(Secret::from_slice(&[3; 32]).unwrap()), &FileId([5; 12])))
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed).wrapping_add((i >> 8) as u8) | 1).collect()
}

/// Offsets around every boundary of the format, up to a little over two groups.
fn offset() -> impl Strategy<Value = u64> {
    let near = |at: u64| (at.saturating_sub(3)..at + 4).boxed();
    prop_oneof![
        3 => 0..5000u64,
        2 => (0..20u64).prop_map(|block| block * 4096),
        1 => 0..1_200_000u64,
        1 => (0..290u64).prop_map(|block| block * 4096),
        1 => near(4064),
        1 => near(8192),
        1 => near(524_288),
        1 => near(1_048_576),
    ]
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![1..100u64, 1..9000u64, Just(4096u64), Just(131_072u64), 1..300_000u64]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (offset(), length(), any::<u8>()).prop_map(|(o, n, b)| Change::Write(o, n as usize, b)),
        2 => offset().prop_map(Change::SetLen),
        1 => (offset(), length()).prop_map(|(o, n)| Change::Punch(o, n)),
        1 => (offset(), length(), any::<bool>()).prop_map(|(o, n, k)| Change::Zero(o, n, k)),
        1 => (offset(), length(), any::<bool>()).prop_map(|(o, n, k)| Change::Allocate(o, n, k)),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => change().prop_map(Op::Change),
        3 => Just(Op::Sync),
        1 => Just(Op::Reopen),
        2 => Just(Op::Kill),
        2 => any::<u64>().prop_map(Op::Cut),
        3 => (work(), 0..6u32, prop::option::of(any::<u64>())).prop_map(|(w, n, s)| Op::Die(w, n, s)),
    ]
}

fn work() -> impl Strategy<Value = Work> {
    prop_oneof![5 => change().prop_map(Work::Change), 1 => Just(Work::Sync)]
}

struct World {
    disk: Disk,
    file: Option<File>,
    model: Model,
}

impl World {
    fn new() -> Self {
        let disk = Disk::default();
        let file = File::create(Box::new(disk.file(FILE)), keys()).unwrap();
        file.sync(true).unwrap();
        Self { disk, file: Some(file), model: Model::default() }
    }

    fn file(&self) -> &File {
        self.file.as_ref().expect("open between operations")
    }

    /// Opens the file again, after the mends that a mount makes.
    fn open(&mut self) {
        self.file = Some(File::open(Box::new(self.disk.file(FILE)), keys()).unwrap());
    }

    fn change(&self, change: &Change) -> Result<(), ContentError> {
        let file = self.file();
        match *change {
            Change::Write(offset, len, seed) => file.write(offset, &pattern(len, seed)),
            Change::SetLen(len) => file.set_len(len),
            Change::Punch(offset, len) => file.punch_hole(offset, len),
            Change::Zero(offset, len, keep) => file.zero_range(offset, len, keep),
            Change::Allocate(offset, len, keep) => file.allocate(offset, len, keep),
        }
    }

    /// The whole content, every fault told.
    fn content(&self) -> Vec<u8> {
        let file = self.file();
        let len = file.len() as usize;
        let mut all = vec![0x55; len + 10];
        assert_eq!(file.read(0, &mut all).expect("nothing gives an error"), len);
        all.truncate(len);
        let mut faults = Vec::new();
        file.verify(&mut |f| faults.push(f), &mut |_| true).unwrap();
        // Bytes behind the end are what a crash may leave; the next change cuts them off.
        faults.retain(|fault| !matches!(fault, Fault::Overlong { .. }));
        assert_eq!(faults, []);
        all
    }

    /// The process ends and another one starts; the power fails between where a seed is given.
    fn restart(&mut self, power: Option<u64>) -> Vec<u8> {
        self.file = None;
        match power {
            Some(seed) => self.disk.cut(&mut Chance::new(seed)),
            None => self.disk.kill(),
        }
        self.open();
        self.content()
    }

    fn apply(&mut self, op: &Op, stands: Stands) {
        if !self.stands(op, stands) {
            return;
        }
        match op {
            Op::Change(change) => {
                self.change(change).unwrap();
                self.model.changed(|content| reference(change, content));
            }
            Op::Sync => {
                self.file().sync(true).unwrap();
                self.model.synced();
            }
            Op::Reopen | Op::Kill => {
                let found = self.restart(None);
                assert!(found == self.model.newest(), "a completed operation was lost");
            }
            Op::Cut(seed) => {
                let found = self.restart(Some(*seed));
                self.model.check(&found);
                self.continue_with(found);
            }
            Op::Die(work, after, power) => {
                self.disk.die_after(*after);
                let done = match work {
                    Work::Change(change) => {
                        self.model.changed(|content| reference(change, content));
                        self.change(change)
                    }
                    Work::Sync => self.file().sync(true),
                };
                let finished = done.is_ok() && !self.disk.is_dead();
                if finished && matches!(work, Work::Sync) {
                    self.model.synced();
                }
                let found = self.restart(*power);
                match power {
                    Some(_) => self.model.check(&found),
                    None => self.model.check_last(&found, if finished { 1 } else { 2 }),
                }
                self.continue_with(found);
            }
        }
    }

    /// What a restart brought is what the file has now, and lasts.
    fn continue_with(&mut self, found: Vec<u8>) {
        self.file().sync(true).unwrap();
        self.model.restart(found);
    }

    fn stands(&self, op: &Op, stands: Stands) -> bool {
        let Stands::Little = stands;
        let len = self.model.newest().len() as u64;
        // Blocks that a killed process left behind the end, in a group that exists, are taken for sealed ones later.
        let anew = |end: u64| len.is_multiple_of(GROUP) || len.is_multiple_of(4096) && end <= GROUP;
        match op {
            Op::Cut(_) => self.model.is_synced(),
            Op::Die(Work::Change(Change::Write(offset, n, _)), _, None) => {
                *offset >= len && anew(offset + *n as u64)
            }
            Op::Die(..) => false,
            _ => true,
        }
    }
}

/// What a change makes of a byte vector.
fn reference(change: &Change, content: &mut Vec<u8>) {
    let grow = |content: &mut Vec<u8>, len: u64| {
        if content.len() < len as usize {
            content.resize(len as usize, 0);
        }
    };
    let clear = |content: &mut Vec<u8>, from: u64, to: u64| {
        let to = content.len().min(to as usize);
        if (from as usize) < to {
            content[from as usize..to].fill(0);
        }
    };
    match *change {
        Change::Write(offset, len, seed) => {
            grow(content, offset + len as u64);
            content[offset as usize..offset as usize + len].copy_from_slice(&pattern(len, seed));
        }
        Change::SetLen(len) => content.resize(len as usize, 0),
        Change::Punch(offset, len) => clear(content, offset, offset + len),
        Change::Zero(offset, len, keep) => {
            if !keep {
                grow(content, offset + len);
            }
            clear(content, offset, offset + len);
        }
        Change::Allocate(offset, len, keep) => {
            if !keep {
                grow(content, offset + len);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Without a journal: kills between operations, cuts right behind a sync.
    #[test]
    fn without_a_journal_what_was_synced_lasts(ops in prop::collection::vec(op(), 1..30)) {
        let mut world = World::new();
        for op in &ops {
            world.apply(op, Stands::Little);
        }
        world.apply(&Op::Kill, Stands::Little);
    }
}
