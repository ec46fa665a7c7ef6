//! Names of keys: key ids, ARNs, aliases, alias ARNs, and the account and region they belong to.

use serde::{Deserialize, Serialize};

use super::error::KmsError;

/// Account of the embedded KMS.
pub(super) const HOME_ACCOUNT: &str = "000000000000";
/// Region of the embedded KMS.
pub(super) const HOME_REGION: &str = "us-east-1";
/// Begins every alias.
pub(super) const ALIAS_PREFIX: &str = "alias/";
/// Aliases that AWS keeps for its services.
pub(super) const RESERVED_PREFIX: &str = "alias/aws/";
/// Begins the id of a multi-region key.
const MRK_PREFIX: &str = "mrk-";
/// The longest alias.
const MAX_ALIAS: usize = 256;
/// Where AWS explains aliases; part of its message.
const ALIAS_HELP: &str = "https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html";

/// Account and region: keys and aliases of one are not seen from another.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Scope {
    /// Twelve digits.
    pub account: String,
    /// For example `us-east-1`.
    pub region: String,
}

impl Scope {
    /// Account and region of the embedded KMS.
    pub fn home() -> Self {
        Self { account: HOME_ACCOUNT.into(), region: HOME_REGION.into() }
    }

    /// ARN of a key.
    pub(super) fn key_arn(&self, id: &str) -> String {
        format!("arn:aws:kms:{}:{}:key/{id}", self.region, self.account)
    }

    /// ARN of an alias, given with its prefix `alias/`.
    pub(super) fn alias_arn(&self, name: &str) -> String {
        format!("arn:aws:kms:{}:{}:{name}", self.region, self.account)
    }

    /// Where the store keeps an alias: the home scope's stand under their bare names.
    pub(super) fn alias_slot(&self, name: &str) -> String {
        if *self == Self::home() {
            name.to_owned()
        } else {
            format!("{}:{}:{name}", self.account, self.region)
        }
    }

    /// Where the store keeps a key: multi-region keys share an id, so their slot names the region too.
    pub(super) fn key_slot(&self, id: &str) -> String {
        if id.starts_with(MRK_PREFIX) { format!("{id}@{}", self.region) } else { id.to_owned() }
    }
}

/// A key as a caller names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum KeyRef {
    /// By its id, in a scope.
    Id(Scope, String),
    /// By an alias, `alias/NAME`, in a scope.
    Alias(Scope, String),
}

impl KeyRef {
    /// Reads a key id, a key ARN, an alias or an alias ARN, as a caller in `scope` means it. An ARN may name another
    /// account, never another region.
    pub(super) fn parse(text: &str, scope: &Scope) -> Result<Self, KmsError> {
        let (scope, rest, is_arn) = match text.strip_prefix("arn:") {
            Some(arn) => {
                let (scope, rest) = split_arn(arn, scope).ok_or_else(|| foreign_arn(text))?;
                (scope, rest, true)
            }
            None => (scope.clone(), text, false),
        };
        if rest.starts_with(ALIAS_PREFIX) {
            return Ok(Self::Alias(scope, rest.to_owned()));
        }
        let id = if is_arn { rest.strip_prefix("key/").unwrap_or("") } else { rest };
        if is_key_id(id) { Ok(Self::Id(scope, id.to_owned())) } else { Err(invalid_key_id(text)) }
    }
}

/// `aws:kms:REGION:ACCOUNT:REST`, where the region is the caller's.
fn split_arn<'a>(arn: &'a str, scope: &Scope) -> Option<(Scope, &'a str)> {
    let mut parts = arn.splitn(5, ':');
    let (partition, service, region, account) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let good = partition == "aws" && service == "kms" && region == scope.region && is_account(account);
    good.then(|| (Scope { account: account.into(), region: region.into() }, parts.next().unwrap_or("")))
}

/// Twelve digits.
pub(super) fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

/// `us-east-1` and its like: `^([a-z]+-){2,3}\d+$`.
pub(super) fn is_region(text: &str) -> bool {
    let mut parts: Vec<_> = text.split('-').collect();
    let number = parts.pop().unwrap_or_default();
    (2..=3).contains(&parts.len())
        && text.len() <= 32
        && !number.is_empty()
        && number.bytes().all(|b| b.is_ascii_digit())
        && parts.iter().all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_lowercase()))
}

/// Directions that AWS names its regions by.
const DIRECTIONS: [&str; 9] =
    ["central", "east", "north", "northeast", "northwest", "south", "southeast", "southwest", "west"];

/// Whether AWS could have a region of this name: `us-fakey-1` is one by its form, and no host answers for it.
pub(super) fn could_exist(region: &str) -> bool {
    is_region(region) && region.split('-').rev().nth(1).is_some_and(|d| DIRECTIONS.contains(&d))
}

/// Refuses what is no name for a new alias; `alias/aws/` is the service's own.
pub(super) fn check_alias(name: &str) -> Result<(), KmsError> {
    check_alias_form(name)?;
    if name.starts_with(RESERVED_PREFIX) {
        return Err(KmsError::exception("NotAuthorizedException", ""));
    }
    Ok(())
}

