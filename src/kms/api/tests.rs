//! AWS's API against its promises, in the process.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use parking_lot::Mutex;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::kms::{
    CallRecord, Caller, ClusterError, Engine, HsmCluster, HsmSession, KmsError, Observer, Protection, Scope,
    ServiceRecord, pk, spec::KeySpec,
};

pub(super) struct Bench {
    _tmp: tempfile::TempDir,
    pub(super) engine: Engine,
    caller: Caller,
}

pub(super) fn bench() -> Bench {
    let tmp = tempfile::tempdir().unwrap();
    let engine = Engine::create(&tmp.path().join("kms"), &Protection::KeyFile).unwrap().hold().unwrap();
    let scope = Scope { account: "123456789012".into(), region: "us-east-1".into() };
    Bench { _tmp: tmp, engine, caller: Caller::root(scope) }
}

impl Bench {
    fn try_call(&self, action: &str, input: Value) -> Result<Value, KmsError> {
        self.engine.call(action, input, &self.caller)
    }

    fn call(&self, action: &str, input: Value) -> Value {
        self.try_call(action, input.clone()).unwrap_or_else(|e| panic!("{action} {input}: {} {e}", e.code()))
    }

    fn code(&self, action: &str, input: Value) -> String {
        match self.try_call(action, input.clone()) {
            Err(e) => e.code().to_owned(),
            Ok(answer) => panic!("{action} {input} gave {answer}"),
        }
    }

    fn text(&self, action: &str, input: Value) -> String {
        self.try_call(action, input).unwrap_err().to_string()
    }

