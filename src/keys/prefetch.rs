//! Data keys unwrapped ahead, for files that somebody is likely to open. Nobody waits for it.
//!
//! Each is a call of the provider that may turn out to be for nothing, so a mount does this only where it is told to.
//! Keys go where those of opened files go, and none is unwrapped twice: an open that comes while its key is on the way
//! waits for that one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::KeyError;
use crate::format::header::FileHeader;

/// Unwraps at once: fewer than a provider's client has in flight, so that opens which wait go on beside them.
const LANES: usize = 8;
/// Files that wait; more are passed over.
const WAITING: usize = 4096;
/// How long nothing is asked ahead after the provider gave no key: it is left to those who wait for it.
const REST: Duration = Duration::from_secs(10);

/// Reads the header of a file that may be opened soon; `None` where there is none any more.
pub type Ahead = Box<dyn FnOnce() -> Option<FileHeader> + Send>;

/// Brings the key of a header into the cache.
type Fetch = dyn Fn(&FileHeader) -> Result<(), KeyError> + Send + Sync;

/// What waits, and the threads that work on it.
pub(super) struct Prefetch {
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Inner {
    fetch: Box<Fetch>,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Ahead>,
    lanes: usize,
    idle: usize,
    resting: Option<Instant>,
    stop: bool,
}

impl Prefetch {
    /// Without a thread: the first ones start with the first file.
    pub(super) fn new(fetch: impl Fn(&FileHeader) -> Result<(), KeyError> + Send + Sync + 'static) -> Self {
        let inner = Inner { fetch: Box::new(fetch), state: Mutex::default(), wake: Condvar::new() };
        Self { inner: Arc::new(inner), threads: Mutex::default() }
    }

    /// Files whose keys may be wanted soon. Those for which there is no room are passed over.
    pub(super) fn add(&self, files: impl IntoIterator<Item = Ahead>) {
        let new = {
            let mut state = self.inner.state.lock();
            if state.stop || state.resting.is_some_and(|since| since.elapsed() < REST) {
                return;
            }
            let room = WAITING.saturating_sub(state.waiting.len());
            state.waiting.extend(files.into_iter().take(room));
            let new = state.waiting.len().saturating_sub(state.idle).min(LANES - state.lanes);
            state.lanes += new;
            new
        };
        self.inner.wake.notify_all();
        for _ in 0..new {
            let inner = self.inner.clone();
            match std::thread::Builder::new().name("efs-ahead".into()).spawn(move || inner.run()) {
                Ok(thread) => self.threads.lock().push(thread),
                Err(e) => {
                    log::debug!("no thread to unwrap data keys ahead: {e}");
                    self.inner.state.lock().lanes -= 1;
                }
            }
        }
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        let dropped = self.inner.state.lock().end();
        drop(dropped);
        self.inner.wake.notify_all();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                log::error!("a thread that unwraps data keys ahead had panicked");
            }
        }
    }
}

impl State {
    fn end(&mut self) -> VecDeque<Ahead> {
        self.stop = true;
        std::mem::take(&mut self.waiting)
    }
}

impl Inner {
    fn run(&self) {
        while let Some(file) = self.next() {
            let Some(header) = file() else { continue };
            match (self.fetch)(&header) {
                Err(e) if e.is_outage() => {
                    log::debug!("no data keys are unwrapped ahead for a while: {e}");
                    let dropped = {
                        let mut state = self.state.lock();
                        state.resting = Some(Instant::now());
                        std::mem::take(&mut state.waiting)
                    };
                    drop(dropped);
                }
                // Who opens the file is told what is wrong with it.
                Ok(()) | Err(_) => {}
            }
        }
    }

    /// Waits for a file; `None` at the end.
    fn next(&self) -> Option<Ahead> {
        let mut state = self.state.lock();
        loop {
            if state.stop {
                return None;
            }
            if let Some(file) = state.waiting.pop_front() {
                return Some(file);
            }
            state.idle += 1;
            self.wake.wait(&mut state);
            state.idle -= 1;
        }
    }
}