/// Refuses what is no alias at all.
pub(super) fn check_alias_form(name: &str) -> Result<(), KmsError> {
    let Some(rest) = name.strip_prefix(ALIAS_PREFIX) else {
        let text = format!("Alias must start with the prefix \"alias/\". Please see {ALIAS_HELP}");
        return Err(KmsError::Validation(text));
    };
    if rest.is_empty() || name.len() > MAX_ALIAS {
        let rule = format!("Member must have 1 to {MAX_ALIAS} characters");
        return Err(KmsError::constraint("aliasName", Some(name), &rule));
    }
    if rest.contains(':') {
        return Err(KmsError::Validation(format!("{name} contains invalid characters for an alias")));
    }
    if rest.chars().any(|c| !c.is_ascii_alphanumeric() && !":/_-".contains(c)) {
        return Err(KmsError::constraint(
            "aliasName",
            Some(name),
            "Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$",
        ));
    }
    Ok(())
}

/// A random key id: the text of a version 4 UUID.
pub(super) fn new_key_id() -> String {
    let mut raw: [u8; 16] = crate::crypto::random::array();
    raw[6] = (raw[6] & 0x0f) | 0x40;
    raw[8] = (raw[8] & 0x3f) | 0x80;
    id_text(&raw)
}

/// A random id of a multi-region key.
pub(super) fn new_mrk_id() -> String {
    mrk_text(&crate::crypto::random::array())
}

/// Text of a key id's 16 bytes.
pub(super) fn id_text(raw: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (i, byte) in raw.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&super::hex::encode(&[*byte]));
    }
    text
}

/// Text of a multi-region key id's 16 bytes.
pub(super) fn mrk_text(raw: &[u8; 16]) -> String {
    format!("{MRK_PREFIX}{}", super::hex::encode(raw))
}

/// The 16 bytes of a key id's text.
pub(super) fn id_bytes(text: &str) -> Option<[u8; 16]> {
    if !is_key_id(text) {
        return None;
    }
    super::hex::decode(&text.trim_start_matches(MRK_PREFIX).replace('-', ""))?.try_into().ok()
}

/// Whether an id is a multi-region key's.
pub(super) fn is_mrk(id: &str) -> bool {
    id.starts_with(MRK_PREFIX)
}

pub(super) fn is_key_id(text: &str) -> bool {
    let digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if let Some(rest) = text.strip_prefix(MRK_PREFIX) {
        return rest.len() == 32 && rest.bytes().all(digit);
    }
    text.len() == 36
        && text.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => digit(b),
        })
}

fn invalid_key_id(text: &str) -> KmsError {
    KmsError::NotFound(format!("Invalid keyId '{text}'"))
}

fn foreign_arn(text: &str) -> KmsError {
    // AWS names the region of an ARN that is not its own.
    KmsError::NotFound(format!("Invalid arn {}", text.split(':').nth(3).unwrap_or(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All four forms in which AWS takes a key are read, and garbage is refused with AWS's words.
    #[test]
    fn every_form_of_a_key_name_is_read() {
        let home = Scope::home();
        let other = Scope { account: "111122223333".into(), region: HOME_REGION.into() };
        let parse = |text: &str| KeyRef::parse(text, &home);
        for id in [new_key_id(), new_mrk_id()] {
            assert_eq!(parse(&id).unwrap(), KeyRef::Id(home.clone(), id.clone()));
            assert_eq!(parse(&home.key_arn(&id)).unwrap(), KeyRef::Id(home.clone(), id.clone()));
            assert_eq!(parse(&other.key_arn(&id)).unwrap(), KeyRef::Id(other.clone(), id.clone()));
        }
        assert_eq!(parse("alias/a/b").unwrap(), KeyRef::Alias(home.clone(), "alias/a/b".into()));
        assert_eq!(parse(&home.alias_arn("alias/x")).unwrap(), KeyRef::Alias(home.clone(), "alias/x".into()));
        let id = new_key_id();
        for (bad, text) in [
            ("fake-key-id", "Invalid keyId 'fake-key-id'"),
            ("", "Invalid keyId ''"),
            ("mrk-12", "Invalid keyId 'mrk-12'"),
            ("arn:aws:kms:us-west-1:000000000000:key/x", "Invalid arn us-west-1"),
            (&id.to_uppercase().replace(|c: char| c.is_ascii_digit(), "A"), "Invalid keyId"),
        ] {
            assert!(parse(bad).unwrap_err().to_string().starts_with(text), "{bad}");
        }
        assert_eq!(id_text(&id_bytes(&id).unwrap()), id);
    }

    /// Alias names follow AWS's rules, with its exception for each.
    #[test]
    fn alias_names_follow_the_rules_of_aws() {
        check_alias("alias/Ab0/_-").unwrap();
        for (name, code) in [
            ("name", "ValidationException"),
            ("alias/", "ValidationException"),
            (&*format!("alias/{}", "x".repeat(251)), "ValidationException"),
            ("alias/my-alias!", "ValidationException"),
            ("alias/a:b", "ValidationException"),
            ("alias/aws/foo", "NotAuthorizedException"),
        ] {
            assert_eq!(check_alias(name).unwrap_err().code(), code, "{name}");
        }
    }

    /// Regions have the form that AWS's model gives.
    #[test]
    fn regions_have_a_form() {
        for good in ["us-east-1", "us-gov-west-1", "ap-southeast-12"] {
            assert!(is_region(good), "{good}");
        }
        assert!(could_exist("us-gov-west-1") && !could_exist("us-fakey-12"));
        for bad in ["", "us", "us-east", "us-east-x", "US-east-1", "a-b-c-d-1", "us--1"] {
            assert!(!is_region(bad), "{bad}");
        }
    }
}
