//! Whether a thread that has answered stays awake a moment for the next request.
//!
//! Waking a thread on a processor that has gone to sleep costs more than most requests (30 us and more where the
//! machine is a virtual one). A thread that gives its processor away and comes back needs no waking. It does so only
//! while requests follow one another closely.

use std::time::{Duration, Instant};

/// How long it stays awake: what a wake-up costs and a little more.
const AWAKE: Duration = Duration::from_micros(50);
/// Requests that follow closely before it stays awake for them, and the most that are remembered.
const ENOUGH: u8 = 3;
const MOST: u8 = 8;

/// What a thread knows of how its requests come.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// Recent requests that came within [`AWAKE`]; one that did not takes two away.
    close: u8,
}

impl Patience {
    /// Until when to stay awake; `None`: go to sleep.
    pub(super) fn until(&self, now: Instant) -> Option<Instant> {
        (self.close >= ENOUGH).then(|| now + AWAKE)
    }

    /// The next request came after so long.
    pub(super) fn came_after(&mut self, waited: Duration) {
        self.close = if waited <= AWAKE { (self.close + 1).min(MOST) } else { self.close.saturating_sub(2) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It stays awake after a few requests that came quickly, and gives up after as few that did not.
    #[test]
    fn it_stays_awake_while_requests_follow_closely() {
        let (mut patience, now) = (Patience::default(), Instant::now());
        assert_eq!(patience.until(now), None);
        (0..20).for_each(|_| patience.came_after(Duration::from_micros(9)));
        assert_eq!(patience.until(now), Some(now + AWAKE));
        (0..3).for_each(|_| patience.came_after(Duration::from_millis(5)));
        assert_eq!(patience.until(now), None);
    }
}
