//! CreateKey, ListKeys, DescribeKey, EnableKey, DisableKey, aliases, rotation.

use super::arn::{self, KeyRef};
use super::engine::{Engine, no_alias, no_key};
use super::error::KmsError;
use super::records::{
    AliasEntry, AliasRecord, KeyEntry, KeyMetadata, KeyRecord, MaterialRef, RotationEntry, now_ms, seconds,
};
use super::store::Fault;
use super::table::{ALIASES, KEYS, MATERIALS, Writer};
use crate::crypto::{Secret, random};

/// The longest description (AWS).
const MAX_DESCRIPTION: usize = 8192;
/// Aliases of one key (AWS resource quotas).
const ALIASES_PER_KEY: usize = 50;
/// Keys of one store (AWS resource quotas).
const MAX_KEYS: usize = 100_000;

impl Engine {
    /// Makes a symmetric key.
    pub fn create_key(&self, description: &str) -> Result<KeyMetadata, KmsError> {
        check_description(description)?;
        self.store.write(|w| Ok(new_key(w, description)?.metadata()))
    }

    /// Every key.
    pub fn list_keys(&self) -> Result<Vec<KeyEntry>, KmsError> {
        let all = self.store.read(|r| r.list::<KeyRecord>(KEYS))?;
        Ok(all.into_iter().map(|(_, k)| KeyEntry { key_arn: k.arn(), key_id: k.id }).collect())
    }

    /// One key, named by id, ARN, alias or alias ARN.
    pub fn describe_key(&self, key: &str) -> Result<KeyMetadata, KmsError> {
        Ok(self.resolve(key)?.metadata())
    }

    /// Lets a key be used again.
    pub fn enable_key(&self, key: &str) -> Result<(), KmsError> {
        self.change(key, |_, record| {
            record.enabled = true;
            Ok(())
        })
    }

    /// Stops all use of a key, without losing anything.
    pub fn disable_key(&self, key: &str) -> Result<(), KmsError> {
        self.change(key, |_, record| {
            record.enabled = false;
            Ok(())
        })
    }

    /// Makes an alias for a key.
    pub fn create_alias(&self, alias: &str, key: &str) -> Result<(), KmsError> {
        arn::check_alias(alias)?;
        self.store.write(|w| {
            if w.get::<AliasRecord>(ALIASES, alias)?.is_some() {
                return Err(KmsError::AlreadyExists(arn::alias_arn(alias)).into());
            }
            let target = find(w, key)?.id;
            let taken = w.list::<AliasRecord>(ALIASES)?.iter().filter(|(_, a)| a.target == target).count();
            if taken >= ALIASES_PER_KEY {
                let text = format!("Key {} has {ALIASES_PER_KEY} aliases already", arn::key_arn(&target));
                return Err(KmsError::LimitExceeded(text).into());
            }
            let now = now_ms();
            w.put(ALIASES, alias, &AliasRecord { target, created_ms: now, updated_ms: now })
        })
    }

    /// Every alias.
    pub fn list_aliases(&self) -> Result<Vec<AliasEntry>, KmsError> {
        let all = self.store.read(|r| r.list::<AliasRecord>(ALIASES))?;
        Ok(all.into_iter().map(|(name, record)| record.entry(&name)).collect())
    }

    /// The key behind an alias; key and alias are made, in one transaction, where the alias does not exist.
    pub fn ensure_alias(&self, alias: &str, description: &str) -> Result<KeyMetadata, KmsError> {
        match self.describe_key(alias) {
            Err(KmsError::NotFound(_)) => {}
            other => return other,
        }
        arn::check_alias(alias)?;
        check_description(description)?;
        self.store.write(|w| {
            // Another process may have been faster.
            if let Some(record) = w.get::<AliasRecord>(ALIASES, alias)? {
                return Ok(find(w, &record.target)?.metadata());
            }
            let record = new_key(w, description)?;
            let now = now_ms();
            let alias_record = AliasRecord { target: record.id.clone(), created_ms: now, updated_ms: now };
            w.put(ALIASES, alias, &alias_record)?;
            Ok(record.metadata())
        })
    }

    /// Gives a key new material. What older versions wrapped still unwraps, as long as the key lives.
    pub fn rotate_key_on_demand(&self, key: &str) -> Result<KeyMetadata, KmsError> {
        let limit = usize::from(self.limits.on_demand_rotations.min(u16::MAX - 1));
        self.change(key, |w, record| {
            if !record.enabled {
                return Err(KmsError::Disabled(record.arn()).into());
            }
            if record.materials.len() > limit {
                return Err(KmsError::LimitExceeded(format!(
                    "The on-demand rotations limit has been reached for the given keyId. \
                     No more on-demand rotations can be performed for this key: {}",
                    record.arn()
                ))
                .into());
            }
            record.materials.push(new_material(w)?);
            Ok(())
        })?;
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
            rotation_type: "ON_DEMAND",
        };
        Ok(record.materials.iter().enumerate().skip(1).map(entry).collect())
    }

    /// Reads, changes and writes a key's record in one transaction.
    fn change(
        &self,
        key: &str,
        edit: impl FnOnce(&Writer<'_>, &mut KeyRecord) -> Result<(), Fault>,
    ) -> Result<(), KmsError> {
        self.store.write(|w| {
            let mut record = find(w, key)?;
            edit(w, &mut record)?;
            w.put(KEYS, &record.id, &record)
        })
    }
}

fn find(w: &Writer<'_>, key: &str) -> Result<KeyRecord, Fault> {
    let id = match KeyRef::parse(key)? {
        KeyRef::Id(id) => id,
        KeyRef::Alias(alias) => {
            w.get::<AliasRecord>(ALIASES, &alias)?.ok_or_else(|| no_alias(&alias))?.target
        }
    };
    w.get(KEYS, &id)?.ok_or_else(|| no_key(&id).into())
}

fn new_key(w: &Writer<'_>, description: &str) -> Result<KeyRecord, Fault> {
    if w.len(KEYS)? >= MAX_KEYS as u64 {
        return Err(KmsError::LimitExceeded(format!("the store has {MAX_KEYS} keys already")).into());
    }
    let material = new_material(w)?;
    let record = KeyRecord {
        id: arn::new_key_id(),
        description: description.to_owned(),
        created_ms: material.created_ms,
        enabled: true,
        materials: vec![material],
    };
    w.put(KEYS, &record.id, &record)?;
    Ok(record)
}

fn new_material(w: &Writer<'_>) -> Result<MaterialRef, Fault> {
    let id = super::hex::encode(&random::array::<32>());
    w.put_bytes(MATERIALS, &id, Secret::<32>::random().expose())?;
    Ok(MaterialRef { id, created_ms: now_ms() })
}

fn check_description(description: &str) -> Result<(), KmsError> {
    if description.chars().count() <= MAX_DESCRIPTION {
        return Ok(());
    }
    Err(KmsError::Validation(format!(
        "1 validation error detected: Value at 'description' failed to satisfy constraint: \
         Member must have length less than or equal to {MAX_DESCRIPTION}"
    )))
}
