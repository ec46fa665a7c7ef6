//! The appliance through its socket, as its clients have it.

mod audit;
mod cluster;
mod export;
mod limits;
mod lockout;
mod monitor;
mod quorum;
mod races;

use std::sync::Arc;

use cryptoki_sys::*;
use zeroize::Zeroizing;

use super::client::Link;
use super::wire::{Bytes, Mech, Op, Params, Request, Template, VERSION, frame};
use super::*;

const ADMIN: &str = "admin-password";
const PASSWORD: &str = "correct horse";

struct Hsm {
    tmp: tempfile::TempDir,
    appliance: Option<Arc<Appliance>>,
    server: Option<Server>,
}

fn config() -> Config {
    Config { login_cost: Cost::TESTS, sync_every: std::time::Duration::from_millis(200), ..Config::default() }
}

impl Hsm {
    /// An active HSM with the crypto users `alice` and `bob`.
    fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        Appliance::create(&tmp.path().join("hsm"), &Protection::KeyFile, Cost::TESTS).unwrap();
        let mut hsm = Self { tmp, appliance: None, server: None };
        hsm.start();
        let manager = hsm.manager();
        manager.activate(ADMIN).unwrap();
        manager.login("admin", Role::Admin, ADMIN).unwrap();
        for name in ["alice", "bob"] {
            manager.user_create(name, Role::CryptoUser, PASSWORD).unwrap();
        }
        hsm
    }

    fn start(&mut self) {
        self.start_with(config());
    }

    fn start_with(&mut self, config: Config) {
        let dir = self.tmp.path().join("hsm");
        let mut opened = Appliance::open(&dir, None, config.clone());
        // The one before closes its files a moment after the last hold on it is gone.
        for _ in 0..500 {
            if !matches!(opened, Err(HsmError::Busy(_))) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
            opened = Appliance::open(&dir, None, config.clone());
        }
        let appliance = opened.unwrap();
        appliance.join(&self.address());
        self.server = Some(Server::start(appliance.clone(), &self.address(), Peers::default()).unwrap());
        self.appliance = Some(appliance);
    }

    fn stop(&mut self) {
        self.server = None;
        let appliance = self.appliance.take().unwrap();
        // The settling thread holds it for moments.
        let weak = Arc::downgrade(&appliance);
        drop(appliance);
        for _ in 0..500 {
            if weak.strong_count() == 0 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("somebody holds the appliance");
    }

    fn address(&self) -> Address {
        Address::Unix(self.tmp.path().join("sock"))
    }

    fn manager(&self) -> Manager {
        Manager::new(self.address(), None).unwrap()
    }

    fn logged_in(&self, name: &str, role: Role) -> Manager {
        let manager = self.manager();
        manager.login(name, role, if role == Role::Admin { ADMIN } else { PASSWORD }).unwrap();
        manager
    }

    fn user(&self, name: &str) -> User {
        let link = Link::new(self.address(), None).unwrap();
        let s = link.call(&Request::OpenSession { rw: true }).unwrap();
        let user = User { link, s };
        user.login(CKU_USER, &format!("{name}:{PASSWORD}")).unwrap();
        user
    }
}

/// A client with one session.
struct User {
    link: Link,
    s: u64,
}

fn bytes(of: &[u8]) -> Bytes {
    Zeroizing::new(of.to_vec())
}

fn number(n: u64) -> Bytes {
    bytes(&n.to_le_bytes())
}

fn plain(kind: u64) -> Mech {
    Mech { kind, params: Params::None {} }
}

fn gcm(iv: &[u8]) -> Mech {
    Mech { kind: CKM_AES_GCM, params: Params::Gcm { iv: bytes(iv), aad: bytes(b""), tag_bits: 128 } }
}

fn aes(more: &[(u64, &[u8])]) -> Template {
    let mut all = vec![(CKA_VALUE_LEN, number(32))];
    all.extend(more.iter().map(|(n, v)| (*n, bytes(v))));
    all
}

