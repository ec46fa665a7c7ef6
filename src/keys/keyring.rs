//! The keys of one open vault: providers by row, cache of unwrapped data keys, pool of ready ones.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::cache::Cache;
use super::pool::{self, Pool, Ready, Source};
use super::{KeyError, KeyInfo, NewFile, Provider, WrapContext};
use crate::crypto::{DataKey, FileKeys, VaultKey};
use crate::format::config::VolumeConfig;
use crate::format::header::{FileHeader, Recipient};
use crate::format::ids::VaultId;

/// Bounds of what a keyring holds.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Unwrapped data keys kept: 32 bytes of locked memory each.
    pub cache_count: NonZeroUsize,
    /// How long an unwrapped data key is kept.
    pub cache_age: Duration,
    /// Ready data keys kept for new files.
    pub pool_size: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            cache_count: NonZeroUsize::new(8192).expect("not zero"),
            cache_age: Duration::from_secs(3600),
            pool_size: 500,
        }
    }
}

/// A wrapping key of the volume config, with its provider where one can be had.
pub(super) struct Row {
    pub(super) index: u8,
    pub(super) uri: String,
    pub(super) provider: Result<Arc<dyn Provider>, Arc<KeyError>>,
}

/// The keys of one open vault. Thread-safe.
pub struct Keyring {
    config: VolumeConfig,
    vault_key: VaultKey,
    rows: Vec<Row>,
    active: Option<u8>,
    cache: Arc<Cache>,
    pool: Option<Pool>,
    calls: Arc<Calls>,
}

/// How often providers were asked.
#[derive(Default)]
struct Calls {
    unwraps: AtomicU64,
    generates: AtomicU64,
}

/// What the pool fills itself from.
struct Filler {
    provider: Arc<dyn Provider>,
    vault: VaultId,
    calls: Arc<Calls>,
}

impl Source for Filler {
    fn make(&self, count: usize) -> Result<Vec<Ready>, KeyError> {
        self.calls.generates.fetch_add(1, Relaxed);
        pool::generate(&*self.provider, self.vault, count)
    }

    fn version(&self) -> Option<u16> {
        self.provider.wrapping_version()
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring").field("vault", &self.config.vault_id).finish_non_exhaustive()
    }
}

impl Keyring {
    pub(super) fn new(config: VolumeConfig, vault_key: VaultKey, rows: Vec<Row>, tuning: &Tuning) -> Self {
        let cache = Arc::new(Cache::new(tuning.cache_count, tuning.cache_age));
        let calls = Arc::new(Calls::default());
        let active = config.active().map(|row| row.index);
        let provider =
            rows.iter().find(|row| Some(row.index) == active).and_then(|row| row.provider.as_ref().ok());
        let pool = provider.map(|provider| {
            let filler = Filler { provider: provider.clone(), vault: config.vault_id, calls: calls.clone() };
            let cache = cache.clone();
            Pool::new(tuning.pool_size, Box::new(filler), Box::new(move || cache.sweep()))
        });
        Self { config, vault_key, rows, active, cache, pool, calls }
    }

    /// The vault key, for names, symlinks and xattrs.
    pub fn vault_key(&self) -> &VaultKey {
        &self.vault_key
    }

    /// The volume config this keyring was opened from.
    pub fn config(&self) -> &VolumeConfig {
        &self.config
    }

    /// Takes a ready data key from the pool (which refills in the background), or asks the provider.
    pub fn new_file(&self) -> Result<NewFile, KeyError> {
        let (Some(pool), Some(key_index)) = (&self.pool, self.active) else {
            return Err(self.no_active_key());
        };
        let Ready { file_id, key, wrapped } = pool.take()?;
        let header = FileHeader { file_id, recipients: vec![Recipient { key_index, wrapped }] }.encode()?;
        let keys = Arc::new(FileKeys::derive(&key, &file_id));
        self.cache.put(header.clone(), file_id, key, &keys);
        Ok(NewFile { file_id, header, keys })
    }

    /// The keys of an existing file: from the cache, or unwrapped by the first recipient that can.
    pub fn open_file(&self, header: &FileHeader) -> Result<Arc<FileKeys>, KeyError> {
        if let Some(pool) = &self.pool {
            // Its thread also forgets old keys.
            pool.start();
        }
        self.cache.keys(header, || self.unwrap(header))
    }

    /// Wrapping keys by row.
    pub fn describe(&self) -> Vec<(u8, Result<KeyInfo, KeyError>)> {
        self.rows.iter().map(|row| (row.index, row.provider().and_then(|p| p.describe()))).collect()
    }

    /// How many unwraps and generate calls the providers were asked for, for tests that count them.
    pub fn provider_calls(&self) -> (u64, u64) {
        (self.calls.unwraps.load(Relaxed), self.calls.generates.load(Relaxed))
    }

    fn unwrap(&self, header: &FileHeader) -> Result<DataKey, KeyError> {
        let context = WrapContext { vault: self.config.vault_id, file: Some(header.file_id) };
        let mut told = None;
        for recipient in &header.recipients {
            let row = self.rows.iter().find(|row| row.index == recipient.key_index);
            let provider = row.ok_or(KeyError::NoSuchRow(recipient.key_index)).and_then(Row::provider);
            let opened = provider.and_then(|provider| {
                self.calls.unwraps.fetch_add(1, Relaxed);
                provider.unwrap(&recipient.wrapped, &context)
            });
            match opened {
                Ok(key) => return Ok(DataKey(key)),
                Err(error) => keep_hopeful(&mut told, error),
            }
        }
        Err(told.unwrap_or(KeyError::Foreign))
    }

    fn no_active_key(&self) -> KeyError {
        let row = self.rows.iter().find(|row| Some(row.index) == self.active);
        match row.map(Row::provider) {
            Some(Err(error)) => error,
            _ => KeyError::NotFound("the volume config marks no wrapping key as active".into()),
        }
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize) {
        (self.cache.len(), self.pool.as_ref().map_or(0, Pool::len))
    }
}

impl Row {
    pub(super) fn provider(&self) -> Result<&Arc<dyn Provider>, KeyError> {
        self.provider.as_ref().map_err(|error| copy(error, &self.uri))
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
