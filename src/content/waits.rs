//! Waits of the threads that serve requests.
//!
//! A seek that waits for written-back pages, and a change that waits for a lease, each hold a serving thread until other
//! requests are answered or a backup has copied its file. All of them together may hold only a few: every way that requests
//! come has more threads than that, so that a mount never stands still.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A bound for waits.
#[derive(Debug, Default)]
pub struct LongWaits(AtomicUsize);

/// The waits of this process.
pub static LONG_WAITS: LongWaits = LongWaits(AtomicUsize::new(0));

/// Room for one wait, until it is dropped.
#[derive(Debug)]
pub struct LongWait<'w>(&'w LongWaits);

impl LongWaits {
    /// Waits at once.
    pub const MOST: usize = 2;

    /// Room to wait; `None` where as many wait already as may.
    pub fn take(&self) -> Option<LongWait<'_>> {
        let more = |waiting| (waiting < Self::MOST).then_some(waiting + 1);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok().map(|_| LongWait(self))
    }
}

impl Drop for LongWait<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many may wait, and one more when one has waited.
    #[test]
    fn as_many_wait_as_may() {
        let waits = LongWaits::default();
        let mut all: Vec<_> = (0..LongWaits::MOST).map(|_| waits.take().expect("room")).collect();
        assert!(waits.take().is_none() && waits.take().is_none());
        all.pop();
        assert!(waits.take().is_some());
    }
}
