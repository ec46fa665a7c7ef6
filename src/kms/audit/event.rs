//! One event, in CloudTrail's form (AWS CloudTrail User Guide, record contents; AWS KMS Developer Guide, log entries).

use serde::Serialize;
use serde_json::{Map, Value, json};

/// The record format that is followed.
const VERSION: &str = "1.11";
/// The longest event, in bytes: of a longer one the parameters are named by their length.
const MAX_EVENT: usize = 48 * 1024;
/// The longest error message, in bytes.
const MAX_MESSAGE: usize = 2048;

/// Members that never stand in an event, wherever they stand in the parameters: secrets and what is made of them.
/// The engine leaves them out already; this is the second lock.
const NEVER: &[&str] = &[
    "plaintext",
    "ciphertextblob",
    "privatekeyplaintext",
    "message",
    "signature",
    "mac",
    "sharedsecret",
    "encryptedkeymaterial",
    "importtoken",
    "keystorepassword",
    "granttokens",
    "policy",
];

/// Who called.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// ARN.
    pub arn: &'a str,
    /// Account.
    pub account: &'a str,
    /// Stable id.
    pub user_id: &'a str,
    /// Access key that signed; empty for a call inside the process.
    pub access_key: &'a str,
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// Action, as `Decrypt`; of the service itself `RotateKey`, `DeleteKey`, `DeleteExpiredKeyMaterial`.
    pub name: &'a str,
    /// Who; `None` for the service itself.
    pub identity: Option<Identity<'a>>,
    /// Region.
    pub region: &'a str,
    /// Account whose keys these are.
    pub account: &'a str,
    /// Caller's address; empty for a call inside the process.
    pub source: &'a str,
    /// What the client calls itself.
    pub user_agent: &'a str,
    /// Service that called on the principal's behalf.
    pub via: Option<&'a str>,
    /// Request parameters that may be shown.
    pub parameters: &'a Value,
    /// ARNs of the keys that were used.
    pub keys: &'a [String],
    /// Exception and message, where it failed.
    pub error: Option<(&'a str, &'a str)>,
    /// Id of the request, as its answer gives it.
    pub request_id: &'a str,
    /// What else is to be told: members of `additionalEventData`, or null.
    pub details: &'a Value,
    /// How often the same happened, where like events are written as one.
    pub count: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Record<'a> {
    event_version: &'static str,
    user_identity: Value,
    event_time: String,
    event_source: &'static str,
    event_name: &'a str,
    aws_region: &'a str,
    #[serde(rename = "sourceIPAddress")]
    source: &'a str,
    user_agent: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<&'a str>,
    request_parameters: Value,
    response_elements: Value,
    #[serde(rename = "requestID")]
    request_id: &'a str,
    #[serde(rename = "eventID")]
    event_id: String,
    read_only: bool,
    resources: Vec<Resource<'a>>,
    event_type: &'static str,
    management_event: bool,
    recipient_account_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_event_details: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    additional_event_data: Option<Value>,
    event_category: &'static str,
}

#[derive(Serialize)]
struct Resource<'a> {
    #[serde(rename = "accountId")]
    account: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(rename = "ARN")]
    arn: &'a str,
}

