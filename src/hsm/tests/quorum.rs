//! Quorum through the socket: what one admin or one crypto user does not do alone, whatever his client sends.

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::cluster::{pair, refused};
use super::*;
use crate::hsm::admin::Command;
use crate::hsm::quorum::Terms;
use crate::hsm::wire::encode;

const NEEDED: &str = "Quorum approval is required for this operation";
const FAILED: &str = "Quorum Failed";

/// Somebody with a key of his own, outside of any HSM.
struct Signer {
    name: String,
    pair: RsaKeyPair,
}

impl Signer {
    fn new(name: &str) -> Self {
        Self { name: name.into(), pair: RsaKeyPair::generate(KeySize::Rsa2048).unwrap() }
    }

    fn pem(&self) -> String {
        let der = self.pair.public_key().as_der().unwrap();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", BASE64.encode(der.as_ref()))
    }

    fn sign(&self, data: &str) -> String {
        let mut out = vec![0; self.pair.public_modulus_len()];
        let random = aws_lc_rs::rand::SystemRandom::new();
        let data = BASE64.decode(data).unwrap();
        self.pair.sign(&RSA_PKCS1_SHA256, &random, &data, &mut out).unwrap();
        BASE64.encode(out)
    }

    /// Registers his key, logged in as himself.
    fn register(&self, manager: &Manager) -> Result<Value, HsmError> {
        let file = manager.quorum_generate(Service::Registration, None).unwrap();
        manager.register_approver(&self.pem(), &self.registration(&file))
    }

    fn registration(&self, file: &str) -> String {
        let mut file: Value = serde_json::from_str(file).unwrap();
        let data = file["tokens"][0]["approval_data"].as_str().unwrap().to_owned();
        file["tokens"][0]["signed"] = self.sign(&data).into();
        file.to_string()
    }
}

/// The file with the signatures of some.
fn approved(file: &str, by: &[&Signer]) -> String {
    let mut file: Value = serde_json::from_str(file).unwrap();
    let data = file["approval_data"].as_str().unwrap().to_owned();
    let all = by.iter().map(|s| json!({ "username": s.name, "signature": s.sign(&data) }));
    file["signatures"] = all.collect();
    file.to_string()
}

/// Asks for a token, has it signed and hands it over.
fn approve(manager: &Manager, service: Service, by: &[&Signer]) -> Result<Value, HsmError> {
    let file = manager.quorum_generate(service, None)?;
    manager.quorum_approve(&approved(&file, by))
}

/// An HSM with `count` admins, `admin`, `admin1` and so on, each with a registered key.
fn admins(hsm: &Hsm, count: usize) -> Vec<Signer> {
    let admin = hsm.logged_in("admin", Role::Admin);
    let name = |i: usize| if i == 0 { "admin".to_owned() } else { format!("admin{i}") };
    (0..count)
        .map(|i| {
            let signer = Signer::new(&name(i));
            if i > 0 {
                admin.user_create(&signer.name, Role::Admin, ADMIN).unwrap();
            }
            signer.register(&hsm.logged_in(&signer.name, Role::Admin)).unwrap();
            signer
        })
        .collect()
}

/// The crypto users `alice`, `bob` and `carol`, each with a registered key.
fn crypto_users(hsm: &Hsm) -> [Signer; 3] {
    hsm.logged_in("admin", Role::Admin).user_create("carol", Role::CryptoUser, PASSWORD).unwrap();
    ["alice", "bob", "carol"].map(|name| {
        let signer = Signer::new(name);
        signer.register(&hsm.logged_in(name, Role::CryptoUser)).unwrap();
        signer
    })
}

