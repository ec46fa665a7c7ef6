//! The token by PKCS#11: slots, logins, sessions, keys. Runs in the helper alone.
//!
//! Sessions and logins are renewed where the token has lost them: each worker drops what it had, looks for the token
//! again, and tries once more. A PIN that was refused is not tried again: tokens lock after a few tries.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use parking_lot::{Mutex, RwLock};
use zeroize::Zeroizing;

use super::mechanism::{self, Kind};
use super::operation;
use super::wire::{Answer, Fault, Place, Reason, Request};

/// Keys that one helper knows: more than a vault has.
const MAX_TARGETS: usize = 128;
/// After this long a wrap of several keys gives what it has: half of what the daemon waits for it.
const LONG_WRAP: Duration = Duration::from_secs(4);

/// A module and the keys that were named to it.
pub(super) struct Device {
    path: PathBuf,
    /// `None` until it is needed, and after a load that failed.
    module: Mutex<Option<Pkcs11>>,
    targets: RwLock<HashMap<u32, Arc<Target>>>,
}

/// A key of a token, as the daemon named it.
struct Target {
    place: Place,
    pin: Option<Zeroizing<String>>,
    shared: Mutex<Shared>,
}

#[derive(Default)]
struct Shared {
    slot: Option<Slot>,
    /// What the token said to the PIN.
    refused: Option<Fault>,
}

/// A worker's sessions.
pub(super) struct Worker {
    device: Arc<Device>,
    open: HashMap<u32, Open>,
}

struct Open {
    session: Session,
    /// Looked for once a session.
    key: Option<Key>,
}

/// A key that was found.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) handle: ObjectHandle,
    pub(super) id: Vec<u8>,
    pub(super) is_rsa: bool,
}

/// Why something failed, and whether another session may do better.
pub(super) enum Trouble {
    /// The session, the login or the token was lost.
    Lost(Fault),
    /// The token refuses, or there is no such thing.
    Final(Fault),
    /// The token says that it failed and not why: it may be the blob.
    Vague(Fault),
}

impl Trouble {
    pub(super) fn denied(text: impl Into<String>) -> Self {
        Self::Final(Fault::new(Reason::Denied, text))
    }

