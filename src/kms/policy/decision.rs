//! What was decided, and by what.

use super::evaluate::Request;

/// Which statement of which policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StatementRef {
    /// The name of a principal's policy; `None` is the key policy.
    pub policy: Option<String>,
    /// Its place in the policy, counted from 0.
    pub index: usize,
    /// Its `Sid`.
    pub sid: Option<String>,
}

/// Whether a request may go on, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// Whether it may.
    pub allowed: bool,
    /// By what.
    pub reason: Reason,
}

/// What decided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    /// A statement of the key policy names the caller.
    KeyPolicy(StatementRef),
    /// A policy of the principal allows it; `delegated` is the statement by which the key policy leaves the
    /// decision to the account (or allows the caller of another account). `None`: no key is concerned.
    IdentityPolicy {
        /// The statement that allows.
        statement: StatementRef,
        /// The statement of the key policy that lets IAM decide.
        delegated: Option<StatementRef>,
    },
    /// A grant, by its id.
    Grant(String),
    /// No key is concerned, and the account itself calls.
    Root,
    /// A statement denies it: nothing can allow it.
    ExplicitDeny(StatementRef),
    /// Nothing allows it.
    ImplicitDeny(Missing),
    /// The operation is not for callers of another account.
    OtherAccount,
}

/// What an implicitly denied request lacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    /// The account may decide, and no policy of the principal allows it.
    IdentityBased,
    /// Neither key policy nor grant allows it.
    ResourceBased,
}

impl Decision {
    pub(super) fn yes(reason: Reason) -> Self {
        Self { allowed: true, reason }
    }

    pub(super) fn no(reason: Reason) -> Self {
        Self { allowed: false, reason }
    }

    /// AWS's text of the AccessDeniedException.
    pub fn message(&self, request: &Request<'_>) -> String {
        let why = match &self.reason {
            Reason::ExplicitDeny(StatementRef { policy: None, .. }) => {
                "with an explicit deny in a resource-based policy".to_owned()
            }
            Reason::ExplicitDeny(_) => "with an explicit deny in an identity-based policy".to_owned(),
            Reason::ImplicitDeny(Missing::IdentityBased) => {
                format!("because no identity-based policy allows the {} action", request.action)
            }
            _ => format!("because no resource-based policy allows the {} action", request.action),
        };
        let (who, action, what) = (request.principal_arn, request.action, request.resource_arn);
        format!("User: {who} is not authorized to perform: {action} on resource: {what} {why}")
    }
}

impl std::fmt::Display for StatementRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.policy {
            None => write!(f, "statement {} of the key policy", self.index + 1)?,
            Some(name) => write!(f, "statement {} of the policy {name}", self.index + 1)?,
        }
        match &self.sid {
            Some(sid) => write!(f, " (\"{sid}\")"),
            None => Ok(()),
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::KeyPolicy(statement) => write!(f, "{statement}"),
            Self::IdentityPolicy { statement, delegated: None } => write!(f, "{statement}"),
            Self::IdentityPolicy { statement, delegated: Some(by) } => {
                write!(f, "{statement}, which {by} lets decide")
            }
            Self::Grant(id) => write!(f, "grant {id}"),
            Self::Root => f.write_str("the account itself calls"),
            Self::ExplicitDeny(statement) => write!(f, "explicit deny by {statement}"),
            Self::ImplicitDeny(Missing::IdentityBased) => f.write_str("no policy of the principal allows it"),
            Self::ImplicitDeny(Missing::ResourceBased) => {
                f.write_str("neither the key policy nor a grant allows it")
            }
            Self::OtherAccount => f.write_str("the operation is not for callers of another account"),
        }
    }
}