impl User {
    fn login(&self, kind: u64, pin: &str) -> Ck<()> {
        self.link.call(&Request::Login { s: self.s, kind, pin: bytes(pin.as_bytes()) })
    }

    fn generate(&self, more: &[(u64, &[u8])]) -> Ck<u64> {
        self.link.call(&Request::Generate { s: self.s, mech: plain(CKM_AES_KEY_GEN), attrs: aes(more) })
    }

    fn once(&self, op: Op, mech: Mech, key: u64, data: &[u8]) -> Ck<Bytes> {
        self.link.call(&Request::Once { s: self.s, op, mech, key, data: bytes(data), aux: bytes(b"") })
    }

    fn wrap(&self, mech: Mech, by: u64, key: u64) -> Ck<Bytes> {
        self.link.call::<(Bytes, Bytes)>(&Request::Wrap { s: self.s, mech, by, key }).map(|w| w.0)
    }

    fn unwrap(&self, mech: Mech, by: u64, wrapped: &[u8], more: &[(u64, &[u8])]) -> Ck<u64> {
        let mut attrs: Template = vec![(CKA_CLASS, number(CKO_SECRET_KEY)), (CKA_KEY_TYPE, number(CKK_AES))];
        attrs.extend(more.iter().map(|(n, v)| (*n, bytes(v))));
        self.link.call(&Request::Unwrap { s: self.s, mech, by, wrapped: bytes(wrapped), attrs })
    }

    fn set(&self, object: u64, name: u64, value: &[u8]) -> Ck<()> {
        self.link.call(&Request::SetAttrs { s: self.s, object, attrs: vec![(name, bytes(value))] })
    }

    fn find(&self) -> Vec<u64> {
        self.link.call(&Request::Find { s: self.s, attrs: vec![] }).unwrap()
    }
}

/// CloudHSM's permission table (user guide, "HSM user permissions table"): every cell, tried through the socket.
#[test]
fn every_cell_of_the_permission_table_holds() {
    let hsm = Hsm::new();
    let key = hsm.user("alice").generate(&[(CKA_TOKEN, &[1]), (CKA_LABEL, b"k")]).unwrap();
    // The appliance user has a password only where an admin gives it one.
    hsm.logged_in("admin", Role::Admin)
        .user_change_password("app_user", Role::ApplianceUser, None, PASSWORD)
        .unwrap();
    let who = [
        None,
        Some(("admin", Role::Admin)),
        Some(("alice", Role::CryptoUser)),
        Some(("app_user", Role::ApplianceUser)),
    ];
    for login in who {
        let role = login.map(|l| l.1);
        let manager = match login {
            Some((name, role)) => hsm.logged_in(name, role),
            None => hsm.manager(),
        };
        let link = |manager: &Manager| -> Link { manager.clone_link() };
        let s: u64 = link(&manager).call(&Request::OpenSession { rw: true }).unwrap();
        for row in Permission::ALL {
            let done = match row {
                Permission::ClusterInfo => manager.hsm_info().is_ok(),
                Permission::ChangeOwnPassword => login.is_some_and(|(name, role)| {
                    let own = if role == Role::Admin { ADMIN } else { PASSWORD };
                    manager.user_change_password(name, role, Some(own), own).is_ok()
                }),
                Permission::ChangeAnyPassword => {
                    manager.user_change_password("bob", Role::CryptoUser, None, PASSWORD).is_ok()
                }
                Permission::ManageUsers => {
                    manager.user_create("temp", Role::CryptoUser, PASSWORD).is_ok()
                        && manager.user_delete("temp", Role::CryptoUser).is_ok()
                }
                Permission::SyncStatus => manager.sync_status().is_ok(),
                Permission::MaskedObjects => manager
                    .extract_masked(key)
                    .is_ok_and(|masked| manager.insert_masked(masked["masked"].as_str().unwrap()).is_ok()),
                Permission::KeyManagement => {
                    let attrs = aes(&[]);
                    let made: Ck<u64> =
                        link(&manager).call(&Request::Generate { s, mech: plain(CKM_AES_KEY_GEN), attrs });
                    made.is_ok()
                }
                Permission::UseKeys => {
                    let once = Request::Once {
                        s,
                        op: Op::Encrypt,
                        mech: gcm(&[1; 12]),
                        key,
                        data: bytes(b"x"),
                        aux: bytes(b""),
                    };
                    link(&manager).call::<Bytes>(&once).is_ok()
                }
                Permission::Approvals => {
                    manager.quorum_generate(Service::Registration, None).is_ok()
                        && manager.quorum_list().is_ok()
                        && manager.quorum_delete(false).is_ok()
                }
                Permission::SetQuorum => manager.quorum_set(Service::User, 1).is_ok(),
            };
            assert_eq!(done, row.of(role), "{row:?} by {role:?}");
        }
    }
}

