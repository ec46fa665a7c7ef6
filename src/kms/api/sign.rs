//! Sign, Verify, GenerateMac, VerifyMac.

use aws_lc_rs::hmac;
use serde_json::{Value, json};

use super::call::{Call, base64};
use super::create::library_failed;
use super::symmetric::fits;
use crate::kms::engine::Engine;
use crate::kms::error::KmsError;
use crate::kms::pk::{self, Digestible};
use crate::kms::spec::KeyUsage;

/// What is signed, as the request means it.
fn message<'a>(call: &Call<'_>, algorithm: &str, bytes: &'a [u8]) -> Result<Digestible<'a>, KmsError> {
    match (call.text("MessageType").unwrap_or("RAW"), algorithm) {
        ("EXTERNAL_MU", "ML_DSA_SHAKE_256") => Err(KmsError::unsupported(
            "The crypto library does not take an external mu; use message type RAW.",
        )),
        (_, "ED25519_PH_SHA_512") => {
            Err(KmsError::unsupported("The crypto library does not have Ed25519ph; use ED25519_SHA_512."))
        }
        ("RAW", _) => Ok(Digestible::Raw(bytes)),
        ("DIGEST", "ML_DSA_SHAKE_256" | "ED25519_SHA_512") | ("EXTERNAL_MU", _) => {
            let kind = call.text("MessageType").unwrap_or_default();
            Err(KmsError::Validation(format!(
                "Message type {kind} is incompatible with algorithm {algorithm}."
            )))
        }
        _ if pk::digest_len(algorithm) == Some(bytes.len()) => Ok(Digestible::Digest(bytes)),
        _ => Err(KmsError::Validation(format!("Digest is invalid length for algorithm {algorithm}."))),
    }
}

pub(super) fn sign(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = engine.key_for(call, "KeyId")?;
    let algorithm = call.need("SigningAlgorithm")?;
    engine.ready(call, &record, KeyUsage::SignVerify)?;
    fits(algorithm, &record)?;
    let bytes = call.blob("Message")?;
    let message = message(call, algorithm, &bytes)?;
    call.dry_run()?;
    let private = engine.private_half(&record)?;
    let signature = pk::sign(record.spec, &private, algorithm, &message).map_err(|_| library_failed())?;
    engine.used(&record.slot(), call.action, &call.caller.request_id);
    Ok(json!({ "KeyId": record.arn(), "Signature": base64(&signature), "SigningAlgorithm": algorithm }))
}

pub(super) fn verify(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = engine.key_for(call, "KeyId")?;
    let algorithm = call.need("SigningAlgorithm")?;
    engine.ready(call, &record, KeyUsage::SignVerify)?;
    fits(algorithm, &record)?;
    let bytes = call.blob("Message")?;
    let message = message(call, algorithm, &bytes)?;
    let signature = call.blob("Signature")?;
    let public = engine.public_half(&record)?;
    pk::verify(record.spec, &public, algorithm, &message, &signature)
        .map_err(|_| KmsError::exception("KMSInvalidSignatureException", ""))?;
    call.dry_run()?;
    engine.used(&record.slot(), call.action, &call.caller.request_id);
    Ok(json!({ "KeyId": record.arn(), "SignatureValid": true, "SigningAlgorithm": algorithm }))
}

fn mac_key(
    engine: &Engine,
    call: &Call<'_>,
) -> Result<(std::sync::Arc<crate::kms::records::KeyRecord>, hmac::Key), KmsError> {
    let record = engine.key_for(call, "KeyId")?;
    let name = call.need("MacAlgorithm")?;
    engine.ready(call, &record, KeyUsage::Mac)?;
    fits(name, &record)?;
    let algorithm = match name {
        "HMAC_SHA_224" => hmac::HMAC_SHA224,
        "HMAC_SHA_256" => hmac::HMAC_SHA256,
        "HMAC_SHA_384" => hmac::HMAC_SHA384,
        _ => hmac::HMAC_SHA512,
    };
    let key = hmac::Key::new(algorithm, &engine.private_half(&record)?);
    Ok((record, key))
}

pub(super) fn generate_mac(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let (record, key) = mac_key(engine, call)?;
    let message = call.blob("Message")?;
    call.dry_run()?;
    let mac = hmac::sign(&key, &message);
    engine.used(&record.slot(), call.action, &call.caller.request_id);
    Ok(
        json!({ "KeyId": record.arn(), "Mac": base64(mac.as_ref()), "MacAlgorithm": call.text("MacAlgorithm") }),
    )
}

pub(super) fn verify_mac(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let (record, key) = mac_key(engine, call)?;
    let (message, mac) = (call.blob("Message")?, call.blob("Mac")?);
    // Constant time, by the library.
    hmac::verify(&key, &message, &mac).map_err(|_| KmsError::exception("KMSInvalidMacException", ""))?;
    call.dry_run()?;
    engine.used(&record.slot(), call.action, &call.caller.request_id);
    Ok(json!({ "KeyId": record.arn(), "MacValid": true, "MacAlgorithm": call.text("MacAlgorithm") }))
}
