//! `kms principal`: who may sign requests to the server.

use std::error::Error;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::backend::Backend;
use super::date::date;
use super::print;

#[derive(Debug, Args)]
pub(super) struct PrincipalArgs {
    #[command(subcommand)]
    command: PrincipalCommand,
}

#[derive(Debug, Subcommand)]
enum PrincipalCommand {
    /// Make a principal; print its access key and, this once, its secret.
    Create {
        /// Its name.
        name: String,
        #[command(flatten)]
        place: Place,
        /// IAM policies (JSON); without any it may do what key policies leave to the account.
        #[arg(long, value_name = "FILE")]
        policy_document: Vec<PathBuf>,
        /// Permissions boundary (JSON): the most that its IAM policies can give.
        #[arg(long, value_name = "FILE")]
        permissions_boundary: Option<PathBuf>,
    },
    /// List the principals.
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Remove a principal: its signatures are worth nothing from now on.
    Delete {
        /// Its name.
        name: String,
        #[command(flatten)]
        place: Place,
    },
    /// Replace the IAM policies of a principal.
    SetPolicy {
        /// Its name.
        name: String,
        #[command(flatten)]
        place: Place,
        /// IAM policies (JSON).
        #[arg(long, value_name = "FILE", required = true)]
        policy_document: Vec<PathBuf>,
    },
    /// Set the permissions boundary of a principal, the most that its IAM policies can give; without FILE take it away.
    SetBoundary {
        /// Its name.
        name: String,
        #[command(flatten)]
        place: Place,
        /// Permissions boundary (JSON).
        #[arg(long, value_name = "FILE")]
        permissions_boundary: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct Place {
    /// Its account, twelve digits [default: 000000000000, the account of the embedded KMS].
    #[arg(long, value_name = "ACCOUNT")]
    account: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn read(path: &PathBuf) -> Result<String, Box<dyn Error>> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()).into())
}

fn policies(files: &[PathBuf]) -> Result<Vec<String>, Box<dyn Error>> {
    files.iter().map(read).collect()
}

/// Runs a `principal` command.
pub(super) fn run(args: &PrincipalArgs, backend: &mut Backend) -> Result<(), Box<dyn Error>> {
    match &args.command {
        PrincipalCommand::Create { name, place, policy_document, permissions_boundary } => {
            let input = json!({
                "Name": name, "Account": place.account, "Policies": policies(policy_document)?,
                "PermissionsBoundary": permissions_boundary.as_ref().map(read).transpose()?,
            });
            let made = backend.manage("CreatePrincipal", &input)?;
            if place.json {
                return print(&(serde_json::to_string_pretty(&made)? + "\n"));
            }
            let made = &made["Principal"];
            let text = |field: &str| made[field].as_str().unwrap_or_default().to_owned();
            print(&format!(
                "arn         {}\naccess key  {}\nsecret      {}\n",
                text("Arn"),
                text("AccessKeyId"),
                text("SecretAccessKey")
            ))
        }
        PrincipalCommand::List { place } => {
            let all = backend.manage("ListPrincipals", &json!({}))?;
            if place.json {
                return print(&(serde_json::to_string_pretty(&all)? + "\n"));
            }
            let line = |p: &Value| {
                let text = |field: &str| p[field].as_str().unwrap_or_default();
                let made = date(p["CreationDate"].as_f64().unwrap_or_default());
                format!("{}  {}  {made}\n", text("AccessKeyId"), text("Arn"))
            };
            print(&all["Principals"].as_array().into_iter().flatten().map(line).collect::<String>())
        }
        PrincipalCommand::Delete { name, place } => {
            backend.manage("DeletePrincipal", &json!({ "Name": name, "Account": place.account }))?;
            Ok(())
        }
        PrincipalCommand::SetPolicy { name, place, policy_document } => {
            let input =
                json!({ "Name": name, "Account": place.account, "Policies": policies(policy_document)? });
            backend.manage("SetPrincipalPolicies", &input)?;
            Ok(())
        }
        PrincipalCommand::SetBoundary { name, place, permissions_boundary } => {
            let boundary = permissions_boundary.as_ref().map(read).transpose()?;
            let input = json!({ "Name": name, "Account": place.account, "PermissionsBoundary": boundary });
            backend.manage("SetPrincipalBoundary", &input)?;
            Ok(())
        }
    }
}
