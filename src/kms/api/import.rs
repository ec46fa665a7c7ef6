//! GetParametersForImport, ImportKeyMaterial, DeleteImportedKeyMaterial.
//!
//! The import token holds the private wrapping key, sealed under the store's key: no state is kept between the calls.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::call::{Call, base64};
use super::create::library_failed;
use super::lifecycle::key_by_id;
use crate::kms::context::push;
use crate::kms::engine::Engine;
use crate::kms::error::KmsError;
use crate::kms::keys::put_material;
use crate::kms::records::{Import, KeyRecord, MaterialRef, seconds};
use crate::kms::rotate::{DAY_MS, drop_material, relatives};
use crate::kms::spec::{KeySpec, Origin};
use crate::kms::state::{self, State};
use crate::kms::store::Fault;
use crate::kms::table::{MATERIALS, Writer};
use crate::kms::{hex, labels, pk};

/// How long an import token can be used (AWS: 24 hours).
const TOKEN_MS: u64 = DAY_MS;
/// The longest life of expiring material (AWS: 365 days).
const MAX_LIFE_MS: u64 = 365 * DAY_MS;

/// What an import token says.
struct Token {
    slot: String,
    algorithm: String,
    expires_ms: u64,
    private: Zeroizing<Vec<u8>>,
}

fn external(record: &KeyRecord) -> Result<(), KmsError> {
    if record.origin == Origin::External {
        return Ok(());
    }
    let text =
        format!("{} origin is {} which is not valid for this operation.", record.arn(), record.origin.name());
    Err(KmsError::unsupported(text))
}

pub(super) fn parameters(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = key_by_id(engine, call)?;
    external(&record)?;
    state::not_pending_deletion(&record)?;
    let algorithm = call.need("WrappingAlgorithm")?;
    let spec = match call.need("WrappingKeySpec")? {
        "RSA_2048" => KeySpec::Rsa2048,
        "RSA_3072" => KeySpec::Rsa3072,
        "RSA_4096" => KeySpec::Rsa4096,
        other => return Err(KmsError::unsupported(format!("Wrapping key spec {other} is not supported."))),
    };
    let supported =
        algorithm.starts_with("RSAES_OAEP_SHA_") || algorithm.starts_with("RSA_AES_KEY_WRAP_SHA_");
    if !supported {
        return Err(KmsError::unsupported(format!("Wrapping algorithm {algorithm} is not supported.")));
    }
    let private = pk::generate(spec).map_err(|_| library_failed())?;
    let public = pk::public(spec, &private).map_err(|_| library_failed())?;
    let expires_ms = engine.now() + TOKEN_MS;
    let token = Token { slot: record.slot(), algorithm: algorithm.to_owned(), expires_ms, private };
    Ok(json!({
        "KeyId": record.arn(),
        "ImportToken": base64(&engine.seal_token(&token)),
        "PublicKey": base64(&public),
        "ParametersValidTo": seconds(expires_ms),
    }))
}

impl Engine {
    fn seal_token(&self, token: &Token) -> Vec<u8> {
        let mut plain = Zeroizing::new(Vec::new());
        push(&mut plain, token.slot.as_bytes());
        push(&mut plain, token.algorithm.as_bytes());
        push(&mut plain, &token.expires_ms.to_le_bytes());
        push(&mut plain, &token.private);
        self.store.key.seal(labels::IMPORT_TOKEN_AD, &plain)
    }

    fn open_token(&self, sealed: &[u8]) -> Result<Token, KmsError> {
        let invalid = || KmsError::exception("InvalidImportTokenException", "The import token is not valid.");
        let plain = self.store.key.open(labels::IMPORT_TOKEN_AD, sealed).map_err(|_| invalid())?;
        let mut rest = plain.as_slice();
        let mut field = || {
            let (len, tail) = rest.split_first_chunk::<4>()?;
            let (field, tail) = tail.split_at_checked(usize::try_from(u32::from_le_bytes(*len)).ok()?)?;
            rest = tail;
            Some(field)
        };
        let mut next = || field().ok_or_else(invalid);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| invalid());
        Ok(Token {
            slot: text(next()?)?,
            algorithm: text(next()?)?,
            expires_ms: u64::from_le_bytes(next()?.try_into().map_err(|_| invalid())?),
            private: Zeroizing::new(next()?.to_vec()),
        })
    }
}

/// Until when the material lives, as the request says.
fn expiry(call: &Call<'_>, now: u64) -> Result<Option<u64>, KmsError> {
    let refuse = |text: &str| Err(KmsError::Validation(text.into()));
    match (call.text("ExpirationModel").unwrap_or("KEY_MATERIAL_EXPIRES"), call.time("ValidTo")) {
        ("KEY_MATERIAL_EXPIRES", None) => {
            refuse("A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES")
        }
        ("KEY_MATERIAL_EXPIRES", Some(at)) if at <= now || at > now + MAX_LIFE_MS => {
            refuse("The validTo date must be in the future, and at most 365 days away.")
        }
        ("KEY_MATERIAL_EXPIRES", at) => Ok(at),
        (_, None) => Ok(None),
        (_, Some(_)) => {
            refuse("A validTo date must not be set if the ExpirationModel is KEY_MATERIAL_DOES_NOT_EXPIRE")
        }
    }
}

fn incorrect(text: &str) -> KmsError {
    KmsError::exception("IncorrectKeyMaterialException", text)
}

