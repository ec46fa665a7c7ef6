//! What a call offers to conditions: the KMS condition keys and the `aws:` keys that mean something here
//! (AWS KMS Developer Guide, conditions-kms; IAM User Guide, reference_policies_condition-keys).
//!
//! A key whose parameter has a default is there without the parameter too, as AWS documents it; two are not
//! (`kms:BypassPolicyLockoutSafetyCheck`, `kms:ExpirationModel`), so that `Null` can ask for them, also as documented. Not here: keys of
//! organisations, VPC end points, MFA and Nitro attestation, which a local KMS has not got; they are absent.

use std::collections::BTreeMap;

use serde_json::Value;

use super::conditions::Conditions;
use super::principal::{Caller, account_of};

/// The key that an operation uses, as conditions may ask for it.
#[derive(Clone, Copy, Debug)]
pub struct KeyFacts<'a> {
    /// `SYMMETRIC_DEFAULT`, `RSA_2048`, ...
    pub spec: &'a str,
    /// `ENCRYPT_DECRYPT`, `SIGN_VERIFY`, ...
    pub usage: &'a str,
    /// `AWS_KMS`, `EXTERNAL`, `AWS_CLOUDHSM`.
    pub origin: &'a str,
    /// Of a multi-Region key: `PRIMARY` or `REPLICA`.
    pub multi_region: Option<&'a str>,
    /// Its aliases, as `alias/NAME`.
    pub aliases: &'a [String],
    /// Its tags.
    pub tags: &'a BTreeMap<String, String>,
}

/// A call, before it is decided.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Who.
    pub principal_arn: &'a str,
    /// What, as `kms:Decrypt`; the halves of ReEncrypt as `kms:ReEncryptFrom` and `kms:ReEncryptTo`.
    pub action: &'a str,
    /// The request's parameters, as AWS's JSON.
    pub params: &'a Value,
    /// The key, where the operation uses one.
    pub key: Option<KeyFacts<'a>>,
    /// ARN of what is used; `*` for none.
    pub resource_arn: &'a str,
    /// The Region that was called.
    pub region: &'a str,
    /// The caller's address; `None` for a call inside the process or through a Unix socket.
    pub source_ip: Option<&'a str>,
    /// The service that calls for the principal, as `envelopefs.eu-central-1.amazonaws.com`.
    pub via_service: Option<&'a str>,
    /// What the client calls itself.
    pub user_agent: Option<&'a str>,
    /// Whether the call came through TLS.
    pub secure: bool,
    /// Milliseconds since 1970.
    pub now_ms: u64,
    /// Of ReEncrypt: whether source and destination are one key.
    pub same_key: Option<bool>,
    /// Tags of the principal.
    pub principal_tags: Option<&'a BTreeMap<String, String>>,
}

