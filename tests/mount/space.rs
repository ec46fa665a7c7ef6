//! Space and offsets: holes, allocation, truncation, appending, direct I/O, copying.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, seek};
use rustix::io::Errno;

use crate::harness::{Vault, can_mount, eventually, pattern};

const BLOCK: u64 = 4096;
const GROUP: u64 = 128 * BLOCK;

fn new_file(path: &std::path::Path) -> File {
    File::options().read(true).write(true).create_new(true).open(path).unwrap()
}

/// A file of holes with data at a few places: SEEK_DATA and SEEK_HOLE find exactly them, and the space is not taken.
#[test]
fn holes_are_found_and_take_no_space() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let file = new_file(&mount.path("sparse"));
    let data = pattern(BLOCK as usize, 3);
    // The first, one inside a group, one in a group far away, behind leaders of its own.
    let places = [0, 40 * BLOCK, 3 << 30];
    for at in places {
        file.write_all_at(&data, at).unwrap();
    }
    let len = (3 << 30) + (1 << 20);
    file.set_len(len).unwrap();
    file.sync_all().unwrap();
    let check = |file: &File| {
        let mut at = 0;
        for place in places {
            assert_eq!(seek(file, SeekFrom::Data(at)), Ok(place));
            assert_eq!(seek(file, SeekFrom::Hole(place)), Ok(place + BLOCK));
            at = place + BLOCK;
        }
        assert_eq!(seek(file, SeekFrom::Data(at)), Err(Errno::NXIO));
        assert_eq!(seek(file, SeekFrom::Hole(at)), Ok(at));
        assert_eq!(seek(file, SeekFrom::Hole(len)), Err(Errno::NXIO));
    };
    check(&file);
    assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20, "holes take space");
    drop(file);
    mount.unmount();
    let mount = vault.mount();
    let file = File::open(mount.path("sparse")).unwrap();
    check(&file);
    let mut seen = vec![1; 64 << 10];
    file.read_exact_at(&mut seen, 2 << 30).unwrap();
    assert!(seen.iter().all(|b| *b == 0), "a hole reads as zeros");
    assert_eq!(file.metadata().unwrap().len(), len);
    drop(file);
    mount.unmount();
    vault.assert_sound();
}

/// Punched and zeroed ranges read as zeros, at any offset; the length stays, whole blocks become holes.
#[test]
fn punched_and_zeroed_ranges_read_as_zeros() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let mut expected = pattern(2 << 20, 4);
    // Written, synced and closed: with its writeback cache the kernel asks for the space taken when a file is closed.
    let file = new_file(&mount.path("f"));
    file.write_all_at(&expected, 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let full = fs::metadata(mount.path("f")).unwrap().blocks();
    let file = File::options().read(true).write(true).open(mount.path("f")).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let zero = FallocateFlags::ZERO_RANGE;
    let ranges =
        [(punch, 100, 50), (punch, 4000, 9000), (punch, GROUP - 1, GROUP + 2), (zero, 1_500_001, 77_777)];
    for (flags, at, len) in ranges {
        fallocate(&file, flags, at, len).unwrap();
        expected[at as usize..(at + len) as usize].fill(0);
        assert!(fs::read(mount.path("f")).unwrap() == expected, "{flags:?} of {len} bytes at {at}");
    }
    file.sync_all().unwrap();
    drop(file);
    // Space is freed when the journal has brought the hole to its place.
    let freed = || fs::metadata(mount.path("f")).unwrap().blocks() + GROUP / 512 <= full + 16;
    eventually("the punched group's space is freed", freed);
    let file = File::options().read(true).write(true).open(mount.path("f")).unwrap();
    assert_eq!(seek(&file, SeekFrom::Hole(GROUP)), Ok(GROUP));
    fallocate(&file, zero, (2 << 20) - 10, 1000).unwrap();
    expected[(2 << 20) - 10..].fill(0);
    expected.resize((2 << 20) + 990, 0);
    drop(file);
    mount.unmount();
    let mount = vault.mount();
    assert!(fs::read(mount.path("f")).unwrap() == expected, "after the remount");
    mount.unmount();
    vault.assert_sound();
}

/// `fallocate` grows a file by zeros, unless it is told to keep the size.
#[test]
fn allocation_grows_unless_told_not_to() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let file = new_file(&mount.path("f"));
    file.write_all_at(b"begin", 0).unwrap();
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 5);
    fallocate(&file, FallocateFlags::empty(), 100, 10_000).unwrap();
    let mut expected = b"begin".to_vec();
    expected.resize(10_100, 0);
    assert_eq!(fs::read(mount.path("f")).unwrap(), expected);
    assert_eq!(fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, BLOCK), Err(Errno::OPNOTSUPP));
    drop(file);
    mount.unmount();
    vault.assert_sound();
}

