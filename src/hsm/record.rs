//! Records of the store: how the appliance's parts become bytes and come back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::appliance::Meta;
use super::attrs::Attrs;
use super::cluster::Stamp;
use super::error::HsmError;
use super::object::{KeyQuorum, Object};
use super::store::{Change, Store, Table};
use super::users::User;
use super::wire::{Bytes, Wire as _, decode};
use crate::crypto::wiped;

/// A record, ready to be written.
pub(super) struct Record {
    table: Table,
    key: Vec<u8>,
    value: Bytes,
}

impl Record {
    pub(super) fn change(&self) -> Change<'_> {
        (self.table, self.key.clone(), Some(&self.value))
    }
}

const META: &[u8] = b"hsm";

/// A structure as JSON.
pub(super) fn json(value: &impl Serialize) -> Bytes {
    wiped::json(value).expect("plain structures encode")
}

pub(super) fn meta(meta: &Meta) -> Record {
    Record { table: Table::Meta, key: META.to_vec(), value: json(meta) }
}

pub(super) fn user(user: &User) -> Bytes {
    json(user)
}

pub(super) fn object(object: &Object) -> Record {
    Record { table: Table::Objects, key: object.handle.to_be_bytes().to_vec(), value: encode(object) }
}

/// An object as bytes: for the store, for masked objects and for backups.
pub(super) fn encode(object: &Object) -> Bytes {
    let shared: Vec<String> = object.shared.iter().cloned().collect();
    let attrs = object.attrs.encode();
    // Version, handle, two quorum values, and what has a length of its own.
    let size = 4 + 8 + 2 * 4 + object.stamp.size() + object.owner.size() + shared.size() + attrs.size();
    let mut out = Zeroizing::new(Vec::with_capacity(size));
    2u32.put(&mut out);
    object.stamp.put(&mut out);
    object.handle.put(&mut out);
    object.owner.put(&mut out);
    shared.put(&mut out);
    object.quorum.usage.put(&mut out);
    object.quorum.management.put(&mut out);
    attrs.put(&mut out);
    debug_assert_eq!(out.len(), size);
    out
}

/// From [`encode`].
pub(super) fn decode_object(bytes: &[u8]) -> Option<Object> {
    let from = &mut &*bytes;
    let stamp = match u32::take(from)? {
        // Of before there were clusters.
        1 => Stamp::default(),
        2 => Stamp::take(from)?,
        _ => return None,
    };
    let (handle, owner) = (u64::take(from)?, String::take(from)?);
    let shared: BTreeSet<String> = Vec::<String>::take(from)?.into_iter().collect();
    let quorum = KeyQuorum { usage: u32::take(from)?, management: u32::take(from)? };
    let attrs = Attrs::decode(&decode::<Bytes>(from)?)?;
    let mut object = Object::with(handle, owner, shared, None, quorum, attrs);
    object.stamp = stamp;
    Some(object)
}

fn parse<T: for<'a> Deserialize<'a>>(dir: &Path, bytes: &[u8]) -> Result<T, HsmError> {
    serde_json::from_slice(bytes).map_err(|e| HsmError::damaged(dir, e))
}

pub(super) fn read_meta(store: &Store, dir: &Path) -> Result<Meta, HsmError> {
    let all = store.all(Table::Meta)?;
    let found = all.iter().find(|(key, _)| key == META);
    let (_, value) = found.ok_or_else(|| HsmError::damaged(dir, "its first record is missing"))?;
    parse(dir, value)
}

pub(super) fn read_users(store: &Store, dir: &Path) -> Result<BTreeMap<String, User>, HsmError> {
    let users = store.all(Table::Users)?;
    users.iter().map(|(_, value)| parse(dir, value).map(|u: User| (u.name.clone(), u))).collect()
}

pub(super) fn read_objects(store: &Store, dir: &Path) -> Result<HashMap<u64, Arc<Object>>, HsmError> {
    let bad = || HsmError::damaged(dir, "an object does not decode");
    let all = store.all(Table::Objects)?;
    all.iter()
        .map(|(_, value)| decode_object(value).map(|o| (o.handle, Arc::new(o))).ok_or_else(bad))
        .collect()
}

pub(super) fn read_gone(store: &Store, dir: &Path) -> Result<BTreeMap<Vec<u8>, Stamp>, HsmError> {
    let bad = || HsmError::damaged(dir, "a deletion does not decode");
    let all = store.all(Table::Gone)?;
    all.into_iter().map(|(key, value)| decode(&value).map(|stamp| (key, stamp)).ok_or_else(bad)).collect()
}
