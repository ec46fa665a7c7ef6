//! Two versions of a record become one, the same on every member and in whatever order they meet.
//!
//! The later stamp wins, with three exceptions. A deleted object stays deleted: its handle is never used again. What goes
//! one way only (sensitive, wrapped by trusted keys only, not extractable) stays so if either version has it. Wrong
//! passwords are counted for each member, and the counts of both sides add up, so that a lockout is the cluster's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cryptoki_sys::*;

use super::super::Ck;
use super::super::appliance::{Appliance, State};
use super::super::lc::Md;
use super::super::object::Object;
use super::super::record;
use super::super::store::{Change, Table};
use super::super::users::User;
use super::super::wire::{Bytes, encode};
use super::{Key, MAX_GONE, OBJECT, POLICY, Policy, Stamp, USER, Version, object_key, user_key};

/// The first bytes of SHA-256 over a version: enough to tell two apart that no attacker made (both are sealed).
pub(in super::super) type Digest = [u8; 16];

fn digest(stamp: &Stamp, body: Option<&Bytes>) -> Digest {
    let text = encode(&(stamp.clone(), body.cloned()));
    let mut out = [0; 16];
    let all = Md::Sha256.digest(&text);
    out.copy_from_slice(all.get(..16).unwrap_or(&[0; 16]));
    out
}

/// What a merge changes.
enum Outcome {
    User(User),
    Object(Object),
    Policy(Policy),
    Gone(Key, Stamp),
}

impl Appliance {
    /// This member's version of a record.
    pub(in super::super) fn version(&self, key: &Key) -> Option<Version> {
        version_in(&self.state.read(), key)
    }

    /// Every record and the digest of its version, in order.
    pub(in super::super) fn inventory(&self) -> BTreeMap<Key, Digest> {
        let state = self.state.read();
        let mut all = BTreeMap::new();
        let policy = state.meta.policy();
        all.insert(vec![POLICY], digest(&policy.stamp, Some(&record::json(&policy))));
        for user in state.users.values() {
            all.insert(user_key(&user.name), digest(&user.stamp, Some(&record::user(user))));
        }
        for object in state.objects.values().filter(|o| o.is_token()) {
            let made = || digest(&object.stamp, Some(&record::encode(object)));
            all.insert(object_key(object.handle), *object.digest.get_or_init(made));
        }
        for (key, stamp) in &state.gone {
            all.insert(key.clone(), digest(stamp, None));
        }
        all
    }

    /// One digest over an inventory.
    pub(super) fn root_of(inventory: &BTreeMap<Key, Digest>) -> Bytes {
        let mut text = Vec::with_capacity(inventory.len() * 32);
        for (key, digest) in inventory {
            text.extend_from_slice(&(key.len() as u64).to_le_bytes());
            text.extend_from_slice(key);
            text.extend_from_slice(digest);
        }
        Bytes::new(Md::Sha256.digest(&text).to_vec())
    }

    /// Takes versions of another member in: durably, all or none.
    pub(in super::super) fn absorb(&self, versions: Vec<Version>) -> Ck<()> {
        let _one = self.writing.lock();
        let mut outcomes = Vec::new();
        {
            let state = self.state.read();
            for version in versions {
                self.clock.heard(version.stamp.time);
                outcomes.extend(merge(&state, version)?);
            }
        }
        if outcomes.is_empty() {
            return Ok(());
        }
        self.end_shares(&mut outcomes);
        self.keep(outcomes)
    }

