//! The server against clients that do it right, that do it wrong, and that mean harm.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Address, CONTROL_SOCKET, Server, Settings, Stopper};
use crate::kms::sigv4::sign_at;
use crate::kms::{Engine, Protection};

const SEED: &str = r#"
[[principal]]
name = "tester"
account = "123456789012"
access-key = "TESTKEY"
secret = "TESTSECRET"

[[key]]
id = "1234abcd-12ab-34cd-56ef-1234567890ab"
account = "123456789012"
aliases = ["alias/seeded"]
materials = ["00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"]
"#;

struct Running {
    _tmp: tempfile::TempDir,
    at: SocketAddr,
    control: PathBuf,
    stopper: Stopper,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server ends without a panic");
        }
    }
}

fn start() -> Running {
    start_with(tempfile::tempdir().unwrap(), None)
}

fn start_with(tmp: tempfile::TempDir, tls: Option<(PathBuf, PathBuf)>) -> Running {
    let dir = tmp.path().join("kms");
    let engine = Engine::create(&dir, &Protection::KeyFile).unwrap().hold().unwrap();
    let settings = Settings {
        listen: "127.0.0.1:0".into(),
        tls,
        allow_plain: false,
        test_reset: true,
        seed: Some(SEED.into()),
        console: true,
    };
    let server = Server::bind(Arc::new(engine), &settings).unwrap();
    let Some(Address::Tcp { at, .. }) = server.addresses().first().cloned() else { panic!("no address") };
    let stopper = server.stopper();
    let thread = Some(std::thread::spawn(move || server.run().unwrap()));
    Running { _tmp: tmp, at, control: dir.join(CONTROL_SOCKET), stopper, thread }
}

/// Sends text; gives the status and the rest of the answer.
fn send(stream: &mut (impl std::io::Read + std::io::Write), text: &[u8]) -> (u16, String) {
    stream.write_all(text).unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    // One answer: the head, and as much as it announces.
    loop {
        let n = stream.read(&mut buffer).unwrap();
        answer.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&answer).into_owned();
        if n == 0 {
            return (status(&text), text);
        }
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.to_lowercase().split("content-length: ").nth(1).and_then(|l| l.lines().next()?.parse().ok());
        if length.is_none_or(|l: usize| body.len() >= l) {
            return (status(&text), text);
        }
    }
}

fn status(text: &str) -> u16 {
    text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
}

fn post(headers: &[(&str, String)], body: &str) -> Vec<u8> {
    let mut text = format!(
        "POST / HTTP/1.1\r\nHost: kms\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    (text + "\r\n" + body).into_bytes()
}

impl Running {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.at).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn signed(
        &self,
        target: &str,
        body: &str,
        key: (&str, &str),
        shift: i64,
        service: &str,
    ) -> (u16, String) {
        let now = Timestamp::from_second(Timestamp::now().as_second() + shift).unwrap();
        let [date, authorization] = sign_at(now, key, ("us-east-1", service), "kms", target, body.as_bytes());
        let headers = [date, authorization, ("X-Amz-Target", target.to_owned())];
        send(&mut self.connect(), &post(&headers, body))
    }

    fn call(&self, action: &str, body: &str) -> (u16, String) {
        self.signed(&format!("TrentService.{action}"), body, ("TESTKEY", "TESTSECRET"), 0, "kms")
    }

    fn owner(&self, target: &str, body: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(&self.control).unwrap();
        send(&mut stream, &post(&[("X-Amz-Target", target.to_owned())], body))
    }
}

