//! The n-th call into the lower filesystem fails, for every n of a growing file: the caller hears of it, what was
//! there stays readable, and a later retry succeeds.

#![allow(clippy::unwrap_used)]

#[path = "support/lower.rs"]
mod lower;

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use envelopefs::content::journal::Limits;
use envelopefs::content::{ContentError, File, Journal, Link, LowerPlace};
use envelopefs::crypto::{DataKey, FileKeys, JournalRoot, Secret, VaultKey};
use envelopefs::format::ids::FileId;
use envelopefs::format::journal::{Home, Time};
use envelopefs::vault::{JournalStore, LowerFile};
use lower::{Call, Watched};

/// A lower file in memory that is full at the n-th change.
#[derive(Clone)]
struct FullDisk {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// Changes that still succeed; one fails when it reaches zero.
    left: Arc<AtomicI64>,
    /// What that one fails with.
    errno: i32,
}

impl FullDisk {
    fn new(errno: i32) -> Self {
        Self { bytes: Arc::default(), left: Arc::new(AtomicI64::new(i64::MAX)), errno }
    }

    fn charge(&self) -> io::Result<()> {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 0 {
            return Err(io::Error::from_raw_os_error(self.errno));
        }
        Ok(())
    }
}

impl LowerFile for FullDisk {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.bytes.lock().unwrap();
        let from = bytes.len().min(offset as usize);
        let n = buf.len().min(bytes.len() - from);
        buf[..n].copy_from_slice(&bytes[from..from + n]);
        Ok(n)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut bytes = self.bytes.lock().unwrap();
        let mut at = offset as usize;
        let failed = self.charge();
        for buf in bufs {
            // A full disk takes a part before it says so.
            let take = if failed.is_err() { buf.len() / 8192 * 4096 } else { buf.len() };
            if bytes.len() < at + take {
                bytes.resize(at + take, 0);
            }
            bytes[at..at + take].copy_from_slice(&buf[..take]);
            at += take;
        }
        failed
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.charge()?;
        self.bytes.lock().unwrap().resize(len as usize, 0);
        Ok(())
    }

    fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        self.charge()
    }

    fn punch(&self, _offset: u64, _len: u64) -> io::Result<()> {
        self.charge()
    }

    fn sync(&self, _data_only: bool) -> io::Result<()> {
        self.charge()
    }
}

fn keys() -> Arc<FileKeys> {
    Arc::new(FileKeys::derive(&DataKey(Secret::from_slice(&[3; 32]).unwrap()), &FileId([5; 12])))
}

/// Growth only: what is there is not overwritten in place.
const STEPS: [(u64, usize); 7] = [
    (0, 100),
    (100, 3900),
    (4096, 8192),
    (12_288, 600 * 1024),
    (700 * 1024, 4096),
    (900 * 1024, 300 * 1024),
    (3 << 20, 50_000),
];

fn step(file: &File, i: usize) -> Result<(), ContentError> {
    let (offset, len) = STEPS[i];
    file.write(offset, &vec![i as u8 + 1; len])
}

fn expect(file: &File, done: usize) {
    let mut model = Vec::new();
    for (i, (offset, len)) in STEPS.iter().enumerate().take(done) {
        let end = *offset as usize + len;
        if model.len() < end {
            model.resize(end, 0);
        }
        model[*offset as usize..end].fill(i as u8 + 1);
    }
    let mut all = vec![9; model.len()];
    assert_eq!(file.read(0, &mut all).expect("what was there stays readable"), model.len());
    assert!(all == model, "after {done} steps");
}

/// Runs the steps with the n-th change failing; gives whether it was reached.
fn run(n: i64) -> bool {
    let disk = FullDisk::new(libc::ENOSPC);
    let mut file = File::create(Box::new(disk.clone()), keys()).unwrap();
    disk.left.store(n, Ordering::Relaxed);
    let mut failed = false;
    for i in 0..STEPS.len() {
        if let Err(e) = step(&file, i) {
            assert!(matches!(&e, ContentError::Io(e) if e.raw_os_error() == Some(libc::ENOSPC)), "{e}");
            failed = true;
            expect(&file, i);
            file = File::open(Box::new(disk.clone()), keys()).expect("opens after a full disk");
            expect(&file, i);
            step(&file, i).expect("a later retry succeeds");
        }
        expect(&file, i + 1);
    }
    let file = File::open(Box::new(disk), keys()).unwrap();
    expect(&file, STEPS.len());
    let mut faults = Vec::new();
    file.verify(&mut |f| faults.push(f), &mut |_| true).unwrap();
    assert_eq!(faults, [], "change {n} failed");
    failed
}

