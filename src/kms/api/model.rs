//! AWS's model of the API: which members an action takes, and their bounds. `scripts/kms-model.py` cuts it out of
//! botocore's (Apache-2.0).

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;

use super::call::lower_camel;
use crate::kms::arn;
use crate::kms::error::KmsError;

/// More errors than this are not listed.
const MAX_ERRORS: usize = 10;
/// What a blob is longer than its plaintext, at most (AWS: 6,144 for 4,096).
const BLOB_OVERHEAD: usize = 2048;
/// Strings that no message repeats: messages stand in the audit log and on the console.
const WITHHELD: &[&str] =
    &["GrantTokenType", "KeyStorePasswordType", "XksProxyAuthenticationRawSecretAccessKeyType"];
/// AWS's own order in the messages that were recorded from it.
const MAC_ORDER: &str = "[HMAC_SHA_384, HMAC_SHA_256, HMAC_SHA_224, HMAC_SHA_512]";

#[derive(Deserialize)]
struct Model {
    actions: BTreeMap<String, Action>,
    shapes: BTreeMap<String, Shape>,
}

#[derive(Deserialize)]
struct Action {
    #[serde(default)]
    required: Vec<String>,
    members: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Shape {
    r#type: String,
    min: Option<usize>,
    max: Option<usize>,
    #[serde(default)]
    r#enum: Vec<String>,
    #[serde(default)]
    pattern: String,
    #[serde(default)]
    required: Vec<String>,
    #[serde(default)]
    members: BTreeMap<String, String>,
    member: Option<String>,
    value: Option<String>,
}

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    serde_json::from_str(include_str!("model.json")).expect("the model is part of the program")
});

/// An input member of an action, for command lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// AWS's name, for example `KeyId`.
    pub name: &'static str,
    /// Whether the action needs it.
    pub required: bool,
    /// `string`, `blob`, `integer`, `boolean`, `timestamp`, `list`, `map` or `structure`.
    pub kind: &'static str,
}

/// Names of all actions.
pub fn actions() -> impl Iterator<Item = &'static str> {
    MODEL.actions.keys().map(String::as_str)
}

