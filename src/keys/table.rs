//! The wrapping keys of an open vault: the rows of its volume config, with their providers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::envelope::Envelope;
use super::keyring::Calls;
use super::outage::Outage;
use super::{KeyError, KeyInfo, Provider, WrapContext};
use crate::crypto::Secret;
use crate::format::config::VolumeConfig;
use crate::format::header::Wrapped;

/// A wrapping key of the volume config, with its provider where one can be had.
pub(super) struct Row {
    pub(super) index: u8,
    pub(super) uri: String,
    pub(super) active: bool,
    pub(super) provider: Result<Arc<dyn Provider>, Arc<KeyError>>,
    /// The provider again, where the row stands for the vault's own key-encryption keys.
    pub(super) envelope: Option<Arc<Envelope>>,
    outage: Outage,
    /// The last version the provider told, and one; 0 before it told any.
    version: AtomicU32,
}

/// A volume config and its rows.
pub(super) struct Table {
    pub(super) config: VolumeConfig,
    pub(super) rows: Vec<Arc<Row>>,
    /// Counts configs, so that two can be told apart.
    pub(super) generation: u32,
}

impl Row {
    pub(super) fn new(
        index: u8,
        uri: String,
        active: bool,
        provider: Result<Arc<dyn Provider>, Arc<KeyError>>,
    ) -> Self {
        Self {
            index,
            uri,
            active,
            provider,
            envelope: None,
            outage: Outage::default(),
            version: AtomicU32::new(0),
        }
    }

    /// The row of envelope mode.
    pub(super) fn of_envelope(index: u8, active: bool) -> Self {
        let envelope = Arc::new(Envelope::new());
        let provider: Arc<dyn Provider> = envelope.clone();
        let row = Self::new(index, super::envelope::URI.to_owned(), active, Ok(provider));
        Self { envelope: Some(envelope), ..row }
    }

    /// The same row, active or not.
    pub(super) fn with_active(&self, active: bool) -> Self {
        Self::new(self.index, self.uri.clone(), active, self.provider.clone())
    }

    /// The provider, or why there is none.
    pub(super) fn provider(&self) -> Result<&Arc<dyn Provider>, KeyError> {
        self.provider.as_ref().map_err(|error| copy(error, &self.uri))
    }

    /// One call of the provider, noted.
    pub(super) fn call<T>(
        &self,
        ask: impl FnOnce(&dyn Provider) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        let outcome = self.provider().and_then(|provider| ask(&**provider));
        self.outage.note(&self.uri, &outcome);
        outcome
    }

    /// Unwraps, counted.
    pub(super) fn unwrap(
        &self,
        wrapped: &Wrapped,
        context: &WrapContext,
        calls: &Calls,
    ) -> Result<Secret<32>, KeyError> {
        calls.unwraps.fetch_add(1, Relaxed);
        self.call(|provider| provider.unwrap(wrapped, context))
    }

    /// Identity of the key.
    pub(super) fn describe(&self) -> Result<KeyInfo, KeyError> {
        self.call(|provider| provider.describe())
    }

    /// Whether a call may open what this row wrapped.
    pub(super) fn can_unwrap(&self) -> bool {
        self.provider.as_ref().is_ok_and(|provider| provider.can_unwrap())
    }

    /// Whether its provider is behind a network.
    pub(super) fn is_far(&self) -> bool {
        self.provider.as_ref().is_ok_and(|provider| provider.is_far())
    }

    /// The version that new keys are wrapped with; the last one known while the provider does not tell.
    pub(super) fn version(&self) -> u32 {
        if let Some(version) = self.provider.as_ref().ok().and_then(|p| p.wrapping_version()) {
            self.version.store(u32::from(version) + 1, Relaxed);
        }
        self.version.load(Relaxed)
    }
}

impl Table {
    /// The row that a header names.
    pub(super) fn row(&self, index: u8) -> Result<&Arc<Row>, KeyError> {
        self.rows.iter().find(|row| row.index == index).ok_or(KeyError::NoSuchRow(index))
    }

    /// The rows that keys of the vault are kept under: active ones, without that of envelope mode.
    pub(super) fn keeping(&self) -> impl Iterator<Item = &Arc<Row>> {
        self.rows.iter().filter(|row| row.active && row.envelope.is_none())
    }

    /// The key-encryption keys, where new data keys are wrapped with them.
    pub(super) fn envelope(&self) -> Option<&Arc<Row>> {
        self.rows.iter().find(|row| row.active && row.envelope.is_some())
    }

    /// The rows that new data keys are wrapped for; the first one makes them.
    pub(super) fn wrapping(&self) -> Result<Vec<&Arc<Row>>, KeyError> {
        if let Some(row) = self.envelope() {
            return Ok(vec![row]);
        }
        let mut rows: Vec<_> = self.keeping().collect();
        // A key of which only the public half is here comes behind those that a file is really opened with.
        rows.sort_by_key(|row| !row.can_unwrap());
        if rows.is_empty() {
            return Err(KeyError::NotFound("the volume config marks no wrapping key as active".into()));
        }
        Ok(rows)
    }

    /// A number that changes when new keys would be wrapped differently.
    pub(super) fn wrapping_version(&self) -> u64 {
        let Ok(rows) = self.wrapping() else { return 0 };
        // FNV-1a over what matters.
        let parts = std::iter::once(self.generation).chain(rows.iter().map(|row| row.version()));
        parts.fold(0xcbf2_9ce4_8422_2325, |hash, part| {
            (hash ^ u64::from(part)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }
}

/// Of several recipients' errors, keeps the one an operator can do most about.
pub(super) fn keep_hopeful(told: &mut Option<KeyError>, error: KeyError) {
    if told.as_ref().is_none_or(|t| hope(&error) > hope(t)) {
        *told = Some(error);
    }
}

fn hope(error: &KeyError) -> u8 {
    match error {
        KeyError::Unreachable(_) => 6,
        KeyError::Denied(_) => 5,
        KeyError::Disabled(_) => 4,
        KeyError::NotFound(_) => 3,
        KeyError::Uri { .. } => 2,
        KeyError::NoSuchRow(_) => 1,
        KeyError::Foreign | KeyError::Header(_) => 0,
    }
}

/// The error that a row was opened with, again.
fn copy(error: &KeyError, uri: &str) -> KeyError {
    match error {
        KeyError::Uri { uri, why } => KeyError::Uri { uri: uri.clone(), why: why.clone() },
        KeyError::NotFound(what) => KeyError::NotFound(what.clone()),
        KeyError::Disabled(what) => KeyError::Disabled(what.clone()),
        KeyError::Denied(what) => KeyError::Denied(what.clone()),
        KeyError::Unreachable(what) => KeyError::Unreachable(what.clone()),
        KeyError::Foreign => KeyError::Foreign,
        KeyError::NoSuchRow(row) => KeyError::NoSuchRow(*row),
        KeyError::Header(_) => KeyError::Unreachable(format!("{uri}: {error}")),
    }
}