    /// Takes out of the shares who is gone by these outcomes or was gone before, and whose name is another's now. Where the
    /// other member did so too its version of the key comes first and nothing is left to do.
    fn end_shares(&self, outcomes: &mut Vec<Outcome>) {
        let now = self.stamp();
        let state = self.state.read();
        let mut gone: BTreeMap<String, Stamp> = BTreeMap::new();
        let mut here: BTreeSet<String> = BTreeSet::new();
        let mut seen: BTreeSet<u64> = BTreeSet::new();
        for outcome in outcomes.iter() {
            match outcome {
                Outcome::Gone(key, _) if key.first() == Some(&USER) => {
                    let name = String::from_utf8_lossy(key.get(1..).unwrap_or_default()).into_owned();
                    gone.insert(name, Stamp { time: u64::MAX, by: String::new() });
                }
                Outcome::User(user) => {
                    let old = state.users.get(&user.name);
                    if old.is_some_and(|old| old.born != user.born) {
                        gone.insert(user.name.clone(), user.born.clone());
                    }
                    here.insert(user.name.clone());
                }
                Outcome::Object(object) => {
                    seen.insert(object.handle);
                }
                _ => {}
            }
        }
        // A share with a later user of the same name is made after that user.
        let ended = |object: &Object, name: &str| gone.get(name).is_some_and(|until| object.stamp < *until);
        let buried = |name: &str| !here.contains(name) && state.gone.contains_key(&user_key(name));
        for outcome in outcomes.iter_mut() {
            if let Outcome::Object(object) = outcome
                && object.shared.iter().any(|name| ended(object, name) || buried(name))
            {
                *object = object.unshared(now.clone(), |name| ended(object, name) || buried(name));
            }
        }
        if gone.is_empty() {
            return;
        }
        let others = state.objects.values().filter(|o| o.is_token() && !seen.contains(&o.handle));
        let left = others.filter(|o| o.shared.iter().any(|name| ended(o, name)));
        let left: Vec<_> = left.map(|o| o.unshared(now.clone(), |name| ended(o, name))).collect();
        outcomes.extend(left.into_iter().map(Outcome::Object));
    }

    fn keep(&self, outcomes: Vec<Outcome>) -> Ck<()> {
        let mut meta = self.state.read().meta.clone();
        let mut records: Vec<(Table, Key, Option<Bytes>)> = Vec::new();
        for outcome in &outcomes {
            match outcome {
                Outcome::User(user) => {
                    records.push((Table::Users, user.name.as_bytes().to_vec(), Some(record::user(user))));
                    records.push((Table::Gone, user_key(&user.name), None));
                }
                Outcome::Object(object) => {
                    let key = object.handle.to_be_bytes().to_vec();
                    records.push((Table::Objects, key, Some(record::encode(object))));
                }
                Outcome::Policy(policy) => meta.adopt(policy),
                Outcome::Gone(key, stamp) => {
                    let table = if key.first() == Some(&USER) { Table::Users } else { Table::Objects };
                    records.push((table, key.get(1..).unwrap_or_default().to_vec(), None));
                    records.push((Table::Gone, key.clone(), Some(encode(stamp))));
                }
            }
        }
        let meta_record = record::meta(&meta);
        let mut changes: Vec<Change<'_>> =
            records.iter().map(|(t, k, v)| (*t, k.clone(), v.as_ref().map(|v| v.as_slice()))).collect();
        changes.push(meta_record.change());
        self.commit(&changes)?;
        let mut expelled = Vec::new();
        {
            let mut state = self.state.write();
            state.meta = meta;
            for outcome in outcomes {
                match outcome {
                    Outcome::User(user) => {
                        state.gone.remove(&user_key(&user.name));
                        let (name, born, resets) = (user.name.clone(), user.born.clone(), user.resets);
                        let old = state.users.insert(name.clone(), user);
                        // Another user under that name, or a password that an admin gave.
                        if old.is_some_and(|old| old.born != born || old.resets < resets) {
                            expelled.push(name);
                        }
                    }
                    Outcome::Object(object) => {
                        let fresh = state.objects.insert(object.handle, Arc::new(object));
                        state.token_objects += usize::from(!fresh.is_some_and(|old| old.is_token()));
                    }
                    Outcome::Policy(_) => {}
                    Outcome::Gone(key, stamp) => expelled.extend(state.bury(key, stamp)),
                }
            }
        }
        expelled.iter().for_each(|name| self.expel(name));
        if self.in_service().is_err() {
            self.end_logins(|_| true);
        }
        self.forget_deletions();
        Ok(())
    }

