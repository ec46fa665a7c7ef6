//! Load: many processes on one mount with all they read compared, very many files, a very long file. Descriptors and
//! memory of the daemon are at the end what they were at the start.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};

use crate::files::{FileLoad, Habit};
use crate::harness::{Mount, Vault, can_mount, pattern};
use crate::names::NameLoad;
use crate::random::Random;
use crate::setting;
use crate::worker::{Over, Worker};

/// Processes at work on one mount.
const PROCESSES: u64 = 12;
/// Bytes of memory that a daemon may keep of a load that is over: buffers of threads, pools, the allocator's rest.
const REST: u64 = 96 << 20;
const DIR: &str = "EFS_LOAD_DIR";
const SEED: &str = "EFS_LOAD_SEED";
const SECONDS: &str = "EFS_LOAD_SECONDS";

/// Descriptors and resident bytes of the daemon, after the kernel has let go of what it need not hold.
fn use_of(mount: &Mount<'_>) -> (u64, u64) {
    // Only root can; for others the bounds are wide enough as it is.
    let _ = fs::write("/proc/sys/vm/drop_caches", "2");
    thread::sleep(Duration::from_secs(2));
    let proc = format!("/proc/{}", mount.daemon_id());
    let descriptors = fs::read_dir(format!("{proc}/fd")).map_or(0, Iterator::count);
    (descriptors as u64, resident(mount))
}

fn resident(mount: &Mount<'_>) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", mount.daemon_id())).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn assert_level(before: (u64, u64), after: (u64, u64)) {
    assert!(after.0 <= before.0 + 4, "descriptors: {} before, {} after", before.0, after.0);
    assert!(after.1 <= before.1 + REST, "resident: {} before, {} after", before.1, after.1);
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

fn many_processes(seconds: u64) {
    if !can_mount() {
        return;
    }
    let seconds = setting(SECONDS, seconds);
    let vault = Vault::new();
    let mount = vault.mount();
    fs::write(mount.path("warm"), pattern(3 << 20, 1)).unwrap();
    let before = use_of(&mount);
    let start = |i: u64| {
        let dir = mount.path(&format!("process{i}"));
        fs::create_dir(&dir).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(std::env::current_exe().unwrap());
        command.args(["--exact", "heavy::the_process_that_works", "--ignored", "--nocapture"]);
        command.env(DIR, &dir).env(SEED, i.to_string()).env(SECONDS, seconds.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let processes: Vec<_> = (0..PROCESSES).map(start).collect();
    let mut operations = 0;
    for process in processes {
        let output = process.wait_with_output().unwrap();
        let said = crate::harness::said(&output);
        assert!(output.status.success(), "{said}");
        let told = said.lines().find_map(|l| l.strip_prefix("operations ")).expect("told at the end");
        operations += told.parse::<u64>().unwrap();
    }
    for i in 0..PROCESSES {
        fs::remove_dir_all(mount.path(&format!("process{i}"))).unwrap();
    }
    let after = use_of(&mount);
    eprintln!(
        "load: {PROCESSES} processes, {seconds} s, {operations} operations, all as expected; descriptors {} -> {}, \
         resident {} -> {} MiB",
        before.0,
        after.0,
        mib(before.1),
        mib(after.1)
    );
    assert_level(before, after);
    mount.unmount();
    vault.assert_sound();
}

/// Not a test: `many_processes` starts it.
#[test]
#[ignore = "a part of another test"]
fn the_process_that_works() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let (dir, seed) = (Path::new(&dir), setting(SEED, 1));
    let until = Instant::now() + Duration::from_secs(setting(SECONDS, 1));
    let mut random = Random(seed);
    let habits = [Habit::Overwrites, Habit::Appends, Habit::Sizes, Habit::Small];
    let mut workers: Vec<Box<dyn Worker>> = vec![Box::new(NameLoad::new(random.next()))];
    for habit in habits {
        workers.push(Box::new(FileLoad::new(habit, random.next())));
    }
    let mut operations = 0;
    while Instant::now() < until {
        let worker = &mut workers[random.below(5) as usize];
        worker.prepare(dir).unwrap();
        let over = Over::default();
        let (done, outcome) = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(400));
                over.set();
            });
            worker.work(dir, &over)
        });
        outcome.unwrap_or_else(|e| panic!("{}: {e}", worker.name()));
        worker.verify(dir).unwrap_or_else(|e| panic!("{}: {e}", worker.name()));
        operations += done;
    }
    eprintln!("operations {operations}");
}

/// Files in one directory.
const IN_A_DIRECTORY: u64 = 1000;

