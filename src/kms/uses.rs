//! When a key was used last, and for what (GetKeyLastUsage): remembered in memory, written out now and then.

use std::collections::HashMap;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::engine::Engine;
use super::error::KmsError;
use super::table::{USES, View};

/// Keys whose use waits to be written; beyond it, the use is written at once.
const MAX_WAITING: usize = 4096;

/// The last use of a key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Use {
    pub(super) operation: String,
    pub(super) at_ms: u64,
    pub(super) request_id: String,
}

/// Uses that are not written yet, by key slot.
#[derive(Default)]
pub(super) struct Uses(Mutex<HashMap<String, Use>>);

impl Uses {
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }
}

impl Engine {
    /// Notes a successful cryptographic operation.
    pub(super) fn used(&self, slot: &str, operation: &str, request_id: &str) {
        let used = Use { operation: operation.into(), at_ms: self.now(), request_id: request_id.into() };
        let full = {
            let mut waiting = self.uses.0.lock();
            waiting.insert(slot.to_owned(), used);
            waiting.len() >= MAX_WAITING
        };
        if full && let Err(error) = self.write_uses() {
            log::warn!("the last use of keys was not written: {error}");
        }
    }

    /// Writes what is remembered of uses. A server calls it about once a minute and when it ends.
    pub fn write_uses(&self) -> Result<(), KmsError> {
        let waiting = std::mem::take(&mut *self.uses.0.lock());
        if waiting.is_empty() {
            return Ok(());
        }
        self.store.write(|w| waiting.iter().try_for_each(|(slot, used)| w.put(USES, slot, used)))
    }

    /// The last use of a key.
    pub(super) fn last_use(&self, slot: &str) -> Result<Option<Use>, KmsError> {
        if let Some(used) = self.uses.0.lock().get(slot) {
            return Ok(Some(used.clone()));
        }
        self.store.read(|r| r.get(USES, slot))
    }
}