/// Five wrong passwords lock an account, also over a restart; the right one does not help then, an admin does. The
/// admin cannot be locked out by the crypto user's failures, and others go on.
#[test]
fn five_wrong_passwords_lock_an_account_durably() {
    let mut hsm = Hsm::new();
    let try_once = |hsm: &Hsm, pin: &str| {
        let link = Link::new(hsm.address(), None).unwrap();
        let s = link.call(&Request::OpenSession { rw: true }).unwrap();
        User { link, s }.login(CKU_USER, pin)
    };
    for _ in 0..4 {
        assert_eq!(try_once(&hsm, "alice:not the password"), Err(CKR_PIN_INCORRECT));
    }
    hsm.stop();
    hsm.start();
    assert_eq!(try_once(&hsm, "alice:not the password"), Err(CKR_PIN_INCORRECT));
    assert_eq!(try_once(&hsm, &format!("alice:{PASSWORD}")), Err(CKR_PIN_LOCKED));
    hsm.stop();
    hsm.start();
    assert_eq!(try_once(&hsm, &format!("alice:{PASSWORD}")), Err(CKR_PIN_LOCKED));
    assert_eq!(try_once(&hsm, &format!("bob:{PASSWORD}")), Ok(()));
    let admin = hsm.logged_in("admin", Role::Admin);
    admin.user_change_password("alice", Role::CryptoUser, None, "another password").unwrap();
    assert_eq!(try_once(&hsm, "alice:another password"), Ok(()));
}

/// Who is logged in with the wrong role is told so; a CO sees and uses no key, an AU is no crypto user.
#[test]
fn roles_do_not_reach_over() {
    let hsm = Hsm::new();
    let key = hsm.user("alice").generate(&[(CKA_TOKEN, &[1])]).unwrap();
    let link = Link::new(hsm.address(), None).unwrap();
    let s = link.call(&Request::OpenSession { rw: true }).unwrap();
    let officer = User { link, s };
    assert_eq!(officer.login(CKU_USER, &format!("admin:{ADMIN}")), Err(CKR_USER_TYPE_INVALID));
    assert_eq!(officer.login(CKU_SO, &format!("alice:{PASSWORD}")), Err(CKR_USER_TYPE_INVALID));
    officer.login(CKU_SO, ADMIN).unwrap();
    assert!(officer.find().is_empty());
    assert_eq!(officer.once(Op::Encrypt, gcm(&[1; 12]), key, b"x").err(), Some(CKR_USER_NOT_LOGGED_IN));
    assert_eq!(officer.generate(&[]).err(), Some(CKR_USER_NOT_LOGGED_IN));
    // Another crypto user neither sees it.
    let bob = hsm.user("bob");
    assert!(!bob.find().contains(&key));
    assert_eq!(bob.once(Op::Encrypt, gcm(&[1; 12]), key, b"x").err(), Some(CKR_KEY_HANDLE_INVALID));
}

