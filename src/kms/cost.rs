//! What an unwrap in the embedded KMS costs beside the decryption itself and the line of the audit log. A measurement:
//! `cargo test --release --lib measure_unwrap -- --ignored --nocapture`.

use std::io::Write as _;
use std::time::{Duration, Instant};

use serde_json::json;

use super::audit::{Event, Identity, Log, Settings};
use super::caller::new_request_id;
use super::context::{EncryptionContext, canonical};
use super::{Engine, Protection};
use crate::crypto::{MacKey, SealKey, Secret};

/// Calls of a round, and rounds, of which the fastest counts.
const CALLS: u32 = 10_000;
const ROUNDS: usize = 5;

/// The time of one call, in the fastest round.
fn each(mut call: impl FnMut()) -> Duration {
    let mut round = || {
        let begin = Instant::now();
        (0..CALLS).for_each(|_| call());
        begin.elapsed() / CALLS
    };
    (0..ROUNDS).map(|_| round()).min().unwrap()
}

/// The ratio of an unwrap to decryption and audit line together.
#[test]
#[ignore = "a measurement"]
fn measure_unwrap() {
    let tmp = tempfile::tempdir().unwrap();
    let kms = Engine::create(&tmp.path().join("kms"), &Protection::KeyFile).unwrap().watched().unwrap();
    let key = kms.create_key("").unwrap();
    let context = EncryptionContext::from(
        [
            ("envelopefs:vault", "00112233445566778899aabbccddeeff"),
            ("envelopefs:purpose", "file"),
            ("envelopefs:file", "00112233445566778899aabb"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    let nonce = [7; 12];
    let wrapped = kms.generate_compact(&key.key_id, [(&nonce, &context)]).unwrap().remove(0).1;

    let seal = SealKey::new(Secret::random());
    let (mut text, ad) = ([0; 32], canonical(&context).unwrap());
    let tag = seal.seal_with(&nonce, &ad, &mut text);
    let aead = each(|| {
        let mut opened = text;
        seal.open_with(&nonce, &canonical(&context).unwrap(), &mut opened, &tag).unwrap();
    });

    let mac = MacKey::new(Secret::random());
    let log = Log::open(&tmp.path().join("audit"), mac, Settings::default()).unwrap();
    let keys = [key.arn.clone()];
    let line = each(|| {
        let parameters = json!({ "KeyId": key.arn, "EncryptionContext": context });
        log.append(&[Event {
            time_ms: 1_795_651_200_000,
            name: "Decrypt",
            identity: Some(Identity { arn: &key.arn, account: "000000000000", user_id: "0", access_key: "" }),
            region: "us-east-1",
            account: "000000000000",
            source: "",
            user_agent: "envelopefs",
            via: Some("envelopefs.us-east-1.amazonaws.com"),
            parameters: &parameters,
            keys: &keys,
            error: None,
            request_id: &new_request_id(),
            details: &serde_json::Value::Null,
            count: 1,
        }])
        .unwrap();
    });
    let unwrap = each(|| drop(kms.unwrap_compact(&key.key_id, &nonce, &wrapped, &context).unwrap()));
    let ratio = unwrap.as_secs_f64() / (aead + line).as_secs_f64();
    writeln!(
        std::io::stderr(),
        "decryption {aead:?}, audit line {line:?}, unwrap {unwrap:?}: {ratio:.2} times both together"
    )
    .unwrap();
}