/// With a value of 2 no admin makes, deletes or resets a user alone: not without a token, with one signature, with one
/// signature twice, or with somebody else's; two approvals do one operation, and a second one needs a new token.
#[test]
fn two_admins_must_agree_on_users() {
    let mut hsm = Hsm::new();
    {
        let signers = admins(&hsm, 3);
        let [one, two, three] = &signers[..] else { panic!("three") };
        let admin = hsm.logged_in("admin", Role::Admin);
        assert_eq!(admin.quorum_values().unwrap(), json!({ "user": 1, "quorum": 1, "cluster": 1 }));
        assert_eq!(admin.quorum_set(Service::User, 2).unwrap(), "Set quorum value successful");
        assert_eq!(hsm.manager().quorum_values().unwrap()["user"], 2, "anybody may know");
        let create = || admin.user_create("dave", Role::CryptoUser, PASSWORD);
        let alone: [Result<Value, HsmError>; 4] = [
            create(),
            admin.user_delete("bob", Role::CryptoUser),
            admin.user_change_password("bob", Role::CryptoUser, None, PASSWORD),
            admin.user_change_password("admin1", Role::Admin, None, ADMIN),
        ];
        alone.into_iter().for_each(|result| refused(result, NEEDED));
        admin
            .user_change_password("admin", Role::Admin, None, ADMIN)
            .expect("one's own password is one's own");
        approve(&admin, Service::User, &[one]).unwrap();
        refused(create(), NEEDED);
        approve(&admin, Service::User, &[one, one]).unwrap();
        refused(create(), NEEDED);
        let imposter = Signer { name: "admin1".into(), pair: Signer::new("x").pair };
        refused(approve(&admin, Service::User, &[one, &imposter]), "the signature of admin1");
        refused(create(), NEEDED);
        // A crypto user's key approves nothing of admins.
        let alice = Signer::new("alice");
        alice.register(&hsm.logged_in("alice", Role::CryptoUser)).unwrap();
        approve(&admin, Service::User, &[one, &alice]).unwrap();
        refused(create(), NEEDED);
        approve(&admin, Service::Quorum, &[one, two]).unwrap();
        refused(create(), NEEDED);
        let file = admin.quorum_generate(Service::User, None).unwrap();
        let list = admin.quorum_list().unwrap();
        let token =
            list["tokens"].as_array().unwrap().iter().find(|t| t["service"] == "user").unwrap().clone();
        assert_eq!((&token["approvals-required"], &token["number-of-approvals"]), (&json!(2), &json!(0)));
        assert!((590..=600).contains(&token["token-timeout-seconds"].as_u64().unwrap()), "{token}");
        // It is this login's: nobody else uses it, nor the same admin elsewhere.
        let signed = approved(&file, &[two, three]);
        refused(hsm.logged_in("admin", Role::Admin).quorum_approve(&signed), FAILED);
        refused(hsm.logged_in("admin1", Role::Admin).quorum_approve(&signed), FAILED);
        admin.quorum_approve(&signed).unwrap();
        // What fails for another reason uses nothing up.
        assert!(admin.user_create("alice", Role::CryptoUser, PASSWORD).is_err());
        assert!(admin.user_change_password("nobody", Role::CryptoUser, None, PASSWORD).is_err());
        assert!(admin.user_delete("nobody", Role::CryptoUser).is_err());
        create().expect("two admins approve");
        refused(admin.user_create("erin", Role::CryptoUser, PASSWORD), NEEDED);
        refused(admin.quorum_approve(&signed), FAILED);
        // The author's own signature counts.
        approve(&admin, Service::User, &[one, two]).unwrap();
        admin.user_delete("dave", Role::CryptoUser).unwrap();
        admin.quorum_delete(true).unwrap();
    }
    hsm.stop();
    let log = std::fs::read_to_string(hsm.tmp.path().join("hsm/audit.log")).unwrap();
    let refusals = log.lines().filter(|l| l.contains("CN_CREATE_USER") && !l.contains("SUCCESS")).count();
    assert!(refusals >= 8, "{log}");
    for opcode in [
        "CN_GET_TOKEN",
        "CN_APPROVE_TOKEN",
        "CN_SET_M_VALUE",
        "CN_DELETE_TOKEN",
        "CN_REGISTER_QUORUM_PUB_KEY",
    ] {
        assert!(log.contains(opcode), "{opcode}");
    }
}

