//! AWS's API: one dispatch for all actions, in AWS's JSON.
//!
//! Every call is checked against AWS's model (`model.json`), decided for its principal, done, and reported to the
//! observer. Over HTTP or in the process, it is the same call.

mod agree;
mod alias;
mod call;
mod create;
mod datakey;
mod grants;
mod import;
mod keys;
mod lifecycle;
mod model;
mod paging;
mod policy;
mod region;
mod rotation;
mod sign;
mod stores;
mod symmetric;
mod tags;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};

pub use model::{Member, actions, members};

use super::caller::Caller;
use super::engine::Engine;
use super::error::KmsError;
use super::quota::THROTTLED;
use super::seams::CallRecord;
use super::watch;
pub(in crate::kms) use call::{Call, wipe};

type Handler = fn(&Engine, &Call<'_>) -> Result<Value, KmsError>;

/// Every action of the API, by name.
const HANDLERS: &[(&str, Handler)] = &[
    ("CancelKeyDeletion", lifecycle::cancel_deletion),
    ("ConnectCustomKeyStore", stores::connect),
    ("CreateAlias", alias::create),
    ("CreateCustomKeyStore", stores::create),
    ("CreateGrant", grants::create),
    ("CreateKey", create::create_key),
    ("Decapsulate", agree::decapsulate),
    ("Decrypt", symmetric::decrypt),
    ("DeleteAlias", alias::delete),
    ("DeleteCustomKeyStore", stores::delete),
    ("DeleteImportedKeyMaterial", import::delete),
    ("DeriveSharedSecret", agree::derive),
    ("DescribeCustomKeyStores", stores::describe),
    ("DescribeKey", keys::describe),
    ("DisableKey", lifecycle::disable),
    ("DisableKeyRotation", rotation::disable),
    ("DisconnectCustomKeyStore", stores::disconnect),
    ("EnableKey", lifecycle::enable),
    ("EnableKeyRotation", rotation::enable),
    ("Encapsulate", agree::encapsulate),
    ("Encrypt", symmetric::encrypt),
    ("GenerateDataKey", datakey::generate),
    ("GenerateDataKeyPair", datakey::generate_pair),
    ("GenerateDataKeyPairWithoutPlaintext", datakey::generate_pair),
    ("GenerateDataKeyWithoutPlaintext", datakey::generate),
    ("GenerateMac", sign::generate_mac),
    ("GenerateRandom", datakey::random),
    ("GetKeyLastUsage", keys::last_usage),
    ("GetKeyPolicy", policy::get),
    ("GetKeyRotationStatus", rotation::status),
    ("GetParametersForImport", import::parameters),
    ("GetPublicKey", agree::public_key),
    ("ImportKeyMaterial", import::import),
    ("ListAliases", alias::list),
    ("ListGrants", grants::list),
    ("ListKeyPolicies", policy::list),
    ("ListKeyRotations", rotation::list),
    ("ListKeys", keys::list),
    ("ListResourceTags", tags::list),
    ("ListRetirableGrants", grants::list_retirable),
    ("PutKeyPolicy", policy::put),
    ("ReEncrypt", symmetric::re_encrypt),
    ("ReplicateKey", region::replicate),
    ("RetireGrant", grants::retire),
    ("RevokeGrant", grants::revoke),
    ("RotateKeyOnDemand", rotation::on_demand),
    ("ScheduleKeyDeletion", lifecycle::schedule_deletion),
    ("Sign", sign::sign),
    ("TagResource", tags::tag),
    ("UntagResource", tags::untag),
    ("UpdateAlias", alias::update),
    ("UpdateCustomKeyStore", stores::update),
    ("UpdateKeyDescription", keys::update_description),
    ("UpdatePrimaryRegion", region::update_primary),
    ("Verify", sign::verify),
    ("VerifyMac", sign::verify_mac),
];

impl Engine {
    /// Does one action of AWS's API, for an authenticated caller.
    pub fn call(&self, action: &str, input: Value, caller: &Caller) -> Result<Value, KmsError> {
        let (name, handler) = HANDLERS
            .iter()
            .find(|(name, _)| *name == action)
            .ok_or_else(|| KmsError::exception("UnknownOperationException", ""))?;
        let Value::Object(input) = input else {
            return Err(KmsError::exception("SerializationException", "the request is no JSON object"));
        };
        let call = Call::new(name, Value::Object(input), caller);
        let answer = self
            .throttle(&call)
            .and_then(|()| model::check(name, &call.input, self.limits.plaintext))
            .and_then(|()| handler(self, &call));
        match self.report(&call, &answer) {
            Ok(()) => answer,
            Err(error) => {
                // What cannot be recorded is not given out.
                if let Ok(mut answer) = answer {
                    wipe(&mut answer);
                }
                Err(error)
            }
        }
    }

    fn throttle(&self, call: &Call<'_>) -> Result<(), KmsError> {
        let Some(buckets) = &self.quotas else { return Ok(()) };
        // AWS counts a cross-account call for the caller's account.
        let scope = format!("{}/{}", call.caller.account(), call.scope().region);
        let taken = buckets.take(&scope, watch::class(call.action, &call.input));
        taken.map_err(|_| KmsError::exception("ThrottlingException", THROTTLED))
    }

    fn report(&self, call: &Call<'_>, answer: &Result<Value, KmsError>) -> Result<(), KmsError> {
        let Some(observer) = &self.observer else { return Ok(()) };
        let text = answer.as_ref().err().map(|e| (e.code(), e.wire_text().unwrap_or_default()));
        let shown = shown(call.action, &call.input);
        let keys = call.keys();
        observer.calls(&[CallRecord {
            action: call.action,
            caller: call.caller,
            parameters: &shown,
            keys: &keys,
            error: text.as_ref().map(|(code, text)| (*code, text.as_str())),
        }])
    }
}

/// Members that no record of a call may show: secrets, what secrets are made of, and what is long.
const HIDDEN: &[&str] = &[
    "Plaintext",
    "CiphertextBlob",
    "Message",
    "Signature",
    "Mac",
    "Policy",
    "GrantTokens",
    "GrantToken",
    "ImportToken",
    "EncryptedKeyMaterial",
    "KeyStorePassword",
    "PublicKey",
    "SharedSecretCiphertextBlob",
    "Recipient",
    "XksProxyAuthenticationCredential",
    "TrustAnchorCertificate",
];

/// The request parameters that a record may show.
fn shown(action: &str, input: &Value) -> Value {
    // Left out before anything is copied: a copy of a secret would have to be wiped.
    let given = input.as_object().into_iter().flatten();
    let mut out: Map<String, Value> = given
        .filter(|(name, _)| !HIDDEN.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    // CloudTrail names the algorithm also where it was not given.
    if matches!(action, "Encrypt" | "Decrypt") && !out.contains_key("EncryptionAlgorithm") {
        out.insert("EncryptionAlgorithm".into(), json!("SYMMETRIC_DEFAULT"));
    }
    Value::Object(out)
}
