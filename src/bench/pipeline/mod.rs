//! `bench pipeline`: how requests of 1 MiB are sealed and opened by 1 to n threads, and what as many threads reach that have
//! nothing to do with each other: where those do not scale, the machine is to blame.

mod measure;
mod report;

pub use measure::{Plan, run};
pub use report::{Report, Row};
