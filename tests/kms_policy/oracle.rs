//! A second implementation (the crate `iam-rs`) decides the same random policies, where both mean the same: policies
//! of a principal, without ARN operators (the crate lets a `*` reach beyond a colon) and without variables.

use envelopefs::kms::policy::{self, Conditions, Named, PolicySet, Reason, Request};
use iam_rs::{
    Arn, Context, ContextValue, Decision, IAMPolicy, IAMRequest, Principal, PrincipalId, evaluate_policy,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const CALLER: &str = "arn:aws:iam::111122223333:user/Alice";
const ACTIONS: &[&str] = &["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey", "kms:GenerateDataKeyPair"];
const KEYS: &[&str] =
    &["arn:aws:kms:us-east-1:111122223333:key/a", "arn:aws:kms:us-east-1:111122223333:key/ab"];

fn pick(values: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(values).prop_map(str::to_owned)
}

fn some(values: &'static [&'static str]) -> impl Strategy<Value = Value> {
    prop::collection::vec(pick(values), 1..3).prop_map(|all| json!(all))
}

/// Operators with the key they are tried on and values that fit sometimes.
fn condition() -> impl Strategy<Value = (String, String, Value)> {
    let text = (
        pick(&[
            "StringEquals",
            "StringNotEquals",
            "StringEqualsIgnoreCase",
            "StringNotEqualsIgnoreCase",
            "StringLike",
            "StringNotLike",
            "StringEqualsIfExists",
            "StringNotEqualsIfExists",
            "StringLikeIfExists",
            "StringNotLikeIfExists",
        ]),
        pick(&["test:one", "TEST:One", "test:none"]),
        some(&["a", "A", "ab", "a*", "?", "*b", ""]),
    );
    let sets = (
        pick(&[
            "ForAllValues:StringEquals",
            "ForAnyValue:StringEquals",
            "ForAllValues:StringLike",
            "ForAnyValue:StringLike",
            "ForAllValues:StringNotEquals",
            "ForAnyValue:StringNotEquals",
        ]),
        pick(&["test:many", "test:none"]),
        some(&["a", "b", "a*", "*"]),
    );
    let numbers = (
        pick(&[
            "NumericEquals",
            "NumericNotEquals",
            "NumericLessThan",
            "NumericLessThanEquals",
            "NumericGreaterThan",
            "NumericGreaterThanEquals",
            "NumericLessThanIfExists",
        ]),
        pick(&["test:number", "test:none"]),
        some(&["1", "2", "2.5", "-3"]),
    );
    let dates = (
        pick(&[
            "DateEquals",
            "DateNotEquals",
            "DateLessThan",
            "DateGreaterThanEquals",
            "DateLessThanIfExists",
        ]),
        pick(&["test:date", "test:none"]),
        some(&["2020-01-01T00:00:00Z", "2021-06-01T12:00:00Z", "2022-01-01T00:00:00Z"]),
    );
    let addresses = (
        pick(&["IpAddress", "NotIpAddress", "IpAddressIfExists"]),
        pick(&["test:ip", "test:none"]),
        some(&["10.0.0.0/8", "10.1.2.3/32", "192.168.0.0/16", "0.0.0.0/0"]),
    );
    let truth =
        (pick(&["Bool", "BoolIfExists"]), pick(&["test:bool", "test:none"]), some(&["true", "false"]));
    // The crate reads one value of Null.
    let null = (
        pick(&["Null"]),
        pick(&["test:one", "test:many", "test:none"]),
        pick(&["true", "false"]).prop_map(Value::String),
    );
    prop_oneof![4 => text, 3 => sets, 2 => numbers, 1 => dates, 1 => addresses, 1 => truth, 1 => null]
}

