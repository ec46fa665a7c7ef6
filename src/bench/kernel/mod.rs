//! `bench kernel`: how fast blocks are sealed and opened by each kernel, beside the `aes-gcm-siv` crate, AWS-LC's
//! AES-256-GCM-SIV and, as a yardstick, its AES-256-GCM.

mod batch;
mod clock;
mod contenders;
mod measure;
mod ours;
mod report;

pub use measure::{Plan, run};
pub use report::{Figure, Report};
