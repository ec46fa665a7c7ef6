//! One request, decided (AWS KMS Developer Guide, policy-evaluation; IAM User Guide, evaluation logic).
//!
//! 1. A Deny that matches decides: in the key policy, a policy of the principal, his permissions boundary, or a service
//!    control policy.
//! 2. A key policy that names the caller himself allows. One that names his account lets the account's IAM policies
//!    decide: that is delegation, no permission for everybody in it. A caller of another account needs both sides.
//! 3. A grant allows.
//! 4. Nothing else does.
//!
//! A permissions boundary bounds what policies of the principal allow. What a key policy or a grant gives a user himself
//! it leaves alone; what they give a role it bounds for the role's sessions, but for one that is named itself. Every
//! service control policy has to allow what is to be allowed in whatever way; services are not under them.

use std::collections::BTreeMap;

use super::conditions::Conditions;
use super::decision::{Decision, Missing, Reason, Source, StatementRef};
use super::document::{Document, Effect, Named as NamedPolicy, Statement};
use super::grant::Grant;
use super::pattern::ArnPattern;
use super::principal::{Caller, Named, account_of};

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who: ARN of a user, role session, or account; or the name of a service.
    pub principal_arn: &'a str,
    /// What, as `kms:Decrypt`.
    pub action: &'a str,
    /// On what: ARN of a key, an alias or a custom key store; `*` for operations on none.
    pub resource_arn: &'a str,
    /// What conditions may ask for.
    pub context: &'a Conditions,
    /// The encryption context of the call, for the constraints of grants. `None`: the operation has none.
    pub encryption_context: Option<&'a BTreeMap<String, String>>,
    /// Tokens that make fresh grants work.
    pub grant_tokens: &'a [String],
}

/// What decides.
#[derive(Clone, Copy, Default, Debug)]
pub struct PolicySet<'a> {
    /// The key's policy. `None` where no key is concerned (CreateKey, ListKeys, an alias).
    pub key_policy: Option<&'a Document>,
    /// The policies of the principal.
    pub identity_policies: &'a [NamedPolicy],
    /// The permissions boundary of the principal; the account itself has none.
    pub boundary: Option<&'a Document>,
    /// The service control policies over the caller's account.
    pub service_control: &'a [NamedPolicy],
    /// The key's grants; those to other principals ([`Caller::grantees`]) may be left out.
    pub grants: &'a [Grant],
}

/// Operations that AWS lets a caller use on another account's key ("Cross-account use: Yes").
const CROSS_ACCOUNT: &[&str] = &[
    "CreateGrant",
    "Decapsulate",
    "Decrypt",
    "DeriveSharedSecret",
    "DescribeKey",
    "Encapsulate",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyPair",
    "GenerateDataKeyPairWithoutPlaintext",
    "GenerateDataKeyWithoutPlaintext",
    "GenerateMac",
    "GetKeyRotationStatus",
    "GetPublicKey",
    "ListGrants",
    "ReEncryptFrom",
    "ReEncryptTo",
    "RetireGrant",
    "RevokeGrant",
    "Sign",
    "Verify",
    "VerifyMac",
];

/// Decides a request.
pub fn evaluate(request: &Request<'_>, set: &PolicySet<'_>) -> Decision {
    // Names of actions ignore case; patterns are in lower case already.
    let action = request.action.to_ascii_lowercase();
    let request = &Asked { request, action: &action };
    let caller = Caller::new(request.principal_arn);
    if let Some(statement) = denied(request, set, &caller) {
        return Decision::no(Reason::ExplicitDeny(statement));
    }
    let decision = allowed(request, set, &caller);
    let controlled = !caller.is_service()
        && set
            .service_control
            .iter()
            .any(|p| find(&p.document, &Source::Key, |s| allows(s, request)).is_none());
    if decision.allowed && controlled {
        return Decision::no(Reason::ImplicitDeny(Missing::ServiceControl));
    }
    decision
}

