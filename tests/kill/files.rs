//! One file under writes, appends, cuts, holes and growth, straight to the daemon or through the page cache.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

use crate::harness::pattern;
use crate::random::Random;
use crate::versions::{BLOCK, Versions};
use crate::worker::{Over, Worker, read};

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Habit {
    /// Random overwrites, like a database.
    Overwrites,
    /// Appends, like a log.
    Appends,
    /// Writes, cuts, holes, growth.
    Sizes,
    /// All of it around the inline limit.
    Small,
    /// Large overwrites: much to be journaled.
    Flood,
    /// Overwrites of every second block; someone else has the others.
    Stripe(usize),
}

/// Bytes of a file that two loads share.
const STRIPED: usize = 3 * 512 * 1024;
/// Bytes of the largest write. The kernel makes one request of it wherever it begins; one that it splits may come to
/// the daemon in part, and the parts meet within a block.
const LARGEST: u64 = 1_000_000;
/// Operations through the page cache between two `fsync`s.
const OPEN_MOST: usize = 6;

/// The load.
pub(crate) struct FileLoad {
    habit: Habit,
    random: Random,
    versions: Versions,
    /// Whether acknowledged means written with O_DIRECT, or else synced.
    direct: bool,
    file: Option<File>,
}

enum Op {
    Write(usize, Vec<u8>),
    Resize(usize),
    Punch(usize, usize),
    Zero(usize, usize),
}

impl FileLoad {
    pub(crate) fn new(habit: Habit, seed: u64) -> Self {
        let versions = Versions::of(vec![]);
        Self { habit, random: Random(seed), versions, direct: true, file: None }
    }

    fn path(&self, dir: &Path) -> PathBuf {
        match self.habit {
            Habit::Stripe(_) => dir.join("striped"),
            habit => dir.join(format!("{habit:?}")),
        }
    }

    fn most(&self) -> usize {
        match self.habit {
            Habit::Small => 9000,
            Habit::Flood => 6 << 20,
            _ => 1_400_000,
        }
    }

    /// An offset that likes the edges of inline records, blocks and groups.
    fn offset(&mut self) -> usize {
        let r = &mut self.random;
        let most = match self.habit {
            Habit::Small => 9000,
            Habit::Flood => 6 << 20,
            _ => 1_300_000,
        };
        let edge = [0, 4064, 4096, 8192, 65_536, 524_288, 528_384, 1_048_576][r.below(8) as usize];
        match r.below(4) {
            0 if edge < most => edge,
            1 if edge < most => (edge + r.below(40) as usize).saturating_sub(20),
            _ => r.below(most as u64) as usize,
        }
    }

    fn amount(&mut self) -> usize {
        let r = &mut self.random;
        let len = match (self.habit, r.below(4)) {
            (Habit::Small, _) => r.below(5000),
            (Habit::Flood, _) => LARGEST,
            (_, 0) => r.below(100),
            (_, 1) => 4096 * (1 + r.below(4)),
            (_, 2) => r.below(10_000),
            (..) => r.below(100_000),
        };
        len as usize + 1
    }

    fn op(&mut self) -> Op {
        let len = self.versions.newest().len();
        let seed = self.random.next();
        match self.habit {
            Habit::Stripe(which) => {
                let block = 2 * self.random.below((STRIPED / BLOCK / 2) as u64) as usize + which;
                let from = if self.random.percent(50) { 0 } else { self.random.below(4000) as usize };
                let amount = if from == 0 { BLOCK } else { 1 + self.random.below(96) as usize };
                if self.random.percent(5) {
                    return Op::Punch(block * BLOCK, BLOCK);
                }
                Op::Write(block * BLOCK + from, pattern(amount, seed))
            }
            Habit::Appends if len < self.most() => Op::Write(len, pattern(self.amount().min(20_000), seed)),
            Habit::Appends => Op::Resize(0),
            Habit::Overwrites | Habit::Flood if len + 4096 < self.most() => {
                Op::Write(len, pattern((self.most() - len).min(LARGEST as usize), seed))
            }
            Habit::Overwrites | Habit::Flood => {
                let (from, amount) = (self.offset(), self.amount());
                Op::Write(from, pattern(amount.min(len - from.min(len - 1)), seed))
            }
            Habit::Sizes | Habit::Small => {
                let (from, amount) = (self.offset(), self.amount());
                match self.random.below(10) {
                    0 | 1 => Op::Resize(from),
                    2 => Op::Punch(from, amount),
                    3 => Op::Zero(from, amount),
                    4 => Op::Resize(if self.random.percent(20) { 0 } else { len / 2 }),
                    _ => Op::Write(from, pattern(amount, seed)),
                }
            }
        }
    }

