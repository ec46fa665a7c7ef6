//! Requests of clients: each becomes one answer. Nothing that a client sends makes this panic.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cryptoki_sys::*;
use zeroize::Zeroizing;

use super::Ck;
use super::appliance::{App, Appliance, Session};
use super::engine::{Running, begin, fresh_iv, permitted};
use super::material::Key;
use super::mechs;
use super::metrics;
use super::object::Object;
use super::quorum::{Guard, Terms};
use super::users::Permission;
use super::wire::{Bytes, Mech, Op, Request, answer, decode};
use crate::crypto::random;

/// The most random bytes of one request.
const MAX_RANDOM: u32 = 1 << 20;

impl Appliance {
    /// Answers one request of an application, and counts it.
    pub(super) fn call(&self, app: &Arc<App>, request: Request, out: &mut Vec<u8>) {
        let kind = metrics::kind(&request);
        self.respond(app, request, out);
        self.counts.request(kind, out);
    }

    fn respond(&self, app: &Arc<App>, request: Request, out: &mut Vec<u8>) {
        match request {
            Request::Once { s, op, mech, key, data, aux } => {
                answer(self.once(app, s, op, &mech, key, &data, &aux), out);
            }
            Request::Update { s, op, data } => answer(update(app, s, op, &data), out),
            Request::Finish { s, op, aux } => answer(finish(app, s, op, &aux), out),
            Request::Begin { s, op, mech, key } => answer(self.begin(app, s, op, mech, key), out),
            Request::Check { s, op, mech, key } => answer(self.check(app, s, op, mech, key), out),
            Request::DigestKey { s, key } => answer(self.digest_key(app, s, key), out),
            Request::Cancel { s, op } => answer(cancel(app, s, op), out),
            Request::Find { s, attrs } => answer(self.find(app, s, attrs), out),
            Request::GetAttrs { s, object, types } => answer(self.show(app, s, object, &types), out),
            Request::Random { len } => answer(random_bytes(len), out),
            Request::Admin { json } => answer(self.admin(app, &json), out),
            Request::Greet { nonce } => answer(self.greet(app, &nonce), out),
            Request::Unit { message } => answer(self.unit(app, &message), out),
            Request::Hello { .. } => answer::<()>(Err(CKR_ARGUMENTS_BAD), out),
            Request::TokenInfo {} => answer(Ok(self.facts()), out),
            Request::OpenSession { rw } => answer(self.open_session(app, rw), out),
            Request::CloseSession { s } => answer(self.close_session(app, s), out),
            Request::CloseAll {} => answer(
                {
                    self.close_all(app);
                    Ok(())
                },
                out,
            ),
            Request::SessionInfo { s } => answer(self.session_info(app, s), out),
            Request::InitToken { pin, label } => answer(self.init_token(app, &pin, &label), out),
            Request::Login { s, kind, pin } => answer(self.login(app, s, kind, &pin), out),
            Request::Logout { s } => answer(self.logout(app, s), out),
            Request::InitPin { s, pin } => answer(self.init_pin(app, s, &pin), out),
            Request::SetPin { s, old, new } => answer(self.set_pin(app, s, &old, &new), out),
            Request::With { terms, request } => match decode(&request) {
                Some(
                    inner
                    @ (Request::Generate { .. } | Request::GeneratePair { .. } | Request::Unwrap { .. }),
                ) => {
                    self.call_keys(app, inner, &terms, out);
                }
                _ => answer::<()>(Err(CKR_ARGUMENTS_BAD), out),
            },
            other => self.call_keys(app, other, &Terms::default(), out),
        }
    }