/// Refuses bytes that are no material of the key's spec.
fn fits(record: &KeyRecord, bytes: &[u8]) -> Result<(), KmsError> {
    let good = match record.spec.secret_len() {
        Some(len) => bytes.len() == len,
        None => pk::public(record.spec, bytes).is_ok(),
    };
    let text = "The key material in the request is not valid for the KMS key's key spec.";
    if good { Ok(()) } else { Err(incorrect(text)) }
}

pub(super) fn import(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = key_by_id(engine, call)?;
    external(&record)?;
    state::not_pending_deletion(&record)?;
    let now = engine.now();
    let expires_ms = expiry(call, now)?;
    let token = engine.open_token(&call.blob("ImportToken")?)?;
    if token.slot != record.slot() {
        return Err(KmsError::exception(
            "InvalidImportTokenException",
            "The import token is of another key.",
        ));
    }
    if token.expires_ms <= now {
        return Err(KmsError::exception("ExpiredImportTokenException", "The import token has expired."));
    }
    let wrapped = call.blob("EncryptedKeyMaterial")?;
    let bytes = pk::unwrap_key(&token.private, &token.algorithm, &wrapped)
        .map_err(|_| KmsError::InvalidCiphertext)?;
    fits(&record, &bytes)?;
    let mut hash = Sha256::new();
    hash.update(record.id.as_bytes());
    hash.update(bytes.as_slice());
    let import = Import {
        expires_ms,
        present: true,
        fingerprint: hex::encode(&hash.finalize()),
        description: call.text("KeyMaterialDescription").map(str::to_owned),
    };
    let mut id = String::new();
    engine.change(&record.slot(), |w, r| {
        id = place(w, call, r, import, &bytes, now)?;
        Ok(())
    })?;
    engine.forget_material(&id);
    let mut out = json!({ "KeyId": record.arn() });
    if record.spec == KeySpec::Symmetric {
        out["KeyMaterialId"] = json!(id);
    }
    Ok(out)
}

/// Puts imported material where it belongs: again in its old place, as the first, or behind the current one, waiting.
fn place(
    w: &Writer<'_>,
    call: &Call<'_>,
    record: &mut KeyRecord,
    import: Import,
    bytes: &[u8],
    now: u64,
) -> Result<String, Fault> {
    let is_new = call.text("ImportType") == Some("NEW_KEY_MATERIAL") || record.materials.is_empty();
    let named = call.text("KeyMaterialId");
    let known = record
        .materials
        .iter_mut()
        .chain(&mut record.pending)
        .find(|m| m.import.as_ref().is_some_and(|i| i.fingerprint == import.fingerprint));
    if let Some(material) = known {
        if named.is_some_and(|id| id != material.id) {
            return Err(incorrect("The key material does not match the KeyMaterialId in the request.").into());
        }
        material.import = Some(import);
        w.put_bytes(MATERIALS, &material.id, bytes)?;
        return Ok(material.id.clone());
    }
    if !is_new || named.is_some() {
        return Err(
            incorrect("The key material is not the one that was imported into this KMS key before.").into()
        );
    }
    if !record.materials.is_empty() && record.spec != KeySpec::Symmetric {
        return Err(incorrect("Only symmetric encryption keys can have more than one key material.").into());
    }
    // A replica takes the same material as its relatives, under the same id.
    let shared = relatives(w, record)?
        .into_iter()
        .flat_map(|r| r.materials)
        .find(|m| m.import.as_ref().is_some_and(|i| i.fingerprint == import.fingerprint));
    let id = match shared {
        Some(material) => {
            w.put_bytes(MATERIALS, &material.id, bytes)?;
            material.id
        }
        None => put_material(w, bytes)?,
    };
    let material = MaterialRef { id: id.clone(), created_ms: now, rotated: None, import: Some(import) };
    if record.materials.is_empty() {
        record.materials.push(material);
        return Ok(id);
    }
    if let Some(pending) = &record.pending {
        return Err(KmsError::InvalidState(format!(
            "New key material (id: {id}) cannot be imported into KMS key {}, because another key material (id: {}) \
             is pending rotation.",
            record.arn(),
            pending.id
        ))
        .into());
    }
    record.pending = Some(material);
    Ok(id)
}

pub(super) fn delete(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = key_by_id(engine, call)?;
    external(&record)?;
    let wanted = call.text("KeyMaterialId");
    let mut dead = Vec::new();
    let mut gone = None;
    engine.change(&record.slot(), |w, r| {
        let all_gone = state::stored(r) == State::PendingImport && wanted.is_none();
        if all_gone {
            return Ok(());
        }
        if wanted.is_some() && wanted == r.pending.as_ref().map(|m| m.id.as_str()) {
            if let Some(pending) = r.pending.take() {
                gone = Some(pending.id);
            }
        } else {
            let found = match wanted {
                Some(id) => r.materials.iter_mut().find(|m| m.id == id),
                None => r.materials.last_mut(),
            };
            let Some(material) = found else {
                return Err(KmsError::NotFound(format!(
                    "Key material {} not found",
                    wanted.unwrap_or_default()
                ))
                .into());
            };
            if let Some(import) = &mut material.import {
                import.present = false;
            }
            gone = Some(material.id.clone());
        }
        gone.iter().try_for_each(|id| drop_material(w, r, id, &mut dead))
    })?;
    for id in &dead {
        engine.forget_material(id);
    }
    let mut out = json!({ "KeyId": record.arn() });
    if let Some(id) = gone.filter(|_| record.spec == KeySpec::Symmetric) {
        out["KeyMaterialId"] = json!(id);
    }
    Ok(out)
}
