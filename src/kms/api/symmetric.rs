//! Encrypt, Decrypt, ReEncrypt. With RSA keys they are RSAES-OAEP.

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::call::{Call, base64, secret};
use crate::kms::blob;
use crate::kms::context::canonical;
use crate::kms::engine::Engine;
use crate::kms::error::KmsError;
use crate::kms::pk;
use crate::kms::records::KeyRecord;
use crate::kms::spec::{KeySpec, KeyUsage};
use crate::kms::state;

/// AWS's text where a blob names a key that is not there, or not for this caller: it does not say which.
const HIDDEN_KEY: &str = "The ciphertext refers to a customer master key that does not exist, does not exist in this \
                          region, or you are not allowed to access.";

/// What was encrypted or decrypted.
pub(super) struct Done {
    pub(super) bytes: Zeroizing<Vec<u8>>,
    pub(super) material: Option<String>,
}

impl Engine {
    /// Refuses a key whose state or usage does not fit, in AWS's order of questions.
    pub(super) fn ready(&self, call: &Call<'_>, record: &KeyRecord, usage: KeyUsage) -> Result<(), KmsError> {
        state::usable(record, self.state(record)?)?;
        if record.usage == usage {
            return Ok(());
        }
        let text = format!(
            "{} key usage is {} which is not valid for {}.",
            record.arn(),
            record.usage.name(),
            call.action
        );
        Err(KmsError::exception("InvalidKeyUsageException", text))
    }
}

/// The algorithm that a member names, when the key has it.
pub(super) fn algorithm<'a>(
    call: &'a Call<'_>,
    member: &str,
    record: &KeyRecord,
) -> Result<&'a str, KmsError> {
    let name = call.text(member).unwrap_or("SYMMETRIC_DEFAULT");
    fits(name, record)?;
    Ok(name)
}

/// Refuses an algorithm that the key does not have.
pub(super) fn fits(name: &str, record: &KeyRecord) -> Result<(), KmsError> {
    if record.spec.algorithms(record.usage).contains(&name) {
        return Ok(());
    }
    let text = format!("Algorithm {name} is incompatible with key spec {}.", record.spec.name());
    Err(KmsError::exception("InvalidKeyUsageException", text))
}

pub(super) fn encrypt(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let record = engine.key_for(call, "KeyId")?;
    engine.ready(call, &record, KeyUsage::EncryptDecrypt)?;
    let algorithm = algorithm(call, "EncryptionAlgorithm", &record)?;
    let plain = call.blob("Plaintext")?;
    call.dry_run()?;
    let sealed = seal(engine, call, &record, algorithm, "EncryptionContext", &plain)?;
    engine.used(&record.slot(), call.action, &call.caller.request_id);
    Ok(json!({
        "CiphertextBlob": base64(&sealed.bytes),
        "KeyId": record.arn(),
        "EncryptionAlgorithm": algorithm,
    }))
}

/// Seals a message under a key.
fn seal(
    engine: &Engine,
    call: &Call<'_>,
    record: &KeyRecord,
    algorithm: &str,
    context: &str,
    plain: &[u8],
) -> Result<Done, KmsError> {
    if record.spec == KeySpec::Symmetric {
        let sealed = engine.seal_under(record, &canonical(&call.context(context))?, plain)?;
        return Ok(Done { bytes: Zeroizing::new(sealed.blob), material: Some(sealed.key_material_id) });
    }
    no_context(call, context)?;
    let max = pk::max_plaintext(record.spec, algorithm);
    if plain.len() > max {
        let spec = record.spec.name();
        let text =
            format!("Algorithm {algorithm} and key spec {spec} cannot encrypt data larger than {max} bytes.");
        return Err(KmsError::Validation(text));
    }
    let public = engine.public_half(record)?;
    let bytes = pk::encrypt(&public, algorithm, plain).map_err(|_| super::create::library_failed())?;
    Ok(Done { bytes: Zeroizing::new(bytes), material: None })
}

fn no_context(call: &Call<'_>, member: &str) -> Result<(), KmsError> {
    if call.context(member).is_empty() {
        return Ok(());
    }
    Err(KmsError::Validation("EncryptionContext is only supported for symmetric encryption keys.".into()))
}

/// The members in which Decrypt and ReEncrypt say what they open.
struct Source {
    key: &'static str,
    algorithm: &'static str,
    context: &'static str,
    action: &'static str,
}

pub(super) fn decrypt(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    call.no_recipient()?;
    let source = Source {
        key: "KeyId",
        algorithm: "EncryptionAlgorithm",
        context: "EncryptionContext",
        action: "Decrypt",
    };
    let record = source_key(engine, call, &source)?;
    engine.decide(call, source.action, Some(&record), None).map_err(|e| hide(call, &source, e))?;
    let (algorithm, opened) = open(engine, call, &record, &source)?;
    engine.used(&record.slot(), call.action, &call.caller.request_id);
    let mut out = json!({
        "KeyId": record.arn(),
        "EncryptionAlgorithm": algorithm,
    });
    out["Plaintext"] = secret(&opened.bytes);
    if let Some(id) = opened.material {
        out["KeyMaterialId"] = json!(id);
    }
    Ok(out)
}