/// Truncating down and up again, across the inline limit, blocks and groups, brings no old bytes back.
#[test]
fn truncation_forgets_what_it_cut() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let sizes = [
        (GROUP * 3 + 17, GROUP + 1),
        (GROUP + 1, GROUP),
        (GROUP, GROUP - 1),
        (GROUP, 4065),
        (10_000, 4064),
        (10_000, 4096),
        (4065, 4064),
        (4064, 1),
        (100_000, 0),
        (1, 0),
    ];
    for (i, (long, short)) in sizes.into_iter().enumerate() {
        let path = mount.path(&format!("f{i}"));
        let mut expected = pattern(long as usize, i as u64);
        fs::write(&path, &expected).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(short).unwrap();
        assert_eq!(file.metadata().unwrap().len(), short);
        file.set_len(long + 5000).unwrap();
        drop(file);
        expected.truncate(short as usize);
        expected.resize(long as usize + 5000, 0);
        assert!(fs::read(&path).unwrap() == expected, "{long} cut to {short}");
    }
    mount.unmount();
    vault.assert_sound();
    let mount = vault.mount();
    for (i, (long, short)) in sizes.into_iter().enumerate() {
        let mut expected = pattern(long as usize, i as u64);
        expected.truncate(short as usize);
        expected.resize(long as usize + 5000, 0);
        assert!(
            fs::read(mount.path(&format!("f{i}"))).unwrap() == expected,
            "{long} cut to {short}, remounted"
        );
    }
    mount.unmount();
}

/// Two descriptors that append to one file lose nothing of each other.
#[test]
fn appends_of_two_descriptors_interleave_whole() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let path = mount.path("log");
    let open = || OpenOptions::new().append(true).create(true).open(&path).unwrap();
    let writers: Vec<_> = (0..2)
        .map(|who| {
            let mut file = open();
            std::thread::spawn(move || {
                for i in 0..500 {
                    file.write_all(format!("{who} {i:05}\n").as_bytes()).unwrap();
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|w| w.join().unwrap());
    let lines = fs::read_to_string(&path).unwrap();
    for who in 0..2 {
        let numbers: Vec<_> = lines.lines().filter_map(|l| l.strip_prefix(&format!("{who} "))).collect();
        assert_eq!(numbers.len(), 500, "writer {who}");
        assert!(numbers.is_sorted());
    }
    mount.unmount();
    vault.assert_sound();
}

/// Direct and buffered descriptors of one file see each other's bytes, aligned or not.
#[test]
fn direct_and_buffered_io_agree() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let path = mount.path("f");
    let mut expected = pattern(1 << 20, 9);
    let direct = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .unwrap();
    direct.write_all_at(&expected, 0).unwrap();
    assert!(fs::read(&path).unwrap() == expected, "buffered read of a direct write");
    let buffered = File::options().read(true).write(true).open(&path).unwrap();
    for (at, len) in [(0, 4096), (8192, 65_536), (5000, 3000), ((1 << 20) - 100, 5000)] {
        let patch = pattern(len, at as u64);
        buffered.write_all_at(&patch, at as u64).unwrap();
        if at + len > expected.len() {
            expected.resize(at + len, 0);
        }
        expected[at..at + len].copy_from_slice(&patch);
        let mut seen = vec![0; expected.len()];
        direct.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen == expected, "direct read of a buffered write of {len} bytes at {at}");
    }
    drop((direct, buffered));
    mount.unmount();
    vault.assert_sound();
}

/// `copy_file_range` between files and within one, at offsets that are no block boundaries.
#[test]
fn ranges_are_copied() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let content = pattern(600_000, 5);
    fs::write(mount.path("from"), &content).unwrap();
    let from = File::open(mount.path("from")).unwrap();
    let to = new_file(&mount.path("to"));
    let (mut read, mut written, mut left) = (1234, 77, 500_000);
    while left > 0 {
        let n = copy_file_range(&from, Some(&mut read), &to, Some(&mut written), left).unwrap();
        assert_ne!(n, 0);
        left -= n;
    }
    let mut expected = vec![0; 77];
    expected.extend(&content[1234..501_234]);
    assert!(fs::read(mount.path("to")).unwrap() == expected, "between two files");
    let (mut read, mut written) = (0, 550_000);
    let n = copy_file_range(&to, Some(&mut read), &to, Some(&mut written), 10_000).unwrap();
    expected.resize(550_000, 0);
    let copy = expected[..n].to_vec();
    expected.extend(copy);
    assert!(fs::read(mount.path("to")).unwrap() == expected, "within one file");
    drop((from, to));
    mount.unmount();
    vault.assert_sound();
}
