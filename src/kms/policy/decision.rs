//! What was decided, and by what.

use super::evaluate::Request;

/// Which policy a statement stands in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// The key's.
    Key,
    /// One of the principal's, by its name.
    Identity(String),
    /// The principal's permissions boundary.
    Boundary,
    /// A service control policy, by its name.
    ServiceControl(String),
}

/// Which statement of which policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StatementRef {
    /// The policy.
    pub policy: Source,
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
    /// A policy of the principal allows it, and his permissions boundary does not.
    Boundary,
    /// Policies allow it, and a service control policy above the account does not.
    ServiceControl,
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
            Reason::ExplicitDeny(statement) => {
                let kind = match statement.policy {
                    Source::Key => "a resource-based policy",
                    Source::Identity(_) => "an identity-based policy",
                    Source::Boundary => "a permissions boundary",
                    Source::ServiceControl(_) => "a service control policy",
                };
                format!("with an explicit deny in {kind}")
            }
            reason => {
                let kind = match reason {
                    Reason::ImplicitDeny(Missing::IdentityBased) => "identity-based policy",
                    Reason::ImplicitDeny(Missing::Boundary) => "permissions boundary",
                    Reason::ImplicitDeny(Missing::ServiceControl) => "service control policy",
                    _ => "resource-based policy",
                };
                format!("because no {kind} allows the {} action", request.action)
            }
        };
        let (who, action, what) = (request.principal_arn, request.action, request.resource_arn);
        format!("User: {who} is not authorized to perform: {action} on resource: {what} {why}")
    }
}

impl std::fmt::Display for StatementRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "statement {} of the ", self.index + 1)?;
        match &self.policy {
            Source::Key => f.write_str("key policy")?,
            Source::Identity(name) => write!(f, "policy {name}")?,
            Source::Boundary => f.write_str("permissions boundary")?,
            Source::ServiceControl(name) => write!(f, "service control policy {name}")?,
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
            Self::ImplicitDeny(Missing::Boundary) => {
                f.write_str("the principal's permissions boundary does not allow it")
            }
            Self::ImplicitDeny(Missing::ServiceControl) => {
                f.write_str("a service control policy does not allow it")
            }
            Self::OtherAccount => f.write_str("the operation is not for callers of another account"),
        }
    }
}
