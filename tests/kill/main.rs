//! What a mount survives: the death of its daemon at any instant, failing system calls, load.
//!
//! The tests here run in a short form. `scripts/crash.sh` runs the full forms, which are `#[ignore]`d, and counts.
//!
//! | variable | default | |
//! |---|---|---|
//! | `EFS_KILL_POINTS` | 12, full 500 | times the daemon is killed |
//! | `EFS_KILL_SEED` | 1 | of everything random but the machine's own timing |
//! | `EFS_KILL_OPTIONS` | | mount options of the vaults, as for `-o` |
//! | `EFS_KILL_KEEP` | | directory that gets a copy of each vault after a kill that lost something |
//! | `EFS_FAULT_EVERY` | 9, full 1 | every so-manieth system call fails once |
//! | `EFS_FAULT_FROM`, `EFS_FAULT_TO` | all | only these system calls |
//! | `EFS_FAULT_TELL` | 0 | 1: tells each failure and what the caller got |
//! | `EFS_LOAD_SECONDS` | 6, full 180 | load of many processes |
//! | `EFS_LOAD_FILES` | 6,000, full 1,000,000 | files in one vault |
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::print_stderr, reason = "counts and skipped tests are told")]

#[path = "../mount/harness.rs"]
#[allow(dead_code, reason = "shared with the other mount tests")]
mod harness;

#[cfg(target_arch = "x86_64")]
mod calls;
#[cfg(target_arch = "x86_64")]
mod ends;
#[cfg(target_arch = "x86_64")]
mod faults;
mod files;
mod full;
mod heavy;
mod kills;
#[cfg(target_arch = "x86_64")]
mod looks;
mod mapped;
mod names;
mod random;
mod sqlite;
#[cfg(target_arch = "x86_64")]
mod tracer;
#[cfg(target_arch = "x86_64")]
mod tree;
mod versions;
mod worker;

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{name}={v}")))
}
