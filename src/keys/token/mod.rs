//! Keys of a PKCS#11 token: an HSM, a smart card, a software token.
//!
//! The module is a stranger's code and may crash or hang, so it is loaded in a helper process (`helper`), which a small
//! process outside the daemon's sandbox starts, and starts anew (`keeper`). The daemon speaks to it over a socket
//! (`channel`, `wire`). A request that a helper died with is made again; after that the token counts as out of reach.

mod channel;
mod device;
mod helper;
mod keeper;
mod mechanism;
mod operation;
mod root;
mod trust;
mod uri;
mod wire;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;
use zeroize::Zeroizing;

use self::channel::{Channel, DEADLINE, Lost};
use self::mechanism::Kind;
use self::wire::{Answer, Fault, MAX_ITEMS, Place, Reason, Request};
use super::breaker::Breaker;
use super::{KeyError, KeyInfo, Provider, Unlock, WrapContext};
use crate::crypto::{DataKey, Secret};
use crate::format::header::Wrapped;
use crate::kms::canonical;

pub use helper::helper;
pub use keeper::{HELPER, KEEPER, keeper, program};
pub use root::RootKeys;
pub(super) use uri::SCHEME;
pub use uri::{MODULE_ENV, TokenUri, check_pin, needs_pin, uri_of};

/// Holds the PIN where the URI names no file for it.
pub const PIN_ENV: &str = "ENVELOPEFS_PIN";

/// Helpers that one request may cost: the one that it found dead, and the one that died with it.
const ATTEMPTS: usize = 3;

/// Helpers by module, shared by all keys of a vault.
#[derive(Default)]
pub(super) struct Tokens {
    open: Mutex<BTreeMap<PathBuf, Helper>>,
    next: AtomicU32,
}

/// A module's helper, and which of its tokens are being left alone.
struct Helper {
    channel: Arc<Channel>,
    breakers: Breakers,
}

/// Breakers by token: one that is away says nothing of the module's others.
#[derive(Default)]
struct Breakers(Vec<(Place, Arc<Breaker>)>);

impl Breakers {
    fn of(&mut self, place: &Place) -> Arc<Breaker> {
        let token = place.token();
        if let Some((_, breaker)) = self.0.iter().find(|(known, _)| *known == token) {
            return breaker.clone();
        }
        let breaker = Arc::<Breaker>::default();
        self.0.push((token, breaker.clone()));
        breaker
    }
}

/// Wraps under one key of a token.
pub(super) struct Token {
    channel: Arc<Channel>,
    breaker: Arc<Breaker>,
    uri: TokenUri,
    /// Names the key to the helper.
    target: u32,
    pin: Option<Zeroizing<String>>,
    kind: OnceLock<Kind>,
    /// What the token said to the PIN: it is not asked again.
    refused: Mutex<Option<String>>,
}

impl Tokens {
    /// The provider for a key. Starts the module's helper; asks the token nothing.
    pub(super) fn provider(&self, uri: TokenUri, unlock: &Unlock, vault: &Path) -> Result<Token, KeyError> {
        let pin = uri::pin(&uri, unlock.pin.as_ref())?;
        let module = trust::trusted(&uri.module(), vault).map_err(|why| {
            KeyError::Unreachable(format!("{uri}: module {}: {why}", uri.module().display()))
        })?;
        // Held while the helper is started, which asks no token anything.
        let mut helpers = self.open.lock();
        let helper = match helpers.entry(module) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(place) => {
                let channel = Channel::start(place.key(), unlock.hsm.as_deref()).map_err(|e| {
                    KeyError::Unreachable(format!(
                        "{uri}: the helper process is not started: {e} (a mount in its sandbox starts none: mount again)"
                    ))
                })?;
                place.insert(Helper { channel: Arc::new(channel), breakers: Breakers::default() })
            }
        };
        let (channel, breaker) = (helper.channel.clone(), helper.breakers.of(&uri.place));
        drop(helpers);
        let target = self.next.fetch_add(1, Relaxed);
        let kind = uri.mechanism.map_or_else(OnceLock::new, OnceLock::from);
        Ok(Token { channel, breaker, target, pin, kind, refused: Mutex::default(), uri })
    }
}

