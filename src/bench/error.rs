//! Why a measurement failed.

use std::io;
use std::path::Path;

/// Why a measurement failed.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Mounting and dropping caches need root.
    #[error("the mounts of a measurement need root (a mount of your own: --target DIR)")]
    NotRoot,
    /// Someone asked for the end.
    #[error("interrupted")]
    Interrupted,
    /// A program that is needed is not installed.
    #[error("{0} is not installed")]
    Missing(String),
    /// A program failed.
    #[error("{command}: {said}")]
    Failed {
        /// As it was called.
        command: String,
        /// What it said.
        said: String,
    },
    /// A program took too long and was ended.
    #[error("{command}: ended after {seconds} s")]
    TooLong {
        /// As it was called.
        command: String,
        /// The bound.
        seconds: u64,
    },
    /// A daemon ended, or did not mount in time.
    #[error("{peer} does not mount: {why}")]
    NoMount {
        /// Which.
        peer: &'static str,
        /// Its end, or that it took too long.
        why: String,
    },
    /// A cache holds what it should not: the figure would not be a cold one.
    #[error("not cold: {0}")]
    Warm(String),
    /// Syncs that did not reach the disk: the figure would not be that of a sync.
    #[error("fsync is none: {syncs} of them flushed the disk {flushed} times")]
    NotDurable {
        /// fsyncs that returned.
        syncs: u64,
        /// Flushes of the disk's cache meanwhile.
        flushed: u64,
    },
    /// fio's report lacks a figure.
    #[error("fio's report has no {0}")]
    Figure(&'static str),
    /// A cipher does not do what its specification says.
    #[error("{contender}: {what}")]
    Wrong {
        /// Which.
        contender: String,
        /// What it got wrong.
        what: String,
    },
    /// A kernel that does not exist, or not on this processor.
    #[error("{0}")]
    NoKernel(String),
    /// A file or directory.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

impl BenchError {
    /// For `map_err` on a path.
    pub(super) fn io<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io { path, source: source.into() }
    }

    /// Whether the whole run must end with it; any other fault is one cell's.
    pub(super) fn ends_the_run(&self) -> bool {
        matches!(self, Self::Interrupted)
    }
}
