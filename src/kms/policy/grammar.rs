//! What the grammar of policies is made of: objects with known members, strings, principals; and the error.

use super::document::Principal;
use super::json::Node;

/// Why a text is no policy: AWS's exception and message, and what exactly is wrong.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Malformed {
    /// AWS's exception: `MalformedPolicyDocumentException` or `LimitExceededException`.
    pub code: &'static str,
    /// AWS's message.
    pub message: String,
    /// Which statement and member, and what it should be; for people at a command line or the console.
    pub detail: String,
}

impl Malformed {
    pub(super) fn new(message: &str, detail: impl Into<String>) -> Self {
        let code = "MalformedPolicyDocumentException";
        Self { code, message: message.to_owned(), detail: detail.into() }
    }

    pub(super) fn syntax(detail: impl Into<String>) -> Self {
        Self::new("Syntax errors in policy.", detail)
    }
}

/// A principal below `"AWS"`. A `*` stands for everybody or not at all.
pub(super) fn aws_principal(text: &str) -> Option<Principal> {
    if text == "*" {
        return Some(Principal::EveryAccount);
    }
    let is_account = |a: &str| a.len() == 12 && a.bytes().all(|b| b.is_ascii_digit());
    if is_account(text) {
        return Some(Principal::Account(text.to_owned()));
    }
    // Unique ids of principals that were deleted: AIDA..., AROA...
    let unique = text.len() >= 16 && text.starts_with('A') && text.bytes().all(|b| b.is_ascii_alphanumeric());
    if unique {
        return Some(Principal::Identity(text.to_owned()));
    }
    let mut parts = text.splitn(6, ':');
    let (arn, partition, service) = (parts.next()?, parts.next()?, parts.next()?);
    let (region, account, name) = (parts.next()?, parts.next()?, parts.next()?);
    let good = arn == "arn" && partition.starts_with("aws") && region.is_empty() && is_account(account);
    if !good || name.contains(['*', '?']) {
        return None;
    }
    match (service, name.split_once('/')) {
        ("iam", None) if name == "root" => Some(Principal::Account(account.to_owned())),
        ("iam", Some(("user" | "role", rest))) | ("sts", Some(("federated-user", rest)))
            if !rest.is_empty() =>
        {
            Some(Principal::Identity(text.to_owned()))
        }
        ("sts", Some(("assumed-role", rest)))
            if rest.split_once('/').is_some_and(|(r, s)| !r.is_empty() && !s.is_empty()) =>
        {
            Some(Principal::Identity(text.to_owned()))
        }
        _ => None,
    }
}

/// The members of an object, in the order of the text.
pub(super) type Members = [(String, Node)];

/// The members of an object.
pub(super) fn object<'n>(node: &'n Node, what: &str) -> Result<&'n Members, Malformed> {
    match node {
        Node::Map(members) => Ok(members),
        other => Err(Malformed::syntax(format!("{what} is {}, not an object", other.kind()))),
    }
}

/// A string.
pub(super) fn string<'n>(node: &'n Node, what: &str) -> Result<&'n str, Malformed> {
    match node {
        Node::Text(text) => Ok(text),
        other => Err(Malformed::syntax(format!("{what} is {}, not a string", other.kind()))),
    }
}

/// A member by its name.
pub(super) fn member<'n>(members: &'n Members, name: &str) -> Option<&'n Node> {
    members.iter().find(|(key, _)| key == name).map(|(_, node)| node)
}

/// Refuses members of other names.
pub(super) fn known(members: &Members, names: &[&str], what: &str) -> Result<(), Malformed> {
    match members.iter().find(|(key, _)| !names.contains(&key.as_str())) {
        None => Ok(()),
        Some((other, _)) => {
            Err(Malformed::syntax(format!("{what} has a member \"{other}\", which no policy has")))
        }
    }
}
