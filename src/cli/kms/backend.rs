//! Where a command's action is done: in the store, by the server that holds the store, or by a server at a URL.

use std::error::Error;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use zeroize::Zeroizing;

use crate::kms::server::CONTROL_SOCKET;
use crate::kms::{Caller, Engine, KmsError, Scope, sign_post};

/// How long a server may take for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest answer that is read.
const MAX_ANSWER: u64 = 16 << 20;
/// Certificates of this system, where no others are named.
const SYSTEM_CAS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Does actions.
pub(super) enum Backend {
    /// In this process.
    Store(Box<Engine>, Scope),
    /// The server that holds the store, asked as its owner.
    Control(UnixStream, Scope),
    /// A server or AWS, asked by signed requests.
    Url(Remote),
}

/// A server at a URL.
pub(super) struct Remote {
    pub(super) url: String,
    pub(super) region: String,
    pub(super) access_key: String,
    pub(super) secret: Zeroizing<String>,
    pub(super) ca_bundle: Option<std::path::PathBuf>,
}

/// The control socket of the server that holds the store in `dir`, where one answers.
pub(super) fn control(dir: &Path) -> Option<UnixStream> {
    UnixStream::connect(dir.join(CONTROL_SOCKET)).ok()
}

impl Backend {
    /// One action of AWS's API.
    pub(super) fn call(&mut self, action: &str, input: Value) -> Result<Value, Box<dyn Error>> {
        match self {
            Self::Store(engine, scope) => Ok(engine.call(action, input, &Caller::root(scope.clone()))?),
            Self::Control(socket, scope) => {
                let scope = format!("{}/{}", scope.account, scope.region);
                let headers = [("X-Envelopefs-Scope", scope)];
                exchange(socket, "localhost", &format!("TrentService.{action}"), &headers, &input, &mut false)
            }
            Self::Url(remote) => remote.call(action, &input),
        }
    }

    /// One action of the store's owner.
    pub(super) fn manage(&mut self, action: &str, input: &Value) -> Result<Value, Box<dyn Error>> {
        match self {
            Self::Store(engine, _) => Ok(engine.manage(action, input)?),
            Self::Control(socket, _) => {
                exchange(socket, "localhost", &format!("EnvelopeFS.{action}"), &[], input, &mut false)
            }
            Self::Url(_) => {
                Err("only the owner of a store manages its principals: run this beside the store".into())
            }
        }
    }
}

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

/// An open connection to a server.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    host: String,
    /// The server said that it ends the connection.
    is_over: bool,
}

impl Connection {
    /// One signed request.
    pub(super) fn call(
        &mut self,
        remote: &Remote,
        action: &str,
        input: &Value,
    ) -> Result<Value, Box<dyn Error>> {
        if self.is_over {
            *self = remote.open()?;
        }
        let target = format!("TrentService.{action}");
        let body = input.to_string();
        let credentials = (remote.access_key.as_str(), remote.secret.as_str());
        let headers = sign_post(credentials, (&remote.region, "kms"), &self.host, &target, body.as_bytes());
        exchange(&mut self.stream, &self.host, &target, &headers, input, &mut self.is_over)
    }
}

impl Remote {
    fn call(&self, action: &str, input: &Value) -> Result<Value, Box<dyn Error>> {
        self.open()?.call(self, action, input)
    }

    /// Connects.
    pub(super) fn open(&self) -> Result<Connection, Box<dyn Error>> {
        let (stream, host): (Box<dyn Stream>, String) = if let Some(path) = self.url.strip_prefix("unix:") {
            let socket = UnixStream::connect(path).map_err(|e| format!("{path}: {e}"))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            (Box::new(socket), "localhost".into())
        } else if let Some(host) = self.url.strip_prefix("http://") {
            let host = host.trim_end_matches('/');
            (Box::new(connect(host, 80)?), host.to_owned())
        } else if let Some(host) = self.url.strip_prefix("https://") {
            let host = host.trim_end_matches('/');
            (Box::new(self.tls(host)?), host.to_owned())
        } else {
            return Err(format!("{}: not a URL of http://, https:// or unix:", self.url).into());
        };
        Ok(Connection { stream, host, is_over: false })
    }

