//! `envelopefs hsm quorum`, `hsm user change-quorum`, `hsm crypto`, and `--approval` of other commands.

use std::error::Error;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;

use super::Answer;
use super::keys::{find, write};
use super::quorum_args::{
    ApprovalArgs, ChangeQuorumCommand, CryptoCommand, QuorumCommand, RegisterCommand, Scope, TokenSignCommand,
};
use crate::hsm::Manager;

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Hands the signatures of a token over, for the operation that follows.
pub(super) fn approve(hsm: &Manager, file: Option<&Path>) -> Result<(), Box<dyn Error>> {
    if let Some(path) = file {
        hsm.quorum_approve(&read(path)?)?;
    }
    Ok(())
}

impl ApprovalArgs {
    /// The same, of this command.
    pub(super) fn give(&self, hsm: &Manager) -> Result<(), Box<dyn Error>> {
        approve(hsm, self.approval.as_deref())
    }
}

/// Runs a `user change-quorum` command.
pub(super) fn change(command: &ChangeQuorumCommand, hsm: &Manager) -> Answer {
    let ChangeQuorumCommand::TokenSign { command: RegisterCommand::Register { public_key, signed_token } } =
        command;
    Ok(hsm.register_approver(&read(public_key)?, &read(signed_token)?)?)
}

/// Runs a `quorum` command.
pub(super) fn run(command: &QuorumCommand, hsm: &Manager) -> Answer {
    let QuorumCommand::TokenSign { command } = command;
    Ok(match command {
        TokenSignCommand::Generate { service, token, filter } => {
            let key = filter.as_deref().map(|f| find(hsm, f)).transpose()?;
            let file = hsm.quorum_generate(*service, key)?;
            write(token, file.as_bytes())?;
            json!({ "path": token })
        }
        TokenSignCommand::List => hsm.quorum_list()?,
        TokenSignCommand::Delete { scope } => hsm.quorum_delete(*scope == Scope::All)?,
        TokenSignCommand::ListQuorumValues => hsm.quorum_values()?,
        TokenSignCommand::ListTimeouts => hsm.quorum_timeouts()?,
        TokenSignCommand::SetQuorumValue { service, value, approval } => {
            approval.give(hsm)?;
            hsm.quorum_set((*service).into(), *value)?
        }
    })
}

/// Runs a `crypto` command.
pub(super) fn crypto(command: &CryptoCommand, hsm: &Manager) -> Answer {
    let CryptoCommand::Sign { mechanism, key_filter, hash_function, data, data_path, approval } = command;
    let data = match (data, data_path) {
        (_, Some(path)) => std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?,
        (data, None) => {
            let text = data.as_deref().unwrap_or_default();
            BASE64.decode(text).map_err(|e| format!("--data is no base64: {e}"))?
        }
    };
    let key = find(hsm, key_filter)?;
    approval.give(hsm)?;
    let signature = hsm.sign(key, (*mechanism).into(), (*hash_function).into(), &data)?;
    Ok(json!({ "key-reference": format!("{key:#018x}"), "signature": BASE64.encode(signature) }))
}