/// Input members of an action; none for an unknown one.
pub fn members(action: &str) -> Vec<Member> {
    let Some(action) = MODEL.actions.get(action) else { return Vec::new() };
    let member = |(name, shape): (&'static String, &'static String)| Member {
        name,
        required: action.required.contains(name),
        kind: MODEL.shapes.get(shape).map_or("string", |s| s.r#type.as_str()),
    };
    action.members.iter().map(member).collect()
}

/// Checks an input. `plaintext` is the longest plaintext of Encrypt.
pub(super) fn check(action: &str, input: &Value, plaintext: usize) -> Result<(), KmsError> {
    let Some(action) = MODEL.actions.get(action) else { return Ok(()) };
    let mut found = Checker { errors: Vec::new(), plaintext };
    found.structure("", &action.required, &action.members, input)?;
    let errors = found.errors;
    if errors.is_empty() {
        return Ok(());
    }
    let plural = if errors.len() == 1 { "error" } else { "errors" };
    Err(KmsError::Validation(format!("{} validation {plural} detected: {}", errors.len(), errors.join("; "))))
}

struct Checker {
    errors: Vec<String>,
    plaintext: usize,
}

impl Checker {
    fn structure(
        &mut self,
        path: &str,
        required: &[String],
        members: &BTreeMap<String, String>,
        value: &Value,
    ) -> Result<(), KmsError> {
        let given = value.as_object().ok_or_else(|| wrong_type(path, "a structure"))?;
        for name in required {
            if given.get(name).is_none_or(Value::is_null) {
                self.add(&join(path, name), "null ", "Member must not be null");
            }
        }
        for (name, member) in given {
            if let Some(shape) = members.get(name).filter(|_| !member.is_null()) {
                self.shape(&join(path, name), shape, member)?;
            }
        }
        Ok(())
    }

    fn shape(&mut self, path: &str, name: &str, value: &Value) -> Result<(), KmsError> {
        let Some(shape) = MODEL.shapes.get(name) else { return Ok(()) };
        match shape.r#type.as_str() {
            "structure" => self.structure(path, &shape.required, &shape.members, value),
            "list" => {
                let items = value.as_array().ok_or_else(|| wrong_type(path, "a list"))?;
                self.length(path, items.len(), shape.min, shape.max, "");
                let inner = shape.member.as_deref().unwrap_or_default();
                items
                    .iter()
                    .take(1024)
                    .enumerate()
                    .try_for_each(|(at, item)| self.shape(&format!("{path}.{}.member", at + 1), inner, item))
            }
            "map" => {
                let pairs = value.as_object().ok_or_else(|| wrong_type(path, "a map"))?;
                let inner = shape.value.as_deref().unwrap_or_default();
                pairs.values().try_for_each(|item| self.shape(path, inner, item))
            }
            "integer" => {
                let number = value.as_i64().ok_or_else(|| wrong_type(path, "an Integer"))?;
                self.number(path, number, shape);
                Ok(())
            }
            "boolean" if !value.is_boolean() => Err(wrong_type(path, "a Boolean")),
            "timestamp" if !value.is_number() => Err(wrong_type(path, "a Timestamp")),
            "boolean" | "timestamp" => Ok(()),
            kind => {
                let text = value.as_str().ok_or_else(|| wrong_type(path, "a String"))?;
                if kind == "blob" {
                    self.blob(path, name, text, shape)
                } else {
                    self.string(path, name, text, shape)
                }
                Ok(())
            }
        }
    }

    fn blob(&mut self, path: &str, name: &str, text: &str, shape: &Shape) {
        let padding = text.bytes().rev().take(2).filter(|b| *b == b'=').count();
        let len = (text.len() / 4 * 3).saturating_sub(padding);
        let max = match (name, path) {
            ("PlaintextType", "plaintext") => Some(self.plaintext),
            ("CiphertextType", _) => shape.max.map(|max| max.max(self.plaintext + BLOB_OVERHEAD)),
            _ => shape.max,
        };
        self.length(path, len, shape.min, max, "");
    }

    fn string(&mut self, path: &str, name: &str, text: &str, shape: &Shape) {
        let shown =
            if WITHHELD.contains(&name) || text.len() > 512 { String::new() } else { format!("'{text}' ") };
        if !shape.r#enum.is_empty() {
            if !shape.r#enum.iter().any(|v| v == text) {
                let set = match name {
                    "MacAlgorithmSpec" => MAC_ORDER.to_owned(),
                    _ => format!("[{}]", shape.r#enum.join(", ")),
                };
                self.add(path, &shown, &format!("Member must satisfy enum value set: {set}"));
            }
            return;
        }
        let before = self.errors.len();
        self.length(path, text.chars().count(), shape.min, shape.max, &shown);
        // AliasName has messages of its own, told by the action.
        if self.errors.len() == before && !matches(name, text) {
            let pattern = &shape.pattern;
            self.add(path, &shown, &format!("Member must satisfy regular expression pattern: {pattern}"));
        }
    }

    fn number(&mut self, path: &str, number: i64, shape: &Shape) {
        let bound = |limit: Option<usize>| limit.and_then(|n| i64::try_from(n).ok());
        let shown = format!("'{number}' ");
        if let Some(min) = bound(shape.min).filter(|min| number < *min) {
            self.add(path, &shown, &format!("Member must have value greater than or equal to {min}"));
        }
        if let Some(max) = bound(shape.max).filter(|max| number > *max) {
            self.add(path, &shown, &format!("Member must have value less than or equal to {max}"));
        }
    }

    fn length(&mut self, path: &str, len: usize, min: Option<usize>, max: Option<usize>, shown: &str) {
        if let Some(min) = min.filter(|min| len < *min) {
            self.add(path, shown, &format!("Member must have length greater than or equal to {min}"));
        }
        if let Some(max) = max.filter(|max| len > *max) {
            self.add(path, shown, &format!("Member must have length less than or equal to {max}"));
        }
    }

    fn add(&mut self, path: &str, shown: &str, rule: &str) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(format!("Value {shown}at '{path}' failed to satisfy constraint: {rule}"));
        }
    }
}

