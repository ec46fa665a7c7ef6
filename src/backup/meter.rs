//! Counts of a running command, for progress and for its report. Each is read and changed from any thread.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

/// Counters of one command.
#[derive(Debug, Default)]
pub struct Meter {
    /// Entries of the vault looked at.
    pub entries: Count,
    /// Files whose content was read (run) or written (restore).
    pub files: Count,
    /// Bytes of content read from the vault (run) or written to it (restore).
    pub bytes: Count,
    /// Bytes sent to the store.
    pub sent: Count,
    /// Bytes received from the store.
    pub received: Count,
    /// Objects written.
    pub puts: Count,
    /// Objects, or ranges of them, read.
    pub gets: Count,
    /// Requests that were sent again.
    pub retries: Count,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reading {
    /// See [`Meter::entries`].
    pub entries: u64,
    /// See [`Meter::files`].
    pub files: u64,
    /// See [`Meter::bytes`].
    pub bytes: u64,
    /// See [`Meter::sent`].
    pub sent: u64,
    /// See [`Meter::received`].
    pub received: u64,
    /// See [`Meter::puts`].
    pub puts: u64,
    /// See [`Meter::gets`].
    pub gets: u64,
    /// See [`Meter::retries`].
    pub retries: u64,
}

impl Meter {
    /// The counters now.
    pub fn read(&self) -> Reading {
        Reading {
            entries: self.entries.get(),
            files: self.files.get(),
            bytes: self.bytes.get(),
            sent: self.sent.get(),
            received: self.received.get(),
            puts: self.puts.get(),
            gets: self.gets.get(),
            retries: self.retries.get(),
        }
    }
}
