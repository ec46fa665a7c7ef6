//! What a KMS does with a cluster as one of its crypto users: AES-256 keys that never leave it, and AES-GCM under them.
//!
//! Members of a cluster have the same users and token keys, so any one serves: one that does not answer is passed over,
//! and asked again by the next call. A member that was started anew is logged in to anew.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use cryptoki_sys::*;
use lru::LruCache;
use parking_lot::Mutex;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::Ck;
use super::address::Address;
use super::client::{Link, Lost, parse};
use super::error::HsmError;
use super::tls::ClientTls;
use super::wire::{Bytes, Mech, Op, Params, Request, Template, TokenFacts, Wire};
use crate::crypto::random;

/// Bytes of an IV of AES-GCM.
const IV: usize = 12;
/// Handles by label that are remembered.
const HANDLES: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// Keys of one label that are tried: there is one, but where an answer was lost while it was made.
const SAME_LABEL: usize = 4;

/// Why the cluster did not do it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyStoreError {
    /// No such user, or another password.
    #[error("the HSM refuses the user's password")]
    Credentials,
    /// Too many wrong passwords.
    #[error("the HSM has locked the user out")]
    LockedOut,
    /// No member answers.
    #[error("no HSM of the cluster answers")]
    Unreachable,
    /// The ciphertext is not one of this key, or was changed.
    #[error("the ciphertext does not open")]
    Tampered,
    /// Another answer: its CK_RV.
    #[error("the HSM answered with {0:#x}")]
    Failed(u64),
}

/// The file that describes a cluster for a KMS: as `hsm.json` (docs/HSM.md), and the trust anchor.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    members: Vec<String>,
    #[serde(default)]
    tls: Option<ClientTls>,
    #[serde(default)]
    trust_anchor: Option<PathBuf>,
}

/// A cluster, not logged in to.
pub struct KeyStore {
    members: Vec<Address>,
    tls: Option<ClientTls>,
    anchor: Option<String>,
    /// For what needs no login.
    links: Vec<Link>,
}

/// A login of one crypto user.
pub struct KeyUser {
    seats: Vec<Seat>,
    name: String,
    password: Mutex<Zeroizing<String>>,
    /// Why the password was refused: it is not tried again, so that the account is not locked.
    refused: Mutex<Option<CK_RV>>,
    /// The member that answered last.
    first: AtomicUsize,
    handles: Mutex<LruCache<String, u64>>,
}

/// One member and the session there.
struct Seat {
    link: Link,
    session: Mutex<Option<u64>>,
    /// Held while an operation of several requests runs in the session.
    steps: Mutex<()>,
}

impl KeyStore {
    /// A cluster by the addresses of its members; `anchor` is the PEM of its own authority.
    ///
    /// # Errors
    /// TCP without certificates, or certificates that do not decode.
    pub fn new(
        members: &[Address],
        tls: Option<&ClientTls>,
        anchor: Option<String>,
    ) -> Result<Self, HsmError> {
        Ok(Self { members: members.to_vec(), tls: tls.cloned(), anchor, links: links(members, tls)? })
    }

    /// The cluster that a file describes: `{"members": [ADDRESS, ...], "tls": {"ca", "cert", "key"}, "trust_anchor": PEM
    /// FILE}`; without `trust_anchor` it is `ca`.
    ///
    /// # Errors
    /// The file's, or as for [`KeyStore::new`].
    pub fn described(file: &Path) -> Result<Self, HsmError> {
        let text = std::fs::read(file).map_err(HsmError::io(file))?;
        let found: Described = serde_json::from_slice(&text).map_err(|e| {
            HsmError::Refused(format!("{}: not a description of an HSM cluster: {e}", file.display()))
        })?;
        let members: Result<Vec<Address>, _> = found.members.iter().map(|m| m.parse()).collect();
        let members = members.map_err(HsmError::Refused)?;
        if members.is_empty() {
            return Err(HsmError::Refused(format!("{}: it names no member", file.display())));
        }
        let path = found.trust_anchor.as_ref().or(found.tls.as_ref().map(|tls| &tls.ca));
        let read = |path: &PathBuf| std::fs::read_to_string(path).map_err(HsmError::io(path));
        let anchor = path.map(read).transpose()?;
        Self::new(&members, found.tls.as_ref(), anchor)
    }

