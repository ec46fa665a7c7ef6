//! Power cuts: a disk of our own records every write and flush below a real lower filesystem and a real mount; a
//! workload notes what was acknowledged when; then images are made of what the disk may hold after a cut at many
//! points, with the writes behind the last flush kept, dropped, out of order, or torn at 512 bytes. Each is mounted
//! again, the lower filesystem first, and read in full. Nothing that was acknowledged may be missing, and nothing at all
//! may give an error. One in four is cut once more while it recovers.
//!
//! Images of interest are looked over a second time, with `check --repair` before the mount, which must end with 0: of
//! every eight points one at which the journal had changes to bring in, one at which temporary names were left or
//! something came to `lost+found`, and all at which anything was wrong.
//!
//! The tests that run with the others take a few dozen points. The full form, which takes minutes:
//!
//! ```text
//! cargo test --test crash -- --ignored --exact full --nocapture
//! ```
//!
//! | variable | |
//! |---|---|
//! | `EFS_CRASH_POINTS` | cut points, shared out to all runs: 2000 |
//! | `EFS_CRASH_SEED` | seed of the first run: 1. Choices follow it; what the kernel writes when does not |
//! | `EFS_CRASH_TARGET` | `envelopefs`, `gocryptfs`, `plain`, or `unordered`: envelopefs without its barriers (debug build) |
//! | `EFS_CRASH_LOWER` | `ext4`, `xfs`: both |
//! | `EFS_CRASH_WORKLOADS` | of `load::NAMES`, by spaces: all |
//! | `EFS_CRASH_SECONDS` | length of each workload: 10 |
//! | `EFS_CRASH_JOBS` | runs at the same time: as many as cores |
//! | `EFS_CRASH_KEEP` | a directory for images on which something went wrong: `disk.img`, `keys`, `what.txt` |
//!
//! Each run prints one line; `repaired` counts the images that were repaired, `lost` blocks, files, names and
//! transactions that were acknowledged, `eio` blocks and files that give an error, `dirs` directories that are gone or do
//! not list, `other` all else that is wrong (no mount, a repair or `check` that finds a fault), `bad` the points at which
//! anything was:
//!
//! ```text
//! CRASH envelopefs ext4 overwrites points 120 repaired 17 lost 0 eio 0 dirs 0 other 0 bad 0
//! ```
//!
//! Points at which the lower filesystem itself does not mount any more (a torn superblock) are not counted.
//! With `envelopefs` the full form fails unless all from `lost` on are zero.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a skipped test says so; runs print their counts"
)]

mod content;
mod cut;
mod disk;
mod files;
mod git;
mod keys;
mod load;
mod model;
mod random;
mod run;
mod sqlite;
mod target;
mod work;

use std::path::Path;
use std::str::FromStr;
use std::sync::Mutex;
use std::thread;

use run::{Outcome, Spec, run_apart};
use target::{Lower, Target};

/// Whether cuts can be tried here; says so when not.
fn can_cut() -> bool {
    let on_path = |name: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
    };
    let missing = if !rustix::process::geteuid().is_root() {
        Some("root")
    } else if !Path::new("/dev/fuse").exists() || !Path::new("/dev/loop-control").exists() {
        Some("/dev/fuse and loop devices")
    } else {
        ["mkfs.ext4", "mkfs.xfs", "sqlite3", "git", "unshare", "setpriv"].into_iter().find(|p| !on_path(p))
    };
    if let Some(missing) = missing {
        eprintln!("skipped: needs {missing}");
    }
    missing.is_none()
}

/// A short run.
fn short(target: Target, lower: Lower, workload: &str) -> Option<Outcome> {
    let spec = Spec { target, lower, workload: workload.to_owned(), points: 30, seed: 7, millis: 2500 };
    can_cut().then(|| run_apart(&spec))
}

fn assert_nothing_lost(lower: Lower, workload: &str) {
    if let Some(outcome) = short(Target::Envelopefs, lower, workload) {
        assert!(outcome.is_clean(), "{outcome:?}");
        // The KMS alone leaves the vault nothing to mend.
        assert!(outcome.repaired > 0 || workload == "keys", "{outcome:?}");
    }
}

/// Works off what another test of this program asked for.
#[test]
#[ignore = "started by the others"]
fn inside() {
    if !run::inside() {
        eprintln!("skipped: nobody asked");
    }
}