    fn fault(self) -> Fault {
        match self {
            Self::Lost(fault) | Self::Final(fault) | Self::Vague(fault) => fault,
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        let text = said(&error);
        let unreachable = Fault::new(Reason::Unreachable, text.clone());
        let Error::Pkcs11(rv, _) = &error else { return Self::Vague(unreachable) };
        match rv {
            RvError::SessionHandleInvalid
            | RvError::SessionClosed
            | RvError::UserNotLoggedIn
            | RvError::DeviceRemoved
            | RvError::TokenNotPresent
            | RvError::TokenNotRecognized
            | RvError::SlotIdInvalid
            | RvError::KeyHandleInvalid
            | RvError::ObjectHandleInvalid
            | RvError::CryptokiNotInitialized
            | RvError::OperationActive
            | RvError::OperationNotInitialized => Self::Lost(unreachable),
            RvError::EncryptedDataInvalid
            | RvError::EncryptedDataLenRange
            | RvError::WrappedKeyInvalid
            | RvError::WrappedKeyLenRange => Self::Final(Fault::new(Reason::Foreign, text)),
            RvError::MechanismInvalid
            | RvError::MechanismParamInvalid
            | RvError::KeyFunctionNotPermitted
            | RvError::KeyTypeInconsistent
            | RvError::KeySizeRange
            | RvError::KeyNotWrappable
            | RvError::KeyUnextractable
            | RvError::WrappingKeyTypeInconsistent
            | RvError::WrappingKeySizeRange
            | RvError::UnwrappingKeyTypeInconsistent
            | RvError::UnwrappingKeySizeRange
            | RvError::TemplateInconsistent
            | RvError::TemplateIncomplete
            | RvError::AttributeSensitive
            | RvError::ActionProhibited
            | RvError::FunctionNotSupported => Self::Final(Fault::new(Reason::Denied, text)),
            _ => Self::Vague(unreachable),
        }
    }
}

/// As the standard writes it: `C_WrapKey gave CKR_KEY_FUNCTION_NOT_PERMITTED`.
fn said(error: &Error) -> String {
    let Error::Pkcs11(rv, function) = error else { return error.to_string() };
    let mut name = String::new();
    for c in format!("{rv:?}").chars() {
        if c.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    format!("C_{function:?} gave CKR{name}")
}

impl Device {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), module: Mutex::new(None), targets: RwLock::default() }
    }

    /// The module, loaded and initialised once.
    fn module(&self) -> Result<Pkcs11, Trouble> {
        let mut loaded = self.module.lock();
        if let Some(module) = &*loaded {
            return Ok(module.clone());
        }
        let at = self.path.display();
        let fail = |text: String| Trouble::Final(Fault::new(Reason::Unreachable, text));
        let module = match Pkcs11::new(&self.path) {
            Ok(module) => module,
            Err(Error::LibraryLoading(e)) => {
                return Err(fail(format!("{at}: the module does not load: {e}")));
            }
            Err(Error::MissingSymbol(name)) => {
                return Err(fail(format!("{at}: it is a library and no PKCS#11 module: it has no {name}")));
            }
            Err(e) => return Err(fail(format!("{at}: {}", said(&e)))),
        };
        match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(e) => {
                let ours = self.path.file_name().is_some_and(|name| name == "libenvelopefs.so");
                let hint = if ours { " (it needs ENVELOPEFS_HSM, or --embedded-hsm)" } else { "" };
                return Err(fail(format!("{at}: the module does not start: {}{hint}", said(&e))));
            }
        }
        *loaded = Some(module.clone());
        Ok(module)
    }

    /// The slot of the token that a place names.
    fn find_slot(&self, place: &Place) -> Result<Slot, Trouble> {
        let module = self.module()?;
        let mut there = Vec::new();
        let mut found = Vec::new();
        for slot in module.get_slots_with_token()? {
            let Ok(info) = module.get_token_info(slot) else { continue };
            if !info.token_initialized() {
                continue;
            }
            let fits = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|w| w == is.trim_end());
            if fits(&place.token, info.label())
                && fits(&place.manufacturer, info.manufacturer_id())
                && fits(&place.model, info.model())
                && fits(&place.serial, info.serial_number())
                && place.slot_id.is_none_or(|id| id == slot.id())
            {
                found.push(slot);
            }
            there.push(format!("{:?}", info.label().trim_end()));
        }
        match found[..] {
            [slot] => Ok(slot),
            [] => {
                let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
                let what = place.token.as_ref().map_or("no token fits".into(), |t| format!("no token {t:?}"));
                let text = format!("{}: {what}; initialised tokens there: {there}", self.path.display());
                Err(Trouble::Lost(Fault::new(Reason::Unreachable, text)))
            }
            _ => Err(Trouble::denied(format!(
                "{}: {} tokens fit; tell them apart with serial=…",
                self.path.display(),
                found.len()
            ))),
        }
    }

    /// A session with the target's token, logged in.
    fn session(&self, target: &Target) -> Result<Session, Trouble> {
        // Held over the login, so that a wrong PIN costs one try and not one for each worker.
        let mut shared = target.shared.lock();
        if let Some(fault) = &shared.refused {
            return Err(Trouble::Final(fault.clone()));
        }
        let module = self.module()?;
        let slot = match shared.slot {
            Some(slot) => slot,
            None => self.find_slot(&target.place)?,
        };
        let session = match module.open_ro_session(slot) {
            // Some tokens have sessions that may write, only.
            Err(Error::Pkcs11(RvError::SessionReadOnly | RvError::SessionReadWriteSoExists, _)) => {
                module.open_rw_session(slot)?
            }
            other => other?,
        };
        let state = session.get_session_info()?.session_state();
        if !matches!(state, SessionState::RoUser | SessionState::RwUser) {
            let info = module.get_token_info(slot)?;
            match login(&session, target.pin.as_ref(), info.login_required(), info.label().trim_end()) {
                Err(Trouble::Final(fault)) => {
                    if fault.reason == Reason::Pin {
                        shared.refused = Some(fault.clone());
                    }
                    return Err(Trouble::Final(fault));
                }
                other => other?,
            }
        }
        shared.slot = Some(slot);
        Ok(session)
    }
}

fn login(
    session: &Session,
    pin: Option<&Zeroizing<String>>,
    needed: bool,
    token: &str,
) -> Result<(), Trouble> {
    let Some(pin) = pin else {
        return if needed {
            Err(Trouble::denied(format!(
                "token {token:?} needs a PIN: give pin-source=file:/path in the URI, or ENVELOPEFS_PIN"
            )))
        } else {
            Ok(())
        };
    };
    let refused =
        |what: &str| Err(Trouble::Final(Fault::new(Reason::Pin, format!("token {token:?}: {what}"))));
    match session.login(UserType::User, Some(&AuthPin::from(pin.as_str()))) {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
        Err(Error::Pkcs11(rv, _)) => match rv {
            RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange => refused(
                "the PIN is wrong (CKR_PIN_INCORRECT); it is not tried again, since tokens lock after a few tries",
            ),
            RvError::PinLocked => {
                refused("the PIN is locked (CKR_PIN_LOCKED): an administrator of the token unlocks it")
            }
            RvError::PinExpired => refused("the PIN has expired (CKR_PIN_EXPIRED): change it"),
            RvError::UserPinNotInitialized => {
                refused("it has no user PIN yet (CKR_USER_PIN_NOT_INITIALIZED)")
            }
            other => Err(Error::Pkcs11(other, Function::Login).into()),
        },
        Err(e) => Err(e.into()),
    }
}