/// Condition keys that are a parameter's value: key, operations (a prefix that ends in `*` stands for several),
/// parameter, value where the parameter is not given.
const FROM_PARAMETERS: &[(&str, &[&str], &str, Option<&str>)] = &[
    (
        "kms:BypassPolicyLockoutSafetyCheck",
        &["CreateKey", "PutKeyPolicy", "ReplicateKey"],
        "BypassPolicyLockoutSafetyCheck",
        None,
    ),
    ("kms:DataKeyPairSpec", &["GenerateDataKeyPair*"], "KeyPairSpec", None),
    ("kms:EncryptionAlgorithm", &["Encrypt", "Decrypt"], "EncryptionAlgorithm", Some("SYMMETRIC_DEFAULT")),
    ("kms:EncryptionAlgorithm", &["GenerateDataKey*"], "", Some("SYMMETRIC_DEFAULT")),
    ("kms:EncryptionAlgorithm", &["ReEncryptFrom"], "SourceEncryptionAlgorithm", Some("SYMMETRIC_DEFAULT")),
    (
        "kms:EncryptionAlgorithm",
        &["ReEncryptTo"],
        "DestinationEncryptionAlgorithm",
        Some("SYMMETRIC_DEFAULT"),
    ),
    ("kms:ExpirationModel", &["ImportKeyMaterial"], "ExpirationModel", None),
    ("kms:GranteePrincipal", &["CreateGrant"], "GranteePrincipal", None),
    ("kms:KeyAgreementAlgorithm", &["DeriveSharedSecret"], "KeyAgreementAlgorithm", None),
    ("kms:MacAlgorithm", &["GenerateMac", "VerifyMac"], "MacAlgorithm", None),
    ("kms:MessageType", &["Sign", "Verify"], "MessageType", Some("RAW")),
    ("kms:PrimaryRegion", &["UpdatePrimaryRegion"], "PrimaryRegion", None),
    ("kms:ReplicaRegion", &["ReplicateKey"], "ReplicaRegion", None),
    ("kms:RetiringPrincipal", &["CreateGrant"], "RetiringPrincipal", None),
    ("kms:RotationPeriodInDays", &["EnableKeyRotation"], "RotationPeriodInDays", Some("365")),
    (
        "kms:ScheduleKeyDeletionPendingWindowInDays",
        &["ScheduleKeyDeletion"],
        "PendingWindowInDays",
        Some("30"),
    ),
    ("kms:SigningAlgorithm", &["Sign", "Verify"], "SigningAlgorithm", None),
    ("kms:ValidTo", &["ImportKeyMaterial"], "ValidTo", None),
    ("kms:WrappingAlgorithm", &["GetParametersForImport"], "WrappingAlgorithm", None),
    ("kms:WrappingKeySpec", &["GetParametersForImport"], "WrappingKeySpec", None),
    // What a new key will be; of a key that is there, `KeyFacts` says it.
    ("kms:KeySpec", &["CreateKey"], "KeySpec", Some("SYMMETRIC_DEFAULT")),
    ("kms:KeyUsage", &["CreateKey"], "KeyUsage", Some("ENCRYPT_DECRYPT")),
    ("kms:KeyOrigin", &["CreateKey"], "Origin", Some("AWS_KMS")),
    ("kms:MultiRegion", &["CreateKey"], "MultiRegion", Some("false")),
];