fn many_files(count: u64) {
    if !can_mount() {
        return;
    }
    let count = setting("EFS_LOAD_FILES", count);
    let vault = Vault::new();
    let mount = vault.mount();
    let before = use_of(&mount);
    let name = |i: u64| format!("d{}/f{i}", i / IN_A_DIRECTORY);
    let content = |i: u64| pattern((i % 97) as usize, i);
    let mut times = Vec::new();
    let mut most = 0;
    let mut timed = |what: &str, act: &mut dyn FnMut()| {
        let began = Instant::now();
        act();
        most = most.max(resident(&mount));
        times.push(format!("{what} {:.1} s", began.elapsed().as_secs_f64()));
    };
    timed("create", &mut || {
        for i in 0..count {
            if i.is_multiple_of(IN_A_DIRECTORY) {
                fs::create_dir(mount.path(&format!("d{}", i / IN_A_DIRECTORY))).unwrap();
            }
            fs::write(mount.path(&name(i)), content(i)).unwrap();
        }
    });
    timed("list and stat", &mut || {
        let mut seen = 0;
        for dir in fs::read_dir(mount.top()).unwrap() {
            for entry in fs::read_dir(dir.unwrap().path()).unwrap() {
                let entry = entry.unwrap();
                let i: u64 = entry.file_name().to_str().unwrap()[1..].parse().unwrap();
                assert_eq!(entry.metadata().unwrap().size(), i % 97);
                seen += 1;
            }
        }
        assert_eq!(seen, count);
    });
    timed("read a sample", &mut || {
        let mut random = Random(1);
        for _ in 0..2000 {
            let i = random.below(count);
            assert_eq!(fs::read(mount.path(&name(i))).unwrap(), content(i));
        }
    });
    timed("remove", &mut || {
        fs::read_dir(mount.top()).unwrap().for_each(|d| fs::remove_dir_all(d.unwrap().path()).unwrap())
    });
    let after = use_of(&mount);
    eprintln!(
        "load: {count} files: {}; descriptors {} -> {}, resident {} -> {} MiB, at most {} MiB",
        times.join(", "),
        before.0,
        after.0,
        mib(before.1),
        mib(after.1),
        mib(most)
    );
    assert_level(before, after);
    mount.unmount();
    vault.assert_sound();
}

fn huge_file(writes: u64) {
    const TIB: u64 = 1 << 40;
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let file = File::options().read(true).write(true).create_new(true).open(mount.path("huge")).unwrap();
    let began = Instant::now();
    file.set_len(TIB).unwrap();
    let mut random = Random(1);
    // Places that do not meet: each in a slice of its own.
    let slice = TIB / writes;
    let place = |i: u64, random: &mut Random| {
        (i * slice + random.below(slice / 2), 1 + random.below(100_000) as usize)
    };
    let places: Vec<_> = (0..writes).map(|i| place(i, &mut random)).collect();
    for (i, (at, len)) in places.iter().enumerate() {
        file.write_all_at(&pattern(*len, i as u64), *at).unwrap();
    }
    file.sync_all().unwrap();
    let check = |file: &File, places: &[(u64, usize)]| {
        for (i, (at, len)) in places.iter().enumerate() {
            let mut found = vec![0; *len];
            file.read_exact_at(&mut found, *at).unwrap();
            assert!(found == pattern(*len, i as u64), "write {i} at {at}");
            let data = seek(file, SeekFrom::Data(at + *len as u64 / 2)).unwrap();
            assert_eq!(data, at + *len as u64 / 2);
        }
    };
    check(&file, &places);
    drop(file);
    mount.unmount();
    let mount = vault.mount();
    let file = File::options().read(true).write(true).open(mount.path("huge")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), TIB);
    check(&file, &places);
    // The second half loses its data, then its length.
    let half = places.len() / 2;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, flags, half as u64 * slice, TIB - half as u64 * slice).unwrap();
    assert!(seek(&file, SeekFrom::Data(half as u64 * slice)).is_err(), "data in what was punched");
    file.set_len(TIB / 2).unwrap();
    file.sync_all().unwrap();
    check(&file, &places[..half]);
    drop(file);
    mount.unmount();
    let mount = vault.mount();
    let file = File::open(mount.path("huge")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), TIB / 2);
    check(&file, &places[..half]);
    drop(file);
    let room = fs::metadata(vault.lower(&mount.path("huge"))).unwrap().blocks() * 512;
    eprintln!(
        "load: 1 TiB sparse, {writes} writes, {:.1} s, {} MiB in the end",
        began.elapsed().as_secs_f64(),
        mib(room)
    );
    mount.unmount();
    vault.assert_sound();
}

/// Many processes at once read what they wrote, and the daemon keeps nothing of it.
#[test]
fn many_processes_share_a_mount() {
    many_processes(6);
}

/// The same for minutes.
#[test]
#[ignore = "minutes: scripts/crash.sh runs it"]
fn many_processes_in_full() {
    many_processes(180);
}

/// Very many files: made, listed, read, removed.
#[test]
fn a_vault_takes_many_files() {
    many_files(6000);
}

/// A million.
#[test]
#[ignore = "a quarter of an hour: scripts/crash.sh runs it"]
fn a_million_files_in_full() {
    many_files(1_000_000);
}

/// A file of 1 TiB with a little data all over it.
#[test]
fn a_huge_sparse_file_is_a_file_like_others() {
    huge_file(64);
}

/// The same with more in it.
#[test]
#[ignore = "scripts/crash.sh runs it"]
fn a_huge_sparse_file_in_full() {
    huge_file(1000);
}