/// A token ends with its login, by a logout or another login, and by a command.
#[test]
fn a_token_ends_with_its_login() {
    let hsm = Hsm::new();
    let signers = admins(&hsm, 2);
    let by: Vec<&Signer> = signers.iter().collect();
    let admin = hsm.logged_in("admin", Role::Admin);
    admin.quorum_set(Service::User, 2).unwrap();
    let again = || admin.login("admin", Role::Admin, ADMIN);
    let ends: [&dyn Fn() -> Result<Value, HsmError>; 4] =
        [&|| admin.logout().and_then(|_| again()), &again, &|| admin.quorum_delete(false), &|| {
            hsm.logged_in("admin1", Role::Admin).quorum_delete(true)
        }];
    for end in ends {
        approve(&admin, Service::User, &by).unwrap();
        end().unwrap();
        refused(admin.user_create("dave", Role::CryptoUser, PASSWORD), NEEDED);
    }
    approve(&admin, Service::User, &by).unwrap();
    admin.user_create("dave", Role::CryptoUser, PASSWORD).unwrap();
}

/// The approval of a user who is deleted meanwhile does not count, whether it was handed over before or after; nor that
/// of one who has registered another key since.
#[test]
fn who_is_gone_approves_nothing() {
    let hsm = Hsm::new();
    let signers = admins(&hsm, 4);
    let [one, two, three, four] = &signers[..] else { panic!("four") };
    let admin = hsm.logged_in("admin", Role::Admin);
    admin.quorum_set(Service::User, 2).unwrap();
    let file = admin.quorum_generate(Service::User, None).unwrap();
    admin.quorum_approve(&approved(&file, &[one, four])).unwrap();
    let other = hsm.logged_in("admin1", Role::Admin);
    approve(&other, Service::User, &[two, three]).unwrap();
    other.user_delete("admin3", Role::Admin).unwrap();
    refused(admin.user_create("dave", Role::CryptoUser, PASSWORD), NEEDED);
    refused(admin.quorum_approve(&approved(&file, &[one, four])), "admin3 has no registered key");
    admin.quorum_approve(&approved(&file, &[one, three])).unwrap();
    Signer::new("admin2").register(&hsm.logged_in("admin2", Role::Admin)).unwrap();
    refused(admin.user_create("dave", Role::CryptoUser, PASSWORD), NEEDED);
    admin.quorum_approve(&approved(&file, &[one, two])).unwrap();
    admin.user_create("dave", Role::CryptoUser, PASSWORD).unwrap();
}

/// A value is met by as many as have registered, set by admins, and lowered by as many as it asks for, also where the
/// service `quorum` asks for fewer. Who is needed is not deleted.
#[test]
fn values_are_changed_by_a_quorum() {
    let hsm = Hsm::new();
    let signers = admins(&hsm, 3);
    let [one, two, three] = &signers[..] else { panic!("three") };
    let admin = hsm.logged_in("admin", Role::Admin);
    for (value, why) in [(4, "3 admins"), (9, "2 to 8"), (0, "2 to 8")] {
        refused(admin.quorum_set(Service::User, value), why);
    }
    refused(admin.quorum_set(Service::KeyUsage, 2), "when it is made");
    assert!(hsm.logged_in("alice", Role::CryptoUser).quorum_set(Service::User, 2).is_err());
    admin.quorum_set(Service::User, 3).unwrap();
    refused(admin.quorum_set(Service::User, 1), NEEDED);
    approve(&admin, Service::Quorum, &[one, two]).unwrap();
    refused(admin.quorum_set(Service::User, 1), NEEDED);
    approve(&admin, Service::User, &[one, two, three]).unwrap();
    refused(admin.quorum_set(Service::User, 1), NEEDED);
    approve(&admin, Service::Quorum, &[one, two, three]).unwrap();
    refused(admin.quorum_set(Service::User, 4), "3 admins");
    admin.quorum_set(Service::User, 2).expect("the token was not used up");
    admin.quorum_set(Service::Quorum, 3).unwrap();
    approve(&admin, Service::Quorum, &[one, two]).unwrap();
    refused(admin.quorum_set(Service::User, 1), NEEDED);
    approve(&admin, Service::User, &[one, two]).unwrap();
    refused(admin.user_delete("admin2", Role::Admin), "lower the quorum values first");
    approve(&admin, Service::Quorum, &[one, two, three]).unwrap();
    admin.quorum_set(Service::Quorum, 1).unwrap();
    approve(&admin, Service::Quorum, &[one, two]).unwrap();
    admin.quorum_set(Service::User, 1).unwrap();
    admin.user_delete("admin2", Role::Admin).unwrap();
}

