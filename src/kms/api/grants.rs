//! CreateGrant, ListGrants, ListRetirableGrants, RetireGrant, RevokeGrant.

use serde_json::{Value, json};

use super::call::{Call, missing, pairs};
use super::lifecycle::key_by_id;
use super::paging::Page;
use crate::crypto::random;
use crate::kms::access::Ask;
use crate::kms::arn::is_account;
use crate::kms::engine::Engine;
use crate::kms::error::KmsError;
use crate::kms::grants::{self, GrantRecord};
use crate::kms::policy::{Reason, child_fits};
use crate::kms::records::KeyRecord;
use crate::kms::spec::{KeySpec, KeyUsage};
use crate::kms::state;
use crate::kms::table::{GRANTS, INDEX, View};
use crate::kms::{hex, index};

/// Grants of one key (AWS resource quotas).
const GRANTS_PER_KEY: usize = 50_000;
/// Pairs of a grant constraint (AWS).
const MAX_PAIRS: usize = 8;
/// Grants with one name on one key that are compared for idempotence.
const SAME_NAME: usize = 100;
/// Entries of a page where the caller names no number (AWS).
const DEFAULT_PAGE: usize = 50;

/// Operations that a key of a usage can be granted for, beside those every key has.
fn operations(record: &KeyRecord) -> &'static [&'static str] {
    match (record.usage, record.spec) {
        (KeyUsage::EncryptDecrypt, KeySpec::Symmetric) => &[
            "Decrypt",
            "Encrypt",
            "GenerateDataKey",
            "GenerateDataKeyWithoutPlaintext",
            "GenerateDataKeyPair",
            "GenerateDataKeyPairWithoutPlaintext",
            "ReEncryptFrom",
            "ReEncryptTo",
        ],
        (KeyUsage::EncryptDecrypt, _) => {
            &["Decrypt", "Encrypt", "ReEncryptFrom", "ReEncryptTo", "GetPublicKey"]
        }
        (KeyUsage::SignVerify, _) => &["Sign", "Verify", "GetPublicKey"],
        (KeyUsage::Mac, _) => &["GenerateMac", "VerifyMac"],
        (KeyUsage::Agreement, _) => &["DeriveSharedSecret", "GetPublicKey"],
        (KeyUsage::Encapsulate, _) => &["Encapsulate", "Decapsulate", "GetPublicKey"],
    }
}

/// An ARN of a user, a role, a session or an account.
fn check_principal(text: &str) -> Result<(), KmsError> {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let good = match parts.as_slice() {
        ["arn", partition, "iam" | "sts", "", account, name] => {
            partition.starts_with("aws") && is_account(account) && !name.is_empty()
        }
        [service] => service.ends_with(".amazonaws.com"),
        _ => false,
    };
    if good {
        Ok(())
    } else {
        Err(KmsError::exception("InvalidArnException", format!("ARN is not valid: {text}")))
    }
}

/// The grant that CreateGrant asks for.
fn wanted(engine: &Engine, call: &Call<'_>, record: &KeyRecord) -> Result<GrantRecord, KmsError> {
    let grantee = call
        .text("GranteePrincipal")
        .or_else(|| call.text("GranteeServicePrincipal"))
        .ok_or_else(|| missing("GranteePrincipal"))?;
    let retiring = call.text("RetiringPrincipal").or_else(|| call.text("RetiringServicePrincipal"));
    for principal in std::iter::once(grantee).chain(retiring) {
        check_principal(principal)?;
    }
    let mut operations_wanted: Vec<String> = call.list("Operations").into_iter().map(str::to_owned).collect();
    operations_wanted.sort();
    operations_wanted.dedup();
    let general = ["CreateGrant", "DescribeKey", "RetireGrant"];
    let good = |o: &String| general.contains(&o.as_str()) || operations(record).contains(&o.as_str());
    if let Some(bad) = operations_wanted.iter().find(|o| !good(o)) {
        let text = format!(
            "Grant operation {bad} is not supported for {}: its key usage is {} and its key spec {}.",
            record.arn(),
            record.usage.name(),
            record.spec.name()
        );
        return Err(KmsError::Validation(text));
    }
    if operations_wanted.is_empty() {
        return Err(KmsError::constraint("operations", None, "Member must not be empty"));
    }
    let constraints = call.input.get("Constraints");
    let (equals, subset) = (
        pairs(constraints.and_then(|c| c.get("EncryptionContextEquals"))),
        pairs(constraints.and_then(|c| c.get("EncryptionContextSubset"))),
    );
    if (equals.is_some() || subset.is_some()) && record.spec != KeySpec::Symmetric {
        return Err(KmsError::Validation(
            "Encryption context constraints need a symmetric encryption key.".into(),
        ));
    }
    if [&equals, &subset]
        .into_iter()
        .flatten()
        .any(|p| p.len() > MAX_PAIRS || p.values().any(|v| v.len() > 384))
    {
        let text = "A grant constraint has at most 8 pairs, with values of at most 384 characters.";
        return Err(KmsError::Validation(text.into()));
    }
    Ok(GrantRecord {
        id: hex::encode(&random::array::<32>()),
        slot: record.slot(),
        scope: record.scope.clone(),
        name: call.text("Name").map(str::to_owned),
        created_ms: engine.now(),
        grantee: grantee.to_owned(),
        retiring: retiring.map(str::to_owned),
        issuer: call.caller.account().to_owned(),
        operations: operations_wanted,
        equals,
        subset,
        source_arn: constraints.and_then(|c| c.get("SourceArn")).and_then(Value::as_str).map(str::to_owned),
    })
}

