//! What is no policy, and AWS's message for it.

use envelopefs::kms::policy::{self, Conditions, MAX_POLICY, allows_later_change, default_key_policy};

const KEY: &str = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

fn with(statement: &str) -> String {
    format!(r#"{{"Version":"2012-10-17","Statement":[{statement}]}}"#)
}

/// A text, a part of AWS's message, a part of the detail.
type Wrong = (&'static str, &'static str, &'static str);

const STATEMENTS: &[Wrong] = &[
    (r#""x""#, "Syntax errors", "is a string"),
    (r#"{}"#, "Syntax errors", "no Effect"),
    (r#"{"Effect":"allow","Principal":"*"}"#, "Syntax errors", "Effect"),
    (r#"{"Effect":"Allow","Action":"kms:*","Resource":"*"}"#, "no principal", "neither"),
    (r#"{"Effect":"Allow","Principal":{},"Action":"kms:*"}"#, "invalid principals", "empty"),
    (r#"{"Effect":"Allow","Principal":"x","Action":"kms:*"}"#, "invalid principals", "not \"*\""),
    (r#"{"Effect":"Allow","Principal":{"AWS":"Alice"}}"#, "invalid principals", "\"Alice\""),
    (
        r#"{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:user/*"}}"#,
        "invalid principals",
        "user/*",
    ),
    (
        r#"{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:group/G"}}"#,
        "invalid principals",
        "group",
    ),
    (r#"{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::1:root"}}"#, "invalid principals", "::1:"),
    (
        r#"{"Effect":"Allow","Principal":{"AWS":"arn:aws:sts::111122223333:assumed-role/R/"}}"#,
        "invalid principals",
        "R/",
    ),
    (r#"{"Effect":"Allow","Principal":{"Dog":"x"}}"#, "invalid principals", "Dog"),
    (r#"{"Effect":"Allow","Principal":{"Service":"kms"}}"#, "invalid principals", "kms"),
    (
        r#"{"Effect":"Allow","NotPrincipal":{"AWS":"111122223333"},"Action":"kms:*"}"#,
        "NotPrincipal",
        "Deny only",
    ),
    (r#"{"Effect":"Deny","Principal":"*","NotPrincipal":"*"}"#, "Syntax errors", "both"),
    (r#"{"Effect":"Allow","Principal":"*","Action":"kms:*","NotAction":"kms:*"}"#, "Syntax errors", "both"),
    (r#"{"Effect":"Allow","Principal":"*","Action":"Decrypt"}"#, "prefaced by a vendor", "Decrypt"),
    (r#"{"Effect":"Allow","Principal":"*","Action":[]}"#, "Syntax errors", "actions is empty"),
    (r#"{"Effect":"Allow","Principal":"*","Action":5}"#, "Syntax errors", "a number"),
    (r#"{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"key"}"#, "ARN format", "key"),
    (r#"{"Effect":"Allow","Principal":"*","Extra":1}"#, "Syntax errors", "Extra"),
    (r#"{"Effect":"Allow","Effect":"Deny","Principal":"*"}"#, "Syntax errors", "twice"),
    (r#"{"Effect":"Allow","Principal":"*","Condition":{"Equals":{"a:b":"c"}}}"#, "Syntax errors", "Equals"),
    (
        r#"{"Effect":"Allow","Principal":"*","Condition":{"NullIfExists":{"a:b":"true"}}}"#,
        "Syntax errors",
        "NullIfExists",
    ),
    (
        r#"{"Effect":"Allow","Principal":"*","Condition":{"ForSome:StringLike":{"a:b":"c"}}}"#,
        "Syntax errors",
        "ForSome",
    ),
    (
        r#"{"Effect":"Allow","Principal":"*","Condition":{"StringLike":{"b":"c"}}}"#,
        "prefaced by a vendor",
        "\"b\"",
    ),
    (
        r#"{"Effect":"Allow","Principal":"*","Condition":{"StringLike":{"a:b":{}}}}"#,
        "Syntax errors",
        "an object",
    ),
    (
        r#"{"Effect":"Allow","Principal":"*","Condition":{"NumericEquals":{"a:b":"x"}}}"#,
        "Syntax errors",
        "not a number",
    ),
    (
        r#"{"Effect":"Allow","Principal":"*","Condition":{"DateEquals":{"a:b":"soon"}}}"#,
        "Syntax errors",
        "not a date",
    ),
    (
        r#"{"Effect":"Allow","Principal":"*","Condition":{"IpAddress":{"a:b":"1.2.3"}}}"#,
        "Syntax errors",
        "IP address",
    ),
    (
        r#"{"Effect":"Allow","Principal":"*","Condition":{"Bool":{"a:b":"maybe"}}}"#,
        "Syntax errors",
        "truth value",
    ),
    (
        r#"{"Effect":"Allow","Principal":"*","Condition":{"StringEquals":{"a:b":"${x"}}}"#,
        "Syntax errors",
        "closing brace",
    ),
    (
        r#"{"Effect":"Allow","Principal":"*","Condition":{"ForAllValues:StringEquals":{"kms:EncryptionContext:a":"b"}}}"#,
        "OverlyPermissiveCondition:EncryptionContext: Using the ForAllValues set operator with a single-valued \
         condition key matches requests without the specified encryption context or with an unspecified encryption \
         context. To fix, remove ForAllValues.",
        "one value at most",
    ),
    (
        r#"{"Effect":"Allow","Principal":"*","Condition":{"ForAllValues:StringLike":{"aws:RequestTag/a":"b"}}}"#,
        "OverlyPermissiveCondition: Using",
        "one value at most",
    ),
    (
        r#"{"Sid":"a","Effect":"Deny","Principal":"*"},{"Sid":"a","Effect":"Deny","Principal":"*"}"#,
        "must be unique",
        "\"a\"",
    ),
];

/// Every malformed statement is refused with AWS's exception, and the detail names what is wrong.
#[test]
fn malformed_statements_are_refused_with_the_reason() {
    for (statement, message, detail) in STATEMENTS {
        let wrong = policy::parse(&with(statement)).expect_err(statement);
        assert_eq!(wrong.code, "MalformedPolicyDocumentException", "{statement}");
        assert!(wrong.message.contains(message), "{statement}: {}", wrong.message);
        assert!(wrong.detail.contains(detail), "{statement}: {}", wrong.detail);
    }
}

/// What is no policy document at all is refused.
#[test]
fn malformed_documents_are_refused() {
    for text in [
        "",
        "{",
        "[]",
        "null",
        "{}",
        r#"{"Statement":[]}"#,
        r#"{"Version":"2020-01-01","Statement":{}}"#,
        r#"{"Version":7,"Statement":{"Effect":"Deny","Principal":"*"}}"#,
        r#"{"Statement":{"Effect":"Deny","Principal":"*"},"More":1}"#,
    ] {
        assert!(policy::parse(text).is_err(), "{text}");
    }
    let deep = "[".repeat(5000);
    assert!(policy::parse(&deep).is_err());
    let beyond = with(r#"{"Sid":"日本","Effect":"Deny","Principal":"*"}"#);
    assert!(policy::parse(&beyond).expect_err("beyond Latin-1").message.contains("characters"));
    let long = with(&format!(r#"{{"Sid":"{}","Effect":"Deny","Principal":"*"}}"#, "x".repeat(MAX_POLICY)));
    assert_eq!(policy::parse(&long).expect_err("too long").code, "LimitExceededException");
}

/// A policy of a principal names no principal, and needs an action and a resource.
#[test]
fn identity_policies_have_their_own_grammar() {
    let good = with(r#"{"Effect":"Allow","Action":"kms:Decrypt","Resource":"*"}"#);
    assert!(policy::parse_identity(&good).is_ok());
    for (statement, message) in [
        (
            r#"{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}"#,
            "should not specify a principal",
        ),
        (r#"{"Effect":"Allow","Resource":"*"}"#, "must contain actions"),
        (r#"{"Effect":"Allow","Action":"kms:*"}"#, "must contain resources"),
    ] {
        let wrong = policy::parse_identity(&with(statement)).expect_err(statement);
        assert!(wrong.message.contains(message), "{}", wrong.message);
    }
}

/// The lockout safety check: who puts a policy must be able to put another one.
#[test]
fn a_policy_that_locks_its_maker_out_is_noticed() {
    let alice = "arn:aws:iam::111122223333:user/Alice";
    let keeps = |text: &str| {
        allows_later_change(&policy::parse(text).expect(text), alice, KEY, &Conditions::default())
    };
    assert!(keeps(&default_key_policy("111122223333")));
    assert!(!keeps(&default_key_policy("444455556666")));
    let named = with(
        r#"{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:user/Alice"},"Action":"kms:Put*","Resource":"*"}"#,
    );
    assert!(keeps(&named));
    let used = with(r#"{"Effect":"Allow","Principal":"*","Action":"kms:Decrypt","Resource":"*"}"#);
    assert!(!keeps(&used));
    let denied = with(
        r#"{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"},
           {"Effect":"Deny","Principal":{"AWS":"111122223333"},"Action":"kms:PutKeyPolicy","Resource":"*"}"#,
    );
    assert!(!keeps(&denied));
}
