//! Three HSMs as processes, and the PKCS#11 module under load while each in turn is killed, stopped and brought back. One
//! test in a process of its own: the module reads the environment.
#![allow(missing_docs, unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/hsm_members.rs"]
mod hsm_members;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use envelopefs::hsm::Role;
use rustix::process::Signal;

use hsm_members::{ADMIN, PASSWORD, members, synchronised, wait_for};

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
        wait_for("the load to go on", || {
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
    let mut members = members(tmp.path());
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
        let made = members[other]
            .manager("admin", Role::Admin, ADMIN)
            .user_create(&late, Role::CryptoUser, PASSWORD)
            .expect("a user");
        assert_eq!(made["cluster-coverage"], "inconsistent", "{made}");
        let health = members[other].health().expect("its health");
        assert!(health["members"].to_string().contains(&format!("user {late}")), "{health}");
        members[lost].start();
        synchronised(&members[other]);
        // It knows the new user.
        drop(members[lost].manager(&late, Role::CryptoUser, PASSWORD));
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