pub(super) fn create(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = key_by_id(engine, call)?;
    match engine.state(&record)? {
        state::State::Unavailable => {}
        found => state::usable(&record, found)?,
    }
    let grant = wanted(engine, call, &record)?;
    engine.check_child_grant(call, &record, &grant)?;
    call.dry_run()?;
    let grant = engine.store.write(|w| {
        if let Some(name) = &grant.name {
            let prefix = index::named(&grant.slot, name, "");
            let known = grants::indexed(w, &grant.slot, &prefix, SAME_NAME)?;
            if let Some(same) = known.into_iter().find(|g| g.is_same(&grant)) {
                return Ok(same);
            }
        }
        grants::insert(w, &grant)?;
        Ok(grant)
    })?;
    Ok(json!({ "GrantId": grant.id, "GrantToken": engine.grant_token(&grant) }))
}

impl Engine {
    /// Refuses a grant that allows more than the one that lets the caller make it, and one grant too many on a key. Counts at most once in a thousand grants: counting is what costs.
    pub(super) fn check_child_grant(
        &self,
        call: &Call<'_>,
        record: &KeyRecord,
        grant: &GrantRecord,
    ) -> Result<(), KmsError> {
        let ask = Ask {
            caller: call.caller,
            action: "CreateGrant",
            params: &call.input,
            key: Some(record),
            resource: None,
            same_key: None,
        };
        if let Reason::Grant(id) = self.verdict(&ask)?.decision.reason {
            let place = grants::place(&grant.slot, &id);
            let parent: Option<GrantRecord> = self.store.read(|r| r.get(GRANTS, &place))?;
            if !parent.is_some_and(|p| child_fits(&p.rules(), &grant.rules())) {
                let text = format!(
                    "User: {} is not authorized to perform: kms:CreateGrant on resource: {} because the grant that \
                     allows it allows less than the new one",
                    call.caller.arn,
                    record.arn()
                );
                return Err(KmsError::exception("AccessDeniedException", text));
            }
        }
        if random::array::<1>()[0] != 0 {
            return Ok(());
        }
        let prefix = format!("{}|", record.slot());
        let count = self.store.read(|r| Ok(r.keys(GRANTS, &prefix, "", GRANTS_PER_KEY)?.len()))?;
        if count < GRANTS_PER_KEY {
            return Ok(());
        }
        Err(KmsError::LimitExceeded(format!("{} has {GRANTS_PER_KEY} grants already.", record.arn())))
    }
}

pub(super) fn list(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = key_by_id(engine, call)?;
    let page = Page::of(call, DEFAULT_PAGE)?;
    let slot = record.slot();
    let wanted_id = call.text("GrantId");
    let wanted_grantee = call.text("GranteePrincipal").or_else(|| call.text("GranteeServicePrincipal"));
    let found = engine.store.read(|r| match (wanted_id, wanted_grantee) {
        (Some(id), _) => Ok(r.get::<GrantRecord>(GRANTS, &grants::place(&slot, id))?.into_iter().collect()),
        (None, Some(grantee)) => page_of(r, &page, &index::grantee(&slot, grantee, "")),
        (None, None) => {
            let prefix = format!("{slot}|");
            let after = if page.after.is_empty() { String::new() } else { grants::place(&slot, &page.after) };
            Ok(r.page(GRANTS, &prefix, &after, page.fetch())?.into_iter().map(|(_, g)| g).collect())
        }
    })?;
    let found: Vec<GrantRecord> = found;
    if wanted_id.is_some() && found.is_empty() {
        return Err(KmsError::exception("InvalidGrantIdException", "The grant id is not valid."));
    }
    let kept = found.into_iter().filter(|g| wanted_grantee.is_none_or(|p| p == g.grantee));
    Ok(page.answer("Grants", kept.map(|g| (g.id.clone(), g.json())).collect()))
}

