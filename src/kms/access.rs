//! May this principal do this: where a call is decided, by key policy, IAM policies and grants.

use std::sync::Arc;

use serde_json::Value;

use super::api::Call;
use super::caller::Caller;
use super::engine::Engine;
use super::error::KmsError;
use super::grants::{self, GrantRecord};
use super::index;
use super::policy::{
    self, Conditions, Decision, Document, Grant, KeyFacts, Named, PolicySet, Reason, Request,
};
use super::records::KeyRecord;
use super::rotate::aliases_of;
use super::spec::Manager;

/// Grants of one principal on one key that are looked at, and aliases of a key.
const LOOKED_AT: usize = 1000;

/// One question: may this caller do this to this key?
pub(super) struct Ask<'a> {
    pub(super) caller: &'a Caller,
    /// Without `kms:`.
    pub(super) action: &'a str,
    /// Parameters, as AWS's JSON.
    pub(super) params: &'a Value,
    /// The key, where one is concerned.
    pub(super) key: Option<&'a KeyRecord>,
    /// ARN of what is used, where it is no key.
    pub(super) resource: Option<&'a str>,
    /// Of ReEncrypt: whether both of its keys are one.
    pub(super) same_key: Option<bool>,
}

/// The policies that decide; grants are looked up where they are needed.
#[derive(Clone, Copy)]
pub(super) struct InForce<'a> {
    pub(super) key_policy: Option<&'a Document>,
    pub(super) identity_policies: &'a [Named],
    pub(super) boundary: Option<&'a Document>,
    pub(super) service_control: &'a [Named],
}

impl<'a> InForce<'a> {
    fn all(self) -> impl Iterator<Item = &'a Document> {
        let named = self.identity_policies.iter().chain(self.service_control);
        self.key_policy.into_iter().chain(self.boundary).chain(named.map(|n| &*n.document))
    }
}

/// An answer, with AWS's text for a refusal.
pub(super) struct Verdict {
    pub(super) decision: Decision,
    pub(super) message: String,
}

impl Engine {
    /// The key that a member names, when the caller may do `call.action` to it. Its state is not looked at.
    pub(super) fn key_for(&self, call: &Call<'_>, member: &str) -> Result<Arc<KeyRecord>, KmsError> {
        let record = self.named_key(call, member)?;
        self.authorize(call, call.action, Some(&record))?;
        Ok(record)
    }

    /// The key that a member names. AWS-managed keys are made on their first use.
    pub(super) fn named_key(&self, call: &Call<'_>, member: &str) -> Result<Arc<KeyRecord>, KmsError> {
        let name = call.text(member).unwrap_or_default();
        let found = match self.resolve_in(name, &call.caller.scope) {
            Err(KmsError::NotFound(text)) => match self.managed_key(name, call)? {
                Some(record) => record,
                None => return Err(KmsError::NotFound(text)),
            },
            other => other?,
        };
        call.touches(&found);
        Ok(found)
    }

    /// Refuses a call that neither key policy, nor IAM policies, nor grants allow. `action` without `kms:`.
    pub(super) fn authorize(
        &self,
        call: &Call<'_>,
        action: &str,
        key: Option<&KeyRecord>,
    ) -> Result<(), KmsError> {
        self.decide(call, action, key, None)
    }

    /// As [`Engine::authorize`]; `same_key` tells of ReEncrypt whether both of its keys are one.
    pub(super) fn decide(
        &self,
        call: &Call<'_>,
        action: &str,
        key: Option<&KeyRecord>,
        same_key: Option<bool>,
    ) -> Result<(), KmsError> {
        for token in call.tokens() {
            self.grant_of_token(token)?;
        }
        self.admit(&Ask { caller: call.caller, action, params: &call.input, key, resource: None, same_key })
    }

    /// Refuses a call on an alias that the caller's IAM policies do not allow; its key is asked for by itself.
    pub(super) fn authorize_alias(&self, call: &Call<'_>, alias: &str) -> Result<(), KmsError> {
        let arn = call.caller.scope.alias_arn(alias);
        self.admit(&Ask {
            caller: call.caller,
            action: call.action,
            params: &call.input,
            key: None,
            resource: Some(&arn),
            same_key: None,
        })
    }

    /// Refuses what the verdict refuses.
    pub(super) fn admit(&self, ask: &Ask<'_>) -> Result<(), KmsError> {
        let verdict = self.verdict(ask)?;
        if verdict.decision.allowed {
            return Ok(());
        }
        Err(KmsError::exception("AccessDeniedException", verdict.message))
    }

    /// Decides. Grants are looked up only where policies neither allow nor deny.
    pub(super) fn verdict(&self, ask: &Ask<'_>) -> Result<Verdict, KmsError> {
        let key_policy = ask.key.map(|key| self.key_policy(key)).transpose()?;
        let identity_policies = self.identity_policies(ask.caller)?;
        let boundary =
            ask.caller.boundary.as_deref().map(|text| self.boundary(ask.caller, text)).transpose()?;
        let set = InForce {
            key_policy: key_policy.as_deref(),
            identity_policies: &identity_policies,
            boundary: boundary.as_deref(),
            service_control: &self.service_control,
        };
        self.verdict_by(ask, set)
    }

