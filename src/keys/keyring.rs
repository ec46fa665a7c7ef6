//! The keys of one open vault: providers by row, cache of unwrapped data keys, pool of ready ones.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use super::cache::Cache;
use super::envelope::{Envelope, Renewal};
use super::open::{Home, OpenError};
use super::pool::{Pool, Ready, Source};
use super::prefetch::{Ahead, Prefetch};
use super::table::{Table, keep_hopeful};
use super::{KeyError, KeyInfo, NewFile, WrapContext};
use crate::crypto::{DataKey, FileKeys, Secret, VaultKey, random};
use crate::format::config::VolumeConfig;
use crate::format::header::{FileHeader, Recipient};
use crate::format::ids::{FileId, VaultId};

/// Keys that a provider far away is asked for at once: two rounds of the calls that its client has in flight, so that
/// the pool grows while it is emptied.
const FAR_BATCH: usize = 128;

/// A ready key may always be this old: younger ones would be thrown away faster than they are used.
const YOUNG: Duration = Duration::from_secs(10);

/// Bounds of what a keyring holds.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Unwrapped data keys kept: 32 bytes of locked memory each.
    pub cache_count: NonZeroUsize,
    /// How long an unwrapped data key is kept. Zero: each open asks the provider.
    pub cache_age: Duration,
    /// Ready data keys kept for new files.
    pub pool_size: usize,
    /// Files of one listed directory whose keys are unwrapped ahead, at most. Zero: none.
    pub ahead: usize,
    /// In envelope mode: when the key-encryption key is renewed.
    pub renewal: Renewal,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            cache_count: NonZeroUsize::new(8192).expect("not zero"),
            cache_age: Duration::from_secs(3600),
            pool_size: 500,
            ahead: 0,
            renewal: Renewal::default(),
        }
    }
}

/// The keys of one open vault. Thread-safe.
pub struct Keyring {
    shared: Arc<Shared>,
    pool: Pool,
    prefetch: Prefetch,
    ahead: usize,
}

/// What the keyring and its pool's thread both use.
pub(super) struct Shared {
    pub(super) vault: VaultId,
    pub(super) vault_key: VaultKey,
    pub(super) table: RwLock<Arc<Table>>,
    /// Where the volume config is; `None` for one that is nowhere.
    pub(super) home: Option<Home>,
    pub(super) cache: Cache,
    pub(super) calls: Calls,
    pub(super) renewal: Renewal,
}

/// How often providers were asked.
#[derive(Default)]
pub(super) struct Calls {
    pub(super) unwraps: AtomicU64,
    pub(super) generates: AtomicU64,
}

/// What the pool fills itself from.
struct Filler(Arc<Shared>);

impl Source for Filler {
    fn make(&self, count: usize) -> Result<Vec<Ready>, KeyError> {
        self.0.make(count)
    }

    fn version(&self) -> Option<u64> {
        self.0.refresh();
        Some(self.0.table().wrapping_version())
    }

    fn batch(&self) -> usize {
        let far = self.0.table().wrapping().is_ok_and(|rows| rows.iter().any(|row| row.is_far()));
        if far { FAR_BATCH } else { usize::MAX }
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring").field("vault", &self.shared.vault).finish_non_exhaustive()
    }
}