impl Token {
    /// One request, unless the token is being left alone.
    fn ask(&self, request: &Request) -> Result<Answer, KeyError> {
        if let Some(why) = &*self.refused.lock() {
            return Err(KeyError::Denied(why.clone()));
        }
        let pass = self.breaker.enter()?;
        let outcome = self.tries(request);
        pass.done(&outcome);
        outcome
    }

    /// By as many helpers as it takes, within one deadline.
    fn tries(&self, request: &Request) -> Result<Answer, KeyError> {
        let until = Instant::now() + DEADLINE;
        let mut died = String::new();
        for _ in 0..ATTEMPTS {
            let answer = match self.channel.ask(request, until) {
                // A new helper knows no key yet.
                Ok(Answer::NotOpen) => {
                    let place = self.uri.place.clone();
                    let open = Request::Open { target: self.target, place, pin: self.pin.clone() };
                    self.channel.ask(&open, until).and_then(|_| self.channel.ask(request, until))
                }
                other => other,
            };
            match answer {
                Ok(Answer::Failed(fault)) => return Err(self.error(fault)),
                Ok(Answer::NotOpen) => died = "it is started again and again".into(),
                Ok(answer) => return Ok(answer),
                Err(Lost::Died(why)) => died = why,
                Err(Lost::Late) => return Err(self.unreachable("the token did not answer in time")),
                Err(Lost::Gone) => {
                    return Err(self.unreachable("the process that starts its helper is gone: mount again"));
                }
                Err(Lost::TooLong) => return Err(KeyError::Foreign),
            }
        }
        Err(self.unreachable(&format!("the PKCS#11 module crashed: {died}")))
    }

    fn unreachable(&self, why: &str) -> KeyError {
        KeyError::Unreachable(format!("{}: {why}", self.uri))
    }

    fn error(&self, fault: Fault) -> KeyError {
        let text = format!("{}: {}", self.uri, fault.text);
        match fault.reason {
            Reason::NotFound => KeyError::NotFound(text),
            Reason::Denied => KeyError::Denied(text),
            Reason::Pin => {
                *self.refused.lock() = Some(text.clone());
                KeyError::Denied(text)
            }
            Reason::Unreachable => KeyError::Unreachable(text),
            Reason::Foreign => KeyError::Foreign,
        }
    }

    /// An answer of another kind than the request's is a helper that lies.
    fn odd(&self) -> KeyError {
        self.unreachable("the helper's answer does not fit the question")
    }

    /// Identity of the key, and how it wraps.
    fn look(&self) -> Result<(Vec<u8>, Kind), KeyError> {
        let known = self.kind.get().map(|kind| kind.code());
        match self.ask(&Request::Describe { target: self.target, mechanism: known })? {
            Answer::Described { id, mechanism } => {
                let kind = Kind::by_code(mechanism).ok_or_else(|| self.odd())?;
                Ok((id, *self.kind.get_or_init(|| kind)))
            }
            _ => Err(self.odd()),
        }
    }

    fn kind(&self) -> Result<Kind, KeyError> {
        match self.kind.get() {
            Some(kind) => Ok(*kind),
            None => self.look().map(|(_, kind)| kind),
        }
    }

    /// Wraps at most [`MAX_ITEMS`] keys, in order; a slow token fewer, but one at least.
    fn wrap_some(&self, items: Vec<(Secret<32>, Vec<u8>)>) -> Result<Vec<Wrapped>, KeyError> {
        let kind = self.kind()?;
        let count = items.len();
        let request = Request::Wrap { target: self.target, mechanism: kind.code(), items };
        match self.ask(&request)? {
            Answer::Wrapped(blobs)
                if (1..=count).contains(&blobs.len())
                    && blobs.iter().all(|blob| mechanism::decode(kind, blob).is_some()) =>
            {
                Ok(blobs.into_iter().map(Wrapped::Blob).collect())
            }
            _ => Err(self.odd()),
        }
    }
}

