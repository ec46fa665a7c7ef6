//! The members of a cluster, of which the application works with one; with another where that one falls silent.
//!
//! Sessions and the login are made anew there, with the PIN, which is kept in locked memory for as long as the login
//! lasts. What was on the lost member alone is lost: session objects, and operations between their beginning and their
//! end; who asks for them is told CKR_DEVICE_REMOVED. A request that was on its way is repeated only where doing it twice
//! does what doing it once does.

use std::collections::{HashMap, HashSet};

use cryptoki_sys::*;
use parking_lot::{Mutex, RwLock};
use zeroize::Zeroizing;

use super::super::Ck;
use super::super::client::{Link, Lost, parse};
use super::super::wire::{Bytes, Request, Template, Wire};
use crate::crypto::{Secret, random};

/// Session objects whose member is remembered; of more than that a loss is told as an invalid handle.
const MAX_LOCAL: usize = 65_536;
/// Longest PIN that is kept: name, colon and password.
const PIN: usize = 192;

/// Which member, since when: `turn` counts the changes, `begun` the applications that this process was there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct At {
    member: usize,
    turn: u64,
    begun: u64,
}

/// A session of the caller's: what it is called where.
struct Place {
    rw: bool,
    real: u64,
    at: At,
}

/// The login, to be made anew.
struct Kept {
    kind: u64,
    pin: Secret<PIN>,
    len: usize,
    at: At,
}

/// Session objects: those that are there, and those that went with a member.
#[derive(Default)]
struct Locals {
    here: HashSet<u64>,
    lost: HashSet<u64>,
}

/// Members and what the application has with them.
pub(super) struct Fleet {
    members: Vec<Link>,
    /// The member, and how often it was another.
    home: RwLock<(usize, u64)>,
    places: RwLock<HashMap<u64, Place>>,
    next: std::sync::atomic::AtomicU64,
    login: Mutex<Option<Kept>>,
    locals: Mutex<Locals>,
    /// Held while sessions move: one thread makes the login, the others wait for it. The turn that was begun.
    moving: Mutex<u64>,
}

/// Why a request was not answered.
enum Trouble {
    /// No answer; whether the request was sent.
    Silent(bool),
    /// The member was started anew, and did nothing.
    Anew,
    /// An answer, or nothing that another member could mend.
    Told(CK_RV),
}

impl From<Lost> for Trouble {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Unreachable(e) => {
                log::warn!("{e}");
                Self::Silent(false)
            }
            Lost::Broken => Self::Silent(true),
        }
    }
}

impl Fleet {
    pub(super) fn new(members: Vec<Link>) -> Self {
        // Applications spread over the members.
        let first = usize::from(random::array::<1>()[0]) % members.len().max(1);
        Self {
            members,
            home: RwLock::new((first, 0)),
            places: RwLock::new(HashMap::new()),
            next: std::sync::atomic::AtomicU64::new(1),
            login: Mutex::new(None),
            locals: Mutex::new(Locals::default()),
            moving: Mutex::new(0),
        }
    }

    /// Leaves the sockets of a forked parent alone.
    pub(super) fn forget(&self) {
        self.members.iter().for_each(Link::forget);
    }

    /// Sends a request; to another member where the one falls silent.
    pub(super) fn call<T: Wire>(&self, mut request: Request) -> Ck<T> {
        let session = session_of(&mut request).copied();
        for _ in 0..=self.members.len() {
            let home = *self.home.read();
            match self.attempt(&mut request, session, home) {
                Ok(answer) => return parse(&answer).map_err(|rv| self.truth(&request, rv)),
                Err(Trouble::Told(rv)) => return Err(rv),
                Err(Trouble::Anew) => self.leave(home, false),
                Err(Trouble::Silent(sent)) => {
                    let again = !sent || self.may_repeat(&request);
                    self.leave(home, true);
                    if !again {
                        return Err(CKR_DEVICE_REMOVED);
                    }
                }
            }
        }
        Err(CKR_DEVICE_REMOVED)
    }

