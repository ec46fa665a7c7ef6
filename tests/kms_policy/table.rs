//! `*.json` beside this file: groups of cases of one page. What a case does not say, its group says.
//!
//! `key_policy` is a list of statements, `"default"` (AWS's default key policy), or null (no key is concerned);
//! `condition` stands for a key policy of one statement that allows everybody under that condition. Names such as
//! `user/Alice` are of account 111122223333.

use std::collections::BTreeMap;
use std::path::Path;

use envelopefs::kms::policy::{
    self, Call, Document, Grant, KeyFacts, Named, PolicySet, Reason, Request, default_key_policy,
};
use serde::Deserialize;
use serde_json::{Value, json};

const ACCOUNT: &str = "111122223333";
const KEY: &str = "arn:aws:kms:us-west-2:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
/// 2026-11-26.
const NOW_MS: u64 = 1_795_651_200_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    page: String,
    #[serde(flatten)]
    shared: Case,
    cases: Vec<Case>,
}

/// A case, or what the cases of a group share.
#[derive(Deserialize, Default, Clone)]
#[serde(default)]
struct Case {
    about: String,
    expect: String,
    /// A part of what the decision says about itself.
    by: Option<String>,
    #[serde(deserialize_with = "present")]
    key_policy: Option<Value>,
    condition: Option<Value>,
    identity: Option<Value>,
    identity_document: Option<Value>,
    /// Statements of the permissions boundary.
    boundary: Option<Value>,
    /// Of each service control policy its statements.
    service_control: Option<Vec<Value>>,
    grants: Option<Vec<GrantCase>>,
    caller: Option<String>,
    action: Option<String>,
    resource: Option<String>,
    params: Option<Value>,
    key: Option<KeyCase>,
    via: Option<String>,
    ip: Option<String>,
    same_key: Option<bool>,
    tokens: Option<Vec<String>>,
    context: Option<BTreeMap<String, Value>>,
}

/// A member that is there, be it null.
fn present<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(d).map(Some)
}

#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
struct GrantCase {
    grantee: String,
    operations: Vec<String>,
    equals: Option<BTreeMap<String, String>>,
    subset: Option<BTreeMap<String, String>>,
    #[serde(default = "yes")]
    settled: bool,
    #[serde(default)]
    tokens: Vec<String>,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize, Default, Clone)]
#[serde(deny_unknown_fields, default)]
struct KeyCase {
    spec: Option<String>,
    usage: Option<String>,
    origin: Option<String>,
    multi_region: Option<String>,
    aliases: Vec<String>,
    tags: BTreeMap<String, String>,
}

/// `user/Alice` as an ARN.
fn arn(name: &str) -> String {
    if name.starts_with("arn:") || name.contains(".amazonaws.com") && !name.contains('/') {
        return name.to_owned();
    }
    let (account, name) = name.split_once(':').unwrap_or((ACCOUNT, name));
    let service = if name.starts_with("assumed-role/") { "sts" } else { "iam" };
    format!("arn:aws:{service}::{account}:{name}")
}

fn document(statements: &Value) -> String {
    json!({ "Version": "2012-10-17", "Statement": statements }).to_string()
}

impl Case {
    /// What the case says, else what its group says.
    fn over(&self, shared: &Self) -> Self {
        let own_policy = self.key_policy.is_some() || self.condition.is_some();
        Self {
            about: self.about.clone(),
            expect: self.expect.clone(),
            by: self.by.clone(),
            key_policy: if own_policy { self.key_policy.clone() } else { shared.key_policy.clone() },
            condition: if own_policy { self.condition.clone() } else { shared.condition.clone() },
            identity: self.identity.clone().or(shared.identity.clone()),
            identity_document: self.identity_document.clone(),
            boundary: self.boundary.clone().or(shared.boundary.clone()),
            service_control: self.service_control.clone().or(shared.service_control.clone()),
            grants: self.grants.clone().or(shared.grants.clone()),
            caller: self.caller.clone().or(shared.caller.clone()),
            action: self.action.clone().or(shared.action.clone()),
            resource: self.resource.clone().or(shared.resource.clone()),
            params: self.params.clone().or(shared.params.clone()),
            key: self.key.clone().or(shared.key.clone()),
            via: self.via.clone().or(shared.via.clone()),
            ip: self.ip.clone().or(shared.ip.clone()),
            same_key: self.same_key.or(shared.same_key),
            tokens: self.tokens.clone().or(shared.tokens.clone()),
            context: self.context.clone().or(shared.context.clone()),
        }
    }

    fn key_policy(&self) -> Option<Document> {
        let text = match (&self.key_policy, &self.condition) {
            (None, None) | (Some(Value::Null), _) => return None,
            (Some(Value::String(s)), _) if s == "default" => default_key_policy(ACCOUNT),
            (Some(statements), _) => document(statements),
            (None, Some(condition)) => document(&json!([{
                "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*", "Condition": condition
            }])),
        };
        Some(policy::parse(&text).unwrap_or_else(|e| panic!("{}: {} in {text}", self.about, e.detail)))
    }

