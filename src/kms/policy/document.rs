//! A policy document, checked and compiled: what can be decided once is not decided for each request.

use std::sync::Arc;

use super::condition::Condition;
use super::pattern::{ArnPattern, Pattern};

/// A policy.
#[derive(Clone, Debug)]
pub struct Document {
    /// `Id`.
    pub(super) id: Option<String>,
    /// In the order of the text.
    pub(super) statements: Vec<Statement>,
}

/// A policy of a principal, by its name.
#[derive(Clone, Debug)]
pub struct Named {
    /// What the administrator calls it.
    pub name: String,
    /// The policy.
    pub document: Arc<Document>,
}

/// What a statement does where it matches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Lets the request through, unless another statement denies it.
    Allow,
    /// Refuses the request, whatever else allows it.
    Deny,
}

/// One statement.
#[derive(Clone, Debug)]
pub(super) struct Statement {
    pub(super) sid: Option<String>,
    pub(super) effect: Effect,
    /// `None` in policies of a principal.
    pub(super) principals: Option<Principals>,
    /// `None`: the statement names no action, so it has no effect (PutKeyPolicy accepts it).
    pub(super) actions: Option<Actions>,
    /// `None`: the statement names no resource, so it has no effect.
    pub(super) resources: Option<Resources>,
    /// All of them have to hold.
    pub(super) conditions: Vec<Condition>,
}

/// `Principal` or `NotPrincipal`.
#[derive(Clone, Debug)]
pub(super) struct Principals {
    pub(super) negated: bool,
    pub(super) list: Vec<Principal>,
}

/// One principal of a statement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Principal {
    /// `"*"`: everybody, AWS services too.
    Everyone,
    /// `{"AWS": "*"}`: every account.
    EveryAccount,
    /// An account, by its number or as `arn:aws:iam::ACCOUNT:root`.
    Account(String),
    /// A user, a role, or the session of one, by ARN or by the unique id that a deleted one leaves behind.
    Identity(String),
    /// An AWS service.
    Service(String),
    /// A web identity or SAML provider, or the canonical id of an account: nobody who calls a KMS directly.
    Foreign,
}

/// `Action` or `NotAction`.
#[derive(Clone, Debug)]
pub(super) struct Actions {
    pub(super) negated: bool,
    pub(super) list: Vec<Pattern>,
}

/// `Resource` or `NotResource`.
#[derive(Clone, Debug)]
pub(super) struct Resources {
    pub(super) negated: bool,
    pub(super) list: Vec<ArnPattern>,
}

impl Document {
    /// `Id` of the policy.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// How many statements it has.
    pub fn len(&self) -> usize {
        self.statements.len()
    }

    /// Whether it says nothing at all.
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }

    /// Whether a condition asks for a key, by its name in any case.
    pub fn mentions(&self, key: &str) -> bool {
        self.statements.iter().flat_map(|s| &s.conditions).any(|c| c.key.eq_ignore_ascii_case(key))
    }

    /// Whether a statement has conditions or variables. Where none has, a request needs no [`super::Conditions`].
    pub fn needs_conditions(&self) -> bool {
        self.statements.iter().any(|s| {
            !s.conditions.is_empty()
                || s.resources.as_ref().is_some_and(|r| r.list.iter().any(ArnPattern::has_variables))
        })
    }
}
