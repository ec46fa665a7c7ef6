use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::crypto::{MacKey, Secret};

fn key() -> MacKey {
    MacKey::new(Secret::from_slice(&[7; 32]).unwrap())
}

fn small() -> Settings {
    Settings { max_file: 4096, keep: None, sync_every: Duration::from_secs(3600) }
}

fn write(log: &Log, user: &str, file: &str) {
    let parameters = json!({
        "KeyId": "k1", "EncryptionContext": { "file": file }, "Plaintext": "SECRET", "Message": "SECRET",
    });
    let arn = format!("arn:aws:iam::111122223333:user/{user}");
    log.append(&[Event {
        time_ms: 1_795_651_200_000,
        name: "Decrypt",
        identity: Some(Identity { arn: &arn, account: "111122223333", user_id: "AIDA", access_key: "AKIA" }),
        region: "us-east-1",
        account: "111122223333",
        source: "127.0.0.1",
        user_agent: "test",
        via: None,
        parameters: &parameters,
        keys: &["arn:aws:kms:us-east-1:111122223333:key/k1".to_owned()],
        error: (user == "eve").then_some(("AccessDeniedException", "no")),
        request_id: "r",
        count: 1,
    }])
    .unwrap();
}

/// A log of `count` events in a fresh directory.
fn filled(count: u32) -> (tempfile::TempDir, PathBuf) {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("audit");
    let log = Log::open(&dir, key(), small()).unwrap();
    for n in 0..count {
        write(&log, "alice", &format!("f{n}"));
    }
    drop(log);
    (tmp, dir)
}

fn file(dir: &Path, number: u64) -> PathBuf {
    files::path(dir, number)
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

fn put(path: &Path, lines: &[String]) {
    std::fs::write(path, lines.iter().map(|l| format!("{l}\n")).collect::<String>()).unwrap();
}

fn faults(dir: &Path) -> Vec<Fault> {
    verify(dir, &key()).unwrap().findings.into_iter().map(|f| f.fault).collect()
}

/// A log over several files verifies, with every event in it, and goes on after it was closed.
#[test]
fn a_log_of_several_files_is_clean() {
    let (_tmp, dir) = filled(40);
    let log = Log::open(&dir, key(), small()).unwrap();
    write(&log, "bob", "last");
    drop(log);
    let report = verify(&dir, &key()).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!((report.good, report.range), (41, Some((1, 41))));
    assert!(report.files >= 5, "{}", report.files);
    assert!(verify(&dir.join("none"), &key()).unwrap().is_clean());
}

/// A changed, removed, moved, repeated or foreign line, a removed file and a removed tail are all noticed.
#[test]
fn every_change_is_noticed() {
    type Case<'a> = (&'a str, &'a dyn Fn(&Path), Fault);
    let edit = |dir: &Path, change: &dyn Fn(&mut Vec<String>)| {
        let path = file(dir, 2);
        let mut all = lines(&path);
        change(&mut all);
        put(&path, &all);
    };
    let cases: [Case<'_>; 9] = [
        ("changed", &|d| edit(d, &|l| l[1] = l[1].replace("alice", "bob__")), Fault::Changed),
        ("mac changed", &|d| edit(d, &|l| l[1] = l[1].replace("\"}", "0\"}")), Fault::NoLine),
        ("moved", &|d| edit(d, &|l| l.swap(1, 2)), Fault::Moved),
        ("repeated", &|d| edit(d, &|l| l.insert(2, l[1].clone())), Fault::Moved),
        ("no line", &|d| edit(d, &|l| l.insert(1, "hello".into())), Fault::NoLine),
        ("file removed", &|d| std::fs::remove_file(file(d, 2)).unwrap(), Fault::NoFile),
        ("head removed", &|d| std::fs::remove_file(files::head_path(d)).unwrap(), Fault::NoHead),
        ("head changed", &|d| std::fs::write(files::head_path(d), [1; 152]).unwrap(), Fault::NoHead),
        (
            "torn",
            &|d| {
                let text = std::fs::read(file(d, 2)).unwrap();
                std::fs::write(file(d, 2), &text[..text.len() - 9]).unwrap();
            },
            Fault::Torn,
        ),
    ];
    for (name, change, fault) in cases {
        let (_tmp, dir) = filled(30);
        change(&dir);
        assert!(faults(&dir).contains(&fault), "{name}: {:?}", faults(&dir));
    }
}

/// Removed lines are told by their numbers; those at the end by the head, whole files too.
#[test]
fn removed_lines_are_named() {
    let (_tmp, dir) = filled(30);
    let path = file(&dir, 2);
    let mut all = lines(&path);
    let seq = |line: &String| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap();
    let gone = seq(&all.remove(1));
    put(&path, &all);
    assert_eq!(faults(&dir), [Fault::Missing(gone, gone)]);

    let (_tmp, dir) = filled(30);
    let last = *files::numbers(&dir).unwrap().last().unwrap();
    let all = lines(&file(&dir, last));
    let from = seq(&all[0]);
    put(&file(&dir, last), &[]);
    assert_eq!(faults(&dir), [Fault::Cut(from, 30)]);
    std::fs::remove_file(file(&dir, last)).unwrap();
    assert_eq!(faults(&dir), [Fault::NoFile, Fault::Cut(from, 30)]);
}

/// The log of another key does not verify, and is not written to.
#[test]
fn another_key_does_not_verify() {
    let (_tmp, dir) = filled(3);
    let other = MacKey::new(Secret::from_slice(&[8; 32]).unwrap());
    let report = verify(&dir, &other).unwrap();
    assert_eq!((report.good, report.findings.len()), (0, 4));
    assert!(matches!(Log::open(&dir, other, small()), Err(AuditError::Head(_))));
}

/// A line whose writer died before the head was written is taken in; half a line is cut off; both logs verify.
#[test]
fn a_crash_between_line_and_head_is_mended() {
    for cut in [0, 1, 20] {
        let (_tmp, dir) = filled(2);
        let head = std::fs::read(files::head_path(&dir)).unwrap();
        let log = Log::open(&dir, key(), small()).unwrap();
        write(&log, "alice", "third");
        drop(log);
        std::fs::write(files::head_path(&dir), &head).unwrap();
        let text = std::fs::read(file(&dir, 1)).unwrap();
        std::fs::write(file(&dir, 1), &text[..text.len() - cut]).unwrap();
        let log = Log::open(&dir, key(), small()).unwrap();
        write(&log, "alice", "next");
        drop(log);
        let report = verify(&dir, &key()).unwrap();
        assert!(report.is_clean(), "{cut}: {:?}", report.findings);
        assert_eq!(report.good, if cut == 0 { 4 } else { 3 });
    }
}

/// What a power cut took shows as such; the log goes on, and the gap stays visible.
#[test]
fn a_tail_that_a_power_cut_took_is_told_apart() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("audit");
    let log = Log::open(&dir, key(), Settings::default()).unwrap();
    write(&log, "alice", "1");
    log.sync().unwrap();
    let kept = std::fs::read(file(&dir, 1)).unwrap();
    write(&log, "alice", "2");
    let head = std::fs::read(files::head_path(&dir)).unwrap();
    drop(log);
    std::fs::write(files::head_path(&dir), head).unwrap();
    std::fs::write(file(&dir, 1), &kept).unwrap();
    assert_eq!(faults(&dir), [Fault::Unsynced(2, 2)]);
    let log = Log::open(&dir, key(), small()).unwrap();
    write(&log, "alice", "3");
    drop(log);
    assert_eq!(faults(&dir), [Fault::Missing(2, 2)]);
}