/// Decides what nothing denies, before service control policies.
fn allowed(request: &Asked<'_>, set: &PolicySet<'_>, caller: &Caller<'_>) -> Decision {
    let by_identity = || identity_allow(request, set, caller);
    let Some(key_policy) = set.key_policy else {
        // The account itself may do everything in it.
        if caller.is_root() {
            return Decision::yes(Reason::Root);
        }
        return match by_identity() {
            Ok(statement) => Decision::yes(Reason::IdentityPolicy { statement, delegated: None }),
            Err(missing) => Decision::no(Reason::ImplicitDeny(missing)),
        };
    };
    let foreign = !caller.is_service() && caller.account() != account_of(request.resource_arn);
    if foreign && !crosses_accounts(request.action) {
        return Decision::no(Reason::OtherAccount);
    }
    let (direct, delegated) = key_policy_allow(request, key_policy, caller);
    // What a role is given is bounded for its sessions, but for what is given to this one by its own ARN.
    let bounded = caller.is_session() && !is_within_boundary(request, set, caller);
    let mut missing = Missing::ResourceBased;
    if let Some(statement) = direct.as_ref().filter(|_| !foreign || caller.is_root()) {
        let own = |s: &Statement| s.principals.as_ref().is_some_and(|p| p.lists(caller));
        let himself = key_policy.statements.iter().any(|s| own(s) && allows(s, request));
        if !bounded || himself {
            return Decision::yes(Reason::KeyPolicy(statement.clone()));
        }
        missing = Missing::Boundary;
    } else if let Some(by) = direct.or(delegated) {
        match by_identity() {
            Ok(statement) => {
                return Decision::yes(Reason::IdentityPolicy { statement, delegated: Some(by) });
            }
            Err(lacking) => missing = lacking,
        }
    }
    granted(request, set, caller, bounded).unwrap_or(Decision::no(Reason::ImplicitDeny(missing)))
}

/// Whether a key policy leaves the caller a way to change it again: PutKeyPolicy's lockout safety check. Where the
/// policy lets the account decide, its IAM policies are trusted to.
pub fn allows_later_change(
    policy: &Document,
    principal_arn: &str,
    key_arn: &str,
    context: &Conditions,
) -> bool {
    let request = &Request {
        principal_arn,
        action: "kms:PutKeyPolicy",
        resource_arn: key_arn,
        context,
        encryption_context: None,
        grant_tokens: &[],
    };
    let request = &Asked { request, action: "kms:putkeypolicy" };
    let caller = Caller::new(principal_arn);
    let set = PolicySet { key_policy: Some(policy), ..PolicySet::default() };
    let (direct, delegated) = key_policy_allow(request, policy, &caller);
    denied(request, &set, &caller).is_none() && (direct.is_some() || delegated.is_some())
}

/// A request with its action in lower case.
struct Asked<'a> {
    request: &'a Request<'a>,
    action: &'a str,
}

impl<'a> std::ops::Deref for Asked<'a> {
    type Target = Request<'a>;

    fn deref(&self) -> &Request<'a> {
        self.request
    }
}

fn crosses_accounts(action: &str) -> bool {
    let name = action.strip_prefix("kms:").unwrap_or(action);
    CROSS_ACCOUNT.iter().any(|o| o.eq_ignore_ascii_case(name))
}

/// The first statement that denies.
fn denied(request: &Asked<'_>, set: &PolicySet<'_>, caller: &Caller<'_>) -> Option<StatementRef> {
    let of_key = set.key_policy.and_then(|policy| {
        let denies =
            |s: &Statement| s.effect == Effect::Deny && named(s, caller) != Named::Not && s.applies(request);
        find(policy, &Source::Key, denies)
    });
    let denies = |s: &Statement| s.effect == Effect::Deny && s.applies(request);
    let of_identity =
        || set.identity_policies.iter().find_map(|p| find(&p.document, &p.as_identity(), denies));
    let of_boundary = || boundary(set, caller).and_then(|policy| find(policy, &Source::Boundary, denies));
    let controlling = if caller.is_service() { &[] } else { set.service_control };
    let of_control = || {
        let source = |p: &NamedPolicy| Source::ServiceControl(p.name.clone());
        controlling.iter().find_map(|p| find(&p.document, &source(p), denies))
    };
    of_key.or_else(of_identity).or_else(of_boundary).or_else(of_control)
}