/// A key is registered by who has it: with another key's signature, another user's token, another's key, or one that is
/// no RSA-2048 key, nothing is registered.
#[test]
fn only_the_holder_of_a_key_registers_it() {
    let hsm = Hsm::new();
    let (alice, bob) = (hsm.logged_in("alice", Role::CryptoUser), hsm.logged_in("bob", Role::CryptoUser));
    let (a, b) = (Signer::new("alice"), Signer::new("bob"));
    let file = alice.quorum_generate(Service::Registration, None).unwrap();
    refused(alice.register_approver(&a.pem(), &b.registration(&file)), "not signed by the private key");
    refused(alice.register_approver(&a.pem(), &file), FAILED);
    refused(bob.register_approver(&b.pem(), &b.registration(&file)), "no such token");
    refused(alice.register_approver("-----BEGIN PUBLIC KEY-----\n", &file), "no PEM");
    let short = RsaKeyPair::generate(KeySize::Rsa3072).unwrap();
    let der = BASE64.encode(short.public_key().as_der().unwrap().as_ref());
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n");
    refused(alice.register_approver(&pem, &file), "2048 bits");
    // A token of a service is no registration, and a registration token approves nothing.
    let usage = alice.quorum_generate(Service::KeyUsage, None).unwrap();
    let usage: Value = serde_json::from_str(&usage).unwrap();
    let data = usage["approval_data"].as_str().unwrap();
    let forged = json!({ "version": "2.0", "tokens": [{ "approval_data": data, "unsigned": "", "signed": a.sign(data) }] });
    refused(alice.register_approver(&a.pem(), &forged.to_string()), "no such token");
    alice.register_approver(&a.pem(), &a.registration(&file)).unwrap();
    refused(alice.register_approver(&a.pem(), &a.registration(&file)), "no such token");
    let again = bob.quorum_generate(Service::Registration, None).unwrap();
    refused(bob.register_approver(&a.pem(), &a.registration(&again)), "another user");
    let list = alice.user_list().unwrap();
    let shown = list["users"].as_array().unwrap().iter().find(|u| u["username"] == "alice").unwrap().clone();
    assert_eq!(shown["quorum"], json!([{ "strategy": "token-sign", "status": "enabled" }]));
}

