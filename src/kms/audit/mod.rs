//! The audit log: one JSON event a request, as CloudTrail writes them; never plaintext, never key material.
//!
//! Lines are chained and authenticated under a key of the store ([`chain`]), files are rotated by size with the chain
//! going on across them ([`files`]), and a head beside them ([`head`]) says how far the log goes, so that a removed
//! tail shows too. [`Log::append`] writes before the request is answered. Several processes may share a log.
//!
//! What it cannot show: lines that who has the store's root key forged, and a log and head that were both brought back
//! from an older copy.

mod chain;
mod error;
mod event;
mod files;
mod head;
mod lines;
mod log;
mod query;
mod verify;

#[cfg(test)]
mod tests;

pub use error::AuditError;
pub(in crate::kms) use event::time;
pub use event::{Event, Identity};
pub use log::{Log, Settings};
pub use query::{Filter, Found, query, tail};
pub use verify::{Fault, Finding, Report, verify};
