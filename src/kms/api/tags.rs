//! TagResource, UntagResource, ListResourceTags.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use super::call::Call;
use super::lifecycle::key_by_id;
use super::paging::{Page, of_list};
use crate::kms::engine::Engine;
use crate::kms::error::KmsError;
use crate::kms::state;

/// Tags of one key (AWS).
const MAX_TAGS: usize = 50;
/// Entries of a page where the caller names no number (AWS).
const DEFAULT_PAGE: usize = 50;

fn refuse(text: &str) -> KmsError {
    KmsError::exception("TagException", text)
}

/// The tags of a request.
pub(super) fn given(call: &Call<'_>) -> Result<BTreeMap<String, String>, KmsError> {
    let items = call.input.get("Tags").and_then(Value::as_array);
    let mut tags = BTreeMap::new();
    for item in items.into_iter().flatten() {
        let field = |name| item.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let key = field("TagKey");
        if key.to_ascii_lowercase().starts_with("aws:") {
            return Err(refuse("Tags beginning with aws: are reserved"));
        }
        if tags.insert(key, field("TagValue")).is_some() {
            return Err(refuse("Duplicate tag keys"));
        }
    }
    if tags.len() > MAX_TAGS { Err(refuse("Too many tags")) } else { Ok(tags) }
}

pub(super) fn tag(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = key_by_id(engine, call)?;
    state::manageable(&record)?;
    let tags = given(call)?;
    engine.change(&record.slot(), |_, r| {
        state::not_pending_deletion(r)?;
        r.tags.extend(tags);
        if r.tags.len() > MAX_TAGS { Err(refuse("Too many tags").into()) } else { Ok(()) }
    })?;
    Ok(json!({}))
}

pub(super) fn untag(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = key_by_id(engine, call)?;
    state::manageable(&record)?;
    let gone: HashSet<&str> = call.list("TagKeys").into_iter().collect();
    engine.change(&record.slot(), |_, r| {
        state::not_pending_deletion(r)?;
        r.tags.retain(|key, _| !gone.contains(key.as_str()));
        Ok(())
    })?;
    Ok(json!({}))
}

pub(super) fn list(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = key_by_id(engine, call)?;
    let page = Page::of(call, DEFAULT_PAGE)?;
    let all = record.tags.iter().map(|(k, v)| json!({ "TagKey": k, "TagValue": v })).collect();
    Ok(of_list(&page, "Tags", all))
}
