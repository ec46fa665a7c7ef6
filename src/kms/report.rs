//! What the owner of a store asks about it: what a policy would decide, what was used, whether the audit log is whole.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::access::{Ask, InForce};
use super::audit::{self, Filter};
use super::caller::Caller;
use super::engine::Engine;
use super::error::KmsError;
use super::owner;
use super::policy::{self, Named};
use super::records::KeyRecord;
use super::table::{KEYS, View};
use super::usage::{self, KeyLife, Prices, Usage};
use super::watch::{audit_dir, usage_file};

/// Events that one answer holds.
const MAX_EVENTS: usize = 1000;

impl Engine {
    /// SimulatePolicy: whether a request would be allowed, and by which statement or grant. `KeyPolicy`,
    /// `IdentityPolicies`, `PermissionsBoundary` and `ServiceControlPolicies` stand for those in force. Nothing is done,
    /// nothing written to the audit log.
    ///
    /// Members: `PrincipalArn`, `Action` (`kms:Decrypt`); `KeyId`, `KeyPolicy`, `IdentityPolicies`, `Parameters` (of
    /// the action), `EncryptionContext`, `ViaService`, `SourceIp`, `Region`. Answer: `Allowed`, `By`, `Message`.
    pub fn simulate(&self, input: &Value) -> Result<Value, KmsError> {
        let action = owner::need(input, "Action")?;
        let action = action.strip_prefix("kms:").unwrap_or(action);
        let known = |a: &&str| a.eq_ignore_ascii_case(action);
        let action = super::api::actions()
            .chain(["ReEncryptFrom", "ReEncryptTo"])
            .find(known)
            .ok_or_else(|| KmsError::Validation(format!("{action} is no action of the KMS")))?;
        let caller = self.simulated_caller(owner::need(input, "PrincipalArn")?, input)?;
        let key = given(input, "KeyId")?.map(|name| self.resolve_in(name, &caller.scope)).transpose()?;
        let key_policy = match (given(input, "KeyPolicy")?, &key) {
            (Some(given), _) => Some(std::sync::Arc::new(policy::parse(given)?)),
            (None, Some(key)) => Some(self.key_policy(key)?),
            (None, None) => None,
        };
        let known = self.list_principals()?.into_iter().find(|p| p.arn == caller.arn);
        let (known_policies, known_boundary) =
            known.map_or((Vec::new(), None), |known| (known.policies, known.boundary));
        let identities = match owner::policies(input, "IdentityPolicies")? {
            Some(given) => compiled(&given, &caller.arn)?,
            None => compiled(&known_policies, &caller.arn)?,
        };
        let boundary = given(input, "PermissionsBoundary")?.map(str::to_owned).or(known_boundary);
        let boundary = boundary.map(|text| policy::parse_identity(&text)).transpose()?;
        let service_control = match owner::policies(input, "ServiceControlPolicies")? {
            Some(given) => compiled(&given, "the organization")?,
            None => self.service_control.clone(),
        };
        let params = parameters(input, action)?;
        let ask = Ask {
            caller: &caller,
            action,
            params: &params,
            key: key.as_deref(),
            resource: None,
            same_key: None,
        };
        let set = InForce {
            key_policy: key_policy.as_deref(),
            identity_policies: &identities,
            boundary: boundary.as_ref(),
            service_control: &service_control,
        };
        let verdict = self.verdict_by(&ask, set)?;
        let allowed = verdict.decision.allowed;
        Ok(json!({
            "Allowed": allowed,
            "By": verdict.decision.reason.to_string(),
            "Message": if allowed { String::new() } else { verdict.message },
        }))
    }

    fn simulated_caller(&self, arn: &str, input: &Value) -> Result<Caller, KmsError> {
        let account = policy::account_of(arn);
        let service = !arn.starts_with("arn:") && arn.contains('.');
        if account.is_empty() && !service {
            return Err(KmsError::Validation(format!("{arn} is no ARN of a principal")));
        }
        let mut scope = super::arn::Scope::home();
        if let Some(region) = given(input, "Region")? {
            region.clone_into(&mut scope.region);
        }
        // A key that is named by its ARN has its own account; another name is one in the caller's.
        if !account.is_empty() {
            account.clone_into(&mut scope.account);
        }
        let source = given(input, "SourceIp")?.map(|ip| {
            ip.parse::<IpAddr>().map_err(|_| KmsError::Validation(format!("{ip} is no IP address")))
        });
        Ok(Caller {
            arn: arn.to_owned(),
            via: given(input, "ViaService")?.map(str::to_owned),
            source: source.transpose()?,
            policies: [].into(),
            ..Caller::root(scope)
        })
    }

    /// Usage: requests and keys of each month, with estimates. `Prices` may name `KeyMonth`, `Requests` and
    /// `Asymmetric` (of 10,000), `FreeRequests`, `HsmHour`, `Hsms`.
    pub fn usage_report(&self, input: &Value) -> Result<Value, KmsError> {
        let prices = prices(input.get("Prices"));
        let file = usage_file(self.dir());
        let mut months = usage::load(&file).map_err(|e| KmsError::io(&e.path)(e.source))?;
        let now = self.now();
        let current: String = audit::time(now).chars().take(7).collect();
        months.entry(current).or_insert_with(Usage::default);
        let keys = self.store.read(|r| r.list::<KeyRecord>(KEYS))?;
        let lives: Vec<KeyLife> = keys
            .iter()
            .map(|(_, k)| KeyLife {
                created_ms: k.created_ms,
                rotations: u32::try_from(k.materials.len().saturating_sub(1)).unwrap_or(u32::MAX),
            })
            .collect();
        let rows = months.iter().rev().filter_map(|(month, used)| {
            let (begin, end) = bounds(month)?;
            let end = end.min(now);
            let bill = usage::estimate(used, &lives, begin, end, &prices);
            Some(json!({
                "Month": month, "Requests": used.total(), "Failed": used.failed, "Classes": used.requests,
                "KeyMonths": bill.key_months, "KeyCost": bill.keys, "RequestCost": bill.requests,
                "KmsCost": bill.kms(), "HsmCost": bill.hsms,
            }))
        });
        Ok(json!({ "Months": rows.collect::<Vec<_>>(), "Keys": keys.len() }))
    }

