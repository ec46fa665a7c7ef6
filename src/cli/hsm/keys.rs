//! `envelopefs hsm key`.

use std::error::Error;
use std::path::Path;

use serde_json::json;

use super::Answer;
use super::args::{KeyArgs, KeyCommand, PairKind, SymmetricKind};
use super::quorum::approve;
use super::quorum_args::ApprovalArgs;
use crate::hsm::{CURVES, HsmError, Manager, NewKey};

/// Runs a `key` command.
pub(super) fn run(command: &KeyCommand, hsm: &Manager) -> Answer {
    Ok(match command {
        KeyCommand::GenerateSymmetric { kind, label, key_length_bytes, attributes, sharing } => {
            let key = match kind {
                SymmetricKind::Aes => NewKey::Aes(*key_length_bytes),
                SymmetricKind::GenericSecret => NewKey::Generic(*key_length_bytes),
            };
            made(&hsm.key_generate(key, label, "", attributes, &sharing.sharing())?)
        }
        KeyCommand::GenerateAsymmetricPair {
            kind,
            private_label,
            public_label,
            modulus_size_bits,
            curve,
            attributes,
            sharing,
        } => {
            let key = match kind {
                PairKind::Rsa => NewKey::Rsa(*modulus_size_bits),
                PairKind::Ec => NewKey::Ec(named_curve(curve)?),
            };
            made(&hsm.key_generate(key, private_label, public_label, attributes, &sharing.sharing())?)
        }
        KeyCommand::List => hsm.key_list()?,
        KeyCommand::Delete { key } => {
            hsm.key_delete(find(hsm, &key.filter)?)?;
            json!({ "message": "Key deleted successfully" })
        }
        KeyCommand::SetAttribute { key, attribute, approval } => {
            hsm.key_set_attribute(approved(hsm, key, approval)?, attribute)?;
            json!({ "message": "Attribute set successfully" })
        }
        KeyCommand::Share { key, username, approval } => {
            hsm.key_share(approved(hsm, key, approval)?, username, true)?
        }
        KeyCommand::Rotate { key, approval } => hsm.key_rotate(approved(hsm, key, approval)?)?,
        KeyCommand::Replicate { key } => hsm.key_replicate(find(hsm, &key.filter)?)?,
        KeyCommand::Unshare { key, username, approval } => {
            hsm.key_share(approved(hsm, key, approval)?, username, false)?
        }
        files => travel(files, hsm)?,
    })
}

/// Keys to files, and back.
fn travel(command: &KeyCommand, hsm: &Manager) -> Answer {
    Ok(match command {
        KeyCommand::Export { key, path, password, approval } => {
            let handle = find(hsm, &key.filter)?;
            let password = password.chosen("Password of the file: ")?;
            approval.give(hsm)?;
            let file = hsm.key_export(handle, &password)?;
            write(path, &file)?;
            json!({ "path": path, "bytes": file.len() })
        }
        KeyCommand::Import { path, label, password, sharing } => {
            let file = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
            let password = password.get("Password of the file: ")?;
            hsm.key_import(&file, &password, label.as_deref(), &sharing.sharing())?
        }
        KeyCommand::Wrap { payload_filter, wrapping_filter, path, payload_approval, wrapping_approval } => {
            let (by, key) = (find(hsm, wrapping_filter)?, find(hsm, payload_filter)?);
            for file in [payload_approval, wrapping_approval].into_iter().flatten() {
                approve(hsm, Some(file))?;
            }
            let wrapped = hsm.key_wrap(by, key)?;
            write(path, &wrapped)?;
            json!({ "path": path, "bytes": wrapped.len() })
        }
        KeyCommand::Unwrap { filter, data_path, label, attributes, sharing, approval } => {
            let wrapped = std::fs::read(data_path).map_err(|e| format!("{}: {e}", data_path.display()))?;
            let by = find(hsm, filter)?;
            approval.give(hsm)?;
            made(&[hsm.key_unwrap(by, &wrapped, label, attributes, &sharing.sharing())?])
        }
        _ => json!({}),
    })
}

/// The handle of a key, once the approvals for what follows are handed over.
fn approved(hsm: &Manager, key: &KeyArgs, approval: &ApprovalArgs) -> Result<u64, Box<dyn Error>> {
    let handle = find(hsm, &key.filter)?;
    approval.give(hsm)?;
    Ok(handle)
}

fn made(handles: &[u64]) -> serde_json::Value {
    let names: Vec<_> = handles.iter().map(|h| format!("{h:#x}")).collect();
    match names.as_slice() {
        [public, private] => json!({ "public-key": public, "private-key": private }),
        [one] => json!({ "key-reference": one }),
        _ => json!({}),
    }
}

pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
    std::fs::write(path, bytes).map_err(|e| format!("{}: {e}", path.display()).into())
}

fn named_curve(name: &str) -> Result<&'static [u8], HsmError> {
    let found = CURVES.iter().find(|(n, _)| *n == name).map(|(_, params)| *params);
    found.ok_or_else(|| HsmError::Refused(format!("{name}: no curve of this HSM")))
}

/// The handle of the one key that a filter names.
pub(super) fn find(hsm: &Manager, filter: &str) -> Result<u64, Box<dyn Error>> {
    let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let (name, value) =
        filter.split_once('=').ok_or("write the filter as attr.label=NAME or key-reference=0x...")?;
    if name == "key-reference" {
        return Ok(hex(value).ok_or_else(|| format!("{value}: no key reference"))?);
    }
    let wanted = name.strip_prefix("attr.").ok_or_else(|| format!("{name}: no filter"))?;
    let list = hsm.key_list()?;
    let all = list["matched_keys"].as_array().cloned().unwrap_or_default();
    let matching: Vec<_> = all.iter().filter(|k| k["attributes"][wanted] == value).collect();
    match matching.as_slice() {
        [one] => Ok(one["key-reference"].as_str().and_then(hex).ok_or("the HSM's answer names no key")?),
        [] => Err(HsmError::Refused(format!("{filter}: no such key")).into()),
        several => Err(HsmError::Refused(format!(
            "{filter}: {} keys have it; name one with key-reference=0x... (envelopefs hsm key list)",
            several.len()
        ))
        .into()),
    }
}
