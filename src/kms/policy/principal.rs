//! Principals: who calls, and whom a policy means.

use super::document::{Principal, Principals};

/// The caller of a request, as policies may name him.
#[derive(Clone, Debug)]
pub struct Caller<'a> {
    arn: &'a str,
    account: &'a str,
    kind: Kind<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Kind<'a> {
    /// The account itself.
    Root,
    /// A user, a federated user, or a role by itself.
    Identity,
    /// A session of the role of this name.
    Session(&'a str),
    /// An AWS service, by its name.
    Service,
}

/// How a statement names a caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Named {
    /// Himself, his role, or everybody: the statement is enough.
    Directly,
    /// His account, which then decides by its IAM policies.
    ByAccount,
    /// Not.
    Not,
}

impl<'a> Caller<'a> {
    /// Reads an ARN (`arn:aws:iam::ACCOUNT:user/NAME`, `...:role/NAME`, `...:root`,
    /// `arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION`) or the name of a service (`NAME.amazonaws.com`).
    pub fn new(arn: &'a str) -> Self {
        if !arn.starts_with("arn:") {
            return Self { arn, account: "", kind: Kind::Service };
        }
        let (account, name) = account_and_name(arn);
        let kind = match name.strip_prefix("assumed-role/").and_then(|rest| rest.split_once('/')) {
            Some((role, _)) => Kind::Session(role),
            None if name == "root" => Kind::Root,
            None => Kind::Identity,
        };
        Self { arn, account, kind }
    }

    /// The account's number; empty for a service.
    pub fn account(&self) -> &'a str {
        self.account
    }

    /// Whether the account itself calls.
    pub fn is_root(&self) -> bool {
        matches!(self.kind, Kind::Root)
    }

    /// Whether an AWS service calls on its own.
    pub fn is_service(&self) -> bool {
        matches!(self.kind, Kind::Service)
    }

    /// Whether a session of a role calls.
    pub(super) fn is_session(&self) -> bool {
        matches!(self.kind, Kind::Session(_))
    }

    /// Every principal that stands for the caller in a grant: himself, the role of his session, his account.
    /// A store that keeps its grants by grantee looks up these.
    pub fn grantees(&self) -> Vec<String> {
        let mut all = vec![self.arn.to_owned()];
        if let Kind::Session(role) = self.kind {
            all.push(format!("arn:aws:iam::{}:role/{role}", self.account));
        }
        if !self.account.is_empty() && !self.is_root() {
            all.push(format!("arn:aws:iam::{}:root", self.account));
        }
        all
    }

    /// `aws:PrincipalArn`: of a session the role's ARN.
    pub(super) fn principal_arn(&self) -> String {
        match self.kind {
            Kind::Session(role) => format!("arn:aws:iam::{}:role/{role}", self.account),
            Kind::Root | Kind::Identity | Kind::Service => self.arn.to_owned(),
        }
    }

    /// `aws:PrincipalType`.
    pub(super) fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Root => "Account",
            Kind::Session(_) => "AssumedRole",
            Kind::Identity if self.arn.contains(":federated-user/") => "FederatedUser",
            Kind::Identity => "User",
            Kind::Service => "Service",
        }
    }

    /// The name after the last slash of a user: `aws:username`.
    pub(super) fn user_name(&self) -> Option<&'a str> {
        let (_, name) = account_and_name(self.arn);
        let path = name.strip_prefix("user/")?;
        path.rsplit('/').next()
    }

    /// Whether an ARN of a policy or a grant is the caller himself or the role of his session.
    pub(super) fn is(&self, arn: &str) -> bool {
        if arn == self.arn {
            return true;
        }
        let Kind::Session(role) = self.kind else { return false };
        let (account, name) = account_and_name(arn);
        // The session's ARN does not tell the role's path; names of roles are unique in an account.
        let named = name.strip_prefix("role/").is_some_and(|path| path.rsplit('/').next() == Some(role));
        named && account == self.account && arn.starts_with("arn:aws:iam::")
    }

    /// Whether an ARN is the caller's account as a whole.
    pub(super) fn is_of_account(&self, arn: &str) -> bool {
        let (account, name) = account_and_name(arn);
        name == "root" && account == self.account && !account.is_empty()
    }
}

impl Principal {
    fn names(&self, caller: &Caller<'_>) -> Named {
        let direct = match self {
            Self::Everyone => true,
            Self::EveryAccount => !caller.is_service(),
            Self::Account(account) if *account == caller.account => {
                return if caller.is_root() { Named::Directly } else { Named::ByAccount };
            }
            Self::Identity(arn) => caller.is(arn),
            Self::Service(name) => caller.is_service() && name == caller.arn,
            Self::Account(_) | Self::Foreign => false,
        };
        if direct { Named::Directly } else { Named::Not }
    }
}

impl Principals {
    /// How they name the caller. `NotPrincipal` (with Deny only) spares a caller whose whole chain it lists: himself,
    /// the role of his session, his account; so AWS documents it.
    pub(super) fn name(&self, caller: &Caller<'_>) -> Named {
        if self.negated {
            return if self.spares(caller) { Named::Not } else { Named::Directly };
        }
        let mut best = Named::Not;
        for principal in &self.list {
            match principal.names(caller) {
                Named::Directly => return Named::Directly,
                Named::ByAccount => best = Named::ByAccount,
                Named::Not => {}
            }
        }
        best
    }

    /// Whether the caller's own ARN is among them.
    pub(super) fn lists(&self, caller: &Caller<'_>) -> bool {
        !self.negated && self.list.iter().any(|p| matches!(p, Principal::Identity(arn) if arn == caller.arn))
    }

    fn spares(&self, caller: &Caller<'_>) -> bool {
        let everyone = |p: &Principal| match p {
            Principal::Everyone => true,
            Principal::EveryAccount => !caller.is_service(),
            _ => false,
        };
        if self.list.iter().any(everyone) {
            return true;
        }
        if caller.is_service() {
            return self.list.iter().any(|p| p.names(caller) == Named::Directly);
        }
        let account = self.list.iter().any(|p| matches!(p, Principal::Account(a) if *a == caller.account));
        let listed = |wanted: &dyn Fn(&str) -> bool| {
            self.list.iter().any(|p| matches!(p, Principal::Identity(arn) if wanted(arn)))
        };
        let himself = caller.is_root() || listed(&|arn| arn == caller.arn);
        let role = match caller.kind {
            Kind::Session(_) => listed(&|arn| arn != caller.arn && caller.is(arn)),
            Kind::Root | Kind::Identity | Kind::Service => true,
        };
        account && himself && role
    }
}

/// Account and resource part of an ARN; empty where it has none.
fn account_and_name(arn: &str) -> (&str, &str) {
    let mut parts = arn.splitn(6, ':').skip(4);
    (parts.next().unwrap_or(""), parts.next().unwrap_or(""))
}

/// The account of an ARN; empty where it names none.
pub fn account_of(arn: &str) -> &str {
    account_and_name(arn).0
}

/// The key policy that a key gets where its maker gives none: the account decides by its IAM policies.
pub fn default_key_policy(account: &str) -> String {
    format!(
        r#"{{
  "Version" : "2012-10-17",
  "Id" : "key-default-1",
  "Statement" : [ {{
    "Sid" : "Enable IAM User Permissions",
    "Effect" : "Allow",
    "Principal" : {{
      "AWS" : "arn:aws:iam::{account}:root"
    }},
    "Action" : "kms:*",
    "Resource" : "*"
  }} ]
}}"#
    )
}