/// Values and registered keys live over a restart and are in backups; tokens end with the process. PKCS#11 has no way
/// around: an admin there neither makes users nor empties the token.
#[test]
fn values_are_durable_and_hold_for_pkcs11() {
    let mut hsm = Hsm::new();
    let signers = admins(&hsm, 2);
    let by: Vec<&Signer> = signers.iter().collect();
    hsm.logged_in("admin", Role::Admin).quorum_set(Service::User, 2).unwrap();
    hsm.logged_in("admin", Role::Admin).quorum_set(Service::Cluster, 2).unwrap();
    hsm.stop();
    hsm.start();
    let restored = Hsm::restored(&hsm.backup());
    for hsm in [&hsm, &restored] {
        let admin = hsm.logged_in("admin", Role::Admin);
        refused(admin.user_create("dave", Role::CryptoUser, PASSWORD), NEEDED);
        refused(admin.cluster_add("unix:/nowhere"), NEEDED);
        refused(admin.cluster_remove("0"), NEEDED);
        approve(&admin, Service::User, &by).unwrap();
        admin.user_create("dave", Role::CryptoUser, PASSWORD).unwrap();
        let link = Link::new(hsm.address(), None).unwrap();
        let init: Ck<()> =
            link.call(&Request::InitToken { pin: bytes(ADMIN.as_bytes()), label: "mine".into() });
        assert_eq!(init, Err(CKR_FUNCTION_REJECTED));
        let s = link.call(&Request::OpenSession { rw: true }).unwrap();
        let officer = User { link, s };
        officer.login(CKU_SO, ADMIN).unwrap();
        let pin = bytes(format!("alice:{PASSWORD}").as_bytes());
        assert_eq!(officer.link.call::<()>(&Request::InitPin { s, pin }), Err(CKR_FUNCTION_REJECTED));
    }
}

fn sharing(users: &[&str], management: u32, usage: u32) -> Sharing {
    let value = |v| (v > 1).then_some(v);
    Sharing {
        users: users.iter().map(|u| (*u).to_owned()).collect(),
        management: value(management),
        usage: value(usage),
    }
}

/// A key whose use needs two of its users is used by none alone, by PKCS#11 not at all; approvals are its users', and a
/// token for another key does not do.
#[test]
fn a_key_is_used_by_a_quorum() {
    let hsm = Hsm::new();
    let [a, b, c] = &crypto_users(&hsm);
    let alice = hsm.logged_in("alice", Role::CryptoUser);
    let pair = |label: &str, sharing: &Sharing| {
        alice.key_generate(NewKey::Ec(CURVES[1].1), label, "public", &[], sharing).map(|made| made[1])
    };
    for (bad, why) in [
        (sharing(&["nobody"], 0, 2), "named nobody"),
        (sharing(&["alice"], 0, 2), "named alice"),
        (sharing(&[], 0, 2), "2 needs as many"),
        (sharing(&["bob"], 3, 0), "3 needs as many"),
        (sharing(&["bob"], 0, 9), "2 to 8"),
    ] {
        refused(pair("bad", &bad), why);
    }
    let key = pair("signs", &sharing(&["bob"], 0, 2)).unwrap();
    let other = pair("other", &sharing(&["bob"], 0, 2)).unwrap();
    let sign = |by: &Manager| by.sign(key, Signature::Ecdsa, Hash::Sha256, b"text");
    let bob = hsm.logged_in("bob", Role::CryptoUser);
    for user in [&alice, &bob] {
        refused(sign(user), FAILED);
        approve(user, Service::KeyUsage, &[a]).unwrap();
        refused(sign(user), FAILED);
        approve(user, Service::KeyUsage, &[a, c]).unwrap();
        refused(sign(user), FAILED);
        approve(user, Service::KeyManagement, &[a, b]).unwrap();
        refused(sign(user), FAILED);
        user.quorum_delete(false).unwrap();
        let file = user.quorum_generate(Service::KeyUsage, Some(other)).unwrap();
        user.quorum_approve(&approved(&file, &[a, b])).unwrap();
        refused(sign(user), FAILED);
        user.quorum_delete(false).unwrap();
        let file = user.quorum_generate(Service::KeyUsage, Some(key)).unwrap();
        user.quorum_approve(&approved(&file, &[a, b])).unwrap();
        sign(user).unwrap();
        refused(sign(user), FAILED);
    }
    let there = hsm.user("alice");
    let sha = || plain(CKM_ECDSA_SHA256);
    assert_eq!(there.once(Op::Sign, sha(), key, b"text").err(), Some(CKR_FUNCTION_REJECTED));
    for request in [
        Request::Check { s: there.s, op: Op::Sign, mech: sha(), key },
        Request::Begin { s: there.s, op: Op::Sign, mech: sha(), key },
    ] {
        let begun = there.link.ask(&request).map_err(|_| ()).unwrap();
        assert_eq!(crate::hsm::client::parse::<Bytes>(&begun).err(), Some(CKR_FUNCTION_REJECTED));
    }
    let copied: Ck<u64> = there.link.call(&Request::Copy { s: there.s, object: key, attrs: vec![] });
    assert_eq!(copied, Err(CKR_ACTION_PROHIBITED));
    let list = alice.key_list().unwrap();
    let shown = list["matched_keys"].as_array().unwrap().iter().find(|k| k["attributes"]["label"] == "signs");
    assert_eq!(shown.unwrap()["key-info"]["key-quorum-values"]["use-key-quorum-value"], 2);
    // Who is needed is not taken away, by the owner or with his account.
    approve(&alice, Service::KeyManagement, &[a, b]).unwrap();
    refused(alice.key_share(key, "bob", false), "needs as many");
    let admin = hsm.logged_in("admin", Role::Admin);
    refused(admin.user_delete("bob", Role::CryptoUser), "needs as many");
}

