//! Names of keys: key ids, ARNs, aliases, alias ARNs.

use super::error::KmsError;

/// Begins every ARN of a key or an alias here: a local store has one region and one account.
const ARN_PREFIX: &str = "arn:aws:kms:us-east-1:000000000000:";
/// Begins every alias.
const ALIAS_PREFIX: &str = "alias/";
/// Aliases that AWS keeps for its services.
const RESERVED_PREFIX: &str = "alias/aws/";
/// The longest alias.
const MAX_ALIAS: usize = 256;
/// Where AWS explains aliases; part of its message.
const ALIAS_HELP: &str = "https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html";

/// A key as a caller names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum KeyRef {
    /// By its id.
    Id(String),
    /// By an alias, `alias/NAME`.
    Alias(String),
}

impl KeyRef {
    /// Reads a key id, a key ARN, an alias or an alias ARN.
    pub(super) fn parse(text: &str) -> Result<Self, KmsError> {
        let rest = match text.strip_prefix("arn:") {
            Some(_) => text.strip_prefix(ARN_PREFIX).ok_or_else(|| foreign_arn(text))?,
            None => text,
        };
        if rest.starts_with(ALIAS_PREFIX) {
            return Ok(Self::Alias(rest.to_owned()));
        }
        let id = if rest.len() == text.len() { rest } else { rest.strip_prefix("key/").unwrap_or("") };
        if is_key_id(id) { Ok(Self::Id(id.to_owned())) } else { Err(invalid_key_id(text)) }
    }
}

/// ARN of a key.
pub(super) fn key_arn(id: &str) -> String {
    format!("{ARN_PREFIX}key/{id}")
}

/// ARN of an alias, given with its prefix `alias/`.
pub(super) fn alias_arn(name: &str) -> String {
    format!("{ARN_PREFIX}{name}")
}

/// Refuses what is no name for a new alias.
pub(super) fn check_alias(name: &str) -> Result<(), KmsError> {
    let Some(rest) = name.strip_prefix(ALIAS_PREFIX) else {
        let text = format!("Alias must start with the prefix \"alias/\". Please see {ALIAS_HELP}");
        return Err(KmsError::Validation(text));
    };
    if rest.is_empty() || name.len() > MAX_ALIAS {
        return Err(KmsError::Validation(format!(
            "1 validation error detected: Value '{name}' at 'aliasName' failed to satisfy constraint: \
             Member must have 1 to {MAX_ALIAS} characters"
        )));
    }
    if let Some(bad) = rest.chars().find(|c| !c.is_ascii_alphanumeric() && !":/_-".contains(*c)) {
        return Err(KmsError::InvalidAliasName(format!(
            "Alias contains invalid character {bad:?}. Alias should only contain a-z, A-Z, 0-9, :, /, _ and -"
        )));
    }
    if name.starts_with(RESERVED_PREFIX) {
        return Err(KmsError::InvalidAliasName(format!(
            "Alias {name} is reserved: \"{RESERVED_PREFIX}\" is AWS's"
        )));
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

/// Text of a key id's 16 bytes.
pub(super) fn id_text(raw: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (i, byte) in raw.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// The 16 bytes of a key id's text.
pub(super) fn id_bytes(text: &str) -> Option<[u8; 16]> {
    if !is_key_id(text) {
        return None;
    }
    super::hex::decode(&text.replace('-', ""))?.try_into().ok()
}

fn is_key_id(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => matches!(b, b'0'..=b'9' | b'a'..=b'f'),
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
        let id = new_key_id();
        assert_eq!(KeyRef::parse(&id).unwrap(), KeyRef::Id(id.clone()));
        assert_eq!(KeyRef::parse(&key_arn(&id)).unwrap(), KeyRef::Id(id.clone()));
        assert_eq!(KeyRef::parse("alias/a/b").unwrap(), KeyRef::Alias("alias/a/b".into()));
        assert_eq!(KeyRef::parse(&alias_arn("alias/x")).unwrap(), KeyRef::Alias("alias/x".into()));
        for (bad, text) in [
            ("fake-key-id", "Invalid keyId 'fake-key-id'"),
            ("", "Invalid keyId ''"),
            ("arn:aws:kms:us-west-1:000000000000:key/x", "Invalid arn us-west-1"),
            (&id.to_uppercase().replace(|c: char| c.is_ascii_digit(), "A"), "Invalid keyId"),
        ] {
            assert!(KeyRef::parse(bad).unwrap_err().to_string().starts_with(text), "{bad}");
        }
        assert_eq!(id_text(&id_bytes(&id).unwrap()), id);
    }

    /// Alias names follow AWS's rules, with its exception for each.
    #[test]
    fn alias_names_follow_the_rules_of_aws() {
        check_alias("alias/Ab0:/_-").unwrap();
        for (name, code) in [
            ("name", "ValidationException"),
            ("alias/", "ValidationException"),
            (&*format!("alias/{}", "x".repeat(251)), "ValidationException"),
            ("alias/my-alias!", "InvalidAliasNameException"),
            ("alias/aws/foo", "InvalidAliasNameException"),
        ] {
            assert_eq!(check_alias(name).unwrap_err().code(), code, "{name}");
        }
    }
}
