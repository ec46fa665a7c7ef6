//! The appliance through its socket, as its clients have it.

mod cluster;
mod export;
mod limits;
mod monitor;
mod quorum;

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

/// A key that wraps and decrypts does not reveal a sensitive key (Clulow 2003; SoftHSM2 does with AES-CBC), and does
/// not come to do so by a later change. Key wrap stays possible: C_Decrypt does not take it.
#[test]
fn a_wrapped_key_cannot_be_decrypted() {
    let hsm = Hsm::new();
    let alice = hsm.user("alice");
    let secret = alice.generate(&[(CKA_SENSITIVE, &[1]), (CKA_EXTRACTABLE, &[1])]).unwrap();
    let both = alice.generate(&[(CKA_WRAP, &[1]), (CKA_DECRYPT, &[1]), (CKA_UNWRAP, &[1])]).unwrap();
    let cbc = || Mech { kind: CKM_AES_CBC, params: Params::Raw { bytes: bytes(&[0; 16]) } };
    for mech in [cbc(), gcm(&[1; 12]), plain(mechs::CLOUDHSM_AES_GCM)] {
        assert_eq!(alice.wrap(mech, both, secret).err(), Some(CKR_KEY_FUNCTION_NOT_PERMITTED));
    }
    let wrapped = alice.wrap(plain(CKM_AES_KEY_WRAP), both, secret).unwrap();
    assert_eq!(
        alice.once(Op::Decrypt, plain(CKM_AES_KEY_WRAP), both, &wrapped).err(),
        Some(CKR_MECHANISM_INVALID)
    );
    let wraps = alice.generate(&[(CKA_WRAP, &[1])]).unwrap();
    alice.wrap(cbc(), wraps, secret).unwrap();
    assert_eq!(alice.set(wraps, CKA_DECRYPT, &[1]), Err(CKR_TEMPLATE_INCONSISTENT));
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

/// The audit log has no gaps, and notices a changed, a removed and a cut line.
#[test]
fn the_audit_log_notices_changes() {
    let mut hsm = Hsm::new();
    hsm.user("alice").generate(&[(CKA_TOKEN, &[1])]).unwrap();
    let lines = hsm.logged_in("admin", Role::Admin).audit_verify().unwrap()["lines"].as_u64().unwrap();
    assert!(lines > 5);
    hsm.stop();
    let path = hsm.tmp.path().join("hsm/audit.log");
    let whole = std::fs::read_to_string(&path).unwrap();
    assert!(whole.contains("CN_GENERATE_KEY") && whole.contains("CN_LOGIN") && !whole.contains(PASSWORD));
    let all: Vec<_> = whole.lines().collect();
    let cases = [
        whole.replace("\"user\":\"alice\"", "\"user\":\"bob\""),
        [&all[..2], &all[3..]].concat().join("\n") + "\n",
        all[..all.len() - 1].join("\n") + "\n",
        String::new(),
    ];
    for case in cases {
        std::fs::write(&path, &case).unwrap();
        hsm.start();
        assert!(hsm.logged_in("admin", Role::Admin).audit_verify().is_err(), "{case}");
        hsm.stop();
        std::fs::write(&path, &whole).unwrap();
    }
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
    let manager = hsm.manager();
    let csr = manager.csr().unwrap()["csr"].as_str().unwrap().to_owned();
    assert!(manager.initialize(other.sign(&csr), ca.pem()).is_err(), "signed by another CA");
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