impl Token {
    fn wrap_one(&self, key: &Secret<32>, context: Vec<u8>) -> Result<Wrapped, KeyError> {
        let wrapped = self.wrap_some(vec![(key.duplicate(), context)])?;
        wrapped.into_iter().next().ok_or_else(|| self.odd())
    }

    fn unwrap_one(&self, blob: Vec<u8>, context: Vec<u8>) -> Result<Secret<32>, KeyError> {
        let kind = self.kind()?;
        // What no token made is not shown to any.
        if mechanism::decode(kind, &blob).is_none() {
            return Err(KeyError::Foreign);
        }
        let request = Request::Unwrap { target: self.target, mechanism: kind.code(), blob, context };
        match self.ask(&request)? {
            Answer::Unwrapped(key) => Ok(key),
            _ => Err(self.odd()),
        }
    }
}

/// The associated data of a context.
fn bytes(context: &WrapContext) -> Vec<u8> {
    canonical(&context.encryption_context()).expect("a context of ours is short and has no empty key")
}

impl Provider for Token {
    fn describe(&self) -> Result<KeyInfo, KeyError> {
        let (id, kind) = self.look()?;
        let key_id = if id.is_empty() { self.uri.place.key_in_words() } else { hex::encode(&id) };
        // A label may move to another key, which opens nothing that this one wrapped.
        let id = Some(id).filter(|id| !id.is_empty());
        let uri = TokenUri {
            mechanism: Some(kind),
            place: Place { id, ..self.uri.place.clone() },
            ..self.uri.clone()
        };
        Ok(KeyInfo { uri: uri.to_string(), key_id, version: None })
    }

    fn generate(&self, contexts: &[WrapContext]) -> Result<Vec<(DataKey, Wrapped)>, KeyError> {
        let mut made = Vec::with_capacity(contexts.len());
        for some in contexts.chunks(MAX_ITEMS) {
            let keys: Vec<Secret<32>> = some.iter().map(|_| Secret::random()).collect();
            let items = keys.iter().zip(some).map(|(key, context)| (key.duplicate(), bytes(context)));
            match self.wrap_some(items.collect()) {
                Ok(wrapped) => {
                    let short = wrapped.len() < some.len();
                    made.extend(keys.into_iter().map(DataKey).zip(wrapped));
                    if short {
                        break;
                    }
                }
                Err(error) if made.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(made)
    }

    fn wrap(&self, key: &Secret<32>, context: &WrapContext) -> Result<Wrapped, KeyError> {
        self.wrap_one(key, bytes(context))
    }

    fn wrap_each(&self, keys: &[(&Secret<32>, WrapContext)]) -> Result<Vec<Wrapped>, KeyError> {
        let mut all = Vec::with_capacity(keys.len());
        // Each round wraps one key at least.
        while let Some(rest) = keys.get(all.len()..).filter(|rest| !rest.is_empty()) {
            let items = rest.iter().take(MAX_ITEMS);
            let items = items.map(|(key, context)| (key.duplicate(), bytes(context)));
            all.extend(self.wrap_some(items.collect())?);
        }
        Ok(all)
    }

    fn unwrap(&self, wrapped: &Wrapped, context: &WrapContext) -> Result<Secret<32>, KeyError> {
        let Wrapped::Blob(blob) = wrapped else { return Err(KeyError::Foreign) };
        self.unwrap_one(blob.clone(), bytes(context))
    }

    fn is_far(&self) -> bool {
        true
    }

    fn is_forgeable(&self) -> bool {
        self.kind.get().is_some_and(|kind| kind.is_rsa())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(token: &str, object: &str) -> Place {
        Place { token: Some(token.into()), object: Some(object.into()), ..Place::default() }
    }

    /// Keys of one token are left alone together, those of another token of the same module are not.
    #[test]
    fn each_token_has_a_breaker() {
        let mut breakers = Breakers::default();
        let a = breakers.of(&place("a", "key"));
        assert!(Arc::ptr_eq(&a, &breakers.of(&place("a", "other key"))));
        for _ in 0..2 {
            a.enter().unwrap().done::<()>(&Err(KeyError::Unreachable("away".into())));
        }
        assert!(a.enter().is_err());
        breakers.of(&place("b", "key")).enter().expect("the other token is asked");
    }
}
