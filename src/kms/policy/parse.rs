//! The text of a policy, checked as AWS checks it (IAM JSON policy grammar; KMS's PutKeyPolicy).

use super::condition::{Comparison, Condition, Operator, SetOperator};
use super::document::{Actions, Document, Effect, Principal, Principals, Resources, Statement};
use super::grammar::{Malformed, Members, aws_principal, known, member, object, string};
use super::json::Node;
use super::pattern::{ArnPattern, Pattern, Syntax};

/// The longest policy, in bytes (AWS KMS resource quotas: 32 KB).
pub const MAX_POLICY: usize = 32 * 1024;
/// Statements of one policy: each costs time in every request. 32 KiB hold no more of any sensible size.
const MAX_STATEMENTS: usize = 500;

const INVALID_PRINCIPAL: &str = "Policy contains a statement with one or more invalid principals.";
/// conditions-kms, "Using set operators with condition keys" and "kms:EncryptionContext:context-key".
const OVERLY_PERMISSIVE_TAG: &str = "OverlyPermissiveCondition: Using the ForAllValues set operator with a \
    single-valued condition key matches requests without the specified [encryption context or tag] or with an \
    unspecified [encryption context or tag]. To fix, remove ForAllValues.";
const OVERLY_PERMISSIVE_CONTEXT: &str = "OverlyPermissiveCondition:EncryptionContext: Using the ForAllValues set \
    operator with a single-valued condition key matches requests without the specified encryption context or with \
    an unspecified encryption context. To fix, remove ForAllValues.";

/// Which grammar.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Of a key: statements name principals.
    Key,
    /// Of a principal: they must not.
    Identity,
}

/// Reads a key policy. A statement without `Action` or without `Resource` is accepted and has no effect.
pub fn parse(text: &str) -> Result<Document, Malformed> {
    read(text, Kind::Key)
}

/// Reads an IAM policy of a principal.
pub fn parse_identity(text: &str) -> Result<Document, Malformed> {
    read(text, Kind::Identity)
}

fn read(text: &str, kind: Kind) -> Result<Document, Malformed> {
    if text.len() > MAX_POLICY {
        return Err(Malformed {
            code: "LimitExceededException",
            message: format!("The policy document is longer than {MAX_POLICY} bytes."),
            detail: format!("{} bytes, at most {MAX_POLICY} are allowed", text.len()),
        });
    }
    if kind == Kind::Key
        && let Some(bad) = text.chars().find(|c| !is_key_policy_char(*c))
    {
        let detail = format!("the character {bad:?} is beyond Latin-1");
        return Err(Malformed::new("Policy contains invalid characters.", detail));
    }
    let tree: Node = serde_json::from_str(text).map_err(|e| Malformed::syntax(e.to_string()))?;
    let members = object(&tree, "the policy")?;
    known(members, &["Version", "Id", "Statement"], "the policy")?;
    let version = member(members, "Version").map(|n| string(n, "Version")).transpose()?;
    let variables = match version {
        Some("2012-10-17") => true,
        None | Some("2008-10-17") => false,
        Some(other) => {
            return Err(Malformed::syntax(format!("Version \"{other}\" is unknown; write \"2012-10-17\"")));
        }
    };
    let id = member(members, "Id").map(|n| string(n, "Id")).transpose()?.map(str::to_owned);
    let list = member(members, "Statement").ok_or_else(|| Malformed::syntax("it has no Statement"))?.each();
    if list.is_empty() {
        return Err(Malformed::syntax("Statement is empty"));
    }
    if list.len() > MAX_STATEMENTS {
        return Err(Malformed::syntax(format!("it has more than {MAX_STATEMENTS} statements")));
    }
    let statements = list.iter().enumerate().map(|(at, node)| Place { at, kind, variables }.statement(node));
    let statements = statements.collect::<Result<Vec<_>, _>>()?;
    unique_sids(&statements)?;
    Ok(Document { id, statements })
}

/// Latin-1 without control characters, and tab, line feed, carriage return (key-policy-overview, "Key policy format").
fn is_key_policy_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{a0}'..='\u{ff}')
}

fn unique_sids(statements: &[Statement]) -> Result<(), Malformed> {
    let mut seen = std::collections::BTreeSet::new();
    match statements.iter().filter_map(|s| s.sid.as_deref()).find(|sid| !sid.is_empty() && !seen.insert(*sid))
    {
        None => Ok(()),
        Some(twice) => Err(Malformed::new(
            "Statement IDs (SID) in a single policy must be unique.",
            format!("two statements have the Sid \"{twice}\""),
        )),
    }
}

