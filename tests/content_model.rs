//! Random operations on an encrypted file against a plain byte vector, with reopening, without a mount.

#![allow(clippy::unwrap_used)]

#[path = "support/lower.rs"]
mod lower;

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use envelopefs::content::File;
use envelopefs::crypto::{DataKey, FileKeys, Secret};
use envelopefs::format::ids::FileId;
use envelopefs::format::layout::disk_len;
use envelopefs::vault::LowerFile;
use lower::Watched;
use proptest::prelude::*;

/// A lower file in memory, shared between openings.
#[derive(Clone, Default)]
struct MemFile(Arc<Mutex<Vec<u8>>>);

impl LowerFile for MemFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.0.lock().unwrap();
        let from = bytes.len().min(offset as usize);
        let n = buf.len().min(bytes.len() - from);
        buf[..n].copy_from_slice(&bytes[from..from + n]);
        Ok(n)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut bytes = self.0.lock().unwrap();
        let mut at = offset as usize;
        for buf in bufs {
            if bytes.len() < at + buf.len() {
                bytes.resize(at + buf.len(), 0);
            }
            bytes[at..at + buf.len()].copy_from_slice(buf);
            at += buf.len();
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().resize(len as usize, 0);
        Ok(())
    }

    fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut bytes = self.0.lock().unwrap();
        let end = bytes.len().min((offset + len) as usize);
        if (offset as usize) < end {
            bytes[offset as usize..end].fill(0);
        }
        Ok(())
    }

    fn sync(&self, _data_only: bool) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, usize, u8),
    SetLen(u64),
    Punch(u64, u64),
    Zero(u64, u64, bool),
    Allocate(u64, u64, bool),
    Read(u64, usize),
    Reopen,
}

/// Offsets around every boundary of the format, up to a little over two groups.
fn offset() -> impl Strategy<Value = u64> {
    let near = |at: u64| (at.saturating_sub(3)..at + 4).boxed();
    prop_oneof![
        0..5000u64,
        0..1_200_000u64,
        (0..290u64).prop_map(|block| block * 4096),
        near(4064),
        near(4096),
        near(8192),
        near(524_288),
        near(1_048_576),
    ]
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![1..100u64, 1..9000u64, Just(4096u64), Just(131_072u64), 1..600_000u64]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (offset(), length(), any::<u8>()).prop_map(|(o, n, b)| Op::Write(o, n as usize, b)),
        2 => offset().prop_map(Op::SetLen),
        1 => (offset(), length()).prop_map(|(o, n)| Op::Punch(o, n)),
        1 => (offset(), length(), any::<bool>()).prop_map(|(o, n, k)| Op::Zero(o, n, k)),
        1 => (offset(), length(), any::<bool>()).prop_map(|(o, n, k)| Op::Allocate(o, n, k)),
        2 => (offset(), length()).prop_map(|(o, n)| Op::Read(o, n as usize)),
        2 => Just(Op::Reopen),
    ]
}

fn keys() -> Arc<FileKeys> {
    Arc::new(FileKeys::derive(&DataKey(Secret::from_slice(&[3; 32]).unwrap()), &FileId([5; 12])))
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed).wrapping_add((i >> 8) as u8) | 1).collect()
}

fn grow(model: &mut Vec<u8>, len: usize) {
    if model.len() < len {
        model.resize(len, 0);
    }
}

fn apply(op: &Op, file: &mut File, disk: &MemFile, model: &mut Vec<u8>) {
    match *op {
        Op::Write(offset, len, seed) => {
            let data = pattern(len, seed);
            file.write(offset, &data).unwrap();
            grow(model, offset as usize + len);
            model[offset as usize..offset as usize + len].copy_from_slice(&data);
        }
        Op::SetLen(len) => {
            file.set_len(len).unwrap();
            model.resize(len as usize, 0);
        }
        Op::Punch(offset, len) => {
            file.punch_hole(offset, len).unwrap();
            let end = model.len().min((offset + len) as usize);
            if (offset as usize) < end {
                model[offset as usize..end].fill(0);
            }
        }
        Op::Zero(offset, len, keep) => {
            file.zero_range(offset, len, keep).unwrap();
            if !keep {
                grow(model, (offset + len) as usize);
            }
            let end = model.len().min((offset + len) as usize);
            if (offset as usize) < end {
                model[offset as usize..end].fill(0);
            }
        }
        Op::Allocate(offset, len, keep) => {
            file.allocate(offset, len, keep).unwrap();
            if !keep {
                grow(model, (offset + len) as usize);
            }
        }
        Op::Read(offset, len) => {
            let mut buf = vec![0xAA; len];
            let n = file.read(offset, &mut buf).unwrap();
            let from = model.len().min(offset as usize);
            assert!(buf[..n] == model[from..model.len().min(from + len)], "read at {offset} of {len}");
        }
        Op::Reopen => {
            *file = File::open(Box::new(disk.clone()), keys()).unwrap();
            check_whole(file, model);
        }
    }
    assert_eq!(file.len(), model.len() as u64);
    assert_eq!(disk.len().unwrap(), disk_len(model.len() as u64), "stat of the lower file tells the length");
}

fn check_whole(file: &File, model: &[u8]) {
    let mut all = vec![0x55; model.len() + 10];
    assert_eq!(file.read(0, &mut all).unwrap(), model.len());
    assert!(all[..model.len()] == *model, "content differs");
    let mut faults = Vec::new();
    file.verify(&mut |f| faults.push(f), &mut |_| true).unwrap();
    assert_eq!(faults, []);
    check_holes(file, model);
}

