//! What an operation costs below: how many system calls reach the lower filesystem. Each row is the fewest that the
//! promises allow, with what each call is for; one more is noticed, and so is one less.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, StatxFlags};

use crate::faults::{Traced, direct};
use crate::harness::{Vault, can_mount, is_root, pattern};

/// Times that each operation is done; the most frequent count is the one that is compared.
const TIMES: usize = 9;
/// Entries of the directory that is listed.
const ENTRIES: usize = 100;
const MIB: usize = 1 << 20;

type Act<'a> = Box<dyn Fn(usize) + 'a>;

/// A file opened past the page cache.
fn make_direct(path: &Path) -> File {
    let mut options = File::options();
    options.read(true).write(true).create_new(true).custom_flags(libc::O_DIRECT).open(path).unwrap()
}

fn one_mib(file: &File, offset: usize, write: bool) {
    // On a page boundary, so that the kernel can pass it on as one request.
    let mut room = pattern(MIB + 4096, offset as u64);
    let skip = room.as_ptr().align_offset(4096);
    let data = &mut room[skip..skip + MIB];
    if write {
        file.write_all_at(data, offset as u64).unwrap();
    } else {
        file.read_exact_at(data, offset as u64).unwrap();
    }
}

/// Waits until the daemon has been still for a while: releases and forgets come behind an operation.
fn settle(traced: &Traced) {
    let start = Instant::now();
    let mut before = u64::MAX;
    while start.elapsed() < Duration::from_secs(20) {
        thread::sleep(Duration::from_millis(60));
        let now = traced.tracer().seen();
        if now == before {
            return;
        }
        before = now;
    }
}

fn cost(traced: &Traced, act: &Act<'_>) -> String {
    let mut seen: Vec<String> = (0..TIMES)
        .map(|round| {
            settle(traced);
            traced.tracer().disarm();
            act(round);
            settle(traced);
            let calls = traced.tracer().disarm().calls;
            calls.iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
        })
        .collect();
    seen.sort();
    let most = seen.chunk_by(|a, b| a == b).max_by_key(|same| same.len()).unwrap();
    most[0].clone()
}

/// Creates, reads, writes and looks at files on a traced mount, and counts.
#[test]
fn operations_cost_the_fewest_lower_calls() {
    if !can_mount() || !is_root() {
        return;
    }
    let vault = Arc::new(Vault::new());
    let traced = Traced::mount(&vault);
    let top = vault.mnt.as_path();
    let at = |name: &str, round: usize| top.join(format!("{name}{round}"));
    for round in 0..TIMES {
        fs::create_dir(at("many", round)).unwrap();
        (0..ENTRIES).for_each(|i| fs::write(at("many", round).join(i.to_string()), b"x").unwrap());
    }
    let big = make_direct(&top.join("big"));
    (0..=TIMES).for_each(|i| one_mib(&big, i * MIB, true));
    let old = direct(&top.join("old")).unwrap();
    (0..=TIMES).for_each(|i| one_mib(&old, i * MIB, true));
    old.sync_all().unwrap();
    let rows: Vec<(&str, Act<'_>, &str)> = ROWS
        .iter()
        .map(|(name, wanted)| {
            let act: Act<'_> = match *name {
                "create" => Box::new(|i| drop(File::create_new(at("c", i)).unwrap())),
                "create, write 1 KiB" => Box::new(|i| fs::write(at("w", i), pattern(1024, 1)).unwrap()),
                "stat" => Box::new(|i| {
                    let flags = AtFlags::from_bits_retain(libc::AT_STATX_FORCE_SYNC as u32);
                    rustix::fs::statx(CWD, at("c", i), flags, StatxFlags::BASIC_STATS).unwrap();
                }),
                "open, close" => Box::new(|i| drop(File::open(at("w", i)).unwrap())),
                "append 1 MiB to a fresh file" => Box::new(|i| one_mib(&big, (TIMES + 1 + i) * MIB, true)),
                "overwrite 1 MiB of a durable file" => Box::new(|i| one_mib(&old, i * MIB, true)),
                "read 1 MiB" => Box::new(|i| one_mib(&big, i * MIB, false)),
                "list 100 entries" => {
                    Box::new(|i| assert_eq!(fs::read_dir(at("many", i)).unwrap().count(), ENTRIES))
                }
                "mkdir" => Box::new(|i| fs::create_dir(at("d", i)).unwrap()),
                "rename" => Box::new(|i| fs::rename(at("c", i), at("r", i)).unwrap()),
                "unlink" => Box::new(|i| fs::remove_file(at("w", i)).unwrap()),
                other => panic!("no such row: {other}"),
            };
            (*name, act, *wanted)
        })
        .collect();
    let mut wrong = Vec::new();
    for (name, act, wanted) in &rows {
        let found = cost(&traced, act);
        eprintln!("{name}: {found}");
        if !wanted.split(" or ").any(|wanted| found == wanted) {
            wrong.push(format!("{name}: {found}; wanted {wanted}"));
        }
    }
    drop(rows);
    drop((big, old));
    traced.unmount();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Operations and their lower calls. Some come from what the kernel asks before and behind an operation: the attributes
/// of a directory that was changed (statx), the name that is about to be made (statx), the times of a file that was
/// written or renamed (utimensat and statx).
const ROWS: &[(&str, &str)] = &[
    // Nameless file, header, record, number, name, times behind the name.
    ("create", "fsetxattr 1, linkat 1, openat 1, pwritev 1, statx 4"),
    // The kernel's clock for times ticks every few milliseconds. A write in a later tick than the create leaves the kernel
    // with a newer time than the create answered, which it sets at the close (utimensat and statx); in the same tick, not.
    (
        "create, write 1 KiB",
        "fsetxattr 1, linkat 1, openat 1, pwritev 2, statx 4 \
         or fsetxattr 1, linkat 1, openat 1, pwritev 2, statx 5, utimensat 1",
    ),
    ("stat", "statx 1"),
    // Found and checked without being opened, header, opened, length, first page.
    ("open, close", "getxattr 1, open 1, openat 1, pread64 1, statx 2"),
    // Blocks of two groups, their pages, last the page with the length: a kill between any two leaves a whole file.
    ("append 1 MiB to a fresh file", "pwritev 5"),
    ("overwrite 1 MiB of a durable file", "own pwritev 1"),
    // In parts of 128 KiB, each fetched by the thread that opens it.
    ("read 1 MiB", "pread64 8"),
    ("list 100 entries", "getdents64 3, lseek 1, openat 1, statx 101"),
    ("mkdir", "mkdirat 1, openat 1, renameat2 1, setxattr 1, statx 4"),
    ("rename", "openat 2, renameat2 1, statx 8, utimensat 1"),
    // The kernel may look at the directory once more, or not.
    ("unlink", "openat 1, statx 3, unlinkat 1, utimensat 1 or openat 1, statx 4, unlinkat 1, utimensat 1"),
];