impl Event<'_> {
    /// The event as JSON, without what chains it.
    pub(super) fn json(&self, id: &[u8; 16]) -> Vec<u8> {
        let by_service = self.identity.is_none();
        let given = if by_service { Value::Null } else { parameters(self.parameters) };
        let whole = self.record(id, given);
        if whole.len() <= MAX_EVENT {
            return whole;
        }
        self.record(id, json!({ "omitted": format!("{} bytes", whole.len()) }))
    }

    fn record(&self, id: &[u8; 16], parameters: Value) -> Vec<u8> {
        let by_service = self.identity.is_none();
        let resource = |arn| Resource { account: self.account, kind: "AWS::KMS::Key", arn };
        let record = Record {
            event_version: VERSION,
            user_identity: self.user_identity(),
            event_time: time(self.time_ms),
            event_source: "kms.amazonaws.com",
            event_name: self.name,
            aws_region: self.region,
            source: if by_service { "AWS Internal" } else { self.source },
            user_agent: if by_service { "AWS Internal" } else { self.user_agent },
            error_code: self.error.map(|(code, _)| code),
            error_message: self.error.map(|(_, text)| cut(text)).filter(|text| !text.is_empty()),
            request_parameters: parameters,
            response_elements: Value::Null,
            request_id: self.request_id,
            event_id: uuid(id),
            read_only: is_read_only(self.name),
            resources: self.keys.iter().map(|arn| resource(arn.as_str())).collect(),
            event_type: if by_service { "AwsServiceEvent" } else { "AwsApiCall" },
            management_event: true,
            recipient_account_id: self.account,
            service_event_details: by_service
                .then(|| json!({ "keyId": self.keys.first().map(|arn| key_id(arn)) })),
            additional_event_data: self.additional(),
            event_category: "Management",
        };
        serde_json::to_vec(&record).expect("a record has string keys only")
    }

    fn additional(&self) -> Option<Value> {
        let mut out = self.details.as_object().cloned().unwrap_or_default();
        if self.count > 1 {
            out.insert("count".to_owned(), json!(self.count));
        }
        (!out.is_empty()).then_some(Value::Object(out))
    }

    fn user_identity(&self) -> Value {
        let Some(who) = self.identity else {
            return json!({ "accountId": self.account, "invokedBy": "AWS Internal" });
        };
        let (kind, name) = kind(who.arn);
        let mut out = json!({
            "type": kind, "principalId": who.user_id, "arn": who.arn, "accountId": who.account,
        });
        for (member, value) in
            [("accessKeyId", Some(who.access_key)), ("userName", name), ("invokedBy", self.via)]
        {
            if let Some(value) = value.filter(|v| !v.is_empty()) {
                out[member] = json!(value);
            }
        }
        out
    }
}

/// CloudTrail's type of an identity, and the user's name.
fn kind(arn: &str) -> (&'static str, Option<&str>) {
    let name = arn.splitn(6, ':').nth(5).unwrap_or("");
    match name.split_once('/') {
        Some(("user", path)) => ("IAMUser", path.rsplit('/').next()),
        Some(("assumed-role", _)) => ("AssumedRole", None),
        Some(("role", _)) => ("Role", None),
        Some(("federated-user", _)) => ("FederatedUser", None),
        _ if name == "root" => ("Root", None),
        _ => ("AWSService", None),
    }
}

/// The parameters with names in CloudTrail's spelling, without what never stands in an event.
fn parameters(given: &Value) -> Value {
    let Value::Object(members) = given else { return Value::Null };
    let mut out = Map::new();
    for (name, value) in members {
        if NEVER.contains(&name.to_ascii_lowercase().as_str()) {
            continue;
        }
        let mut letters = name.chars();
        let first = letters.next().map(|c| c.to_ascii_lowercase());
        out.insert(first.into_iter().chain(letters).collect(), value.clone());
    }
    Value::Object(out)
}

fn is_read_only(name: &str) -> bool {
    let prefixes =
        ["Get", "List", "Describe", "Encrypt", "Decrypt", "ReEncrypt", "Generate", "Verify", "Sign"];
    let others = ["DeriveSharedSecret", "Encapsulate", "Decapsulate"];
    prefixes.iter().any(|p| name.starts_with(p)) || others.contains(&name)
}

fn key_id(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or(arn)
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_MESSAGE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// `2026-11-26T12:00:00Z`.
pub(in crate::kms) fn time(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| String::from("?"), |t| t.to_string())
}

/// A version 4 UUID of random bytes.
fn uuid(raw: &[u8; 16]) -> String {
    let mut raw = *raw;
    raw[6] = (raw[6] & 0x0f) | 0x40;
    raw[8] = (raw[8] & 0x3f) | 0x80;
    let hex = crate::kms::hex::encode(&raw);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
