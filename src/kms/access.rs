//! May this principal do this: where a call is decided.

use std::sync::Arc;

use super::api::Call;
use super::engine::Engine;
use super::error::KmsError;
use super::records::KeyRecord;

/// Operations that a principal of another account may be allowed (AWS KMS permissions reference, "Cross-account use").
const CROSS_ACCOUNT: &[&str] = &[
    "CreateGrant",
    "Decapsulate",
    "Decrypt",
    "DeriveSharedSecret",
    "DescribeKey",
    "Encapsulate",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyPair",
    "GenerateDataKeyPairWithoutPlaintext",
    "GenerateDataKeyWithoutPlaintext",
    "GenerateMac",
    "GetKeyRotationStatus",
    "GetPublicKey",
    "ListGrants",
    "ReEncryptFrom",
    "ReEncryptTo",
    "RetireGrant",
    "RevokeGrant",
    "Sign",
    "Verify",
    "VerifyMac",
];

impl Engine {
    /// The key that a member names, when the caller may do `call.action` to it. Its state is not looked at.
    pub(super) fn key_for(&self, call: &Call<'_>, member: &str) -> Result<Arc<KeyRecord>, KmsError> {
        let record = self.named_key(call, member)?;
        self.authorize(call, call.action, Some(&record))?;
        Ok(record)
    }

    /// The key that a member names. AWS-managed keys are made on their first use.
    pub(super) fn named_key(&self, call: &Call<'_>, member: &str) -> Result<Arc<KeyRecord>, KmsError> {
        let name = call.text(member).unwrap_or_default();
        let found = match self.resolve_in(name, &call.caller.scope) {
            Err(KmsError::NotFound(text)) => match self.managed_key(name, call)? {
                Some(record) => record,
                None => return Err(KmsError::NotFound(text)),
            },
            other => other?,
        };
        call.touches(&found);
        Ok(found)
    }

    /// Refuses a call that neither key policy, nor IAM policies, nor grants allow. `action` without `kms:`.
    pub(super) fn authorize(
        &self,
        call: &Call<'_>,
        action: &str,
        key: Option<&KeyRecord>,
    ) -> Result<(), KmsError> {
        self.decide(call, action, key, None)
    }

    /// As [`Engine::authorize`]; `same_key` tells of ReEncrypt whether both of its keys are one.
    pub(super) fn decide(
        &self,
        call: &Call<'_>,
        action: &str,
        key: Option<&KeyRecord>,
        same_key: Option<bool>,
    ) -> Result<(), KmsError> {
        let _ = same_key;
        for token in call.tokens() {
            self.grant_of_token(token)?;
        }
        let Some(key) = key else { return Ok(()) };
        if key.scope.account == call.caller.scope.account {
            return Ok(());
        }
        let resource = key.arn();
        let why = if CROSS_ACCOUNT.contains(&action) {
            format!("because no resource-based policy allows the kms:{action} action")
        } else {
            "because the operation cannot be performed in a different account".to_owned()
        };
        Err(KmsError::exception(
            "AccessDeniedException",
            format!(
                "User: {} is not authorized to perform: kms:{action} on resource: {resource} {why}",
                call.caller.arn
            ),
        ))
    }
}
