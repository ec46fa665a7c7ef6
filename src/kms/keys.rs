//! Keys and aliases as the embedded provider and the command line use them, and the writes that every way shares.

use std::sync::atomic::Ordering;

use super::arn::{self, Scope};
use super::engine::{Engine, key_in, no_alias};
use super::error::KmsError;
use super::records::{
    AliasEntry, AliasRecord, KeyEntry, KeyMetadata, KeyRecord, MaterialRef, RotationEntry, seconds,
};
use super::spec::{KeySpec, KeyUsage, Manager, Origin, RotationKind};
use super::store::Fault;
use super::table::{ALIASES, INDEX, KEYS, MATERIALS, View, Writer};
use super::{index, rotate};
use crate::crypto::{Secret, random};

/// The longest description (AWS).
const MAX_DESCRIPTION: usize = 8192;
/// Aliases of one key (AWS resource quotas).
const ALIASES_PER_KEY: usize = 50;
/// Keys of one store (AWS resource quotas).
const MAX_KEYS: u64 = 100_000;

impl Engine {
    /// Makes a symmetric key.
    pub fn create_key(&self, description: &str) -> Result<KeyMetadata, KmsError> {
        check_description(description)?;
        self.index()?;
        let now = self.now();
        self.store.write(|w| Ok(new_symmetric(w, description, now)?.metadata()))
    }

    /// Every key of the home scope.
    pub fn list_keys(&self) -> Result<Vec<KeyEntry>, KmsError> {
        self.index()?;
        let home = Scope::home();
        let ids = self.store.read(|r| r.keys(INDEX, &index::key(&home, ""), "", usize::MAX))?;
        let entry = |name: &String| {
            let id = index::tail(name, '/');
            KeyEntry { key_arn: home.key_arn(id), key_id: id.to_owned() }
        };
        Ok(ids.iter().map(entry).collect())
    }

    /// One key, named by id, ARN, alias or alias ARN.
    pub fn describe_key(&self, key: &str) -> Result<KeyMetadata, KmsError> {
        Ok(self.resolve(key)?.metadata())
    }

    /// Lets a key be used again.
    pub fn enable_key(&self, key: &str) -> Result<(), KmsError> {
        self.switch(&self.resolve(key)?.slot(), true)
    }

    /// Stops all use of a key, without losing anything.
    pub fn disable_key(&self, key: &str) -> Result<(), KmsError> {
        self.switch(&self.resolve(key)?.slot(), false)
    }

    /// Enables or disables a key.
    pub(super) fn switch(&self, slot: &str, enabled: bool) -> Result<(), KmsError> {
        self.change(slot, |_, record| {
            super::state::switchable(record)?;
            record.enabled = enabled;
            Ok(())
        })
    }

    /// Makes an alias for a key.
    pub fn create_alias(&self, alias: &str, key: &str) -> Result<(), KmsError> {
        arn::check_alias(alias)?;
        self.put_alias(&Scope::home(), alias, &self.resolve(key)?.slot())
    }

    /// Makes an alias for the key of a slot.
    pub(super) fn put_alias(&self, scope: &Scope, alias: &str, target: &str) -> Result<(), KmsError> {
        self.index()?;
        let now = self.now();
        self.store.write(|w| {
            if w.get::<AliasRecord>(ALIASES, &scope.alias_slot(alias))?.is_some() {
                return Err(KmsError::AlreadyExists(scope.alias_arn(alias)).into());
            }
            key_in(w, target)?;
            write_alias(w, scope, alias, target, now)
        })
    }

    /// Every alias of the home scope.
    pub fn list_aliases(&self) -> Result<Vec<AliasEntry>, KmsError> {
        self.index()?;
        let home = Scope::home();
        self.store.read(|r| {
            let names = r.keys(INDEX, &index::alias(&home, ""), "", usize::MAX)?;
            aliases(r, &home, names.iter().map(|name| alias_name(name)))
        })
    }

    /// The key behind an alias; key and alias are made, in one transaction, where the alias does not exist.
    pub fn ensure_alias(&self, alias: &str, description: &str) -> Result<KeyMetadata, KmsError> {
        match self.describe_key(alias) {
            Err(KmsError::NotFound(_)) => {}
            other => return other,
        }
        arn::check_alias(alias)?;
        check_description(description)?;
        self.index()?;
        let now = self.now();
        self.store.write(|w| {
            let home = Scope::home();
            // Another process may have been faster.
            if let Some(record) = w.get::<AliasRecord>(ALIASES, &home.alias_slot(alias))? {
                return Ok(key_in(w, &record.target)?.metadata());
            }
            let record = new_symmetric(w, description, now)?;
            write_alias(w, &home, alias, &record.slot(), now)?;
            Ok(record.metadata())
        })
    }

    /// Gives a key new material. What older versions wrapped still unwraps, as long as the key lives.
    pub fn rotate_key_on_demand(&self, key: &str) -> Result<KeyMetadata, KmsError> {
        self.rotate_now(&self.resolve(key)?.slot())?;
        self.describe_key(key)
    }

    /// When a key was rotated, oldest first.
    pub fn list_key_rotations(&self, key: &str) -> Result<Vec<RotationEntry>, KmsError> {
        let record = self.resolve(key)?;
        let last = record.materials.len().saturating_sub(1);
        let entry = |(at, m): (usize, &MaterialRef)| RotationEntry {
            key_id: record.id.clone(),
            key_material_id: m.id.clone(),
            key_material_state: if at == last { "CURRENT" } else { "NON_CURRENT" },
            rotation_date: seconds(m.created_ms),
            rotation_type: m.rotated.unwrap_or(RotationKind::OnDemand).name(),
        };
        Ok(record.materials.iter().enumerate().skip(1).map(entry).collect())
    }