    /// VerifyAudit: reads the whole log.
    pub fn verify_audit(&self) -> Result<audit::Report, KmsError> {
        audit::verify(&audit_dir(self.dir()), &self.audit_key()).map_err(audit_error)
    }

    /// The last events that fit, newest first.
    pub fn recent_events(&self, filter: &Filter, count: usize) -> Result<Vec<Value>, KmsError> {
        let found =
            audit::tail(&audit_dir(self.dir()), filter, count.min(MAX_EVENTS)).map_err(audit_error)?;
        Ok(found.into_iter().map(|f| f.event).collect())
    }

    /// Does an owner's question by its name, over the control socket too; `None` where it is none of these.
    pub fn ask(&self, action: &str, input: &Value) -> Option<Result<Value, KmsError>> {
        match action {
            "SimulatePolicy" => Some(self.simulate(input)),
            "Usage" => Some(self.usage_report(input)),
            "VerifyAudit" => Some(self.verify_audit().map(|report| report_json(&report))),
            _ => None,
        }
    }
}

/// A member that is a text; an empty field of a page asks for nothing.
fn given<'a>(input: &'a Value, member: &str) -> Result<Option<&'a str>, KmsError> {
    Ok(owner::text(input, member)?.filter(|text| !text.is_empty()))
}

/// Policies, named by their place and whose they are.
fn compiled(texts: &[String], whose: &str) -> Result<Vec<Named>, KmsError> {
    let one = |(at, text): (usize, &String)| {
        let document = policy::parse_identity(text)?.into();
        Ok(Named { name: format!("{} of {whose}", at + 1), document })
    };
    texts.iter().enumerate().map(one).collect()
}

/// A report of [`audit::verify`] as JSON.
pub fn report_json(report: &audit::Report) -> Value {
    let findings: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
    json!({
        "Clean": report.is_clean(),
        "Events": report.good,
        "First": report.range.map(|r| r.0),
        "Last": report.range.map(|r| r.1),
        "Files": report.files,
        "Findings": findings,
        "MoreFindings": report.more,
    })
}

fn audit_error(error: audit::AuditError) -> KmsError {
    match error {
        audit::AuditError::Io { path, source } => KmsError::io(path)(source),
        audit::AuditError::Head(path) => {
            KmsError::Damaged { path, why: "the head of the audit log does not authenticate".into() }
        }
    }
}

/// The action's parameters: what is given, with the encryption context in the member that the action reads.
fn parameters(input: &Value, action: &str) -> Result<Value, KmsError> {
    let mut out = owner::object(input, "Parameters")?.cloned().unwrap_or_default();
    if let Some(key) = input.get("KeyId") {
        out.entry("KeyId").or_insert_with(|| key.clone());
    }
    if let Some(context) = owner::object(input, "EncryptionContext")? {
        let member = match action {
            "ReEncryptFrom" => "SourceEncryptionContext",
            "ReEncryptTo" => "DestinationEncryptionContext",
            _ => "EncryptionContext",
        };
        out.entry(member).or_insert_with(|| Value::Object(context.clone()));
    }
    Ok(Value::Object(out))
}

fn prices(given: Option<&Value>) -> Prices {
    let mut prices = Prices::default();
    let number = |name: &str| given.and_then(|g| g.get(name)).and_then(Value::as_f64).filter(|n| *n >= 0.0);
    for (name, price) in [
        ("KeyMonth", &mut prices.key_month),
        ("Requests", &mut prices.requests),
        ("Asymmetric", &mut prices.asymmetric),
        ("HsmHour", &mut prices.hsm_hour),
    ] {
        *price = number(name).unwrap_or(*price);
    }
    let whole = |name: &str| given.and_then(|g| g.get(name)).and_then(Value::as_u64);
    prices.free = whole("FreeRequests").unwrap_or(prices.free);
    prices.hsms = whole("Hsms").and_then(|n| u32::try_from(n).ok()).unwrap_or(prices.hsms);
    prices
}

/// The first millisecond of a month, and that of the next one.
fn bounds(month: &str) -> Option<(u64, u64)> {
    let first: jiff::civil::Date = format!("{month}-01").parse().ok()?;
    let next = first.last_of_month().tomorrow().ok()?;
    let ms = |date: jiff::civil::Date| {
        let at: jiff::Timestamp = format!("{date}T00:00:00Z").parse().ok()?;
        u64::try_from(at.as_millisecond()).ok()
    };
    Some((ms(first)?, ms(next)?))
}

/// A filter of the console's and the command line's words; empty ones ask for nothing.
pub fn filter(words: &BTreeMap<String, String>) -> Filter {
    let word = |name: &str| words.get(name).filter(|w| !w.is_empty()).cloned();
    Filter {
        key: word("key"),
        context: word("context"),
        principal: word("principal"),
        action: word("action"),
        since: word("since"),
        until: word("until"),
        errors: word("errors").is_some(),
    }
}
