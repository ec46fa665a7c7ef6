//! Changes at the same time: none undoes another. A test holds the lock under which changes are kept, lets one come as far
//! as that, and makes the other by hand.

use std::time::Duration;

use super::*;
use crate::hsm::cluster::object_key;
use crate::hsm::object::Object;

/// Lets `late` wait behind `early`, which is done with the appliance's lock held.
fn behind<T: Send>(hsm: &Hsm, early: impl FnOnce(&Appliance), late: impl FnOnce() -> T + Send) -> T {
    let appliance = hsm.appliance.clone().unwrap();
    std::thread::scope(|threads| {
        let held = appliance.writing.lock();
        let waits = threads.spawn(late);
        std::thread::sleep(Duration::from_millis(300));
        early(&appliance);
        drop(held);
        waits.join().unwrap()
    })
}

/// A key that is deleted while another thread changes, shares or rotates it stays deleted.
#[test]
fn a_change_does_not_bring_a_deleted_key_back() {
    let hsm = Hsm::new();
    let alice = hsm.user("alice");
    let owner = hsm.logged_in("alice", Role::CryptoUser);
    for way in ["set", "share", "rotate", "destroy"] {
        let key = alice.generate(&[(CKA_TOKEN, &[1]), (CKA_LABEL, b"k")]).unwrap();
        let delete = |appliance: &Appliance| {
            let stamp = appliance.stamp();
            appliance.state.write().bury(object_key(key), stamp);
        };
        let failed = behind(&hsm, delete, || match way {
            "set" => alice.set(key, CKA_LABEL, b"late").is_err(),
            "share" => owner.key_share(key, "bob", true).is_err(),
            "rotate" => owner.key_rotate(key).is_err(),
            _ => alice.link.call::<()>(&Request::Destroy { s: alice.s, object: key }).is_err(),
        });
        assert!(failed, "{way}");
        assert!(alice.find().is_empty(), "{way}: {:?}", alice.find());
    }
}

/// The officer takes a key's trust back while its owner changes the label: both hold.
#[test]
fn a_change_takes_over_what_was_changed_meanwhile() {
    let hsm = Hsm::new();
    let alice = hsm.user("alice");
    let key = alice.generate(&[(CKA_TOKEN, &[1]), (CKA_WRAP, &[1])]).unwrap();
    hsm.logged_in("admin", Role::Admin).key_set_attribute(key, "trusted=true").unwrap();
    let distrust = |appliance: &Appliance| {
        let mut state = appliance.state.write();
        let mut attrs = state.objects[&key].attrs.clone();
        attrs.set_flag(CKA_TRUSTED, false);
        let new: Object = state.objects[&key].changed(attrs);
        state.objects.insert(key, Arc::new(new));
    };
    behind(&hsm, distrust, || alice.set(key, CKA_LABEL, b"late")).unwrap();
    let state = hsm.appliance.as_ref().unwrap().state.read();
    let attrs = &state.objects[&key].attrs;
    assert_eq!(attrs.bytes(CKA_LABEL), Some(&b"late"[..]));
    assert!(!attrs.flag(CKA_TRUSTED));
}

/// Who is made under the name of a deleted user is another: what was shared with the first is not his. A name that is no
/// user's any more can be taken out of a share.
#[test]
fn a_share_ends_with_its_user() {
    let hsm = Hsm::new();
    let alice = hsm.user("alice");
    let owner = hsm.logged_in("alice", Role::CryptoUser);
    let admin = hsm.logged_in("admin", Role::Admin);
    let key = alice.generate(&[(CKA_TOKEN, &[1])]).unwrap();
    owner.key_share(key, "bob", true).unwrap();
    admin.user_delete("bob", Role::CryptoUser).unwrap();
    admin.user_create("bob", Role::CryptoUser, PASSWORD).unwrap();
    assert!(hsm.user("bob").find().is_empty());
    // As an HSM of before has it.
    {
        let mut state = hsm.appliance.as_ref().unwrap().state.write();
        let mut old = state.objects[&key].changed(state.objects[&key].attrs.clone());
        old.shared.insert("carol".into());
        state.objects.insert(key, Arc::new(old));
    }
    owner.key_share(key, "carol", false).unwrap();
    assert!(owner.key_share(key, "carol", false).is_err());
}

