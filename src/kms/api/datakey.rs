//! GenerateDataKey, GenerateDataKeyPair, both also without plaintext; GenerateRandom.

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::call::{Call, base64, secret};
use super::create::library_failed;
use crate::crypto::random as dice;
use crate::kms::context::canonical;
use crate::kms::engine::Engine;
use crate::kms::error::KmsError;
use crate::kms::pk;
use crate::kms::spec::{KeySpec, KeyUsage};
use crate::kms::table::{STORES, View};

/// Refuses a key that cannot seal a data key.
fn sealing(
    engine: &Engine,
    call: &Call<'_>,
) -> Result<std::sync::Arc<crate::kms::records::KeyRecord>, KmsError> {
    let record = engine.key_for(call, "KeyId")?;
    engine.ready(call, &record, KeyUsage::EncryptDecrypt)?;
    if record.spec == KeySpec::Symmetric {
        return Ok(record);
    }
    let text = format!(
        "{} key spec is {} which is not valid for {}.",
        record.arn(),
        record.spec.name(),
        call.action
    );
    Err(KmsError::exception("InvalidKeyUsageException", text))
}

pub(super) fn generate(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    call.no_recipient()?;
    let len = match (call.text("KeySpec"), call.number("NumberOfBytes")) {
        (Some(_), Some(_)) | (None, None) => {
            return Err(KmsError::Validation("Please specify either number of bytes or key spec.".into()));
        }
        (Some("AES_128"), None) => 16,
        (Some(_), None) => 32,
        (None, Some(n)) => usize::try_from(n).unwrap_or(1024),
    };
    let record = sealing(engine, call)?;
    let ad = canonical(&call.context("EncryptionContext"))?;
    call.dry_run()?;
    let mut plain = Zeroizing::new(vec![0; len]);
    dice::fill(&mut plain);
    let sealed = engine.seal_under(&record, &ad, &plain)?;
    engine.used(&record.slot(), call.action, &call.caller.request_id);
    let mut out = json!({
        "CiphertextBlob": base64(&sealed.blob),
        "KeyId": sealed.key_arn,
        "KeyMaterialId": sealed.key_material_id,
    });
    if call.action == "GenerateDataKey" {
        out["Plaintext"] = secret(&plain);
    }
    Ok(out)
}

pub(super) fn generate_pair(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    call.no_recipient()?;
    let name = call.need("KeyPairSpec")?;
    let spec = KeySpec::from_name(name).unwrap_or(KeySpec::Sm2);
    let record = sealing(engine, call)?;
    if spec == KeySpec::Sm2 {
        return Err(KmsError::unsupported("SM2 keys exist in China Regions only."));
    }
    let ad = canonical(&call.context("EncryptionContext"))?;
    call.dry_run()?;
    let private = pk::generate(spec).map_err(|_| library_failed())?;
    let public = pk::public(spec, &private).map_err(|_| library_failed())?;
    let private = pk::pkcs8(spec, &private);
    let sealed = engine.seal_under(&record, &ad, &private)?;
    engine.used(&record.slot(), call.action, &call.caller.request_id);
    let mut out = json!({
        "PrivateKeyCiphertextBlob": base64(&sealed.blob),
        "PublicKey": base64(&public),
        "KeyId": sealed.key_arn,
        "KeyPairSpec": name,
        "KeyMaterialId": sealed.key_material_id,
    });
    if call.action == "GenerateDataKeyPair" {
        out["PrivateKeyPlaintext"] = secret(&private);
    }
    Ok(out)
}

pub(super) fn random(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    call.no_recipient()?;
    engine.authorize(call, call.action, None)?;
    let len = call.number("NumberOfBytes").and_then(|n| usize::try_from(n).ok());
    let len = len.ok_or_else(|| KmsError::Validation("NumberOfBytes is required.".into()))?;
    let bytes = match call.text("CustomKeyStoreId") {
        None => {
            let mut bytes = Zeroizing::new(vec![0; len]);
            dice::fill(&mut bytes);
            bytes
        }
        Some(id) => {
            let store: Option<crate::kms::hsm::StoreRecord> = engine.store.read(|r| r.get(STORES, id))?;
            let store = store.ok_or_else(|| super::stores::no_store(id))?;
            let session = engine.clusters.session(&store).ok().filter(|_| store.connected);
            session.and_then(|s| s.random(len).ok()).ok_or_else(|| {
                let text = format!("The custom key store {id} is not connected.");
                KmsError::exception("CustomKeyStoreInvalidStateException", text)
            })?
        }
    };
    let mut out = json!({});
    out["Plaintext"] = secret(&bytes);
    Ok(out)
}
