//! The engine: an unlocked store, and what is remembered of it between operations.
//!
//! Remembered records are trusted only while the store's stamp stands, so a rotation or a disabled key made by
//! another process is seen by the next operation. What fell due while nobody ran is done before a key is used next.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::arn::{KeyRef, Scope};
use super::error::KmsError;
use super::hsm::Clusters;
use super::policy;
use super::quota::{Buckets, Quotas};
use super::records::{AliasRecord, KeyRecord, now_ms};
use super::root::{self, Cost, Protection, RootSecrets};
use super::seams::Observer;
use super::state::{self, State};
use super::store::{Fault, Stamp, Store};
use super::table::{ALIASES, KEYS, MATERIALS, STORES, View};
use super::uses::Uses;
use super::{dir, labels};
use crate::crypto::{SealKey, Secret, derive};

/// On-demand rotations of one key over its life (AWS resource quotas).
const ON_DEMAND_ROTATIONS: u16 = 25;
/// Longest plaintext of Encrypt, as AWS bounds it.
const PLAINTEXT: usize = 4096;
/// The most that `plaintext` may be set to: the figure of this project's first description.
pub(super) const MAX_PLAINTEXT: usize = 10_240;
/// Key materials that are kept unsealed: two keys of 32 bytes each, or a private key.
const REMEMBERED_MATERIALS: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// Key records that are kept.
const REMEMBERED_KEYS: usize = 1024;

/// What the engine allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// On-demand rotations of one key over its life.
    pub on_demand_rotations: u16,
    /// Longest plaintext of Encrypt in bytes, at most 10,240.
    pub plaintext: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { on_demand_rotations: ON_DEMAND_ROTATIONS, plaintext: PLAINTEXT }
    }
}

/// The KMS on one unlocked store. Thread-safe; holds no file open between operations, unless it was told to.
pub struct Engine {
    dir: PathBuf,
    pub(super) store: Store,
    pub(super) limits: Limits,
    pub(super) clusters: Clusters,
    pub(super) uses: Uses,
    pub(super) observer: Option<Arc<dyn Observer>>,
    pub(super) quotas: Option<Buckets>,
    pub(super) policies: policy::Cache,
    pub(super) service_control: Vec<policy::Named>,
    pub(super) indexed: AtomicBool,
    /// Grows with every change of a principal made here.
    principal_changes: AtomicU64,
    /// Added to the system's clock, in milliseconds: tests let years pass.
    pub(super) clock_shift: AtomicI64,
    memory: Mutex<Memory>,
}

struct Memory {
    stamp: Option<Stamp>,
    /// By slot.
    keys: HashMap<String, Arc<KeyRecord>>,
    /// By alias slot: the key's slot.
    aliases: HashMap<String, String>,
    /// By KeyMaterialId. Material never changes, so it outlives stamps; whether it may be used is the record's say.
    materials: LruCache<String, Arc<Material>>,
    /// HMAC keys and private keys (PKCS#8), by KeyMaterialId.
    private: LruCache<String, Arc<Zeroizing<Vec<u8>>>>,
}

/// The keys of one version: one for each use, so that their nonces never meet.
pub(super) struct Material {
    pub(super) blob: SealKey,
    pub(super) compact: SealKey,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Engine {
    /// Makes a store and opens it. `dir` must not exist, or be empty.
    pub fn create(dir: &Path, protection: &Protection) -> Result<Self, KmsError> {
        Self::create_with_cost(dir, protection, Cost::default())
    }

    /// As [`Engine::create`], with another price of a guess.
    #[doc(hidden)]
    pub fn create_with_cost(dir: &Path, protection: &Protection, cost: Cost) -> Result<Self, KmsError> {
        let mut key = None;
        dir::create_whole(dir, |tmp| {
            let store = Store::create(tmp, root::create(tmp, protection, cost)?)?;
            key = Some(store.into_key());
            Ok(())
        })?;
        Ok(Self::on(dir, key.expect("create_whole succeeds only when its closure did")))
    }

    /// Opens a store whose root key is sealed under a key file or a passphrase.
    pub fn open(dir: &Path, passphrase: Option<&str>) -> Result<Self, KmsError> {
        Self::open_by(dir, &RootSecrets { passphrase, tokens: None })
    }

    /// Opens a store.
    pub fn open_by(dir: &Path, by: &RootSecrets<'_>) -> Result<Self, KmsError> {
        let key = root::unlock(dir, by)?;
        let engine = Self::on(dir, key);
        engine.store.stamp()?;
        Ok(engine)
    }

    /// The same store under other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = Limits { plaintext: limits.plaintext.clamp(1, MAX_PLAINTEXT), ..limits };
        self
    }

    /// Tells `observer` of every call and of what the service does by itself.
    #[must_use]
    pub fn with_observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Throttles calls of AWS's API. Without it nothing is throttled.
    #[must_use]
    pub fn with_quotas(mut self, quotas: Quotas) -> Self {
        self.quotas = Some(Buckets::new(quotas));
        self
    }