/// A shared key is used by the sharee, and neither wrapped, changed, deleted nor shared on.
#[test]
fn a_sharee_uses_a_key_and_no_more() {
    let hsm = Hsm::new();
    let (alice, bob) = (hsm.user("alice"), hsm.user("bob"));
    let key = alice.generate(&[(CKA_TOKEN, &[1]), (CKA_EXTRACTABLE, &[1])]).unwrap();
    let owner = hsm.logged_in("alice", Role::CryptoUser);
    let sharee = hsm.logged_in("bob", Role::CryptoUser);
    owner.key_share(key, "bob", true).unwrap();
    assert!(bob.find().contains(&key));
    let sealed = bob.once(Op::Encrypt, gcm(&[1; 12]), key, b"x").unwrap();
    assert_eq!(*alice.once(Op::Decrypt, gcm(&[1; 12]), key, &sealed).unwrap(), b"x");
    let kek = bob.generate(&[(CKA_WRAP, &[1])]).unwrap();
    assert_eq!(bob.wrap(plain(CKM_AES_KEY_WRAP), kek, key).err(), Some(CKR_KEY_NOT_WRAPPABLE));
    assert_eq!(bob.set(key, CKA_LABEL, b"mine"), Err(CKR_ACTION_PROHIBITED));
    let gone: Ck<()> = bob.link.call(&Request::Destroy { s: bob.s, object: key });
    assert_eq!(gone, Err(CKR_ACTION_PROHIBITED));
    assert!(sharee.key_share(key, "bob", false).is_err());
    owner.key_share(key, "bob", false).unwrap();
    assert!(!bob.find().contains(&key));
}

/// A key that decrypts, or did so once, wraps no sensitive key, by no mechanism (Clulow 2003): RFC 3394 is undone by ECB.
/// A key that wraps, or did so once, does not come to decrypt: not by a change, not by one that takes WRAP away at the same
/// time, not as a copy.
#[test]
fn a_wrapped_key_cannot_be_decrypted() {
    let hsm = Hsm::new();
    let alice = hsm.user("alice");
    let secret = alice.generate(&[(CKA_SENSITIVE, &[1]), (CKA_EXTRACTABLE, &[1])]).unwrap();
    let open = alice.generate(&[(CKA_SENSITIVE, &[0]), (CKA_EXTRACTABLE, &[1])]).unwrap();
    let both = alice.generate(&[(CKA_WRAP, &[1]), (CKA_DECRYPT, &[1]), (CKA_UNWRAP, &[1])]).unwrap();
    let cbc = || Mech { kind: CKM_AES_CBC, params: Params::Raw { bytes: bytes(&[0; 16]) } };
    let all = || {
        let wraps = [CKM_AES_KEY_WRAP, CKM_AES_KEY_WRAP_KWP, CKM_AES_KEY_WRAP_PAD, mechs::CLOUDHSM_AES_GCM];
        wraps.map(plain).into_iter().chain([cbc(), gcm(&[1; 12])])
    };
    for mech in all() {
        assert_eq!(alice.wrap(mech, both, secret).err(), Some(CKR_KEY_FUNCTION_NOT_PERMITTED));
    }
    alice.wrap(plain(CKM_AES_KEY_WRAP), both, open).unwrap();
    alice.set(both, CKA_DECRYPT, &[0]).unwrap();
    let late = alice.wrap(plain(CKM_AES_KEY_WRAP), both, secret).err();
    assert_eq!(late, Some(CKR_KEY_FUNCTION_NOT_PERMITTED), "it would decrypt again");

    let wraps = alice.generate(&[(CKA_WRAP, &[1])]).unwrap();
    alice.wrap(cbc(), wraps, secret).unwrap();
    alice.wrap(plain(mechs::CLOUDHSM_AES_GCM), wraps, secret).unwrap();
    let own_iv = alice.wrap(gcm(&[1; 12]), wraps, secret).err();
    assert_eq!(own_iv, Some(CKR_MECHANISM_PARAM_INVALID), "a second key under that IV tells the first one");
    let swap = || vec![(CKA_WRAP, bytes(&[0])), (CKA_DECRYPT, bytes(&[1]))];
    let changed: Ck<()> = alice.link.call(&Request::SetAttrs { s: alice.s, object: wraps, attrs: swap() });
    let copied: Ck<u64> = alice.link.call(&Request::Copy { s: alice.s, object: wraps, attrs: swap() });
    assert_eq!((changed, copied), (Err(CKR_TEMPLATE_INCONSISTENT), Err(CKR_TEMPLATE_INCONSISTENT)));
    alice.set(wraps, CKA_WRAP, &[0]).unwrap();
    assert_eq!(alice.set(wraps, CKA_DECRYPT, &[1]), Err(CKR_TEMPLATE_INCONSISTENT));
    alice.set(wraps, CKA_WRAP, &[1]).unwrap();
    alice.set(wraps, CKA_SIGN, &[1]).unwrap();
}

