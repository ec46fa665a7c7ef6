//! GetPublicKey, DeriveSharedSecret, Encapsulate, Decapsulate.

use std::sync::Arc;

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::call::{Call, base64, secret};
use super::create::library_failed;
use super::symmetric::fits;
use crate::kms::crypt::current;
use crate::kms::engine::Engine;
use crate::kms::error::KmsError;
use crate::kms::pk;
use crate::kms::records::KeyRecord;
use crate::kms::spec::KeyUsage;
use crate::kms::state;

impl Engine {
    /// The private key or HMAC key of a key.
    pub(super) fn private_half(&self, record: &KeyRecord) -> Result<Arc<Zeroizing<Vec<u8>>>, KmsError> {
        self.private(&current(record)?.id)
    }

    /// The public key of an asymmetric key.
    pub(super) fn public_half(&self, record: &KeyRecord) -> Result<Vec<u8>, KmsError> {
        pk::public(record.spec, &self.private_half(record)?).map_err(|_| library_failed())
    }
}

pub(super) fn public_key(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = engine.key_for(call, "KeyId")?;
    if !record.spec.is_asymmetric() {
        let text = format!(
            "{} key spec is {} which is not valid for {}.",
            record.arn(),
            record.spec.name(),
            call.action
        );
        return Err(KmsError::unsupported(text));
    }
    state::usable(&record, engine.state(&record)?)?;
    let mut out = json!({
        "KeyId": record.arn(),
        "PublicKey": base64(&engine.public_half(&record)?),
        "CustomerMasterKeySpec": record.spec.name(),
        "KeySpec": record.spec.name(),
        "KeyUsage": record.usage.name(),
    });
    out[record.usage.algorithms_field()] = json!(record.spec.algorithms(record.usage));
    Ok(out)
}

pub(super) fn derive(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    call.no_recipient()?;
    let record = engine.key_for(call, "KeyId")?;
    engine.ready(call, &record, KeyUsage::Agreement)?;
    let algorithm = call.need("KeyAgreementAlgorithm")?;
    fits(algorithm, &record)?;
    let peer = call.blob("PublicKey")?;
    let shared = pk::agree(record.spec, &engine.private_half(&record)?, &peer).map_err(|_| {
        let spec = record.spec.name();
        KmsError::Validation(format!(
            "The public key is no DER-encoded X.509 public key on the curve of key spec {spec}."
        ))
    })?;
    call.dry_run()?;
    engine.used(&record.slot(), call.action, &call.caller.request_id);
    let mut out = json!({
        "KeyId": record.arn(),
        "KeyAgreementAlgorithm": algorithm,
        "KeyOrigin": record.origin.name(),
    });
    out["SharedSecret"] = secret(&shared);
    Ok(out)
}

pub(super) fn encapsulate(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = engine.key_for(call, "KeyId")?;
    engine.ready(call, &record, KeyUsage::Encapsulate)?;
    call.dry_run()?;
    let (ciphertext, shared) =
        pk::encapsulate(record.spec, &engine.private_half(&record)?).map_err(|_| library_failed())?;
    engine.used(&record.slot(), call.action, &call.caller.request_id);
    let mut out = json!({
        "KeyId": record.arn(),
        "SharedSecretCiphertextBlob": base64(&ciphertext),
        "EncapsulationAlgorithm": call.text("EncapsulationAlgorithm"),
    });
    out["SharedSecret"] = secret(&shared);
    Ok(out)
}

pub(super) fn decapsulate(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = engine.key_for(call, "KeyId")?;
    engine.ready(call, &record, KeyUsage::Encapsulate)?;
    let ciphertext = call.blob("SharedSecretCiphertextBlob")?;
    let shared = pk::decapsulate(record.spec, &engine.private_half(&record)?, &ciphertext)
        .map_err(|_| KmsError::InvalidCiphertext)?;
    call.dry_run()?;
    engine.used(&record.slot(), call.action, &call.caller.request_id);
    let mut out = json!({
        "KeyId": record.arn(),
        "EncapsulationAlgorithm": call.text("EncapsulationAlgorithm"),
    });
    out["SharedSecret"] = secret(&shared);
    Ok(out)
}
