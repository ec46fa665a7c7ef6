//! A server that speaks the AWS KMS protocol and misbehaves on demand.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde_json::{Value, json};

pub(crate) const ARN: &str = "arn:aws:kms:eu-west-1:123456789012:key/0b6b4e3c-0000-4000-8000-000000000001";

/// How the server answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(dead_code, reason = "not every test uses each")]
pub(crate) enum Mood {
    Good,
    /// After this long.
    Slow(Duration),
    /// With an exception: status and type.
    Error(u16, &'static str),
    /// Not at all: the connection ends.
    Drop,
}

pub(crate) struct Server {
    pub(crate) port: u16,
    pub(crate) state: Arc<State>,
}

pub(crate) struct State {
    mood: Mutex<Mood>,
    /// Action and the service named with it.
    pub(crate) calls: Mutex<Vec<(String, Option<String>)>>,
    now: AtomicUsize,
    /// The most calls that were answered at once.
    pub(crate) most: AtomicUsize,
    stop: AtomicBool,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            mood: Mutex::new(Mood::Good),
            calls: Mutex::default(),
            now: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                if shared.stop.load(SeqCst) {
                    return;
                }
                let shared = shared.clone();
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Self { port, state }
    }

    pub(crate) fn set(&self, mood: Mood) {
        *self.state.mood.lock() = mood;
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.state.calls.lock().iter().map(|(target, _)| target.clone()).collect()
    }

    /// URI of its key.
    pub(crate) fn uri(&self) -> String {
        format!("kms:http://127.0.0.1:{}/{ARN}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.stop.store(true, SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl State {
    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut stream = stream;
        loop {
            let (mut target, mut via, mut length) = (String::new(), None, 0);
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).ok()? == 0 {
                    return None;
                }
                let line = line.trim_end();
                if line.is_empty() {
                    break;
                }
                let Some((name, value)) = line.split_once(": ") else { continue };
                match name.to_ascii_lowercase().as_str() {
                    "x-amz-target" => target = value.trim_start_matches("TrentService.").to_owned(),
                    "x-envelopefs-via" => via = Some(value.to_owned()),
                    "content-length" => length = value.parse().ok()?,
                    _ => {}
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).ok()?;
            self.calls.lock().push((target.clone(), via));
            let running = self.now.fetch_add(1, SeqCst) + 1;
            self.most.fetch_max(running, SeqCst);
            let mood = *self.mood.lock();
            let (status, answer) = match mood {
                Mood::Drop => {
                    self.now.fetch_sub(1, SeqCst);
                    return None;
                }
                Mood::Error(status, code) => (status, json!({ "__type": code, "message": "on\npurpose" })),
                Mood::Good => answer(&target, &serde_json::from_slice(&body).ok()?),
                Mood::Slow(pause) => {
                    std::thread::sleep(pause);
                    answer(&target, &serde_json::from_slice(&body).ok()?)
                }
            };
            self.now.fetch_sub(1, SeqCst);
            let text = answer_text(status, &answer);
            stream.write_all(text.as_bytes()).ok()?;
        }
    }
}

fn answer_text(status: u16, answer: &Value) -> String {
    let body = answer.to_string();
    format!(
        "HTTP/1.1 {status} x\r\ncontent-type: application/x-amz-json-1.1\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A "blob" here holds key, context and plaintext in the clear: what is tested is the client.
fn answer(target: &str, body: &Value) -> (u16, Value) {
    let blob =
        |key: &Value, context: &Value, plain: &str| STANDARD.encode(json!([key, context, plain]).to_string());
    let open = |blob: &Value, context: &Value, key: &Value| -> Option<String> {
        let bytes = STANDARD.decode(blob.as_str()?).ok()?;
        let parts: Value = serde_json::from_slice(&bytes).ok()?;
        let good = parts[0] == *key && parts[1] == *context;
        good.then(|| parts[2].as_str().map(ToOwned::to_owned))?
    };
    let refused = (400, json!({ "__type": "InvalidCiphertextException" }));
    match target {
        "DescribeKey" => (200, json!({ "KeyMetadata": { "KeyId": "x", "Arn": ARN, "Enabled": true } })),
        "GenerateDataKey" => {
            let plain = STANDARD.encode(fresh());
            let made = blob(&body["KeyId"], &body["EncryptionContext"], &plain);
            (200, json!({ "KeyId": ARN, "Plaintext": plain, "CiphertextBlob": made }))
        }
        "Encrypt" => {
            let made = blob(&body["KeyId"], &body["EncryptionContext"], body["Plaintext"].as_str().unwrap());
            (200, json!({ "KeyId": ARN, "CiphertextBlob": made }))
        }
        "Decrypt" => match open(&body["CiphertextBlob"], &body["EncryptionContext"], &body["KeyId"]) {
            Some(plain) => (200, json!({ "KeyId": ARN, "Plaintext": plain })),
            None => refused,
        },
        "ReEncrypt" => {
            match open(&body["CiphertextBlob"], &body["SourceEncryptionContext"], &body["SourceKeyId"]) {
                Some(plain) => {
                    let made = blob(&body["DestinationKeyId"], &body["DestinationEncryptionContext"], &plain);
                    (200, json!({ "KeyId": ARN, "CiphertextBlob": made }))
                }
                None => refused,
            }
        }
        other => panic!("{other}"),
    }
}

fn fresh() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}