/// A key that the officer trusts gets no further uses by its owner, a copy of it is not trusted, and making it unchangeable
/// does not keep the officer from taking the trust back.
#[test]
fn trust_is_for_the_key_as_it_is() {
    let hsm = Hsm::new();
    let alice = hsm.user("alice");
    let admin = hsm.logged_in("admin", Role::Admin);
    let kek = alice.generate(&[(CKA_TOKEN, &[1]), (CKA_WRAP, &[1])]).unwrap();
    let secret = alice.generate(&[(CKA_EXTRACTABLE, &[1]), (CKA_WRAP_WITH_TRUSTED, &[1])]).unwrap();
    admin.key_set_attribute(kek, "trusted=true").unwrap();
    alice.wrap(plain(CKM_AES_KEY_WRAP), kek, secret).unwrap();
    for usage in [CKA_DECRYPT, CKA_UNWRAP, CKA_SIGN, CKA_DERIVE] {
        assert!(alice.set(kek, usage, &[1]).is_err());
    }
    alice.set(kek, CKA_LABEL, b"another").unwrap();
    let copy: u64 = alice.link.call(&Request::Copy { s: alice.s, object: kek, attrs: vec![] }).unwrap();
    assert_eq!(alice.wrap(plain(CKM_AES_KEY_WRAP), copy, secret).err(), Some(CKR_KEY_NOT_WRAPPABLE));
    alice.set(kek, CKA_MODIFIABLE, &[0]).unwrap();
    admin.key_set_attribute(kek, "trusted=false").unwrap();
    assert_eq!(alice.wrap(plain(CKM_AES_KEY_WRAP), kek, secret).err(), Some(CKR_KEY_NOT_WRAPPABLE));
}

/// CKA_TRUSTED comes from the CO alone; WRAP_WITH_TRUSTED holds; EXTRACTABLE and SENSITIVE go one way.
#[test]
fn attributes_keep_cloudhsms_rules() {
    let hsm = Hsm::new();
    let alice = hsm.user("alice");
    let key = alice.generate(&[(CKA_EXTRACTABLE, &[1]), (CKA_WRAP_WITH_TRUSTED, &[1])]).unwrap();
    let kek = alice.generate(&[(CKA_TOKEN, &[1]), (CKA_WRAP, &[1]), (CKA_UNWRAP, &[1])]).unwrap();
    assert_eq!(alice.generate(&[(CKA_TRUSTED, &[1])]).err(), Some(CKR_ATTRIBUTE_READ_ONLY));
    assert_eq!(alice.set(kek, CKA_TRUSTED, &[1]), Err(CKR_ATTRIBUTE_READ_ONLY));
    assert_eq!(alice.wrap(plain(CKM_AES_KEY_WRAP), kek, key).err(), Some(CKR_KEY_NOT_WRAPPABLE));
    hsm.logged_in("admin", Role::Admin).key_set_attribute(kek, "trusted=true").unwrap();
    assert!(hsm.logged_in("admin", Role::Admin).key_set_attribute(kek, "label=x").is_err());
    let wrapped = alice.wrap(plain(CKM_AES_KEY_WRAP), kek, key).unwrap();
    let back = alice.unwrap(plain(CKM_AES_KEY_WRAP), kek, &wrapped, &[(CKA_EXTRACTABLE, &[1])]).unwrap();
    for (name, off) in [(CKA_EXTRACTABLE, &[0]), (CKA_SENSITIVE, &[1]), (CKA_WRAP_WITH_TRUSTED, &[1])] {
        alice.set(back, name, off).unwrap();
        assert_eq!(alice.set(back, name, &[1 - off[0]]), Err(CKR_ATTRIBUTE_READ_ONLY));
    }
    assert_eq!(alice.wrap(plain(CKM_AES_KEY_WRAP), kek, back).err(), Some(CKR_KEY_UNEXTRACTABLE));
    // A value of the wrong length is refused, where SoftHSM2 takes it.
    assert_eq!(alice.generate(&[(CKA_SIGN, &[1, 0])]).err(), Some(CKR_ATTRIBUTE_VALUE_INVALID));
    assert_eq!(alice.generate(&[(CKA_LOCAL, &[1])]).err(), Some(CKR_ATTRIBUTE_READ_ONLY));
}