    /// As [`Engine::verdict`], under other policies than those in force.
    pub(super) fn verdict_by(&self, ask: &Ask<'_>, by: InForce<'_>) -> Result<Verdict, KmsError> {
        let action = format!("kms:{}", ask.action);
        let key_arn = ask.key.map(KeyRecord::arn);
        let resource_arn = key_arn.as_deref().or(ask.resource).unwrap_or("*");
        let source = ask.caller.source.map(|ip| ip.to_string());
        let call = policy::Call {
            principal_arn: &ask.caller.arn,
            action: &action,
            params: ask.params,
            key: None,
            resource_arn,
            region: &ask.caller.scope.region,
            source_ip: source.as_deref(),
            via_service: ask.caller.via.as_deref(),
            user_agent: Some(ask.caller.user_agent.as_str()).filter(|a| !a.is_empty()),
            secure: ask.caller.secure,
            now_ms: self.now(),
            same_key: ask.same_key,
            principal_tags: None,
        };
        let context = if by.all().any(Document::needs_conditions) {
            self.conditions(&call, ask.key, by.all().any(|d| d.mentions("kms:ResourceAliases")))?
        } else {
            Conditions::default()
        };
        let encryption_context = call.encryption_context();
        let request = Request {
            principal_arn: &ask.caller.arn,
            action: &action,
            resource_arn,
            context: &context,
            encryption_context: encryption_context.as_ref(),
            grant_tokens: &[],
        };
        let set = PolicySet {
            key_policy: by.key_policy,
            identity_policies: by.identity_policies,
            boundary: by.boundary,
            service_control: by.service_control,
            grants: &[],
        };
        let mut decision = policy::evaluate(&request, &set);
        if let (Reason::ImplicitDeny(_), Some(key)) = (&decision.reason, ask.key) {
            let grants = self.grants_to(ask.caller, key)?;
            if !grants.is_empty() {
                decision = policy::evaluate(&request, &PolicySet { grants: &grants, ..set });
            }
        }
        Ok(Verdict { message: decision.message(&request), decision })
    }

    fn conditions(
        &self,
        call: &policy::Call<'_>,
        key: Option<&KeyRecord>,
        with_aliases: bool,
    ) -> Result<Conditions, KmsError> {
        let Some(key) = key else { return Ok(call.conditions()) };
        let aliases = if with_aliases {
            self.index()?;
            self.store.read(|r| aliases_of(r, &key.slot(), "", LOOKED_AT))?
        } else {
            Vec::new()
        };
        let multi_region = key.family.as_ref().map(|_| if key.is_primary() { "PRIMARY" } else { "REPLICA" });
        let facts = KeyFacts {
            spec: key.spec.name(),
            usage: key.usage.name(),
            origin: key.origin.name(),
            multi_region,
            aliases: &aliases,
            tags: &key.tags,
        };
        Ok(policy::Call { key: Some(facts), ..*call }.conditions())
    }

    /// A key's policy, compiled.
    pub(super) fn key_policy(&self, key: &KeyRecord) -> Result<Arc<Document>, KmsError> {
        let found = match &key.policy {
            Some(text) => self.policies.key_policy(text),
            None => {
                let managed = key.manager == Manager::Aws;
                let name = format!("default of {} {managed}", key.scope.account);
                self.policies.key_policy_as(&name, || key.policy_text())
            }
        };
        found.map_err(|e| unreadable(&format!("the policy of {}", key.arn()), &e))
    }

    /// The caller's IAM policies, compiled.
    pub(super) fn identity_policies(&self, caller: &Caller) -> Result<Vec<Named>, KmsError> {
        let compiled = |(at, text): (usize, &String)| {
            let name = format!("{} of {}", at + 1, caller.arn);
            let document =
                self.policies.identity_policy(text).map_err(|e| unreadable(&format!("policy {name}"), &e))?;
            Ok(Named { name, document })
        };
        caller.policies.iter().enumerate().map(compiled).collect()
    }

    fn boundary(&self, caller: &Caller, text: &str) -> Result<Arc<Document>, KmsError> {
        let found = self.policies.identity_policy(text);
        found.map_err(|e| unreadable(&format!("the permissions boundary of {}", caller.arn), &e))
    }

    /// The grants of a key that mean the caller.
    fn grants_to(&self, caller: &Caller, key: &KeyRecord) -> Result<Vec<Grant>, KmsError> {
        let slot = key.slot();
        self.store.read(|r| {
            let mut found = Vec::new();
            for principal in policy::Caller::new(&caller.arn).grantees() {
                let prefix = index::grantee(&slot, &principal, "");
                found.extend(grants::indexed(r, &slot, &prefix, LOOKED_AT)?.iter().map(GrantRecord::rules));
            }
            Ok(found)
        })
    }
}

/// A policy that a store holds and that does not parse: nobody is let in by it, and the operator is told.
fn unreadable(what: &str, error: &policy::Malformed) -> KmsError {
    log::error!("{what} cannot be read, so it allows nothing: {} {}", error.message, error.detail);
    KmsError::exception("AccessDeniedException", format!("{what} is malformed: {}", error.message))
}

impl From<policy::Malformed> for KmsError {
    fn from(error: policy::Malformed) -> Self {
        // AWS's sentence alone says too little to mend a policy by.
        let whole = error.message.starts_with("OverlyPermissive");
        let text = if whole { error.message } else { format!("{} ({})", error.message, error.detail) };
        Self::exception(error.code, text)
    }
}

impl GrantRecord {
    /// As the evaluator wants it. Every grant of this store works at once: there is nothing to become consistent.
    /// A grant for one AWS resource (`SourceArn`) works for none, since no service calls here with one.
    pub(super) fn rules(&self) -> Grant {
        Grant {
            id: self.id.clone(),
            grantee: self.grantee.clone(),
            operations: if self.source_arn.is_some() { Vec::new() } else { self.operations.clone() },
            equals: self.equals.clone(),
            subset: self.subset.clone(),
            settled: true,
            tokens: Vec::new(),
        }
    }
}