/// Whether a dry run asks for the permission only, without a ciphertext.
fn ignores_ciphertext(call: &Call<'_>) -> Result<bool, KmsError> {
    let asked = call.list("DryRunModifiers").contains(&"IGNORE_CIPHERTEXT");
    if asked && !call.flag("DryRun") {
        return Err(KmsError::Validation("DryRunModifiers needs the DryRun option.".into()));
    }
    Ok(asked)
}

/// The key that opens: named by the caller, else by the blob, before anything is decided.
fn source_key(
    engine: &Engine,
    call: &Call<'_>,
    source: &Source,
) -> Result<std::sync::Arc<KeyRecord>, KmsError> {
    let symmetric = call.text(source.algorithm).is_none_or(|a| a == "SYMMETRIC_DEFAULT");
    let named = call.text(source.key).is_some();
    if ignores_ciphertext(call)? || !symmetric {
        if !named {
            return Err(KmsError::Validation(format!("{} is required.", source.key)));
        }
        return engine.named_key(call, source.key);
    }
    let bytes = call.blob("CiphertextBlob")?;
    if named {
        let record = engine.named_key(call, source.key)?;
        if record.spec == KeySpec::Symmetric && blob::head(&bytes)?.key_id != record.id {
            return Err(KmsError::IncorrectKey);
        }
        return Ok(record);
    }
    let head = blob::head(&bytes)?;
    let record = match engine.key(&call.scope().key_slot(&head.key_id)) {
        Ok(record) if record.scope.region == call.scope().region => record,
        Ok(_) | Err(KmsError::NotFound(_)) => {
            return Err(KmsError::exception("AccessDeniedException", HIDDEN_KEY));
        }
        Err(other) => return Err(other),
    };
    call.touches(&record);
    Ok(record)
}

/// Whoever names no key is not told whether the blob's key exists.
fn hide(call: &Call<'_>, source: &Source, error: KmsError) -> KmsError {
    match error.code() {
        "AccessDeniedException" if call.text(source.key).is_none() => {
            KmsError::exception("AccessDeniedException", HIDDEN_KEY)
        }
        _ => error,
    }
}

fn open<'a>(
    engine: &Engine,
    call: &'a Call<'_>,
    record: &KeyRecord,
    source: &Source,
) -> Result<(&'a str, Done), KmsError> {
    engine.ready(call, record, KeyUsage::EncryptDecrypt)?;
    let algorithm = algorithm(call, source.algorithm, record)?;
    if ignores_ciphertext(call)? {
        call.dry_run()?;
    }
    let bytes = call.blob("CiphertextBlob")?;
    let done = if record.spec == KeySpec::Symmetric {
        let ad = canonical(&call.context(source.context))?;
        let opened = engine.open_under(record, &blob::head(&bytes)?, &ad, &bytes)?;
        Done { bytes: opened.plaintext, material: Some(opened.key_material_id) }
    } else {
        no_context(call, source.context)?;
        let private = engine.private_half(record)?;
        let plain = pk::decrypt(&private, algorithm, &bytes).map_err(|_| KmsError::InvalidCiphertext)?;
        Done { bytes: plain, material: None }
    };
    if call.action == "Decrypt" {
        call.dry_run()?;
    }
    Ok((algorithm, done))
}

pub(super) fn re_encrypt(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    let source = Source {
        key: "SourceKeyId",
        algorithm: "SourceEncryptionAlgorithm",
        context: "SourceEncryptionContext",
        action: "ReEncryptFrom",
    };
    let from = source_key(engine, call, &source)?;
    let to = engine.named_key(call, "DestinationKeyId")?;
    let same = Some(from.slot() == to.slot());
    engine.decide(call, source.action, Some(&from), same).map_err(|e| hide(call, &source, e))?;
    engine.decide(call, "ReEncryptTo", Some(&to), same)?;
    let destination = algorithm(call, "DestinationEncryptionAlgorithm", &to)?;
    engine.ready(call, &to, KeyUsage::EncryptDecrypt)?;
    let (algorithm, opened) = open(engine, call, &from, &source)?;
    call.dry_run()?;
    let sealed = seal(engine, call, &to, destination, "DestinationEncryptionContext", &opened.bytes)?;
    engine.used(&from.slot(), call.action, &call.caller.request_id);
    engine.used(&to.slot(), call.action, &call.caller.request_id);
    let mut out = json!({
        "CiphertextBlob": base64(&sealed.bytes),
        "SourceKeyId": from.arn(),
        "KeyId": to.arn(),
        "SourceEncryptionAlgorithm": algorithm,
        "DestinationEncryptionAlgorithm": destination,
    });
    for (field, id) in
        [("SourceKeyMaterialId", opened.material), ("DestinationKeyMaterialId", sealed.material)]
    {
        if let Some(id) = id {
            out[field] = json!(id);
        }
    }
    Ok(out)
}