    /// Keeps the number of remembered deletions bounded. Called with `writing` held.
    pub(in super::super) fn forget_deletions(&self) {
        let horizon = {
            let state = self.state.read();
            let Some(over) = state.gone.len().checked_sub(MAX_GONE + 1) else { return };
            let mut times: Vec<_> = state.gone.values().map(|stamp| stamp.time).collect();
            times.sort_unstable();
            // Some more than needed, so that this is seldom.
            times.get(over + MAX_GONE / 16).copied().unwrap_or(0)
        };
        self.forget_before(horizon);
    }

    /// Forgets the deletions of until then. Called with `writing` held.
    pub(super) fn forget_before(&self, horizon: u64) {
        let (old, mut meta) = {
            let state = self.state.read();
            let old =
                state.gone.iter().filter(|(_, stamp)| stamp.time <= horizon).map(|(key, _)| key.clone());
            (old.collect::<Vec<Key>>(), state.meta.clone())
        };
        meta.horizon = meta.horizon.max(horizon);
        let record = record::meta(&meta);
        let mut changes: Vec<Change<'_>> = old.iter().map(|k| (Table::Gone, k.clone(), None)).collect();
        changes.push(record.change());
        if self.commit(&changes).is_ok() {
            let mut state = self.state.write();
            state.meta = meta;
            old.iter().for_each(|key| drop(state.gone.remove(key)));
        }
    }
}

impl State {
    /// Removes what a deletion names; gives the name of a removed user.
    pub(in super::super) fn bury(&mut self, key: Key, stamp: Stamp) -> Option<String> {
        let name = match key.split_first() {
            Some((&USER, name)) => {
                let name = String::from_utf8_lossy(name).into_owned();
                self.users.remove(&name).map(|_| name)
            }
            Some((&OBJECT, handle)) => {
                let handle = handle.try_into().map(u64::from_be_bytes).unwrap_or(0);
                if self.objects.remove(&handle).is_some_and(|o| o.is_token()) {
                    self.token_objects -= 1;
                }
                None
            }
            _ => None,
        };
        self.gone.insert(key, stamp);
        name
    }
}

fn version_in(state: &State, key: &Key) -> Option<Version> {
    if let Some(stamp) = state.gone.get(key) {
        return Some(Version { key: key.clone(), stamp: stamp.clone(), body: None });
    }
    let (stamp, body) = match key.split_first()? {
        (&USER, name) => {
            let user = state.users.get(std::str::from_utf8(name).ok()?)?;
            (user.stamp.clone(), record::user(user))
        }
        (&OBJECT, handle) => {
            let object = state.objects.get(&u64::from_be_bytes(handle.try_into().ok()?))?;
            if !object.is_token() {
                return None;
            }
            (object.stamp.clone(), record::encode(object))
        }
        _ => {
            let policy = state.meta.policy();
            (policy.stamp.clone(), record::json(&policy))
        }
    };
    Some(Version { key: key.clone(), stamp, body: Some(body) })
}

