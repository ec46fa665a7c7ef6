//! Three HSMs as processes, and the PKCS#11 module under load while each in turn is killed, stopped and brought back. One
//! test in a process of its own: the module reads the environment.
#![allow(missing_docs, unsafe_code)]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use envelopefs::hsm::{Address, Appliance, Cost, Manager, Protection, Role};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const ADMIN: &str = "admin-password";
const PASSWORD: &str = "user-password";
/// Longer than a loaded machine takes for anything here.
const LONG: Duration = Duration::from_secs(240);

struct Member {
    dir: PathBuf,
    process: Option<Child>,
}

impl Member {
    fn address(&self) -> Address {
        Address::Unix(self.dir.with_extension("sock"))
    }

    /// Starts it, and waits until it serves.
    fn start(&mut self) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_envelopefs"))
            .args(["hsm", "serve", "--dir"])
            .arg(&self.dir)
            .args(["--listen", &self.address().to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("its address");
        assert!(line.starts_with("unix:"), "it serves: {line}");
        self.process = Some(child);
    }

    fn signal(&self, signal: Signal) {
        let pid = self.process.as_ref().expect("it runs").id();
        kill_process(Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid"), signal)
            .expect("a signal");
    }

    /// kill -9.
    fn kill(&mut self) {
        let mut child = self.process.take().expect("it runs");
        child.kill().expect("a kill");
        child.wait().expect("its end");
    }

    fn manager(&self) -> Manager {
        Manager::new(self.address(), None).expect("a manager")
    }

    fn admin(&self) -> Manager {
        let manager = self.manager();
        manager.login("admin", Role::Admin, ADMIN).expect("the admin logs in");
        manager
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Three members of one cluster, with the crypto user `user`.
fn cluster(tmp: &Path) -> Vec<Member> {
    let member = |n: usize| Member { dir: tmp.join(format!("hsm{n}")), process: None };
    let mut first = member(1);
    Appliance::create(&first.dir, &Protection::KeyFile, Cost::TESTS).expect("an HSM");
    first.start();
    first.manager().activate(ADMIN).expect("it is activated");
    let admin = first.admin();
    admin.user_create("user", Role::CryptoUser, PASSWORD).expect("a user");
    let made = admin.backup("backup password").expect("a backup");
    let backup = PathBuf::from(made["path"].as_str().expect("its path"));
    let mut all = vec![first];
    for n in [2, 3] {
        let mut other = member(n);
        Appliance::restore(&other.dir, &Protection::KeyFile, Cost::TESTS, &backup, b"backup password")
            .expect("an HSM of the backup");
        other.start();
        admin.cluster_add(&other.address().to_string()).expect("it becomes a member");
        all.push(other);
    }
    all
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < LONG, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until a member says that the others have all that it has.
fn synchronised(member: &Member) {
    let mut last = Value::Null;
    let whole = |health: &Value| {
        let others = health["members"].as_array().map_or(&[][..], Vec::as_slice);
        others.len() == 2
            && others.iter().all(|m| m["reachable"] == true && m["compared"] == true && m["lacks"] == 0)
    };
    let begun = Instant::now();
    while !whole(&last) {
        assert!(begun.elapsed() < LONG, "the members are not synchronised: {last}");
        std::thread::sleep(Duration::from_millis(50));
        last = member.manager().health().unwrap_or(Value::Null);
    }
}

fn module() -> PathBuf {
    let exe = std::env::current_exe().expect("our own path");
    let deps = exe.parent().expect("a folder");
    let found = [deps.join("libenvelopefs.so"), deps.with_file_name("libenvelopefs.so")];
    found.into_iter().find(|path| path.exists()).expect("the module is built with the library")
}

/// What the threads of the load have done.
#[derive(Clone, Default)]
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<[AtomicU64; 3]>,
    failed: Arc<Mutex<Vec<String>>>,
}

impl Load {
    /// Waits until each thread has gone some rounds further.
    fn goes_on(&self) {
        let before: Vec<_> = self.done.iter().map(|n| n.load(Ordering::SeqCst)).collect();
        wait_for("the load goes on", || {
            self.check();
            self.done.iter().zip(&before).all(|(n, before)| n.load(Ordering::SeqCst) >= before + 20)
        });
    }

    fn check(&self) {
        let failed = self.failed.lock().expect("no thread panics with it");
        assert!(failed.is_empty(), "calls failed: {failed:?}");
    }
}

fn crypt(session: &Session, key: ObjectHandle, iv: u64) -> Result<(), Error> {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&iv.to_le_bytes());
    let (mut a, mut b) = (nonce, nonce);
    let sealed =
        session.encrypt(&Mechanism::AesGcm(GcmParams::new(&mut a, b"", 128.into())?), key, &[7; 32])?;
    let opened =
        session.decrypt(&Mechanism::AesGcm(GcmParams::new(&mut b, b"", 128.into())?), key, &sealed)?;
    assert_eq!(opened, [7; 32]);
    Ok(())
}

fn unwrap(session: &Session, key: ObjectHandle, wrapped: &[u8]) -> Result<(), Error> {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
    ];
    let made = session.unwrap_key(&Mechanism::AesKeyWrap, key, wrapped, &template)?;
    // It may be gone with a member that was killed between the two calls.
    match session.destroy_object(made) {
        Ok(()) | Err(Error::Pkcs11(RvError::DeviceRemoved, _)) => Ok(()),
        Err(e) => Err(e),
    }
}

/// No call that can be repeated fails while each member in turn is killed, and is stopped; what was changed meanwhile is on
/// the member when it is back; a session key that went with a member is said to be gone.
#[test]
fn a_load_through_the_module_survives_the_loss_of_each_member() {
    let tmp = tempfile::tempdir().expect("a directory");
    let mut members = cluster(tmp.path());
    let addresses: Vec<_> = members.iter().map(|m| m.address().to_string()).collect();
    // SAFETY: the only thread of this process that reads or writes the environment.
    unsafe { std::env::set_var("ENVELOPEFS_HSM", addresses.join(",")) };
    let module = Pkcs11::new(module()).expect("the module loads");
    module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).expect("C_Initialize");
    let slot = module.get_slots_with_token().expect("slots")[0];
    let session = module.open_rw_session(slot).expect("a session");
    session.login(UserType::User, Some(&AuthPin::new(format!("user:{PASSWORD}").into()))).expect("a login");
    let uses = [Attribute::ValueLen(32.into()), Attribute::Encrypt(true), Attribute::Decrypt(true)];
    let token = [&uses[..], &[Attribute::Token(true)]].concat();
    let key = session.generate_key(&Mechanism::AesKeyGen, &token).expect("a key");
    // A key that decrypts wraps no sensitive one.
    let wraps = [Attribute::Wrap(true), Attribute::Unwrap(true), Attribute::Token(true)];
    let kek = session.generate_key(&Mechanism::AesKeyGen, &[&uses[..1], &wraps].concat()).expect("a key");
    let of_session =
        session.generate_key(&Mechanism::AesKeyGen, &[&uses[..], &[Attribute::Extractable(true)]].concat());
    let of_session = of_session.expect("a session key");
    let wrapped = session.wrap_key(&Mechanism::AesKeyWrap, kek, of_session).expect("it is wrapped");

    let load = Load::default();
    let threads: Vec<_> = (0..3)
        .map(|n| {
            let (load, wrapped) = (load.clone(), wrapped.clone());
            let session = module.open_rw_session(slot).expect("a session");
            std::thread::spawn(move || {
                let mut iv = n as u64;
                while !load.stop.load(Ordering::SeqCst) {
                    iv += 3;
                    if let Err(e) = crypt(&session, key, iv).and_then(|()| unwrap(&session, kek, &wrapped)) {
                        load.failed.lock().expect("no thread panics with it").push(e.to_string());
                        return;
                    }
                    load.done[n].fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    load.goes_on();
    for lost in 0..3 {
        members[lost].kill();
        load.goes_on();
        let other = (lost + 1) % 3;
        let late = format!("late{lost}");
        let made = members[other].admin().user_create(&late, Role::CryptoUser, PASSWORD).expect("a user");
        assert_eq!(made["cluster-coverage"], "inconsistent", "{made}");
        let health = members[other].manager().health().expect("its health");
        assert!(health["members"].to_string().contains(&format!("user {late}")), "{health}");
        members[lost].start();
        synchronised(&members[other]);
        members[lost].manager().login(&late, Role::CryptoUser, PASSWORD).expect("it knows the new user");
        load.goes_on();
    }
    for lost in 0..3 {
        members[lost].signal(Signal::STOP);
        load.goes_on();
        members[lost].signal(Signal::CONT);
        synchronised(&members[(lost + 1) % 3]);
    }
    load.stop.store(true, Ordering::SeqCst);
    threads.into_iter().for_each(|thread| thread.join().expect("no thread panics"));
    load.check();
    crypt(&session, key, u64::MAX).expect("the first session goes on too");
    let gone = crypt(&session, of_session, u64::MAX).expect_err("the session key went with its member");
    assert!(matches!(gone, Error::Pkcs11(RvError::DeviceRemoved, _)), "{gone}");
}