/// The statements of a key policy that allow the caller himself, and that let his account decide.
fn key_policy_allow(
    request: &Asked<'_>,
    policy: &Document,
    caller: &Caller<'_>,
) -> (Option<StatementRef>, Option<StatementRef>) {
    let found = |wanted: Named| {
        find(policy, &Source::Key, |s: &Statement| named(s, caller) == wanted && allows(s, request))
    };
    (found(Named::Directly), found(Named::ByAccount))
}

/// The statement of the principal's policies that allows, where his boundary does, too.
fn identity_allow(
    request: &Asked<'_>,
    set: &PolicySet<'_>,
    caller: &Caller<'_>,
) -> Result<StatementRef, Missing> {
    let find = |p: &NamedPolicy| find(&p.document, &p.as_identity(), |s| allows(s, request));
    let statement = set.identity_policies.iter().find_map(find).ok_or(Missing::IdentityBased)?;
    if is_within_boundary(request, set, caller) { Ok(statement) } else { Err(Missing::Boundary) }
}

fn boundary<'a>(set: &PolicySet<'a>, caller: &Caller<'_>) -> Option<&'a Document> {
    set.boundary.filter(|_| !caller.is_root())
}

fn is_within_boundary(request: &Asked<'_>, set: &PolicySet<'_>, caller: &Caller<'_>) -> bool {
    boundary(set, caller).is_none_or(|policy| policy.statements.iter().any(|s| allows(s, request)))
}

/// The grant that allows. One to an account as a whole lets its IAM policies decide. For a caller who is `bounded` only
/// one to himself.
fn granted(request: &Asked<'_>, set: &PolicySet<'_>, caller: &Caller<'_>, bounded: bool) -> Option<Decision> {
    let covering =
        |to: &dyn Fn(&Grant) -> bool| set.grants.iter().find(|g| to(g) && g.covers(request.request));
    let his = |g: &Grant| caller.is(&g.grantee) && (!bounded || g.grantee == request.principal_arn);
    if let Some(grant) = covering(&his) {
        return Some(Decision::yes(Reason::Grant(grant.id.clone())));
    }
    let grant = covering(&|g| caller.is_of_account(&g.grantee))?;
    identity_allow(request, set, caller).ok()?;
    Some(Decision::yes(Reason::Grant(grant.id.clone())))
}

fn allows(statement: &Statement, request: &Asked<'_>) -> bool {
    statement.effect == Effect::Allow && statement.applies(request)
}

impl NamedPolicy {
    fn as_identity(&self) -> Source {
        Source::Identity(self.name.clone())
    }
}

fn named(statement: &Statement, caller: &Caller<'_>) -> Named {
    statement.principals.as_ref().map_or(Named::Not, |p| p.name(caller))
}

fn find(document: &Document, source: &Source, wanted: impl Fn(&Statement) -> bool) -> Option<StatementRef> {
    let (index, statement) = document.statements.iter().enumerate().find(|(_, s)| wanted(s))?;
    Some(StatementRef { policy: source.clone(), index, sid: statement.sid.clone() })
}

impl Statement {
    /// Whether action, resource and conditions are those of the request.
    fn applies(&self, request: &Asked<'_>) -> bool {
        let (Some(actions), Some(resources)) = (&self.actions, &self.resources) else { return false };
        let named = actions.list.iter().any(|p| p.matches(request.action, request.context));
        if named == actions.negated {
            return false;
        }
        let fits = |p: &ArnPattern| p.matches(request.resource_arn, request.context);
        let meant = resources.list.iter().any(fits);
        meant != resources.negated && self.conditions.iter().all(|c| c.holds(request.context))
    }
}
