//! `kms audit verify` and `kms audit query`.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::Value;

use super::args::Output;
use super::backend::Backend;
use super::{print, show};
use crate::format::header::{FileHeader, HEADER_XATTR, MAX_HEADER};
use crate::kms::KmsError;
use crate::kms::audit::{self, Filter};

/// Events that one query prints, where nobody says otherwise.
const LIMIT: usize = 10_000;

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    #[command(subcommand)]
    pub(super) command: AuditCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Read the whole log: is a line changed, removed or moved?
    Verify {
        #[command(flatten)]
        output: Output,
    },
    /// Find events: who used which key, for which file, when.
    Query(QueryArgs),
}

#[derive(Debug, Args)]
pub(super) struct QueryArgs {
    /// Key id or key ARN.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// A file of a vault (ciphertext), or its id as `inspect` prints it.
    #[arg(long, value_name = "FILE|ID", conflicts_with = "encryption_context")]
    file: Option<String>,
    /// A value of the encryption context, or NAME=VALUE.
    #[arg(long, value_name = "VALUE|NAME=VALUE")]
    encryption_context: Option<String>,
    /// A part of the principal's ARN.
    #[arg(long, value_name = "TEXT")]
    principal: Option<String>,
    /// An action, as Decrypt.
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// Not before this time: 2026-11-26T12:00:00Z, or a beginning of it.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Before this time.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Failed calls only.
    #[arg(long)]
    errors: bool,
    /// Print at most so many events.
    #[arg(long, value_name = "N", default_value_t = LIMIT)]
    limit: usize,
    #[command(flatten)]
    output: Output,
}

/// Verifies; findings end it with the code of a store that was changed.
pub(super) fn verify(output: &Output, dir: &Path, backend: &mut Backend) -> Result<(), Box<dyn Error>> {
    let report = backend.manage("VerifyAudit", &Value::Null)?;
    let findings: Vec<&str> =
        report["Findings"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if output.json {
        show::json(&report)?;
    } else {
        let lines: String = findings.iter().map(|f| format!("{f}\n")).collect();
        print(&format!("{lines}{} events in {} files\n", report["Events"], report["Files"]))?;
    }
    if report["Clean"] == true {
        return Ok(());
    }
    let more = report["MoreFindings"].as_u64().unwrap_or_default();
    let why = format!("the audit log has {} faults", findings.len() as u64 + more);
    Err(KmsError::Damaged { path: crate::kms::audit_dir(dir), why }.into())
}

/// Prints the events that are asked for, oldest first. Needs no key: the log is not secret to the store's owner.
pub(super) fn query(args: &QueryArgs, dir: &Path) -> Result<(), Box<dyn Error>> {
    let file = args.file.as_deref().map(file_id).transpose()?;
    let filter = Filter {
        key: args.key.clone(),
        context: file.or_else(|| args.encryption_context.clone()),
        principal: args.principal.clone(),
        action: args.action.clone(),
        since: args.since.clone(),
        until: args.until.clone(),
        errors: args.errors,
    };
    let mut left = args.limit;
    let mut failed = None;
    let json = args.output.json;
    audit::query(&crate::kms::audit_dir(dir), &filter, |found| {
        if left == 0 {
            return ControlFlow::Break(());
        }
        left -= 1;
        let text = if json { found.line + "\n" } else { line(&found.event) };
        match print(&text) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                failed = Some(e);
                ControlFlow::Break(())
            }
        }
    })?;
    failed.map_or(Ok(()), Err)
}

/// One event for people: time, result, action, principal, key, encryption context, source.
fn line(event: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let parameters = &event["requestParameters"];
    let contexts = ["encryptionContext", "sourceEncryptionContext", "destinationEncryptionContext"];
    let pairs = contexts.iter().filter_map(|c| parameters[c].as_object()).flatten();
    let pairs: Vec<_> = pairs.map(|(k, v)| format!("{k}={}", text(v))).collect();
    let who = match &event["userIdentity"]["arn"] {
        Value::Null => "the service itself".to_owned(),
        arn => text(arn),
    };
    let key = text(&event["resources"][0]["ARN"]);
    format!(
        "{}  {:<24} {:<28} {who}  {}  {}  {}\n",
        text(&event["eventTime"]),
        event["errorCode"].as_str().unwrap_or("ok"),
        text(&event["eventName"]),
        key.rsplit('/').next().unwrap_or("-"),
        if pairs.is_empty() { "-".to_owned() } else { pairs.join(",") },
        text(&event["sourceIPAddress"]),
    )
}

/// The id of a vault's file, by its path; what is no path is an id already.
fn file_id(named: &str) -> Result<String, Box<dyn Error>> {
    let path = PathBuf::from(named);
    if !path.exists() {
        return Ok(named.to_owned());
    }
    let mut bytes = vec![0; MAX_HEADER];
    let len = rustix::fs::getxattr(&path, HEADER_XATTR, &mut bytes)
        .map_err(|e| format!("{named}: no lower file of a vault: {e}"))?;
    bytes.truncate(len);
    let header = FileHeader::decode(&bytes).map_err(|e| format!("{named}: {e}"))?;
    Ok(header.file_id.to_string())
}