/// A page of the grants whose index names begin with `prefix`.
fn page_of(
    view: &impl View,
    page: &Page,
    prefix: &str,
) -> Result<Vec<GrantRecord>, crate::kms::store::Fault> {
    let after = if page.after.is_empty() { String::new() } else { format!("{prefix}{}", page.after) };
    let mut found = Vec::new();
    for name in view.keys(INDEX, prefix, &after, page.fetch())? {
        let slot = name.rsplitn(3, '|').last().unwrap_or_default();
        let slot = slot.split_once(':').map_or(slot, |(_, rest)| rest);
        found.extend(view.get(GRANTS, &grants::place(slot, index::tail(&name, '|')))?);
    }
    Ok(found)
}

pub(super) fn list_retirable(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    engine.authorize(call, call.action, None)?;
    let page = Page::of(call, DEFAULT_PAGE)?;
    let principal = call
        .text("RetiringPrincipal")
        .or_else(|| call.text("RetiringServicePrincipal"))
        .ok_or_else(|| missing("RetiringPrincipal"))?;
    check_principal(principal)?;
    let prefix = index::retiring(principal, "", "");
    let prefix = prefix.trim_end_matches('|').to_owned() + "|";
    let after = if page.after.is_empty() { String::new() } else { format!("{prefix}{}", page.after) };
    let entries = engine.store.read(|r| {
        let mut entries = Vec::new();
        for name in r.keys(INDEX, &prefix, &after, page.fetch())? {
            let place = name.get(prefix.len()..).unwrap_or_default().to_owned();
            let grant: Option<GrantRecord> = r.get(GRANTS, &place)?;
            let grant = grant.filter(|g| g.scope.region == call.scope().region);
            entries.extend(grant.map(|g| (place, g.json())));
        }
        Ok(entries)
    })?;
    Ok(page.answer("Grants", entries))
}

fn no_grant(id: &str) -> KmsError {
    KmsError::NotFound(format!("Grant ID {id} not found"))
}

pub(super) fn revoke(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = key_by_id(engine, call)?;
    let id = call.need("GrantId")?;
    let place = grants::place(&record.slot(), id);
    engine.store.read(|r| Ok(r.get::<GrantRecord>(GRANTS, &place)?.ok_or_else(|| no_grant(id))?))?;
    call.dry_run()?;
    engine.store.write(|w| grants::remove(w, &place))?;
    Ok(json!({}))
}

pub(super) fn retire(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let grant = match (call.text("GrantToken"), call.text("KeyId"), call.text("GrantId")) {
        (Some(token), None, None) => engine.grant_of_token(token)?.ok_or_else(|| no_grant("of the token"))?,
        (None, Some(_), Some(id)) => {
            let record = engine.named_key(call, "KeyId")?;
            let place = grants::place(&record.slot(), id);
            engine.store.read(|r| Ok(r.get(GRANTS, &place)?.ok_or_else(|| no_grant(id))?))?
        }
        _ => {
            let text = "Either GrantToken, or KeyId and GrantId must be specified.";
            return Err(KmsError::Validation(text.into()));
        }
    };
    let record = engine.key(&grant.slot)?;
    call.touches(&record);
    let caller = call.caller;
    let may = grant.retiring.as_deref().is_some_and(|p| caller.is(p))
        || caller.is(&grant.grantee) && grant.operations.iter().any(|o| o == "RetireGrant");
    // The account that made the grant leaves it to its IAM policies.
    if !may
        && (grant.issuer != caller.account() || engine.authorize(call, "RetireGrant", Some(&record)).is_err())
    {
        return Err(KmsError::exception(
            "AccessDeniedException",
            format!(
                "User: {} is not authorized to perform: kms:RetireGrant on resource: {}",
                caller.arn,
                record.arn()
            ),
        ));
    }
    call.dry_run()?;
    engine.store.write(|w| grants::remove(w, &grant.place()))?;
    Ok(json!({}))
}
