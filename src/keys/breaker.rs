//! Leaves a service that does not answer alone for a while: what asks meanwhile fails at once, and does not pile up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::crypto::random;
use crate::keys::KeyError;

/// Failed calls in a row that open the breaker; each has had its own retries.
const PATIENCE: u32 = 2;
/// First pause, doubled by each probe that fails, up to the longest; give or take a quarter.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The state of one service.
#[derive(Default)]
pub(super) struct Breaker {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    failures: u32,
    /// Not before this, and then one call alone.
    closed_until: Option<Instant>,
    probing: bool,
    last: String,
}

/// Permission for one call; it must be told how that ended.
pub(super) struct Pass {
    breaker: Arc<Breaker>,
    probe: bool,
    told: bool,
}

impl Breaker {
    /// Lets a call through, or says at once why not.
    pub(super) fn enter(self: &Arc<Self>) -> Result<Pass, KeyError> {
        let mut state = self.state.lock();
        let mut probe = false;
        if let Some(until) = state.closed_until {
            if state.probing || Instant::now() < until {
                return Err(KeyError::Unreachable(state.last.clone()));
            }
            state.probing = true;
            probe = true;
        }
        Ok(Pass { breaker: self.clone(), probe, told: false })
    }
}

impl Pass {
    /// Notes how the call ended. Only silence counts: a service that refuses is there.
    pub(super) fn done<T>(mut self, outcome: &Result<T, KeyError>) {
        self.told = true;
        let mut state = self.breaker.state.lock();
        match outcome {
            Err(KeyError::Unreachable(why)) => {
                state.failures = state.failures.saturating_add(1);
                state.last.clone_from(why);
                if state.failures >= PATIENCE && (self.probe || state.closed_until.is_none()) {
                    let doublings = (state.failures - PATIENCE).min(8);
                    let pause = (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE);
                    state.closed_until = Some(Instant::now() + jittered(pause));
                }
                if self.probe {
                    state.probing = false;
                }
            }
            _ => *state = State::default(),
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        // The caller was unwound.
        if self.probe && !self.told {
            self.breaker.state.lock().probing = false;
        }
    }
}

/// Three quarters to five quarters of a pause, so that many mounts do not ask at the same moment.
fn jittered(pause: Duration) -> Duration {
    let [random] = random::array::<1>();
    pause * 3 / 4 + pause / 2 * u32::from(random) / 255
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down() -> Result<(), KeyError> {
        Err(KeyError::Unreachable("down".into()))
    }

    /// After two failures nobody asks for a moment; then one asks, and its success lets all through.
    #[test]
    fn it_opens_and_closes() {
        let breaker = Arc::new(Breaker::default());
        breaker.enter().unwrap().done(&down());
        breaker.enter().unwrap().done(&down());
        assert!(matches!(breaker.enter(), Err(KeyError::Unreachable(why)) if why == "down"));
        std::thread::sleep(FIRST_PAUSE * 5 / 4);
        let probe = breaker.enter().unwrap();
        assert!(breaker.enter().is_err(), "only one probes");
        probe.done(&down());
        assert!(breaker.enter().is_err());
        std::thread::sleep(FIRST_PAUSE * 5 / 2);
        drop(breaker.enter().unwrap());
        breaker.enter().expect("an unwound probe lets the next one try").done(&Ok(()));
        breaker.enter().unwrap().done(&Ok(()));
        breaker.enter().unwrap();
    }

    /// A refusal is an answer.
    #[test]
    fn refusals_do_not_open_it() {
        let breaker = Arc::new(Breaker::default());
        for _ in 0..5 {
            breaker.enter().unwrap().done::<()>(&Err(KeyError::Denied("no".into())));
        }
        breaker.enter().unwrap();
    }
}
