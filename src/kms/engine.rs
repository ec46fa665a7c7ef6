//! The engine: an unlocked store, and what is remembered of it between operations.
//!
//! Remembered records are trusted only while the store file's stamp stands, so a rotation or a disabled key made by
//! another process is seen by the next operation.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::arn::KeyRef;
use super::error::KmsError;
use super::records::{AliasRecord, KeyRecord};
use super::root::{self, Cost, Protection};
use super::store::{Stamp, Store};
use super::table::{ALIASES, KEYS, MATERIALS, Reader};
use super::{arn, dir, labels};
use crate::crypto::{SealKey, Secret, derive};

/// On-demand rotations of one key over its life (AWS resource quotas).
const ON_DEMAND_ROTATIONS: u16 = 25;
/// Key materials that are kept unsealed: two keys of 32 bytes each.
const REMEMBERED_MATERIALS: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// Key records that are kept.
const REMEMBERED_KEYS: usize = 1024;

/// What the engine allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// On-demand rotations of one key over its life.
    pub on_demand_rotations: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self { on_demand_rotations: ON_DEMAND_ROTATIONS }
    }
}

/// The embedded KMS on one unlocked store. Thread-safe; holds no file open between operations.
pub struct Engine {
    dir: PathBuf,
    pub(super) store: Store,
    pub(super) limits: Limits,
    memory: Mutex<Memory>,
}

struct Memory {
    stamp: Option<Stamp>,
    keys: HashMap<String, Arc<KeyRecord>>,
    /// By KeyMaterialId. Material never changes, so it outlives stamps; whether it may be used is the record's say.
    materials: LruCache<String, Arc<Material>>,
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

    /// Opens a store. `passphrase` is used where its root key is sealed under one.
    pub fn open(dir: &Path, passphrase: Option<&str>) -> Result<Self, KmsError> {
        let key = root::unlock(dir, passphrase)?;
        let engine = Self::on(dir, key);
        engine.store.stamp()?;
        Ok(engine)
    }

    /// The same store under other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Where the store is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn on(dir: &Path, key: SealKey) -> Self {
        let memory =
            Memory { stamp: None, keys: HashMap::new(), materials: LruCache::new(REMEMBERED_MATERIALS) };
        Self {
            dir: dir.into(),
            store: Store::at(dir, key),
            limits: Limits::default(),
            memory: Mutex::new(memory),
        }
    }

    /// The key that a caller names by id, ARN, alias or alias ARN.
    pub(super) fn resolve(&self, name: &str) -> Result<Arc<KeyRecord>, KmsError> {
        match KeyRef::parse(name)? {
            KeyRef::Id(id) => self.key(&id),
            KeyRef::Alias(alias) => {
                let record: AliasRecord =
                    self.store.read(|r| r.get(ALIASES, &alias)?.ok_or_else(|| no_alias(&alias).into()))?;
                self.key(&record.target)
            }
        }
    }

    /// The record of a key: remembered while the store did not change, else read.
    pub(super) fn key(&self, id: &str) -> Result<Arc<KeyRecord>, KmsError> {
        // Before the read: a change between the two makes the record newer than its stamp, never older.
        let stamp = self.store.stamp()?;
        {
            let memory = self.memory.lock();
            if let Some(record) = memory.keys.get(id).filter(|_| memory.stamp == Some(stamp)) {
                return Ok(record.clone());
            }
        }
        let record: Arc<KeyRecord> = Arc::new(self.store.read(|r| key_in(r, id))?);
        if stamp.is_settled() {
            let mut memory = self.memory.lock();
            if memory.stamp != Some(stamp) || memory.keys.len() >= REMEMBERED_KEYS {
                memory.keys.clear();
                memory.stamp = Some(stamp);
            }
            memory.keys.insert(id.to_owned(), record.clone());
        }
        Ok(record)
    }

    /// The keys of a key material: remembered, else unsealed from the store.
    pub(super) fn material(&self, id: &str) -> Result<Arc<Material>, KmsError> {
        if let Some(material) = self.memory.lock().materials.get(id) {
            return Ok(material.clone());
        }
        let raw = self.store.read(|r| r.bytes(MATERIALS, id))?;
        let secret = raw.and_then(|raw| Secret::from_slice(&raw));
        let secret = secret.ok_or_else(|| KmsError::Damaged {
            path: self.dir.clone(),
            why: format!("key material {id} is missing"),
        })?;
        let uses = [labels::BLOB_KEY, labels::COMPACT_KEY];
        let [blob, compact] = derive::hkdf_each(secret.expose(), &[], uses).map(SealKey::new);
        let material = Arc::new(Material { blob, compact });
        self.memory.lock().materials.put(id.to_owned(), material.clone());
        Ok(material)
    }
}

fn key_in(reader: &Reader<'_>, id: &str) -> Result<KeyRecord, super::store::Fault> {
    reader.get(KEYS, id)?.ok_or_else(|| no_key(id).into())
}

pub(super) fn no_key(id: &str) -> KmsError {
    KmsError::NotFound(format!("Key '{}' does not exist", arn::key_arn(id)))
}

pub(super) fn no_alias(alias: &str) -> KmsError {
    KmsError::NotFound(format!("Alias {} is not found.", arn::alias_arn(alias)))
}

/// Refuses to use a key that is not enabled.
pub(super) fn usable(record: &KeyRecord) -> Result<(), KmsError> {
    if record.enabled { Ok(()) } else { Err(KmsError::Disabled(record.arn())) }
}

/// Seals the root key of the store in `dir` anew, under another passphrase or a key file.
pub fn reprotect(dir: &Path, passphrase: Option<&str>, new: &Protection) -> Result<(), KmsError> {
    root::reprotect(dir, passphrase, new, Cost::default())
}
