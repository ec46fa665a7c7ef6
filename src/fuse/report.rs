//! The one log line of a failed request: which inode, what is wrong; never a plaintext name. Rate-limited, since a
//! damaged file that a program reads in a loop would fill the disk with the log.

use std::time::{Duration, Instant};

use log::error;
use parking_lot::Mutex;

use crate::fs::{FsError, Ino};

/// Lines within one window: enough to name every file of a small accident.
const BURST: u32 = 50;
/// After this long the next `BURST` lines may pass.
const WINDOW: Duration = Duration::from_secs(10);

/// Counts lines, and those that were held back.
pub(super) struct Report {
    state: Mutex<State>,
}

struct State {
    since: Instant,
    passed: u32,
    held: u64,
}

impl Report {
    pub(super) fn new() -> Self {
        Self { state: Mutex::new(State { since: Instant::now(), passed: 0, held: 0 }) }
    }

    /// Logs an error that the operator should see: damage, key trouble, a failing disk.
    pub(super) fn failed(&self, what: &str, ino: Ino, error: &FsError) {
        let errno = error.errno();
        if !error.is_noteworthy() && errno != libc::EIO {
            return;
        }
        if let Some(held) = self.admit(Instant::now()) {
            if held > 0 {
                error!("{held} more failures were not logged (more than {BURST} in {} s)", WINDOW.as_secs());
            }
            error!("{what}: inode {ino}: {error} (errno {errno})");
        }
    }

    /// Whether a line may pass at `now`; with it, how many were held back before.
    fn admit(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        if now.duration_since(state.since) >= WINDOW {
            state.since = now;
            state.passed = 0;
        }
        if state.passed >= BURST {
            state.held += 1;
            return None;
        }
        state.passed += 1;
        Some(std::mem::take(&mut state.held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flood passes `BURST` lines a window, and the next window tells how many were held back.
    #[test]
    fn a_flood_is_cut_and_counted() {
        let report = Report::new();
        let start = Instant::now();
        let passed = (0..BURST + 7).filter(|_| report.admit(start).is_some()).count();
        assert_eq!(passed, BURST as usize);
        assert_eq!(report.admit(start + WINDOW), Some(7));
        assert_eq!(report.admit(start + WINDOW), Some(0));
    }
}
