//! Lines and what chains them.
//!
//! ```text
//! {"seq":N,"prev":"MAC OF LINE N-1", ... the event ... ,"mac":"HMAC-SHA256 of all before ,\"mac\""}
//! ```
//! A changed line does not authenticate; a removed, repeated or moved one has the wrong number or predecessor.

use super::super::hex;
use crate::crypto::MacKey;

/// Says what the authenticator is for, before the line.
const PURPOSE: &[u8] = b"envelopefs/kms/v1/audit-line\0";
/// `,"mac":"` + 64 digits + `"}`.
const TRAILER: usize = 8 + 64 + 2;
/// The longest line that is read, in bytes: an event is bounded far below.
pub(super) const MAX_LINE: usize = 256 * 1024;

/// Where a line stands in the chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Link {
    /// Its number; the first line is 1.
    pub(super) seq: u64,
    /// Its authenticator.
    pub(super) mac: [u8; 32],
}

impl Link {
    /// Before the first line.
    pub(super) const START: Self = Self { seq: 0, mac: [0; 32] };
}

/// A line as it claims to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Claim {
    pub(super) link: Link,
    pub(super) prev: [u8; 32],
}

/// The line of an event (a JSON object) behind `before`, with its line feed.
pub(super) fn forge(key: &MacKey, before: &Link, event: &[u8]) -> (Vec<u8>, Link) {
    let seq = before.seq + 1;
    let mut line = format!("{{\"seq\":{seq},\"prev\":\"{}\",", hex::encode(&before.mac)).into_bytes();
    line.extend_from_slice(event.get(1..event.len().saturating_sub(1)).unwrap_or_default());
    let mac = key.sign(&[PURPOSE, &line]);
    line.extend_from_slice(format!(",\"mac\":\"{}\"}}\n", hex::encode(&mac)).as_bytes());
    (line, Link { seq, mac })
}

/// What a line (without its line feed) claims, and whether it authenticates. `None` where it has not the form of one.
pub(super) fn read(key: &MacKey, line: &[u8]) -> Option<(Claim, bool)> {
    let body = line.get(..line.len().checked_sub(TRAILER)?)?;
    let trailer = std::str::from_utf8(line.get(body.len()..)?).ok()?;
    let mac = digest(trailer.strip_prefix(",\"mac\":\"")?.strip_suffix("\"}")?)?;
    let head = std::str::from_utf8(body.get(..body.len().min(120))?).ok()?;
    let (seq, rest) = head.strip_prefix("{\"seq\":")?.split_once(",\"prev\":\"")?;
    let prev = digest(rest.get(..64)?)?;
    let claim = Claim { link: Link { seq: seq.parse().ok()?, mac }, prev };
    Some((claim, key.verify(&[PURPOSE, body], &mac)))
}

fn digest(text: &str) -> Option<[u8; 32]> {
    hex::decode(text)?.try_into().ok()
}
