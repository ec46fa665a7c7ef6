//! Seams: what the engine tells others, and asks them, without knowing them.

use serde_json::Value;

use super::caller::Caller;

/// One call, after it was answered. No plaintext and no ciphertext stands in it.
#[derive(Debug)]
pub struct CallRecord<'a> {
    /// Action, for example `Decrypt`.
    pub action: &'a str,
    /// Who called.
    pub caller: &'a Caller,
    /// Request parameters that may be shown: no plaintext, ciphertext, message, token or policy.
    pub parameters: &'a Value,
    /// ARNs of the keys that were touched.
    pub keys: &'a [String],
    /// Exception and message, where it failed.
    pub error: Option<(&'a str, &'a str)>,
}

/// What the service did by itself.
#[derive(Debug)]
pub struct ServiceRecord<'a> {
    /// `RotateKey`, for example.
    pub name: &'a str,
    /// ARN of the key.
    pub key: &'a str,
    /// Account of the key.
    pub account: &'a str,
    /// Region of the key.
    pub region: &'a str,
    /// What else is to be told, in CloudTrail's members of `additionalEventData`; else null.
    pub details: &'a Value,
}

/// Hears of every call, and of what the service does by itself.
pub trait Observer: Send + Sync {
    /// Calls were decided, in this order. An error here fails them all: what cannot be recorded does not happen.
    fn calls(&self, records: &[CallRecord<'_>]) -> Result<(), super::KmsError>;
    /// `RotateKey`, `DeleteKey` or `DeleteExpiredKeyMaterial` of a key, done by the service itself.
    fn service(&self, event: &ServiceRecord<'_>);
}