/// A session object becomes a token object in a session that may write only.
#[test]
fn a_read_only_session_makes_no_token_object() {
    let hsm = Hsm::new();
    let alice = hsm.user("alice");
    let key = alice.generate(&[]).unwrap();
    let s: u64 = alice.link.call(&Request::OpenSession { rw: false }).unwrap();
    let to_token = |s| Request::SetAttrs { s, object: key, attrs: vec![(CKA_TOKEN, bytes(&[1]))] };
    assert_eq!(alice.link.call::<()>(&to_token(s)), Err(CKR_SESSION_READ_ONLY));
    alice.link.call::<()>(&to_token(alice.s)).unwrap();
    alice.link.call::<()>(&Request::CloseSession { s: alice.s }).unwrap();
    assert!(hsm.user("alice").find().contains(&key));
}

/// A key with CKA_ALWAYS_AUTHENTICATE unwraps and derives with a context-specific login of its own each time, which ends with
/// the login.
#[test]
fn every_use_of_such_a_key_is_authenticated() {
    let hsm = Hsm::new();
    let alice = hsm.user("alice");
    let p256: &[u8] = &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    let pair = |kind, public: Template, usage| -> (u64, u64) {
        let private = vec![(usage, bytes(&[1])), (CKA_ALWAYS_AUTHENTICATE, bytes(&[1]))];
        alice.link.call(&Request::GeneratePair { s: alice.s, mech: plain(kind), public, private }).unwrap()
    };
    let rsa = vec![(CKA_MODULUS_BITS, number(2048)), (CKA_WRAP, bytes(&[1]))];
    let (public, private) = pair(CKM_RSA_PKCS_KEY_PAIR_GEN, rsa, CKA_UNWRAP);
    let (_, ec) = pair(CKM_EC_KEY_PAIR_GEN, vec![(CKA_EC_PARAMS, bytes(p256))], CKA_DERIVE);
    let key = alice.generate(&[(CKA_EXTRACTABLE, &[1])]).unwrap();
    let wrapped = alice.wrap(plain(CKM_RSA_PKCS), public, key).unwrap();
    let unwrap = || alice.unwrap(plain(CKM_RSA_PKCS), private, &wrapped, &[]);
    let mut peer = vec![4];
    peer.extend((0..64).map(|_| 0));
    let params = Params::Ecdh { kdf: CKD_NULL, shared: bytes(b""), public: bytes(&peer) };
    let derive = || -> Ck<Vec<u64>> {
        let mech = Mech { kind: CKM_ECDH1_DERIVE, params: params.clone() };
        alice.link.call(&Request::Derive { s: alice.s, mech, key: ec, attrs: vec![] })
    };
    let context = || alice.login(CKU_CONTEXT_SPECIFIC, &format!("alice:{PASSWORD}")).unwrap();
    assert_eq!(
        (unwrap().err(), derive().err()),
        (Some(CKR_USER_NOT_LOGGED_IN), Some(CKR_USER_NOT_LOGGED_IN))
    );
    context();
    unwrap().unwrap();
    assert_eq!(unwrap().err(), Some(CKR_USER_NOT_LOGGED_IN));
    context();
    assert_eq!(derive().err(), Some(CKR_MECHANISM_PARAM_INVALID), "that point is on no curve");
    assert_eq!(derive().err(), Some(CKR_USER_NOT_LOGGED_IN));
    context();
    alice.link.call::<()>(&Request::Logout { s: alice.s }).unwrap();
    alice.login(CKU_USER, &format!("alice:{PASSWORD}")).unwrap();
    let appliance = hsm.appliance.as_ref().unwrap();
    let apps: Vec<_> = appliance.apps.lock().values().cloned().collect();
    let left = |app: &Arc<appliance::App>| {
        app.sessions.lock().values().any(|s| s.context.load(std::sync::atomic::Ordering::Relaxed))
    };
    assert!(!apps.iter().any(left));
}

