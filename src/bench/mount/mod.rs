//! `bench mount`: the same jobs on real mounts of this filesystem and of others, interleaved in one run.

mod cells;
mod cold;
mod defaults;
mod fio;
mod fscrypt;
mod job;
mod lower;
mod mounted;
mod peers;
mod report;
mod resident;
mod run;
mod tarball;
mod target;
mod tree;
mod usage;
mod verdicts;

pub use defaults::{Sizes, default_jobs};
pub use job::{Job, NoSuchJob};
pub use lower::LowerKind;
pub use peers::Peer;
pub use report::{Cell, Daemon, PeerInfo, Report, Row};
pub use run::{Plan, run};
pub use target::run as run_target;
