//! Unwrapped data keys, bounded by count and age, and the rule that one file is unwrapped by one caller at a time.
//!
//! Keyed by the whole header, so a header that was exchanged never finds the old key. No lock is held while a key
//! is being unwrapped.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::{Condvar, Mutex};

use super::KeyError;
use crate::crypto::{DataKey, FileKeys};
use crate::format::header::FileHeader;
use crate::format::ids::FileId;

/// Data keys by encoded header.
pub(super) struct Cache {
    max_age: Duration,
    state: Mutex<State>,
}

struct State {
    keys: LruCache<Vec<u8>, Held>,
    /// Headers that are being unwrapped right now; at most one entry a calling thread.
    flights: HashMap<Vec<u8>, Arc<Flight>>,
}

struct Held {
    file_id: FileId,
    key: DataKey,
    /// Derived keys of the opens that still live, to be shared.
    derived: Weak<FileKeys>,
    since: Instant,
}

#[derive(Default)]
struct Flight {
    landed: Mutex<bool>,
    all: Condvar,
}

/// Ends a flight however the unwrap ends, a panic included.
struct Landing<'a> {
    cache: &'a Cache,
    name: &'a [u8],
    flight: Arc<Flight>,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.cache.state.lock().flights.remove(self.name);
        *self.flight.landed.lock() = true;
        self.flight.all.notify_all();
    }
}

impl Cache {
    pub(super) fn new(max_count: NonZeroUsize, max_age: Duration) -> Self {
        let state = State { keys: LruCache::new(max_count), flights: HashMap::new() };
        Self { max_age, state: Mutex::new(state) }
    }

    /// The keys for `header`: remembered, or unwrapped by `unwrap`. Callers that ask for the same header meanwhile
    /// wait, and unwrap for themselves only where the first one failed.
    pub(super) fn keys(
        &self,
        header: &FileHeader,
        unwrap: impl FnOnce() -> Result<DataKey, KeyError>,
    ) -> Result<Arc<FileKeys>, KeyError> {
        let name = header.encode()?;
        let landing = loop {
            let flight = {
                let mut state = self.state.lock();
                if let Some(keys) = state.get(&name, self.max_age) {
                    return Ok(keys);
                }
                match state.flights.get(&name) {
                    Some(flight) => flight.clone(),
                    None => {
                        let flight = Arc::new(Flight::default());
                        state.flights.insert(name.clone(), flight.clone());
                        break Landing { cache: self, name: &name, flight };
                    }
                }
            };
            let mut landed = flight.landed.lock();
            while !*landed {
                flight.all.wait(&mut landed);
            }
        };
        let key = unwrap()?;
        let keys = Arc::new(FileKeys::derive(&key, &header.file_id));
        self.put(name.clone(), header.file_id, key, &keys);
        drop(landing);
        Ok(keys)
    }

    /// How long keys are remembered.
    pub(super) fn max_age(&self) -> Duration {
        self.max_age
    }

    /// Remembers a key that was just made.
    pub(super) fn put(&self, name: Vec<u8>, file_id: FileId, key: DataKey, keys: &Arc<FileKeys>) {
        if self.max_age.is_zero() {
            return;
        }
        let held = Held { file_id, key, derived: Arc::downgrade(keys), since: Instant::now() };
        self.state.lock().keys.put(name, held);
    }

    /// Forgets what is too old, also where nobody asks for it any more.
    pub(super) fn sweep(&self) {
        let mut state = self.state.lock();
        let old: Vec<_> = state
            .keys
            .iter()
            .filter(|(_, h)| h.since.elapsed() > self.max_age)
            .map(|(n, _)| n.clone())
            .collect();
        for name in old {
            state.keys.pop(&name);
        }
    }

    /// How many keys are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.state.lock().keys.len()
    }
}

impl State {
    fn get(&mut self, name: &[u8], max_age: Duration) -> Option<Arc<FileKeys>> {
        if self.keys.peek(name)?.since.elapsed() > max_age {
            self.keys.pop(name);
            return None;
        }
        let held = self.keys.get_mut(name)?;
        if let Some(keys) = held.derived.upgrade() {
            return Some(keys);
        }
        let keys = Arc::new(FileKeys::derive(&held.key, &held.file_id));
        held.derived = Arc::downgrade(&keys);
        Some(keys)
    }
}
