//! Policies, grants, quotas and the audit log over the wire: signed requests against a running server.
#![allow(missing_docs)]

#[path = "kms_support/mod.rs"]
mod support;

use std::ops::ControlFlow;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use envelopefs::kms::audit::{self, Filter};
use envelopefs::kms::audit_dir;
use serde_json::{Value, json};
use support::{ACCOUNT, Running, User, start};

impl Running {
    /// The exception's name and text.
    fn bad(&self, user: &User, action: &str, input: &Value) -> (String, String) {
        let (status, answer) = self.call(user, action, input);
        assert_ne!(status, 200, "{action} {input}: {answer}");
        let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
        let message = if text("message").is_empty() { text("Message") } else { text("message") };
        (text("__type"), message)
    }
}

fn identity(effect: &str, action: &str) -> Value {
    json!({ "Version": "2012-10-17", "Statement": { "Effect": effect, "Action": action, "Resource": "*" } })
}

fn plain(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

/// A key of the administrator's, and its ARN.
fn key(kms: &Running, admin: &User) -> (String, String) {
    let made = kms.good(admin, "CreateKey", &json!({}));
    let text = |f: &str| made["KeyMetadata"][f].as_str().expect(f).to_owned();
    (text("KeyId"), text("Arn"))
}

/// A policy that denies does so over the wire, with AWS's text; one that allows lets through; without either the
/// request is denied by default.
#[test]
fn policies_decide_over_the_wire() {
    let kms = start("off");
    let admin = kms.user("admin", &[]);
    let alice = kms.user("alice", &[identity("Allow", "kms:*")]);
    let bob = kms.user("bob", &[identity("Allow", "kms:ListKeys")]);
    let (id, arn) = key(&kms, &admin);
    let message = json!({ "KeyId": id, "Plaintext": plain("x") });
    kms.good(&alice, "Encrypt", &message);
    assert_eq!(
        kms.bad(&bob, "Encrypt", &message),
        (
            "AccessDeniedException".into(),
            format!(
                "User: {} is not authorized to perform: kms:Encrypt on resource: {arn} because no identity-based policy allows the kms:Encrypt action",
                bob.arn
            )
        )
    );
    assert_eq!(kms.bad(&bob, "CreateKey", &json!({})).0, "AccessDeniedException");
    kms.good(&bob, "ListKeys", &json!({}));
    let policy = json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Principal": { "AWS": format!("arn:aws:iam::{ACCOUNT}:root") }, "Action": "kms:*", "Resource": "*" },
        { "Sid": "not alice", "Effect": "Deny", "Principal": { "AWS": alice.arn }, "Action": "kms:Encrypt", "Resource": "*" },
        { "Effect": "Allow", "Principal": { "AWS": bob.arn }, "Action": "kms:Encrypt", "Resource": "*",
          "Condition": { "StringEquals": { "kms:EncryptionContext:app": "pay" } } },
    ]});
    kms.good(&admin, "PutKeyPolicy", &json!({ "KeyId": id, "Policy": policy.to_string() }));
    let (code, text) = kms.bad(&alice, "Encrypt", &message);
    assert_eq!(code, "AccessDeniedException");
    assert!(text.ends_with("with an explicit deny in a resource-based policy"), "{text}");
    assert_eq!(kms.bad(&bob, "Encrypt", &message).0, "AccessDeniedException");
    let mut bound = message.clone();
    bound["EncryptionContext"] = json!({ "app": "pay" });
    kms.good(&bob, "Encrypt", &bound);
    bound["DryRun"] = json!(true);
    assert_eq!(kms.bad(&bob, "Encrypt", &bound).0, "DryRunOperationException");
    assert_eq!(kms.bad(&alice, "Encrypt", &bound).0, "AccessDeniedException");
}