/// Where in the document a statement stands, and how it is read.
#[derive(Clone, Copy)]
struct Place {
    at: usize,
    kind: Kind,
    variables: bool,
}

impl Place {
    /// Names the statement and what of it.
    fn of(self, what: &str) -> String {
        format!("statement {}: {what}", self.at + 1)
    }

    fn wrong(self, why: impl std::fmt::Display) -> Malformed {
        Malformed::syntax(self.of(&why.to_string()))
    }

    fn statement(self, node: &Node) -> Result<Statement, Malformed> {
        const KNOWN: &[&str] = &[
            "Sid",
            "Effect",
            "Principal",
            "NotPrincipal",
            "Action",
            "NotAction",
            "Resource",
            "NotResource",
            "Condition",
        ];
        let members = object(node, &self.of("it"))?;
        known(members, KNOWN, &self.of("it"))?;
        let sid = member(members, "Sid").map(|n| string(n, &self.of("Sid"))).transpose()?;
        let effect = match member(members, "Effect") {
            Some(Node::Text(text)) if text == "Allow" => Effect::Allow,
            Some(Node::Text(text)) if text == "Deny" => Effect::Deny,
            Some(_) => return Err(self.wrong("Effect is neither \"Allow\" nor \"Deny\"")),
            None => return Err(self.wrong("it has no Effect")),
        };
        let principals = self.principals(members, effect)?;
        let actions = self.either(members, "Action")?.map(|(negated, node)| self.actions(negated, node));
        let resources =
            self.either(members, "Resource")?.map(|(negated, node)| self.resources(negated, node));
        let (actions, resources) = (actions.transpose()?, resources.transpose()?);
        if self.kind == Kind::Identity && actions.is_none() {
            return Err(Malformed::new(
                "Policy statement must contain actions.",
                self.of("it has no Action"),
            ));
        }
        if self.kind == Kind::Identity && resources.is_none() {
            return Err(Malformed::new(
                "Policy statement must contain resources.",
                self.of("it has no Resource"),
            ));
        }
        let conditions = match member(members, "Condition") {
            None => Vec::new(),
            Some(node) => self.conditions(node)?,
        };
        Ok(Statement { sid: sid.map(str::to_owned), effect, principals, actions, resources, conditions })
    }