/// What is reported as a hole reads as zeros, data and holes alternate and cover the file.
fn check_holes(file: &File, model: &[u8]) {
    let mut at = 0;
    while at < model.len() as u64 {
        let hole = file.seek_hole(at).unwrap().unwrap();
        let data = file.seek_data(at).unwrap();
        assert!(hole == at || data == Some(at));
        if hole == at {
            let end = data.unwrap_or(model.len() as u64);
            assert!(model[at as usize..end as usize].iter().all(|&b| b == 0));
            at = end;
        } else {
            at = hole;
        }
    }
    assert_eq!(file.seek_hole(model.len() as u64).unwrap(), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_file_is_a_byte_array(ops in prop::collection::vec(op(), 1..40)) {
        let disk = MemFile::default();
        let mut file = File::create(Box::new(disk.clone()), keys()).unwrap();
        let mut model = Vec::new();
        for op in &ops {
            apply(op, &mut file, &disk, &mut model);
        }
        apply(&Op::Reopen, &mut file, &disk, &mut model);
    }
}

/// Writers of disjoint parts, appenders and readers at once: every byte is what its writer wrote.
#[test]
fn parallel_writers_do_not_disturb_each_other() {
    let disk = MemFile::default();
    let file = File::create(Box::new(disk.clone()), keys()).unwrap();
    const PART: usize = 192 * 1024;
    const PARTS: usize = 24;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let file = &file;
            scope.spawn(move || {
                for round in 0..3u8 {
                    for part in (0..PARTS).filter(|p| p % 4 == thread) {
                        file.write((part * PART) as u64, &pattern(PART, part as u8 + round)).unwrap();
                    }
                }
            });
        }
        scope.spawn(|| {
            let mut buf = vec![0; PART];
            for i in 0..200u64 {
                let part = i as usize % PARTS;
                let n = file.read((part * PART) as u64, &mut buf).expect("never a torn block");
                let known = |b: &[u8]| b.chunks(4096).all(|c| c.iter().all(|&x| x == 0) || c[0] & 1 == 1);
                assert!(known(&buf[..n]));
            }
        });
    });
    let model: Vec<u8> = (0..PARTS).flat_map(|p| pattern(PART, p as u8 + 2)).collect();
    drop(file);
    check_whole(&File::open(Box::new(disk), keys()).unwrap(), &model);
}

fn disk_file() -> (tempfile::NamedTempFile, envelopefs::vault::DiskFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let disk = envelopefs::vault::DiskFile(file.reopen().unwrap());
    (file, disk)
}

/// Leaders every GiB: data on both sides of the boundaries, a sparse file of a TiB, and what a truncate cuts stays cut.
#[test]
fn leaders_hold_across_gibibytes() {
    const GIB: u64 = 1 << 30;
    let (temp, disk) = disk_file();
    let file = File::create(Box::new(disk), keys()).unwrap();
    let places = [0, GIB - 5000, GIB - 1, GIB, 3 * GIB - 4096, 1023 * GIB + 123_457];
    for (i, place) in places.iter().enumerate() {
        file.write(*place, &pattern(9000, i as u8)).unwrap();
    }
    file.set_len(1024 * GIB).unwrap();
    let reopen = || {
        let disk = envelopefs::vault::DiskFile(temp.reopen().unwrap());
        File::open(Box::new(disk), keys()).unwrap()
    };
    drop(file);
    let file = reopen();
    assert_eq!(file.len(), 1024 * GIB);
    let read = |file: &File, at: u64| {
        let mut buf = vec![0; 9000];
        file.read(at, &mut buf).unwrap();
        buf
    };
    assert_eq!(read(&file, 1023 * GIB + 123_457), pattern(9000, 5));
    assert_eq!(read(&file, 3 * GIB - 4096), pattern(9000, 4));
    assert_eq!(read(&file, GIB), pattern(9000, 3));
    assert_eq!(file.seek_data(4 * GIB).unwrap(), Some((1023 * GIB + 123_457) / 4096 * 4096));
    file.set_len(GIB + 100).unwrap();
    file.set_len(5 * GIB).unwrap();
    assert_eq!(read(&file, GIB)[..100], pattern(9000, 3)[..100]);
    assert!(read(&file, GIB)[100..].iter().all(|&b| b == 0));
    assert!(read(&file, 3 * GIB - 4096).iter().all(|&b| b == 0));
    drop(file);
    let mut faults = Vec::new();
    reopen().verify(&mut |f| faults.push(f), &mut |_| true).unwrap();
    assert_eq!(faults, []);
    assert!(reopen().write(16 << 40, b"x").is_err(), "beyond 16 TiB");
}

/// A search for data that looks at many map pages keeps no change off: a write that takes the file for itself gets in.
#[test]
fn a_long_search_lets_changes_in() {
    const GIB: u64 = 1 << 30;
    const SPANS: usize = 200;
    let (temp, disk) = disk_file();
    let file = File::create(Box::new(disk), keys()).unwrap();
    file.write(SPANS as u64 * GIB - 4096, &pattern(4096, 1)).unwrap();
    drop(file);
    let reads = Arc::new(AtomicUsize::new(0));
    let slow = {
        let reads = Arc::clone(&reads);
        move |_| {
            reads.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(10));
            Ok(())
        }
    };
    let disk = Watched(envelopefs::vault::DiskFile(temp.reopen().unwrap()), slow);
    let file = File::open(Box::new(disk), keys()).unwrap();
    std::thread::scope(|scope| {
        let search = scope.spawn(|| file.seek_data(0).unwrap());
        while reads.load(Ordering::Relaxed) < 20 {
            std::thread::yield_now();
        }
        file.write(5, b"in between").unwrap();
        // It had the file while the search went on.
        assert!(reads.load(Ordering::Relaxed) < SPANS / 2);
        assert_eq!(search.join().unwrap(), Some(SPANS as u64 * GIB - 4096));
    });
}