    fn link(&self, home: (usize, u64)) -> Result<(&Link, At), Trouble> {
        let link = self.members.get(home.0).ok_or(Trouble::Told(CKR_DEVICE_ERROR))?;
        Ok((link, At { member: home.0, turn: home.1, begun: link.begun() }))
    }

    fn attempt(
        &self,
        request: &mut Request,
        session: Option<u64>,
        home: (usize, u64),
    ) -> Result<Bytes, Trouble> {
        let (link, before) = self.link(home)?;
        let mut used = before;
        if let Some(session) = session {
            if is_bound(request) && !self.is_where(session, before) {
                return Err(Trouble::Told(CKR_DEVICE_REMOVED));
            }
            let real;
            (real, used) = self.real(session, home)?;
            if let Some(place) = session_of(request) {
                *place = real;
            }
        }
        let answer = link.ask(request)?;
        // The appliance knew no such session, as it was started since: it did nothing.
        let unknown = answer.as_slice() == CKR_SESSION_HANDLE_INVALID.to_le_bytes();
        if session.is_some() && unknown && link.begun() != used.begun {
            return Err(if is_bound(request) { Trouble::Told(CKR_DEVICE_REMOVED) } else { Trouble::Anew });
        }
        Ok(answer)
    }

    fn is_where(&self, session: u64, at: At) -> bool {
        self.places.read().get(&session).is_some_and(|p| p.at == at)
    }

    /// What a session is called at the member that is home now; opens it there where it is not yet.
    fn real(&self, session: u64, home: (usize, u64)) -> Result<(u64, At), Trouble> {
        let (link, at) = self.link(home)?;
        let here = |at: At| -> Result<(bool, Option<u64>), Trouble> {
            let places = self.places.read();
            let place = places.get(&session).ok_or(Trouble::Told(CKR_SESSION_HANDLE_INVALID))?;
            Ok((place.rw, (place.at == at).then_some(place.real)))
        };
        if let (_, Some(real)) = here(at)? {
            return Ok((real, at));
        }
        let mut moving = self.moving.lock();
        Self::arrive(&mut moving, link, home)?;
        let (link, at) = (link, At { begun: link.begun(), ..at });
        let (rw, found) = here(at)?;
        if let Some(real) = found {
            return Ok((real, at));
        }
        let answer = link.ask(&Request::OpenSession { rw })?;
        let real: u64 = parse(&answer).map_err(Trouble::Told)?;
        let at = At { begun: link.begun(), ..at };
        self.log_in_again(link, real, at)?;
        let mut places = self.places.write();
        let place = places.get_mut(&session).ok_or(Trouble::Told(CKR_SESSION_HANDLE_INVALID))?;
        (place.real, place.at) = (real, at);
        Ok((real, at))
    }

    /// Ends what this application left behind at a member that it comes back to: its login was perhaps another user's.
    fn arrive(moving: &mut u64, link: &Link, home: (usize, u64)) -> Result<(), Trouble> {
        match home.1.cmp(moving) {
            std::cmp::Ordering::Equal => {}
            // Others have gone on meanwhile.
            std::cmp::Ordering::Less => return Err(Trouble::Anew),
            std::cmp::Ordering::Greater => {
                link.ask(&Request::CloseAll {})?;
                *moving = home.1;
            }
        }
        Ok(())
    }

    fn log_in_again(&self, link: &Link, s: u64, at: At) -> Result<(), Trouble> {
        let mut login = self.login.lock();
        let Some(kept) = login.as_mut().filter(|kept| kept.at != at) else { return Ok(()) };
        let pin = Zeroizing::new(kept.pin.expose().get(..kept.len).unwrap_or_default().to_vec());
        let answer = link.ask(&Request::Login { s, kind: kept.kind, pin })?;
        match parse::<()>(&answer) {
            Ok(()) | Err(CKR_USER_ALREADY_LOGGED_IN) => kept.at = at,
            Err(rv) => {
                // Asked once: a password that was changed meanwhile must not lock the account.
                log::error!("the login could not be made anew at {} ({rv:#x})", link.address());
                *login = None;
            }
        }
        Ok(())
    }