    fn identity(&self) -> Vec<Named> {
        let text = match (&self.identity_document, &self.identity) {
            (Some(whole), _) => whole.to_string(),
            (None, Some(Value::Array(all))) if all.is_empty() => return Vec::new(),
            (None, Some(statements)) => document(statements),
            (None, None) => return Vec::new(),
        };
        let document =
            policy::parse_identity(&text).unwrap_or_else(|e| panic!("{}: {}", self.about, e.detail));
        vec![Named { name: "identity".into(), document: document.into() }]
    }

    fn identity_form(&self, statements: &Value) -> Document {
        let text = document(statements);
        policy::parse_identity(&text).unwrap_or_else(|e| panic!("{}: {} in {text}", self.about, e.detail))
    }

    fn service_control(&self) -> Vec<Named> {
        let named = |(at, statements): (usize, &Value)| Named {
            name: format!("control {at}"),
            document: self.identity_form(statements).into(),
        };
        self.service_control.iter().flatten().enumerate().map(named).collect()
    }

    fn grants(&self) -> Vec<Grant> {
        let grant = |(at, g): (usize, &GrantCase)| Grant {
            id: at.to_string(),
            grantee: arn(&g.grantee),
            operations: g.operations.clone(),
            equals: g.equals.clone(),
            subset: g.subset.clone(),
            settled: g.settled,
            tokens: g.tokens.clone(),
        };
        self.grants.iter().flatten().enumerate().map(grant).collect()
    }

    /// What is decided, and by what.
    fn decide(&self) -> (&'static str, String) {
        let key_policy = self.key_policy();
        let (identity_policies, grants) = (self.identity(), self.grants());
        let boundary = self.boundary.as_ref().map(|statements| self.identity_form(statements));
        let service_control = self.service_control();
        let caller = arn(self.caller.as_deref().unwrap_or("user/ExampleUser"));
        let action = self.action.as_deref().unwrap_or("kms:Decrypt");
        let resource = self.resource.as_deref().unwrap_or(KEY);
        let (params, key) = (self.params.clone().unwrap_or_default(), self.key.clone().unwrap_or_default());
        let facts = KeyFacts {
            spec: key.spec.as_deref().unwrap_or("SYMMETRIC_DEFAULT"),
            usage: key.usage.as_deref().unwrap_or("ENCRYPT_DECRYPT"),
            origin: key.origin.as_deref().unwrap_or("AWS_KMS"),
            multi_region: key.multi_region.as_deref(),
            aliases: &key.aliases,
            tags: &key.tags,
        };
        let call = Call {
            principal_arn: &caller,
            action,
            params: &params,
            key: key_policy.is_some().then_some(facts),
            resource_arn: resource,
            region: "us-west-2",
            source_ip: self.ip.as_deref(),
            via_service: self.via.as_deref(),
            user_agent: None,
            secure: false,
            now_ms: NOW_MS,
            same_key: self.same_key,
            principal_tags: None,
        };
        let mut context = call.conditions();
        for (key, value) in self.context.iter().flatten() {
            match value {
                Value::Array(all) => {
                    all.iter().for_each(|v| context.push(key, v.as_str().expect("a string")));
                }
                one => context.set(key, one.as_str().expect("a string")),
            }
        }
        let encryption_context = call.encryption_context();
        let request = Request {
            principal_arn: &caller,
            action,
            resource_arn: resource,
            context: &context,
            encryption_context: encryption_context.as_ref(),
            grant_tokens: self.tokens.as_deref().unwrap_or_default(),
        };
        let set = PolicySet {
            key_policy: key_policy.as_ref(),
            identity_policies: &identity_policies,
            boundary: boundary.as_ref(),
            service_control: &service_control,
            grants: &grants,
        };
        let decision = policy::evaluate(&request, &set);
        let word = match (&decision.reason, decision.allowed) {
            (_, true) => "allow",
            (Reason::ExplicitDeny(_), false) => "deny",
            (_, false) => "implicit",
        };
        (word, decision.reason.to_string())
    }
}

/// Every case of AWS's documentation is decided as its page says.
#[test]
fn every_documented_case_is_decided_as_documented() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kms_policy");
    let mut wrong = String::new();
    let mut count = 0;
    for entry in std::fs::read_dir(&dir).expect("tests/kms_policy") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("readable");
        let groups: Vec<Group> =
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        for group in groups {
            assert!(
                group.page.starts_with("https://docs.aws.amazon.com/"),
                "{} cites no page",
                path.display()
            );
            for case in &group.cases {
                count += 1;
                let case = case.over(&group.shared);
                let (found, by) = case.decide();
                let said = case.by.as_ref().is_none_or(|part| by.contains(part.as_str()));
                if found != case.expect || !said {
                    wrong += &format!(
                        "\n{}\n  {}: expected {} {:?}, found {found}: {by}",
                        group.page, case.about, case.expect, case.by
                    );
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(count >= 525, "only {count} cases: were some lost?");
}