impl Worker {
    pub(super) fn new(device: Arc<Device>) -> Self {
        Self { device, open: HashMap::new() }
    }

    /// Does what is asked.
    pub(super) fn answer(&mut self, request: &Request) -> Answer {
        let until = Instant::now() + LONG_WRAP;
        let id = match request {
            Request::Open { target, place, pin } => {
                let new = Target { place: place.clone(), pin: pin.clone(), shared: Mutex::default() };
                let mut targets = self.device.targets.write();
                if targets.len() >= MAX_TARGETS && !targets.contains_key(target) {
                    return Answer::Failed(Fault::new(Reason::Denied, "too many keys of one module"));
                }
                // Two callers may have seen at once that it is missing; the first one's logins are kept.
                targets.entry(*target).or_insert_with(|| Arc::new(new));
                return Answer::Opened;
            }
            Request::Describe { target, .. }
            | Request::Wrap { target, .. }
            | Request::Unwrap { target, .. } => *target,
        };
        let Some(target) = self.device.targets.read().get(&id).cloned() else { return Answer::NotOpen };
        let had = self.open.contains_key(&id);
        let mut trouble = match self.attempt(id, &target, request, until) {
            Ok(answer) => return answer,
            Err(trouble) => trouble,
        };
        // Whatever the session holds now: nobody goes on with it.
        self.open.remove(&id);
        if matches!(trouble, Trouble::Lost(_)) || (had && matches!(trouble, Trouble::Vague(_))) {
            target.shared.lock().slot = None;
            match self.attempt(id, &target, request, until) {
                Ok(answer) => return answer,
                Err(second) => trouble = second,
            }
            self.open.remove(&id);
        }
        if let (Trouble::Vague(_), Request::Unwrap { mechanism, .. }) = (&trouble, request)
            && self.works(&target, *mechanism)
        {
            // Some tokens have one error for all that can go wrong. The key works now; where the blob still does not
            // open, it is the blob.
            trouble = match self.attempt(id, &target, request, until) {
                Ok(answer) => return answer,
                Err(Trouble::Vague(fault)) => Trouble::Final(Fault { reason: Reason::Foreign, ..fault }),
                Err(other) => other,
            };
            self.open.remove(&id);
        }
        Answer::Failed(trouble.fault())
    }

    fn attempt(
        &mut self,
        id: u32,
        target: &Target,
        request: &Request,
        until: Instant,
    ) -> Result<Answer, Trouble> {
        let open = match self.open.entry(id) {
            std::collections::hash_map::Entry::Occupied(open) => open.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                let session = self.device.session(target)?;
                place.insert(Open { session, key: None })
            }
        };
        match request {
            Request::Open { .. } => Ok(Answer::Opened),
            Request::Describe { mechanism, .. } => {
                let key = open.key(&target.place)?;
                let kind = match mechanism.map(Kind::by_code) {
                    Some(kind) => kind.ok_or_else(|| Trouble::denied("no such mechanism"))?,
                    None => operation::probe(&open.session, &key)?,
                };
                if kind.is_rsa() != key.is_rsa {
                    return Err(Trouble::denied(format!(
                        "mechanism {} does not fit the key's type",
                        kind.name()
                    )));
                }
                Ok(Answer::Described { id: key.id, mechanism: kind.code() })
            }
            Request::Wrap { mechanism: code, items, .. } => {
                let kind = Kind::by_code(*code).ok_or_else(|| Trouble::denied("no such mechanism"))?;
                let key = open.key(&target.place)?;
                let wrap = |(plain, context): &(crate::crypto::Secret<32>, Vec<u8>)| {
                    let text = operation::wrap(&open.session, &key, kind, plain, context)?;
                    Ok(mechanism::encode(kind, &text))
                };
                some(items.iter().map(wrap), until).map(Answer::Wrapped)
            }
            Request::Unwrap { mechanism: code, blob, context, .. } => {
                let foreign = || Trouble::Final(Fault::new(Reason::Foreign, "it is no blob of this key"));
                let kind = Kind::by_code(*code).ok_or_else(foreign)?;
                let text = mechanism::decode(kind, blob).ok_or_else(foreign)?;
                let key = open.key(&target.place)?;
                operation::unwrap(&open.session, key.handle, kind, text, context)?
                    .ok_or_else(foreign)
                    .map(Answer::Unwrapped)
            }
        }
    }

    /// Whether the key opens what it wraps just now.
    fn works(&self, target: &Target, mechanism: u8) -> bool {
        let tried = self.device.session(target).and_then(|session| {
            let mut open = Open { session, key: None };
            let key = open.key(&target.place)?;
            let kind = Kind::by_code(mechanism).ok_or_else(|| Trouble::denied("no such mechanism"))?;
            operation::try_out(&open.session, &key, kind)
        });
        tried.is_ok()
    }
}

