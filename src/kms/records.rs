//! What the store keeps of a key, and what a caller is shown of it, under AWS's names.
//!
//! Fields with a default came after the first cut: its records, which lack them, are symmetric keys of the home scope.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::arn::Scope;
use super::spec::{KeySpec, KeyUsage, Manager, Origin, RotationKind};

/// A key as the store keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct KeyRecord {
    pub(super) id: String,
    pub(super) description: String,
    pub(super) created_ms: u64,
    pub(super) enabled: bool,
    /// Version `n` of the key is entry `n - 1`; the last one is current. Only ever grows.
    pub(super) materials: Vec<MaterialRef>,
    #[serde(default = "Scope::home")]
    pub(super) scope: Scope,
    #[serde(default = "symmetric")]
    pub(super) spec: KeySpec,
    #[serde(default = "encrypts")]
    pub(super) usage: KeyUsage,
    #[serde(default = "made_here")]
    pub(super) origin: Origin,
    #[serde(default = "customer")]
    pub(super) manager: Manager,
    /// Key policy; the default policy where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) policy: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) tags: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) deletion: Option<Deletion>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rotation: Option<Rotation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) family: Option<Family>,
    /// Imported material that waits for RotateKeyOnDemand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pending: Option<MaterialRef>,
    /// Id of the custom key store that holds the material.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key_store: Option<String>,
}

/// One version of a key's material.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct MaterialRef {
    /// KeyMaterialId: 64 hexadecimal digits.
    pub(super) id: String,
    pub(super) created_ms: u64,
    /// What made it current; nothing for the first one, and for rotations by the first cut (on demand, all of them).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rotated: Option<RotationKind>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) import: Option<Import>,
}

/// How imported material is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Import {
    /// When it is forgotten, in milliseconds since the epoch.
    #[serde(default)]
    pub(super) expires_ms: Option<u64>,
    /// Whether its bytes are here now.
    pub(super) present: bool,
    /// Tells whether the same material is imported again: SHA-256 of key id and material.
    pub(super) fingerprint: String,
    #[serde(default)]
    pub(super) description: Option<String>,
}

/// A deletion that was scheduled.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Deletion {
    pub(super) days: u32,
    /// When the key is deleted; nothing while replicas of it live.
    pub(super) at_ms: Option<u64>,
}

/// Automatic rotation.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Rotation {
    pub(super) period_days: u32,
    pub(super) next_ms: u64,
}

/// Where the related multi-region keys are. The same in all of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Family {
    pub(super) primary: String,
    /// Regions of the replicas, in the order they were made.
    pub(super) replicas: Vec<String>,
}

/// An alias as the store keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct AliasRecord {
    /// Slot of the key.
    pub(super) target: String,
    pub(super) created_ms: u64,
    pub(super) updated_ms: u64,
}

fn symmetric() -> KeySpec {
    KeySpec::Symmetric
}

fn encrypts() -> KeyUsage {
    KeyUsage::EncryptDecrypt
}

fn made_here() -> Origin {
    Origin::AwsKms
}

fn customer() -> Manager {
    Manager::Customer
}

impl MaterialRef {
    /// Whether its bytes can be had.
    pub(super) fn is_present(&self) -> bool {
        self.import.as_ref().is_none_or(|i| i.present)
    }
}

impl KeyRecord {
    /// Number of the version that wraps now.
    pub(super) fn current(&self) -> u16 {
        u16::try_from(self.materials.len()).expect("rotation stops before 65,535 versions")
    }

    pub(super) fn material(&self, version: u16) -> Option<&MaterialRef> {
        self.materials.get(usize::from(version).checked_sub(1)?)
    }

    pub(super) fn arn(&self) -> String {
        self.scope.key_arn(&self.id)
    }

    /// Where the store keeps it.
    pub(super) fn slot(&self) -> String {
        self.scope.key_slot(&self.id)
    }

    /// Whether it is a multi-region key's primary.
    pub(super) fn is_primary(&self) -> bool {
        self.family.as_ref().is_some_and(|f| f.primary == self.scope.region)
    }

    /// When something is to be done to it, in milliseconds since the epoch: deletion, rotation, expiry of material.
    pub(super) fn due_ms(&self) -> Option<u64> {
        let deletion = self.deletion.and_then(|d| d.at_ms);
        let rotates = self.enabled && self.deletion.is_none();
        let rotation = self.rotation.filter(|_| rotates).map(|r| r.next_ms);
        let expiry = self.imports().filter(|i| i.present).filter_map(|i| i.expires_ms).min();
        [deletion, rotation, expiry].into_iter().flatten().min()
    }

    /// Its imported materials, the one that waits included.
    pub(super) fn imports(&self) -> impl Iterator<Item = &Import> {
        self.materials.iter().chain(&self.pending).filter_map(|m| m.import.as_ref())
    }

    pub(super) fn metadata(&self) -> KeyMetadata {
        KeyMetadata {
            key_id: self.id.clone(),
            arn: self.arn(),
            creation_date: seconds(self.created_ms),
            enabled: self.enabled,
            description: self.description.clone(),
            key_state: super::state::stored(self).name(),
            current_key_material_id: self.materials.last().map(|m| m.id.clone()).unwrap_or_default(),
            version: self.current(),
            json: self.json(super::state::stored(self).name(), None),
        }
    }

