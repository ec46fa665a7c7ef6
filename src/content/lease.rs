//! Changes of a file can be kept off for a while, so that somebody copies the lower file as it lies.
//!
//! A change says that it goes on, then looks whether it may; who keeps changes off says so, then waits until none goes on:
//! in this order, one of the two always sees the other. A change waits once, at most until the lease's time is over; then
//! it ends the lease, whose holder learns of it, and goes on. So does, at once, a change that comes when as many wait as may:
//! each wait holds a thread that serves requests. Nobody sees an error.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::file::File;
use super::waits::{LONG_WAITS, LongWaits};

/// The right to find a file unchanged, until it is given back or its time is over.
#[derive(Debug)]
pub struct Lease {
    until: Instant,
    state: Mutex<State>,
    over: Condvar,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Holds,
    /// Given back by its holder.
    Ended,
    /// Something changed, or was about to, after its time.
    Broken,
}

impl Lease {
    /// A lease for so long.
    pub fn new(time: Duration) -> Arc<Self> {
        let state = Mutex::new(State::Holds);
        Arc::new(Self { until: Instant::now() + time, state, over: Condvar::new() })
    }

    /// Whether its time is over, or it was given back, or broken.
    pub fn is_over(&self) -> bool {
        *self.state.lock() != State::Holds || Instant::now() >= self.until
    }

    /// Gives it back. Whether nothing was changed all the time: after its time nobody knows, as others may hold the file.
    pub fn end(&self) -> bool {
        let mut state = self.state.lock();
        let held = *state == State::Holds;
        if held {
            *state = State::Ended;
            self.over.notify_all();
        }
        held && Instant::now() < self.until
    }

    /// Ends it for a change that has waited long enough, or for another lease after its time.
    pub fn give_way(&self) {
        let mut state = self.state.lock();
        if *state == State::Holds {
            *state = State::Broken;
            self.over.notify_all();
        }
    }

    /// Waits until it is given back; ends it when its time is over, or at once where as many wait as may.
    fn wait(&self, waits: &LongWaits) {
        if let Some(_place) = waits.take() {
            let mut state = self.state.lock();
            while *state == State::Holds {
                if self.over.wait_until(&mut state, self.until).timed_out() {
                    break;
                }
            }
        }
        self.give_way();
    }
}

/// Where the changes of one file pass.
#[derive(Debug, Default)]
pub(super) struct Turnstile {
    going: AtomicUsize,
    closed: AtomicBool,
    lease: Mutex<Option<Arc<Lease>>>,
    empty: Condvar,
}

/// A change that goes on.
#[derive(Debug)]
pub(super) struct Going<'t>(&'t Turnstile);

impl Drop for Going<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Turnstile {
    /// Lets a change go on, now or when the lease is over. Not under a lock of the file's.
    pub(super) fn enter(&self) -> Going<'_> {
        self.enter_among(&LONG_WAITS)
    }

    fn enter_among(&self, waits: &LongWaits) -> Going<'_> {
        let mut waited = false;
        loop {
            self.going.fetch_add(1, Ordering::SeqCst);
            if !self.closed.load(Ordering::SeqCst) {
                return Going(self);
            }
            self.leave();
            let lease = self.lease.lock().clone();
            if let Some(lease) = lease {
                // A change that has waited for one lease waits for no second.
                if waited {
                    lease.give_way()
                } else {
                    lease.wait(waits)
                }
                waited = true;
                self.open(&lease);
            }
        }
    }

    fn leave(&self) {
        if self.going.fetch_sub(1, Ordering::SeqCst) == 1 && self.closed.load(Ordering::SeqCst) {
            let _lease = self.lease.lock();
            self.empty.notify_all();
        }
    }

    fn open(&self, lease: &Arc<Lease>) {
        let mut now = self.lease.lock();
        if now.as_ref().is_some_and(|now| Arc::ptr_eq(now, lease)) {
            *now = None;
            self.closed.store(false, Ordering::SeqCst);
            // From here on changes come and go; its holder need not wait for all of them to be gone at once.
            self.empty.notify_all();
        }
    }

    /// Keeps changes off for a lease, and waits for those that go on. False where another lease holds, or they took longer
    /// than the lease, or a change that had waited for the lease before ended this one.
    fn close(&self, lease: &Arc<Lease>) -> bool {
        let mut now = self.lease.lock();
        if now.as_ref().is_some_and(|now| !now.is_over()) {
            return false;
        }
        if let Some(over) = now.replace(Arc::clone(lease)) {
            over.give_way();
        }
        self.closed.store(true, Ordering::SeqCst);
        while self.going.load(Ordering::SeqCst) != 0 {
            if lease.is_over() || self.empty.wait_until(&mut now, lease.until).timed_out() {
                return false;
            }
        }
        true
    }
}

