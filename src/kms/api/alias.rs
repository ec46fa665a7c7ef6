//! CreateAlias, UpdateAlias, DeleteAlias, ListAliases.

use serde_json::{Value, json};

use super::call::Call;
use super::paging::Page;
use crate::kms::arn::{self, ALIAS_PREFIX};
use crate::kms::engine::{Engine, key_in, no_alias};
use crate::kms::error::KmsError;
use crate::kms::keys::{aliases, remove_alias, write_alias};
use crate::kms::records::{AliasRecord, KeyRecord};
use crate::kms::rotate::{aliases_in, aliases_of};
use crate::kms::state;
use crate::kms::table::{ALIASES, View};

/// Entries of a page where the caller names no number (AWS).
const DEFAULT_PAGE: usize = 50;

fn target(engine: &Engine, call: &Call<'_>) -> Result<std::sync::Arc<KeyRecord>, KmsError> {
    let name = call.need("TargetKeyId")?;
    if name.starts_with(ALIAS_PREFIX) || name.contains(":alias/") {
        return Err(KmsError::Validation("Aliases must refer to keys. Not aliases".into()));
    }
    let record = engine.key_for(call, "TargetKeyId")?;
    if record.scope != *call.scope() {
        return Err(crate::kms::engine::no_key(&record.scope, &record.id));
    }
    Ok(record)
}

pub(super) fn create(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let alias = call.need("AliasName")?;
    arn::check_alias(alias)?;
    engine.authorize_alias(call, alias)?;
    let record = target(engine, call)?;
    state::not_pending_deletion(&record)?;
    engine.put_alias(call.scope(), alias, &record.slot())?;
    Ok(json!({}))
}

pub(super) fn update(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let alias = call.need("AliasName")?;
    arn::check_alias(alias)?;
    engine.authorize_alias(call, alias)?;
    let record = target(engine, call)?;
    let scope = call.scope();
    let now = engine.now();
    engine.index()?;
    // The key that loses the alias is asked, too.
    let slot = scope.alias_slot(alias);
    let old: AliasRecord =
        engine.store.read(|r| Ok(r.get(ALIASES, &slot)?.ok_or_else(|| no_alias(scope, alias))?))?;
    engine.authorize(call, call.action, Some(&*engine.key(&old.target)?))?;
    engine.store.write(|w| {
        let old: AliasRecord = w.get(ALIASES, &slot)?.ok_or_else(|| no_alias(scope, alias))?;
        let (from, to) = (key_in(w, &old.target)?, key_in(w, &record.slot())?);
        state::not_pending_deletion(&to)?;
        if from.usage != to.usage || from.spec.is_asymmetric() != to.spec.is_asymmetric() {
            let text = format!(
                "Alias {alias} cannot be changed from a {} key to a {} key: both must be of the same type and usage.",
                from.usage.name(),
                to.usage.name()
            );
            return Err(KmsError::Validation(text).into());
        }
        remove_alias(w, scope, alias)?;
        write_alias(w, scope, alias, &to.slot(), now)?;
        let record = AliasRecord { target: to.slot(), created_ms: old.created_ms, updated_ms: now };
        w.put(ALIASES, &slot, &record)
    })?;
    Ok(json!({}))
}

pub(super) fn delete(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let alias = call.need("AliasName")?;
    arn::check_alias(alias)?;
    engine.authorize_alias(call, alias)?;
    let scope = call.scope();
    engine.index()?;
    let found: Option<AliasRecord> = engine.store.read(|r| r.get(ALIASES, &scope.alias_slot(alias)))?;
    let found = found.ok_or_else(|| no_alias(scope, alias))?;
    let record = engine.key(&found.target)?;
    call.touches(&record);
    engine.authorize(call, call.action, Some(&record))?;
    engine.store.write(|w| remove_alias(w, scope, alias))?;
    Ok(json!({}))
}

pub(super) fn list(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    engine.authorize(call, call.action, None)?;
    engine.index()?;
    let page = Page::of(call, DEFAULT_PAGE)?;
    let scope = call.scope();
    let of_key = match call.text("KeyId") {
        Some(name) if name.starts_with(ALIAS_PREFIX) || name.contains(":alias/") => {
            return Err(KmsError::NotFound(format!("Invalid keyId '{name}'")));
        }
        Some(name) => Some(engine.resolve_in(name, scope)?.slot()),
        None => None,
    };
    let entries = engine.store.read(|r| {
        let names = match &of_key {
            Some(slot) => aliases_of(r, slot, &page.after, page.fetch())?,
            None => aliases_in(r, scope, &page.after, page.fetch())?,
        };
        aliases(r, scope, names.iter().map(String::as_str))
    })?;
    let entry = |e: crate::kms::records::AliasEntry| {
        let value = serde_json::to_value(&e).unwrap_or_default();
        (e.alias_name, value)
    };
    Ok(page.answer("Aliases", entries.into_iter().map(entry).collect()))
}