/// What comes until a time, but at least one.
fn some<T, E>(items: impl Iterator<Item = Result<T, E>>, until: Instant) -> Result<Vec<T>, E> {
    let mut done = Vec::new();
    for item in items {
        done.push(item?);
        if Instant::now() >= until {
            break;
        }
    }
    Ok(done)
}

impl Open {
    /// The one key that a place names: by its id where that is given, as labels may move.
    fn key(&mut self, place: &Place) -> Result<Key, Trouble> {
        if let Some(key) = &self.key {
            return Ok(key.clone());
        }
        let name = match (&place.id, &place.object) {
            (Some(id), _) => Attribute::Id(id.clone()),
            (None, label) => Attribute::Label(label.clone().unwrap_or_default().into_bytes()),
        };
        let key = self.one(&[name], place)?;
        self.key = Some(key.clone());
        Ok(key)
    }

    fn one(&self, template: &[Attribute], place: &Place) -> Result<Key, Trouble> {
        let mut found = Vec::new();
        let mut others = Vec::new();
        for handle in self.session.find_objects(template)? {
            let wanted = [AttributeType::Class, AttributeType::KeyType, AttributeType::Id];
            let (mut class, mut kind, mut id) = (None, None, Vec::new());
            for attribute in self.session.get_attributes(handle, &wanted)? {
                match attribute {
                    Attribute::Class(c) => class = Some(c),
                    Attribute::KeyType(k) => kind = Some(k),
                    Attribute::Id(i) => id = i,
                    _ => {}
                }
            }
            let is_rsa = match (class, kind) {
                (Some(ObjectClass::SECRET_KEY), Some(KeyType::AES)) => false,
                (Some(ObjectClass::PRIVATE_KEY), Some(KeyType::RSA)) => true,
                (Some(ObjectClass::SECRET_KEY | ObjectClass::PRIVATE_KEY), Some(kind)) => {
                    others.push(kind.to_string());
                    continue;
                }
                _ => continue,
            };
            let wanted = if is_rsa { "private" } else { "secret-key" };
            if place.kind.as_ref().is_none_or(|kind| kind == wanted) {
                found.push(Key { handle, id, is_rsa });
            }
        }
        let named = place.key_in_words();
        match found.len() {
            1 => found.pop().ok_or_else(|| Trouble::denied("no key")),
            0 if !others.is_empty() => Err(Trouble::denied(format!(
                "the key {named} is {}; AES and RSA keys wrap",
                others.join(", ")
            ))),
            0 => Err(Trouble::Final(Fault::new(
                Reason::NotFound,
                format!("the token has no AES or RSA key {named} that this user sees"),
            ))),
            n => {
                let ids: Vec<_> = found.iter().map(|key| hex::encode(&key.id)).collect();
                let text =
                    format!("the token has {n} keys {named} (ids {}); name one with id=", ids.join(", "));
                Err(Trouble::denied(text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A slow token is not asked for all of a batch, but for one at least.
    #[test]
    fn a_late_batch_is_cut_short() {
        let all = || (0..5).map(Ok::<_, ()>);
        let now = Instant::now();
        assert_eq!(some(all(), now), Ok(vec![0]));
        assert_eq!(some(all(), now + Duration::from_secs(600)), Ok(vec![0, 1, 2, 3, 4]));
        assert_eq!(some([Ok(1), Err("no")].into_iter(), now + Duration::from_secs(600)), Err("no"));
    }

    /// Errors read as in the standard.
    #[test]
    fn errors_have_their_names() {
        let text = said(&Error::Pkcs11(RvError::KeyFunctionNotPermitted, Function::WrapKey));
        assert_eq!(text, "C_WrapKey gave CKR_KEY_FUNCTION_NOT_PERMITTED");
    }
}
