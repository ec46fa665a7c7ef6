//! Guesses at passwords, and what is logged of whom, where the disk takes nothing and where clients ask without end.

use std::sync::atomic::Ordering;

use super::*;

fn guess(hsm: &Hsm, pin: &str) -> Ck<()> {
    let link = Link::new(hsm.address(), None).unwrap();
    let s = link.call(&Request::OpenSession { rw: true }).unwrap();
    User { link, s }.login(CKU_USER, pin)
}

/// A wrong guess that the disk does not take is the last one: no other is looked at until it is counted, and then it counts.
#[test]
fn guesses_are_counted_on_a_full_disk_or_not_taken() {
    let hsm = Hsm::new();
    let broken = |is: bool| hsm.appliance.as_ref().unwrap().store.broken.store(is, Ordering::SeqCst);
    let right = format!("alice:{PASSWORD}");
    broken(true);
    for _ in 0..6 {
        assert_eq!(guess(&hsm, "alice:not the password"), Err(CKR_DEVICE_ERROR));
    }
    assert_eq!(guess(&hsm, &right), Err(CKR_DEVICE_ERROR), "right and wrong are not told apart");
    assert_eq!(guess(&hsm, &format!("bob:{PASSWORD}")), Ok(()));
    broken(false);
    for _ in 0..4 {
        assert_eq!(guess(&hsm, "alice:not the password"), Err(CKR_PIN_INCORRECT));
    }
    assert_eq!(guess(&hsm, &right), Err(CKR_PIN_LOCKED), "the one of before is the fifth");
}

/// Who is not logged in does not fill the disk with refusals: some have a line, the others are counted. Wrong passwords of
/// users have theirs.
#[test]
fn refusals_of_nobody_are_counted() {
    let hsm = Hsm::new();
    let link = Link::new(hsm.address(), None).unwrap();
    for s in 0..200 {
        let gone: Ck<()> = link.call(&Request::Destroy { s, object: 1 });
        assert!(gone.is_err());
        assert!(hsm.manager().initialize(String::new(), String::new()).is_err());
    }
    assert_eq!(guess(&hsm, "alice:not the password"), Err(CKR_PIN_INCORRECT));
    let log = std::fs::read_to_string(hsm.tmp.path().join("hsm/audit.log")).unwrap();
    let of = |what: &str| log.lines().filter(|line| line.contains(what)).count();
    assert!((16..40).contains(&(of("CN_DESTROY_OBJECT") + of("CN_INIT_CLUSTER"))), "{log}");
    assert!(log.lines().last().unwrap().contains("\"object\":\"alice\""), "{log}");
}

/// A management command whose line cannot be written fails: nobody logs in unseen, and no key comes out.
#[test]
fn what_cannot_be_logged_fails() {
    let hsm = Hsm::new();
    let alice = hsm.user("alice");
    let admin = hsm.logged_in("admin", Role::Admin);
    let key = alice.generate(&[(CKA_EXTRACTABLE, &[1])]).unwrap();
    let kek = alice.generate(&[(CKA_WRAP, &[1])]).unwrap();
    let full = std::fs::OpenOptions::new().append(true).open("/dev/full").unwrap();
    hsm.appliance.as_ref().unwrap().audit.lock().file = full;
    assert_eq!(guess(&hsm, &format!("alice:{PASSWORD}")), Err(CKR_DEVICE_ERROR));
    assert!(hsm.manager().login("alice", Role::CryptoUser, PASSWORD).is_err());
    assert_eq!(alice.wrap(plain(CKM_AES_KEY_WRAP), kek, key).err(), Some(CKR_DEVICE_ERROR));
    assert_eq!(alice.generate(&[]), Err(CKR_DEVICE_ERROR));
    assert!(admin.user_create("carol", Role::CryptoUser, PASSWORD).is_err());
    // Uses of keys are not logged.
    alice.once(Op::Encrypt, gcm(&[1; 12]), key, b"x").unwrap();
}

/// More guesses at passwords than there are threads, and none of them gets on: who is logged in is answered meanwhile, and
/// they are when they can be.
#[test]
fn guesses_at_passwords_leave_threads_for_others() {
    let hsm = Hsm::new();
    let alice = hsm.user("alice");
    let key = alice.generate(&[]).unwrap();
    let appliance = hsm.appliance.clone().unwrap();
    let held = appliance.guessing("nobody").lock();
    let guesses: Vec<_> = (0..12)
        .map(|n| {
            let at = hsm.address();
            std::thread::spawn(move || {
                let link = Link::new(at.clone(), None).unwrap();
                let s = link.call(&Request::OpenSession { rw: true }).unwrap();
                if n % 2 == 0 {
                    return User { link, s }.login(CKU_USER, "nobody:password") == Err(CKR_PIN_INCORRECT);
                }
                Manager::new(at, None).unwrap().login("nobody", Role::Admin, "pass\"word").is_err()
            })
        })
        .collect();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let (done, waits) = std::sync::mpsc::channel();
    let answered = std::thread::spawn(move || {
        let sealed = alice.once(Op::Encrypt, gcm(&[1; 12]), key, b"x");
        let _ = done.send(sealed.is_ok());
    });
    let served = waits.recv_timeout(std::time::Duration::from_secs(30));
    drop(held);
    assert_eq!(served, Ok(true));
    answered.join().unwrap();
    assert!(guesses.into_iter().all(|guess| guess.join().unwrap()));
}

/// C_InitToken is one change: where the disk does not take it, the HSM is the one that it was, at once and at its next start.
#[test]
fn an_hsm_is_emptied_at_once_or_not() {
    let mut hsm = Hsm::new();
    let alice = hsm.user("alice");
    let key = alice.generate(&[(CKA_TOKEN, &[1])]).unwrap();
    let empty = |hsm: &Hsm| -> Ck<()> {
        let link = Link::new(hsm.address(), None).unwrap();
        link.call(&Request::InitToken { pin: bytes(ADMIN.as_bytes()), label: "new".into() })
    };
    hsm.appliance.as_ref().unwrap().store.broken.store(true, Ordering::SeqCst);
    assert_eq!(empty(&hsm), Err(CKR_DEVICE_ERROR));
    assert_eq!(alice.find(), [key], "nobody was logged out for nothing");
    hsm.appliance.as_ref().unwrap().store.broken.store(false, Ordering::SeqCst);
    drop(alice);
    hsm.stop();
    hsm.start();
    let alice = hsm.user("alice");
    assert_eq!(alice.find(), [key]);
    assert_eq!(empty(&hsm), Ok(()));
    assert_eq!(alice.generate(&[]), Err(CKR_SESSION_HANDLE_INVALID));
    drop(alice);
    hsm.stop();
    hsm.start();
    let users = hsm.logged_in("admin", Role::Admin).user_list().unwrap();
    assert!(!users.to_string().contains("alice"), "{users}");
}

/// Who is not logged in learns how many users are locked, not who they are.
#[test]
fn the_names_of_users_are_for_users() {
    let hsm = Hsm::new();
    for _ in 0..5 {
        assert_eq!(guess(&hsm, "alice:not the password"), Err(CKR_PIN_INCORRECT));
    }
    let health = hsm.manager().health().unwrap();
    assert!(health["locked"] == 1 && !health.to_string().contains("alice"), "{health}");
    assert_eq!(hsm.logged_in("admin", Role::Admin).health().unwrap()["locked-users"][0], "alice");
}