/// A key whose management needs two of its users is shared, changed, wrapped, exported and unwrapped with by no one
/// alone; its use is free.
#[test]
fn a_key_is_managed_by_a_quorum() {
    let hsm = Hsm::new();
    let [a, b, _] = &crypto_users(&hsm);
    let alice = hsm.logged_in("alice", Role::CryptoUser);
    let attributes = |all: &[&str]| all.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
    let generate = |label: &str, attrs: &[&str], sharing: &Sharing| {
        alice.key_generate(NewKey::Aes(32), label, "", &attributes(attrs), sharing).map(|made| made[0])
    };
    let managed = sharing(&["bob"], 2, 0);
    assert!(generate("k", &["sensitive=false"], &managed).is_err(), "whose value is read");
    let key = generate("k", &["extractable=true"], &managed).unwrap();
    let kek = generate("kek", &["wrap=true", "unwrap=true"], &managed).unwrap();
    let mine = generate("mine", &["wrap=true"], &Sharing::default()).unwrap();
    let there = hsm.user("alice");
    there.once(Op::Encrypt, gcm(&[1; 12]), key, b"x").unwrap();
    let signed = |times: usize| {
        (0..times).for_each(|_| {
            approve(&alice, Service::KeyManagement, &[a, b]).unwrap();
        })
    };
    refused(alice.key_wrap(mine, key), FAILED);
    refused(alice.key_share(key, "carol", true), FAILED);
    refused(alice.key_set_attribute(key, "label=x"), FAILED);
    refused(alice.key_export(key, "password of the file"), FAILED);
    refused(alice.key_rotate(key), FAILED);
    assert_eq!(there.set(key, CKA_LABEL, b"x"), Err(CKR_FUNCTION_REJECTED));
    signed(1);
    refused(alice.key_wrap(kek, key), FAILED);
    signed(1);
    let wrapped = alice.key_wrap(kek, key).unwrap();
    refused(alice.key_unwrap(kek, &wrapped, "back", &[], &managed), FAILED);
    signed(1);
    let back = alice.key_unwrap(kek, &wrapped, "back", &[], &managed).unwrap();
    signed(1);
    alice.key_set_attribute(back, "label=again").unwrap();
    refused(alice.key_set_attribute(back, "label=more"), FAILED);
    signed(1);
    let rotated = alice.key_rotate(key).unwrap();
    let new = rotated["key-reference"].as_str().unwrap();
    let new = u64::from_str_radix(new.trim_start_matches("0x"), 16).unwrap();
    refused(alice.key_share(new, "carol", true), FAILED);
    signed(1);
    alice.key_share(new, "carol", true).unwrap();
}

