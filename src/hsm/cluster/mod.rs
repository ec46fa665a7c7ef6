//! A cluster: several HSMs with the same users, token keys, shares and policy.
//!
//! Members share a cluster id, the customer's CA and the mask key, which a backup carries: a new member is made of one.
//! Each record (a user, a token object, the policy) has a [`Stamp`], a deleted one leaves its stamp behind. What changes
//! on one member is put to the others before the caller is answered (`spread`); what one missed it is told when it is
//! back, by rounds that compare digests (`rounds`). How two versions of a record become one stands in `merge`: the
//! result is the same in whatever order they meet. Session objects stay where they were made.

mod commands;
mod merge;
mod protocol;
mod rounds;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::wire::{Bytes, Wire};

pub(super) use protocol::Talk;
pub(super) use rounds::Peers;

/// Members of a cluster, unless a setting says otherwise (CloudHSM's default quota).
pub(super) const DEFAULT_MEMBERS: usize = 6;
/// The most that the setting may say (CloudHSM: 28).
pub(super) const MOST_MEMBERS: usize = 28;
/// Deletions that are remembered. The oldest go; who was away since before then is not let in.
const MAX_GONE: usize = 32_768;

/// When a record was changed, and by which member: the later one wins. Times are microseconds since 1970, but never
/// smaller than one that was seen before, so a change that follows another has the greater stamp whatever the clocks say.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(super) struct Stamp {
    pub(super) time: u64,
    /// Serial number of the member.
    pub(super) by: String,
}

impl Wire for Stamp {
    fn size(&self) -> usize {
        8 + self.by.size()
    }

    fn put(&self, out: &mut Vec<u8>) {
        self.time.put(out);
        self.by.put(out);
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        Some(Self { time: u64::take(from)?, by: String::take(from)? })
    }
}

/// A clock that follows the greatest time it has seen.
#[derive(Default)]
pub(super) struct Clock(AtomicU64);

impl Clock {
    /// A time greater than all before.
    pub(super) fn tick(&self) -> u64 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_micros()).unwrap_or(0);
        let next = |last: u64| Some(now.max(last + 1));
        let last = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).unwrap_or(0);
        now.max(last + 1)
    }

    /// Takes note of another's time.
    pub(super) fn heard(&self, time: u64) {
        self.0.fetch_max(time.min(u64::MAX / 2), Ordering::SeqCst);
    }

    /// The greatest so far.
    pub(super) fn last(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// One HSM of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) serial: String,
    /// Where the others reach it.
    pub(super) address: String,
}

/// What all members agree on beside users and keys.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Policy {
    pub(super) stamp: Stamp,
    /// Empty, or one's own: no cluster of several.
    pub(super) members: Vec<Member>,
    pub(super) label: String,
    pub(super) quorum: BTreeMap<String, u32>,
    /// When that was set: a member that comes or goes elsewhere does not take it back.
    #[serde(default)]
    pub(super) quorum_stamp: Stamp,
}

impl Policy {
    pub(super) fn has(&self, serial: &str) -> bool {
        self.members.iter().any(|m| m.serial == serial)
    }
}

/// Names a record: its kind, then the user's name or the object's handle.
pub(super) type Key = Vec<u8>;

pub(super) const USER: u8 = b'u';
pub(super) const OBJECT: u8 = b'o';
pub(super) const POLICY: u8 = b'p';

pub(super) fn user_key(name: &str) -> Key {
    [&[USER], name.as_bytes()].concat()
}

pub(super) fn object_key(handle: u64) -> Key {
    [&[OBJECT][..], &handle.to_be_bytes()].concat()
}

/// A record as text for people.
pub(super) fn named(key: &Key) -> String {
    match key.split_first() {
        Some((&USER, name)) => format!("user {}", String::from_utf8_lossy(name)),
        Some((&OBJECT, handle)) => format!("key 0x{}", super::root::hex(handle).trim_start_matches('0')),
        _ => "policy".into(),
    }
}

/// A version of a record on its way to another member; without a body it was deleted.
#[derive(Clone)]
pub(super) struct Version {
    pub(super) key: Key,
    pub(super) stamp: Stamp,
    pub(super) body: Option<Bytes>,
}

impl Wire for Version {
    fn size(&self) -> usize {
        4 + self.key.len() + self.stamp.size() + self.body.size()
    }

    fn put(&self, out: &mut Vec<u8>) {
        Bytes::new(self.key.clone()).put(out);
        self.stamp.put(out);
        self.body.put(out);
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        Some(Self {
            key: Bytes::take(from)?.to_vec(),
            stamp: Stamp::take(from)?,
            body: <Option<Bytes> as Wire>::take(from)?,
        })
    }
}