    /// Goes to the next member, or (`away` false) makes its sessions anew at the same.
    fn leave(&self, from: (usize, u64), away: bool) {
        let mut home = self.home.write();
        if *home != from {
            return;
        }
        let next = if away { (from.0 + 1) % self.members.len().max(1) } else { from.0 };
        *home = (next, from.1 + 1);
        if next != from.0
            && let (Some(old), Some(new)) = (self.members.get(from.0), self.members.get(next))
        {
            log::warn!("{} does not answer; going on with {}", old.address(), new.address());
        }
        let mut locals = self.locals.lock();
        let gone = std::mem::take(&mut locals.here);
        if locals.lost.len() + gone.len() > MAX_LOCAL {
            locals.lost.clear();
        }
        locals.lost.extend(gone);
    }

    /// An answer about a handle that was a session object of a lost member.
    fn truth(&self, request: &Request, rv: CK_RV) -> CK_RV {
        match rv {
            CKR_KEY_HANDLE_INVALID
            | CKR_OBJECT_HANDLE_INVALID
            | CKR_WRAPPING_KEY_HANDLE_INVALID
            | CKR_UNWRAPPING_KEY_HANDLE_INVALID => {
                let locals = self.locals.lock();
                if handles_of(request).iter().any(|h| locals.lost.contains(h)) {
                    CKR_DEVICE_REMOVED
                } else {
                    rv
                }
            }
            other => other,
        }
    }

    /// Whether doing it twice does what doing it once does; what is made on a lost member is lost with it.
    fn may_repeat(&self, request: &Request) -> bool {
        match request {
            Request::Create { attrs, .. }
            | Request::Generate { attrs, .. }
            | Request::Unwrap { attrs, .. }
            | Request::Derive { attrs, .. } => !is_token(attrs),
            Request::GeneratePair { public, private, .. } => !is_token(public) && !is_token(private),
            Request::Copy { object, attrs, .. } => {
                !is_token(attrs) && self.locals.lock().here.contains(object)
            }
            Request::Destroy { object, .. } => self.locals.lock().here.contains(object),
            Request::InitToken { .. }
            | Request::InitPin { .. }
            | Request::SetPin { .. }
            | Request::Admin { .. }
            | Request::With { .. }
            | Request::Update { .. }
            | Request::Finish { .. }
            | Request::DigestKey { .. } => false,
            _ => true,
        }
    }

    /// Opens a session; its number is the module's own.
    pub(super) fn open(&self, rw: bool) -> Ck<u64> {
        for _ in 0..=self.members.len() {
            let home = *self.home.read();
            let (link, at) = self.link(home).map_err(|_| CKR_DEVICE_ERROR)?;
            match self.open_at(link, at, home, rw) {
                Ok(session) => return Ok(session),
                Err(Trouble::Told(rv)) => return Err(rv),
                Err(_) => self.leave(home, true),
            }
        }
        Err(CKR_DEVICE_REMOVED)
    }

    fn open_at(&self, link: &Link, at: At, home: (usize, u64), rw: bool) -> Result<u64, Trouble> {
        let mut moving = self.moving.lock();
        Self::arrive(&mut moving, link, home)?;
        let real: u64 = parse(&link.ask(&Request::OpenSession { rw })?).map_err(Trouble::Told)?;
        let at = At { begun: link.begun(), ..at };
        self.log_in_again(link, real, at)?;
        let session = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.places.write().insert(session, Place { rw, real, at });
        Ok(session)
    }

    /// A session ended; with the last one the login does.
    pub(super) fn closed(&self, session: u64) {
        let mut places = self.places.write();
        places.remove(&session);
        let mut login = self.login.lock();
        if places.is_empty() {
            *login = None;
        } else if let Some(kept) = login.as_mut()
            && !places.values().any(|place| place.at == kept.at)
        {
            // The others have not been there yet: the appliance ended the login with its last session.
            kept.at.turn = u64::MAX;
        }
    }

    pub(super) fn all_closed(&self) {
        self.places.write().clear();
        *self.login.lock() = None;
    }