    fn tls(&self, host: &str) -> Result<impl Read + Write + use<>, Box<dyn Error>> {
        use rustls::pki_types::pem::PemObject as _;
        use rustls::pki_types::{CertificateDer, ServerName};
        let bundle = self.ca_bundle.as_deref().unwrap_or(Path::new(SYSTEM_CAS));
        let named = |e: &dyn std::fmt::Display| format!("{}: {e}", bundle.display());
        let mut roots = rustls::RootCertStore::empty();
        for cert in CertificateDer::pem_file_iter(bundle).map_err(|e| named(&e))? {
            roots.add(cert.map_err(|e| named(&e))?).map_err(|e| named(&e))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let bare = host.rsplit_once(':').map_or(host, |(bare, _)| bare);
        let name = ServerName::try_from(bare.trim_matches(['[', ']']).to_owned())?;
        let session = rustls::ClientConnection::new(Arc::new(config), name)?;
        Ok(rustls::StreamOwned::new(session, connect(host, 443)?))
    }
}

fn connect(host: &str, port: u16) -> Result<TcpStream, Box<dyn Error>> {
    let has_port = host.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok());
    let stream = if has_port { TcpStream::connect(host) } else { TcpStream::connect((host, port)) };
    let stream = stream.map_err(|e| format!("{host}: {e}; is the KMS server running?"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One request and its answer, HTTP/1.1. `over` tells whether the connection is kept.
fn exchange(
    stream: &mut (impl Read + Write + ?Sized),
    host: &str,
    target: &str,
    headers: &[(&str, String)],
    input: &Value,
    over: &mut bool,
) -> Result<Value, Box<dyn Error>> {
    let body = input.to_string();
    let mut request = format!(
        "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/x-amz-json-1.1\r\nX-Amz-Target: {target}\r\n\
         User-Agent: envelopefs/{}\r\nContent-Length: {}\r\n",
        env!("CARGO_PKG_VERSION"),
        body.len()
    );
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    request.push_str(&body);
    let request = Zeroizing::new(request);
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let (status, body, ends) = answer(stream)?;
    *over = ends;
    let value: Value = match body.is_empty() {
        true => Value::Null,
        false => serde_json::from_slice(&body).map_err(|_| "the server's answer is no JSON")?,
    };
    if status == 200 {
        return Ok(value);
    }
    let field = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let kind = field("__type").rsplit('#').next().unwrap_or_default().to_owned();
    let text = if field("message").is_empty() { field("Message") } else { field("message") };
    Err(refusal(&kind, text).into())
}

/// The server's exception as this process's own, so that it ends with the same exit code.
fn refusal(kind: &str, text: &str) -> KmsError {
    let text = if text.is_empty() { kind.to_owned() } else { text.to_owned() };
    match kind {
        "NotFoundException" => KmsError::NotFound(text),
        "InvalidCiphertextException" => KmsError::InvalidCiphertext,
        "IncorrectKeyException" => KmsError::IncorrectKey,
        "ValidationException" => KmsError::Validation(text),
        "KMSInvalidStateException" | "DisabledException" => KmsError::InvalidState(text),
        "AccessDeniedException" => KmsError::Denied(text),
        _ => KmsError::LimitExceeded(format!("{kind}: {text}")),
    }
}

/// Status, body, and whether the server ends the connection.
type Answer = (u16, Zeroizing<Vec<u8>>, bool);

fn answer(stream: &mut (impl Read + ?Sized)) -> Result<Answer, Box<dyn Error>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
    let mut buffer = Zeroizing::new([0; 4096]);
    let (head, length) = loop {
        let n = stream.read(&mut *buffer)?;
        if n == 0 || bytes.len() > 64 << 10 {
            return Err("the server broke off".into());
        }
        bytes.extend_from_slice(buffer.get(..n).unwrap_or_default());
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned();
            break (head, end + 4);
        }
    };
    let status =
        head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or("the server does not speak HTTP")?;
    let mut body = Zeroizing::new(bytes.split_off(length));
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<u64>().ok())
        .ok_or("the server's answer has no length")?;
    if length > MAX_ANSWER {
        return Err("the server's answer is too long".into());
    }
    let missing = usize::try_from(length)?.saturating_sub(body.len());
    let have = body.len();
    body.resize(have + missing, 0);
    stream.read_exact(body.get_mut(have..).unwrap_or_default())?;
    let ends = head.lines().any(|line| line.eq_ignore_ascii_case("connection: close"));
    Ok((status, body, ends))
}
