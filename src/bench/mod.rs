//! Measures: cipher kernels, the pipeline, and real mounts beside other filesystems.
//!
//! Runs other programs (fio, tar, the peers) and never prints; `cli` shows what comes back. A figure comes as the median of
//! interleaved repetitions, since machines are noisy; whatever could not be measured is told as such, never as a zero.

mod error;
mod guard;
mod html;
mod keeper;
pub mod kernel;
mod machine;
mod mount;
mod null;
pub mod pipeline;
mod stats;
mod table;
mod verdict;

pub use error::BenchError;
pub use guard::serve as serve_guard;
pub use keeper::Keeper;
pub use machine::Machine;
pub use mount::{
    Cell, Daemon, Job, LowerKind, NoSuchJob, Peer, PeerInfo, Plan, Report, Row, Sizes, default_jobs, run,
    run_target,
};
pub use null::{NullError, serve as serve_null};
pub use verdict::{Outcome, Verdict};

/// Hears how far a run is.
pub trait Progress {
    /// So many steps are to come.
    fn begin(&mut self, total: u64);
    /// This is measured now; `steps` of the total go with it.
    fn step(&mut self, what: &str, steps: u64);
}
