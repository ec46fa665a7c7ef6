//! Counts requests by month and class, in memory, and adds them to a file now and then and at the end.
//!
//! Several processes may add to one file: each adds what it counted, under a lock. A killed process loses what it had
//! counted since it last wrote: a minute's requests at most.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// Months that the file keeps.
const MAX_MONTHS: usize = 120;
/// Requests that wait to be written, or milliseconds, whichever comes first.
const WRITE_AFTER: u64 = 100_000;
const WRITE_EVERY_MS: u64 = 60_000;

/// What one month used.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Usage {
    /// Requests by class ([`crate::kms::quota::Class::name`]).
    pub requests: BTreeMap<String, u64>,
    /// Requests that failed; they are among the others.
    pub failed: u64,
}

impl Usage {
    /// All requests.
    pub fn total(&self) -> u64 {
        self.requests.values().sum()
    }

    fn add(&mut self, other: &Self) {
        for (class, count) in &other.requests {
            let sum = self.requests.entry(class.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
        self.failed = self.failed.saturating_add(other.failed);
    }
}

/// A month, as `2026-11`.
pub type Month = String;

/// Why usage was not written or read.
#[derive(Debug, thiserror::Error)]
#[error("usage of the KMS {}: {source}", path.display())]
pub struct UsageError {
    /// The file.
    pub path: PathBuf,
    /// What the system or the decoder said.
    pub source: std::io::Error,
}

/// Counts for one store.
#[derive(Debug)]
pub struct Counter {
    path: PathBuf,
    waiting: Mutex<Waiting>,
}

#[derive(Default, Debug)]
struct Waiting {
    months: BTreeMap<Month, Usage>,
    count: u64,
    since_ms: u64,
    /// The month of the last request, and when it ends: dates are not made anew for each.
    current: (u64, Month),
}

impl Counter {
    /// A counter that adds to a file, which is made at the first write.
    pub fn new(path: &Path) -> Self {
        Self { path: path.into(), waiting: Mutex::default() }
    }

    /// Counts a request.
    pub fn count(&self, now_ms: u64, class: &'static str, failed: bool) {
        let full = {
            let mut waiting = self.waiting.lock();
            if waiting.count == 0 {
                waiting.since_ms = now_ms;
            }
            waiting.count += 1;
            // A day at a time: months begin on days.
            let day = now_ms / 86_400_000;
            if waiting.current.0 != day || waiting.current.1.is_empty() {
                waiting.current = (day, month(now_ms));
            }
            let name = waiting.current.1.clone();
            let usage = waiting.months.entry(name).or_default();
            match usage.requests.get_mut(class) {
                Some(count) => *count += 1,
                None => {
                    usage.requests.insert(class.to_owned(), 1);
                }
            }
            usage.failed += u64::from(failed);
            waiting.count >= WRITE_AFTER || now_ms.saturating_sub(waiting.since_ms) >= WRITE_EVERY_MS
        };
        if full && let Err(error) = self.write() {
            log::warn!("{error}");
        }
    }

    /// Adds what was counted to the file. What cannot be written is kept for the next time.
    pub fn write(&self) -> Result<(), UsageError> {
        let months = {
            let mut waiting = self.waiting.lock();
            waiting.count = 0;
            std::mem::take(&mut waiting.months)
        };
        if months.is_empty() {
            return Ok(());
        }
        add(&self.path, &months).inspect_err(|_| {
            let mut waiting = self.waiting.lock();
            for (month, usage) in &months {
                waiting.months.entry(month.clone()).or_default().add(usage);
            }
        })
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if let Err(error) = self.write() {
            log::warn!("{error}");
        }
    }
}

/// What is in the file, by month; nothing where there is none.
pub fn load(path: &Path) -> Result<BTreeMap<Month, Usage>, UsageError> {
    let wrong = |source| UsageError { path: path.into(), source };
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| wrong(e.into())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(e) => Err(wrong(e)),
    }
}

fn add(path: &Path, months: &BTreeMap<Month, Usage>) -> Result<(), UsageError> {
    let wrong = |source| UsageError { path: path.into(), source };
    let private = |path: &Path| {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).open(path)
    };
    let lock = private(&path.with_extension("lock")).map_err(wrong)?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|e| wrong(e.into()))?;
    let mut all = load(path)?;
    for (month, usage) in months {
        all.entry(month.clone()).or_default().add(usage);
    }
    while all.len() > MAX_MONTHS {
        all.pop_first();
    }
    let fresh = path.with_extension("new");
    let text = serde_json::to_vec_pretty(&all).map_err(|e| wrong(e.into()))?;
    let mut file = private(&fresh).map_err(wrong)?;
    file.set_len(0).and_then(|()| file.write_all(&text)).and_then(|()| file.sync_data()).map_err(wrong)?;
    std::fs::rename(&fresh, path).map_err(wrong)?;
    let above = path.parent().unwrap_or(Path::new("."));
    std::fs::File::open(above).and_then(|dir| dir.sync_all()).map_err(wrong)
}

/// The month of a time, in UTC.
fn month(ms: u64) -> Month {
    crate::kms::audit::time(ms).chars().take(7).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOVEMBER: u64 = 1_795_651_200_000;
    const MONTH: u64 = 31 * 86_400_000;

    /// What several counters counted is in the file, by month and class.
    #[test]
    fn counters_add_up() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("usage.json");
        for _ in 0..2 {
            let counter = Counter::new(&path);
            counter.count(NOVEMBER, "symmetric", false);
            counter.count(NOVEMBER, "symmetric", true);
            counter.count(NOVEMBER + MONTH, "create-key", false);
        }
        let all = load(&path).unwrap();
        assert_eq!(all["2026-11"], Usage { requests: [("symmetric".into(), 4)].into(), failed: 2 });
        assert_eq!(all["2026-12"].total(), 2);
    }

    /// A file that cannot be read is not overwritten, and what was counted is kept.
    #[test]
    fn a_damaged_file_is_left_alone() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("usage.json");
        std::fs::write(&path, "{").unwrap();
        let counter = Counter::new(&path);
        counter.count(NOVEMBER, "symmetric", false);
        assert!(counter.write().is_err() && load(&path).is_err());
        std::fs::remove_file(&path).unwrap();
        counter.write().unwrap();
        assert_eq!(load(&path).unwrap()["2026-11"].total(), 1);
    }
}
