//! The module's state: one for the process, from C_Initialize to C_Finalize.

use std::collections::HashMap;
use std::sync::Arc;

use cryptoki_sys::*;
use parking_lot::{Mutex, RwLock};

use super::super::Ck;
use super::super::client::Link;
use super::super::wire::{Bytes, Mech, Op, Request, Wire};
use super::config;
use super::fleet::Fleet;

/// The one slot.
pub(super) const SLOT: CK_SLOT_ID = 0;

/// What C_Initialize made.
pub(super) struct Module {
    /// The process that initialised it. A forked child has to do so again (PKCS#11 6.6.1).
    pid: u32,
    pub(super) fleet: Fleet,
    pub(super) sessions: RwLock<HashMap<u64, Arc<Mutex<Session>>>>,
}

static MODULE: RwLock<Option<Arc<Module>>> = RwLock::new(None);

/// What the module keeps of a session; the rest is in the appliance.
pub(super) struct Session {
    /// Handles that C_FindObjects has not given yet.
    pub(super) found: Option<std::vec::IntoIter<u64>>,
    pub(super) ops: [Running; Op::ALL.len()],
    /// What the appliance has allowed in this session (mechanism, key): the next C_*Init alike needs no question.
    pub(super) allowed: Vec<(Op, u64, u64)>,
}

/// An operation between C_*Init and its end.
#[derive(Default)]
pub(super) enum Running {
    #[default]
    None,
    /// Initialised here; the appliance knows nothing of it yet.
    Pending { mech: Mech, key: u64, held: Option<Held> },
    /// Begun in the appliance. `streamed`: by an update, so that no single-part call may follow.
    Begun { streamed: bool, held: Option<Held> },
}

/// An answer that the caller has not taken: he asked for its length, or his buffer was short.
pub(super) struct Held {
    /// What it is the answer to; `None` for the end of the operation.
    pub(super) input: Option<Bytes>,
    pub(super) output: Bytes,
}

impl Module {
    pub(super) fn call<T: Wire>(&self, request: Request) -> Ck<T> {
        self.fleet.call(request)
    }

    pub(super) fn session(&self, s: u64) -> Ck<Arc<Mutex<Session>>> {
        self.sessions.read().get(&s).cloned().ok_or(CKR_SESSION_HANDLE_INVALID)
    }
}

/// The module, where it is initialised in this process.
pub(super) fn module() -> Ck<Arc<Module>> {
    let module = MODULE.read();
    match &*module {
        Some(module) if module.pid == std::process::id() => Ok(module.clone()),
        _ => Err(CKR_CRYPTOKI_NOT_INITIALIZED),
    }
}

pub(super) fn initialize() -> Ck<()> {
    let mut slot = MODULE.write();
    if slot.as_ref().is_some_and(|module| module.pid == std::process::id()) {
        return Err(CKR_CRYPTOKI_ALREADY_INITIALIZED);
    }
    if let Some(parents) = slot.take() {
        // A child begins anew; the parent's sockets are not its own, and its threads' locks are never given back.
        parents.fleet.forget();
        std::mem::forget(parents);
    }
    let (members, tls) = config::read().map_err(|e| {
        log::error!("{e}");
        CKR_FUNCTION_FAILED
    })?;
    let links: Result<Vec<Link>, _> =
        members.into_iter().map(|member| Link::new(member, tls.as_ref())).collect();
    let links = links.map_err(|e| {
        log::error!("{e}");
        CKR_FUNCTION_FAILED
    })?;
    let fleet = Fleet::new(links);
    *slot = Some(Arc::new(Module { pid: std::process::id(), fleet, sessions: RwLock::new(HashMap::new()) }));
    Ok(())
}

pub(super) fn finalize() -> Ck<()> {
    module()?;
    *MODULE.write() = None;
    Ok(())
}
