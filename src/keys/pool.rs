//! Ready data keys for files that are about to be created, so that no create waits for a provider.
//!
//! As HDFS keeps them: 500 a key, refilled below 30 % by one background thread. Entries hold data key and wrapped
//! key; the file's keys are derived when one is taken, for those take thirty times the locked memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::KeyError;
use crate::crypto::DataKey;
use crate::format::header::Recipient;
use crate::format::ids::FileId;

/// Keys made at once when a caller finds the pool empty: he waits for them, and the callers behind him need them.
const URGENT_BATCH: usize = 16;
/// Pause after a refill failed, doubled each time up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often the thread looks for work of its own (old keys in the cache) when nobody wakes it.
const TICK: Duration = Duration::from_secs(60);
/// How often a take asks whether the key was rotated.
const VERSION_CHECK: Duration = Duration::from_secs(1);

/// A data key that no file has yet.
pub(super) struct Ready {
    pub(super) made: Instant,
    pub(super) file_id: FileId,
    pub(super) key: DataKey,
    /// Its wrapped copies, as the header holds them.
    pub(super) recipients: Vec<Recipient>,
}

/// Makes data keys; counts how often the provider was asked.
pub(super) trait Source: Send + Sync {
    /// One batch of new keys.
    fn make(&self, count: usize) -> Result<Vec<Ready>, KeyError>;
    /// A number that changes when new keys would be wrapped differently. Asked for about once a second.
    fn version(&self) -> Option<u64>;
    /// The most keys that are made by one call while others may be waiting for some.
    fn batch(&self) -> usize {
        usize::MAX
    }
}

/// The pool and its thread.
pub(super) struct Pool {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    source: Box<dyn Source>,
    /// What the thread does once a minute beside filling.
    chore: Box<dyn Fn() + Send + Sync>,
    size: usize,
    low: usize,
    /// A ready key that is older is not given to a file: its wrapping key may have been taken away since.
    max_age: Duration,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Ready>,
    /// Counts drains: a batch that was ordered before one is not put in after it.
    epoch: u64,
    version: Option<u64>,
    checked: Option<Instant>,
    /// One caller asks at a time: a provider that hangs must not stop all creates.
    checking: bool,
    started: bool,
    /// Set by the first take: a mount that only reads makes no keys.
    wanted: bool,
    stop: bool,
}

impl Pool {
    /// An empty pool. Its thread starts at the first take or [`Pool::start`]: the daemon forks before.
    pub(super) fn new(
        size: usize,
        max_age: Duration,
        source: Box<dyn Source>,
        chore: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        let low = size * 3 / 10;
        let shared =
            Shared { source, chore, size, low, max_age, state: Mutex::default(), wake: Condvar::new() };
        Self { shared: Arc::new(shared), thread: Mutex::default() }
    }

    /// Takes a ready key, or makes a few.
    pub(super) fn take(&self) -> Result<Ready, KeyError> {
        self.start();
        self.notice_rotation();
        let (taken, epoch) = {
            let mut state = self.shared.state.lock();
            state.wanted = true;
            while state.ready.front().is_some_and(|ready| ready.made.elapsed() > self.shared.max_age) {
                state.ready.pop_front();
            }
            let taken = state.ready.pop_front();
            if state.ready.len() <= self.shared.low {
                self.shared.wake.notify_one();
            }
            (taken, state.epoch)
        };
        if let Some(ready) = taken {
            return Ok(ready);
        }
        let mut made = self.shared.source.make(URGENT_BATCH)?.into_iter();
        let first =
            made.next().ok_or_else(|| KeyError::Unreachable("the provider made no data key".into()))?;
        self.shared.add(made, epoch);
        Ok(first)
    }

    /// Starts the thread, once. Where none can be had, takes make their own keys.
    pub(super) fn start(&self) {
        {
            let mut state = self.shared.state.lock();
            if state.started {
                return;
            }
            state.started = true;
        }
        let shared = self.shared.clone();
        match std::thread::Builder::new().name("efs-keys".into()).spawn(move || shared.run()) {
            Ok(thread) => *self.thread.lock() = Some(thread),
            Err(e) => log::warn!("no thread for the pool of data keys, creates make their own: {e}"),
        }
    }