    /// Members that answer and are in service, each counted once.
    pub fn active(&self) -> usize {
        let asked = |link: &Link| call::<TokenFacts>(link, &Request::TokenInfo {}).ok();
        let answers: Vec<_> = std::thread::scope(|scope| {
            let all: Vec<_> = self.links.iter().map(|link| scope.spawn(move || asked(link))).collect();
            all.into_iter().map(|one| one.join().ok().flatten()).collect()
        });
        let active = answers.into_iter().flatten().filter(|facts| facts.initialized);
        active.map(|facts| facts.serial).collect::<BTreeSet<_>>().len()
    }

    /// The PEM of the cluster's own authority, where it is known.
    pub fn anchor(&self) -> Option<&str> {
        self.anchor.as_deref()
    }

    /// Logs in as a crypto user, at the first member that answers.
    ///
    /// # Errors
    /// As [`KeyStoreError`] has them. A user who does not exist is refused as one with another password.
    pub fn login(&self, name: &str, password: &str) -> Result<KeyUser, KeyStoreError> {
        // An application of its own: in one that somebody else has logged in no password would be asked for.
        let links = links(&self.members, self.tls.as_ref()).map_err(|e| {
            log::warn!("{e}");
            KeyStoreError::Unreachable
        })?;
        let seat = |link| Seat { link, session: Mutex::new(None), steps: Mutex::new(()) };
        let user = KeyUser {
            seats: links.into_iter().map(seat).collect(),
            name: name.to_owned(),
            password: Mutex::new(Zeroizing::new(password.to_owned())),
            refused: Mutex::new(None),
            first: AtomicUsize::new(0),
            handles: Mutex::new(LruCache::new(HANDLES)),
        };
        user.each_member(|_, _| Ok(()))?;
        Ok(user)
    }
}

impl KeyUser {
    /// Changes the user's own password; this login goes on with the new one.
    ///
    /// # Errors
    /// The cluster's.
    pub fn set_password(&self, new: &str) -> Result<(), KeyStoreError> {
        let old = pin(&self.name, &self.password.lock());
        let fresh = pin(&self.name, new);
        self.each_member(|seat, s| {
            call::<()>(&seat.link, &Request::SetPin { s, old: old.clone(), new: fresh.clone() })
        })?;
        *self.password.lock() = Zeroizing::new(new.to_owned());
        Ok(())
    }

    /// Makes a token key under a label: AES-256, sensitive, not extractable, for encryption and decryption alone. Where
    /// the answer is lost it may be there all the same.
    ///
    /// # Errors
    /// The cluster's.
    pub fn generate(&self, label: &str) -> Result<(), KeyStoreError> {
        let yes = |kind| (kind, Zeroizing::new(vec![1]));
        let no = |kind| (kind, Zeroizing::new(vec![0]));
        let attrs: Template = vec![
            (CKA_VALUE_LEN, Zeroizing::new(32_u64.to_le_bytes().to_vec())),
            (CKA_LABEL, Zeroizing::new(label.as_bytes().to_vec())),
            yes(CKA_TOKEN),
            yes(CKA_PRIVATE),
            yes(CKA_SENSITIVE),
            no(CKA_EXTRACTABLE),
            yes(CKA_ENCRYPT),
            yes(CKA_DECRYPT),
            no(CKA_WRAP),
            no(CKA_UNWRAP),
        ];
        let mech = Mech { kind: CKM_AES_KEY_GEN, params: Params::None {} };
        // Asked of one member alone: what one of them may have done is not asked of another.
        let mut asked = false;
        let handle: u64 = self.each_member(|seat, s| {
            if asked {
                return Err(CKR_FUNCTION_FAILED);
            }
            let request = Request::Generate { s, mech: mech.clone(), attrs: attrs.clone() };
            match seat.link.ask(&request) {
                Ok(answer) => parse(&answer),
                Err(Lost::Unreachable(_)) => Err(CKR_DEVICE_REMOVED),
                Err(Lost::Broken) => {
                    asked = true;
                    Err(CKR_FUNCTION_FAILED)
                }
            }
        })?;
        self.handles.lock().put(label.to_owned(), handle);
        Ok(())
    }