    /// Reads, changes and writes a key's record in one transaction.
    pub(super) fn change(
        &self,
        slot: &str,
        edit: impl FnOnce(&Writer<'_>, &mut KeyRecord) -> Result<(), Fault>,
    ) -> Result<(), KmsError> {
        self.store.write(|w| {
            let mut record = key_in(w, slot)?;
            edit(w, &mut record)?;
            w.put(KEYS, slot, &record)
        })
    }

    /// Puts the keys and aliases of a store that an earlier build made into the index, once.
    pub(super) fn index(&self) -> Result<(), KmsError> {
        if self.indexed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let ready = self.store.read(|r| Ok(!r.keys(INDEX, index::READY, "", 1)?.is_empty()))?;
        if !ready {
            self.store.write(|w| {
                for (_, record) in w.list::<KeyRecord>(KEYS)? {
                    w.mark(&index::key(&record.scope, &record.id))?;
                }
                // Only the home scope has aliases from before there was an index.
                for (name, record) in w.list::<AliasRecord>(ALIASES)? {
                    w.mark(&index::alias(&Scope::home(), &name))?;
                    w.mark(&index::alias_of(&record.target, &name))?;
                }
                w.mark(index::READY)
            })?;
        }
        self.indexed.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// The alias in an index name `s:SCOPE/alias/NAME`.
pub(super) fn alias_name(name: &str) -> &str {
    name.split_once('/').map_or("", |(_, alias)| alias)
}

/// The entries of aliases, by name.
pub(super) fn aliases<'a>(
    view: &impl View,
    scope: &Scope,
    names: impl Iterator<Item = &'a str>,
) -> Result<Vec<AliasEntry>, Fault> {
    let mut all = Vec::new();
    for name in names {
        if let Some(record) = view.get::<AliasRecord>(ALIASES, &scope.alias_slot(name))? {
            all.push(record.entry(scope, name));
        }
    }
    Ok(all)
}

/// Writes a new alias and its places in the index.
pub(super) fn write_alias(
    w: &Writer<'_>,
    scope: &Scope,
    alias: &str,
    target: &str,
    now: u64,
) -> Result<(), Fault> {
    let taken = w.keys(INDEX, &index::alias_of(target, ""), "", ALIASES_PER_KEY)?.len();
    if taken >= ALIASES_PER_KEY {
        let arn = scope.key_arn(super::records::key_id(target));
        return Err(
            KmsError::LimitExceeded(format!("Key {arn} has {ALIASES_PER_KEY} aliases already")).into()
        );
    }
    w.mark(&index::alias(scope, alias))?;
    w.mark(&index::alias_of(target, alias))?;
    let record = AliasRecord { target: target.to_owned(), created_ms: now, updated_ms: now };
    w.put(ALIASES, &scope.alias_slot(alias), &record)
}

/// Removes an alias and its places in the index.
pub(super) fn remove_alias(w: &Writer<'_>, scope: &Scope, alias: &str) -> Result<(), Fault> {
    let slot = scope.alias_slot(alias);
    let record: AliasRecord = w.get(ALIASES, &slot)?.ok_or_else(|| no_alias(scope, alias))?;
    w.remove(INDEX, &index::alias(scope, alias))?;
    w.remove(INDEX, &index::alias_of(&record.target, alias))?;
    w.remove(ALIASES, &slot)?;
    Ok(())
}

/// A symmetric key of the home scope.
fn new_symmetric(w: &Writer<'_>, description: &str, now: u64) -> Result<KeyRecord, Fault> {
    let mut record = blank(Scope::home(), arn::new_key_id(), now);
    record.description = description.to_owned();
    record.materials = vec![rotate::new_material(w, now, None)?];
    insert(w, &record)?;
    Ok(record)
}

/// A record with defaults, without material.
pub(super) fn blank(scope: Scope, id: String, now: u64) -> KeyRecord {
    KeyRecord {
        id,
        description: String::new(),
        created_ms: now,
        enabled: true,
        materials: Vec::new(),
        scope,
        spec: KeySpec::Symmetric,
        usage: KeyUsage::EncryptDecrypt,
        origin: Origin::AwsKms,
        manager: Manager::Customer,
        policy: None,
        tags: Default::default(),
        deletion: None,
        rotation: None,
        family: None,
        pending: None,
        key_store: None,
    }
}

/// Writes a new key and its place in the index.
pub(super) fn insert(w: &Writer<'_>, record: &KeyRecord) -> Result<(), Fault> {
    if w.len(KEYS)? >= MAX_KEYS {
        return Err(KmsError::LimitExceeded(format!("the store has {MAX_KEYS} keys already")).into());
    }
    w.mark(&index::key(&record.scope, &record.id))?;
    w.put(KEYS, &record.slot(), record)
}

/// Random symmetric material; gives its id.
pub(super) fn random_material(w: &Writer<'_>) -> Result<String, Fault> {
    put_material(w, Secret::<32>::random().expose())
}

/// Writes material under a new id.
pub(super) fn put_material(w: &Writer<'_>, bytes: &[u8]) -> Result<String, Fault> {
    let id = super::hex::encode(&random::array::<32>());
    w.put_bytes(MATERIALS, &id, bytes)?;
    Ok(id)
}

pub(super) fn check_description(description: &str) -> Result<(), KmsError> {
    if description.chars().count() <= MAX_DESCRIPTION {
        return Ok(());
    }
    let rule = format!("Member must have length less than or equal to {MAX_DESCRIPTION}");
    Err(KmsError::constraint("description", None, &rule))
}