/// What was shared with a user who was deleted is not shared with a new one of his name.
#[test]
fn a_new_user_does_not_inherit_shares() {
    let hsm = Hsm::new();
    let key = hsm.user("alice").generate(&[(CKA_TOKEN, &[1])]).unwrap();
    hsm.logged_in("alice", Role::CryptoUser).key_share(key, "bob", true).unwrap();
    let admin = hsm.logged_in("admin", Role::Admin);
    admin.user_delete("bob", Role::CryptoUser).unwrap();
    admin.user_create("bob", Role::CryptoUser, PASSWORD).unwrap();
    assert!(!hsm.user("bob").find().contains(&key));
}

/// A value that is set on one member holds on the others, with the keys that are registered; one that was away learns
/// it when it is back, and does not take it back by a member that came meanwhile.
#[test]
fn a_value_holds_on_all_members() {
    let (one, mut two) = pair();
    let signers = admins(&one, 3);
    let by: Vec<&Signer> = signers.iter().collect();
    let admin = one.logged_in("admin", Role::Admin);
    let done = admin.quorum_set(Service::User, 2).unwrap();
    assert_eq!(done, "Set quorum value successful", "on all members");
    let there = two.logged_in("admin1", Role::Admin);
    refused(there.user_create("dave", Role::CryptoUser, PASSWORD), NEEDED);
    let file = there.quorum_generate(Service::User, None).unwrap();
    let signed = approved(&file, &by[..2]);
    refused(admin.quorum_approve(&signed), FAILED);
    there.quorum_approve(&signed).unwrap();
    there.user_create("dave", Role::CryptoUser, PASSWORD).unwrap();
    one.user("dave");
    drop(there);
    two.stop();
    approve(&admin, Service::Quorum, &by[..2]).unwrap();
    let done = admin.quorum_set(Service::User, 3).unwrap();
    assert_eq!(done["cluster-coverage"], "inconsistent", "{done}");
    two.start();
    two.same_as(&one);
    assert_eq!(two.manager().quorum_values().unwrap()["user"], 3);
    let there = two.logged_in("admin1", Role::Admin);
    approve(&there, Service::User, &by[..2]).unwrap();
    refused(there.user_create("erin", Role::CryptoUser, PASSWORD), NEEDED);
}

/// A client that sends what it likes gets no further: a token file that is none, terms around another request.
#[test]
fn what_a_client_sends_is_checked() {
    let hsm = Hsm::new();
    let admin = hsm.logged_in("admin", Role::Admin);
    let many = json!({ "username": "admin", "signature": "" });
    let many = json!({ "version": "2.0", "approval_data": "", "token": "", "signatures": vec![many; 65] });
    for bad in ["", "{}", "[]", &many.to_string()] {
        refused(admin.quorum_approve(bad), FAILED);
    }
    let alice = hsm.user("alice");
    let terms = || Terms { share: vec!["bob".into()], ..Default::default() };
    let login = Request::Logout { s: alice.s };
    for inner in [encode(&login), bytes(b""), bytes(&[33])] {
        let made: Ck<()> = alice.link.call(&Request::With { terms: terms(), request: inner });
        assert_eq!(made, Err(CKR_ARGUMENTS_BAD));
    }
    let text = serde_json::to_string(&Command::KeyTerms { terms: terms() }).unwrap();
    assert!(serde_json::from_str::<Command>(&text).is_ok());
    let generate =
        Request::Generate { s: alice.s, mech: plain(CKM_AES_KEY_GEN), attrs: aes(&[(CKA_TOKEN, &[1])]) };
    let key: u64 = alice.link.call(&Request::With { terms: terms(), request: encode(&generate) }).unwrap();
    assert!(hsm.user("bob").find().contains(&key));
}
