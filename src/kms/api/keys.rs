//! DescribeKey, ListKeys, UpdateKeyDescription, GetKeyLastUsage.

use serde_json::{Value, json};

use super::call::Call;
use super::paging::Page;
use crate::kms::engine::Engine;
use crate::kms::error::KmsError;
use crate::kms::index;
use crate::kms::records::seconds;
use crate::kms::state;
use crate::kms::table::{INDEX, View};

/// Entries of a page where the caller names no number (AWS).
const DEFAULT_PAGE: usize = 100;

pub(super) fn describe(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = engine.key_for(call, "KeyId")?;
    Ok(json!({ "KeyMetadata": engine.metadata(&record)? }))
}

pub(super) fn list(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    engine.authorize(call, call.action, None)?;
    engine.index()?;
    let page = Page::of(call, DEFAULT_PAGE)?;
    let scope = call.scope();
    let prefix = index::key(scope, "");
    let after = if page.after.is_empty() { String::new() } else { index::key(scope, &page.after) };
    let names = engine.store.read(|r| r.keys(INDEX, &prefix, &after, page.fetch()))?;
    let entry = |name: &String| {
        let id = index::tail(name, '/').to_owned();
        let value = json!({ "KeyId": id, "KeyArn": scope.key_arn(&id) });
        (id, value)
    };
    Ok(page.answer("Keys", names.iter().map(entry).collect()))
}

pub(super) fn update_description(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = engine.key_for(call, "KeyId")?;
    state::manageable(&record)?;
    state::not_pending_deletion(&record)?;
    let text = call.text("Description").unwrap_or_default();
    engine.change(&record.slot(), |_, r| {
        text.clone_into(&mut r.description);
        Ok(())
    })?;
    Ok(json!({}))
}

pub(super) fn last_usage(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = engine.key_for(call, "KeyId")?;
    let mut out = json!({
        "KeyId": record.arn(),
        "KeyCreationDate": seconds(record.created_ms),
        "TrackingStartDate": seconds(record.created_ms),
    });
    if let Some(used) = engine.last_use(&record.slot())? {
        out["KeyLastUsage"] = json!({
            "Operation": used.operation,
            "Timestamp": seconds(used.at_ms),
            "CloudTrailEventId": used.request_id,
            "KmsRequestId": used.request_id,
        });
    }
    Ok(out)
}