/// Token keys live over a restart, session keys end with their session, and an officer's reset of a password loses
/// no key.
#[test]
fn keys_outlive_the_process_and_password_resets() {
    let mut hsm = Hsm::new();
    let alice = hsm.user("alice");
    let key = alice.generate(&[(CKA_TOKEN, &[1])]).unwrap();
    let session_key = alice.generate(&[]).unwrap();
    let sealed = alice.once(Op::Encrypt, gcm(&[7; 12]), key, b"data").unwrap();
    drop(alice);
    hsm.stop();
    hsm.start();
    let admin = hsm.logged_in("admin", Role::Admin);
    admin.user_change_password("alice", Role::CryptoUser, None, PASSWORD).unwrap();
    let alice = hsm.user("alice");
    assert_eq!(*alice.once(Op::Decrypt, gcm(&[7; 12]), key, &sealed).unwrap(), b"data");
    assert!(!alice.find().contains(&session_key));
    let key = alice.generate(&[]).unwrap();
    assert!(alice.find().contains(&key));
    alice.link.call::<()>(&Request::CloseSession { s: alice.s }).unwrap();
    assert!(!hsm.user("alice").find().contains(&key));
}

/// A backup opens with its password only, and whole only; what is restored has the keys, users and shares.
#[test]
fn a_backup_restores_everything_or_nothing() {
    let hsm = Hsm::new();
    let alice = hsm.user("alice");
    let key = alice.generate(&[(CKA_TOKEN, &[1])]).unwrap();
    let sealed = alice.once(Op::Encrypt, gcm(&[7; 12]), key, b"data").unwrap();
    let made = hsm.logged_in("admin", Role::Admin).backup("backup password").unwrap();
    let path = std::path::PathBuf::from(made["path"].as_str().unwrap());
    let tmp = tempfile::tempdir().unwrap();
    let restore = |file: &std::path::Path, password: &str| {
        let dir = tmp.path().join("restored");
        Appliance::restore(&dir, &Protection::KeyFile, Cost::TESTS, file, password.as_bytes())
    };
    assert!(matches!(restore(&path, "wrong password"), Err(HsmError::Denied(_))));
    let whole = std::fs::read(&path).unwrap();
    let bad = tmp.path().join("bad");
    for at in [0, 9, 20, 40, whole.len() - 1] {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        std::fs::write(&bad, &changed).unwrap();
        assert!(matches!(restore(&bad, "backup password"), Err(HsmError::Denied(_))), "byte {at}");
        std::fs::write(&bad, &whole[..at]).unwrap();
        assert!(matches!(restore(&bad, "backup password"), Err(HsmError::Denied(_))), "cut at {at}");
    }
    assert!(!tmp.path().join("restored").exists());
    restore(&path, "backup password").unwrap();
    let again = Appliance::open(&tmp.path().join("restored"), None, config()).unwrap();
    let at = Address::Unix(tmp.path().join("sock"));
    let _server = Server::start(again, &at, Peers::default()).unwrap();
    let link = Link::new(at, None).unwrap();
    let s = link.call(&Request::OpenSession { rw: true }).unwrap();
    let user = User { link, s };
    user.login(CKU_USER, &format!("alice:{PASSWORD}")).unwrap();
    assert_eq!(*user.once(Op::Decrypt, gcm(&[7; 12]), key, &sealed).unwrap(), b"data");
}