fn statement() -> impl Strategy<Value = Value> {
    (
        pick(&["Allow", "Allow", "Deny"]),
        pick(&["Action", "Action", "NotAction"]),
        some(&["kms:*", "kms:Decrypt", "KMS:ENCRYPT", "kms:Generate*", "kms:GenerateDataKe?", "s3:*", "*"]),
        pick(&["Resource", "Resource", "NotResource"]),
        some(&["*", "arn:aws:kms:us-east-1:111122223333:key/a", "arn:aws:kms:*:111122223333:key/a*"]),
        prop::collection::vec(condition(), 0..3),
    )
        .prop_map(|(effect, action, actions, resource, resources, conditions)| {
            let mut block = json!({});
            for (operator, key, values) in conditions {
                block[operator][key] = values;
            }
            json!({ "Effect": effect, action: actions, resource: resources, "Condition": block })
        })
}

/// What a request offers, by condition key.
fn offered() -> impl Strategy<Value = Vec<(&'static str, Vec<String>)>> {
    (
        prop::option::of(pick(&["a", "A", "ab", "xyz"])),
        prop::collection::vec(pick(&["a", "b", "ab"]), 0..3),
        prop::option::of(pick(&["1", "2", "2.5", "3"])),
        prop::option::of(pick(&["2021-06-01T12:00:00Z", "2020-01-01T00:00:00Z"])),
        prop::option::of(pick(&["10.1.2.3", "192.168.7.7", "8.8.8.8"])),
        prop::option::of(pick(&["true", "false"])),
    )
        .prop_map(|(one, many, number, date, ip, truth)| {
            let mut all: Vec<(&'static str, Vec<String>)> = vec![("test:many", many)];
            for (key, value) in [
                ("test:one", one),
                ("test:number", number),
                ("test:date", date),
                ("test:ip", ip),
                ("test:bool", truth),
            ] {
                all.push((key, value.into_iter().collect()));
            }
            all.retain(|(_, values)| !values.is_empty());
            all
        })
}

fn ours(text: &str, action: &str, key: &str, offered: &[(&str, Vec<String>)]) -> &'static str {
    let mut context = Conditions::default();
    for (name, values) in offered {
        values.iter().for_each(|v| context.push(name, v.clone()));
    }
    let document = policy::parse_identity(text).expect("a good policy");
    let request = Request {
        principal_arn: CALLER,
        action,
        resource_arn: key,
        context: &context,
        encryption_context: None,
        grant_tokens: &[],
    };
    let policies = [Named { name: "random".into(), document: document.into() }];
    let set = PolicySet { identity_policies: &policies, ..PolicySet::default() };
    match policy::evaluate(&request, &set).reason {
        Reason::ExplicitDeny(_) => "deny",
        Reason::ImplicitDeny(_) => "implicit",
        _ => "allow",
    }
}

fn theirs(text: &str, action: &str, key: &str, offered: &[(&str, Vec<String>)]) -> &'static str {
    let mut context = Context::new();
    for (name, values) in offered {
        let value = match (*name, values.as_slice()) {
            ("test:many", all) => ContextValue::StringList(all.to_vec()),
            ("test:number", [one]) => ContextValue::Number(one.parse().expect("a number")),
            ("test:bool", [one]) => ContextValue::Boolean(one == "true"),
            (_, [one, ..]) => ContextValue::String(one.clone()),
            (_, []) => continue,
        };
        context.insert((*name).to_owned(), value);
    }
    let principal = Principal::Aws(PrincipalId::String(CALLER.into()));
    let arn = Arn::parse(key).expect("an ARN");
    let request = IAMRequest::new_with_context(principal, action, arn, context);
    let policy = IAMPolicy::from_json(text).expect("a good policy");
    match evaluate_policy(&policy, &request).expect("a decision") {
        Decision::Allow => "allow",
        Decision::Deny => "deny",
        Decision::NotApplicable => "implicit",
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Both decide alike.
    #[test]
    fn a_second_implementation_decides_alike(
        statements in prop::collection::vec(statement(), 1..4),
        action in pick(ACTIONS),
        key in pick(KEYS),
        offered in offered(),
    ) {
        let text = json!({ "Version": "2012-10-17", "Statement": statements }).to_string();
        let (ours, theirs) = (ours(&text, &action, &key, &offered), theirs(&text, &action, &key, &offered));
        prop_assert_eq!(ours, theirs, "{} {} {:?} {}", action, key, offered, text);
    }
}