    /// AWS's KeyMetadata; `state` as an operation finds it, `cluster` of its custom key store.
    pub(super) fn json(&self, state: &str, cluster: Option<&str>) -> Value {
        let mut out = json!({
            "AWSAccountId": self.scope.account,
            "Arn": self.arn(),
            "CreationDate": seconds(self.created_ms),
            "CustomerMasterKeySpec": self.spec.name(),
            "Description": self.description,
            "Enabled": state == "Enabled",
            "KeyId": self.id,
            "KeyManager": self.manager.name(),
            "KeySpec": self.spec.name(),
            "KeyState": state,
            "KeyUsage": self.usage.name(),
            "MultiRegion": self.family.is_some(),
            "Origin": self.origin.name(),
        });
        out[self.usage.algorithms_field()] = json!(self.spec.algorithms(self.usage));
        if let Some(deletion) = self.deletion {
            match deletion.at_ms {
                Some(at) => out["DeletionDate"] = json!(seconds(at)),
                None => out["PendingDeletionWindowInDays"] = json!(deletion.days),
            }
        }
        if self.origin == Origin::External
            && let Some(import) = self.materials.last().and_then(|m| m.import.as_ref()).filter(|i| i.present)
        {
            out["ExpirationModel"] = json!(expiration_model(import));
            if let Some(at) = import.expires_ms {
                out["ValidTo"] = json!(seconds(at));
            }
        }
        if let (KeySpec::Symmetric, Some(current)) = (self.spec, self.materials.last())
            && current.is_present()
            && self.key_store.is_none()
        {
            out["CurrentKeyMaterialId"] = json!(current.id);
        }
        if let Some(store) = &self.key_store {
            out["CustomKeyStoreId"] = json!(store);
            if let Some(cluster) = cluster {
                out["CloudHsmClusterId"] = json!(cluster);
            }
        }
        if let Some(family) = &self.family {
            out["MultiRegionConfiguration"] = self.family_json(family);
        }
        out
    }

    fn family_json(&self, family: &Family) -> Value {
        let one = |region: &String| {
            let scope = Scope { account: self.scope.account.clone(), region: region.clone() };
            json!({ "Arn": scope.key_arn(&self.id), "Region": region })
        };
        json!({
            "MultiRegionKeyType": if self.is_primary() { "PRIMARY" } else { "REPLICA" },
            "PrimaryKey": one(&family.primary),
            "ReplicaKeys": family.replicas.iter().map(one).collect::<Vec<_>>(),
        })
    }
}

/// AWS's ExpirationModel of imported material.
pub(super) fn expiration_model(import: &Import) -> &'static str {
    if import.expires_ms.is_some() { "KEY_MATERIAL_EXPIRES" } else { "KEY_MATERIAL_DOES_NOT_EXPIRE" }
}

impl AliasRecord {
    pub(super) fn entry(&self, scope: &Scope, name: &str) -> AliasEntry {
        AliasEntry {
            alias_name: name.to_owned(),
            alias_arn: scope.alias_arn(name),
            target_key_id: key_id(&self.target).to_owned(),
            creation_date: seconds(self.created_ms),
            last_updated_date: seconds(self.updated_ms),
        }
    }
}

/// The key id of a slot.
pub(super) fn key_id(slot: &str) -> &str {
    slot.split_once('@').map_or(slot, |(id, _)| id)
}

/// AWS's KeyMetadata. As JSON it has all of AWS's fields.
#[derive(Clone, PartialEq, Debug)]
pub struct KeyMetadata {
    /// UUID.
    pub key_id: String,
    /// Key ARN.
    pub arn: String,
    /// Seconds since the epoch.
    pub creation_date: f64,
    /// Whether it encrypts and decrypts.
    pub enabled: bool,
    /// As given to CreateKey.
    pub description: String,
    /// `Enabled`, `Disabled`, `PendingDeletion`, ...
    pub key_state: &'static str,
    /// 64 hexadecimal digits.
    pub current_key_material_id: String,
    /// Version that wraps now, from 1. AWS shows no such number.
    pub version: u16,
    json: Value,
}

impl Serialize for KeyMetadata {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json.serialize(serializer)
    }
}

/// AWS's AliasListEntry.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AliasEntry {
    /// `alias/NAME`.
    pub alias_name: String,
    /// Alias ARN.
    pub alias_arn: String,
    /// The key it stands for.
    pub target_key_id: String,
    /// Seconds since the epoch.
    pub creation_date: f64,
    /// Seconds since the epoch.
    pub last_updated_date: f64,
}

/// AWS's KeyListEntry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct KeyEntry {
    /// UUID.
    pub key_id: String,
    /// Key ARN.
    pub key_arn: String,
}

/// AWS's RotationsListEntry.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RotationEntry {
    /// Key ARN's id.
    pub key_id: String,
    /// The material that became current.
    pub key_material_id: String,
    /// `CURRENT` or `NON_CURRENT`.
    pub key_material_state: &'static str,
    /// Seconds since the epoch.
    pub rotation_date: f64,
    /// `ON_DEMAND` or `AUTOMATIC`.
    pub rotation_type: &'static str,
}

/// AWS writes times as seconds with a fraction.
#[expect(clippy::cast_precision_loss, reason = "milliseconds since the epoch take 41 of a double's 53 bits")]
pub(super) fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

/// Now, in milliseconds since the epoch.
pub(super) fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