    fn key(&self, input: Value) -> String {
        self.call("CreateKey", input)["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned()
    }

    fn state(&self, key: &str) -> String {
        self.call("DescribeKey", json!({ "KeyId": key }))["KeyMetadata"]["KeyState"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    fn in_region(&self, region: &str) -> Caller {
        let scope = Scope { region: region.into(), ..self.caller.scope.clone() };
        Caller { scope, ..self.caller.clone() }
    }
}

fn b64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

fn bytes(value: &Value) -> Vec<u8> {
    BASE64_STANDARD.decode(value.as_str().unwrap()).unwrap()
}

/// Encrypt, Decrypt and ReEncrypt bind key and context; AWS's exceptions tell what was wrong.
#[test]
fn ciphertexts_are_bound_to_key_and_context() {
    let b = bench();
    let (one, two) = (b.key(json!({})), b.key(json!({})));
    let sealed = b.call(
        "Encrypt",
        json!({ "KeyId": one, "Plaintext": b64(b"hi"), "EncryptionContext": { "ab": "c" } }),
    );
    let blob = sealed["CiphertextBlob"].clone();
    let open = |context: Value| json!({ "CiphertextBlob": blob, "EncryptionContext": context });
    let opened = b.call("Decrypt", open(json!({ "ab": "c" })));
    assert_eq!(bytes(&opened["Plaintext"]), b"hi");
    assert_eq!(opened["KeyMaterialId"].as_str().unwrap().len(), 64);
    assert_eq!(b.code("Decrypt", open(json!({ "a": "bc" }))), "InvalidCiphertextException");
    assert_eq!(b.code("Decrypt", open(json!({}))), "InvalidCiphertextException");
    let wrong = json!({ "CiphertextBlob": blob, "EncryptionContext": { "ab": "c" }, "KeyId": two });
    assert_eq!(b.code("Decrypt", wrong), "IncorrectKeyException");
    let moved = b.call(
        "ReEncrypt",
        json!({
            "CiphertextBlob": blob, "SourceEncryptionContext": { "ab": "c" },
            "DestinationKeyId": two, "DestinationEncryptionContext": { "x": "y" },
        }),
    );
    let again = json!({ "CiphertextBlob": moved["CiphertextBlob"], "EncryptionContext": { "x": "y" } });
    assert_eq!(bytes(&b.call("Decrypt", again)["Plaintext"]), b"hi");
    let other = b.in_region("eu-west-1");
    let hidden = b.engine.call("Decrypt", open(json!({ "ab": "c" })), &other).unwrap_err();
    assert!(hidden.to_string().starts_with("The ciphertext refers to a customer master key"), "{hidden}");
    assert_eq!(b.code("Decrypt", json!({ "CiphertextBlob": b64(b"junk") })), "InvalidCiphertextException");
    assert_eq!(
        b.code("Encrypt", json!({ "KeyId": one, "Plaintext": b64(&[0; 4097]) })),
        "ValidationException"
    );
    assert_eq!(
        b.code("Encrypt", json!({ "KeyId": one, "Plaintext": "no base64!" })),
        "SerializationException"
    );
}

/// Data keys have the length that was asked for; DryRun does nothing and says so.
#[test]
fn data_keys_have_their_length() {
    let b = bench();
    let key = b.key(json!({}));
    for (ask, len) in [
        (json!({ "KeySpec": "AES_128" }), 16),
        (json!({ "KeySpec": "AES_256" }), 32),
        (json!({ "NumberOfBytes": 64 }), 64),
    ] {
        let mut input = ask.clone();
        input["KeyId"] = json!(key);
        let made = b.call("GenerateDataKey", input.clone());
        let opened = b.call("Decrypt", json!({ "CiphertextBlob": made["CiphertextBlob"] }));
        assert_eq!(opened["Plaintext"], made["Plaintext"]);
        assert_eq!(bytes(&made["Plaintext"]).len(), len);
        assert!(b.call("GenerateDataKeyWithoutPlaintext", input.clone()).get("Plaintext").is_none());
        input["DryRun"] = json!(true);
        assert_eq!(b.code("GenerateDataKey", input), "DryRunOperationException");
    }
    assert_eq!(b.code("GenerateDataKey", json!({ "KeyId": key })), "ValidationException");
    let pair = b.call("GenerateDataKeyPair", json!({ "KeyId": key, "KeyPairSpec": "ECC_NIST_P256" }));
    let opened = b.call("Decrypt", json!({ "CiphertextBlob": pair["PrivateKeyCiphertextBlob"] }));
    assert_eq!(opened["Plaintext"], pair["PrivateKeyPlaintext"]);
    let public = pk::public(KeySpec::P256, &bytes(&pair["PrivateKeyPlaintext"])).unwrap();
    assert_eq!(public, bytes(&pair["PublicKey"]));
    assert_eq!(bytes(&b.call("GenerateRandom", json!({ "NumberOfBytes": 7 }))["Plaintext"]).len(), 7);
}

/// Every state refuses what AWS's table refuses, with its exception; the waiting period ends in a deletion.
#[test]
fn states_allow_what_the_table_allows() {
    let b = bench();
    let key = b.key(json!({}));
    let blob = b.call("Encrypt", json!({ "KeyId": key, "Plaintext": "aGk=" }))["CiphertextBlob"].clone();
    b.call("DisableKey", json!({ "KeyId": key }));
    let arn =
        b.call("DescribeKey", json!({ "KeyId": key }))["KeyMetadata"]["Arn"].as_str().unwrap().to_owned();
    assert_eq!(b.text("Decrypt", json!({ "CiphertextBlob": blob })), format!("{arn} is disabled."));
    assert_eq!(b.code("RotateKeyOnDemand", json!({ "KeyId": key })), "DisabledException");
    assert_eq!(b.code("CancelKeyDeletion", json!({ "KeyId": key })), "KMSInvalidStateException");
    b.call("EnableKey", json!({ "KeyId": key }));
    assert_eq!(
        b.code("ScheduleKeyDeletion", json!({ "KeyId": key, "PendingWindowInDays": 6 })),
        "ValidationException"
    );
    let scheduled = b.call("ScheduleKeyDeletion", json!({ "KeyId": key, "PendingWindowInDays": 7 }));
    assert_eq!(scheduled["KeyState"], "PendingDeletion");
    for action in ["EnableKey", "DisableKey", "ScheduleKeyDeletion"] {
        assert_eq!(
            b.text(action, json!({ "KeyId": key })),
            format!("{arn} is pending deletion."),
            "{action}"
        );
    }
    assert_eq!(b.code("TagResource", json!({ "KeyId": key, "Tags": [] })), "KMSInvalidStateException");
    assert_eq!(b.code("Decrypt", json!({ "CiphertextBlob": blob })), "KMSInvalidStateException");
    b.call("GetKeyPolicy", json!({ "KeyId": key }));
    b.call("CancelKeyDeletion", json!({ "KeyId": key }));
    assert_eq!(b.state(&key), "Disabled");
    b.call("ScheduleKeyDeletion", json!({ "KeyId": key, "PendingWindowInDays": 7 }));
    b.engine.skip_days(8);
    assert_eq!(b.code("DescribeKey", json!({ "KeyId": key })), "NotFoundException");
    assert!(b.call("ListKeys", json!({}))["Keys"].as_array().unwrap().is_empty());
}

/// A rotation that fell due while nobody ran is done at the next use; old ciphertexts open, new ones use the new
/// material.
#[test]
fn rotation_happens_when_due() {
    let b = bench();
    let key = b.key(json!({}));
    let old = b.call("GenerateDataKey", json!({ "KeyId": key, "KeySpec": "AES_256" }));
    b.call("EnableKeyRotation", json!({ "KeyId": key, "RotationPeriodInDays": 90 }));
    assert_eq!(b.call("GetKeyRotationStatus", json!({ "KeyId": key }))["RotationPeriodInDays"], 90);
    b.engine.skip_days(89);
    assert!(b.call("ListKeyRotations", json!({ "KeyId": key }))["Rotations"].as_array().unwrap().is_empty());
    b.engine.skip_days(400);
    let new = b.call("GenerateDataKey", json!({ "KeyId": key, "KeySpec": "AES_256" }));
    assert_ne!(old["KeyMaterialId"], new["KeyMaterialId"]);
    assert_eq!(
        b.call("Decrypt", json!({ "CiphertextBlob": old["CiphertextBlob"] }))["Plaintext"],
        old["Plaintext"]
    );
    let rotations = b.call("ListKeyRotations", json!({ "KeyId": key }))["Rotations"].clone();
    assert_eq!(
        (rotations.as_array().unwrap().len(), &rotations[0]["RotationType"]),
        (1, &json!("AUTOMATIC"))
    );
    b.engine.skip_days(90);
    assert_eq!(b.engine.settle_all().unwrap(), 1);
    for _ in 0..25 {
        b.call("RotateKeyOnDemand", json!({ "KeyId": key }));
    }
    assert_eq!(b.code("RotateKeyOnDemand", json!({ "KeyId": key })), "LimitExceededException");
    b.engine.skip_days(90);
    assert_eq!(b.engine.settle_all().unwrap(), 1, "automatic rotation goes on");
    let rsa = b.key(json!({ "KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY" }));
    assert_eq!(b.code("EnableKeyRotation", json!({ "KeyId": rsa })), "UnsupportedOperationException");
}

/// Wraps material as a client would, with OAEP and with AES-KWP.
fn wrapped(b: &Bench, key: &str, algorithm: &str, material: &[u8]) -> Value {
    let params = b.call(
        "GetParametersForImport",
        json!({ "KeyId": key, "WrappingAlgorithm": algorithm, "WrappingKeySpec": "RSA_2048" }),
    );
    let public = bytes(&params["PublicKey"]);
    let sealed = if algorithm.starts_with("RSA_AES") {
        use aws_lc_rs::key_wrap::{AES_256, KeyEncryptionKey, KeyWrapPadded as _};
        let mut sealed = pk::encrypt(&public, algorithm, &[5; 32]).unwrap();
        let mut out = vec![0; material.len() + 16];
        let kek = KeyEncryptionKey::new(&AES_256, &[5; 32]).unwrap();
        sealed.extend_from_slice(kek.wrap_with_padding(material, &mut out).unwrap());
        sealed
    } else {
        pk::encrypt(&public, algorithm, material).unwrap()
    };
    json!({
        "KeyId": key, "ImportToken": params["ImportToken"], "EncryptedKeyMaterial": b64(&sealed),
        "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE",
    })
}

/// Imported material works until it is deleted or expires, comes back only as itself, and rotates to new material.
#[test]
fn imported_material_comes_and_goes() {
    let b = bench();
    let key = b.key(json!({ "Origin": "EXTERNAL" }));
    assert_eq!(b.state(&key), "PendingImport");
    assert_eq!(b.code("Encrypt", json!({ "KeyId": key, "Plaintext": "aGk=" })), "KMSInvalidStateException");
    b.call("ImportKeyMaterial", wrapped(&b, &key, "RSAES_OAEP_SHA_256", &[1; 32]));
    assert_eq!(b.state(&key), "Enabled");
    let blob = b.call("Encrypt", json!({ "KeyId": key, "Plaintext": "aGk=" }))["CiphertextBlob"].clone();
    b.call("DeleteImportedKeyMaterial", json!({ "KeyId": key }));
    assert_eq!(b.code("Decrypt", json!({ "CiphertextBlob": blob })), "KMSInvalidStateException");
    let other = wrapped(&b, &key, "RSA_AES_KEY_WRAP_SHA_256", &[2; 32]);
    assert_eq!(b.code("ImportKeyMaterial", other.clone()), "IncorrectKeyMaterialException");
    let mut soon = wrapped(&b, &key, "RSA_AES_KEY_WRAP_SHA_256", &[1; 32]);
    soon["ExpirationModel"] = json!("KEY_MATERIAL_EXPIRES");
    assert_eq!(
        b.text("ImportKeyMaterial", soon.clone()),
        "A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES"
    );
    soon["ValidTo"] = json!(b.engine.now() / 1000 + 86_400);
    b.call("ImportKeyMaterial", soon.clone());
    b.call("Decrypt", json!({ "CiphertextBlob": blob }));
    assert_eq!(b.code("RotateKeyOnDemand", json!({ "KeyId": key })), "KMSInvalidStateException");
    let mut second = other;
    second["ImportType"] = json!("NEW_KEY_MATERIAL");
    b.call("ImportKeyMaterial", second);
    b.call("RotateKeyOnDemand", json!({ "KeyId": key }));
    b.call("Decrypt", json!({ "CiphertextBlob": blob }));
    b.engine.skip_days(2);
    assert_eq!(b.state(&key), "PendingImport");
    assert_eq!(b.code("ImportKeyMaterial", soon), "ValidationException", "the date has passed");
    let short = wrapped(&b, &key, "RSAES_OAEP_SHA_256", &[1; 16]);
    assert_eq!(b.code("ImportKeyMaterial", short), "IncorrectKeyMaterialException");
    let here = b.key(json!({}));
    let ask =
        json!({ "KeyId": here, "WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048" });
    assert_eq!(b.code("GetParametersForImport", ask), "UnsupportedOperationException");
}

/// Asymmetric and HMAC keys do what they are for, and refuse the rest with AWS's words.
#[test]
fn keys_do_only_what_they_are_for() {
    let b = bench();
    let ec = b.key(json!({ "KeySpec": "ECC_NIST_P384", "KeyUsage": "SIGN_VERIFY" }));
    let ask = json!({ "KeyId": ec, "Message": "aGk=", "SigningAlgorithm": "ECDSA_SHA_384" });
    let signature = b.call("Sign", ask.clone())["Signature"].clone();
    let mut check = ask.clone();
    check["Signature"] = signature;
    assert_eq!(b.call("Verify", check.clone())["SignatureValid"], true);
    check["Message"] = json!("aGo=");
    assert_eq!(b.code("Verify", check), "KMSInvalidSignatureException");
    let mut wrong = ask;
    wrong["SigningAlgorithm"] = json!("ECDSA_SHA_256");
    assert_eq!(b.text("Sign", wrong), "Algorithm ECDSA_SHA_256 is incompatible with key spec ECC_NIST_P384.");
    let text = b.text("Encrypt", json!({ "KeyId": ec, "Plaintext": "aGk=" }));
    assert!(text.ends_with("key usage is SIGN_VERIFY which is not valid for Encrypt."), "{text}");
    let mac_key = b.key(json!({ "KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC" }));
    let mac = b
        .call("GenerateMac", json!({ "KeyId": mac_key, "Message": "aGk=", "MacAlgorithm": "HMAC_SHA_256" }))
        ["Mac"]
        .clone();
    let mut check =
        json!({ "KeyId": mac_key, "Message": "aGk=", "MacAlgorithm": "HMAC_SHA_256", "Mac": mac });
    assert_eq!(b.call("VerifyMac", check.clone())["MacValid"], true);
    check["Message"] = json!("aGo=");
    assert_eq!(b.code("VerifyMac", check), "KMSInvalidMacException");
    let agree = b.key(json!({ "KeySpec": "ECC_NIST_P256", "KeyUsage": "KEY_AGREEMENT" }));
    let peer = pk::generate(KeySpec::P256).unwrap();
    let derived = b.call("DeriveSharedSecret", json!({
        "KeyId": agree, "KeyAgreementAlgorithm": "ECDH", "PublicKey": b64(&pk::public(KeySpec::P256, &peer).unwrap()),
    }));
    let ours = bytes(&b.call("GetPublicKey", json!({ "KeyId": agree }))["PublicKey"]);
    assert_eq!(bytes(&derived["SharedSecret"]), *pk::agree(KeySpec::P256, &peer, &ours).unwrap());
    let kem = b.key(json!({ "KeySpec": "ML_KEM_768", "KeyUsage": "ENCAPSULATE_DECAPSULATE" }));
    let made = b.call("Encapsulate", json!({ "KeyId": kem, "EncapsulationAlgorithm": "ML_KEM" }));
    let opened = b.call("Decapsulate", json!({
        "KeyId": kem, "EncapsulationAlgorithm": "ML_KEM", "SharedSecretCiphertextBlob": made["SharedSecretCiphertextBlob"],
    }));
    assert_eq!(opened["SharedSecret"], made["SharedSecret"]);
    assert_eq!(
        b.code("CreateKey", json!({ "KeySpec": "SM2", "KeyUsage": "SIGN_VERIFY" })),
        "UnsupportedOperationException"
    );
    assert_eq!(
        b.text("CreateKey", json!({ "KeySpec": "RSA_2048" })),
        "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys."
    );
    assert_eq!(
        b.call("GetKeyLastUsage", json!({ "KeyId": kem }))["KeyLastUsage"]["Operation"],
        "Decapsulate"
    );
}

/// Aliases, tags and policies follow AWS's rules; AWS-managed keys appear when they are used.
#[test]
fn names_tags_and_policies_follow_the_rules() {
    let b = bench();
    let (one, two) = (b.key(json!({})), b.key(json!({})));
    b.call("CreateAlias", json!({ "AliasName": "alias/a", "TargetKeyId": one }));
    assert_eq!(
        b.code("CreateAlias", json!({ "AliasName": "alias/a", "TargetKeyId": two })),
        "AlreadyExistsException"
    );
    let sealed = b.call("Encrypt", json!({ "KeyId": "alias/a", "Plaintext": "aGk=" }));
    b.call("UpdateAlias", json!({ "AliasName": "alias/a", "TargetKeyId": two }));
    let new = b.call("Encrypt", json!({ "KeyId": "alias/a", "Plaintext": "aGk=" }));
    assert_ne!(sealed["KeyId"], new["KeyId"]);
    b.call("Decrypt", json!({ "CiphertextBlob": sealed["CiphertextBlob"] }));
    let mac = b.key(json!({ "KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC" }));
    assert_eq!(
        b.code("UpdateAlias", json!({ "AliasName": "alias/a", "TargetKeyId": mac })),
        "ValidationException"
    );
    b.call("DeleteAlias", json!({ "AliasName": "alias/a" }));
    assert_eq!(b.code("DescribeKey", json!({ "KeyId": "alias/a" })), "NotFoundException");
    let tag = |key: &str| json!({ "KeyId": one, "Tags": [{ "TagKey": key, "TagValue": "v" }] });
    b.call("TagResource", tag("x"));
    assert_eq!(b.text("TagResource", tag("aws:x")), "Tags beginning with aws: are reserved");
    assert_eq!(b.call("ListResourceTags", json!({ "KeyId": one }))["Tags"][0]["TagKey"], "x");
    b.call("UntagResource", json!({ "KeyId": one, "TagKeys": ["x"] }));
    assert_eq!(
        b.code("PutKeyPolicy", json!({ "KeyId": one, "Policy": "no JSON" })),
        "MalformedPolicyDocumentException"
    );
    let managed = b.call("Encrypt", json!({ "KeyId": "alias/aws/s3", "Plaintext": "aGk=" }));
    let id = managed["KeyId"].as_str().unwrap();
    assert_eq!(b.call("DescribeKey", json!({ "KeyId": id }))["KeyMetadata"]["KeyManager"], "AWS");
    assert_eq!(b.code("ScheduleKeyDeletion", json!({ "KeyId": id })), "AccessDeniedException");
}

/// Listings come in pages that miss nothing and repeat nothing.
#[test]
fn listings_come_in_pages() {
    let b = bench();
    let mut made: Vec<String> = (0..7).map(|_| b.key(json!({}))).collect();
    made.sort();
    let (mut found, mut marker) = (Vec::new(), Value::Null);
    loop {
        let page = b.call("ListKeys", json!({ "Limit": 3, "Marker": marker }));
        found
            .extend(page["Keys"].as_array().unwrap().iter().map(|k| k["KeyId"].as_str().unwrap().to_owned()));
        marker = page.get("NextMarker").cloned().unwrap_or(Value::Null);
        assert_eq!(page["Truncated"], json!(!marker.is_null()));
        if marker.is_null() {
            break;
        }
    }
    assert_eq!(found, made);
    assert_eq!(b.code("ListKeys", json!({ "Marker": "zz" })), "InvalidMarkerException");
    let home = Caller::root(Scope::home());
    assert!(b.engine.call("ListKeys", json!({}), &home).unwrap()["Keys"].as_array().unwrap().is_empty());
}

/// Grants are made once per name, listed by key and by principal, and go when they are retired or revoked.
#[test]
fn grants_come_and_go() {
    let b = bench();
    let key = b.key(json!({}));
    let bob = "arn:aws:iam::123456789012:user/bob";
    let ask = json!({ "KeyId": key, "GranteePrincipal": bob, "RetiringPrincipal": bob, "Operations": ["Decrypt"], "Name": "n" });
    let one = b.call("CreateGrant", ask.clone());
    let again = b.call("CreateGrant", ask);
    assert_eq!(one["GrantId"], again["GrantId"]);
    assert_ne!(one["GrantToken"], again["GrantToken"]);
    let list = |input: Value| b.call("ListGrants", input)["Grants"].as_array().unwrap().len();
    assert_eq!(list(json!({ "KeyId": key })), 1);
    assert_eq!(list(json!({ "KeyId": key, "GranteePrincipal": bob })), 1);
    let retirable = |who: &str| {
        b.call("ListRetirableGrants", json!({ "RetiringPrincipal": who }))["Grants"].as_array().unwrap().len()
    };
    assert_eq!((retirable(bob), retirable("arn:aws:iam::123456789012:user/eve")), (1, 0));
    let sign = json!({ "KeyId": key, "GranteePrincipal": bob, "Operations": ["Sign"] });
    assert_eq!(b.code("CreateGrant", sign), "ValidationException");
    let nobody = json!({ "KeyId": key, "GranteePrincipal": "bob", "Operations": ["Decrypt"] });
    assert_eq!(b.code("CreateGrant", nobody), "InvalidArnException");
    let bogus = json!({ "KeyId": key, "Plaintext": "aGk=", "GrantTokens": ["bogus"] });
    assert_eq!(b.code("Encrypt", bogus), "InvalidGrantTokenException");
    b.call("RetireGrant", json!({ "GrantToken": one["GrantToken"] }));
    assert_eq!(list(json!({ "KeyId": key })), 0);
    let revoke = json!({ "KeyId": key, "GrantId": one["GrantId"] });
    assert_eq!(b.code("RevokeGrant", revoke), "NotFoundException");
}

/// A replica opens what its primary sealed, also after a rotation; the primary moves; a primary outlives its replicas.
#[test]
fn replicas_share_material() {
    let b = bench();
    let key = b.key(json!({ "MultiRegion": true }));
    let blob = b.call("Encrypt", json!({ "KeyId": key, "Plaintext": "aGk=" }))["CiphertextBlob"].clone();
    b.call("ReplicateKey", json!({ "KeyId": key, "ReplicaRegion": "eu-west-1" }));
    let there = b.in_region("eu-west-1");
    let at_replica = |action: &str, input: Value| b.engine.call(action, input, &there);
    at_replica("Decrypt", json!({ "CiphertextBlob": blob })).unwrap();
    assert_eq!(
        b.code("ReplicateKey", json!({ "KeyId": key, "ReplicaRegion": "eu-west-1" })),
        "AlreadyExistsException"
    );
    b.call("RotateKeyOnDemand", json!({ "KeyId": key }));
    let new = at_replica("Encrypt", json!({ "KeyId": key, "Plaintext": "aGk=" })).unwrap()["CiphertextBlob"]
        .clone();
    b.call("Decrypt", json!({ "CiphertextBlob": new }));
    b.call("UpdatePrimaryRegion", json!({ "KeyId": key, "PrimaryRegion": "eu-west-1" }));
    let config =
        b.call("DescribeKey", json!({ "KeyId": key }))["KeyMetadata"]["MultiRegionConfiguration"].clone();
    assert_eq!(
        (config["MultiRegionKeyType"].as_str(), config["PrimaryKey"]["Region"].as_str()),
        (Some("REPLICA"), Some("eu-west-1"))
    );
    assert_eq!(
        b.code("ReplicateKey", json!({ "KeyId": key, "ReplicaRegion": "us-west-2" })),
        "UnsupportedOperationException"
    );
    let waits = at_replica("ScheduleKeyDeletion", json!({ "KeyId": key, "PendingWindowInDays": 7 })).unwrap();
    assert_eq!(waits["KeyState"], "PendingReplicaDeletion");
    b.call("ScheduleKeyDeletion", json!({ "KeyId": key, "PendingWindowInDays": 7 }));
    b.engine.skip_days(8);
    b.engine.settle_all().unwrap();
    let primary = at_replica("DescribeKey", json!({ "KeyId": key })).unwrap();
    assert_eq!(primary["KeyMetadata"]["KeyState"], "PendingDeletion");
    b.engine.skip_days(8);
    b.engine.settle_all().unwrap();
    assert!(at_replica("DescribeKey", json!({ "KeyId": key })).is_err());
}

/// An HSM cluster for tests of the seam: its keys are real AES keys, its faults are switched on. As a session it knows
/// with which of the cluster's starts it was made.
#[derive(Default)]
struct TestCluster(Arc<Mutex<TestHsm>>, usize);

#[derive(Default)]
struct TestHsm {
    hsms: usize,
    password: String,
    /// Sessions of earlier ones are gone.
    starts: usize,
    keys: std::collections::HashMap<String, crate::crypto::SealKey>,
}

impl HsmCluster for TestCluster {
    fn active_hsms(&self) -> Result<usize, ClusterError> {
        Ok(self.0.lock().hsms)
    }

    fn trust_anchor(&self) -> Result<String, ClusterError> {
        Ok("PEM".into())
    }

    fn login(&self, password: &str) -> Result<Arc<dyn HsmSession>, ClusterError> {
        let hsm = self.0.lock();
        match (hsm.hsms, hsm.password == password) {
            (0, _) => Err(ClusterError::Network),
            (_, false) => Err(ClusterError::InvalidCredentials),
            _ => Ok(Arc::new(Self(self.0.clone(), hsm.starts))),
        }
    }
}

impl HsmSession for TestCluster {
    fn set_password(&self, new: &str) -> Result<(), ClusterError> {
        self.0.lock().password = new.into();
        Ok(())
    }

    fn generate(&self, label: &str) -> Result<(), ClusterError> {
        let key = crate::crypto::SealKey::new(crate::crypto::Secret::random());
        self.0.lock().keys.insert(label.into(), key);
        Ok(())
    }

    fn encrypt(&self, label: &str, ad: &[u8], plain: &[u8]) -> Result<Vec<u8>, ClusterError> {
        let hsm = self.0.lock();
        let key = hsm.keys.get(label).filter(|_| hsm.hsms > 0).ok_or(ClusterError::Network)?;
        Ok(key.seal(ad, plain))
    }

    fn decrypt(&self, label: &str, ad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, ClusterError> {
        let hsm = self.0.lock();
        let key = hsm.keys.get(label).filter(|_| hsm.hsms > 0).ok_or(ClusterError::Network)?;
        key.open(ad, sealed).map_err(|_| ClusterError::Tampered)
    }

    fn random(&self, len: usize) -> Result<Zeroizing<Vec<u8>>, ClusterError> {
        Ok(Zeroizing::new(vec![7; len]))
    }

    fn destroy(&self, label: &str) -> Result<(), ClusterError> {
        let mut hsm = self.0.lock();
        match (hsm.hsms, hsm.starts == self.1) {
            (0, _) => Err(ClusterError::Network),
            (_, false) => Err(ClusterError::Internal),
            _ => {
                hsm.keys.remove(label);
                Ok(())
            }
        }
    }
}

/// Events of the service: name and details.
#[derive(Default)]
struct Heard(Mutex<Vec<(String, Value)>>);

impl Observer for Heard {
    fn calls(&self, _: &[CallRecord<'_>]) -> Result<(), KmsError> {
        Ok(())
    }

    fn service(&self, event: &ServiceRecord<'_>) {
        self.0.lock().push((event.name.to_owned(), event.details.clone()));
    }
}

/// A deleted key goes from the cluster also where the login of the store was lost meanwhile; where the cluster does not
/// answer its `DeleteKey` event says that the key stays there.
#[test]
fn a_deleted_key_leaves_the_cluster_or_the_log_says_that_it_stays() {
    let mut b = bench();
    let heard = Arc::new(Heard::default());
    b.engine = b.engine.with_observer(heard.clone());
    let id = "cluster-abcdefghijk";
    let hsm = Arc::new(Mutex::new(TestHsm { hsms: 2, password: "kmsPswd1".into(), ..TestHsm::default() }));
    b.engine.add_cluster(id, Arc::new(TestCluster(hsm.clone(), 0)));
    let ask = json!({
        "CustomKeyStoreName": "s", "CloudHsmClusterId": id, "TrustAnchorCertificate": "PEM", "KeyStorePassword": "kmsPswd1",
    });
    let store = b.call("CreateCustomKeyStore", ask)["CustomKeyStoreId"].clone();
    b.call("ConnectCustomKeyStore", json!({ "CustomKeyStoreId": store }));
    let new = json!({ "Origin": "AWS_CLOUDHSM", "CustomKeyStoreId": store });
    // The login was lost; no HSM answers; the store is disconnected.
    for (round, status) in ["SUCCESS", "FAILURE", "FAILURE"].into_iter().enumerate() {
        let key = b.key(new.clone());
        b.call("ScheduleKeyDeletion", json!({ "KeyId": key, "PendingWindowInDays": 7 }));
        let before = hsm.lock().keys.len();
        match round {
            0 => hsm.lock().starts += 1,
            1 => hsm.lock().hsms = 0,
            _ => drop(b.call("DisconnectCustomKeyStore", json!({ "CustomKeyStoreId": store }))),
        }
        b.engine.skip_days(8);
        b.engine.settle_all().unwrap();
        assert_eq!(hsm.lock().keys.len(), before - usize::from(status == "SUCCESS"), "round {round}");
        let (name, details) = heard.0.lock().pop().unwrap();
        assert_eq!((name.as_str(), &details["clusterId"]), ("DeleteKey", &json!(id)), "{details}");
        assert_eq!(details["customKeyStoreId"], store);
        let told: Value =
            serde_json::from_str(details["backingKeysDeletionStatus"].as_str().unwrap()).unwrap();
        assert_eq!(told.as_array().unwrap().len(), 1, "{told}");
        assert_eq!(told[0]["deletionStatus"], status, "round {round}");
        hsm.lock().hsms = 2;
        // A login that failed is left alone for a moment.
        b.engine.clusters.close(store.as_str().unwrap());
    }
}

/// A custom key store: AWS's errors before there is a cluster, its keys only in the cluster, unavailable while the cluster is
/// down, and back when it is.
#[test]
fn keys_of_a_custom_store_live_in_the_cluster() {
    let b = bench();
    let id = "cluster-abcdefghijk";
    let ask = json!({
        "CustomKeyStoreName": "s", "CloudHsmClusterId": id, "TrustAnchorCertificate": "PEM", "KeyStorePassword": "kmsPswd1",
    });
    assert_eq!(b.code("CreateCustomKeyStore", ask.clone()), "CloudHsmClusterNotFoundException");
    let hsm = Arc::new(Mutex::new(TestHsm { hsms: 1, password: "kmsPswd1".into(), ..TestHsm::default() }));
    b.engine.add_cluster(id, Arc::new(TestCluster(hsm.clone(), 0)));
    assert_eq!(b.code("CreateCustomKeyStore", ask.clone()), "CloudHsmClusterInvalidConfigurationException");
    hsm.lock().hsms = 2;
    let mut other = ask.clone();
    other["TrustAnchorCertificate"] = json!("another");
    assert_eq!(b.code("CreateCustomKeyStore", other), "IncorrectTrustAnchorException");
    let store = b.call("CreateCustomKeyStore", ask.clone())["CustomKeyStoreId"].clone();
    let new = json!({ "Origin": "AWS_CLOUDHSM", "CustomKeyStoreId": store });
    assert_eq!(b.code("CreateKey", new.clone()), "CustomKeyStoreInvalidStateException");
    b.call("ConnectCustomKeyStore", json!({ "CustomKeyStoreId": store }));
    assert_ne!(hsm.lock().password, "kmsPswd1", "the password was rotated");
    let key = b.key(new);
    let blob = b.call("Encrypt", json!({ "KeyId": key, "Plaintext": "aGk=" }))["CiphertextBlob"].clone();
    assert_eq!(hsm.lock().keys.len(), 1);
    hsm.lock().hsms = 0;
    let refused = b.text("Decrypt", json!({ "CiphertextBlob": blob }));
    assert!(refused.ends_with("is unavailable."), "{refused}");
    hsm.lock().hsms = 1;
    b.engine.clusters.close(store.as_str().unwrap());
    assert_eq!(bytes(&b.call("Decrypt", json!({ "CiphertextBlob": blob }))["Plaintext"]), b"hi");
    let wrong = json!({ "CiphertextBlob": blob, "EncryptionContext": { "a": "b" } });
    assert_eq!(b.code("Decrypt", wrong), "InvalidCiphertextException");
    assert_eq!(
        b.code("DeleteCustomKeyStore", json!({ "CustomKeyStoreId": store })),
        "CustomKeyStoreInvalidStateException"
    );
    b.call("DisconnectCustomKeyStore", json!({ "CustomKeyStoreId": store }));
    assert_eq!(b.state(&key), "Unavailable");
    assert_eq!(
        b.code("DeleteCustomKeyStore", json!({ "CustomKeyStoreId": store })),
        "CustomKeyStoreHasCMKsException"
    );
    hsm.lock().password = "changed behind our back".into();
    b.call("ConnectCustomKeyStore", json!({ "CustomKeyStoreId": store }));
    let shown = b.call("DescribeCustomKeyStores", json!({}))["CustomKeyStores"][0].clone();
    assert_eq!(
        (shown["ConnectionState"].as_str(), shown["ConnectionErrorCode"].as_str()),
        (Some("FAILED"), Some("INVALID_CREDENTIALS"))
    );
}

/// Nothing that a client can send makes an action panic: every action, with junk in every member.
#[test]
fn junk_in_every_member_is_an_exception() {
    let b = bench();
    let key = b.key(json!({}));
    let junk = [
        json!(null),
        json!(true),
        json!(-1),
        json!(1e300),
        json!(""),
        json!("x"),
        json!("é\u{0}"),
        json!(key),
        json!("aGk="),
        json!([]),
        json!([null]),
        json!(["x"]),
        json!({}),
        json!({ "a": "b" }),
        json!({ "a": 1 }),
        json!("a".repeat(9000)),
    ];
    for action in super::actions() {
        let _ = b.try_call(action, json!({}));
        for member in super::members(action) {
            for value in &junk {
                let mut input = json!({ "KeyId": key });
                input[member.name] = value.clone();
                let _ = b.try_call(action, input);
            }
        }
    }
    assert_eq!(b.code("NoSuchAction", json!({})), "UnknownOperationException");
    assert_eq!(b.code("ListKeys", json!([])), "SerializationException");
}
