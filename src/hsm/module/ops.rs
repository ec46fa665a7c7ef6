//! Encrypt, decrypt, sign, verify, digest: the rules of calls in pieces and at once.
//!
//! A single-part operation is one round trip: the initialisation is kept here until the data comes. An answer that the
//! caller does not take (he asks for its length, or his buffer is short) is kept until he does.

use cryptoki_sys::*;
use zeroize::Zeroizing;

use super::super::Ck;
use super::super::wire::{Bytes, MAX_DATA, Mech, Op, Request};
use super::memory::Output;
use super::state::{Held, Module, Running, Session, module};

/// What an output may be longer than its input: a tag, padding, an IV, a signature of 4,096 bits.
const SLACK: usize = 1024;
/// Operations that a session remembers as allowed.
const REMEMBERED: usize = 16;

/// C_*Init; gives the IV where the HSM made it.
pub(super) fn init(s: u64, op: Op, mech: Mech, key: u64) -> Ck<Bytes> {
    let module = module()?;
    let session = module.session(s)?;
    let mut session = session.lock();
    if !matches!(session.ops[op as usize], Running::None) {
        return Err(CKR_OPERATION_ACTIVE);
    }
    // The parameters are looked at again with the data.
    let known = session.allowed.contains(&(op, mech.kind, key));
    let mut iv = Zeroizing::new(Vec::new());
    if !known {
        iv = module.call(Request::Check { s, op, mech: mech.clone(), key })?;
        // An HSM that makes the IV has begun already, and does so each time.
        if iv.is_empty() {
            if session.allowed.len() >= REMEMBERED {
                session.allowed.remove(0);
            }
            session.allowed.push((op, mech.kind, key));
        }
    }
    session.ops[op as usize] = if iv.is_empty() {
        Running::Pending { mech, key, held: None }
    } else {
        Running::Begun { streamed: false, held: None }
    };
    Ok(iv)
}

/// C_*Init with a null mechanism: ends an operation (PKCS#11 3.0).
pub(super) fn cancel(s: u64, op: Op) -> Ck<()> {
    let module = module()?;
    let session = module.session(s)?;
    let mut session = session.lock();
    if let Running::Begun { .. } = std::mem::take(&mut session.ops[op as usize]) {
        let _: Ck<()> = module.call(Request::Cancel { s, op });
    }
    Ok(())
}

/// Runs a step of an operation. Any refusal but of a short buffer ends the operation.
fn step<T>(s: u64, op: Op, run: impl FnOnce(&Module, &mut Session) -> Ck<T>) -> Ck<T> {
    let module = module()?;
    let session = module.session(s)?;
    let mut session = session.lock();
    if matches!(session.ops[op as usize], Running::None) {
        return Err(CKR_OPERATION_NOT_INITIALIZED);
    }
    let result = run(&module, &mut session);
    if let Err(rv) = &result
        && *rv != CKR_BUFFER_TOO_SMALL
    {
        let was = std::mem::take(&mut session.ops[op as usize]);
        if matches!(was, Running::Begun { .. }) {
            let _: Ck<()> = module.call(Request::Cancel { s, op });
        }
        // What was allowed may be so no longer: the next C_*Init asks again.
        session.allowed.clear();
    }
    result
}

/// Gives an answer, or keeps it for the next call.
fn deliver(
    session: &mut Session,
    op: Op,
    out: &Output,
    input: Option<&[u8]>,
    output: Bytes,
    last: bool,
) -> Ck<()> {
    let taken = out.give(&output);
    let slot = &mut session.ops[op as usize];
    if taken == Ok(true) {
        if last {
            *slot = Running::None;
        } else if let Running::Begun { held, .. } = slot {
            *held = None;
        }
        return Ok(());
    }
    let input = input.map(|i| Zeroizing::new(i.to_vec()));
    match slot {
        Running::Pending { held, .. } | Running::Begun { held, .. } => *held = Some(Held { input, output }),
        Running::None => {}
    }
    taken.map(|_| ())
}

/// An answer that was kept for this very input.
fn kept(session: &mut Session, op: Op, input: Option<&[u8]>) -> Ck<Option<Bytes>> {
    let slot = &mut session.ops[op as usize];
    let pending = matches!(slot, Running::Pending { .. });
    let (Running::Pending { held, .. } | Running::Begun { held, .. }) = slot else { return Ok(None) };
    match held {
        Some(h) if h.input.as_ref().map(|i| i.as_slice()) == input => Ok(held.take().map(|h| h.output)),
        // Nothing happened yet but this answer, which is for other data.
        Some(_) if pending => {
            *held = None;
            Ok(None)
        }
        // The appliance has gone on with the input before: there is no way back.
        Some(_) => Err(CKR_OPERATION_ACTIVE),
        None => Ok(None),
    }
}

/// C_Encrypt, C_Decrypt, C_Sign, C_Digest.
pub(super) fn single(s: u64, op: Op, data: Ck<&[u8]>, out: Ck<Output>) -> Ck<()> {
    step(s, op, |module, session| {
        let (data, out) = (data?, out?);
        if matches!(session.ops[op as usize], Running::Begun { streamed: true, .. }) {
            return Err(CKR_OPERATION_ACTIVE);
        }
        let output = match kept(session, op, Some(data))? {
            Some(output) => output,
            None => whole(module, session, s, op, data, &[])?,
        };
        deliver(session, op, &out, Some(data), output, true)
    })
}

