//! One call: its checked input, its caller, and what it has touched.

use std::cell::RefCell;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use zeroize::{Zeroize as _, Zeroizing};

use crate::kms::arn::Scope;
use crate::kms::caller::Caller;
use crate::kms::context::EncryptionContext;
use crate::kms::error::KmsError;
use crate::kms::records::KeyRecord;

/// One call of an action.
pub(in crate::kms) struct Call<'a> {
    pub(in crate::kms) action: &'static str,
    /// A JSON object.
    pub(in crate::kms) input: Value,
    pub(in crate::kms) caller: &'a Caller,
    keys: RefCell<Vec<String>>,
}

impl Drop for Call<'_> {
    /// Plaintexts, messages, passwords and tokens are among the input.
    fn drop(&mut self) {
        wipe(&mut self.input);
    }
}

/// Wipes every string of a request or an answer.
pub(in crate::kms) fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(members) => members.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

impl<'a> Call<'a> {
    pub(super) fn new(action: &'static str, input: Value, caller: &'a Caller) -> Self {
        Self { action, input, caller, keys: RefCell::default() }
    }

    pub(super) fn scope(&self) -> &Scope {
        &self.caller.scope
    }

    /// Notes a key that the call is about.
    pub(in crate::kms) fn touches(&self, record: &KeyRecord) {
        let arn = record.arn();
        let mut keys = self.keys.borrow_mut();
        if !keys.contains(&arn) {
            keys.push(arn);
        }
    }

    pub(super) fn keys(&self) -> Vec<String> {
        self.keys.borrow().clone()
    }

    pub(in crate::kms) fn text(&self, name: &str) -> Option<&str> {
        self.input.get(name).and_then(Value::as_str)
    }

    /// A member that the action cannot do without.
    pub(super) fn need(&self, name: &str) -> Result<&str, KmsError> {
        self.text(name).ok_or_else(|| missing(name))
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.input.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.input.get(name).and_then(Value::as_u64)
    }

    /// A time: seconds since the epoch on the wire, milliseconds here.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded before the cast")]
    pub(super) fn time(&self, name: &str) -> Option<u64> {
        let seconds = self.input.get(name).and_then(Value::as_f64)?;
        Some((seconds.clamp(0.0, 1e12) * 1000.0) as u64)
    }

    pub(super) fn list(&self, name: &str) -> Vec<&str> {
        let items = self.input.get(name).and_then(Value::as_array);
        items.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// The grant tokens of the call.
    pub(in crate::kms) fn tokens(&self) -> Vec<&str> {
        self.list("GrantTokens")
    }

    /// Bytes, base64 on the wire.
    pub(super) fn blob(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, KmsError> {
        let text = self.need(name)?;
        BASE64_STANDARD
            .decode(text)
            .map(Zeroizing::new)
            .map_err(|_| KmsError::exception("SerializationException", format!("{name} is not base64")))
    }

    pub(super) fn context(&self, name: &str) -> EncryptionContext {
        pairs(self.input.get(name)).unwrap_or_default()
    }

    /// Ends a call with DryRun here, where all that could refuse it has been asked.
    pub(super) fn dry_run(&self) -> Result<(), KmsError> {
        if !self.flag("DryRun") {
            return Ok(());
        }
        let text = "The request would have succeeded, but the DryRun option is set.";
        Err(KmsError::exception("DryRunOperationException", text))
    }

    /// Refuses what only a Nitro enclave can ask for: there is none here to attest anything.
    pub(super) fn no_recipient(&self) -> Result<(), KmsError> {
        match self.input.get("Recipient") {
            None | Some(Value::Null) => Ok(()),
            Some(_) => Err(KmsError::unsupported(
                "Recipient needs an attested Nitro enclave, which does not exist here.",
            )),
        }
    }
}

/// A map of strings.
pub(super) fn pairs(value: Option<&Value>) -> Option<EncryptionContext> {
    let map = value?.as_object()?;
    Some(map.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect())
}

/// Bytes as the wire has them.
pub(super) fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// A secret for an answer: moved into it, since what `json!` is given it copies.
pub(super) fn secret(bytes: &[u8]) -> Value {
    Value::String(base64(bytes))
}

/// `Member must not be null`.
pub(super) fn missing(name: &str) -> KmsError {
    KmsError::Validation(format!(
        "1 validation error detected: Value null at '{}' failed to satisfy constraint: Member must not be null",
        lower_camel(name)
    ))
}

/// `keyId` of `KeyId`, as AWS names members in its messages.
pub(super) fn lower_camel(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or_else(String::new, |c| c.to_ascii_lowercase().to_string() + chars.as_str())
}
