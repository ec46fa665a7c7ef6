//! A running KMS server, and clients that sign their requests.
//! Each test uses a part of it.
#![allow(dead_code)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;

use envelopefs::kms::quota::Quotas;
use envelopefs::kms::server::{Address, Server, Settings, Stopper};
use envelopefs::kms::{Engine, Protection, sign_post};
use serde_json::{Value, json};

/// The account of every principal here.
pub(crate) const ACCOUNT: &str = "111122223333";

/// A server on a port of its own.
pub(crate) struct Running {
    _tmp: tempfile::TempDir,
    pub(crate) dir: PathBuf,
    pub(crate) at: SocketAddr,
    pub(crate) engine: Arc<Engine>,
    stopper: Stopper,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Who signs.
pub(crate) struct User {
    pub(crate) arn: String,
    pub(crate) key: String,
    pub(crate) secret: String,
}

/// Starts a server with these quotas.
pub(crate) fn start(quotas: &str) -> Running {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path().join("kms");
    let engine = Engine::create(&dir, &Protection::KeyFile).expect("a store");
    let engine = engine.watched().expect("an audit log").with_quotas(Quotas::parse(quotas).expect(quotas));
    let engine = Arc::new(engine.hold().expect("the only one"));
    let settings = Settings {
        listen: "127.0.0.1:0".into(),
        tls: None,
        allow_plain: false,
        test_reset: false,
        seed: None,
        console: true,
    };
    let server = Server::bind(engine.clone(), &settings).expect("an address");
    let Some(Address::Tcp { at, .. }) = server.addresses().first().cloned() else { panic!("no address") };
    let stopper = server.stopper();
    let thread = std::thread::spawn(move || server.run().expect("the server ends well"));
    Running { _tmp: tmp, dir, at, engine, stopper, thread: Some(thread) }
}

impl Running {
    /// Makes a principal; without policies it may do everything that key policies leave to the account.
    pub(crate) fn user(&self, name: &str, policies: &[Value]) -> User {
        let texts: Vec<_> = policies.iter().map(Value::to_string).collect();
        let input = json!({ "Name": name, "Account": ACCOUNT, "Policies": texts });
        let made = self.engine.manage("CreatePrincipal", &input).expect("a principal");
        let text = |field: &str| made["Principal"][field].as_str().expect(field).to_owned();
        User { arn: text("Arn"), key: text("AccessKeyId"), secret: text("SecretAccessKey") }
    }

    /// One signed request; status and answer.
    pub(crate) fn call(&self, user: &User, action: &str, input: &Value) -> (u16, Value) {
        let body = input.to_string();
        let target = format!("TrentService.{action}");
        let host = self.at.to_string();
        let credentials = (user.key.as_str(), user.secret.as_str());
        let mut request = format!("POST / HTTP/1.1\r\nHost: {host}\r\nX-Amz-Target: {target}\r\n");
        request += "Content-Type: application/x-amz-json-1.1\r\nConnection: close\r\n";
        for (name, value) in sign_post(credentials, ("us-east-1", "kms"), &host, &target, body.as_bytes()) {
            request += &format!("{name}: {value}\r\n");
        }
        let (status, _, body) = self.send(&format!("{request}Content-Length: {}\r\n\r\n{body}", body.len()));
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    /// A request as it stands; status, head and body of the answer.
    pub(crate) fn send(&self, request: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.at).expect("a connection");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("HTTP");
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
        (status, head.to_owned(), body.to_owned())
    }

    /// A call that has to succeed.
    pub(crate) fn good(&self, user: &User, action: &str, input: &Value) -> Value {
        let (status, answer) = self.call(user, action, input);
        assert_eq!(status, 200, "{action} {input}: {answer}");
        answer
    }
}