    fn run(&mut self, op: &Op) -> io::Result<()> {
        let content = outcome(self.versions.newest(), op);
        self.versions.begin(content);
        let file = self.file.as_ref().expect("prepared");
        match op {
            Op::Write(at, data) => file.write_all_at(data, *at as u64)?,
            Op::Resize(len) => file.set_len(*len as u64)?,
            Op::Punch(at, len) => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(file, flags, *at as u64, *len as u64)?;
            }
            Op::Zero(at, len) => {
                fallocate(file, FallocateFlags::ZERO_RANGE, *at as u64, *len as u64)?;
            }
        }
        if self.direct {
            self.versions.acknowledged();
        } else if self.versions.open() >= OPEN_MOST || self.random.percent(25) {
            file.sync_data()?;
            self.versions.acknowledged();
        }
        Ok(())
    }
}

/// What an operation makes of a content.
fn outcome(old: &[u8], op: &Op) -> Vec<u8> {
    let mut new = old.to_vec();
    match op {
        Op::Write(at, data) => {
            new.resize(new.len().max(at + data.len()), 0);
            new[*at..at + data.len()].copy_from_slice(data);
        }
        Op::Resize(len) => new.resize(*len, 0),
        Op::Punch(at, len) => {
            let (from, to) = (new.len().min(*at), new.len().min(at + len));
            new[from..to].fill(0);
        }
        Op::Zero(at, len) => {
            new.resize(new.len().max(at + len), 0);
            new[*at..at + len].fill(0);
        }
    }
    new
}

impl Worker for FileLoad {
    fn name(&self) -> String {
        format!("{:?}{}", self.habit, if self.direct { "" } else { " (cached)" })
    }

    fn prepare(&mut self, dir: &Path) -> io::Result<()> {
        let path = self.path(dir);
        let striped = matches!(self.habit, Habit::Stripe(_));
        if !striped && self.random.percent(40) {
            // A file of this life of the daemon: nothing durable stands behind it.
            let _ = fs::remove_file(&path);
            self.versions = Versions::of(vec![]);
        }
        self.direct = striped || self.random.percent(75);
        let flags = if self.direct { libc::O_DIRECT } else { 0 };
        let mut open = File::options();
        let file =
            open.read(true).write(true).create(true).truncate(false).custom_flags(flags).open(&path)?;
        if striped && file.metadata()?.len() == 0 {
            file.set_len(STRIPED as u64)?;
        }
        if striped && self.versions.newest().is_empty() {
            self.versions = Versions::of(vec![0; STRIPED]);
        }
        if self.random.percent(30) {
            file.sync_all()?;
        }
        self.file = Some(file);
        Ok(())
    }

    fn work(&mut self, dir: &Path, over: &Over) -> (u64, io::Result<()>) {
        let mut done = 0;
        while !over.is_set() {
            let op = self.op();
            if let Err(e) = self.run(&op) {
                self.file = None;
                return (done, Err(e));
            }
            done += 1;
            if self.random.percent(1) && self.direct {
                // The last close is a moment of its own.
                self.file = None;
                let again =
                    File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(self.path(dir));
                match again {
                    Ok(file) => self.file = Some(file),
                    Err(e) => return (done, Err(e)),
                }
            }
        }
        self.file = None;
        (done, Ok(()))
    }

    fn verify(&mut self, dir: &Path) -> Result<(), String> {
        let path = self.path(dir);
        read(&path).and_then(|found| found.ok_or("is gone".to_owned())).and_then(|found| {
            let habit = self.habit;
            let mine = |block| !matches!(habit, Habit::Stripe(which) if block % 2 != which);
            // The kernel may send a page to the daemon while `write` changes it.
            let grain = if self.direct { BLOCK } else { 1 };
            let checked = self.versions.check(&found, grain, mine);
            self.versions = Versions::of(found);
            checked
        })
    }
}
