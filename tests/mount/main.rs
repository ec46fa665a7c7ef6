//! Tests on real mounts: the binary mounts a vault of its own for each test, and unmounts it whatever happens.
//!
//! One test program for all of them, so that it is linked once. Needs `/dev/fuse`; what needs root as well says so when
//! it is skipped.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod cluster;
mod damage;
mod diff;
#[path = "../support/fake_kms.rs"]
mod fake_kms;
mod faults;
mod frozen;
mod harness;
mod hosts;
#[path = "../support/hsm_members.rs"]
mod hsm_members;
mod keys;
#[path = "../kms_support/mod.rs"]
mod kms_support;
mod lifecycle;
mod locks;
mod memory;
mod nameless;
mod options;
mod posix;
mod protocol;
mod real;
mod space;
mod tamper;
mod token;
mod transport;
