//! The n-th call into the lower filesystem fails, for every n of a growing file: the caller hears of it, what was
//! there stays readable, and a later retry succeeds.

#![allow(clippy::unwrap_used)]

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use envelopefs::content::{ContentError, File};
use envelopefs::crypto::{DataKey, FileKeys, Secret};
use envelopefs::format::ids::FileId;
use envelopefs::vault::LowerFile;

/// A lower file in memory that is full at the n-th change.
#[derive(Clone)]
struct FullDisk {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// Changes that still succeed; one fails when it reaches zero.
    left: Arc<AtomicI64>,
}

impl FullDisk {
    fn charge(&self) -> io::Result<()> {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 0 {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
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
    let disk = FullDisk { bytes: Arc::default(), left: Arc::new(AtomicI64::new(i64::MAX)) };
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

/// A lower file whose disk cannot be read any more.
struct BadDisk(FullDisk);

impl LowerFile for BadDisk {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        match offset {
            0 => self.0.read_at(buf, offset),
            _ => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.0.write_at(bufs, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.reserve(offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.punch(offset, len)
    }

    fn sync(&self, _data_only: bool) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EIO))
    }
}

/// An I/O error of the lower disk is told as that, not as an attack; what need not be read still works.
#[test]
fn an_io_error_of_the_disk_is_told_as_one() {
    let disk = FullDisk { bytes: Arc::default(), left: Arc::new(AtomicI64::new(i64::MAX)) };
    let file = File::create(Box::new(disk.clone()), keys()).unwrap();
    file.write(0, &[7; 20_000]).unwrap();
    let file = File::open(Box::new(BadDisk(disk)), keys()).unwrap();
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
        let disk = SmallDisk {
            file: FullDisk { bytes: Arc::default(), left: Arc::new(AtomicI64::new(i64::MAX)) },
            pages: Arc::default(),
            room,
        };
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
    let disk = FullDisk { bytes: Arc::default(), left: Arc::new(AtomicI64::new(i64::MAX)) };
    File::create(Box::new(disk.clone()), keys()).unwrap().write(0, &[1; 80_000]).unwrap();
    let whole = disk.len().unwrap();
    disk.set_len(whole + 5000).unwrap();
    let file = File::open(Box::new(disk.clone()), keys()).unwrap();
    file.write(4096, &[2; 4096]).unwrap();
    assert_eq!(disk.len().unwrap(), whole);
}