/// Blocks of synced files are overwritten.
#[test]
fn overwrites() {
    assert_nothing_lost(Lower::Ext4, "overwrites");
}

/// The same on XFS, which writes data and sizes in another order.
#[test]
fn overwrites_on_xfs() {
    assert_nothing_lost(Lower::Xfs, "overwrites");
}

/// Files grow at their end.
#[test]
fn appends() {
    assert_nothing_lost(Lower::Ext4, "appends");
}

/// Files are replaced by renaming, as editors do.
#[test]
fn editors() {
    assert_nothing_lost(Lower::Ext4, "editors");
}

/// Files shrink, grow by holes, and get holes punched.
#[test]
fn space() {
    assert_nothing_lost(Lower::Ext4, "space");
}

/// Directories are made and renamed, with files in them that change.
#[test]
fn trees() {
    assert_nothing_lost(Lower::Ext4, "trees");
}

/// Files that nobody synced give no error.
#[test]
fn fresh() {
    assert_nothing_lost(Lower::Ext4, "fresh");
}

/// The same on XFS.
#[test]
fn fresh_on_xfs() {
    assert_nothing_lost(Lower::Xfs, "fresh");
}

/// Committed transactions of SQLite, with each of its journals.
#[test]
fn sqlite() {
    assert_nothing_lost(Lower::Ext4, "sqlite");
}

/// Commits of git.
#[test]
fn git() {
    assert_nothing_lost(Lower::Ext4, "git");
}

/// The KMS store on the same disk.
#[test]
fn keys() {
    assert_nothing_lost(Lower::Ext4, "keys");
}

/// On the lower filesystem itself nothing goes wrong: what is found elsewhere was not made up here.
#[test]
fn a_plain_filesystem_passes() {
    for workload in ["space", "editors", "trees", "sqlite"] {
        if let Some(outcome) = short(Target::Plain, Lower::Ext4, workload) {
            assert!(outcome.is_clean(), "{workload}: {outcome:?}");
        }
    }
}

/// With the barriers left out, a debug build loses data, and it is seen.
#[test]
#[cfg(debug_assertions)]
fn without_its_order_data_is_lost() {
    if let Some(outcome) = short(Target::Unordered, Lower::Ext4, "overwrites") {
        assert!(outcome.lost > 0 && outcome.bad > 0, "{outcome:?}");
    }
}

/// A setting from the environment.
fn setting<T: FromStr>(name: &str, default: T) -> T {
    let text = std::env::var(name);
    text.map_or(default, |t| t.parse().unwrap_or_else(|_| panic!("{name}={t} means nothing")))
}

/// The full form.
#[test]
#[ignore = "takes minutes"]
fn full() {
    if !can_cut() {
        return;
    }
    let target = setting("EFS_CRASH_TARGET", "envelopefs".to_owned());
    let target = Target::named(&target).unwrap_or_else(|| panic!("no target {target}"));
    let lowers = setting("EFS_CRASH_LOWER", "ext4 xfs".to_owned());
    let workloads = setting("EFS_CRASH_WORKLOADS", load::NAMES.join(" "));
    let workloads: Vec<_> = workloads.split(' ').filter(|workload| target.can(workload)).collect();
    let runs: Vec<_> = lowers.split(' ').flat_map(|l| workloads.iter().map(move |w| (l, *w))).collect();
    let points = setting("EFS_CRASH_POINTS", 2000_usize).div_ceil(runs.len());
    let seed = setting("EFS_CRASH_SEED", 1_u64);
    let specs = runs.iter().enumerate().map(|(i, (lower, workload))| Spec {
        target,
        lower: Lower::named(lower).unwrap_or_else(|| panic!("no lower filesystem {lower}")),
        workload: (*workload).to_owned(),
        points,
        seed: seed + i as u64,
        millis: 1000 * setting("EFS_CRASH_SECONDS", 10),
    });
    let todo = Mutex::new(specs);
    let bad = Mutex::new(0);
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    thread::scope(|scope| {
        for _ in 0..setting("EFS_CRASH_JOBS", cores) {
            scope.spawn(|| {
                loop {
                    let Some(spec) = todo.lock().unwrap().next() else { break };
                    let outcome = run_apart(&spec);
                    println!("{}", outcome.line(&spec));
                    *bad.lock().unwrap() += outcome.bad;
                }
            });
        }
    });
    assert!(target != Target::Envelopefs || *bad.lock().unwrap() == 0, "at least one point is bad");
}