/// What another's version changes here; nothing where ours is the same or the later one.
fn merge(state: &State, theirs: Version) -> Ck<Option<Outcome>> {
    let bad = CKR_DATA_INVALID;
    let gone = state.gone.get(&theirs.key);
    let (kind, rest) = theirs.key.split_first().ok_or(bad)?;
    let Some(body) = &theirs.body else {
        let wins = match *kind {
            // Ours may be a user of the same name that was made later.
            USER => {
                let name = std::str::from_utf8(rest).map_err(|_| bad)?;
                state.users.get(name).is_none_or(|ours| ours.stamp < theirs.stamp)
            }
            OBJECT => true,
            _ => return Err(bad),
        };
        // What everybody may have forgotten does not come back.
        let wins = wins && theirs.stamp.time > state.meta.horizon;
        let news = wins && gone.is_none_or(|ours| *ours < theirs.stamp);
        return Ok(news.then(|| Outcome::Gone(theirs.key.clone(), theirs.stamp.clone())));
    };
    match *kind {
        USER => {
            let user: User = serde_json::from_slice(body).map_err(|_| bad)?;
            if user.name.as_bytes() != rest || gone.is_some_and(|gone| *gone >= user.stamp) {
                return Ok(None);
            }
            let Some(ours) = state.users.get(&user.name) else { return Ok(Some(Outcome::User(user))) };
            let merged = join_users(ours.clone(), user);
            let same = *record::user(&merged) == *record::user(ours);
            Ok((!same).then_some(Outcome::User(merged)))
        }
        OBJECT => {
            let object = record::decode_object(body).ok_or(bad)?;
            if object_key(object.handle) != theirs.key || !object.is_token() {
                return Err(bad);
            }
            if gone.is_some() {
                return Ok(None);
            }
            let Some(ours) = state.objects.get(&object.handle) else {
                return Ok(Some(Outcome::Object(object)));
            };
            let merged = join_objects(ours, &object);
            let same = *record::encode(&merged) == *record::encode(ours);
            Ok((!same).then_some(Outcome::Object(merged)))
        }
        POLICY => {
            let policy: Policy = serde_json::from_slice(body).map_err(|_| bad)?;
            let ours = state.meta.policy();
            let joined = join_policies(ours.clone(), policy);
            Ok((joined != ours).then_some(Outcome::Policy(joined)))
        }
        _ => Err(bad),
    }
}

/// The later list of members and label, and the quorum values that were set later.
fn join_policies(ours: Policy, theirs: Policy) -> Policy {
    let (a, b) = (&ours, &theirs);
    let later = |x: &Stamp, y: &Stamp| (x, &*record::json(a)) >= (y, &*record::json(b));
    let (members, quorum) = (later(&a.stamp, &b.stamp), later(&a.quorum_stamp, &b.quorum_stamp));
    let (quorum, quorum_stamp) = {
        let winner = if quorum { a } else { b };
        (winner.quorum.clone(), winner.quorum_stamp.clone())
    };
    Policy { quorum, quorum_stamp, ..if members { ours } else { theirs } }
}

/// The later user, with the wrong passwords that either side counted.
fn join_users(ours: User, theirs: User) -> User {
    let (ours_at, theirs_at) = (ours.born.clone(), theirs.born.clone());
    if ours_at != theirs_at {
        // One name, two users: the later one is the user.
        return if ours_at > theirs_at { ours } else { theirs };
    }
    let ours_wins = (&ours.stamp, &*record::user(&ours)) >= (&theirs.stamp, &*record::user(&theirs));
    let (mut winner, other) = if ours_wins { (ours, theirs) } else { (theirs, ours) };
    for (mine, its) in [(&mut winner.wrong, other.wrong), (&mut winner.forgiven, other.forgiven)] {
        for (serial, count) in its {
            let mine = mine.entry(serial).or_default();
            *mine = (*mine).max(count);
        }
    }
    winner
}