    /// `NAME` or `NotNAME`, of which a statement has one.
    fn either<'n>(self, members: &'n Members, name: &str) -> Result<Option<(bool, &'n Node)>, Malformed> {
        match (member(members, name), member(members, &format!("Not{name}"))) {
            (Some(_), Some(_)) => Err(self.wrong(format_args!("it has both {name} and Not{name}"))),
            (Some(node), None) => Ok(Some((false, node))),
            (None, Some(node)) => Ok(Some((true, node))),
            (None, None) => Ok(None),
        }
    }

    fn principals(self, members: &Members, effect: Effect) -> Result<Option<Principals>, Malformed> {
        let found = self.either(members, "Principal")?;
        match (self.kind, found) {
            (Kind::Identity, None) => Ok(None),
            (Kind::Identity, Some(_)) => {
                let text = "Policy document should not specify a principal.";
                Err(Malformed::new(text, self.of("a policy of a principal names none")))
            }
            (Kind::Key, None) => {
                let text = "Policy contains a statement with no principal.";
                Err(Malformed::new(text, self.of("it has neither Principal nor NotPrincipal")))
            }
            (Kind::Key, Some((true, _))) if effect == Effect::Allow => {
                let text = "NotPrincipal is not supported with the effect Allow.";
                Err(Malformed::new(text, self.of("NotPrincipal stands with Deny only")))
            }
            (Kind::Key, Some((negated, node))) => {
                let list = self.principal_list(node)?;
                if list.is_empty() {
                    return Err(Malformed::new(
                        INVALID_PRINCIPAL,
                        self.of("its list of principals is empty"),
                    ));
                }
                Ok(Some(Principals { negated, list }))
            }
        }
    }

    fn principal_list(self, node: &Node) -> Result<Vec<Principal>, Malformed> {
        let invalid = |why: String| Malformed::new(INVALID_PRINCIPAL, self.of(&why));
        match node {
            Node::Text(text) if text == "*" => return Ok(vec![Principal::Everyone]),
            Node::Map(_) => {}
            other => return Err(invalid(format!("Principal is {}, not \"*\" or an object", other.kind()))),
        }
        let mut list = Vec::new();
        for (kind, values) in object(node, "Principal")? {
            for value in values.each() {
                let text = string(value, &self.of("a principal"))?;
                list.push(match kind.as_str() {
                    "AWS" => aws_principal(text).ok_or_else(|| {
                        invalid(format!(
                            "\"{text}\" is neither an account nor the ARN of a user, role or session"
                        ))
                    })?,
                    "Service" if text.contains('.') => Principal::Service(text.to_owned()),
                    "Service" => return Err(invalid(format!("\"{text}\" is not the name of a service"))),
                    "Federated" | "CanonicalUser" => Principal::Foreign,
                    other => return Err(invalid(format!("\"{other}\" is no kind of principal"))),
                });
            }
        }
        Ok(list)
    }

    fn actions(self, negated: bool, node: &Node) -> Result<Actions, Malformed> {
        let syntax = Syntax { wildcards: true, variables: false };
        let one = |node: &Node| {
            let text = string(node, &self.of("an action"))?;
            if text != "*"
                && !text.split_once(':').is_some_and(|(vendor, name)| !vendor.is_empty() && !name.is_empty())
            {
                let message = "Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc.";
                return Err(Malformed::new(
                    message,
                    self.of(&format!("\"{text}\" is no action such as \"kms:Decrypt\"")),
                ));
            }
            Pattern::new(&text.to_ascii_lowercase(), syntax).map_err(|e| self.wrong(e))
        };
        let list = node.each().iter().map(one).collect::<Result<Vec<_>, _>>()?;
        if list.is_empty() {
            return Err(self.wrong("its list of actions is empty"));
        }
        Ok(Actions { negated, list })
    }

    fn resources(self, negated: bool, node: &Node) -> Result<Resources, Malformed> {
        let one = |node: &Node| {
            let text = string(node, &self.of("a resource"))?;
            let invalid = |why: String| {
                let message = format!("Resource {text} must be in ARN format or \"*\".");
                Malformed::new(&message, self.of(&why))
            };
            ArnPattern::resource(text, self.variables).map_err(invalid)
        };
        let list = node.each().iter().map(one).collect::<Result<Vec<_>, _>>()?;
        if list.is_empty() {
            return Err(self.wrong("its list of resources is empty"));
        }
        Ok(Resources { negated, list })
    }

    fn conditions(self, node: &Node) -> Result<Vec<Condition>, Malformed> {
        let mut all = Vec::new();
        for (name, keys) in object(node, &self.of("Condition"))? {
            let operator = Operator::parse(name)
                .ok_or_else(|| self.wrong(format_args!("\"{name}\" is no condition operator")))?;
            for (key, values) in object(keys, &self.of(name))? {
                self.check_key(key, operator)?;
                let operand = |node: &Node| {
                    let text = node.scalar().ok_or_else(|| {
                        self.wrong(format_args!("a value of {key} is {}, not a string", node.kind()))
                    })?;
                    operator
                        .operand(&text, self.variables)
                        .map_err(|e| self.wrong(format_args!("{name}, {key}: {e}")))
                };
                let values = values.each().iter().map(operand).collect::<Result<Vec<_>, _>>()?;
                all.push(Condition { operator, key: key.to_lowercase(), values });
            }
        }
        Ok(all)
    }

    /// Refuses what AWS refuses: a key without its service, and a set operator that makes a condition say nothing.
    fn check_key(self, key: &str, operator: Operator) -> Result<(), Malformed> {
        if !key.contains(':') {
            let message = "Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc.";
            return Err(Malformed::new(message, self.of(&format!("\"{key}\" is no condition key"))));
        }
        let lower = key.to_lowercase();
        let message = match () {
            () if lower.starts_with("kms:encryptioncontext:") => OVERLY_PERMISSIVE_CONTEXT,
            () if lower.starts_with("aws:requesttag/") => OVERLY_PERMISSIVE_TAG,
            () => return Ok(()),
        };
        if operator.set == Some(SetOperator::ForAllValues) && operator.comparison != Comparison::Null {
            return Err(Malformed::new(message, self.of(&format!("{key} has one value at most"))));
        }
        Ok(())
    }
}
