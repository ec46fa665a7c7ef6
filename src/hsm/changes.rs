//! Durable changes: each is in the store before it is in memory, under one lock, and has a stamp.

use std::sync::Arc;

use cryptoki_sys::*;

use super::Ck;
use super::appliance::{App, Appliance, MAX_SESSION_OBJECTS, MAX_TOKEN_OBJECTS, Meta};
use super::cluster::{Stamp, object_key, user_key};
use super::object::Object;
use super::record;
use super::store::{Change, Table};
use super::users::User;

impl Appliance {
    /// Makes changes durable. Called with `writing` held; the caller then changes the memory.
    pub(super) fn commit(&self, changes: &[Change<'_>]) -> Ck<()> {
        self.store.write(changes).map_err(|e| {
            log::error!("{e}");
            CKR_DEVICE_ERROR
        })
    }

    /// Changes what the appliance is.
    pub(super) fn change_meta(&self, change: impl FnOnce(&mut Meta)) -> Ck<()> {
        self.try_change_meta(|meta| {
            change(meta);
            Ok(())
        })
    }

    /// The same, where the change may be refused.
    pub(super) fn try_change_meta<E: From<CK_RV>>(
        &self,
        change: impl FnOnce(&mut Meta) -> Result<(), E>,
    ) -> Result<(), E> {
        let _one = self.writing.lock();
        let mut meta = self.state.read().meta.clone();
        change(&mut meta)?;
        self.commit(&[record::meta(&meta).change()])?;
        self.state.write().meta = meta;
        Ok(())
    }

    /// Changes one user, or (`None`) removes it, and with it his name in the shares of keys: who is made under that name
    /// later is another.
    pub(super) fn change_user<T>(
        &self,
        name: &str,
        change: impl FnOnce(Option<User>, usize) -> Ck<(Option<User>, T)>,
    ) -> Ck<T> {
        let _one = self.writing.lock();
        let (old, count) = {
            let state = self.state.read();
            (state.users.get(name).cloned(), state.users.len())
        };
        let (was, existed) = (old.as_ref().map(|u| (u.version, u.born.clone())), old.is_some());
        let (mut new, result) = change(old, count)?;
        if new.is_none() && !existed {
            return Ok(result);
        }
        let now = self.stamp();
        if let Some(user) = &mut new
            && was.as_ref().is_none_or(|(version, _)| *version != user.version)
        {
            user.stamp = now.clone();
            user.born = was.map_or_else(|| now.clone(), |(_, born)| born);
        }
        let (sealed, key, stamp) =
            (new.as_ref().map(record::user), user_key(name), super::wire::encode(&now));
        let left = if new.is_none() { self.without_sharee(name) } else { Vec::new() };
        let records: Vec<_> = left.iter().map(record::object).collect();
        let mut changes = vec![
            (Table::Users, name.as_bytes().to_vec(), sealed.as_ref().map(|v| v.as_slice())),
            (Table::Gone, key.clone(), new.is_none().then_some(stamp.as_slice())),
        ];
        changes.extend(records.iter().map(record::Record::change));
        self.commit(&changes)?;
        self.owe(left.iter().map(|o| object_key(o.handle)).collect());
        {
            let mut state = self.state.write();
            state.objects.extend(left.into_iter().map(|o| (o.handle, Arc::new(o))));
            match new {
                Some(user) => {
                    state.gone.remove(&key);
                    state.users.insert(name.to_owned(), user);
                }
                None => drop(state.bury(key, now)),
            }
        }
        self.forget_deletions();
        Ok(result)
    }

    /// New versions of the keys that are shared with a user, without him. Called with `writing` held.
    fn without_sharee(&self, name: &str) -> Vec<Object> {
        let shared: Vec<_> = {
            let state = self.state.read();
            state.objects.values().filter(|o| o.shared.contains(name)).cloned().collect()
        };
        shared.iter().map(|object| object.unshared(self.stamp(), |sharee| sharee == name)).collect()
    }

    /// The stamp of a change that is made here and now.
    pub(super) fn stamp(&self) -> Stamp {
        Stamp { time: self.clock.tick(), by: self.state.read().meta.serial.clone() }
    }

    /// Puts new objects in their places, token objects durably: all or none.
    pub(super) fn insert(&self, objects: Vec<Object>) -> Ck<()> {
        if objects.iter().all(|o| !o.is_token()) {
            let mut state = self.state.write();
            if state.objects.len() - state.token_objects + objects.len() > MAX_SESSION_OBJECTS {
                return Err(CKR_DEVICE_MEMORY);
            }
            state.objects.extend(objects.into_iter().map(|o| (o.handle, Arc::new(o))));
            return Ok(());
        }
        let _one = self.writing.lock();
        {
            let state = self.state.read();
            let taken = |o: &Object| {
                state.objects.contains_key(&o.handle) || state.gone.contains_key(&object_key(o.handle))
            };
            // A handle is an object's for ever: what was deleted does not come back under it.
            if objects.iter().any(taken) {
                return Err(CKR_OBJECT_HANDLE_INVALID);
            }
            // Whoever was deleted meanwhile leaves no key behind.
            let orphan = |o: &Object| !o.owner.is_empty() && !state.users.contains_key(&o.owner);
            if objects.iter().any(orphan) {
                return Err(CKR_USER_NOT_LOGGED_IN);
            }
        }
        objects.iter().try_for_each(|object| self.keeps_terms(object))?;
        self.put_objects(objects)
    }

    /// Changes an object. `change` is given the object as it is now, and nothing comes between its look and what it gives
    /// being kept: the next version, new objects beside it, or (none at all) no change.
    pub(super) fn change_object<E: From<CK_RV>>(
        &self,
        handle: u64,
        change: impl FnOnce(&Arc<Object>) -> Result<Vec<Object>, E>,
    ) -> Result<(), E> {
        let _one = self.writing.lock();
        let old = self.state.read().objects.get(&handle).cloned().ok_or(CKR_OBJECT_HANDLE_INVALID)?;
        let new = change(&old)?;
        if new.is_empty() {
            return Ok(());
        }
        // Who has its deletion already would delete it again: see `recall`.
        if !old.is_token() && self.state.read().gone.contains_key(&object_key(handle)) {
            let again = |o: &Object| o.handle == handle && o.is_token();
            if new.iter().any(again) {
                return Err(CKR_TOKEN_WRITE_PROTECTED.into());
            }
        }
        Ok(self.put_objects(new)?)
    }

    /// Keeps versions of objects, token objects durably. Called with `writing` held. A session object may end meanwhile,
    /// as that takes no such lock: then its next version is not kept either.
    fn put_objects(&self, mut objects: Vec<Object>) -> Ck<()> {
        for object in objects.iter_mut().filter(|o| o.is_token()) {
            object.stamp = self.stamp();
        }
        let (fresh, known) = {
            let state = self.state.read();
            let is_new =
                |o: &&Object| o.is_token() && !state.objects.get(&o.handle).is_some_and(|old| old.is_token());
            let fresh = objects.iter().filter(is_new).count();
            if fresh > 0 && state.token_objects + fresh > MAX_TOKEN_OBJECTS {
                return Err(CKR_DEVICE_MEMORY);
            }
            let known = objects.iter().map(|o| o.handle).filter(|handle| state.objects.contains_key(handle));
            (fresh, known.collect::<Vec<_>>())
        };
        let records: Vec<_> = objects.iter().filter(|o| o.is_token()).map(record::object).collect();
        if !records.is_empty() {
            self.commit(&records.iter().map(record::Record::change).collect::<Vec<_>>())?;
        }
        {
            let mut state = self.state.write();
            if known.iter().all(|handle| state.objects.contains_key(handle)) {
                state.token_objects += fresh;
                state.objects.extend(objects.into_iter().map(|o| (o.handle, Arc::new(o))));
                return Ok(());
            }
        }
        let keys = objects.iter().filter(|o| o.is_token()).map(|o| o.handle.to_be_bytes().to_vec());
        self.commit(&keys.map(|key| (Table::Objects, key, None)).collect::<Vec<_>>())?;
        Err(CKR_OBJECT_HANDLE_INVALID)
    }

    /// Takes a token object back that was a session object until now: the other members are told that it is gone. It may be
    /// copied to the token later, and does not go there itself any more.
    pub(super) fn recall(&self, app: &App, was: Object) -> Ck<()> {
        let handle = was.handle;
        self.remove(handle, |_| Ok(()))?;
        if was.session.is_some_and(|(_, s)| app.session(s).is_ok()) {
            self.state.write().objects.insert(handle, Arc::new(was));
        }
        Ok(())
    }

    /// Deletes an object that `may` lets go.
    pub(super) fn remove(&self, handle: u64, may: impl FnOnce(&Object) -> Ck<()>) -> Ck<()> {
        let find = || self.state.read().objects.get(&handle).cloned().ok_or(CKR_OBJECT_HANDLE_INVALID);
        let object = find()?;
        if !object.is_token() {
            may(&object)?;
            let mut state = self.state.write();
            // It may have become a token object since.
            if state.objects.get(&handle).is_some_and(|o| !o.is_token()) {
                state.objects.remove(&handle);
                return Ok(());
            }
            return Err(CKR_OBJECT_HANDLE_INVALID);
        }
        let _one = self.writing.lock();
        may(&*find()?)?;
        let (now, key) = (self.stamp(), object_key(handle));
        let stamp = super::wire::encode(&now);
        self.commit(&[
            (Table::Objects, handle.to_be_bytes().to_vec(), None),
            (Table::Gone, key.clone(), Some(&stamp)),
        ])?;
        self.state.write().bury(key, now);
        self.forget_deletions();
        Ok(())
    }
}