/// Two processes (here: two logs) write in turns, over rotations, into one chain.
#[test]
fn two_writers_share_one_chain() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("audit");
    std::thread::scope(|s| {
        for user in ["alice", "bob"] {
            let dir = &dir;
            s.spawn(move || {
                let log = Log::open(dir, key(), small()).unwrap();
                std::thread::scope(|s| {
                    for _ in 0..2 {
                        s.spawn(|| (0..50).for_each(|n| write(&log, user, &n.to_string())));
                    }
                });
            });
        }
    });
    let report = verify(&dir, &key()).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!(report.good, 200);
}

/// Files beyond the number to keep go, and the rest verifies without them.
#[test]
fn old_files_go() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("audit");
    let log = Log::open(&dir, key(), Settings { keep: Some(3), ..small() }).unwrap();
    (0..60).for_each(|n| write(&log, "alice", &n.to_string()));
    drop(log);
    assert_eq!(files::numbers(&dir).unwrap().len(), 3);
    let report = verify(&dir, &key()).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!(report.range.unwrap().1, 60);
}

/// Events are found by key, file, principal, action, time and failure; no secret stands in the log.
#[test]
fn events_are_found_by_what_is_asked() {
    let (_tmp, dir) = filled(20);
    let log = Log::open(&dir, key(), small()).unwrap();
    write(&log, "eve", "f3");
    drop(log);
    let count = |filter: Filter| {
        let mut n = 0;
        query(&dir, &filter, |_| {
            n += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
        n
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(count(Filter::default()), 21);
    assert_eq!(count(Filter { key: some("k1"), ..Filter::default() }), 21);
    assert_eq!(count(Filter { key: some("k2"), ..Filter::default() }), 0);
    assert_eq!(count(Filter { context: some("f3"), ..Filter::default() }), 2);
    assert_eq!(count(Filter { context: some("file=f3"), ..Filter::default() }), 2);
    assert_eq!(count(Filter { context: some("other=f3"), ..Filter::default() }), 0);
    assert_eq!(count(Filter { principal: some("user/eve"), ..Filter::default() }), 1);
    assert_eq!(count(Filter { action: some("Encrypt"), ..Filter::default() }), 0);
    assert_eq!(count(Filter { errors: true, ..Filter::default() }), 1);
    assert_eq!(
        count(Filter { since: some("2026-11-26"), until: some("2026-11-27"), ..Filter::default() }),
        21
    );
    assert_eq!(count(Filter { since: some("2026-11-27"), ..Filter::default() }), 0);
    let newest = tail(&dir, &Filter::default(), 2).unwrap();
    assert_eq!(newest.len(), 2);
    assert!(newest[0].line.contains("user/eve"));
    for number in files::numbers(&dir).unwrap() {
        let text = std::fs::read_to_string(file(&dir, number)).unwrap();
        assert!(!text.contains("SECRET"), "{text}");
    }
}

/// An event has CloudTrail's members.
#[test]
fn events_have_the_form_of_cloudtrail() {
    let (_tmp, dir) = filled(1);
    let event: Value = serde_json::from_str(&lines(&file(&dir, 1))[0]).unwrap();
    assert_eq!(event["eventTime"], "2026-11-26T00:00:00Z");
    assert_eq!(event["userIdentity"]["type"], "IAMUser");
    assert_eq!(event["userIdentity"]["userName"], "alice");
    assert_eq!(event["eventSource"], "kms.amazonaws.com");
    assert_eq!(event["requestParameters"], json!({ "keyId": "k1", "encryptionContext": { "file": "f0" } }));
    assert_eq!(event["responseElements"], Value::Null);
    assert_eq!(event["readOnly"], true);
    assert_eq!(event["resources"][0]["type"], "AWS::KMS::Key");
    assert_eq!(event["eventType"], "AwsApiCall");
}

/// Appending costs microseconds. The time of the test, in `--release`, is that of 100,000 events.
#[test]
#[ignore = "a measurement"]
fn measure_append() {
    let tmp = tempfile::tempdir().unwrap();
    let log = Log::open(&tmp.path().join("audit"), key(), Settings::default()).unwrap();
    let begin = std::time::Instant::now();
    (0..100_000).for_each(|_| write(&log, "alice", "file"));
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?} an event", begin.elapsed() / 100_000);
}

/// Lines that are written at once chain as those that are written one by one do, also over the end of a file, while
/// others write theirs and the log is synced all the time.
#[test]
fn batches_chain_beside_syncs() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("audit");
    let log = Log::open(&dir, key(), small()).unwrap();
    let parameters = json!({ "KeyId": "k1" });
    let keys = ["arn:aws:kms:us-east-1:111122223333:key/k1".to_owned()];
    let event = Event {
        time_ms: 1_795_651_200_000,
        name: "GenerateDataKey",
        identity: None,
        region: "us-east-1",
        account: "111122223333",
        source: "",
        user_agent: "",
        via: None,
        parameters: &parameters,
        keys: &keys,
        error: None,
        request_id: "r",
        count: 1,
    };
    log.append(&[]).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let syncing = scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                log.sync().unwrap();
            }
        });
        let writing = [1_usize, 7, 200].map(|size| {
            let (log, event) = (&log, &event);
            scope.spawn(move || (0..5).for_each(|_| log.append(&vec![*event; size]).unwrap()))
        });
        for thread in writing {
            thread.join().unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        syncing.join().unwrap();
    });
    log.sync().unwrap();
    drop(log);
    let report = verify(&dir, &key()).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!(report.range, Some((1, 5 * 208)));
    assert!(report.files > 20, "{}", report.files);
}

/// The thread that syncs can be ended: what was written is synced by then, and the next line starts another one.
#[test]
fn a_log_that_settles_goes_on() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("audit");
    let log = Log::open(&dir, key(), Settings { sync_every: Duration::from_secs(600), ..small() }).unwrap();
    for n in 0..3 {
        write(&log, "alice", &n.to_string());
        log.settle();
        let head = std::fs::File::open(files::head_path(&dir)).unwrap();
        let head = super::head::Head::load(&head, &files::head_path(&dir), &key()).unwrap();
        assert_eq!(head.synced, head.last.seq, "line {n}");
    }
}