    /// Puts every account of the store under service control policies (name, JSON): each of them has to allow a call.
    pub fn with_service_control(mut self, policies: Vec<(String, String)>) -> Result<Self, KmsError> {
        for (name, text) in policies {
            super::principals::check_policy(&text)?;
            let document = self.policies.identity_policy(&text)?;
            self.service_control.push(policy::Named { name, document });
        }
        Ok(self)
    }

    /// Keeps the store open: operations are faster, and other processes wait, then fail with [`KmsError::Busy`].
    pub fn hold(mut self) -> Result<Self, KmsError> {
        self.store.hold()?;
        Ok(self)
    }

    /// Ends the threads of what observes it, until the next call.
    pub fn end_threads(&self) {
        if let Some(observer) = &self.observer {
            observer.settle();
        }
    }

    /// Where the store is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn on(dir: &Path, key: SealKey) -> Self {
        let memory = Memory {
            stamp: None,
            keys: HashMap::new(),
            aliases: HashMap::new(),
            materials: LruCache::new(REMEMBERED_MATERIALS),
            private: LruCache::new(REMEMBERED_MATERIALS),
        };
        Self {
            dir: dir.into(),
            store: Store::at(dir, key),
            limits: Limits::default(),
            clusters: Clusters::default(),
            uses: Uses::default(),
            observer: None,
            quotas: None,
            policies: policy::Cache::default(),
            service_control: Vec::new(),
            indexed: AtomicBool::new(false),
            principal_changes: AtomicU64::new(0),
            clock_shift: AtomicI64::new(0),
            memory: Mutex::new(memory),
        }
    }

    /// Now, in milliseconds since the epoch.
    pub(super) fn now(&self) -> u64 {
        now_ms().saturating_add_signed(self.clock_shift.load(Ordering::Relaxed))
    }

    /// Lets `days` pass at once.
    #[doc(hidden)]
    pub fn skip_days(&self, days: u32) {
        self.clock_shift.fetch_add(i64::from(days) * 86_400_000, Ordering::Relaxed);
    }

    /// The key that a caller of the home scope names by id, ARN, alias or alias ARN.
    pub(super) fn resolve(&self, name: &str) -> Result<Arc<KeyRecord>, KmsError> {
        self.resolve_in(name, &Scope::home())
    }

    /// The key that a caller in `scope` names by id, ARN, alias or alias ARN.
    pub(super) fn resolve_in(&self, name: &str, scope: &Scope) -> Result<Arc<KeyRecord>, KmsError> {
        match KeyRef::parse(name, scope)? {
            KeyRef::Id(scope, id) => self.key_of(&scope, &id),
            KeyRef::Alias(scope, alias) => {
                let slot = scope.alias_slot(&alias);
                let target = self.alias_target(&slot)?.ok_or_else(|| no_alias(&scope, &alias))?;
                self.key(&target)
            }
        }
    }

    /// The key of an id, as seen from a scope.
    pub(super) fn key_of(&self, scope: &Scope, id: &str) -> Result<Arc<KeyRecord>, KmsError> {
        match self.key(&scope.key_slot(id)) {
            Ok(record) if record.scope == *scope => Ok(record),
            Ok(_) | Err(KmsError::NotFound(_)) => Err(no_key(scope, id)),
            Err(other) => Err(other),
        }
    }

    fn alias_target(&self, slot: &str) -> Result<Option<String>, KmsError> {
        let stamp = self.store.stamp()?;
        {
            let memory = self.memory.lock();
            if let Some(target) = memory.aliases.get(slot).filter(|_| memory.stamp == Some(stamp)) {
                return Ok(Some(target.clone()));
            }
        }
        let record: Option<AliasRecord> = self.store.read(|r| r.get(ALIASES, slot))?;
        let Some(target) = record.map(|r| r.target) else { return Ok(None) };
        self.remember(stamp, |memory| {
            memory.aliases.insert(slot.to_owned(), target.clone());
        });
        Ok(Some(target))
    }

    /// The record of a key by its slot: remembered while the store did not change, else read. What is due is done.
    pub(super) fn key(&self, slot: &str) -> Result<Arc<KeyRecord>, KmsError> {
        let record = self.stored_key(slot)?;
        if record.due_ms().is_none_or(|due| due > self.now()) {
            return Ok(record);
        }
        self.settle(slot)?;
        self.stored_key(slot)
    }

    fn stored_key(&self, slot: &str) -> Result<Arc<KeyRecord>, KmsError> {
        // Before the read: a change between the two makes the record newer than its stamp, never older.
        let stamp = self.store.stamp()?;
        {
            let memory = self.memory.lock();
            if let Some(record) = memory.keys.get(slot).filter(|_| memory.stamp == Some(stamp)) {
                return Ok(record.clone());
            }
        }
        let record: Arc<KeyRecord> = Arc::new(self.store.read(|r| key_in(r, slot))?);
        self.remember(stamp, |memory| {
            memory.keys.insert(slot.to_owned(), record.clone());
        });
        Ok(record)
    }

    fn remember(&self, stamp: Stamp, put: impl FnOnce(&mut Memory)) {
        if !stamp.is_settled() {
            return;
        }
        let mut memory = self.memory.lock();
        let full = memory.keys.len() >= REMEMBERED_KEYS || memory.aliases.len() >= REMEMBERED_KEYS;
        if memory.stamp != Some(stamp) || full {
            memory.keys.clear();
            memory.aliases.clear();
            memory.stamp = Some(stamp);
        }
        put(&mut memory);
    }

    /// The state of a key, with that of its custom key store.
    pub(super) fn state(&self, record: &KeyRecord) -> Result<State, KmsError> {
        match (state::stored(record), &record.key_store) {
            (State::Enabled | State::Disabled, Some(id)) if !self.is_connected(id)? => Ok(State::Unavailable),
            (state, _) => Ok(state),
        }
    }

    fn is_connected(&self, id: &str) -> Result<bool, KmsError> {
        let store: Option<super::hsm::StoreRecord> = self.store.read(|r| r.get(STORES, id))?;
        Ok(store.is_some_and(|s| self.clusters.is_connected(&s)))
    }

    /// The keys of a symmetric key material: remembered, else unsealed from the store.
    pub(super) fn material(&self, id: &str) -> Result<Arc<Material>, KmsError> {
        if let Some(material) = self.memory.lock().materials.get(id) {
            return Ok(material.clone());
        }
        let raw = self.store.read(|r| r.bytes(MATERIALS, id))?;
        let secret = raw.and_then(|raw| Secret::from_slice(&raw)).ok_or_else(|| self.no_material(id))?;
        let uses = [labels::BLOB_KEY, labels::COMPACT_KEY];
        let [blob, compact] = derive::hkdf_each(secret.expose(), &[], uses).map(SealKey::new);
        let material = Arc::new(Material { blob, compact });
        self.memory.lock().materials.put(id.to_owned(), material.clone());
        Ok(material)
    }

    /// An HMAC key or a private key: remembered, else unsealed from the store.
    pub(super) fn private(&self, id: &str) -> Result<Arc<Zeroizing<Vec<u8>>>, KmsError> {
        if let Some(bytes) = self.memory.lock().private.get(id) {
            return Ok(bytes.clone());
        }
        let raw = self.store.read(|r| r.bytes(MATERIALS, id))?.ok_or_else(|| self.no_material(id))?;
        let bytes = Arc::new(raw);
        self.memory.lock().private.put(id.to_owned(), bytes.clone());
        Ok(bytes)
    }

    /// Wipes what is remembered of a key material.
    pub(super) fn forget_material(&self, id: &str) {
        let mut memory = self.memory.lock();
        memory.materials.pop(id);
        memory.private.pop(id);
    }

    pub(super) fn no_material(&self, id: &str) -> KmsError {
        KmsError::Damaged { path: self.dir.clone(), why: format!("key material {id} is missing") }
    }

    /// Forgets every key, alias, grant and custom key store, not the principals: for test suites.
    pub fn reset(&self) -> Result<(), KmsError> {
        self.store.write(|w| w.clear())?;
        self.uses.clear();
        let mut memory = self.memory.lock();
        memory.stamp = None;
        memory.materials.clear();
        memory.private.clear();
        self.indexed.store(false, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn principals_changed(&self) {
        self.principal_changes.fetch_add(1, Ordering::AcqRel);
    }

    /// A number that changes when a principal was changed by this engine. A server, which holds the store, caches by it.
    pub(super) fn principal_changes(&self) -> u64 {
        self.principal_changes.load(Ordering::Acquire)
    }
}

/// A key's record within a transaction.
pub(super) fn key_in(view: &impl View, slot: &str) -> Result<KeyRecord, Fault> {
    view.get(KEYS, slot)?.ok_or_else(|| no_key(&Scope::home(), super::records::key_id(slot)).into())
}

pub(super) fn no_key(scope: &Scope, id: &str) -> KmsError {
    KmsError::NotFound(format!("Key '{}' does not exist", scope.key_arn(id)))
}

pub(super) fn no_alias(scope: &Scope, alias: &str) -> KmsError {
    KmsError::NotFound(format!("Alias {} is not found.", scope.alias_arn(alias)))
}

/// Refuses to use a key that is not enabled.
pub(super) fn usable(record: &KeyRecord) -> Result<(), KmsError> {
    state::usable(record, state::stored(record))
}

/// Seals the root key of the store in `dir` anew, under another protection.
pub fn reprotect(dir: &Path, by: &RootSecrets<'_>, new: &Protection) -> Result<(), KmsError> {
    root::reprotect(dir, by, new, Cost::default())
}
