//! One request, decided (AWS KMS Developer Guide, policy-evaluation; IAM User Guide, evaluation logic).
//!
//! 1. A Deny that matches, in the key policy or in a policy of the principal, decides.
//! 2. A key policy that names the caller himself allows. One that names his account lets the account's IAM policies
//!    decide: that is delegation, no permission for everybody in it. A caller of another account needs both sides.
//! 3. A grant allows.
//! 4. Nothing else does.

use std::collections::BTreeMap;

use super::conditions::Conditions;
use super::decision::{Decision, Missing, Reason, StatementRef};
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
    let by_identity = || identity_allow(request, set.identity_policies);
    let Some(key_policy) = set.key_policy else {
        // The account itself may do everything in it.
        if caller.is_root() {
            return Decision::yes(Reason::Root);
        }
        return match by_identity() {
            Some(statement) => Decision::yes(Reason::IdentityPolicy { statement, delegated: None }),
            None => Decision::no(Reason::ImplicitDeny(Missing::IdentityBased)),
        };
    };
    let foreign = !caller.is_service() && caller.account() != account_of(request.resource_arn);
    if foreign && !crosses_accounts(request.action) {
        return Decision::no(Reason::OtherAccount);
    }
    let (direct, delegated) = key_policy_allow(request, key_policy, &caller);
    match (direct, delegated) {
        (Some(statement), _) if !foreign || caller.is_root() => {
            return Decision::yes(Reason::KeyPolicy(statement));
        }
        (direct, delegated) => {
            if let Some(by) = direct.or(delegated) {
                if let Some(statement) = by_identity() {
                    return Decision::yes(Reason::IdentityPolicy { statement, delegated: Some(by) });
                }
                return granted(request, set, &caller)
                    .unwrap_or(Decision::no(Reason::ImplicitDeny(Missing::IdentityBased)));
            }
        }
    }
    granted(request, set, &caller).unwrap_or(Decision::no(Reason::ImplicitDeny(Missing::ResourceBased)))
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
        find(policy, None, denies)
    });
    let denies = |s: &Statement| s.effect == Effect::Deny && s.applies(request);
    of_key.or_else(|| set.identity_policies.iter().find_map(|p| find(&p.document, Some(&p.name), denies)))
}

/// The statements of a key policy that allow the caller himself, and that let his account decide.
fn key_policy_allow(
    request: &Asked<'_>,
    policy: &Document,
    caller: &Caller<'_>,
) -> (Option<StatementRef>, Option<StatementRef>) {
    let allows = |wanted: Named| {
        let allows =
            |s: &Statement| s.effect == Effect::Allow && named(s, caller) == wanted && s.applies(request);
        find(policy, None, allows)
    };
    (allows(Named::Directly), allows(Named::ByAccount))
}

fn identity_allow(request: &Asked<'_>, policies: &[NamedPolicy]) -> Option<StatementRef> {
    let allows = |s: &Statement| s.effect == Effect::Allow && s.applies(request);
    policies.iter().find_map(|p| find(&p.document, Some(&p.name), allows))
}

/// The grant that allows. One to an account as a whole lets its IAM policies decide.
fn granted(request: &Asked<'_>, set: &PolicySet<'_>, caller: &Caller<'_>) -> Option<Decision> {
    let covering =
        |to: &dyn Fn(&Grant) -> bool| set.grants.iter().find(|g| to(g) && g.covers(request.request));
    if let Some(grant) = covering(&|g| caller.is(&g.grantee)) {
        return Some(Decision::yes(Reason::Grant(grant.id.clone())));
    }
    let grant = covering(&|g| caller.is_of_account(&g.grantee))?;
    identity_allow(request, set.identity_policies)?;
    Some(Decision::yes(Reason::Grant(grant.id.clone())))
}

fn named(statement: &Statement, caller: &Caller<'_>) -> Named {
    statement.principals.as_ref().map_or(Named::Not, |p| p.name(caller))
}

fn find(
    document: &Document,
    name: Option<&str>,
    wanted: impl Fn(&Statement) -> bool,
) -> Option<StatementRef> {
    let (index, statement) = document.statements.iter().enumerate().find(|(_, s)| wanted(s))?;
    Some(StatementRef { policy: name.map(str::to_owned), index, sid: statement.sid.clone() })
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
