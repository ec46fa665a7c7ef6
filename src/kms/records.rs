//! What the store keeps of a key, and what a caller is shown of it, under AWS's names.

use serde::{Deserialize, Serialize};

use super::arn;

/// A key as the store keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct KeyRecord {
    pub(super) id: String,
    pub(super) description: String,
    pub(super) created_ms: u64,
    pub(super) enabled: bool,
    /// Version `n` of the key is entry `n - 1`; the last one is current. Only ever grows.
    pub(super) materials: Vec<MaterialRef>,
}

/// One version of a key's material.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct MaterialRef {
    /// KeyMaterialId: 64 hexadecimal digits.
    pub(super) id: String,
    pub(super) created_ms: u64,
}

/// An alias as the store keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct AliasRecord {
    pub(super) target: String,
    pub(super) created_ms: u64,
    pub(super) updated_ms: u64,
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
        arn::key_arn(&self.id)
    }

    pub(super) fn metadata(&self) -> KeyMetadata {
        KeyMetadata {
            account: "000000000000",
            key_id: self.id.clone(),
            arn: self.arn(),
            creation_date: seconds(self.created_ms),
            enabled: self.enabled,
            description: self.description.clone(),
            key_usage: "ENCRYPT_DECRYPT",
            key_state: if self.enabled { "Enabled" } else { "Disabled" },
            origin: "AWS_KMS",
            key_manager: "CUSTOMER",
            customer_master_key_spec: "SYMMETRIC_DEFAULT",
            key_spec: "SYMMETRIC_DEFAULT",
            encryption_algorithms: ["SYMMETRIC_DEFAULT"],
            multi_region: false,
            current_key_material_id: self.materials.last().map(|m| m.id.clone()).unwrap_or_default(),
            version: self.current(),
        }
    }
}

impl AliasRecord {
    pub(super) fn entry(&self, name: &str) -> AliasEntry {
        AliasEntry {
            alias_name: name.to_owned(),
            alias_arn: arn::alias_arn(name),
            target_key_id: self.target.clone(),
            creation_date: seconds(self.created_ms),
            last_updated_date: seconds(self.updated_ms),
        }
    }
}

/// AWS's KeyMetadata.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct KeyMetadata {
    #[serde(rename = "AWSAccountId")]
    account: &'static str,
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
    key_usage: &'static str,
    /// `Enabled` or `Disabled`.
    pub key_state: &'static str,
    origin: &'static str,
    key_manager: &'static str,
    customer_master_key_spec: &'static str,
    key_spec: &'static str,
    encryption_algorithms: [&'static str; 1],
    multi_region: bool,
    /// 64 hexadecimal digits.
    pub current_key_material_id: String,
    /// Version that wraps now, from 1. AWS shows no such number.
    #[serde(skip)]
    pub version: u16,
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
    /// `ON_DEMAND`.
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