#[test]
fn a_full_disk_loses_nothing_that_was_there() {
    let reached = (0..).take_while(|n| run(*n)).count();
    assert!(reached > STEPS.len(), "only {reached} changes: the test does not reach what it means to");
}

/// An I/O error of the lower disk is told as that, not as an attack; what need not be read still works.
#[test]
fn an_io_error_of_the_disk_is_told_as_one() {
    let disk = FullDisk::new(libc::ENOSPC);
    let file = File::create(Box::new(disk.clone()), keys()).unwrap();
    file.write(0, &[7; 20_000]).unwrap();
    // Beyond the first page, which is read when it is opened, the disk cannot be read any more.
    let bad = |call: Call| match call {
        Call::Read(0) => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EIO)),
    };
    let file = File::open(Box::new(Watched(disk, bad)), keys()).unwrap();
    let eio = |outcome: Result<(), ContentError>| {
        assert!(matches!(&outcome, Err(ContentError::Io(e)) if e.raw_os_error() == Some(libc::EIO)));
    };
    eio(file.read(0, &mut [0; 100]).map(|_| ()));
    eio(file.sync(false));
    eio(file.write(3, b"part of a block must be read first"));
    file.write(4096, &[1; 4096]).expect("a whole block need not be read");
    assert_eq!(file.len(), 20_000);
}

/// A disk in memory with room for so many 4 KiB pages.
#[derive(Clone)]
struct SmallDisk {
    file: FullDisk,
    pages: Arc<Mutex<std::collections::BTreeSet<u64>>>,
    room: usize,
}

impl SmallDisk {
    /// Takes the pages of a stretch while there is room; gives the bytes from `offset` on that have a place.
    fn take(&self, offset: u64, len: u64) -> (u64, io::Result<()>) {
        let mut pages = self.pages.lock().unwrap();
        for page in offset / 4096..(offset + len).div_ceil(4096) {
            if !pages.contains(&page) && pages.len() == self.room {
                let placed = (page * 4096).saturating_sub(offset);
                return (placed, Err(io::Error::from_raw_os_error(libc::ENOSPC)));
            }
            pages.insert(page);
        }
        (len, Ok(()))
    }
}

impl LowerFile for SmallDisk {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let all = bufs.iter().flat_map(|b| b.iter().copied()).collect::<Vec<_>>();
        let (placed, done) = self.take(offset, all.len() as u64);
        self.file.write_at(&[IoSlice::new(&all[..placed as usize])], offset)?;
        done
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.pages.lock().unwrap().retain(|page| page * 4096 < len);
        self.file.set_len(len)
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        self.take(offset, len).1
    }

    fn punch(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self, _data_only: bool) -> io::Result<()> {
        Ok(())
    }
}

/// A write that overwrites blocks and then finds the disk full, in the same group or in the next, leaves the
/// overwritten blocks as they were.
#[test]
fn a_disk_that_fills_up_halfway_spoils_no_overwritten_block() {
    const GROUP: usize = 512 * 1024;
    for room in 131..131 + 140 {
        let disk = SmallDisk { file: FullDisk::new(libc::ENOSPC), pages: Arc::default(), room };
        let file = File::create(Box::new(disk.clone()), keys()).unwrap();
        let before = vec![1; GROUP + 4096];
        file.write(0, &before).unwrap();
        let outcome = file.write(8192, &vec![2; 2 * GROUP]);
        let mut after = vec![0; 2 * GROUP + 8192];
        let read = file.read(0, &mut after).expect("every block opens");
        match outcome {
            Ok(()) => assert_eq!(read, after.len()),
            Err(_) => assert!(after[..read] == before, "room for {room} pages"),
        }
        let file = File::open(Box::new(disk), keys()).expect("opens after a full disk");
        file.read(0, &mut after).expect("every block opens again");
    }
}

/// What a crash left behind the end is cut before the first change, also before one that leaves the length alone.
#[test]
fn every_first_change_mends_an_overlong_file() {
    let disk = FullDisk::new(libc::ENOSPC);
    File::create(Box::new(disk.clone()), keys()).unwrap().write(0, &[1; 80_000]).unwrap();
    let whole = disk.len().unwrap();
    disk.set_len(whole + 5000).unwrap();
    let file = File::open(Box::new(disk.clone()), keys()).unwrap();
    file.write(4096, &[2; 4096]).unwrap();
    assert_eq!(disk.len().unwrap(), whole);
}

