//! Several members: who may be one, and how they come to the same.

use super::*;
use crate::hsm::cluster::{object_key, user_key};

const BACKUP: &str = "backup password";

impl Hsm {
    pub(super) fn backup(&self) -> std::path::PathBuf {
        let made = self.logged_in("admin", Role::Admin).backup(BACKUP).unwrap();
        made["path"].as_str().unwrap().into()
    }

    /// An HSM made of a backup; it serves, and is no member yet.
    pub(super) fn restored(backup: &std::path::Path) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("hsm");
        Appliance::restore(&dir, &Protection::KeyFile, Cost::TESTS, backup, BACKUP.as_bytes()).unwrap();
        let mut hsm = Self { tmp, appliance: None, server: None };
        hsm.start();
        hsm
    }

    fn add(&self, other: &Self) -> Result<serde_json::Value, HsmError> {
        self.logged_in("admin", Role::Admin).cluster_add(&other.address().to_string())
    }

    pub(super) fn here(&self) -> &Arc<Appliance> {
        self.appliance.as_ref().unwrap()
    }

    /// Waits until two members have the same.
    pub(super) fn same_as(&self, other: &Self) {
        for _ in 0..3000 {
            if self.here().inventory() == other.here().inventory() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("the members do not come to the same: {} / {}", self.health(), other.health());
    }

    fn health(&self) -> serde_json::Value {
        self.manager().health().unwrap()
    }
}

