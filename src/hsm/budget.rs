//! Bytes that an application may hold in the appliance: session objects, and messages that are collected for their end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cryptoki_sys::CKR_DEVICE_MEMORY;

use super::Ck;

/// Bytes of one application.
pub(super) const APPLICATION: usize = 64 << 20;
/// Bytes of all applications together.
pub(super) const ALL: usize = 1 << 30;

/// Bytes of long messages that come in and of answers that are not taken yet, of one peer.
pub(super) const WIRE_OF_PEER: usize = if cfg!(test) { 48 << 20 } else { 512 << 20 };
/// Of all peers together.
pub(super) const WIRE: usize = if cfg!(test) { 64 << 20 } else { 1 << 30 };

/// A bound, inside another one where there is `above`.
pub(super) struct Budget {
    used: AtomicUsize,
    most: usize,
    above: Option<Arc<Self>>,
}

impl Budget {
    pub(super) fn new(most: usize, above: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), most, above })
    }

    /// Takes bytes, which go back when what is returned is dropped.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Ck<Reserved> {
        let mut reserved = Reserved { budget: self.clone(), bytes: 0 };
        reserved.grow(bytes)?;
        Ok(reserved)
    }

    fn add(&self, bytes: usize) -> Ck<()> {
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.most);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map_err(|_| CKR_DEVICE_MEMORY)?;
        let above = self.above.as_ref().map_or(Ok(()), |above| above.add(bytes));
        if above.is_err() {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        above
    }

    fn give(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(above) = &self.above {
            above.give(bytes);
        }
    }
}

/// Bytes that were taken.
pub(super) struct Reserved {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Reserved {
    /// How many.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes more.
    pub(super) fn grow(&mut self, bytes: usize) -> Ck<()> {
        self.budget.add(bytes)?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.budget.give(self.bytes);
    }
}
