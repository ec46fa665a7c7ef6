//! ReplicateKey, UpdatePrimaryRegion.

use serde_json::{Value, json};

use super::call::Call;
use super::lifecycle::key_by_id;
use super::{policy, tags};
use crate::kms::arn::Scope;
use crate::kms::engine::{Engine, key_in};
use crate::kms::error::KmsError;
use crate::kms::keys::insert;
use crate::kms::records::{Family, KeyRecord};
use crate::kms::rotate::write_family;
use crate::kms::spec::Origin;
use crate::kms::state::usable;
use crate::kms::table::{KEYS, View};

/// Refuses all but the primary of a multi-region key.
fn primary(record: &KeyRecord) -> Result<Family, KmsError> {
    match &record.family {
        Some(family) if record.is_primary() => Ok(family.clone()),
        _ => Err(KmsError::unsupported(format!("{} is not a multi-region primary key.", record.arn()))),
    }
}

pub(super) fn replicate(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = key_by_id(engine, call)?;
    primary(&record)?;
    usable(&record, engine.state(&record)?)?;
    let tags = tags::given(call)?;
    let policy = policy::given(engine, call, &record)?;
    let region = call.need("ReplicaRegion")?.to_owned();
    let scope = Scope { account: record.scope.account.clone(), region: region.clone() };
    let now = engine.now();
    engine.index()?;
    let replica = engine.store.write(|w| {
        let mut source = key_in(w, &record.slot())?;
        let mut family = primary(&source)?;
        if w.get::<KeyRecord>(KEYS, &scope.key_slot(&source.id))?.is_some() {
            let text = format!("{} already exists", scope.key_arn(&source.id));
            return Err(KmsError::exception("AlreadyExistsException", text).into());
        }
        family.replicas.push(region);
        write_family(w, &mut source, &family)?;
        let mut replica = KeyRecord {
            scope: scope.clone(),
            created_ms: now,
            description: call.text("Description").unwrap_or_default().to_owned(),
            policy,
            tags,
            rotation: None,
            deletion: None,
            pending: None,
            ..source
        };
        // Imported material is imported into each Region.
        if replica.origin == Origin::External {
            replica.materials.clear();
        }
        insert(w, &replica)?;
        Ok(replica)
    })?;
    let metadata = engine.metadata(&replica)?;
    let mut shown = metadata.clone();
    // The replica is ready at once; AWS says so only after a while.
    if shown["KeyState"] == "Enabled" {
        shown["KeyState"] = json!("Creating");
        shown["Enabled"] = json!(false);
    }
    Ok(json!({
        "ReplicaKeyMetadata": shown,
        "ReplicaPolicy": replica.policy_text(),
        "ReplicaTags": replica.tags.iter().map(|(k, v)| json!({ "TagKey": k, "TagValue": v })).collect::<Vec<_>>(),
    }))
}

pub(super) fn update_primary(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = key_by_id(engine, call)?;
    primary(&record)?;
    usable(&record, engine.state(&record)?)?;
    let region = call.need("PrimaryRegion")?.to_owned();
    engine.store.write(|w| {
        let mut old = key_in(w, &record.slot())?;
        let mut family = primary(&old)?;
        let scope = Scope { account: old.scope.account.clone(), region: region.clone() };
        let target: Option<KeyRecord> = w.get(KEYS, &scope.key_slot(&old.id))?;
        let Some(mut target) = target.filter(|_| family.replicas.contains(&region)) else {
            return Err(crate::kms::engine::no_key(&scope, &old.id).into());
        };
        usable(&target, crate::kms::state::stored(&target))?;
        for known in &mut family.replicas {
            if *known == region {
                known.clone_from(&family.primary);
            }
        }
        family.primary = region;
        // Rotation goes with the primary.
        target.rotation = old.rotation.take();
        w.put(KEYS, &target.slot(), &target)?;
        write_family(w, &mut old, &family)
    })?;
    Ok(json!({}))
}
