//! Slots, token, sessions, objects: what is asked and passed on.

use std::sync::Arc;

use cryptoki_sys::*;
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::super::Ck;
use super::super::keyops::Shown;
use super::super::mechs::{self, Row, TABLE};
use super::super::wire::{Bytes, Request, Template, TokenFacts};
use super::memory::blank_padded;
use super::state::{SLOT, Session, module};

const MANUFACTURER: &str = "EnvelopeFS";

fn version() -> CK_VERSION {
    let part = |text: &str| text.parse().unwrap_or(0);
    CK_VERSION { major: part(env!("CARGO_PKG_VERSION_MAJOR")), minor: part(env!("CARGO_PKG_VERSION_MINOR")) }
}

pub(super) fn info() -> Ck<CK_INFO> {
    module()?;
    Ok(CK_INFO {
        cryptokiVersion: CK_VERSION { major: 2, minor: 40 },
        manufacturerID: blank_padded(MANUFACTURER),
        flags: 0,
        libraryDescription: blank_padded("EnvelopeFS HSM client"),
        libraryVersion: version(),
    })
}

fn check_slot(slot: u64) -> Ck<()> {
    if slot == SLOT { Ok(()) } else { Err(CKR_SLOT_ID_INVALID) }
}

fn facts() -> Ck<TokenFacts> {
    module()?.call(Request::TokenInfo {})
}

/// The slots; without an appliance that answers, the slot is empty.
pub(super) fn slots(present: bool) -> Ck<Vec<u64>> {
    module()?;
    Ok(if present && facts().is_err() { Vec::new() } else { vec![SLOT] })
}

pub(super) fn slot_info(slot: u64) -> Ck<CK_SLOT_INFO> {
    module()?;
    check_slot(slot)?;
    Ok(CK_SLOT_INFO {
        slotDescription: blank_padded("EnvelopeFS HSM"),
        manufacturerID: blank_padded(MANUFACTURER),
        flags: if facts().is_ok() { CKF_TOKEN_PRESENT } else { 0 },
        hardwareVersion: version(),
        firmwareVersion: version(),
    })
}

pub(super) fn token_info(slot: u64) -> Ck<CK_TOKEN_INFO> {
    module()?;
    check_slot(slot)?;
    let facts = facts()?;
    let flag = |on: bool, flag: CK_FLAGS| if on { flag } else { 0 };
    let sessions = module()?.sessions.read().len() as CK_ULONG;
    Ok(CK_TOKEN_INFO {
        label: blank_padded(&facts.label),
        manufacturerID: blank_padded(MANUFACTURER),
        model: blank_padded("HSM"),
        serialNumber: blank_padded(&facts.serial),
        flags: CKF_RNG
            | CKF_LOGIN_REQUIRED
            | flag(facts.initialized, CKF_TOKEN_INITIALIZED)
            | flag(facts.user_pin, CKF_USER_PIN_INITIALIZED)
            | flag(facts.user_locked, CKF_USER_PIN_LOCKED)
            | flag(facts.so_locked, CKF_SO_PIN_LOCKED),
        ulMaxSessionCount: 1024,
        ulSessionCount: sessions,
        ulMaxRwSessionCount: 1024,
        ulRwSessionCount: sessions,
        ulMaxPinLen: CK_ULONG::from(facts.max_pin),
        ulMinPinLen: CK_ULONG::from(facts.min_pin),
        ulTotalPublicMemory: CK_UNAVAILABLE_INFORMATION,
        ulFreePublicMemory: CK_UNAVAILABLE_INFORMATION,
        ulTotalPrivateMemory: CK_UNAVAILABLE_INFORMATION,
        ulFreePrivateMemory: CK_UNAVAILABLE_INFORMATION,
        hardwareVersion: version(),
        firmwareVersion: version(),
        utcTime: *b"                ",
    })
}

pub(super) fn mechanisms(slot: u64) -> Ck<Vec<u64>> {
    check_slot(slot)?;
    let legacy = facts()?.legacy;
    Ok(TABLE.iter().filter(|row| legacy || !row.legacy).map(|row| row.kind).collect())
}

pub(super) fn mechanism_info(slot: u64, kind: u64) -> Ck<CK_MECHANISM_INFO> {
    check_slot(slot)?;
    let legacy = facts()?.legacy;
    let Row { min, max, flags, .. } = mechs::find(kind, legacy).ok_or(CKR_MECHANISM_INVALID)?;
    let min = if legacy && *min == 2048 { 1024 } else { *min };
    Ok(CK_MECHANISM_INFO { ulMinKeySize: min, ulMaxKeySize: *max, flags: *flags })
}

/// The text of a label field, without the blanks behind it.
pub(super) fn init_token(slot: u64, pin: &[u8], label: &[u8]) -> Ck<()> {
    let module = module()?;
    check_slot(slot)?;
    let label = std::str::from_utf8(label).map_err(|_| CKR_ARGUMENTS_BAD)?.trim_end().to_owned();
    module.call(Request::InitToken { pin: secret(pin), label })
}

fn secret(pin: &[u8]) -> Bytes {
    Zeroizing::new(pin.to_vec())
}