/// What is done to a file that is there: overwrites, cuts, growth, holes, and the way in and out of inline.
type Change = (&'static str, fn(&File) -> Result<(), ContentError>, fn(&mut Vec<u8>));

const CHANGES: [Change; 12] = [
    ("overwrite", |f| f.write(8192, &[1; 12_288]), |m| m[8192..20_480].fill(1)),
    ("overwrite parts", |f| f.write(520_001, &[2; 9000]), |m| m[520_001..529_001].fill(2)),
    (
        "overwrite and grow",
        |f| f.write(590_000, &[3; 60_000]),
        |m| {
            m.resize(650_000, 0);
            m[590_000..].fill(3);
        },
    ),
    ("punch", |f| f.punch_hole(60_000, 100_000), |m| m[60_000..160_000].fill(0)),
    (
        "zero",
        |f| f.zero_range(640_000, 30_000, false),
        |m| {
            m.resize(670_000, 0);
            m[640_000..].fill(0);
        },
    ),
    ("fill a hole", |f| f.write(90_000, &[4; 10_000]), |m| m[90_000..100_000].fill(4)),
    ("cut", |f| f.set_len(530_000), |m| m.truncate(530_000)),
    ("extend", |f| f.set_len(1_200_000), |m| m.resize(1_200_000, 0)),
    ("reserve", |f| f.allocate(0, 700_000, true), |_| ()),
    ("into inline", |f| f.set_len(1000), |m| m.truncate(1000)),
    (
        "overwrite inline",
        |f| f.write(500, &[5; 700]),
        |m| {
            m.resize(1200, 0);
            m[500..].fill(5);
        },
    ),
    (
        "out of inline",
        |f| f.write(1100, &[6; 9000]),
        |m| {
            m.resize(10_100, 0);
            m[1100..].fill(6);
        },
    ),
];

/// Whether every block of a file that a failed change has left opens and is the one from before, from after, or of
/// zeros where the file was on its way to a greater length; gives what is wrong.
fn is_between(file: &File, old: &[u8], new: &[u8]) -> Result<(), String> {
    let len = file.len() as usize;
    if !(old.len().min(new.len())..=old.len().max(new.len())).contains(&len) {
        return Err(format!("{len} bytes"));
    }
    for at in (0..len).step_by(4096) {
        let mut found = vec![0; 4096.min(len - at)];
        file.read(at as u64, &mut found).map_err(|e| format!("block {}: {e}", at / 4096))?;
        let has = |content: &[u8]| {
            let known = &content[at.min(content.len())..(at + found.len()).min(content.len())];
            found[..known.len()] == *known && found[known.len()..].iter().all(|b| *b == 0)
        };
        if !has(old) && !has(new) {
            return Err(format!("block {} is neither old nor new", at / 4096));
        }
    }
    Ok(())
}

/// The journal's logs, on the same disk.
struct Logs(FullDisk, Mutex<BTreeMap<u32, FullDisk>>);

impl JournalStore for Logs {
    fn list(&self) -> io::Result<Vec<u32>> {
        Ok(self.1.lock().unwrap().keys().copied().collect())
    }

    fn open(&self, number: u32) -> io::Result<Box<dyn LowerFile>> {
        self.0.charge()?;
        let new = || FullDisk { bytes: Arc::default(), ..self.0.clone() };
        Ok(Box::new(self.1.lock().unwrap().entry(number).or_insert_with(new).clone()))
    }

    fn remove(&self, number: u32) -> io::Result<()> {
        self.0.charge()?;
        self.1.lock().unwrap().remove(&number);
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.charge()
    }

    fn home(&self) -> Home {
        Home { boot: [1; 16], mount: 1 }
    }

    fn now(&self) -> Time {
        (1, 0)
    }
}

/// A journal that brings home what it holds only when it is told to.
fn journal(disk: &FullDisk) -> Arc<Journal> {
    let root = JournalRoot::derive(&VaultKey(Secret::from_slice(&[7; 32]).unwrap()));
    let limits = Limits { background: false, ..Limits::default() };
    Journal::start(Box::new(Logs(disk.clone(), Mutex::default())), root, limits).unwrap()
}

/// The changes with the n-th call failing; gives whether it was reached.
fn run_changes(n: i64, errno: i32) -> bool {
    let disk = FullDisk::new(errno);
    let mut model = (0..600_000_u32).map(|i| (i % 251) as u8).collect::<Vec<_>>();
    let file = File::create(Box::new(disk.clone()), keys()).unwrap();
    file.write(0, &model).unwrap();
    drop(file);
    let journal = journal(&disk);
    let link = Link { journal: journal.clone(), id: FileId([5; 12]), place: Box::new(LowerPlace::default) };
    let file = File::open_linked(Box::new(disk.clone()), keys(), link, true).unwrap();
    disk.left.store(n, Ordering::Relaxed);
    let mut failed = false;
    for (turn, (what, change, expected)) in CHANGES.into_iter().enumerate() {
        let mut new = model.clone();
        expected(&mut new);
        if let Err(e) = change(&file) {
            let told = matches!(&e, ContentError::Io(e) if e.raw_os_error() == Some(errno));
            assert!(told, "{what}, call {n}: {e}");
            failed = true;
            is_between(&file, &model, &new).unwrap_or_else(|e| panic!("{what}, call {n}: {e}"));
            change(&file).unwrap_or_else(|e| panic!("{what}, call {n}, the retry: {e}"));
        }
        let mut all = vec![9; new.len() + 1];
        let read = file.read(0, &mut all).unwrap_or_else(|e| panic!("{what}, call {n}: {e}"));
        assert!(all[..read] == new, "{what}, call {n}");
        model = new;
        // Every third change goes home at once, the others together.
        if turn % 3 == 2 && journal.checkpoint().is_err() {
            failed = true;
            assert!(
                file.read(0, &mut all).is_ok(),
                "{what}, call {n}: the checkpoint spoils what it takes home"
            );
            journal.checkpoint().unwrap_or_else(|e| panic!("{what}, call {n}, checkpoint again: {e}"));
        }
    }
    if journal.checkpoint().is_err() {
        failed = true;
        journal.checkpoint().unwrap_or_else(|e| panic!("call {n}, the last checkpoint again: {e}"));
    }
    disk.left.store(i64::MAX, Ordering::Relaxed);
    let file = File::open(Box::new(disk), keys()).unwrap();
    assert_eq!(file.found_overlong(), None, "call {n} failed");
    let mut faults = Vec::new();
    file.verify(&mut |f| faults.push(f), &mut |_| true).unwrap();
    let mut all = vec![9; model.len()];
    file.read(0, &mut all).expect("opens again");
    assert!(all == model, "call {n} failed, opened again");
    failed
}

/// Each call of all kinds of changes fails with each error: the caller hears of it, everything stays old or new, and
/// the change can be made again.
#[test]
fn any_failing_call_leaves_old_or_new() {
    for errno in [libc::EIO, libc::ENOSPC, libc::EDQUOT] {
        let reached = (0..200).filter(|n| run_changes(*n, errno)).count();
        assert!(reached > CHANGES.len(), "only {reached} calls: the test does not reach what it means to");
    }
}

/// A closed file that is opened again while the journal still knows the first opening: what is written then reaches its
/// place as well. The other file keeps the log from being done with.
#[test]
fn a_file_that_was_opened_again_is_brought_home_too() {
    let (good, bad) = (FullDisk::new(libc::EIO), FullDisk::new(libc::EIO));
    let journal = journal(&good);
    let open = |disk: &FullDisk, id: u8| {
        let link = Link {
            journal: Arc::clone(&journal),
            id: FileId([id; 12]),
            place: Box::new(LowerPlace::default),
        };
        File::open_linked(Box::new(disk.clone()), keys(), link, true).unwrap()
    };
    let lower = FullDisk { bytes: Arc::default(), ..good.clone() };
    drop(File::create(Box::new(lower.clone()), keys()).unwrap());
    drop(File::create(Box::new(bad.clone()), keys()).unwrap());
    let (first, other) = (open(&lower, 1), open(&bad, 2));
    other.write(0, b"stays behind").unwrap();
    for content in [b"one", b"two"] {
        first.write(0, content).unwrap();
        bad.left.store(0, Ordering::Relaxed);
        journal.checkpoint().unwrap_err();
    }
    assert!(!first.is_pending(), "its changes are in their places");
    drop(first);
    let again = open(&lower, 1);
    again.write(0, b"three").unwrap();
    journal.checkpoint().unwrap();
    drop(again);
    let mut found = [0; 5];
    let file = File::open(Box::new(lower), keys()).unwrap();
    assert_eq!((file.read(0, &mut found).unwrap(), &found), (5, b"three"));
}

/// A journal that is let go without an end, changes in it: its files go with it, and the keys they hold.
#[test]
fn a_journal_that_is_dropped_lets_go_of_its_files() {
    let disk = FullDisk::new(libc::EIO);
    drop(File::create(Box::new(disk.clone()), keys()).unwrap());
    let journal = journal(&disk);
    let link = Link { journal: journal.clone(), id: FileId([5; 12]), place: Box::new(LowerPlace::default) };
    let file = File::open_linked(Box::new(disk.clone()), keys(), link, true).unwrap();
    file.write(0, b"stays in the journal").unwrap();
    let watched = Arc::downgrade(&file);
    drop(file);
    assert!(watched.upgrade().is_some(), "the journal holds what it has changes of");
    drop(journal);
    assert!(watched.upgrade().is_none(), "nobody holds the file");
}