    /// AES-256-GCM under the key of a label: IV, ciphertext, tag.
    ///
    /// # Errors
    /// The cluster's; `Failed(CKR_KEY_HANDLE_INVALID)` where there is no such key.
    pub fn encrypt(&self, label: &str, ad: &[u8], plain: &[u8]) -> Result<Vec<u8>, KeyStoreError> {
        let iv: [u8; IV] = random::array();
        self.each_member(|seat, s| {
            self.with_key(seat, s, label, |key| {
                let request = once(s, Op::Encrypt, gcm(&iv, ad), key, plain);
                match call::<Bytes>(&seat.link, &request) {
                    Ok(sealed) => Ok([&iv[..], &sealed].concat()),
                    // It makes its IVs itself (`hsm serve --hsm-iv`).
                    Err(CKR_MECHANISM_PARAM_INVALID) => encrypt_in_steps(seat, s, key, ad, plain),
                    Err(rv) => Err(rv),
                }
            })
        })
    }

    /// Opens what [`KeyUser::encrypt`] gave.
    ///
    /// # Errors
    /// The cluster's.
    pub fn decrypt(&self, label: &str, ad: &[u8], sealed: &[u8]) -> Result<Bytes, KeyStoreError> {
        let (iv, text) = sealed.split_first_chunk::<IV>().ok_or(KeyStoreError::Tampered)?;
        self.each_member(|seat, s| {
            let open = |key| call::<Bytes>(&seat.link, &once(s, Op::Decrypt, gcm(iv, ad), key, text));
            match self.with_key(seat, s, label, open) {
                Err(CKR_ENCRYPTED_DATA_INVALID) => {
                    // Another key of the same label: see `SAME_LABEL`.
                    let all = find(seat, s, label)?;
                    let opened = all.into_iter().take(SAME_LABEL).find_map(|key| open(key).ok());
                    opened.ok_or(CKR_ENCRYPTED_DATA_INVALID)
                }
                other => other,
            }
        })
    }

    /// Random bytes of an HSM.
    ///
    /// # Errors
    /// The cluster's.
    pub fn random(&self, len: usize) -> Result<Bytes, KeyStoreError> {
        let len = u32::try_from(len).map_err(|_| KeyStoreError::Failed(CKR_ARGUMENTS_BAD))?;
        self.each_member(|seat, _| call(&seat.link, &Request::Random { len }))
    }

    /// Destroys the keys of a label. None is none to be destroyed.
    ///
    /// # Errors
    /// The cluster's.
    pub fn destroy(&self, label: &str) -> Result<(), KeyStoreError> {
        self.handles.lock().pop(label);
        self.each_member(|seat, s| {
            find(seat, s, label)?
                .into_iter()
                .try_for_each(|object| call(&seat.link, &Request::Destroy { s, object }))
        })
    }

    /// Runs `work` with a session of the first member that answers, the one of the last call before all others. A session
    /// that is gone is made anew, once.
    fn each_member<T>(&self, mut work: impl FnMut(&Seat, u64) -> Ck<T>) -> Result<T, KeyStoreError> {
        let first = self.first.load(Relaxed);
        for at in 0..self.seats.len() {
            let at = (first + at) % self.seats.len();
            let Some(seat) = self.seats.get(at) else { continue };
            let mut done = self.session(seat).and_then(|s| work(seat, s));
            if matches!(done, Err(CKR_SESSION_HANDLE_INVALID | CKR_USER_NOT_LOGGED_IN)) {
                *seat.session.lock() = None;
                done = self.session(seat).and_then(|s| work(seat, s));
            }
            match done {
                Err(CKR_DEVICE_REMOVED) => *seat.session.lock() = None,
                other => {
                    self.first.store(at, Relaxed);
                    return other.map_err(refusal);
                }
            }
        }
        Err(KeyStoreError::Unreachable)
    }

    /// The session at a member, logged in.
    fn session(&self, seat: &Seat) -> Ck<u64> {
        let mut session = seat.session.lock();
        if let Some(s) = *session {
            return Ok(s);
        }
        // Held over the login: another member is not asked the same meanwhile.
        let mut refused = self.refused.lock();
        if let Some(rv) = *refused {
            return Err(rv);
        }
        let s: u64 = call(&seat.link, &Request::OpenSession { rw: true })?;
        let pin = pin(&self.name, &self.password.lock());
        let close = |rv| {
            let _ = call::<()>(&seat.link, &Request::CloseSession { s });
            rv
        };
        match call(&seat.link, &Request::Login { s, kind: CKU_USER, pin }) {
            // A session that was lost here is there still.
            Ok(()) | Err(CKR_USER_ALREADY_LOGGED_IN) => {}
            Err(rv) => {
                if matches!(rv, CKR_PIN_INCORRECT | CKR_USER_TYPE_INVALID | CKR_PIN_LOCKED) {
                    *refused = Some(rv);
                }
                return Err(close(rv));
            }
        }
        *session = Some(s);
        Ok(s)
    }