pub(super) fn open_session(slot: u64, flags: u64) -> Ck<u64> {
    let module = module()?;
    check_slot(slot)?;
    if flags & CKF_SERIAL_SESSION == 0 {
        return Err(CKR_SESSION_PARALLEL_NOT_SUPPORTED);
    }
    let s = module.fleet.open(flags & CKF_RW_SESSION != 0)?;
    let session = Session { found: None, ops: Default::default(), allowed: Vec::new() };
    module.sessions.write().insert(s, Arc::new(Mutex::new(session)));
    Ok(s)
}

pub(super) fn close_session(s: u64) -> Ck<()> {
    let module = module()?;
    let known = module.sessions.write().remove(&s).is_some();
    let closed = module.call(Request::CloseSession { s });
    module.fleet.closed(s);
    match closed {
        // The appliance was started anew, or is gone: the session is, too.
        Err(CKR_SESSION_HANDLE_INVALID | CKR_DEVICE_REMOVED) if known => Ok(()),
        other => other,
    }
}

pub(super) fn close_all(slot: u64) -> Ck<()> {
    let module = module()?;
    check_slot(slot)?;
    module.sessions.write().clear();
    module.fleet.all_closed();
    module.call(Request::CloseAll {})
}

pub(super) fn session_info(s: u64) -> Ck<CK_SESSION_INFO> {
    let module = module()?;
    module.session(s)?;
    let (state, flags): (u64, u64) = module.call(Request::SessionInfo { s })?;
    Ok(CK_SESSION_INFO { slotID: SLOT, state, flags, ulDeviceError: 0 })
}

pub(super) fn login(s: u64, kind: u64, pin: &[u8]) -> Ck<()> {
    let module = module()?;
    let session = module.session(s)?;
    if kind == CKU_CONTEXT_SPECIFIC {
        use super::state::Running;
        let active = session.lock().ops.iter().any(|op| !matches!(op, Running::None));
        if !active {
            return Err(CKR_OPERATION_NOT_INITIALIZED);
        }
    }
    module.call::<()>(Request::Login { s, kind, pin: secret(pin) })?;
    if kind != CKU_CONTEXT_SPECIFIC {
        module.fleet.logged_in(s, kind, pin);
    }
    Ok(())
}

pub(super) fn logout(s: u64) -> Ck<()> {
    let module = module()?;
    module.session(s)?;
    module.call::<()>(Request::Logout { s })?;
    module.fleet.logged_out();
    for session in module.sessions.read().values() {
        let mut session = session.lock();
        session.ops = Default::default();
        session.allowed.clear();
        session.found = None;
    }
    Ok(())
}

pub(super) fn init_pin(s: u64, pin: &[u8]) -> Ck<()> {
    let module = module()?;
    module.session(s)?;
    module.call(Request::InitPin { s, pin: secret(pin) })
}

pub(super) fn set_pin(s: u64, old: &[u8], new: &[u8]) -> Ck<()> {
    let module = module()?;
    module.session(s)?;
    module.call::<()>(Request::SetPin { s, old: secret(old), new: secret(new) })?;
    module.fleet.pin_changed(new);
    Ok(())
}

pub(super) fn attributes(s: u64, object: u64, types: Vec<u64>) -> Ck<(u64, Vec<Shown>)> {
    let module = module()?;
    module.session(s)?;
    let (worst, shown): (u64, Vec<Shown>) =
        module.call(Request::GetAttrs { s, object, types: types.clone() })?;
    // The answer goes into the caller's buffers one by one: each must be for the attribute that was asked for.
    if shown.len() != types.len() || shown.iter().zip(&types).any(|((name, _), asked)| name != asked) {
        return Err(CKR_DEVICE_ERROR);
    }
    Ok((worst, shown))
}

pub(super) fn find_init(s: u64, attrs: Template) -> Ck<()> {
    let module = module()?;
    let session = module.session(s)?;
    let mut session = session.lock();
    if session.found.is_some() {
        return Err(CKR_OPERATION_ACTIVE);
    }
    let found: Vec<u64> = module.call(Request::Find { s, attrs })?;
    session.found = Some(found.into_iter());
    Ok(())
}

pub(super) fn find(s: u64, most: u64) -> Ck<Vec<u64>> {
    let session = module()?.session(s)?;
    let mut session = session.lock();
    let found = session.found.as_mut().ok_or(CKR_OPERATION_NOT_INITIALIZED)?;
    Ok(found.take(usize::try_from(most).unwrap_or(usize::MAX)).collect())
}

pub(super) fn find_final(s: u64) -> Ck<()> {
    let session = module()?.session(s)?;
    let mut session = session.lock();
    session.found.take().map(|_| ()).ok_or(CKR_OPERATION_NOT_INITIALIZED)
}

/// A request that only needs a session that is known.
pub(super) fn pass<T: super::super::wire::Wire>(s: u64, request: Request) -> Ck<T> {
    let module = module()?;
    module.session(s)?;
    module.call(request)
}

/// A request that makes one object; of a session object it is remembered where it is.
pub(super) fn make(s: u64, local: bool, request: Request) -> Ck<u64> {
    let handle: u64 = pass(s, request)?;
    if local {
        module()?.fleet.made(&[handle]);
    }
    Ok(handle)
}
