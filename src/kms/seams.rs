//! Seams: what the engine tells others, and asks them, without knowing them.

use std::sync::Arc;

use serde_json::Value;

use super::KmsError;
use super::caller::Caller;
use crate::crypto::Secret;

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

/// Hears of every call, and of what the service does by itself.
pub trait Observer: Send + Sync {
    /// Calls were decided, in this order. An error here fails them all: what cannot be recorded does not happen.
    fn calls(&self, records: &[CallRecord<'_>]) -> Result<(), KmsError>;
    /// `RotateKey`, `DeleteKey` or `DeleteExpiredKeyMaterial` of a key, by the service itself.
    fn service(&self, event: &str, key_arn: &str, account: &str, region: &str);
    /// Ends its threads; the next call starts new ones. For a process that is about to restrict itself.
    fn settle(&self) {}
}

/// A key outside of the KMS that wraps for a store's root key: one in a PKCS#11 token.
pub trait RootSealer: Send + Sync {
    /// Its name, as `root.toml` keeps it.
    fn uri(&self) -> &str;
    /// Wraps a key, bound to `context`.
    fn wrap(&self, key: &Secret<32>, context: &[u8]) -> Result<Vec<u8>, KmsError>;
    /// Unwraps it, where the context is the same.
    fn unwrap(&self, wrapped: &[u8], context: &[u8]) -> Result<Secret<32>, KmsError>;
}

/// Finds such keys by the names that `root.toml` has for them.
pub trait RootTokens {
    /// The key of a URI.
    fn find(&self, uri: &str) -> Result<Arc<dyn RootSealer>, KmsError>;
}
