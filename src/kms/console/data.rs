//! What the console shows, read from the store, the audit log and the counts.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::MAX_BODY;
use crate::kms::audit::time;
use crate::kms::engine::Engine;
use crate::kms::error::KmsError;
use crate::kms::grants::GrantRecord;
use crate::kms::records::KeyRecord;
use crate::kms::report;
use crate::kms::rotate::aliases_of;
use crate::kms::table::{GRANTS, KEYS, View};

/// Keys of one page.
const PAGE: usize = 100;
/// Aliases and grants of a key that are shown, and events.
const SHOWN: usize = 200;

/// The words of a query string.
pub(super) fn words(query: &str) -> BTreeMap<String, String> {
    let plain = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (plain(name), plain(value))).collect()
}

fn row(engine: &Engine, record: &KeyRecord) -> Result<Value, KmsError> {
    let slot = record.slot();
    let (aliases, grants) = engine.store.read(|r| {
        let aliases = aliases_of(r, &slot, "", SHOWN)?;
        let grants = r.keys(GRANTS, &format!("{slot}|"), "", SHOWN)?.len();
        Ok((aliases, grants))
    })?;
    let meta = engine.metadata(record)?;
    let rotation = record.rotation.map(|r| json!({ "days": r.period_days, "next": day(r.next_ms) }));
    Ok(json!({
        "id": record.id, "arn": record.arn(), "description": record.description, "state": meta["KeyState"],
        "spec": record.spec.name(), "usage": record.usage.name(), "origin": record.origin.name(),
        "manager": meta["KeyManager"], "created": day(record.created_ms), "region": record.scope.region,
        "account": record.scope.account, "versions": record.materials.len(), "rotation": rotation,
        "aliases": aliases, "grants": grants,
    }))
}

fn day(ms: u64) -> String {
    time(ms).chars().take(10).collect()
}

/// A page of keys, those that the search word is part of: of id, description or an alias.
pub(super) fn keys(engine: &Engine, words: &BTreeMap<String, String>) -> Result<Value, KmsError> {
    engine.index()?;
    let wanted = words.get("q").map(|q| q.to_lowercase()).unwrap_or_default();
    let after = words.get("after").cloned().unwrap_or_default();
    let all = engine.store.read(|r| {
        let mut all = Vec::new();
        for (slot, record) in r.list::<KeyRecord>(KEYS)? {
            let plain = wanted.is_empty()
                || record.id.contains(&wanted)
                || record.description.to_lowercase().contains(&wanted);
            let named = || aliases_of(r, &slot, "", SHOWN);
            if plain || named()?.iter().any(|a| a.to_lowercase().contains(&wanted)) {
                all.push((slot, record));
            }
        }
        Ok(all)
    })?;
    let rest: Vec<_> = all.iter().filter(|(slot, _)| after.is_empty() || *slot > after).collect();
    let shown = rest.get(..PAGE).unwrap_or(&rest);
    let rows = shown.iter().map(|(_, record)| row(engine, record)).collect::<Result<Vec<_>, _>>()?;
    let next = (rest.len() > PAGE).then(|| shown.last().map(|(slot, _)| slot.clone())).flatten();
    Ok(json!({ "keys": rows, "total": all.len(), "next": next }))
}

/// One key with its policy and its grants.
pub(super) fn key(engine: &Engine, words: &BTreeMap<String, String>) -> Result<Value, KmsError> {
    let arn = words.get("arn").ok_or_else(|| KmsError::Validation("arn is missing".into()))?;
    let record = engine.resolve(arn)?;
    let mut out = row(engine, &record)?;
    let prefix = format!("{}|", record.slot());
    let grants: Vec<Value> = engine.store.read(|r| {
        let page = r.page::<GrantRecord>(GRANTS, &prefix, "", SHOWN)?;
        Ok(page.into_iter().map(|(_, g)| grant(&g)).collect())
    })?;
    out["grants_list"] = json!(grants);
    out["policy"] = json!(record.policy_text());
    out["tags"] = json!(record.tags.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>());
    Ok(out)
}

fn grant(grant: &GrantRecord) -> Value {
    let bound = |name: &str, pairs: &Option<BTreeMap<String, String>>| {
        pairs.as_ref().map(|p| format!("{name} {}", json!(p)))
    };
    let constraints = [bound("equals", &grant.equals), bound("subset", &grant.subset)];
    json!({
        "id": grant.id, "grantee": grant.grantee, "operations": grant.operations,
        "constraints": constraints.into_iter().flatten().collect::<Vec<_>>().join(", "),
        "retiring": grant.retiring.clone().unwrap_or_default(),
    })
}

/// The last events.
pub(super) fn audit(engine: &Engine, words: &BTreeMap<String, String>) -> Result<Value, KmsError> {
    let events = engine.recent_events(&report::filter(words), SHOWN)?;
    let shown = |e: &Value| {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let parameters = &e["requestParameters"];
        let contexts = ["encryptionContext", "sourceEncryptionContext", "destinationEncryptionContext"];
        let context = contexts.iter().map(|c| &parameters[c]).find(|c| c.is_object());
        let who = text(&e["userIdentity"]["arn"]);
        json!({
            "time": e["eventTime"], "name": e["eventName"],
            "principal": if who.is_empty() { "the service itself".to_owned() } else { who },
            "key": text(&e["resources"][0]["ARN"]), "context": context.map(ToString::to_string),
            "source": e["sourceIPAddress"], "error": e.get("errorCode"),
        })
    };
    Ok(json!({ "events": events.iter().map(shown).collect::<Vec<_>>() }))
}

/// The months, newest first.
pub(super) fn usage(engine: &Engine) -> Result<Value, KmsError> {
    let found = engine.usage_report(&Value::Null)?;
    let month = |m: &Value| {
        json!({
            "month": m["Month"], "total": m["Requests"], "failed": m["Failed"], "classes": m["Classes"],
            "key_months": m["KeyMonths"], "kms": m["KmsCost"], "hsm": m["HsmCost"],
        })
    };
    let months: Vec<_> = found["Months"].as_array().into_iter().flatten().map(month).collect();
    Ok(json!({ "months": months }))
}

/// The simulator, under the policy in the page's field.
pub(super) fn simulate(engine: &Engine, body: &[u8]) -> Result<Value, KmsError> {
    if body.len() > MAX_BODY {
        return Err(KmsError::Validation(format!("the question is longer than {MAX_BODY} bytes")));
    }
    let asked: Value = serde_json::from_slice(body)
        .map_err(|e| KmsError::Validation(format!("the question is no JSON: {e}")))?;
    let identity = &asked["identity_policy"];
    let blank = identity.is_null() || identity.as_str().is_some_and(|text| text.trim().is_empty());
    let mut input = json!({
        "PrincipalArn": asked["principal"], "Action": asked["action"], "KeyId": asked["arn"],
        "KeyPolicy": asked["policy"], "EncryptionContext": asked["encryption_context"],
        "ViaService": asked["via_service"], "SourceIp": asked["source_ip"],
    });
    if !blank {
        input["IdentityPolicies"] = json!([identity]);
    }
    let answer = engine.simulate(&input)?;
    Ok(json!({ "allowed": answer["Allowed"], "by": answer["By"], "message": answer["Message"] }))
}
