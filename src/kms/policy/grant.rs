//! Grants: permissions of one principal on one key for some operations, never a denial
//! (AWS KMS Developer Guide, grants).

use std::collections::BTreeMap;

use super::evaluate::Request;

/// Pairs of an encryption context.
type Pairs = BTreeMap<String, String>;

/// A grant, as far as it decides. It stands for one key: which grants a key has is the store's to know.
#[derive(Clone, Default, Debug)]
pub struct Grant {
    /// Its id.
    pub id: String,
    /// Who may: a principal's ARN or a service's name.
    pub grantee: String,
    /// What: names of operations, as `Decrypt` or `GenerateDataKey`.
    pub operations: Vec<String>,
    /// EncryptionContextEquals: the request's context has to be exactly this.
    pub equals: Option<Pairs>,
    /// EncryptionContextSubset: the request's context has to hold all of this.
    pub subset: Option<Pairs>,
    /// Whether it has reached everywhere. Until then it works only for who shows its token.
    pub settled: bool,
    /// Tokens that CreateGrant gave for it.
    pub tokens: Vec<String>,
}

impl Grant {
    /// Whether it covers operation and encryption context of the request; who calls is not looked at.
    pub(super) fn covers(&self, request: &Request<'_>) -> bool {
        let Some(operation) = request.action.strip_prefix("kms:") else { return false };
        // Either spelling of ReEncrypt's halves is the operation's name; case is the API's.
        if !self.operations.iter().any(|o| o.eq_ignore_ascii_case(operation)) {
            return false;
        }
        let shown = |token: &String| request.grant_tokens.contains(token);
        if !self.settled && !self.tokens.iter().any(shown) {
            return false;
        }
        if !bound_by_constraints(operation) {
            return true;
        }
        let empty = Pairs::new();
        let context = request.encryption_context.unwrap_or(&empty);
        let equal = self.equals.as_ref().is_none_or(|wanted| wanted == context);
        equal && self.subset.as_ref().is_none_or(|wanted| holds(context, wanted))
    }
}

/// Whether constraints are looked at: only operations with an encryption context have something to compare.
/// CreateGrant's are compared with those of the new grant ([`child_fits`]).
fn bound_by_constraints(operation: &str) -> bool {
    !["DescribeKey", "RetireGrant", "CreateGrant", "GetPublicKey"]
        .iter()
        .any(|o| o.eq_ignore_ascii_case(operation))
}

fn holds(context: &Pairs, wanted: &Pairs) -> bool {
    wanted.iter().all(|(key, value)| context.get(key) == Some(value))
}

/// Whether a principal that may CreateGrant only by `parent` may make `child`: no operation more, and constraints at
/// least as strict. Subset may gain pairs or become Equals of them; Equals stays as it is.
pub fn child_fits(parent: &Grant, child: &Grant) -> bool {
    let operations = child.operations.iter().all(|o| parent.operations.contains(o));
    let equals = parent.equals.as_ref().is_none_or(|wanted| child.equals.as_ref() == Some(wanted));
    let narrower = |wanted: &Pairs| {
        child.equals.as_ref().is_some_and(|c| holds(c, wanted))
            || child.subset.as_ref().is_some_and(|c| holds(c, wanted))
    };
    operations && equals && parent.subset.as_ref().is_none_or(narrower)
}
