//! The monitor: what it counts, and that nobody stops it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use super::cluster::pair;
use super::*;
use crate::hsm::monitor::Monitor;

fn watch(hsm: &Hsm) -> Monitor {
    Monitor::start(hsm.appliance.clone().unwrap(), "127.0.0.1:0".parse().unwrap()).unwrap()
}

fn ask(monitor: &Monitor, head: &str) -> String {
    let mut stream = TcpStream::connect(monitor.address()).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn get(monitor: &Monitor, path: &str) -> String {
    ask(monitor, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
}

/// Requests, logins and failures are counted, and what is there is shown; no name of a user or key is.
#[test]
fn the_monitor_counts_what_clients_do() {
    let hsm = Hsm::new();
    let monitor = watch(&hsm);
    let alice = hsm.user("alice");
    let key = alice.generate(&[(CKA_TOKEN, &[1]), (CKA_LABEL, b"my-label")]).unwrap();
    alice.once(Op::Encrypt, gcm(&[1; 12]), key, b"x").unwrap();
    alice.once(Op::Decrypt, gcm(&[1; 12]), key, b"not sealed by it at all").unwrap_err();
    assert!(hsm.manager().login("alice", Role::CryptoUser, "wrong password").is_err());
    let text = get(&monitor, "/metrics");
    for line in [
        "HTTP/1.1 200 OK",
        "envelopefs_hsm_requests_total{kind=\"encrypt\",result=\"ok\"} 1",
        "envelopefs_hsm_requests_total{kind=\"decrypt\",result=\"refused\"} 1",
        "envelopefs_hsm_requests_total{kind=\"generate\",result=\"ok\"} 1",
        "envelopefs_hsm_commands_total{opcode=\"CN_LOGIN\",result=\"ok\"} 2",
        "envelopefs_hsm_commands_total{opcode=\"CN_LOGIN\",result=\"refused\"} 1",
        "envelopefs_hsm_sessions 1",
        "envelopefs_hsm_token_keys 1",
        "envelopefs_hsm_users 4",
        "envelopefs_hsm_up 1",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!text.contains("alice") && !text.contains("my-label"), "{text}");
    assert!(get(&monitor, "/healthz").ends_with("\r\n\r\nok\n"));
    assert!(get(&monitor, "/").starts_with("HTTP/1.1 404"));
    assert!(ask(&monitor, "POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
    let head = ask(&monitor, "HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
}

/// A reader that says nothing, half a request or too much is let go, and the next one is answered; other interfaces are
/// refused.
#[test]
fn a_silent_reader_stops_nobody() {
    let hsm = Hsm::new();
    let monitor = watch(&hsm);
    let silent = TcpStream::connect(monitor.address()).unwrap();
    assert!(ask(&monitor, &"x".repeat(10_000)).is_empty());
    assert!(get(&monitor, "/healthz").contains("ok"));
    drop(silent);
    let appliance = hsm.appliance.clone().unwrap();
    assert!(Monitor::start(appliance, "0.0.0.0:0".parse().unwrap()).is_err());
}

/// A member that is away is named with what it lacks; an HSM that is not activated is not healthy.
#[test]
fn the_monitor_names_members_that_lack_something() {
    let (one, mut two) = pair();
    let monitor = watch(&one);
    let serial = two.here().state.read().meta.serial.clone();
    two.stop();
    one.logged_in("admin", Role::Admin).user_create("carol", Role::CryptoUser, PASSWORD).unwrap();
    let text = get(&monitor, "/metrics");
    assert!(text.contains(&format!("envelopefs_hsm_member_reachable{{serial=\"{serial}\"}} 0")), "{text}");
    assert!(text.contains(&format!("envelopefs_hsm_member_lacks{{serial=\"{serial}\"}} 1")), "{text}");
    let tmp = tempfile::tempdir().unwrap();
    Appliance::create(&tmp.path().join("hsm"), &Protection::KeyFile, Cost::TESTS).unwrap();
    let fresh = Appliance::open(&tmp.path().join("hsm"), None, config()).unwrap();
    let monitor = Monitor::start(fresh, "127.0.0.1:0".parse().unwrap()).unwrap();
    let health = get(&monitor, "/healthz");
    assert!(health.starts_with("HTTP/1.1 503") && health.contains("not activated"), "{health}");
    assert!(get(&monitor, "/metrics").contains("envelopefs_hsm_up 0"));
}
