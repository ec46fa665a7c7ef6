//! CreateKey, and the keys that the service makes by itself.

use std::sync::Arc;

use serde_json::{Value, json};

use super::call::Call;
use super::{policy, tags};
use crate::crypto::random;
use crate::kms::arn::{self, RESERVED_PREFIX, Scope};
use crate::kms::engine::Engine;
use crate::kms::error::KmsError;
use crate::kms::hsm::StoreRecord;
use crate::kms::keys::{blank, insert, put_material, write_alias};
use crate::kms::pk;
use crate::kms::records::{Family, KeyRecord, MaterialRef, Rotation};
use crate::kms::rotate::{DAY_MS, new_material};
use crate::kms::spec::{KeySpec, KeyUsage, Manager, Origin};
use crate::kms::store::Fault;
use crate::kms::table::{STORES, View, Writer};

/// Services whose AWS-managed key is made when it is first used.
const SERVICES: &[&str] = &[
    "acm",
    "backup",
    "codecommit",
    "dynamodb",
    "ebs",
    "elasticfilesystem",
    "envelopefs",
    "es",
    "fsx",
    "glue",
    "kinesis",
    "kinesisvideo",
    "lambda",
    "lightsail",
    "rds",
    "redshift",
    "s3",
    "secretsmanager",
    "sns",
    "sqs",
    "ssm",
    "xray",
];
/// Actions that make an AWS-managed key by using it.
const FIRST_USES: &[&str] = &[
    "CreateGrant",
    "DescribeKey",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyPair",
    "GenerateDataKeyPairWithoutPlaintext",
    "GenerateDataKeyWithoutPlaintext",
    "ReEncrypt",
];
/// AWS-managed keys are rotated every year.
const MANAGED_PERIOD_DAYS: u32 = 365;

/// What CreateKey was asked for, checked.
struct Wanted<'a> {
    spec: KeySpec,
    usage: KeyUsage,
    origin: Origin,
    multi_region: bool,
    store: Option<&'a str>,
}

pub(super) fn create_key(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let wanted = wanted(call)?;
    let tags = tags::given(call)?;
    engine.authorize(call, "CreateKey", None)?;
    if !tags.is_empty() {
        engine.authorize(call, "TagResource", None)?;
    }
    let now = engine.now();
    let id = if wanted.multi_region { arn::new_mrk_id() } else { arn::new_key_id() };
    let mut record = blank(call.scope().clone(), id, now);
    record.policy = policy::given(engine, call, &record)?;
    record.description = call.text("Description").unwrap_or_default().to_owned();
    (record.spec, record.usage, record.origin, record.tags) =
        (wanted.spec, wanted.usage, wanted.origin, tags);
    if wanted.multi_region {
        record.family = Some(Family { primary: call.scope().region.clone(), replicas: Vec::new() });
    }
    // Before the transaction: an RSA key takes a second, a cluster may take longer.
    let private = match (wanted.origin, wanted.spec.is_asymmetric()) {
        (Origin::AwsKms, true) => Some(pk::generate(wanted.spec).map_err(|_| library_failed())?),
        _ => None,
    };
    if let Some(store) = wanted.store {
        in_cluster(engine, call, &mut record, store, now)?;
    }
    engine.index()?;
    engine.store.write(|w| {
        if record.origin == Origin::AwsKms {
            let material = match &private {
                Some(private) => put_material(w, private)?,
                None => secret_material(w, record.spec)?,
            };
            record.materials =
                vec![MaterialRef { id: material, created_ms: now, rotated: None, import: None }];
        }
        insert(w, &record)
    })?;
    call.touches(&record);
    Ok(json!({ "KeyMetadata": engine.metadata(&record)? }))
}

fn wanted<'a>(call: &'a Call<'_>) -> Result<Wanted<'a>, KmsError> {
    let (new, old) = (call.text("KeySpec"), call.text("CustomerMasterKeySpec"));
    if new.is_some() && old.is_some() {
        let text = "You cannot specify KeySpec and CustomerMasterKeySpec in the same request. CustomerMasterKeySpec is deprecated.";
        return Err(KmsError::Validation(text.into()));
    }
    let spec = new.or(old).and_then(KeySpec::from_name).unwrap_or(KeySpec::Symmetric);
    let usage = match call.text("KeyUsage").and_then(KeyUsage::from_name) {
        Some(usage) => usage,
        None if spec == KeySpec::Symmetric => KeyUsage::EncryptDecrypt,
        None => {
            let text =
                "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys.";
            return Err(KmsError::Validation(text.into()));
        }
    };
    if !spec.usages().contains(&usage) {
        let text = format!("KeyUsage {} is not compatible with KeySpec {}", usage.name(), spec.name());
        return Err(KmsError::Validation(text));
    }
    if spec == KeySpec::Sm2 {
        return Err(KmsError::unsupported("SM2 keys exist in China Regions only."));
    }
    let origin = call.text("Origin").and_then(Origin::from_name).unwrap_or(Origin::AwsKms);
    let store = call.text("CustomKeyStoreId");
    let multi_region = call.flag("MultiRegion");
    let refuse = |text: &str| Err(KmsError::Validation(text.into()));
    match origin {
        Origin::ExternalStore => {
            return Err(KmsError::unsupported("Keys in external key stores are not supported."));
        }
        Origin::CloudHsm if store.is_none() => {
            return refuse("You must specify a CustomKeyStoreId when the Origin is AWS_CLOUDHSM.");
        }
        Origin::CloudHsm if spec != KeySpec::Symmetric || multi_region => {
            return Err(KmsError::unsupported("A custom key store holds symmetric single-Region keys only."));
        }
        Origin::CloudHsm => {}
        _ if store.is_some() => {
            return refuse("Origin must be AWS_CLOUDHSM when a CustomKeyStoreId is specified.");
        }
        Origin::External
            if matches!(spec, KeySpec::MlDsa44 | KeySpec::MlDsa65 | KeySpec::MlDsa87)
                || matches!(spec, KeySpec::MlKem512 | KeySpec::MlKem768 | KeySpec::MlKem1024) =>
        {
            return Err(KmsError::unsupported(format!(
                "KeySpec {} cannot have imported material.",
                spec.name()
            )));
        }
        _ => {}
    }
    Ok(Wanted { spec, usage, origin, multi_region, store })
}