impl File {
    /// Keeps changes of content and length off while `lease` holds; whether none goes on any more. What the journal has of
    /// the file may go to its place meanwhile.
    pub fn keep_still(&self, lease: &Arc<Lease>) -> bool {
        self.turnstile().close(lease)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    /// While a lease holds, no change begins; the one that goes on is waited for; after it all go on.
    #[test]
    fn a_lease_keeps_changes_off() {
        let turnstile = Turnstile::default();
        let waits = LongWaits::default();
        let changes = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // As many as may wait: one more would end each lease.
            for _ in 0..LongWaits::MOST {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let _going = turnstile.enter_among(&waits);
                        // Odd: in the middle of a change.
                        changes.fetch_add(1, Ordering::SeqCst);
                        std::thread::yield_now();
                        changes.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            let mut held = 0;
            while held < 200 {
                let lease = Lease::new(LONG);
                if turnstile.close(&lease) {
                    let before = changes.load(Ordering::SeqCst);
                    assert_eq!(before % 2, 0);
                    std::thread::yield_now();
                    let after = changes.load(Ordering::SeqCst);
                    // Unless a change that had waited for the lease before took this one.
                    if lease.end() {
                        assert_eq!(before, after);
                        held += 1;
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    /// Where as many wait as may, a change ends the lease at once.
    #[test]
    fn one_too_many_does_not_wait() {
        let (turnstile, waits) = (Turnstile::default(), LongWaits::default());
        let _all: Vec<_> = std::iter::from_fn(|| waits.take()).collect();
        let lease = Lease::new(LONG);
        assert!(turnstile.close(&lease));
        drop(turnstile.enter_among(&waits));
        assert!(!lease.end());
    }

    /// After its time, a change ends the lease and goes on; its holder learns of it, and a new one may come.
    #[test]
    fn a_lease_ends_with_its_time() {
        let turnstile = Turnstile::default();
        let lease = Lease::new(Duration::from_millis(20));
        assert!(turnstile.close(&lease));
        drop(turnstile.enter());
        assert!(lease.is_over() && !lease.end());
        let next = Lease::new(LONG);
        assert!(turnstile.close(&next) && !turnstile.close(&Lease::new(LONG)));
        assert!(next.end());
        drop(turnstile.enter());
    }

    /// A lease whose time is over was not kept, whoever else keeps changes off now.
    #[test]
    fn what_is_given_back_too_late_was_not_kept() {
        let turnstile = Turnstile::default();
        let short = Duration::from_millis(10);
        let (first, alone) = (Lease::new(short), Lease::new(short));
        assert!(turnstile.close(&first));
        std::thread::sleep(2 * short);
        let second = Lease::new(LONG);
        assert!(turnstile.close(&second));
        assert_eq!(*first.state.lock(), State::Broken);
        assert!(!first.end() && !alone.end() && second.end());
    }

    /// A change that has waited for one lease does not wait for the next.
    #[test]
    fn nobody_waits_twice() {
        let (turnstile, waits) = (Turnstile::default(), LongWaits::default());
        let first = Lease::new(LONG);
        assert!(turnstile.close(&first));
        std::thread::scope(|scope| {
            scope.spawn(|| drop(turnstile.enter_among(&waits)));
            // Held here, by the turnstile, and by who waits.
            while Arc::strong_count(&first) < 3 {
                std::thread::yield_now();
            }
            first.end();
            // Nobody gives it back: the change gets through before it, or ends it.
            turnstile.close(&Lease::new(LONG));
        });
    }
}