impl Keyring {
    pub(super) fn new(table: Table, vault_key: VaultKey, home: Option<Home>, tuning: &Tuning) -> Self {
        let shared = Arc::new(Shared {
            vault: table.config.vault_id,
            vault_key,
            table: RwLock::new(Arc::new(table)),
            home,
            cache: Cache::new(tuning.cache_count, tuning.cache_age),
            calls: Calls::default(),
            renewal: tuning.renewal,
        });
        shared.attach(&shared.table());
        let chore = shared.clone();
        let pool = Pool::new(
            tuning.pool_size,
            tuning.cache_age.max(YOUNG),
            Box::new(Filler(shared.clone())),
            Box::new(move || {
                chore.cache.sweep();
                chore.refresh();
            }),
        );
        let fetched = shared.clone();
        let prefetch =
            Prefetch::new(move |header| fetched.cache.keys(header, || fetched.unwrap(header)).map(drop));
        // What is not kept is not asked for ahead.
        let ahead =
            if tuning.cache_age.is_zero() { 0 } else { tuning.ahead.min(tuning.cache_count.get() / 2) };
        Self { shared, pool, prefetch, ahead }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The key-encryption keys, in envelope mode.
    pub(super) fn envelope(&self) -> Option<Arc<Envelope>> {
        self.shared.table().envelope().and_then(|row| row.envelope.clone())
    }

    /// Whether data keys are wrapped by key-encryption keys of the vault.
    pub fn is_enveloped(&self) -> bool {
        self.shared.table().envelope().is_some()
    }

    /// The vault key, for names, symlinks and xattrs.
    pub fn vault_key(&self) -> &VaultKey {
        &self.shared.vault_key
    }

    /// The volume config as it was last read.
    pub fn config(&self) -> VolumeConfig {
        self.shared.table().config.clone()
    }

    /// Takes a ready data key from the pool (which refills in the background), or asks the provider.
    pub fn new_file(&self) -> Result<NewFile, KeyError> {
        let Ready { file_id, key, recipients, .. } = self.pool.take()?;
        let header = FileHeader { file_id, recipients }.encode()?;
        let keys = Arc::new(FileKeys::derive(&key, &file_id));
        self.shared.cache.put(header.clone(), file_id, key, &keys);
        Ok(NewFile { file_id, header, keys })
    }

    /// The keys of an existing file: from the cache, or unwrapped by the first recipient that can.
    pub fn open_file(&self, header: &FileHeader) -> Result<Arc<FileKeys>, KeyError> {
        // Its thread also forgets old keys.
        self.pool.start();
        self.shared.cache.keys(header, || self.shared.unwrap(header))
    }

    /// Files of one directory whose keys [`Keyring::prefetch`] may be asked for. Zero where nobody told to, where a key is
    /// near, and in envelope mode, in which one call opens all files.
    pub fn ahead(&self) -> usize {
        if self.ahead > 0 && !self.is_enveloped() && self.is_far() { self.ahead } else { 0 }
    }

    /// Unwraps the keys of files that are likely to be opened soon, in the background.
    pub fn prefetch(&self, files: impl IntoIterator<Item = Ahead>) {
        self.pool.start();
        self.prefetch.add(files);
    }

    /// Wraps new files for the rows of the volume config as it is now, in envelope mode under the newest key-encryption
    /// key: reads both again, and gives no key to a file any more that was made ready before.
    pub fn follow(&self) -> Result<(), OpenError> {
        self.shared.reread()?;
        // Before the drain: a batch that is ordered behind it must not find the old one.
        if let Some(envelope) = self.envelope() {
            envelope.forget();
        }
        self.pool.drain();
        Ok(())
    }

    /// Wrapping keys by row.
    pub fn describe(&self) -> Vec<(u8, Result<KeyInfo, KeyError>)> {
        self.shared.table().rows.iter().map(|row| (row.index, row.describe())).collect()
    }

    /// How many unwraps and generate calls the providers were asked for, for tests that count them.
    pub fn provider_calls(&self) -> (u64, u64) {
        (self.shared.calls.unwraps.load(Relaxed), self.shared.calls.generates.load(Relaxed))
    }

    /// TCP ports on which providers of this vault are reached. Empty where none is far away.
    pub fn ports(&self) -> Vec<u16> {
        let table = self.shared.table();
        let mut ports: Vec<u16> =
            table.rows.iter().filter_map(|row| super::uri::KeyUri::parse(&row.uri).ok()?.port()).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// Whether a provider of this vault may keep an open waiting: it is behind a network, or a token.
    pub fn is_far(&self) -> bool {
        self.shared.table().rows.iter().any(|row| row.is_far())
    }

    /// Ends the threads of providers; see [`super::Provider::settle`].
    pub fn settle(&self) {
        for row in &self.shared.table().rows {
            if let Ok(provider) = row.provider() {
                provider.settle();
            }
        }
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize) {
        (self.shared.cache.len(), self.pool.len())
    }
}

impl Shared {
    /// Tells the rows of a table whose they are.
    fn attach(self: &Arc<Self>, table: &Table) {
        for envelope in table.rows.iter().filter_map(|row| row.envelope.as_ref()) {
            envelope.attach(self);
        }
    }

    pub(super) fn table(&self) -> Arc<Table> {
        self.table.read().clone()
    }

    /// Data keys for new files, wrapped for every active row.
    fn make(&self, count: usize) -> Result<Vec<Ready>, KeyError> {
        let table = self.table();
        let rows = table.wrapping()?;
        let (first, others) = rows.split_first().ok_or(KeyError::Foreign)?;
        self.calls.generates.fetch_add(1, Relaxed);
        let ids: Vec<FileId> = (0..count).map(|_| FileId(random::array())).collect();
        let contexts: Vec<_> = ids.iter().map(|id| WrapContext::of_file(self.vault, *id)).collect();
        let made = first.call(|provider| provider.generate(&contexts))?;
        let now = Instant::now();
        let mut ready: Vec<Ready> = ids
            .into_iter()
            .zip(made)
            .map(|(file_id, (key, wrapped))| {
                let recipients = vec![Recipient { key_index: first.index, wrapped }];
                Ready { made: now, file_id, key, recipients }
            })
            .collect();
        for row in others {
            // The first one may have given fewer than it was asked for.
            let keys: Vec<(&Secret<32>, WrapContext)> =
                ready.iter().zip(&contexts).map(|(ready, context)| (&ready.key.0, *context)).collect();
            let wrapped = row.call(|provider| provider.wrap_each(&keys))?;
            for (ready, wrapped) in ready.iter_mut().zip(wrapped) {
                ready.recipients.push(Recipient { key_index: row.index, wrapped });
            }
        }
        Ok(ready)
    }

    /// The data key of a header. A row that this table does not have may have come since it was read.
    pub(super) fn unwrap(self: &Arc<Self>, header: &FileHeader) -> Result<DataKey, KeyError> {
        let table = self.table();
        match self.unwrap_once(&table, header) {
            Err(error @ KeyError::NoSuchRow(_)) => {
                self.refresh();
                let newer = self.table();
                match newer.generation == table.generation {
                    true => Err(error),
                    false => self.unwrap_once(&newer, header),
                }
            }
            other => other,
        }
    }

    fn unwrap_once(&self, table: &Table, header: &FileHeader) -> Result<DataKey, KeyError> {
        let context = WrapContext::of_file(self.vault, header.file_id);
        let mut told = None;
        let mut locked = false;
        let mut copies: Vec<&Recipient> = header.recipients.iter().collect();
        // Near ones first: a recovery key that is at hand needs no network.
        copies.sort_by_key(|copy| table.row(copy.key_index).is_ok_and(|row| row.is_far()));
        for recipient in copies {
            let opened = match table.row(recipient.key_index) {
                Ok(row) if row.provider.is_ok() && !row.can_unwrap() => {
                    locked = true;
                    continue;
                }
                Ok(row) => row.unwrap(&recipient.wrapped, &context, &self.calls),
                Err(error) => Err(error),
            };
            match opened {
                Ok(key) => return Ok(DataKey(key)),
                Err(error) => keep_hopeful(&mut told, error),
            }
        }
        Err(told.unwrap_or_else(|| match locked {
            true => KeyError::NotFound("only a recovery key opens this file, and it was not given".into()),
            false => KeyError::Foreign,
        }))
    }

    /// Reads the volume config again where it was replaced since, as far as it can be read.
    pub(super) fn refresh(self: &Arc<Self>) {
        if let Err(error) = self.reread() {
            log::debug!("the volume config is not read again: {error}");
        }
    }

    fn reread(self: &Arc<Self>) -> Result<(), OpenError> {
        let Some(home) = &self.home else { return Ok(()) };
        home.reread(&self.table, &self.vault_key, |table| self.attach(table))
    }
}