/// A grant lets one principal in, within its constraints and no further; revoking it stops that principal alone.
#[test]
fn grants_decide_over_the_wire() {
    let kms = start("off");
    let admin = kms.user("admin", &[]);
    let users = ["one", "two"].map(|name| kms.user(name, &[identity("Allow", "kms:ListKeys")]));
    let (id, _) = key(&kms, &admin);
    let grants = users.each_ref().map(|user| {
        let input = json!({ "KeyId": id, "GranteePrincipal": user.arn, "Operations": ["Encrypt", "Decrypt", "CreateGrant"],
            "Constraints": { "EncryptionContextSubset": { "host": user.arn } } });
        kms.good(&admin, "CreateGrant", &input)["GrantId"].as_str().expect("an id").to_owned()
    });
    let message =
        |host: &str| json!({ "KeyId": id, "Plaintext": plain("x"), "EncryptionContext": { "host": host } });
    let sealed = users.each_ref().map(|user| kms.good(user, "Encrypt", &message(&user.arn)));
    assert_eq!(kms.bad(&users[0], "Encrypt", &message(&users[1].arn)).0, "AccessDeniedException");
    assert_eq!(kms.bad(&users[0], "DescribeKey", &json!({ "KeyId": id })).0, "AccessDeniedException");
    // A grant made by grant gives no more than its parent.
    let child = |operations: Value, pairs: Value| {
        json!({ "KeyId": id, "GranteePrincipal": users[1].arn, "Operations": operations,
            "Constraints": { "EncryptionContextEquals": pairs } })
    };
    let own = json!({ "host": users[0].arn });
    assert_eq!(
        kms.bad(&users[0], "CreateGrant", &child(json!(["DescribeKey"]), own.clone())).0,
        "AccessDeniedException"
    );
    assert_eq!(
        kms.bad(&users[0], "CreateGrant", &child(json!(["Decrypt"]), json!({ "a": "b" }))).0,
        "AccessDeniedException"
    );
    kms.good(&users[0], "CreateGrant", &child(json!(["Decrypt"]), own));
    kms.good(&admin, "RevokeGrant", &json!({ "KeyId": id, "GrantId": grants[0] }));
    let open = |n: usize| json!({ "CiphertextBlob": sealed[n]["CiphertextBlob"], "EncryptionContext": { "host": users[n].arn } });
    assert_eq!(kms.bad(&users[0], "Decrypt", &open(0)).0, "AccessDeniedException");
    kms.good(&users[1], "Decrypt", &open(1));
}

/// Encryption contexts cannot be confused: what `{"ab":"c"}` sealed, `{"a":"bc"}` does not open.
#[test]
fn contexts_are_not_confused() {
    let kms = start("off");
    let admin = kms.user("admin", &[]);
    let (id, _) = key(&kms, &admin);
    let sealed = kms.good(
        &admin,
        "Encrypt",
        &json!({ "KeyId": id, "Plaintext": plain("x"), "EncryptionContext": { "ab": "c" } }),
    );
    let open =
        |context: Value| json!({ "CiphertextBlob": sealed["CiphertextBlob"], "EncryptionContext": context });
    kms.good(&admin, "Decrypt", &open(json!({ "ab": "c" })));
    for other in [json!({ "a": "bc" }), json!({ "abc": "" }), json!({}), json!({ "ab": "c", "d": "" })] {
        let (code, text) = kms.bad(&admin, "Decrypt", &open(other));
        assert_eq!((code.as_str(), text.as_str()), ("InvalidCiphertextException", ""));
    }
}

/// What is no policy, and what would lock its maker out, is refused.
#[test]
fn bad_policies_are_refused_over_the_wire() {
    let kms = start("off");
    let admin = kms.user("admin", &[]);
    let (id, _) = key(&kms, &admin);
    let put = |policy: &str, bypass: bool| json!({ "KeyId": id, "Policy": policy, "BypassPolicyLockoutSafetyCheck": bypass });
    let malformed = "MalformedPolicyDocumentException";
    assert_eq!(kms.bad(&admin, "PutKeyPolicy", &put("{", false)).0, malformed);
    let other = r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":"444455556666"},"Action":"kms:*","Resource":"*"}}"#;
    let (code, text) = kms.bad(&admin, "PutKeyPolicy", &put(other, false));
    assert_eq!(code, malformed);
    assert_eq!(text, "The new key policy will not allow you to update the key policy in the future.");
    assert_eq!(kms.bad(&admin, "CreateKey", &json!({ "Policy": other })).0, malformed);
    kms.good(&admin, "PutKeyPolicy", &put(other, true));
    assert_eq!(kms.bad(&admin, "DescribeKey", &json!({ "KeyId": id })).0, "AccessDeniedException");
}

/// Past the quota stands ThrottlingException with AWS's text; other classes go on.
#[test]
fn quotas_throttle_over_the_wire() {
    let kms = start("symmetric=3");
    let admin = kms.user("admin", &[]);
    let (id, _) = key(&kms, &admin);
    let message = json!({ "KeyId": id, "Plaintext": plain("x") });
    let answers: Vec<_> = (0..12).map(|_| kms.call(&admin, "Encrypt", &message)).collect();
    let throttled: Vec<_> = answers.iter().filter(|(status, _)| *status != 200).collect();
    assert!(throttled.len() >= 5, "{answers:?}");
    for (status, answer) in throttled {
        assert_eq!((*status, answer["__type"].as_str()), (400, Some("ThrottlingException")));
        let text =
            "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.";
        assert_eq!(answer["message"].as_str().or(answer["Message"].as_str()), Some(text));
    }
    kms.good(&admin, "DescribeKey", &json!({ "KeyId": id }));
}

