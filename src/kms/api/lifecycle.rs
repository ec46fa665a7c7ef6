//! EnableKey, DisableKey, ScheduleKeyDeletion, CancelKeyDeletion.

use std::sync::Arc;

use serde_json::{Value, json};

use super::call::Call;
use crate::kms::arn::ALIAS_PREFIX;
use crate::kms::engine::Engine;
use crate::kms::error::KmsError;
use crate::kms::records::{Deletion, KeyRecord, seconds};
use crate::kms::rotate::{DAY_MS, relatives};
use crate::kms::state::{self, State};
use crate::kms::table::KEYS;

/// Waiting period of a deletion where the caller names none, and its bounds, in days (AWS).
const WAITING: (u64, u64, u64) = (30, 7, 30);

/// The key of an action that takes no alias.
pub(super) fn key_by_id(engine: &Engine, call: &Call<'_>) -> Result<Arc<KeyRecord>, KmsError> {
    let name = call.need("KeyId")?;
    let is_alias = name.starts_with(ALIAS_PREFIX) || name.contains(":alias/");
    if is_alias {
        return Err(KmsError::NotFound(format!("Invalid keyId '{name}'")));
    }
    engine.key_for(call, "KeyId")
}

pub(super) fn enable(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    switch(engine, call, true)
}

pub(super) fn disable(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    switch(engine, call, false)
}

fn switch(engine: &Engine, call: &Call<'_>, enabled: bool) -> Result<Value, KmsError> {
    let record = key_by_id(engine, call)?;
    state::manageable(&record)?;
    engine.switch(&record.slot(), enabled)?;
    Ok(json!({}))
}

pub(super) fn schedule_deletion(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = key_by_id(engine, call)?;
    state::manageable(&record)?;
    let (default, min, max) = WAITING;
    let days = call.number("PendingWindowInDays").unwrap_or(default);
    if !(min..=max).contains(&days) {
        let rule = if days < min { "greater than or equal to 7" } else { "less than or equal to 30" };
        let rule = format!("Member must have value {rule}");
        return Err(KmsError::constraint("pendingWindowInDays", Some(&days.to_string()), &rule));
    }
    let days = u32::try_from(days).expect("at most 30");
    let now = engine.now();
    let mut after = (*record).clone();
    engine.change(&record.slot(), |w, r| {
        state::not_pending_deletion(r)?;
        // A primary outlives its replicas.
        let waits = r.is_primary() && !relatives(w, r)?.is_empty();
        let at_ms = (!waits).then_some(now + u64::from(days) * DAY_MS);
        r.deletion = Some(Deletion { days, at_ms });
        r.enabled = false;
        after = r.clone();
        Ok(())
    })?;
    let mut out = json!({
        "KeyId": record.arn(),
        "KeyState": state::stored(&after).name(),
        "PendingWindowInDays": days,
    });
    if let Some(at) = after.deletion.and_then(|d| d.at_ms) {
        out["DeletionDate"] = json!(seconds(at));
    }
    Ok(out)
}

pub(super) fn cancel_deletion(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = key_by_id(engine, call)?;
    state::manageable(&record)?;
    engine.store.write(|w| {
        let mut r = crate::kms::engine::key_in(w, &record.slot())?;
        match state::stored(&r) {
            State::PendingDeletion | State::PendingReplicaDeletion => {}
            _ => {
                let text = format!("{} is not pending deletion.", r.arn());
                return Err(KmsError::InvalidState(text).into());
            }
        }
        r.deletion = None;
        w.put(KEYS, &r.slot(), &r)
    })?;
    Ok(json!({ "KeyId": record.arn() }))
}