impl Call<'_> {
    /// Everything that conditions may ask for.
    pub fn conditions(&self) -> Conditions {
        let mut all = Conditions::default();
        self.about_caller(&mut all);
        self.about_request(&mut all);
        self.about_grant(&mut all);
        self.about_key(&mut all);
        self.about_tags(&mut all);
        if let Some(context) = self.encryption_context() {
            for (key, value) in context {
                all.push(&format!("kms:EncryptionContext:{key}"), value.clone());
                all.push("kms:EncryptionContextKeys", key);
            }
        }
        all
    }

    /// The encryption context of the call: of CreateGrant that of its constraints, of ReEncrypt that of the half.
    /// `None` where the operation has none.
    pub fn encryption_context(&self) -> Option<BTreeMap<String, String>> {
        let member = match self.operation() {
            "CreateGrant" => {
                let constraints = self.params.get("Constraints")?;
                let mut all = pairs(constraints.get("EncryptionContextSubset"));
                all.extend(pairs(constraints.get("EncryptionContextEquals")));
                return Some(all);
            }
            "ReEncryptFrom" => "SourceEncryptionContext",
            "ReEncryptTo" => "DestinationEncryptionContext",
            "Encrypt" | "Decrypt" => "EncryptionContext",
            other if other.starts_with("GenerateDataKey") => "EncryptionContext",
            _ => return None,
        };
        Some(pairs(self.params.get(member)))
    }

    fn operation(&self) -> &str {
        self.action.strip_prefix("kms:").unwrap_or(self.action)
    }

    fn about_caller(&self, all: &mut Conditions) {
        let caller = Caller::new(self.principal_arn);
        all.set("aws:PrincipalType", caller.kind_name());
        all.set("aws:PrincipalIsAWSService", caller.is_service().to_string());
        if caller.is_service() {
            all.set("aws:PrincipalServiceName", self.principal_arn);
        } else {
            all.set("aws:PrincipalArn", caller.principal_arn());
            all.set("aws:PrincipalAccount", caller.account());
            all.set("kms:CallerAccount", caller.account());
        }
        if let Some(name) = caller.user_name() {
            all.set("aws:username", name);
        }
        for (key, value) in self.principal_tags.into_iter().flatten() {
            all.set(&format!("aws:PrincipalTag/{key}"), value.clone());
        }
    }

    fn about_request(&self, all: &mut Conditions) {
        all.set("aws:SecureTransport", self.secure.to_string());
        all.set("aws:RequestedRegion", self.region);
        all.set("aws:EpochTime", (self.now_ms / 1000).to_string());
        let now = i64::try_from(self.now_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        if let Some(now) = now {
            all.set("aws:CurrentTime", now.to_string());
        }
        if !account_of(self.resource_arn).is_empty() {
            all.set("aws:ResourceAccount", account_of(self.resource_arn));
        }
        if let Some(ip) = self.source_ip {
            all.set("aws:SourceIp", ip);
        }
        if let Some(agent) = self.user_agent {
            all.set("aws:UserAgent", agent);
        }
        all.set("aws:ViaAWSService", self.via_service.is_some().to_string());
        if let Some(service) = self.via_service {
            all.set("kms:ViaService", service);
        }
        if let Some(same) = self.same_key {
            all.set("kms:ReEncryptOnSameKey", same.to_string());
        }
        for (key, operations, parameter, default) in FROM_PARAMETERS {
            if !operations.iter().any(|o| is_operation(o, self.operation())) {
                continue;
            }
            let given = self.params.get(parameter).and_then(text);
            if let Some(value) = given.or(default.map(str::to_owned)) {
                all.set(key, value);
            }
        }
        let named = self.params.get("KeyId").and_then(Value::as_str).and_then(alias_name);
        if let Some(alias) = named {
            all.set("kms:RequestAlias", alias);
        }
    }

    fn about_grant(&self, all: &mut Conditions) {
        let operation = self.operation();
        if ["CreateGrant", "ListGrants", "RevokeGrant"].contains(&operation) {
            all.set("kms:GrantIsForAWSResource", self.via_service.is_some().to_string());
        }
        if operation != "CreateGrant" {
            return;
        }
        for name in self.params.get("Operations").and_then(Value::as_array).into_iter().flatten() {
            all.push("kms:GrantOperations", name.as_str().unwrap_or_default());
        }
        for kind in ["EncryptionContextEquals", "EncryptionContextSubset"] {
            if self.params.get("Constraints").is_some_and(|c| c.get(kind).is_some_and(|v| !v.is_null())) {
                all.push("kms:GrantConstraintType", kind);
            }
        }
    }

    fn about_key(&self, all: &mut Conditions) {
        let Some(key) = &self.key else { return };
        all.set("kms:KeySpec", key.spec);
        all.set("kms:CustomerMasterKeySpec", key.spec);
        all.set("kms:KeyUsage", key.usage);
        all.set("kms:CustomerMasterKeyUsage", key.usage);
        all.set("kms:KeyOrigin", key.origin);
        all.set("kms:MultiRegion", key.multi_region.is_some().to_string());
        if let Some(kind) = key.multi_region {
            all.set("kms:MultiRegionKeyType", kind);
        }
        for alias in key.aliases {
            all.push("kms:ResourceAliases", alias.clone());
        }
        for (tag, value) in key.tags {
            all.set(&format!("aws:ResourceTag/{tag}"), value.clone());
        }
    }

    fn about_tags(&self, all: &mut Conditions) {
        for tag in self.params.get("Tags").and_then(Value::as_array).into_iter().flatten() {
            let (Some(key), Some(value)) =
                (tag.get("TagKey").and_then(text), tag.get("TagValue").and_then(text))
            else {
                continue;
            };
            all.set(&format!("aws:RequestTag/{key}"), value);
            all.push("aws:TagKeys", key);
        }
        for key in self.params.get("TagKeys").and_then(Value::as_array).into_iter().flatten() {
            all.push("aws:TagKeys", key.as_str().unwrap_or_default());
        }
    }
}

fn is_operation(pattern: &str, operation: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => operation.starts_with(prefix),
        None => pattern == operation,
    }
}

/// `alias/NAME` of an alias or its ARN.
fn alias_name(key: &str) -> Option<&str> {
    let name = if key.starts_with("arn:") { key.splitn(6, ':').nth(5)? } else { key };
    name.starts_with("alias/").then_some(name)
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(s) => Some(s.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn pairs(value: Option<&Value>) -> BTreeMap<String, String> {
    let members = value.and_then(Value::as_object).into_iter().flatten();
    members.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect()
}