/// Every call is in the log, the denied ones too, without plaintext; the log verifies, is found in, and counted.
#[test]
fn calls_are_in_the_audit_log() {
    let kms = start("off");
    let admin = kms.user("admin", &[]);
    let bob = kms.user("bob", &[identity("Deny", "kms:*")]);
    let (id, arn) = key(&kms, &admin);
    let secret = plain("PLAINTEXT THAT NOBODY SEES");
    let context = json!({ "file": "f00d", "vault": "v1" });
    let input = json!({ "KeyId": id, "Plaintext": secret, "EncryptionContext": context });
    let sealed = kms.good(&admin, "Encrypt", &input);
    kms.good(
        &admin,
        "Decrypt",
        &json!({ "CiphertextBlob": sealed["CiphertextBlob"], "EncryptionContext": context }),
    );
    kms.bad(&bob, "Encrypt", &input);
    let found = |filter: Filter| {
        let mut all = Vec::new();
        audit::query(&audit_dir(&kms.dir), &filter, |f| {
            all.push((f.event, f.line));
            ControlFlow::Continue(())
        })
        .expect("readable");
        all
    };
    let by_file = found(Filter { context: Some("file=f00d".into()), ..Filter::default() });
    let names: Vec<_> = by_file.iter().map(|(e, _)| e["eventName"].as_str().expect("a name")).collect();
    assert_eq!(names, ["Encrypt", "Decrypt", "Encrypt"]);
    let denied = found(Filter { principal: Some("user/bob".into()), errors: true, ..Filter::default() });
    assert_eq!(denied.len(), 1);
    assert_eq!(denied[0].0["errorCode"], "AccessDeniedException");
    assert_eq!(denied[0].0["sourceIPAddress"], "127.0.0.1");
    assert_eq!(found(Filter { key: Some(arn), ..Filter::default() }).len(), 4);
    for (_, line) in found(Filter::default()) {
        let blob = sealed["CiphertextBlob"].as_str().expect("a blob");
        assert!(!line.contains(&secret) && !line.contains(blob), "{line}");
    }
    let report = kms.engine.verify_audit().expect("readable");
    assert!(report.is_clean() && report.good >= 4, "{report:?}");
}

/// The simulator says what the wire does, by the statement that decides, also for a policy that is not in force.
#[test]
fn the_simulator_says_what_the_wire_does() {
    let kms = start("off");
    let admin = kms.user("admin", &[]);
    let alice = kms.user("alice", &[identity("Allow", "kms:Decrypt")]);
    let (_, arn) = key(&kms, &admin);
    let ask = |more: Value| {
        let mut input = json!({ "PrincipalArn": alice.arn, "Action": "kms:Decrypt", "KeyId": arn });
        for (name, value) in more.as_object().expect("members") {
            input[name] = value.clone();
        }
        let answer = kms.engine.manage("SimulatePolicy", &input).expect("an answer");
        (
            answer["Allowed"].as_bool().expect("a truth value"),
            answer["By"].as_str().expect("a reason").to_owned(),
        )
    };
    let (allowed, by) = ask(json!({}));
    assert!(allowed && by.contains("statement 1 of the policy 1 of"), "{by}");
    assert!(!ask(json!({ "Action": "kms:Encrypt" })).0);
    let policy = json!({ "Version": "2012-10-17", "Statement": [
        { "Sid": "bound", "Effect": "Allow", "Principal": { "AWS": alice.arn }, "Action": "kms:*", "Resource": "*",
          "Condition": { "StringEquals": { "kms:ViaService": "envelopefs.us-east-1.amazonaws.com" } } } ]});
    let under = |via: &str| ask(json!({ "KeyPolicy": policy.to_string(), "ViaService": via }));
    let (allowed, by) = under("envelopefs.us-east-1.amazonaws.com");
    assert!(allowed && by.contains("\"bound\""), "{by}");
    assert!(!under("").0);
    assert!(
        kms.engine
            .manage("SimulatePolicy", &json!({ "PrincipalArn": "x", "Action": "kms:Decrypt" }))
            .is_err()
    );
    assert!(
        kms.engine
            .manage("SimulatePolicy", &json!({ "PrincipalArn": alice.arn, "Action": "s3:Get" }))
            .is_err()
    );
}

/// A permissions boundary bounds what IAM policies give, from the next request on, and AWS's text says so.
#[test]
fn a_permissions_boundary_bounds() {
    let kms = start("off");
    let admin = kms.user("admin", &[]);
    let bob = kms.user("bob", &[identity("Allow", "kms:*")]);
    let key = kms.good(&admin, "CreateKey", &json!({}))["KeyMetadata"]["KeyId"].clone();
    let input = json!({ "KeyId": key, "Plaintext": "cGxhaW4=" });
    kms.good(&bob, "Encrypt", &input);
    let set = |boundary: Value| {
        let input = json!({ "Name": "bob", "Account": ACCOUNT, "PermissionsBoundary": boundary });
        kms.engine.manage("SetPrincipalBoundary", &input)
    };
    assert!(set(json!("no policy")).is_err());
    set(json!(identity("Allow", "kms:Decrypt").to_string())).unwrap();
    let (status, refused) = kms.call(&bob, "Encrypt", &input);
    let text = refused["Message"].as_str().unwrap_or_default();
    assert_eq!(status, 400, "{refused}");
    assert!(text.ends_with("because no permissions boundary allows the kms:Encrypt action"), "{text}");
    set(Value::Null).unwrap();
    kms.good(&bob, "Encrypt", &input);
}
