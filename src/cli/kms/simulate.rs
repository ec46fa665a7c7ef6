//! `kms simulate-policy`: would this be allowed, and by what?

use std::error::Error;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value, json};

use super::args::Output;
use super::backend::Backend;
use super::{print, show};

#[derive(Debug, Args)]
pub(super) struct SimulateArgs {
    /// Key id, key ARN, alias/NAME or alias ARN; none for actions on no key.
    #[arg(value_name = "KEY")]
    key: Option<String>,
    /// ARN of the principal; its policies are those that the store has for it.
    #[arg(long, value_name = "ARN")]
    principal: String,
    /// The action, as kms:Decrypt; the halves of ReEncrypt are kms:ReEncryptFrom and kms:ReEncryptTo.
    #[arg(long, value_name = "ACTION")]
    action: String,
    /// A key policy to try in place of the key's own.
    #[arg(long, value_name = "FILE")]
    policy_file: Option<PathBuf>,
    /// A policy of the principal to try in place of its own (several: repeat).
    #[arg(long, value_name = "FILE")]
    identity_policy_file: Vec<PathBuf>,
    /// A permissions boundary to try in place of the principal's own.
    #[arg(long, value_name = "FILE")]
    permissions_boundary_file: Option<PathBuf>,
    /// A service control policy to try in place of the server's (several: repeat; each has to allow).
    #[arg(long, value_name = "FILE")]
    service_control_policy_file: Vec<PathBuf>,
    /// A pair of the encryption context (several: repeat).
    #[arg(long, value_name = "NAME=VALUE")]
    encryption_context: Vec<String>,
    /// Parameters of the action, as AWS's JSON: conditions may ask for them.
    #[arg(long, value_name = "JSON")]
    parameters: Option<String>,
    /// The service that calls for the principal, as envelopefs.us-east-1.amazonaws.com.
    #[arg(long, value_name = "NAME")]
    via_service: Option<String>,
    /// Where the call comes from.
    #[arg(long, value_name = "IP")]
    source_ip: Option<String>,
    #[command(flatten)]
    output: Output,
}

fn read(path: &Path) -> Result<String, Box<dyn Error>> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()).into())
}

pub(super) fn run(
    args: &SimulateArgs,
    region: Option<&str>,
    backend: &mut Backend,
) -> Result<(), Box<dyn Error>> {
    let mut context = Map::new();
    for pair in &args.encryption_context {
        let (name, value) =
            pair.split_once('=').ok_or_else(|| format!("--encryption-context {pair}: write NAME=VALUE"))?;
        context.insert(name.to_owned(), json!(value));
    }
    let mut input = json!({
        "PrincipalArn": args.principal, "Action": args.action, "KeyId": args.key,
        "ViaService": args.via_service, "SourceIp": args.source_ip, "Region": region,
    });
    if !context.is_empty() {
        input["EncryptionContext"] = Value::Object(context);
    }
    if let Some(text) = &args.parameters {
        input["Parameters"] = serde_json::from_str(text).map_err(|e| format!("--parameters: {e}"))?;
    }
    if let Some(path) = &args.policy_file {
        input["KeyPolicy"] = json!(read(path)?);
    }
    if let Some(path) = &args.permissions_boundary_file {
        input["PermissionsBoundary"] = json!(read(path)?);
    }
    for (member, files) in [
        ("IdentityPolicies", &args.identity_policy_file),
        ("ServiceControlPolicies", &args.service_control_policy_file),
    ] {
        if !files.is_empty() {
            input[member] = json!(files.iter().map(|p| read(p)).collect::<Result<Vec<_>, _>>()?);
        }
    }
    let answer = backend.manage("SimulatePolicy", &input)?;
    if args.output.json {
        return show::json(&answer);
    }
    let word = if answer["Allowed"] == true { "allowed" } else { "denied" };
    print(&format!("{word}: {}\n", answer["By"].as_str().unwrap_or_default()))
}
