//! GetKeyPolicy, PutKeyPolicy, ListKeyPolicies.

use serde_json::{Value, json};

use super::call::Call;
use super::lifecycle::key_by_id;
use super::paging::{Page, of_list};
use crate::kms::access::{Ask, InForce};
use crate::kms::caller::ADMIN_POLICY;
use crate::kms::engine::Engine;
use crate::kms::error::KmsError;
use crate::kms::policy::{self, Named};
use crate::kms::records::KeyRecord;
use crate::kms::spec::Manager;
use crate::kms::state;

/// Operations of an AWS-managed key that its account may use.
const MANAGED: &[&str] = &[
    "kms:CreateGrant",
    "kms:Decrypt",
    "kms:DescribeKey",
    "kms:Encrypt",
    "kms:GenerateDataKey*",
    "kms:Get*",
    "kms:List*",
    "kms:ReEncrypt*",
    "kms:RetireGrant",
    "kms:RevokeGrant",
];

impl KeyRecord {
    /// The key policy in force.
    pub(in crate::kms) fn policy_text(&self) -> String {
        if let Some(text) = &self.policy {
            return text.clone();
        }
        let actions = match self.manager {
            Manager::Customer => json!("kms:*"),
            Manager::Aws => json!(MANAGED),
        };
        pretty(&json!({
            "Version": "2012-10-17",
            "Id": "key-default-1",
            "Statement": [{
                "Sid": "Enable IAM User Permissions",
                "Effect": "Allow",
                "Principal": { "AWS": format!("arn:aws:iam::{}:root", self.scope.account) },
                "Action": actions,
                "Resource": "*",
            }],
        }))
    }
}

fn pretty(policy: &Value) -> String {
    serde_json::to_string_pretty(policy).expect("a JSON value prints")
}

/// The policy of a request that makes a key, checked; `None` for the default one.
pub(super) fn given(
    engine: &Engine,
    call: &Call<'_>,
    record: &KeyRecord,
) -> Result<Option<String>, KmsError> {
    let Some(text) = call.text("Policy") else { return Ok(None) };
    engine.check_policy(call, record, text)?;
    Ok(Some(text.to_owned()))
}

impl Engine {
    /// Refuses what is no policy, and one that would not let the caller change it again, unless he wants that.
    pub(super) fn check_policy(
        &self,
        call: &Call<'_>,
        record: &KeyRecord,
        text: &str,
    ) -> Result<(), KmsError> {
        let document = policy::parse(text)?;
        if call.flag("BypassPolicyLockoutSafetyCheck") {
            return Ok(());
        }
        let ask = Ask {
            caller: call.caller,
            action: "PutKeyPolicy",
            params: &call.input,
            key: Some(record),
            resource: None,
            same_key: None,
        };
        // Where the policy lets the account decide, its IAM policies are trusted to.
        let anything = policy::parse_identity(ADMIN_POLICY)?;
        let trusted = [Named { name: "any".into(), document: anything.into() }];
        let set = InForce {
            key_policy: Some(&document),
            identity_policies: &trusted,
            boundary: None,
            service_control: &[],
        };
        if self.verdict_by(&ask, set)?.decision.allowed {
            return Ok(());
        }
        let why = "The new key policy will not allow you to update the key policy in the future.";
        Err(KmsError::exception("MalformedPolicyDocumentException", why))
    }
}

fn only_default(call: &Call<'_>) -> Result<(), KmsError> {
    match call.text("PolicyName") {
        None | Some("default") => Ok(()),
        Some(_) => Err(KmsError::NotFound("No such policy exists".into())),
    }
}

pub(super) fn get(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = key_by_id(engine, call)?;
    only_default(call)?;
    Ok(json!({ "Policy": record.policy_text(), "PolicyName": "default" }))
}

pub(super) fn put(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = key_by_id(engine, call)?;
    state::manageable(&record)?;
    only_default(call)?;
    let text = call.need("Policy")?;
    engine.check_policy(call, &record, text)?;
    engine.change(&record.slot(), |_, r| {
        r.policy = Some(text.to_owned());
        Ok(())
    })?;
    Ok(json!({}))
}

pub(super) fn list(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    key_by_id(engine, call)?;
    let page = Page::of(call, 100)?;
    Ok(of_list(&page, "PolicyNames", vec![json!("default")]))
}