/// C_Verify.
pub(super) fn verify(s: u64, data: Ck<&[u8]>, signature: Ck<&[u8]>) -> Ck<()> {
    step(s, Op::Verify, |module, session| {
        let (data, signature) = (data?, signature?);
        if matches!(session.ops[Op::Verify as usize], Running::Begun { streamed: true, .. }) {
            return Err(CKR_OPERATION_ACTIVE);
        }
        whole(module, session, s, Op::Verify, data, signature)?;
        session.ops[Op::Verify as usize] = Running::None;
        Ok(())
    })
}

/// The whole operation in the appliance: at once where the data fits into a message.
fn whole(module: &Module, session: &mut Session, s: u64, op: Op, data: &[u8], aux: &[u8]) -> Ck<Bytes> {
    let bytes = |b: &[u8]| Zeroizing::new(b.to_vec());
    if let Running::Pending { mech, key, .. } = &session.ops[op as usize]
        && data.len() <= MAX_DATA
    {
        let once = Request::Once { s, op, mech: mech.clone(), key: *key, data: bytes(data), aux: bytes(aux) };
        return module.call(once);
    }
    start(module, session, s, op, false)?;
    let mut out = Zeroizing::new(Vec::with_capacity(data.len() + SLACK));
    for piece in data.chunks(MAX_DATA) {
        let part: Bytes = module.call(Request::Update { s, op, data: bytes(piece) })?;
        out.extend_from_slice(&part);
    }
    let last: Bytes = module.call(Request::Finish { s, op, aux: bytes(aux) })?;
    out.extend_from_slice(&last);
    Ok(out)
}

/// Begins the operation in the appliance, where that has not been done.
fn start(module: &Module, session: &mut Session, s: u64, op: Op, streamed: bool) -> Ck<()> {
    let slot = &mut session.ops[op as usize];
    if let Running::Pending { mech, key, held } = slot {
        if held.is_some() {
            return Err(CKR_OPERATION_ACTIVE);
        }
        module.call::<()>(Request::Begin { s, op, mech: mech.clone(), key: *key })?;
        *slot = Running::Begun { streamed, held: None };
    }
    if let Running::Begun { streamed: was, .. } = slot {
        *was |= streamed;
    }
    Ok(())
}

/// C_EncryptUpdate, C_DecryptUpdate.
pub(super) fn update(s: u64, op: Op, data: Ck<&[u8]>, out: Ck<Output>) -> Ck<()> {
    step(s, op, |module, session| {
        let (data, out) = (data?, out?);
        let output = match kept(session, op, Some(data))? {
            Some(output) => output,
            None => feed(module, session, s, op, data)?,
        };
        deliver(session, op, &out, Some(data), output, false)
    })
}

/// C_SignUpdate, C_VerifyUpdate, C_DigestUpdate.
pub(super) fn absorb(s: u64, op: Op, data: Ck<&[u8]>) -> Ck<()> {
    step(s, op, |module, session| feed(module, session, s, op, data?).map(|_| ()))
}

fn feed(module: &Module, session: &mut Session, s: u64, op: Op, data: &[u8]) -> Ck<Bytes> {
    start(module, session, s, op, true)?;
    let one = |piece: &[u8]| -> Ck<Bytes> {
        module.call(Request::Update { s, op, data: Zeroizing::new(piece.to_vec()) })
    };
    if data.is_empty() {
        return Ok(Bytes::default());
    }
    if data.len() <= MAX_DATA {
        return one(data);
    }
    // As long as the data and what was held back before it: no growing buffer leaves plaintext behind.
    let mut out = Zeroizing::new(Vec::with_capacity(data.len() + SLACK));
    for piece in data.chunks(MAX_DATA) {
        out.extend_from_slice(&one(piece)?);
    }
    Ok(out)
}

/// C_EncryptFinal, C_DecryptFinal, C_SignFinal, C_DigestFinal.
pub(super) fn last(s: u64, op: Op, out: Ck<Output>) -> Ck<()> {
    step(s, op, |module, session| {
        let out = out?;
        let output = match kept(session, op, None)? {
            Some(output) => output,
            None => {
                start(module, session, s, op, true)?;
                module.call(Request::Finish { s, op, aux: Zeroizing::new(Vec::new()) })?
            }
        };
        deliver(session, op, &out, None, output, true)
    })
}

/// C_VerifyFinal.
pub(super) fn verify_last(s: u64, signature: Ck<&[u8]>) -> Ck<()> {
    step(s, Op::Verify, |module, session| {
        let aux = Zeroizing::new(signature?.to_vec());
        start(module, session, s, Op::Verify, true)?;
        module.call::<Bytes>(Request::Finish { s, op: Op::Verify, aux })?;
        session.ops[Op::Verify as usize] = Running::None;
        Ok(())
    })
}

/// C_DigestKey.
pub(super) fn digest_key(s: u64, key: u64) -> Ck<()> {
    step(s, Op::Digest, |module, session| {
        start(module, session, s, Op::Digest, true)?;
        module.call(Request::DigestKey { s, key })
    })
}
