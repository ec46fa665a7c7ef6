//! Measures: the same jobs on real mounts of this filesystem and of its peers, interleaved in one run.
//!
//! Runs other programs (fio, tar, the peers) and never prints; `cli` shows what comes back. Needs root, to mount lower
//! filesystems of known kinds and to drop the kernel's caches between writing and reading.

mod error;
mod jobs;
mod lower;
mod peers;
mod report;
mod run;
mod tarball;

pub use error::BenchError;
pub use jobs::Job;
pub use lower::LowerKind;
pub use peers::Peer;
pub use report::{Cell, Memory, Report, Row};
pub use run::{Plan, run};
