//! Custom key stores on our own HSM: appliances behind their sockets, a KMS server, signed requests.
#![allow(missing_docs, clippy::unwrap_used)]

mod kms_support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use envelopefs::hsm::{self, Address, Appliance, Config, KeyStore, Manager, Peers, Role};
use kms_support::{Running, User, start};
use serde_json::{Value, json};

const ADMIN: &str = "admin-password";
const CLUSTER: &str = "cluster-abcdefghijk";
const ANCHOR: &str = "-----BEGIN CERTIFICATE-----\nYW5jaG9y\n-----END CERTIFICATE-----\n";

/// An HSM in service.
struct Hsm {
    dir: PathBuf,
    appliance: Option<Arc<Appliance>>,
    server: Option<hsm::Server>,
}

impl Hsm {
    fn new(home: &tempfile::TempDir, name: &str) -> Self {
        let dir = home.path().join(name);
        Appliance::create(&dir, &hsm::Protection::KeyFile, hsm::Cost::TESTS).unwrap();
        let mut made = Self { dir, appliance: None, server: None };
        made.start();
        made.manager().activate(ADMIN).unwrap();
        made
    }

    fn start(&mut self) {
        let config = || Config { login_cost: hsm::Cost::TESTS, ..Config::default() };
        let until = Instant::now() + Duration::from_secs(30);
        // The one before closes its files a moment after the last hold on it is gone.
        let appliance = loop {
            match Appliance::open(&self.dir, None, config()) {
                Err(hsm::HsmError::Busy(_)) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                other => break other.unwrap(),
            }
        };
        let server = hsm::Server::start(appliance.clone(), &self.address(), Peers::default());
        self.server = Some(server.unwrap());
        self.appliance = Some(appliance);
    }

