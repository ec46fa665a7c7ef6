//! What a run does unless it is told otherwise: enough to judge by, within twenty minutes.

use std::time::Duration;

use super::job::Job;
use super::lower::LowerKind;
use super::verdicts;

/// In memory the filesystem's own cost shows; every kind of access is measured.
const TMPFS: &str = "write-1m read-1m-cold read-1m randwrite-4k randread-4k-cold randread-4k write-4k read-4k-cold \
    write-64k read-64k-cold randwrite-64k randread-64k-cold write-1m-j4 read-1m-j4-cold randwrite-4k-j4 \
    randread-4k-j4-cold write-1m-direct read-1m-direct randwrite-4k-direct randread-4k-direct \
    tree-extract tree-walk tree-read tree-remove";
/// On a disk its I/O shows: what is cold, and what is synced.
const EXT4: &str = "write-1m read-1m-cold randwrite-4k-cold randread-4k-cold randwrite-4k-fsync";
/// Of a user's own mount.
const OWN: &str = "write-1m read-1m-cold read-1m randwrite-4k randwrite-4k-fsync randread-4k-cold tree-extract tree-walk \
    tree-read tree-remove";

/// Jobs that no bound is set for are repeated this often at most, unless they were asked for by name.
pub(super) const EXTRA_REPETITIONS: u32 = 3;
/// Another filesystem is not made to repeat what took it this long in all.
pub(super) const BUDGET: Duration = Duration::from_secs(75);

/// How large, how many, how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Sizes {
    /// Bytes of the large file, or of the four files of a job with four processes.
    pub file_bytes: u64,
    /// Files of the source tree.
    pub tar_files: u32,
    /// Seconds that fio issues requests for, at most.
    pub seconds: u64,
    /// Seconds that a step of the source tree may take.
    pub patience: u64,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { file_bytes: 512 << 20, tar_files: 16_000, seconds: 3, patience: 180 }
    }
}

impl Sizes {
    /// For a look, or a test: seconds instead of minutes; the figures mean little.
    pub fn quick() -> Self {
        Self { file_bytes: 32 << 20, tar_files: 600, seconds: 1, patience: 60 }
    }
}

/// The jobs of a lower filesystem in the order they build on each other; for a quick run those with a bound alone.
pub fn default_jobs(lower: LowerKind, quick: bool) -> Vec<Job> {
    let words = match lower {
        LowerKind::Tmpfs => TMPFS,
        LowerKind::Ext4 => EXT4,
        LowerKind::Own => OWN,
    };
    let jobs = words.split_whitespace().map(|w| w.parse().expect("a constant that a test parses"));
    jobs.filter(|job| !quick || lower == LowerKind::Own || verdicts::is_judged(lower, *job)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every job that a verdict needs is in the default run, and the lists hold no job twice.
    #[test]
    fn a_default_run_measures_what_is_judged() {
        for lower in [LowerKind::Tmpfs, LowerKind::Ext4, LowerKind::Own] {
            let mut jobs = default_jobs(lower, false);
            let (all, quick) = (jobs.len(), default_jobs(lower, true));
            assert!(verdicts::judged(lower).all(|j| jobs.contains(&j) && quick.contains(&j)));
            jobs.sort();
            jobs.dedup();
            assert_eq!(jobs.len(), all);
        }
    }
}