    /// Requests that make, change or end keys: the ones that the audit log names.
    fn call_keys(&self, app: &Arc<App>, request: Request, terms: &Terms, out: &mut Vec<u8>) {
        let named = |handle: &Ck<u64>| handle.map_or(String::new(), |h| format!("{h:#x}"));
        match request {
            Request::Create { s, attrs } => {
                let result = self.create_object(app, s, attrs);
                let result = self.recorded(app, s, "CN_CREATE_OBJECT", &named(&result), result);
                answer(result, out);
            }
            Request::Copy { s, object, attrs } => {
                let result = self.copy(app, s, object, attrs);
                let result = self.recorded(app, s, "CN_COPY_OBJECT", &named(&result), result);
                answer(result, out);
            }
            Request::Destroy { s, object } => {
                let mut result = self.destroy(app, s, object);
                // The end of a session object is no management command: it ends with its session anyway.
                if result != Ok(false) {
                    result = self.recorded(app, s, "CN_DESTROY_OBJECT", &format!("{object:#x}"), result);
                }
                answer(result.map(|_| ()), out);
            }
            Request::SetAttrs { s, object, attrs } => {
                let result = self.change(app, s, object, attrs);
                let result = self.recorded(app, s, "CN_MODIFY_OBJECT", &format!("{object:#x}"), result);
                answer(result, out);
            }
            Request::Generate { s, mech, attrs } => {
                let result = self.generate(app, s, &mech, attrs, terms);
                let result = self.recorded(app, s, "CN_GENERATE_KEY", &named(&result), result);
                answer(result, out);
            }
            Request::GeneratePair { s, mech, public, private } => {
                let result = self.generate_pair(app, s, &mech, public, private, terms);
                let private = named(&result.map(|p| p.1));
                let result = self.recorded(app, s, "CN_GENERATE_KEY_PAIR", &private, result);
                answer(result, out);
            }
            Request::Wrap { s, mut mech, by, key } => {
                let result = self.wrap(app, s, &mut mech, by, key);
                let result = self.recorded(app, s, "CN_WRAP_KEY", &format!("{key:#x}"), result);
                answer(result, out);
            }
            Request::Unwrap { s, mech, by, wrapped, attrs } => {
                let result = self.unwrap(app, s, &mech, by, &wrapped, attrs, terms);
                let result = self.recorded(app, s, "CN_UNWRAP_KEY", &named(&result), result);
                answer(result, out);
            }
            Request::Derive { s, mech, key, attrs } => {
                let result = self.derive(app, s, &mech, key, attrs);
                let result = self.recorded(app, s, "CN_DERIVE_KEY", &format!("{key:#x}"), result);
                answer(result, out);
            }
            _ => answer::<()>(Err(CKR_FUNCTION_NOT_SUPPORTED), out),
        }
    }

    /// The key of an operation, where it may be used so.
    fn ready(&self, app: &App, op: Op, mech: &Mech, key: u64) -> Ck<Option<Arc<Object>>> {
        let flag = match op {
            Op::Encrypt => CKF_ENCRYPT,
            Op::Decrypt => CKF_DECRYPT,
            Op::Sign => CKF_SIGN,
            Op::Verify => CKF_VERIFY,
            Op::Digest => CKF_DIGEST,
        };
        match mechs::find(mech.kind, self.config.legacy) {
            Some(row) if row.flags & flag != 0 => {}
            _ => return Err(CKR_MECHANISM_INVALID),
        }
        if op == Op::Digest {
            Self::need(app, Permission::UseKeys)?;
            return Ok(None);
        }
        let object = self.key_object(app, key)?;
        permitted(op, mech, &object.attrs)?;
        Ok(Some(object))
    }

    /// Whether the appliance makes the IV of this operation.
    pub(super) fn makes_iv(&self, op: Op, mech: &Mech) -> bool {
        self.config.hsm_iv && op == Op::Encrypt && mech.kind == CKM_AES_GCM
    }

    /// A private key with CKA_ALWAYS_AUTHENTICATE is used once for each context-specific login, to whatever end.
    pub(super) fn authenticated(session: &Session, key: &Object) -> Ck<()> {
        if key.attrs.flag(CKA_ALWAYS_AUTHENTICATE) && !session.context.swap(false, Ordering::Relaxed) {
            return Err(CKR_USER_NOT_LOGGED_IN);
        }
        Ok(())
    }

    fn start(&self, app: &App, session: &Session, op: Op, mech: &Mech, key: u64) -> Ck<Option<Arc<Object>>> {
        // With `--hsm-iv` such an operation begins in `check`, which tells the IV.
        if self.makes_iv(op, mech) {
            return Err(CKR_MECHANISM_PARAM_INVALID);
        }
        let object = self.ready(app, op, mech, key)?;
        object.as_ref().map_or(Ok(()), |object| Self::authenticated(session, object))?;
        Ok(object)
    }

    /// Uses a key, where as many of its users approve as it asks for. Such a use is a line in the audit log.
    fn using<T>(
        &self,
        app: &App,
        s: u64,
        object: Option<Arc<Object>>,
        run: impl FnOnce(Option<Arc<Key>>) -> Ck<T>,
    ) -> Ck<T> {
        let key = object.as_ref().map(|o| o.key()).transpose()?;
        let Some(object) = object.filter(|o| Guard::usage(o).is_on()) else { return run(key) };
        self.with_pass(app, |pass| {
            let result = pass.need(&Guard::usage(&object)).map_err(CK_RV::from).and_then(|()| run(key));
            self.recorded(app, s, "CN_USE_KEY", &format!("{:#x}", object.handle), result)
        })
    }