    /// Keeps a login that was made in a session.
    pub(super) fn logged_in(&self, session: u64, kind: u64, pin: &[u8]) {
        let Some(at) = self.places.read().get(&session).map(|place| place.at) else { return };
        let mut kept = Kept { kind, pin: Secret::zeroed(), len: pin.len(), at };
        if let Some(room) = kept.pin.expose_mut().get_mut(..pin.len()) {
            room.copy_from_slice(pin);
            *self.login.lock() = Some(kept);
        }
    }

    pub(super) fn logged_out(&self) {
        *self.login.lock() = None;
    }

    /// The password of the login is another now. A PIN without a name is that of who is logged in.
    pub(super) fn pin_changed(&self, new: &[u8]) {
        let mut login = self.login.lock();
        let Some(kept) = login.as_mut() else { return };
        let old = kept.pin.expose().get(..kept.len).unwrap_or_default();
        let name = match (old.iter().position(|b| *b == b':'), new.contains(&b':')) {
            (Some(colon), false) => colon + 1,
            (_, true) | (None, false) => 0,
        };
        if name + new.len() > PIN {
            *login = None;
            return;
        }
        let bytes = kept.pin.expose_mut();
        if let Some(rest) = bytes.get_mut(name..) {
            rest.fill(0);
        }
        if let Some(room) = bytes.get_mut(name..name + new.len()) {
            room.copy_from_slice(new);
        }
        kept.len = name + new.len();
    }

    /// Remembers session objects that a request made.
    pub(super) fn made(&self, handles: &[u64]) {
        let mut locals = self.locals.lock();
        if locals.here.len() + handles.len() <= MAX_LOCAL {
            locals.here.extend(handles);
        }
    }

    /// An object was destroyed.
    pub(super) fn destroyed(&self, handle: u64) {
        self.locals.lock().here.remove(&handle);
    }
}

/// Whether a template asks for a token object.
pub(super) fn is_token(attrs: &Template) -> bool {
    attrs.iter().any(|(name, value)| *name == CKA_TOKEN && value.as_slice() != [0])
}

/// Whether it goes on with what another request began in the appliance.
fn is_bound(request: &Request) -> bool {
    matches!(
        request,
        Request::Update { .. } | Request::Finish { .. } | Request::DigestKey { .. } | Request::Cancel { .. }
    )
}

/// The session of a request.
fn session_of(request: &mut Request) -> Option<&mut u64> {
    match request {
        Request::CloseSession { s }
        | Request::SessionInfo { s }
        | Request::Login { s, .. }
        | Request::Logout { s }
        | Request::InitPin { s, .. }
        | Request::SetPin { s, .. }
        | Request::Create { s, .. }
        | Request::Copy { s, .. }
        | Request::Destroy { s, .. }
        | Request::GetAttrs { s, .. }
        | Request::SetAttrs { s, .. }
        | Request::Find { s, .. }
        | Request::Generate { s, .. }
        | Request::GeneratePair { s, .. }
        | Request::Wrap { s, .. }
        | Request::Unwrap { s, .. }
        | Request::Derive { s, .. }
        | Request::Check { s, .. }
        | Request::Once { s, .. }
        | Request::Begin { s, .. }
        | Request::Update { s, .. }
        | Request::Finish { s, .. }
        | Request::DigestKey { s, .. }
        | Request::Cancel { s, .. } => Some(s),
        Request::Hello { .. }
        | Request::TokenInfo {}
        | Request::InitToken { .. }
        | Request::OpenSession { .. }
        | Request::CloseAll {}
        | Request::Random { .. }
        | Request::Admin { .. }
        | Request::Greet { .. }
        | Request::Unit { .. }
        | Request::With { .. } => None,
    }
}

/// The objects that a request names.
fn handles_of(request: &Request) -> Vec<u64> {
    match request {
        Request::Copy { object, .. }
        | Request::Destroy { object, .. }
        | Request::GetAttrs { object, .. }
        | Request::SetAttrs { object, .. } => vec![*object],
        Request::Wrap { by, key, .. } => vec![*by, *key],
        Request::Unwrap { by, .. } => vec![*by],
        Request::Derive { key, .. }
        | Request::Check { key, .. }
        | Request::Once { key, .. }
        | Request::Begin { key, .. }
        | Request::DigestKey { key, .. } => vec![*key],
        _ => Vec::new(),
    }
}