/// The later object, with what goes one way only from both.
fn join_objects(ours: &Object, theirs: &Object) -> Object {
    let ours_wins = (&ours.stamp, &*record::encode(ours)) >= (&theirs.stamp, &*record::encode(theirs));
    let (winner, other) = if ours_wins { (ours, theirs) } else { (theirs, ours) };
    let mut attrs = winner.attrs.clone();
    for (name, stays) in [
        (CKA_SENSITIVE, true),
        (CKA_WRAP_WITH_TRUSTED, true),
        (CKA_EXTRACTABLE, false),
        (CKA_COPYABLE, false),
        (CKA_MODIFIABLE, false),
    ] {
        if other.attrs.has(name) && other.attrs.flag(name) == stays {
            attrs.set_flag(name, stays);
        }
    }
    if attrs.class() == CKO_SECRET_KEY {
        attrs.remember(&other.attrs);
    }
    let mut merged = winner.changed(attrs);
    merged.stamp = winner.stamp.clone();
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hsm::root::Cost;
    use crate::hsm::users::Role;

    fn stamp(time: u64) -> Stamp {
        Stamp { time, by: "a".into() }
    }

    fn object(time: u64, label: &[u8], sensitive: u8) -> Object {
        let mut attrs = crate::hsm::attrs::Attrs(BTreeMap::new());
        attrs.set(CKA_LABEL, label);
        attrs.set(CKA_SENSITIVE, &[sensitive]);
        attrs.set(CKA_TOKEN, &[1]);
        let mut object = Object::with(7, "alice".into(), Default::default(), None, Default::default(), attrs);
        object.stamp = stamp(time);
        object
    }

    /// The later label wins, and a key that one side made sensitive stays so, whoever asks whom.
    #[test]
    fn versions_of_a_key_become_one_in_either_order() {
        let (early, late) = (object(1, b"early", 1), object(2, b"late", 0));
        let (a, b) = (join_objects(&early, &late), join_objects(&late, &early));
        assert_eq!(record::encode(&a), record::encode(&b));
        assert_eq!(a.attrs.bytes(CKA_LABEL), Some(&b"late"[..]));
        assert!(a.attrs.flag(CKA_SENSITIVE));
        // A third member, which knows the later version only, comes to the same.
        assert_eq!(record::encode(&join_objects(&late, &a)), record::encode(&a));
    }

    /// A member that came on one side does not take back a quorum value that was set on the other, nor the reverse.
    #[test]
    fn quorum_values_and_members_are_two_things() {
        let member = |serial: &str| super::super::Member { serial: serial.into(), address: "unix:x".into() };
        let mut one = Policy { stamp: stamp(1), members: vec![member("a")], ..Policy::default() };
        let mut two = one.clone();
        one.quorum.insert("user".into(), 2);
        one.quorum_stamp = stamp(2);
        two.members.push(member("b"));
        two.stamp = stamp(3);
        let joined = join_policies(one.clone(), two.clone());
        assert_eq!(joined, join_policies(two.clone(), one.clone()));
        assert_eq!(joined.quorum.get("user"), Some(&2));
        assert_eq!(joined.members.len(), 2);
        for side in [one, two, joined.clone()] {
            assert_eq!(join_policies(joined.clone(), side.clone()), joined);
            assert_eq!(join_policies(side, joined.clone()), joined);
        }
    }

    /// Three wrong passwords here and two there lock the account; a right one forgives only those that it saw.
    #[test]
    fn wrong_passwords_add_up() {
        let mut here = User::new("alice", Role::CryptoUser, Some(b"password"), Cost::TESTS);
        let mut there = here.clone();
        (0..3).for_each(|_| here.count_wrong("here"));
        (0..2).for_each(|_| there.count_wrong("there"));
        let both = join_users(here.clone(), there.clone());
        assert_eq!(record::user(&both), record::user(&join_users(there.clone(), here.clone())));
        assert!(both.is_locked() && !here.is_locked() && !there.is_locked());
        there.forgive();
        let both = join_users(here, there);
        assert_eq!(both.failures(), 3);
    }

    /// The password that was set later is the password, whatever was counted since.
    #[test]
    fn a_newer_password_wins_over_an_older_count() {
        let old = User::new("alice", Role::CryptoUser, Some(b"old password"), Cost::TESTS);
        let mut new = old.clone();
        new.verifier = User::new("alice", Role::CryptoUser, Some(b"new password"), Cost::TESTS).verifier;
        new.stamp = stamp(9);
        let mut counted = old;
        counted.count_wrong("here");
        let merged = join_users(counted, new);
        assert!(merged.verifier.as_ref().is_some_and(|v| v.matches(b"new password")));
        assert_eq!(merged.failures(), 1);
    }
}
