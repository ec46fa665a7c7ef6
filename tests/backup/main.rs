//! Backup and its way back, by the program itself: a local directory and a real S3 server (`scripts/s3-server.sh`).
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

mod drills;
mod harness;
mod headers;
mod mounted;
mod network;
mod over;
mod proxy;
mod retention;
mod round_trip;
mod s3;
mod shared;
mod view;