/// What is no message ends nothing but its own connection: cut, false and endless ones, and many idle ones.
#[test]
fn bad_messages_and_idle_connections_stop_nobody() {
    use std::io::{Read as _, Write as _};
    let hsm = Hsm::new();
    let Address::Unix(path) = hsm.address() else { panic!("a Unix socket") };
    let connect = || std::os::unix::net::UnixStream::connect(&path).unwrap();
    // A connection that never says whom it is for ends after a while; one that did may stay.
    let greeted = || {
        let mut stream = connect();
        stream.write_all(&frame(&Request::Hello { version: VERSION, app: bytes(b"") })).unwrap();
        stream
    };
    let idle: Vec<_> = (0..300).map(|_| greeted()).collect();
    for bad in [&[255u8; 64][..], &[4, 0, 0, 0, 99, 1, 2, 3], &[200, 0, 0, 0, 1], &[0, 0, 0, 0]] {
        let mut stream = connect();
        stream.write_all(bad).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer.len() <= 12, "an error at most");
    }
    let key = hsm.user("alice").generate(&[]).unwrap();
    assert_ne!(key, 0);
    assert!(hsm.server.as_ref().unwrap().connections() >= 300);
    drop(idle);
}

/// Only a client with a certificate of the customer's CA speaks with an HSM over TCP, and only an HSM of that CA is
/// spoken to.
#[test]
fn tcp_takes_certificates_of_the_customers_ca_only() {
    let hsm = Hsm::new();
    let ca = Ca::new("our CA");
    let other = Ca::new("their CA");
    // Of an HSM in service the trust anchor is the admin's to set.
    assert!(hsm.manager().csr().is_err());
    assert!(hsm.logged_in("alice", Role::CryptoUser).csr().is_err());
    let manager = hsm.logged_in("admin", Role::Admin);
    let csr = manager.csr().unwrap()["csr"].as_str().unwrap().to_owned();
    assert!(manager.initialize(other.sign(&csr), ca.pem()).is_err(), "signed by another CA");
    assert!(manager.initialize(ca.sign(&csr), ca.pem() + &other.pem()).is_err(), "two CAs");
    assert!(hsm.manager().initialize(ca.sign(&csr), ca.pem()).is_err());
    manager.initialize(ca.sign(&csr), ca.pem()).unwrap();
    let at = Address::Tcp("127.0.0.1:0".into());
    let server = Server::start(hsm.appliance.clone().unwrap(), &at, Peers::default()).unwrap();
    let files = |ca: &Ca, client: &Ca| {
        let tls = client.client(hsm.tmp.path());
        std::fs::write(&tls.ca, ca.pem()).unwrap();
        tls
    };
    let ask = |tls: &ClientTls| Manager::new(server.address().clone(), Some(tls)).unwrap().hsm_info();
    ask(&files(&ca, &ca)).unwrap();
    assert!(ask(&files(&ca, &other)).is_err(), "a client of another CA");
    assert!(ask(&files(&other, &ca)).is_err(), "an HSM of another CA");
    assert!(Manager::new(server.address().clone(), None).is_err(), "no certificate at all");
}

struct Ca {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: rcgen::Issuer::new(params, key), pem }
    }

    fn pem(&self) -> String {
        self.pem.clone()
    }

    fn sign(&self, csr: &str) -> String {
        let csr = rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap();
        csr.signed_by(&self.issuer).unwrap().pem()
    }

    fn client(&self, dir: &std::path::Path) -> ClientTls {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["client".into()]).unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let tls = ClientTls { ca: dir.join("ca.pem"), cert: dir.join("cert.pem"), key: dir.join("key.pem") };
        std::fs::write(&tls.cert, cert.pem()).unwrap();
        std::fs::write(&tls.key, key.serialize_pem()).unwrap();
        tls
    }
}