    /// Whether an operation may begin; where the HSM makes the IV it begins at once, and the IV is told.
    fn check(&self, app: &App, s: u64, op: Op, mut mech: Mech, key: u64) -> Ck<Bytes> {
        let session = app.session(s)?;
        let object = self.ready(app, op, &mech, key)?;
        // Its approvals come with the operation itself.
        if object.as_ref().is_some_and(|o| o.quorum.usage > 1) {
            return Err(CKR_FUNCTION_REJECTED);
        }
        let iv = if self.makes_iv(op, &mech) { fresh_iv(&mut mech)? } else { Zeroizing::new(Vec::new()) };
        let key = object.map(|o| o.key()).transpose()?;
        let running = begin(op, &mech, key)?;
        if !iv.is_empty() {
            session.running.lock()[op as usize] = Some(running);
        }
        Ok(iv)
    }

    fn begin(&self, app: &App, s: u64, op: Op, mech: Mech, key: u64) -> Ck<()> {
        let session = app.session(s)?;
        let object = self.start(app, &session, op, &mech, key)?;
        let running = self.using(app, s, object, |key| begin(op, &mech, key))?;
        session.running.lock()[op as usize] = Some(running);
        Ok(())
    }

    /// Initialisation, operation and end at once.
    #[expect(clippy::too_many_arguments, reason = "the fields of one request")]
    fn once(&self, app: &App, s: u64, op: Op, mech: &Mech, key: u64, data: &[u8], aux: &[u8]) -> Ck<Bytes> {
        let session = app.session(s)?;
        let object = self.start(app, &session, op, mech, key)?;
        self.using(app, s, object, |key| {
            let mut running = begin(op, mech, key)?;
            let head = running.update(data)?;
            end(running, op, head, aux)
        })
    }

    fn digest_key(&self, app: &App, s: u64, key: u64) -> Ck<()> {
        let session = app.session(s)?;
        let object = self.key_object(app, key)?;
        // A digest of a short secret tells it: only what could be read anyway is digested.
        if object.attrs.class() != CKO_SECRET_KEY
            || object.attrs.hides(CKA_VALUE)
            || Guard::management(&object).is_on()
        {
            return Err(CKR_KEY_INDIGESTIBLE);
        }
        let key = object.key()?;
        let mut running = session.running.lock();
        let running = running[Op::Digest as usize].as_mut().ok_or(CKR_OPERATION_NOT_INITIALIZED)?;
        running.update(key.secret()?).map(|_| ())
    }
}

/// The end of an operation, behind what its update gave.
fn end(running: Running, op: Op, mut head: Bytes, aux: &[u8]) -> Ck<Bytes> {
    if op == Op::Verify {
        return running.verify(aux).map(|()| Zeroizing::new(Vec::new()));
    }
    let tail = running.finish(op)?;
    if head.is_empty() {
        return Ok(tail);
    }
    if !tail.is_empty() {
        let mut both = Zeroizing::new(Vec::with_capacity(head.len() + tail.len()));
        both.extend_from_slice(&head);
        both.extend_from_slice(&tail);
        head = both;
    }
    Ok(head)
}

fn update(app: &App, s: u64, op: Op, data: &[u8]) -> Ck<Bytes> {
    let session = app.session(s)?;
    let mut all = session.running.lock();
    let slot = &mut all[op as usize];
    let result = slot.as_mut().ok_or(CKR_OPERATION_NOT_INITIALIZED)?.feed(data, &app.budget);
    if result.is_err() {
        *slot = None;
    }
    result
}

fn finish(app: &App, s: u64, op: Op, aux: &[u8]) -> Ck<Bytes> {
    let session = app.session(s)?;
    let running = session.running.lock()[op as usize].take().ok_or(CKR_OPERATION_NOT_INITIALIZED)?;
    end(running, op, Zeroizing::new(Vec::new()), aux)
}

fn cancel(app: &App, s: u64, op: Op) -> Ck<()> {
    app.session(s)?.running.lock()[op as usize] = None;
    Ok(())
}

fn random_bytes(len: u32) -> Ck<Bytes> {
    if len > MAX_RANDOM {
        return Err(CKR_ARGUMENTS_BAD);
    }
    let mut out = Zeroizing::new(vec![0; len as usize]);
    random::fill(&mut out);
    Ok(out)
}