/// A signed request is answered as AWS does; seeded keys are there under their names.
#[test]
fn signed_requests_are_answered() {
    let server = start();
    let (status, text) = server.call("DescribeKey", r#"{"KeyId":"alias/seeded"}"#);
    assert_eq!(status, 200, "{text}");
    assert!(
        text.contains("arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"),
        "{text}"
    );
    assert!(text.to_lowercase().contains("x-amzn-requestid: "), "{text}");
    let (status, text) =
        server.signed("", "Action=GetCallerIdentity&Version=2011-06-15", ("TESTKEY", "TESTSECRET"), 0, "sts");
    assert!(status == 200 && text.contains("<Account>123456789012</Account>"), "{text}");
    let get = |path: &str| {
        send(&mut server.connect(), format!("GET {path} HTTP/1.1\r\nHost: kms\r\n\r\n").as_bytes())
    };
    assert_eq!(get("/healthz").0, 200);
    assert!(get("/metrics").1.contains("envelopefs_kms_requests_total{action=\"DescribeKey\",error=\"\"} 1"));
    assert_eq!(get("/other").0, 404);
}

/// Who is not who he says is told so, in AWS's words, and nothing is done for him.
#[test]
fn wrong_signatures_are_refused() {
    let server = start();
    let list = "TrentService.ListKeys";
    for (key, shift, service, code) in [
        (("TESTKEY", "wrong"), 0, "kms", "InvalidSignatureException"),
        (("NOBODY", "TESTSECRET"), 0, "kms", "UnrecognizedClientException"),
        (("TESTKEY", "TESTSECRET"), -301, "kms", "Signature expired"),
        (("TESTKEY", "TESTSECRET"), 301, "kms", "Signature not yet current"),
        (("TESTKEY", "TESTSECRET"), 0, "s3", "Credential should be scoped"),
    ] {
        let (status, text) = server.signed(list, "{}", key, shift, service);
        assert!(status == 400 && text.contains(code), "{code}: {text}");
    }
    let target = ("X-Amz-Target", list.to_owned());
    let (status, text) = send(&mut server.connect(), &post(std::slice::from_ref(&target), "{}"));
    assert!(status == 400 && text.contains("MissingAuthenticationTokenException"), "{text}");
    let headers = [target, ("Authorization", "AWS4-HMAC-SHA256 junk".to_owned())];
    assert!(send(&mut server.connect(), &post(&headers, "{}")).1.contains("IncompleteSignatureException"));
    // A signature is worth nothing for another body.
    let [date, authorization] =
        sign_at(Timestamp::now(), ("TESTKEY", "TESTSECRET"), ("us-east-1", "kms"), "kms", list, b"{}");
    let headers = [date, authorization, ("X-Amz-Target", list.to_owned())];
    assert!(send(&mut server.connect(), &post(&headers, "{ }")).1.contains("InvalidSignatureException"));
    // The owner's actions are not for the public address.
    let (_, text) = server.signed("EnvelopeFS.ListPrincipals", "{}", ("TESTKEY", "TESTSECRET"), 0, "kms");
    assert!(text.contains("UnknownOperationException"), "{text}");
}

/// Junk gets AWS's exception, and the server goes on.
#[test]
fn junk_is_answered_and_the_server_goes_on() {
    let server = start();
    assert!(server.call("NoSuchAction", "{}").1.contains("UnknownOperationException"));
    assert!(server.call("ListKeys", "{").1.contains("SerializationException"));
    assert!(server.call("ListKeys", "[]").1.contains("SerializationException"));
    assert!(server.call("ListKeys", "\u{0}\u{1}").1.contains("SerializationException"));
    assert!(
        server
            .call("ListKeys", &format!("{{\"Marker\":{}", "[".repeat(100_000)))
            .1
            .contains("SerializationException")
    );
    assert!(server.call("Encrypt", "{}").1.contains("2 validation errors detected"));
    let large = format!(
        "POST / HTTP/1.1\r\nHost: kms\r\nX-Amz-Target: TrentService.Encrypt\r\nContent-Length: {}\r\n\r\n",
        2 << 20
    );
    let mut stream = server.connect();
    stream.write_all(large.as_bytes()).unwrap();
    // The answer may come, and the connection end, before all of it was taken.
    let _ = stream.write_all(&vec![b'x'; 2 << 20]);
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    assert!(text.is_empty() || text.contains("413"), "{text}");
    for junk in ["\r\n\r\n", "GET", "POST / HTTP/9\r\n\r\n", "\u{16}\u{3}\u{1}\0"] {
        let mut stream = server.connect();
        let _ = stream.write_all(junk.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_string(&mut String::new());
    }
    assert_eq!(server.call("ListKeys", "{}").0, 200);
}

/// A thousand connections that send a byte and wait do not keep others from being served.
#[test]
fn slow_connections_do_not_stop_the_server() {
    let server = start();
    let slow: Vec<TcpStream> = (0..1000)
        .map_while(|_| {
            let mut stream = TcpStream::connect(server.at).ok()?;
            stream.write_all(b"P").ok()?;
            Some(stream)
        })
        .collect();
    // A test process may have 1,024 descriptors, of which each connection takes two here.
    assert!(slow.len() > 200, "{}", slow.len());
    drop(slow.iter().take(20).map(|s| s.shutdown(std::net::Shutdown::Both)).collect::<Vec<_>>());
    let few: Vec<_> = slow.into_iter().take(400).collect();
    assert_eq!(server.call("ListKeys", "{}").0, 200);
    drop(few);
}

/// The owner makes and removes principals through the control socket; a removed one is nobody at once.
#[test]
fn the_owner_manages_principals() {
    let server = start();
    let (status, text) =
        server.owner("EnvelopeFS.CreatePrincipal", r#"{"Name":"bob","Account":"123456789012"}"#);
    assert_eq!(status, 200, "{text}");
    let body: Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let field = |name: &str| body["Principal"][name].as_str().unwrap().to_owned();
    let (access, secret) = (field("AccessKeyId"), field("SecretAccessKey"));
    let list = || server.signed("TrentService.ListKeys", "{}", (&access, &secret), 0, "kms");
    assert_eq!(list().0, 200);
    assert!(!server.owner("EnvelopeFS.ListPrincipals", "{}").1.contains(&secret));
    assert_eq!(
        server.owner("EnvelopeFS.DeletePrincipal", r#"{"Name":"bob","Account":"123456789012"}"#).0,
        200
    );
    assert!(list().1.contains("UnrecognizedClientException"));
    assert_eq!(server.owner("TrentService.ListKeys", "{}").0, 200);
}

/// What an owner says of a boundary or of policies is understood or refused: a principal never gets more because a member
/// had another type or was one too many, nor does the simulator say so.
#[test]
fn what_is_not_understood_binds_or_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let engine = Engine::create(&tmp.path().join("kms"), &Protection::KeyFile).unwrap();
    let deny = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*"}]}"#;
    let document: Value = serde_json::from_str(deny).unwrap();
    let refused = |action: &str, input: &Value| match engine.manage(action, input) {
        Err(error) => assert_eq!(error.code(), "ValidationException", "{action} {input}"),
        Ok(answer) => panic!("{action} {input} gave {answer}"),
    };
    let made = json!({ "Name": "ann", "PermissionsBoundary": deny, "Policies": [] });
    engine.manage("CreatePrincipal", &made).unwrap();
    for wrong in [json!(1), json!(true), json!([deny]), document] {
        refused("CreatePrincipal", &json!({ "Name": "bob", "PermissionsBoundary": wrong }));
        refused("CreatePrincipal", &json!({ "Name": "bob", "Account": [wrong] }));
        refused("SetPrincipalBoundary", &json!({ "Name": "ann", "PermissionsBoundary": wrong }));
        for action in ["CreatePrincipal", "SetPrincipalPolicies"] {
            refused(action, &json!({ "Name": "bob", "Policies": [deny, [wrong]] }));
            refused(action, &json!({ "Name": "bob", "Policies": { "p": wrong } }));
        }
        let asked = json!({ "PrincipalArn": "arn:aws:iam::000000000000:user/ann", "Action": "kms:ListKeys" });
        let texts = ["PermissionsBoundary", "KeyPolicy", "KeyId", "Region", "SourceIp", "ViaService"];
        for member in texts.into_iter().chain(["IdentityPolicies", "ServiceControlPolicies"]) {
            let mut input = asked.clone();
            input[member] = json!({ "inside": wrong });
            refused("SimulatePolicy", &input);
        }
        for member in ["Parameters", "EncryptionContext"] {
            let mut input = asked.clone();
            input[member] = json!([wrong]);
            refused("SimulatePolicy", &input);
        }
    }
    refused("SetPrincipalBoundary", &json!({ "Name": "ann", "PermissionBoundary": deny }));
    // The last one of them denies.
    let mut policies = vec![crate::kms::ADMIN_POLICY; 32];
    policies.push(deny);
    let asked = |member: &str, policies: &[&str]| {
        json!({
            "PrincipalArn": "arn:aws:iam::000000000000:user/eve", "Action": "kms:ListKeys",
            "IdentityPolicies": [crate::kms::ADMIN_POLICY], member: policies,
        })
    };
    for member in ["IdentityPolicies", "ServiceControlPolicies"] {
        refused("SimulatePolicy", &asked(member, &policies));
        let answer = engine.manage("SimulatePolicy", &asked(member, &policies[..32])).unwrap();
        assert_eq!(answer["Allowed"], true, "{answer}");
        let answer = engine.manage("SimulatePolicy", &asked(member, &policies[1..])).unwrap();
        assert_eq!(answer["Allowed"], false, "{answer}");
    }
    // Nothing was changed on the way, and null takes a boundary away.
    let all = engine.manage("ListPrincipals", &json!({})).unwrap();
    assert_eq!(all["Principals"].as_array().unwrap().len(), 1, "{all}");
    assert_eq!(all["Principals"][0]["PermissionsBoundary"], deny);
    let none = json!({ "Name": "ann", "PermissionsBoundary": null });
    engine.manage("SetPrincipalBoundary", &none).unwrap();
    assert_eq!(engine.list_principals().unwrap()[0].boundary, None);
}

/// A reset forgets what was made and brings the seed back: ciphertexts of seeded keys still open.
#[test]
fn a_reset_brings_the_seed_back() {
    let server = start();
    let sealed = server.call("Encrypt", r#"{"KeyId":"alias/seeded","Plaintext":"aGk="}"#).1;
    let sealed: Value = serde_json::from_str(sealed.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    server.call("CreateKey", "{}");
    let reset = send(
        &mut server.connect(),
        b"POST /moto-api/reset HTTP/1.1\r\nHost: kms\r\nContent-Length: 0\r\n\r\n",
    );
    assert_eq!(reset.0, 200);
    assert_eq!(server.call("ListKeys", "{}").1.matches("KeyArn").count(), 1);
    let open = format!(r#"{{"CiphertextBlob":{}}}"#, sealed["CiphertextBlob"]);
    assert!(server.call("Decrypt", &open).1.contains("aGk="));
}

/// Plain HTTP is not offered to other hosts by mistake; a bad address and a taken socket have their messages.
#[test]
fn addresses_are_checked() {
    let tmp = tempfile::tempdir().unwrap();
    let engine = Engine::create(&tmp.path().join("kms"), &Protection::KeyFile).unwrap();
    let engine = Arc::new(engine);
    let bind = |listen: &str| {
        let settings = Settings {
            listen: listen.into(),
            tls: None,
            allow_plain: false,
            test_reset: false,
            seed: None,
            console: false,
        };
        Server::bind(engine.clone(), &settings).map(|_| ()).unwrap_err().to_string()
    };
    assert!(bind("0.0.0.0:0").contains("--tls-cert"));
    assert!(bind("nonsense").contains("HOST:PORT or unix:PATH"));
    std::fs::write(tmp.path().join("file"), "x").unwrap();
    assert!(bind(&format!("unix:{}", tmp.path().join("file").display())).contains("in use"));
}

/// Over TLS the same requests are answered; plain HTTP on that port is not, and ends nothing.
#[test]
fn tls_is_spoken() {
    use rustls::pki_types::ServerName;
    let tmp = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let (cert, key) = (tmp.path().join("cert.pem"), tmp.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let server = start_with(tmp, Some((cert, key)));
    let _ = server.connect().write_all(b"GET /healthz HTTP/1.1\r\n\r\n");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let session =
        rustls::ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
    let mut stream = rustls::StreamOwned::new(session, server.connect());
    let target = "TrentService.ListKeys";
    let [date, authorization] =
        sign_at(Timestamp::now(), ("TESTKEY", "TESTSECRET"), ("us-east-1", "kms"), "kms", target, b"{}");
    let headers = [date, authorization, ("X-Amz-Target", target.to_owned())];
    assert_eq!(send(&mut stream, &post(&headers, "{}")).0, 200);
}
