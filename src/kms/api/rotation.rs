//! EnableKeyRotation, DisableKeyRotation, GetKeyRotationStatus, RotateKeyOnDemand, ListKeyRotations.

use serde_json::{Value, json};

use super::call::Call;
use super::lifecycle::key_by_id;
use super::paging::{Page, of_list};
use crate::kms::engine::Engine;
use crate::kms::error::KmsError;
use crate::kms::records::{KeyRecord, MaterialRef, Rotation, expiration_model, seconds};
use crate::kms::rotate::{DAY_MS, rotates};
use crate::kms::spec::{KeySpec, Origin, RotationKind};
use crate::kms::state::{self, usable};

/// Rotation period where the caller names none, in days.
const DEFAULT_PERIOD: u32 = 365;
/// Entries of a page where the caller names no number (AWS).
const DEFAULT_PAGE: usize = 100;

/// Refuses automatic rotation of what has none.
fn rotates_by_itself(record: &KeyRecord) -> Result<(), KmsError> {
    rotates(record)?;
    if record.origin == Origin::External {
        let text = format!("{} origin is EXTERNAL which is not valid for this operation.", record.arn());
        return Err(KmsError::unsupported(text));
    }
    Ok(())
}

pub(super) fn enable(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = key_by_id(engine, call)?;
    state::manageable(&record)?;
    rotates_by_itself(&record)?;
    let days = call.number("RotationPeriodInDays").and_then(|n| u32::try_from(n).ok());
    let now = engine.now();
    engine.change(&record.slot(), |_, r| {
        usable(r, state::stored(r))?;
        let period_days = days.or(r.rotation.map(|r| r.period_days)).unwrap_or(DEFAULT_PERIOD);
        r.rotation = Some(Rotation { period_days, next_ms: now + u64::from(period_days) * DAY_MS });
        Ok(())
    })?;
    Ok(json!({}))
}

pub(super) fn disable(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = key_by_id(engine, call)?;
    state::manageable(&record)?;
    rotates_by_itself(&record)?;
    engine.change(&record.slot(), |_, r| {
        usable(r, state::stored(r))?;
        r.rotation = None;
        Ok(())
    })?;
    Ok(json!({}))
}

pub(super) fn status(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = key_by_id(engine, call)?;
    if record.key_store.is_some() || record.spec != KeySpec::Symmetric {
        rotates(&record)?;
    }
    // A key that waits for its deletion does not rotate.
    let rotation = record.rotation.filter(|_| record.deletion.is_none());
    let mut out = json!({ "KeyId": record.arn(), "KeyRotationEnabled": rotation.is_some() });
    if let Some(rotation) = rotation {
        out["RotationPeriodInDays"] = json!(rotation.period_days);
        out["NextRotationDate"] = json!(seconds(rotation.next_ms));
    }
    Ok(out)
}

pub(super) fn on_demand(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = key_by_id(engine, call)?;
    state::manageable(&record)?;
    engine.rotate_now(&record.slot())?;
    Ok(json!({ "KeyId": record.arn() }))
}

pub(super) fn list(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = key_by_id(engine, call)?;
    if record.spec != KeySpec::Symmetric || record.key_store.is_some() {
        rotates(&record)?;
    }
    let page = Page::of(call, DEFAULT_PAGE)?;
    let all = call.text("IncludeKeyMaterial") == Some("ALL_KEY_MATERIAL");
    let last = record.materials.len().saturating_sub(1);
    let mut entries: Vec<Value> = record
        .materials
        .iter()
        .enumerate()
        .skip(usize::from(!all))
        .map(|(at, m)| entry(&record, m, at, if at == last { "CURRENT" } else { "NON_CURRENT" }))
        .collect();
    if let Some(pending) = record.pending.as_ref().filter(|_| all) {
        entries.push(entry(&record, pending, 0, "PENDING_ROTATION"));
    }
    Ok(of_list(&page, "Rotations", entries))
}

fn entry(record: &KeyRecord, material: &MaterialRef, at: usize, state: &str) -> Value {
    let mut out = json!({
        "KeyId": record.arn(),
        "KeyMaterialId": material.id,
        "KeyMaterialState": state,
    });
    if at > 0 {
        out["RotationDate"] = json!(seconds(material.created_ms));
        out["RotationType"] = json!(material.rotated.unwrap_or(RotationKind::OnDemand).name());
    }
    if let Some(import) = &material.import {
        out["ImportState"] = json!(if import.present { "IMPORTED" } else { "PENDING_IMPORT" });
        out["ExpirationModel"] = json!(expiration_model(import));
        if let Some(at) = import.expires_ms {
            out["ValidTo"] = json!(seconds(at));
        }
        if let Some(text) = &import.description {
            out["KeyMaterialDescription"] = json!(text);
        }
    }
    out
}