    /// Runs `work` with the handle of a label; one that is not right any more is looked for anew, once.
    fn with_key<T>(&self, seat: &Seat, s: u64, label: &str, work: impl Fn(u64) -> Ck<T>) -> Ck<T> {
        let known = self.handles.lock().get(label).copied();
        if let Some(handle) = known {
            match work(handle) {
                Err(CKR_KEY_HANDLE_INVALID | CKR_OBJECT_HANDLE_INVALID) => {}
                other => return other,
            }
        }
        let handle = find(seat, s, label)?.first().copied().ok_or(CKR_KEY_HANDLE_INVALID)?;
        let done = work(handle)?;
        self.handles.lock().put(label.to_owned(), handle);
        Ok(done)
    }
}

impl Drop for KeyUser {
    /// Ends the sessions; with the last one of an application its login ends.
    fn drop(&mut self) {
        for seat in &self.seats {
            if let Some(s) = seat.session.lock().take() {
                let _ = call::<()>(&seat.link, &Request::CloseSession { s });
            }
        }
    }
}

fn links(members: &[Address], tls: Option<&ClientTls>) -> Result<Vec<Link>, HsmError> {
    members.iter().map(|address| Link::new(address.clone(), tls)).collect()
}

/// Sends a request; a member that does not answer is CKR_DEVICE_REMOVED.
fn call<T: Wire>(link: &Link, request: &Request) -> Ck<T> {
    match link.ask(request) {
        Ok(answer) => parse(&answer),
        Err(Lost::Unreachable(e)) => {
            log::warn!("{e}");
            Err(CKR_DEVICE_REMOVED)
        }
        Err(Lost::Broken) => Err(CKR_DEVICE_REMOVED),
    }
}

fn pin(name: &str, password: &str) -> Bytes {
    let mut pin = Zeroizing::new(Vec::with_capacity(name.len() + 1 + password.len()));
    for part in [name, ":", password] {
        pin.extend_from_slice(part.as_bytes());
    }
    pin
}

fn gcm(iv: &[u8], ad: &[u8]) -> Mech {
    let params =
        Params::Gcm { iv: Zeroizing::new(iv.to_vec()), aad: Zeroizing::new(ad.to_vec()), tag_bits: 128 };
    Mech { kind: CKM_AES_GCM, params }
}

fn once(s: u64, op: Op, mech: Mech, key: u64, data: &[u8]) -> Request {
    Request::Once { s, op, mech, key, data: Zeroizing::new(data.to_vec()), aux: Zeroizing::new(Vec::new()) }
}

/// Encrypts where the HSM makes the IV and tells it at the beginning.
fn encrypt_in_steps(seat: &Seat, s: u64, key: u64, ad: &[u8], plain: &[u8]) -> Ck<Vec<u8>> {
    let _alone = seat.steps.lock();
    let op = Op::Encrypt;
    let iv: Bytes = call(&seat.link, &Request::Check { s, op, mech: gcm(&[0; IV], ad), key })?;
    if iv.len() != IV {
        return Err(CKR_DEVICE_ERROR);
    }
    let head: Bytes = call(&seat.link, &Request::Update { s, op, data: Zeroizing::new(plain.to_vec()) })?;
    let rest: Bytes = call(&seat.link, &Request::Finish { s, op, aux: Zeroizing::new(Vec::new()) })?;
    Ok([&iv[..], &head, &rest].concat())
}

/// Handles of the keys of a label, in order.
fn find(seat: &Seat, s: u64, label: &str) -> Ck<Vec<u64>> {
    let attrs = vec![
        (CKA_CLASS, Zeroizing::new(CKO_SECRET_KEY.to_le_bytes().to_vec())),
        (CKA_LABEL, Zeroizing::new(label.as_bytes().to_vec())),
    ];
    call(&seat.link, &Request::Find { s, attrs })
}

fn refusal(rv: CK_RV) -> KeyStoreError {
    match rv {
        CKR_PIN_INCORRECT | CKR_USER_TYPE_INVALID => KeyStoreError::Credentials,
        CKR_PIN_LOCKED => KeyStoreError::LockedOut,
        CKR_DEVICE_REMOVED => KeyStoreError::Unreachable,
        CKR_ENCRYPTED_DATA_INVALID | CKR_ENCRYPTED_DATA_LEN_RANGE => KeyStoreError::Tampered,
        other => KeyStoreError::Failed(other),
    }
}