/// The patterns of the model that matter, without an engine for regular expressions.
fn matches(shape: &str, text: &str) -> bool {
    let all = |extra: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c));
    match shape {
        "GrantNameType" => all(":/_-"),
        "PrincipalIdType" => text.chars().all(|c| c.is_alphanumeric() || "_+=,.@:/-".contains(c)),
        "RegionType" => arn::is_region(text),
        "AccountIdType" => arn::is_account(text),
        "BackingKeyIdType" => text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')),
        "KeyMaterialDescriptionType" => all(":/_.- \t\n\r"),
        "CloudHsmClusterIdType" => {
            let tail = text.strip_prefix("cluster-");
            tail.is_some_and(|t| t.chars().all(|c| c.is_ascii_alphabetic() || ('2'..='7').contains(&c)))
        }
        "PolicyNameType" => text.chars().all(|c| c.is_alphanumeric() || c == '_'),
        "PolicyType" => text.chars().all(|c| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{ff}')),
        "MarkerType" => text.chars().all(|c| (' '..='\u{ff}').contains(&c)),
        "ServicePrincipalType" => all(".-") && text.matches('.').count() >= 2,
        "GrantConstraintSourceArnType" => text.starts_with("arn:aws") && text.split(':').count() >= 6,
        _ => true,
    }
}

fn join(path: &str, name: &str) -> String {
    let name = lower_camel(name);
    if path.is_empty() { name } else { format!("{path}.{name}") }
}

fn wrong_type(path: &str, wanted: &str) -> KmsError {
    KmsError::exception("SerializationException", format!("{path} can not be converted to {wanted}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(action: &str, input: &Value) -> String {
        check(action, input, 4096).unwrap_err().to_string()
    }

    /// The messages are those recorded from AWS.
    #[test]
    fn messages_are_those_of_aws() {
        assert_eq!(
            text("GenerateRandom", &json!({ "NumberOfBytes": 1025 })),
            "1 validation error detected: Value '1025' at 'numberOfBytes' failed to satisfy constraint: \
             Member must have value less than or equal to 1024"
        );
        assert_eq!(
            text("GenerateMac", &json!({ "KeyId": "k", "Message": "bQ==", "MacAlgorithm": "INVALID" })),
            "1 validation error detected: Value 'INVALID' at 'macAlgorithm' failed to satisfy constraint: \
             Member must satisfy enum value set: [HMAC_SHA_384, HMAC_SHA_256, HMAC_SHA_224, HMAC_SHA_512]"
        );
        assert_eq!(
            text("Encrypt", &json!({ "KeyId": "k", "Plaintext": "" })),
            "1 validation error detected: Value at 'plaintext' failed to satisfy constraint: \
             Member must have length greater than or equal to 1"
        );
        assert!(
            text("Encrypt", &json!({})).starts_with("2 validation errors detected: Value null at 'keyId'")
        );
        assert!(text("ListKeys", &json!({ "Limit": "x" })).contains("can not be converted"));
    }

    /// No message repeats a secret: the audit log holds messages.
    #[test]
    fn messages_hold_no_secret() {
        let mut seen = 0;
        for (name, shape) in MODEL.shapes.iter().filter(|(name, _)| WITHHELD.contains(&name.as_str())) {
            let long = "!".repeat(shape.max.unwrap_or(0).min(500) + 1);
            for secret in ["!!!", &long] {
                let mut found = Checker { errors: Vec::new(), plaintext: 4096 };
                found.shape("member", name, &json!(secret)).unwrap();
                seen += found.errors.len();
                assert!(found.errors.iter().all(|e| !e.contains("!!!")), "{name}: {:?}", found.errors);
            }
        }
        assert!(seen >= 3, "{seen} messages");
        let store = json!({ "XksProxyAuthenticationCredential": {
            "AccessKeyId": "ABCDEFGHIJKLMNOPQRST", "RawSecretAccessKey": "short-secret" } });
        assert!(!text("CreateCustomKeyStore", &store).contains("short-secret"));
        let tokens = json!({ "KeyId": "k", "Limit": 0, "GrantTokens": [""] });
        assert!(
            text("DescribeKey", &tokens).contains("Value at 'grantTokens.1.member'"),
            "{}",
            text("DescribeKey", &tokens)
        );
    }

    /// The model has the 56 actions, and members with their kinds.
    #[test]
    fn the_model_has_all_actions() {
        assert_eq!(actions().count(), 56);
        let members = members("Encrypt");
        let plain = members.iter().find(|m| m.name == "Plaintext").unwrap();
        assert_eq!((plain.required, plain.kind), (true, "blob"));
        assert!(actions().all(|a| super::super::HANDLERS.iter().any(|(name, _)| *name == a)));
    }
}
