//! kill -9 of a process that writes the audit log: what it had answered is in the log, and the log verifies.
#![allow(missing_docs)]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use envelopefs::crypto::{MacKey, Secret};
use envelopefs::kms::audit::{Event, Identity, Log, Settings, verify};
use serde_json::json;

const DIR: &str = "ENVELOPEFS_TEST_AUDIT_DIR";

fn key() -> MacKey {
    MacKey::new(Secret::from_slice(&[9; 32]).expect("32 bytes"))
}

fn open(dir: &Path) -> Log {
    let settings = Settings { max_file: 64 << 10, keep: None, sync_every: Duration::from_millis(20) };
    Log::open(dir, key(), settings).expect("a log")
}

fn append(log: &Log, number: u64) {
    let parameters = json!({ "EncryptionContext": { "n": number.to_string() } });
    let identity = Identity {
        arn: "arn:aws:iam::111122223333:user/a",
        account: "111122223333",
        user_id: "AIDA",
        access_key: "AKIA",
    };
    log.append(&[Event {
        time_ms: 1_795_651_200_000 + number,
        name: "Decrypt",
        identity: Some(identity),
        region: "us-east-1",
        account: "111122223333",
        source: "",
        user_agent: "",
        via: None,
        parameters: &parameters,
        keys: &[],
        error: None,
        request_id: "r",
        details: &serde_json::Value::Null,
        count: 1,
    }])
    .expect("written");
}

/// The writer: says each event's number when it is in the log. Runs in a process of its own.
#[test]
#[ignore = "started by the test below"]
fn writer() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let log = open(Path::new(&dir));
    for number in 1.. {
        append(&log, number);
        println!("event {number}");
    }
}

/// Two writers at once are killed again and again: every event that they said was written is there, nothing is torn,
/// and the next writer goes on.
#[test]
fn what_was_answered_survives_kill_9() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path().join("audit");
    let mut said = 0;
    for round in 0..6 {
        let mut writers: Vec<_> = (0..2)
            .map(|_| {
                Command::new(std::env::current_exe().expect("this test"))
                    .args(["--ignored", "--exact", "writer", "--nocapture"])
                    .env(DIR, &dir)
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("a writer")
            })
            .collect();
        let outs: Vec<_> = writers.iter_mut().map(|w| w.stdout.take().expect("piped")).collect();
        let readers = outs.into_iter().map(|out| {
            std::thread::spawn(move || {
                let lines = BufReader::new(out).lines().map_while(Result::ok);
                lines.filter(|l| l.contains("event ")).count() as u64
            })
        });
        let readers: Vec<_> = readers.collect();
        std::thread::sleep(Duration::from_millis(300 + 37 * round));
        for writer in &mut writers {
            writer.kill().expect("killed");
            writer.wait().expect("gone");
        }
        // A line that was printed in part was an event in whole.
        said += readers.into_iter().map(|r| r.join().expect("counted")).sum::<u64>();
        append(&open(&dir), 0);
        said += 1;
        let report = verify(&dir, &key()).expect("readable");
        assert!(report.is_clean(), "round {round}: {:?}", report.findings);
        assert!(report.good >= said, "round {round}: {} of {said} events", report.good);
    }
    assert!(said > 100, "{said} events: the writers did nothing");
}