/// A user who makes a key while he is deleted leaves none behind, and of two admins who delete each other one stays.
#[test]
fn the_tests_of_a_deletion_hold_when_it_is_made() {
    let hsm = Hsm::new();
    let admin = hsm.logged_in("admin", Role::Admin);
    let alice = hsm.user("alice");
    let gone = |appliance: &Appliance| {
        let stamp = appliance.stamp();
        appliance.state.write().bury(crate::hsm::cluster::user_key("alice"), stamp);
    };
    let made = behind(&hsm, gone, || alice.generate(&[(CKA_TOKEN, &[1])]));
    assert_eq!(made, Err(CKR_USER_NOT_LOGGED_IN));
    admin.user_create("second", Role::Admin, PASSWORD).unwrap();
    let gone = |appliance: &Appliance| {
        let stamp = appliance.stamp();
        appliance.state.write().bury(crate::hsm::cluster::user_key("second"), stamp);
    };
    assert!(behind(&hsm, gone, || admin.user_delete("admin", Role::Admin)).is_err());
}

/// Of two activations at the same time one is made, and its password is the admin's.
#[test]
fn an_hsm_is_activated_once() {
    let tmp = tempfile::tempdir().unwrap();
    Appliance::create(&tmp.path().join("hsm"), &Protection::KeyFile, Cost::TESTS).unwrap();
    let mut hsm = Hsm { tmp, appliance: None, server: None };
    hsm.start();
    let (first, second) = (hsm.manager(), hsm.manager());
    let early = |appliance: &Appliance| appliance.state.write().meta.life = appliance::Life::Active;
    assert!(behind(&hsm, early, || first.activate("another password")).is_err());
    assert!(!hsm.appliance.as_ref().unwrap().state.read().users.contains_key("admin"));
    hsm.appliance.as_ref().unwrap().state.write().meta.life = appliance::Life::Uninitialized;
    second.activate(ADMIN).unwrap();
    hsm.logged_in("admin", Role::Admin);
}

/// A user who is deleted, or whom an admin gives another password, while his own is being checked is not logged in by it, and
/// does not set another one over the admin's.
#[test]
fn a_login_does_not_outlive_its_user() {
    let hsm = Hsm::new();
    let alice = hsm.user("alice");
    let appliance = hsm.appliance.clone().unwrap();
    let checked = |name: &str| appliance::Checked::of(&appliance.state.read().users[name]);
    let (was_alice, was_bob) = (checked("alice"), checked("bob"));
    let admin = hsm.logged_in("admin", Role::Admin);
    admin.user_change_password("alice", Role::CryptoUser, None, "another password").unwrap();
    admin.user_delete("bob", Role::CryptoUser).unwrap();
    admin.user_create("bob", Role::CryptoUser, PASSWORD).unwrap();
    let app = appliance.hello(&[]).unwrap();
    for (name, was) in [("alice", was_alice), ("bob", was_bob)] {
        assert_eq!(appliance.enter(&app, name, &was), Err(CKR_PIN_INCORRECT), "{name}");
        assert!(app.role().is_none());
    }
    appliance.enter(&app, "bob", &checked("bob")).unwrap();
    appliance.goodbye(&app);
    // The admin's password comes while one's own is being changed.
    let pin = |text: &str| bytes(format!("alice:{text}").as_bytes());
    let change = Request::SetPin { s: alice.s, old: pin("another password"), new: pin("my own password") };
    let reset = |appliance: &Appliance| {
        let mut state = appliance.state.write();
        state.users.get_mut("alice").unwrap().version += 1;
    };
    assert_eq!(behind(&hsm, reset, || alice.link.call::<()>(&change)), Err(CKR_PIN_INCORRECT));
}

/// A masked key that was taken out before its deletion does not come back, also once the deletion is forgotten.
#[test]
fn a_masked_key_does_not_outlive_its_deletion() {
    let hsm = Hsm::new();
    let alice = hsm.user("alice");
    let owner = hsm.logged_in("alice", Role::CryptoUser);
    let key = alice.generate(&[(CKA_TOKEN, &[1])]).unwrap();
    let masked = owner.extract_masked(key).unwrap()["masked"].as_str().unwrap().to_owned();
    owner.insert_masked(&masked).unwrap();
    alice.link.call::<()>(&Request::Destroy { s: alice.s, object: key }).unwrap();
    assert!(owner.insert_masked(&masked).is_err());
    let appliance = hsm.appliance.as_ref().unwrap();
    let now = appliance.clock.tick();
    appliance.adopt_horizon(now);
    assert!(!appliance.state.read().gone.contains_key(&object_key(key)));
    assert!(owner.insert_masked(&masked).is_err());
    assert!(alice.find().is_empty());
}