/// Two members.
pub(super) fn pair() -> (Hsm, Hsm) {
    let one = Hsm::new();
    let two = Hsm::restored(&one.backup());
    one.add(&two).unwrap();
    // The new member tells what changes on it once it has met the other.
    for _ in 0..3000 {
        if two.health()["members"][0]["reachable"] == true {
            return (one, two);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the members do not meet: {}", two.health());
}

pub(super) fn refused<T: std::fmt::Debug>(result: Result<T, HsmError>, why: &str) {
    let text = result.expect_err("it must be refused").to_string();
    assert!(text.contains(why), "{text}");
}

/// What is made, changed, shared and deleted on one member is so on the other when the call is answered.
#[test]
fn members_have_the_same_users_and_keys() {
    let (one, two) = pair();
    let (alice, there) = (one.user("alice"), two.user("alice"));
    let key = alice.generate(&[(CKA_TOKEN, &[1]), (CKA_EXTRACTABLE, &[1])]).unwrap();
    let sealed = alice.once(Op::Encrypt, gcm(&[1; 12]), key, b"x").unwrap();
    assert_eq!(*there.once(Op::Decrypt, gcm(&[1; 12]), key, &sealed).unwrap(), b"x");
    // A session key is on its member alone.
    let session = alice.generate(&[]).unwrap();
    assert!(!there.find().contains(&session));
    there.set(key, CKA_LABEL, b"from two").unwrap();
    one.logged_in("alice", Role::CryptoUser).key_share(key, "bob", true).unwrap();
    assert!(two.user("bob").find().contains(&key));
    let shown: (u64, Vec<crate::hsm::keyops::Shown>) =
        alice.link.call(&Request::GetAttrs { s: alice.s, object: key, types: vec![CKA_LABEL] }).unwrap();
    assert_eq!(shown.1[0].1.as_ref().map(|v| v.to_vec()), Some(b"from two".to_vec()));
    two.logged_in("admin", Role::Admin).user_create("carol", Role::CryptoUser, PASSWORD).unwrap();
    one.user("carol");
    there.link.call::<()>(&Request::Destroy { s: there.s, object: key }).unwrap();
    assert!(!alice.find().contains(&key));
    one.same_as(&two);
    let list = one.logged_in("admin", Role::Admin).user_list().unwrap();
    assert!(list["users"].as_array().unwrap().iter().all(|u| u["cluster-coverage"] == "full"), "{list}");
}

/// A member that was away learns what it missed, deletions too, before it serves again; until then the others say what
/// it lacks. A new key needs a second member.
#[test]
fn a_member_that_was_away_is_told_what_it_missed() {
    let (mut one, mut two) = pair();
    let alice = one.user("alice");
    let (stays, goes) =
        (alice.generate(&[(CKA_TOKEN, &[1])]).unwrap(), alice.generate(&[(CKA_TOKEN, &[1])]).unwrap());
    two.stop();
    alice.set(stays, CKA_LABEL, b"changed meanwhile").unwrap();
    alice.link.call::<()>(&Request::Destroy { s: alice.s, object: goes }).unwrap();
    let made = one.logged_in("admin", Role::Admin).user_create("carol", Role::CryptoUser, PASSWORD).unwrap();
    assert_eq!(made["cluster-coverage"], "inconsistent", "{made}");
    let health = one.health();
    let lacks = health["members"][0]["lacks-first"].to_string();
    assert!(lacks.contains("user carol") && lacks.contains(&format!("{goes:#x}")), "{health}");
    assert_eq!(health["members"][0]["reachable"], false);
    assert_eq!(alice.generate(&[(CKA_TOKEN, &[1])]).err(), Some(CKR_TOKEN_WRITE_PROTECTED));
    // Nor does a session key become one, and it stays what it is.
    let session = alice.generate(&[]).unwrap();
    assert_eq!(alice.set(session, CKA_TOKEN, &[1]), Err(CKR_TOKEN_WRITE_PROTECTED));
    alice.once(Op::Encrypt, gcm(&[1; 12]), session, b"x").unwrap();
    alice.set(session, CKA_LABEL, b"still here").unwrap();
    alice.link.call::<()>(&Request::Destroy { s: alice.s, object: session }).unwrap();
    assert_eq!(alice.find(), vec![stays], "nothing is left of a key that is on one member only");
    drop(alice);
    one.stop();
    one.start_with(Config { disable_key_availability_check: true, ..config() });
    let alone = one.user("alice").generate(&[(CKA_TOKEN, &[1])]).unwrap();
    two.start();
    two.same_as(&one);
    two.user("carol");
    let mut found = two.user("alice").find();
    found.sort_unstable();
    let mut wanted = vec![stays, alone];
    wanted.sort_unstable();
    assert_eq!(found, wanted);
}

/// A user's deletion ends his shares on all members, those too that another member made without knowing of it.
#[test]
fn shares_with_a_deleted_user_end_on_all_members() {
    let (mut one, mut two) = pair();
    let alice = one.user("alice");
    let (before, during) =
        (alice.generate(&[(CKA_TOKEN, &[1])]).unwrap(), alice.generate(&[(CKA_TOKEN, &[1])]).unwrap());
    one.logged_in("alice", Role::CryptoUser).key_share(before, "bob", true).unwrap();
    one.same_as(&two);
    drop(alice);
    two.stop();
    one.logged_in("admin", Role::Admin).user_delete("bob", Role::CryptoUser).unwrap();
    one.stop();
    two.start();
    two.logged_in("alice", Role::CryptoUser).key_share(during, "bob", true).unwrap();
    one.start();
    one.same_as(&two);
    for hsm in [&one, &two] {
        let state = hsm.here().state.read();
        assert!(!state.users.contains_key("bob"));
        assert!(state.objects.values().all(|o| o.shared.is_empty()));
    }
}

/// Changes on both sides while the members did not see each other: the later label, and what either side forbade.
#[test]
fn changes_on_both_sides_become_one() {
    let (mut one, mut two) = pair();
    let key = one.user("alice").generate(&[(CKA_TOKEN, &[1]), (CKA_EXTRACTABLE, &[1])]).unwrap();
    one.same_as(&two);
    two.stop();
    one.user("alice").set(key, CKA_EXTRACTABLE, &[0]).unwrap();
    one.stop();
    two.start();
    let there = two.user("alice");
    there.set(key, CKA_LABEL, b"later").unwrap();
    drop(there);
    one.start();
    one.same_as(&two);
    for hsm in [&one, &two] {
        let state = hsm.here().state.read();
        let attrs = &state.objects[&key].attrs;
        assert_eq!(attrs.bytes(CKA_LABEL), Some(&b"later"[..]));
        assert!(!attrs.flag(CKA_EXTRACTABLE), "what one side made unextractable stays so");
    }
}

/// Wrong passwords count together, on whichever member: the fifth locks the account everywhere, and an admin of any
/// member unlocks it everywhere.
#[test]
fn a_lockout_is_the_clusters() {
    let (one, two) = pair();
    let wrong = |hsm: &Hsm| {
        let link = Link::new(hsm.address(), None).unwrap();
        let s = link.call(&Request::OpenSession { rw: true }).unwrap();
        User { link, s }.login(CKU_USER, "alice:not the password")
    };
    for hsm in [&one, &two, &one, &two, &one] {
        assert_eq!(wrong(hsm), Err(CKR_PIN_INCORRECT));
    }
    assert_eq!(wrong(&two), Err(CKR_PIN_LOCKED));
    assert_eq!(wrong(&one), Err(CKR_PIN_LOCKED));
    let admin = two.logged_in("admin", Role::Admin);
    admin.user_change_password("alice", Role::CryptoUser, None, PASSWORD).unwrap();
    one.user("alice");
}

/// A password that an admin gives ends the logins with the old one, on all members; one's own change ends none.
#[test]
fn a_reset_password_ends_logins_everywhere() {
    let (one, two) = pair();
    let (here, there) = (one.user("alice"), two.user("alice"));
    let new = "another password";
    let change = Request::SetPin { s: here.s, old: bytes(PASSWORD.as_bytes()), new: bytes(new.as_bytes()) };
    here.link.call::<()>(&change).unwrap();
    one.same_as(&two);
    assert!(here.generate(&[]).is_ok() && there.generate(&[]).is_ok());
    let admin = one.logged_in("admin", Role::Admin);
    admin.user_change_password("alice", Role::CryptoUser, None, PASSWORD).unwrap();
    for user in [&here, &there] {
        assert_eq!(user.generate(&[]), Err(CKR_USER_NOT_LOGGED_IN));
        assert!(user.find().is_empty(), "private session keys end with the login");
    }
    admin.user_change_password("admin", Role::Admin, Some(ADMIN), ADMIN).unwrap();
    admin.user_list().unwrap();
}

/// Another cluster's HSM, a backup that is too old, one member too many, the same member twice: each is refused, and says
/// why.
#[test]
fn who_does_not_belong_is_refused() {
    let mut one = Hsm::new();
    let old = one.backup();
    let foreign = Hsm::new();
    refused(one.add(&foreign), "belongs to cluster-");
    // The cluster's name with other keys.
    let mut copy = Hsm::restored(&old);
    copy.here().change_meta(|meta| meta.mask_key = crate::hsm::root::hex(&[7; 32])).unwrap();
    refused(one.add(&copy), "foreign");
    copy.stop();
    let two = Hsm::restored(&one.backup());
    one.add(&two).unwrap();
    refused(one.add(&two), "member already");
    refused(one.add(&one), "member already");
    // Deletions of before now are forgotten.
    let now = one.here().clock.tick();
    one.here().change_meta(|meta| meta.horizon = now).unwrap();
    let stale = Hsm::restored(&old);
    refused(one.add(&stale), "older than the deletions");
    let fresh = Hsm::restored(&one.backup());
    one.stop();
    one.start_with(Config { max_members: 2, ..config() });
    refused(one.add(&fresh), "the cluster has 2 HSMs");
    one.stop();
    one.start();
    one.add(&fresh).unwrap();
    assert!(one.here().version(&user_key("alice")).is_some() && one.here().version(&object_key(1)).is_none());
}

/// A backup claims to know the deletions of the HSM that it is of, and of others as of when that one last saw them.
#[test]
fn a_backup_claims_no_deletions_of_a_member_that_was_away() {
    let (one, mut two) = pair();
    one.same_as(&two);
    let (first, second) =
        (one.here().state.read().meta.serial.clone(), two.here().state.read().meta.serial.clone());
    two.stop();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let now = one.here().clock.tick();
    let third = Hsm::restored(&one.backup());
    let claim = |to: &str| third.here().claim(to).seen;
    assert!(claim(&first) >= now);
    assert!((1..now).contains(&claim(&second)), "{} {now}", claim(&second));
    assert!(claim("somebody") < now);
    // The deletions of then are remembered by both: it is let in.
    two.start();
    one.add(&third).unwrap();
    third.same_as(&two);
}

/// A removed member logs nobody in, and its word is not taken any more; the others go on.
#[test]
fn a_removed_member_is_out() {
    let (one, two) = pair();
    let mut three = Hsm::restored(&one.backup());
    one.add(&three).unwrap();
    let mut away = Hsm::restored(&one.backup());
    one.add(&away).unwrap();
    let logged_in = three.user("alice");
    away.stop();
    let info = two.manager().hsm_info().unwrap();
    assert_eq!(info["hsms"].as_array().unwrap().len(), 4, "{info}");
    one.logged_in("admin", Role::Admin).cluster_remove(&away.address().to_string()).unwrap();
    one.logged_in("admin", Role::Admin).cluster_remove(&three.address().to_string()).unwrap();
    refused(three.manager().login("admin", Role::Admin, ADMIN), "was removed");
    assert_eq!(
        logged_in.generate(&[]),
        Err(CKR_USER_NOT_LOGGED_IN),
        "who was logged in there is not any more"
    );
    drop(logged_in);
    let link = Link::new(three.address(), None).unwrap();
    let s = link.call(&Request::OpenSession { rw: true }).unwrap();
    assert_eq!(User { link, s }.login(CKU_USER, &format!("alice:{PASSWORD}")), Err(CKR_DEVICE_REMOVED));
    one.same_as(&two);
    let key = two.user("alice").generate(&[(CKA_TOKEN, &[1])]).unwrap();
    assert!(one.user("alice").find().contains(&key));
    assert!(three.here().version(&object_key(key)).is_none());
    // Who was away when he was removed is told so when he is back; and it lasts.
    away.start();
    refused(away.manager().login("admin", Role::Admin, ADMIN), "was removed");
    three.stop();
    three.start();
    refused(three.manager().login("admin", Role::Admin, ADMIN), "was removed");
    // A removed member may be added again.
    one.add(&three).unwrap();
    three.same_as(&one);
    three.user("alice");
}

/// Members on TCP show each other certificates of the customer's CA, and a member takes one by no other.
#[test]
fn members_on_tcp_have_certificates_of_one_ca() {
    let (ca, other) = (Ca::new("our CA"), Ca::new("their CA"));
    let certify = |hsm: &Hsm, ca: &Ca| -> Result<(), HsmError> {
        let admin = hsm.logged_in("admin", Role::Admin);
        let csr = admin.csr()?["csr"].as_str().unwrap().to_owned();
        admin.initialize(ca.sign(&csr), ca.pem()).map(|_| ())
    };
    let one = Hsm::new();
    certify(&one, &ca).unwrap();
    let two = Hsm::restored(&one.backup());
    refused(certify(&two, &other), "another trust anchor");
    certify(&two, &ca).unwrap();
    let serve = |hsm: &Hsm| {
        let at = Address::Tcp("127.0.0.1:0".into());
        let server = Server::start(hsm.here().clone(), &at, Peers::default()).unwrap();
        hsm.here().join(server.address());
        server
    };
    let (_first, second) = (serve(&one), serve(&two));
    one.logged_in("admin", Role::Admin).cluster_add(&second.address().to_string()).unwrap();
    let key = one.user("alice").generate(&[(CKA_TOKEN, &[1])]).unwrap();
    assert!(two.user("alice").find().contains(&key));
    one.same_as(&two);
}