    /// Ends it: when this returns, nobody is served any more.
    fn stop(&mut self) {
        self.server = None;
        let weak = Arc::downgrade(&self.appliance.take().unwrap());
        let until = Instant::now() + Duration::from_secs(60);
        while weak.strong_count() > 0 {
            assert!(Instant::now() < until, "somebody holds the appliance");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn address(&self) -> Address {
        Address::Unix(self.dir.with_extension("sock"))
    }

    fn manager(&self) -> Manager {
        Manager::new(self.address(), None).unwrap()
    }

    fn admin(&self) -> Manager {
        let manager = self.manager();
        manager.login("admin", Role::Admin, ADMIN).unwrap();
        manager
    }
}

/// A KMS, its administrator, and an HSM with `kmsuser` beside one without.
struct Bench {
    kms: Running,
    owner: User,
    hsm: Hsm,
    other: Hsm,
    _home: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let (hsm, other) = (Hsm::new(&home, "one"), Hsm::new(&home, "two"));
        hsm.admin().user_create("kmsuser", Role::CryptoUser, "kmsPswd1").unwrap();
        let kms = start("off");
        let owner = kms.user("owner", &[]);
        let cluster = KeyStore::new(&[hsm.address(), other.address()], None, Some(ANCHOR.into())).unwrap();
        kms.engine.add_cluster(CLUSTER, Arc::new(cluster));
        Self { kms, owner, hsm, other, _home: home }
    }

    fn call(&self, action: &str, input: &Value) -> Value {
        self.kms.good(&self.owner, action, input)
    }

    fn refused(&self, action: &str, input: &Value) -> String {
        let (status, answer) = self.kms.call(&self.owner, action, input);
        assert_ne!(status, 200, "{action}: {answer}");
        answer["__type"].as_str().unwrap().to_owned()
    }

    fn create(&self) -> Value {
        json!({
            "CustomKeyStoreName": "store", "CloudHsmClusterId": CLUSTER, "TrustAnchorCertificate": ANCHOR,
            "KeyStorePassword": "kmsPswd1",
        })
    }

    /// A connected key store and a key in it.
    fn key(&self) -> (Value, Value) {
        let store = self.call("CreateCustomKeyStore", &self.create())["CustomKeyStoreId"].clone();
        self.call("ConnectCustomKeyStore", &json!({ "CustomKeyStoreId": store }));
        let made = self.call("CreateKey", &json!({ "Origin": "AWS_CLOUDHSM", "CustomKeyStoreId": store }));
        (store, made["KeyMetadata"]["KeyId"].clone())
    }

    fn state(&self, store: &Value) -> (String, Option<String>) {
        let shown = self.call("DescribeCustomKeyStores", &json!({ "CustomKeyStoreId": store }));
        let shown = &shown["CustomKeyStores"][0];
        let text = |name: &str| shown[name].as_str().map(str::to_owned);
        (text("ConnectionState").unwrap(), text("ConnectionErrorCode"))
    }

    /// Connects anew; gives what became of it.
    fn reconnect(&self, store: &Value) -> (String, Option<String>) {
        self.call("DisconnectCustomKeyStore", &json!({ "CustomKeyStoreId": store }));
        self.call("ConnectCustomKeyStore", &json!({ "CustomKeyStoreId": store }));
        self.state(store)
    }
}

/// Two HSMs in service are needed to make a key store, one to use it. Its keys encrypt and decrypt in the HSM, with the
/// encryption context bound; `kmsuser` has a password that nobody knows from the first connection on.
#[test]
fn a_key_store_is_made_with_two_hsms_and_used_with_one() {
    let mut bench = Bench::new();
    bench.other.stop();
    assert_eq!(
        bench.refused("CreateCustomKeyStore", &bench.create()),
        "CloudHsmClusterInvalidConfigurationException"
    );
    bench.other.start();
    let mut wrong = bench.create();
    wrong["TrustAnchorCertificate"] = json!("another");
    assert_eq!(bench.refused("CreateCustomKeyStore", &wrong), "IncorrectTrustAnchorException");
    let (store, key) = bench.key();
    assert_eq!(bench.state(&store), ("CONNECTED".into(), None));
    assert!(bench.hsm.manager().login("kmsuser", Role::CryptoUser, "kmsPswd1").is_err(), "not rotated");
    bench.other.stop();

    let context = json!({ "app": "pay" });
    let input = json!({ "KeyId": key, "Plaintext": "cGxhaW4=", "EncryptionContext": context });
    let blob = bench.call("Encrypt", &input)["CiphertextBlob"].clone();
    let open = json!({ "CiphertextBlob": blob, "EncryptionContext": context });
    assert_eq!(bench.call("Decrypt", &open)["Plaintext"], "cGxhaW4=");
    let other = json!({ "CiphertextBlob": blob, "EncryptionContext": { "app": "x" } });
    assert_eq!(bench.refused("Decrypt", &other), "InvalidCiphertextException");
    let made = bench.call("GenerateDataKey", &json!({ "KeyId": key, "KeySpec": "AES_256" }));
    let opened = bench.call("Decrypt", &json!({ "CiphertextBlob": made["CiphertextBlob"] }));
    assert_eq!(opened["Plaintext"], made["Plaintext"]);
    let random = bench.call("GenerateRandom", &json!({ "CustomKeyStoreId": store, "NumberOfBytes": 32 }));
    assert_eq!(random["Plaintext"].as_str().map(str::len), Some(44));
}

/// While the HSM is away its keys are unavailable, and they are there again by themselves when it is.
#[test]
fn a_cluster_that_goes_comes_back() {
    let mut bench = Bench::new();
    let (store, key) = bench.key();
    bench.other.stop();
    let blob = bench.call("Encrypt", &json!({ "KeyId": key, "Plaintext": "aGk=" }))["CiphertextBlob"].clone();
    let open = json!({ "CiphertextBlob": blob });
    bench.hsm.stop();
    assert_eq!(bench.refused("Decrypt", &open), "KMSInvalidStateException");
    assert_eq!(bench.reconnect(&store), ("FAILED".into(), Some("INSUFFICIENT_CLOUDHSM_HSMS".into())));
    bench.hsm.start();
    assert_eq!(bench.reconnect(&store), ("CONNECTED".into(), None));
    assert_eq!(bench.call("Decrypt", &open)["Plaintext"], "aGk=");
    // Started anew in the middle: the login of before is gone.
    bench.hsm.stop();
    bench.hsm.start();
    let until = Instant::now() + Duration::from_secs(60);
    while bench.kms.call(&bench.owner, "Decrypt", &open).0 != 200 {
        assert!(Instant::now() < until, "it does not come back");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A password that an admin of the HSM changed is tried once: the KMS does not lock its own user out, and serves again when it
/// is told the new one.
#[test]
fn a_refused_password_is_not_tried_again() {
    let mut bench = Bench::new();
    let (store, key) = bench.key();
    let blob = bench.call("Encrypt", &json!({ "KeyId": key, "Plaintext": "aGk=" }))["CiphertextBlob"].clone();
    let admin = bench.hsm.admin();
    admin.user_change_password("kmsuser", Role::CryptoUser, None, "somebody-elses").unwrap();
    drop(admin);
    bench.hsm.stop();
    bench.hsm.start();
    for _ in 0..4 {
        for _ in 0..3 {
            bench.refused("Decrypt", &json!({ "CiphertextBlob": blob }));
            bench.call("DescribeKey", &json!({ "KeyId": key }));
        }
        std::thread::sleep(Duration::from_millis(1100));
    }
    let users = bench.hsm.admin().user_list().unwrap();
    let kmsuser = users["users"].as_array().unwrap().iter().find(|u| u["username"] == "kmsuser").unwrap();
    assert_eq!(kmsuser["locked"], "false");
    bench.call("DisconnectCustomKeyStore", &json!({ "CustomKeyStoreId": store }));
    let right = json!({ "CustomKeyStoreId": store, "KeyStorePassword": "somebody-elses" });
    bench.call("UpdateCustomKeyStore", &right);
    assert_eq!(bench.reconnect(&store), ("CONNECTED".into(), None));
    assert_eq!(bench.call("Decrypt", &json!({ "CiphertextBlob": blob }))["Plaintext"], "aGk=");
}

/// AWS's connection error codes: a password that is another one, one that is set right again, a user who is locked out.
#[test]
fn wrong_passwords_have_their_codes() {
    let bench = Bench::new();
    let (store, key) = bench.key();
    let blob = bench.call("Encrypt", &json!({ "KeyId": key, "Plaintext": "aGk=" }))["CiphertextBlob"].clone();
    let set = |password: &str| {
        let admin = bench.hsm.admin();
        admin.user_change_password("kmsuser", Role::CryptoUser, None, password).unwrap();
    };
    set("somebody-elses");
    assert_eq!(bench.reconnect(&store), ("FAILED".into(), Some("INVALID_CREDENTIALS".into())));
    bench.call("DisconnectCustomKeyStore", &json!({ "CustomKeyStoreId": store }));
    bench.call(
        "UpdateCustomKeyStore",
        &json!({ "CustomKeyStoreId": store, "KeyStorePassword": "somebody-elses" }),
    );
    assert_eq!(bench.reconnect(&store), ("CONNECTED".into(), None));
    assert_eq!(bench.call("Decrypt", &json!({ "CiphertextBlob": blob }))["Plaintext"], "aGk=");
    for _ in 0..5 {
        bench.hsm.manager().login("kmsuser", Role::CryptoUser, "wrong-password").unwrap_err();
    }
    assert_eq!(bench.reconnect(&store), ("FAILED".into(), Some("USER_LOCKED_OUT".into())));
}
