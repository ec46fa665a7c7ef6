//! What the owner of the store does over the control socket, beside AWS's API: principals.

use serde_json::{Value, json};

use crate::kms::engine::Engine;
use crate::kms::error::KmsError;
use crate::kms::owner;
use crate::kms::principals::{NewPrincipal, Principal};

/// `X-Amz-Target` of these actions begins with this.
pub(super) const TARGET: &str = "EnvelopeFS.";

/// Does an action of the owner.
pub(super) fn call(engine: &Engine, action: &str, input: &Value) -> Result<Value, KmsError> {
    engine.manage(action, input)
}

impl Engine {
    /// CreatePrincipal, ListPrincipals, DeletePrincipal, SetPrincipalPolicies, SetPrincipalBoundary, WriteBackup,
    /// CheckStore: for the owner of the store only, in the process or over the control socket.
    pub fn manage(&self, action: &str, input: &Value) -> Result<Value, KmsError> {
        let text = |name: &str| Ok::<_, KmsError>(owner::text(input, name)?.map(str::to_owned));
        let need = |name: &str| owner::need(input, name).map(str::to_owned);
        let policies = || Ok::<_, KmsError>(owner::policies(input, "Policies")?.unwrap_or_default());
        if let Some(answer) = self.ask(action, input) {
            return answer;
        }
        match action {
            "CreatePrincipal" => {
                let new = NewPrincipal {
                    name: need("Name")?,
                    account: text("Account")?,
                    policies: policies()?,
                    boundary: text("PermissionsBoundary")?,
                    access_key: text("AccessKeyId")?,
                    secret: text("SecretAccessKey")?.map(Into::into),
                };
                let (principal, secret) = self.create_principal(new)?;
                let mut out = shown(&principal);
                out["SecretAccessKey"] = json!(*secret);
                Ok(json!({ "Principal": out }))
            }
            "ListPrincipals" => {
                let all: Vec<Value> = self.list_principals()?.iter().map(shown).collect();
                Ok(json!({ "Principals": all }))
            }
            "DeletePrincipal" => {
                self.delete_principal(text("Account")?.as_deref(), &need("Name")?)?;
                Ok(json!({}))
            }
            "SetPrincipalPolicies" => {
                self.set_principal_policies(text("Account")?.as_deref(), &need("Name")?, policies()?)?;
                Ok(json!({}))
            }
            "SetPrincipalBoundary" => {
                if input.get("PermissionsBoundary").is_none() {
                    let why = "PermissionsBoundary is missing (null takes the boundary away)";
                    return Err(KmsError::Validation(why.into()));
                }
                let boundary = text("PermissionsBoundary")?;
                self.set_principal_boundary(text("Account")?.as_deref(), &need("Name")?, boundary)?;
                Ok(json!({}))
            }
            "WriteBackup" => {
                let passphrase = zeroize::Zeroizing::new(need("Passphrase")?);
                let report = self.backup(std::path::Path::new(&need("Path")?), &passphrase)?;
                Ok(json!({ "Records": report.records }))
            }
            "CheckStore" => {
                let found = self.check()?;
                Ok(json!({
                    "Keys": found.keys,
                    "Materials": found.materials,
                    "Aliases": found.aliases,
                    "Grants": found.grants,
                    "Principals": found.principals,
                    "Faults": found.faults,
                }))
            }
            _ => Err(KmsError::exception("UnknownOperationException", "")),
        }
    }
}

fn shown(principal: &Principal) -> Value {
    json!({
        "Name": principal.name,
        "Account": principal.account,
        "Arn": principal.arn,
        "UserId": principal.user_id,
        "AccessKeyId": principal.access_key,
        "CreationDate": principal.created(),
        "Policies": principal.policies,
        "PermissionsBoundary": principal.boundary,
    })
}
