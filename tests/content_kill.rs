//! A process that changes a file in place is killed before the n-th call into the lower filesystem, for every n: what
//! the file was before it grew stays, and what it grew by later reads as zeros where nothing was written.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use envelopefs::content::journal::Limits;
use envelopefs::content::{File, Journal, Link, LowerPlace};
use envelopefs::crypto::{DataKey, FileKeys, JournalRoot, Secret, VaultKey};
use envelopefs::format::ids::FileId;
use envelopefs::format::journal::{Home, Time};
use envelopefs::vault::{JournalStore, LowerFile};

/// Plaintext of a group: 128 blocks.
const GROUP: u64 = 512 << 10;
/// Groups of a leader's span.
const SPAN: u64 = 2048;

/// Pages and length.
type Content = (BTreeMap<u64, Vec<u8>>, u64);

/// A lower file in memory, sparse. After so many changes the process is dead: nothing changes any more.
#[derive(Clone)]
struct Disk {
    pages: Arc<Mutex<Content>>,
    left: Arc<AtomicI64>,
}

const PAGE: u64 = 4096;

impl Disk {
    fn new() -> Self {
        Self { pages: Arc::default(), left: Arc::new(AtomicI64::new(i64::MAX)) }
    }

    fn lives(&self) -> io::Result<()> {
        if self.left.fetch_sub(1, Ordering::Relaxed) > 0 { Ok(()) } else { Err(io::Error::other("dead")) }
    }

    fn is_dead(&self) -> bool {
        self.left.load(Ordering::Relaxed) <= 0
    }
}

impl LowerFile for Disk {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let disk = self.pages.lock().unwrap();
        let n = (buf.len() as u64).min(disk.1.saturating_sub(offset)) as usize;
        for (i, byte) in buf[..n].iter_mut().enumerate() {
            let at = offset + i as u64;
            *byte = disk.0.get(&(at / PAGE)).map_or(0, |page| page[(at % PAGE) as usize]);
        }
        Ok(n)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.lives()?;
        let mut disk = self.pages.lock().unwrap();
        let mut at = offset;
        for byte in bufs.iter().flat_map(|buf| buf.iter()) {
            disk.0.entry(at / PAGE).or_insert_with(|| vec![0; PAGE as usize])[(at % PAGE) as usize] = *byte;
            at += 1;
        }
        disk.1 = disk.1.max(at);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.pages.lock().unwrap().1)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.lives()?;
        let mut disk = self.pages.lock().unwrap();
        disk.0.split_off(&len.div_ceil(PAGE));
        if let Some(page) = disk.0.get_mut(&(len / PAGE)) {
            page[(len % PAGE) as usize..].fill(0);
        }
        disk.1 = len;
        Ok(())
    }

    fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        self.lives()
    }

    fn punch(&self, _offset: u64, _len: u64) -> io::Result<()> {
        self.lives()
    }

    fn sync(&self, _data_only: bool) -> io::Result<()> {
        self.lives()
    }
}

struct Logs;

impl JournalStore for Logs {
    fn list(&self) -> io::Result<Vec<u32>> {
        Ok(Vec::new())
    }

    fn open(&self, _number: u32) -> io::Result<Box<dyn LowerFile>> {
        Ok(Box::new(Disk::new()))
    }

    fn remove(&self, _number: u32) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }

    fn home(&self) -> Home {
        Home { boot: [1; 16], mount: 1 }
    }

    fn now(&self) -> Time {
        (1, 0)
    }
}

fn keys() -> Arc<FileKeys> {
    Arc::new(FileKeys::derive(&DataKey(Secret::from_slice(&[3; 32]).unwrap()), &FileId([5; 12])))
}

/// What the dead process was at, from a length on.
type Growth = fn(&File, u64) -> bool;

fn append(file: &File, len: u64) -> bool {
    file.write(len, &vec![7; 3 * GROUP as usize / 2]).is_ok()
}

fn cut_and_append(file: &File, len: u64) -> bool {
    file.set_len(len - GROUP).is_ok() && append(file, len - GROUP)
}

/// Opens the file of a dead process, in place or through a journal, and lets it grow by a hole.
fn grow(disk: &Disk, journaled: bool, to: u64, write: bool) -> u64 {
    let root = JournalRoot::derive(&VaultKey(Secret::from_slice(&[7; 32]).unwrap()));
    let limits = Limits { background: false, ..Limits::default() };
    let journal = Journal::start(Box::new(Logs), root, limits).unwrap();
    let link = Link { journal: journal.clone(), id: FileId([5; 12]), place: Box::new(LowerPlace::default) };
    let lower = Box::new(disk.clone());
    let file = match journaled {
        true => File::open_linked(lower, keys(), link, true).unwrap(),
        false => Arc::new(File::open(lower, keys()).unwrap()),
    };
    let len = file.len();
    if write {
        file.write(to - 1, &[9]).unwrap();
    } else {
        file.set_len(to).unwrap();
    }
    expect(&file, len, to - u64::from(write));
    journal.checkpoint().unwrap();
    len
}

/// Nothing but zeros in `len..to`.
fn expect(file: &File, len: u64, to: u64) {
    let mut found = vec![1; (to - len) as usize];
    assert_eq!(file.read(len, &mut found).unwrap(), found.len());
    let first = found.iter().position(|b| *b != 0);
    assert_eq!(first, None, "old bytes in a hole from {len} on");
}

/// Dies before the n-th call; whether it was reached.
fn run(start: u64, growth: Growth, n: i64) -> bool {
    let whole = Disk::new();
    let file = File::create(Box::new(whole.clone()), keys()).unwrap();
    file.set_len(start - 4096).unwrap();
    file.write(start - 4096, &[5; 4096]).unwrap();
    let span = start / GROUP;
    drop(file);
    let file = File::open(Box::new(whole.clone()), keys()).unwrap();
    whole.left.store(n, Ordering::Relaxed);
    growth(&file, start);
    drop(file);
    let died = whole.is_dead();
    for (journaled, write) in [(false, false), (false, true), (true, false), (true, true)] {
        let pages = whole.pages.lock().unwrap().clone();
        let disk = Disk { pages: Arc::new(Mutex::new(pages)), left: Arc::new(AtomicI64::new(i64::MAX)) };
        let to = (span + 4) * GROUP;
        let len = grow(&disk, journaled, to, write);
        let file = File::open(Box::new(disk), keys()).unwrap();
        assert_eq!(file.len(), to);
        expect(&file, len, to - u64::from(write));
    }
    died
}

fn for_every_call(start: u64, growth: Growth) {
    let last = (0..1000).find(|n| !run(start, growth, *n)).unwrap();
    assert!(last > 3, "{last} calls");
}

/// In the middle of a group.
#[test]
fn a_hole_holds_nothing_that_a_killed_append_left() {
    for_every_call(2 * GROUP + 10 * 4096, append);
}

/// At the end of a group.
#[test]
fn a_hole_behind_whole_groups_holds_nothing_that_a_killed_append_left() {
    for_every_call(3 * GROUP, append);
}

/// Where another leader than the first has the groups.
#[test]
fn a_hole_behind_the_first_span_holds_nothing_that_a_killed_append_left() {
    for_every_call((SPAN + 1) * GROUP + 4096, append);
}

/// After the file was made shorter, and grew again.
#[test]
fn a_hole_holds_nothing_that_was_cut_off() {
    for_every_call(3 * GROUP + 20 * 4096, cut_and_append);
}