fn secret_material(w: &Writer<'_>, spec: KeySpec) -> Result<String, Fault> {
    let mut bytes = zeroize::Zeroizing::new(vec![0; spec.secret_len().unwrap_or(32)]);
    random::fill(&mut bytes);
    put_material(w, &bytes)
}

/// Makes the key in the cluster of its custom key store. Its label there is the KeyMaterialId.
fn in_cluster(
    engine: &Engine,
    call: &Call<'_>,
    record: &mut KeyRecord,
    store: &str,
    now: u64,
) -> Result<(), KmsError> {
    let found: Option<StoreRecord> = engine.store.read(|r| r.get(STORES, store))?;
    let found = found.filter(|s| s.scope == *call.scope()).ok_or_else(|| super::stores::no_store(store))?;
    if !engine.clusters.is_connected(&found) {
        let text = format!("The custom key store {store} is not connected.");
        return Err(KmsError::exception("CustomKeyStoreInvalidStateException", text));
    }
    let cluster = engine.clusters.find(&found.cluster);
    if cluster.is_none_or(|c| c.active_hsms().unwrap_or(0) < 2) {
        let text = "The AWS CloudHSM cluster must contain at least two active HSMs.";
        return Err(KmsError::exception("CloudHsmClusterInvalidConfigurationException", text));
    }
    let id = crate::kms::hex::encode(&random::array::<32>());
    record.key_store = Some(store.to_owned());
    engine.in_cluster(store, record, |session| session.generate(&id))?;
    record.materials = vec![MaterialRef { id, created_ms: now, rotated: None, import: None }];
    Ok(())
}

pub(super) fn library_failed() -> KmsError {
    KmsError::exception("KMSInternalException", "The crypto library failed.")
}

impl Engine {
    /// The AWS-managed key of an alias `alias/aws/SERVICE`, made now where it is used for the first time.
    pub(in crate::kms) fn managed_key(
        &self,
        name: &str,
        call: &Call<'_>,
    ) -> Result<Option<Arc<KeyRecord>>, KmsError> {
        let scope = call.scope();
        let bare = name.strip_prefix(&scope.alias_arn("")).unwrap_or(name);
        let known = bare.strip_prefix(RESERVED_PREFIX).is_some_and(|s| SERVICES.contains(&s));
        if !known || !FIRST_USES.contains(&call.action) {
            return Ok(None);
        }
        self.index()?;
        let record = self.make_managed(scope, bare)?;
        self.key(&record.slot()).map(Some)
    }

    fn make_managed(&self, scope: &Scope, alias: &str) -> Result<KeyRecord, KmsError> {
        let now = self.now();
        self.store.write(|w| {
            if let Some(found) = w.get::<crate::kms::records::AliasRecord>(
                crate::kms::table::ALIASES,
                &scope.alias_slot(alias),
            )? {
                return crate::kms::engine::key_in(w, &found.target);
            }
            let mut record = blank(scope.clone(), arn::new_key_id(), now);
            record.manager = Manager::Aws;
            record.description = format!(
                "Default key that protects my data when no other key is defined ({})",
                alias.trim_start_matches(RESERVED_PREFIX)
            );
            record.materials = vec![new_material(w, now, None)?];
            record.rotation = Some(Rotation {
                period_days: MANAGED_PERIOD_DAYS,
                next_ms: now + u64::from(MANAGED_PERIOD_DAYS) * DAY_MS,
            });
            insert(w, &record)?;
            write_alias(w, scope, alias, &record.slot(), now)?;
            Ok(record)
        })
    }

    /// AWS's KeyMetadata, with the state as it is now.
    pub(in crate::kms) fn metadata(&self, record: &KeyRecord) -> Result<Value, KmsError> {
        let state = self.state(record)?;
        let cluster = match &record.key_store {
            None => None,
            Some(id) => self.store.read(|r| r.get::<StoreRecord>(STORES, id))?.map(|s| s.cluster),
        };
        Ok(record.json(state.name(), cluster.as_deref()))
    }
}