    /// Empties the pool when the wrapping key was rotated, so that new files use its new version.
    fn notice_rotation(&self) {
        {
            let mut state = self.shared.state.lock();
            if state.checking || state.checked.is_some_and(|at| at.elapsed() < VERSION_CHECK) {
                return;
            }
            state.checking = true;
        }
        // Asked without the lock: other creates go on with what is ready.
        let version = self.shared.source.version();
        let drained = {
            let mut state = self.shared.state.lock();
            (state.checking, state.checked) = (false, Some(Instant::now()));
            let Some(version) = version else { return };
            let rotated = state.version.is_some_and(|known| known != version);
            state.version = Some(version);
            if rotated {
                state.epoch += 1;
                std::mem::take(&mut state.ready)
            } else {
                VecDeque::new()
            }
        };
        if !drained.is_empty() {
            log::info!("the wrapping key was rotated: {} ready data keys are made anew", drained.len());
        }
    }

    /// Throws away what is ready, and what is being made ready.
    pub(super) fn drain(&self) {
        let mut state = self.shared.state.lock();
        state.epoch += 1;
        let drained = std::mem::take(&mut state.ready);
        self.shared.wake.notify_one();
        drop(state);
        drop(drained);
    }

    /// How many keys are ready.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shared.state.lock().ready.len()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.lock().stop = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            log::error!("the thread that fills the pool of data keys had panicked");
        }
    }
}

impl Shared {
    fn add(&self, made: impl Iterator<Item = Ready>, epoch: u64) {
        let mut state = self.state.lock();
        if state.epoch == epoch {
            let room = self.size.saturating_sub(state.ready.len());
            state.ready.extend(made.take(room));
        }
    }

    /// The thread: refills below the low mark, does its chore now and then, until told to stop.
    fn run(&self) {
        let mut failures = Failures::default();
        let mut chore_at = Instant::now() + TICK;
        // Between the batches of one refill.
        let mut filling = false;
        loop {
            let mut state = self.state.lock();
            if state.stop {
                return;
            }
            let now = Instant::now();
            if now >= chore_at {
                drop(state);
                (self.chore)();
                chore_at = now + TICK;
                continue;
            }
            let (missing, epoch) = (self.size.saturating_sub(state.ready.len()), state.epoch);
            let fill = state.wanted && missing > 0 && (filling || state.ready.len() <= self.low);
            let fill_at = if fill { failures.retry_at(now) } else { chore_at };
            filling = fill;
            if fill_at > now {
                self.wake.wait_until(&mut state, fill_at.min(chore_at));
                continue;
            }
            drop(state);
            let most = self.source.batch();
            match self.source.make(missing.min(most)) {
                Ok(made) => {
                    self.add(made.into_iter(), epoch);
                    // What was taken meanwhile waits for the low mark: else a busy pool would be filled key by key.
                    filling = missing > most;
                    failures = Failures::default();
                }
                Err(e) => {
                    // The provider's own trouble is told where it begins and ends.
                    let level = if e.is_outage() { log::Level::Debug } else { log::Level::Warn };
                    log::log!(level, "the pool of data keys is not refilled: {e}");
                    failures.note();
                }
            }
        }
    }
}

/// Refills that failed in a row, and when the last one did.
#[derive(Default)]
struct Failures {
    count: u32,
    last: Option<Instant>,
}

impl Failures {
    fn note(&mut self) {
        self.count += 1;
        self.last = Some(Instant::now());
    }

    fn retry_at(&self, now: Instant) -> Instant {
        let pause = FIRST_PAUSE * 2_u32.saturating_pow(self.count.saturating_sub(1).min(10));
        self.last.map_or(now, |last| last + pause.min(LONGEST_PAUSE))
    }
}
