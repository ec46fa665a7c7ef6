//! A client of one appliance: a pool of connections of one application.

use std::io::Write as _;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use cryptoki_sys::*;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use zeroize::Zeroizing;

use super::Ck;
use super::address::Address;
use super::error::HsmError;
use super::stream::{Frames, Stream};
use super::tls::ClientTls;
use super::wire::{Bytes, Request, VERSION, Wire, decode, frame};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(3);
/// How long an answer may take: a key pair of 4,096 bits, a domain of old.
const ANSWER: Duration = Duration::from_secs(120);
/// Connections that are kept for the next call.
const KEEP: usize = 64;
/// The name that an appliance's certificate carries, whatever its address.
pub(super) const SERVER_NAME: &str = "hsm.envelopefs.internal";

/// What one application has with one appliance.
pub struct Link {
    address: Address,
    tls: Option<Arc<ClientConfig>>,
    /// Names the application; empty before the first connection.
    token: Mutex<Bytes>,
    idle: Mutex<Vec<Frames>>,
}

/// Why no answer came.
pub(super) enum Lost {
    /// No connection could be had: the request was not sent.
    Unreachable(HsmError),
    /// The connection ended while the request was on its way.
    Broken,
}

impl Link {
    /// A client of the appliance at an address; connects at its first call.
    ///
    /// # Errors
    /// TCP without certificates, or certificates that do not decode.
    pub fn new(address: Address, tls: Option<&ClientTls>) -> Result<Self, HsmError> {
        let config = match (&address, tls) {
            (Address::Unix(_), _) => None,
            (Address::Tcp(_), Some(files)) => Some(super::tls::client(files)?),
            (Address::Tcp(_), None) => {
                return Err(HsmError::Refused(format!(
                    "{address}: TCP needs the customer's CA certificate and a client certificate by it (ca, cert, key)"
                )));
            }
        };
        let token = Mutex::new(Zeroizing::new(Vec::new()));
        Ok(Self { address, tls: config, token, idle: Mutex::new(Vec::new()) })
    }

    /// A client that goes on with an application that was begun before.
    pub(super) fn resume(self, token: &[u8]) -> Self {
        *self.token.lock() = Zeroizing::new(token.to_vec());
        self
    }

    pub(super) fn token(&self) -> Bytes {
        self.token.lock().clone()
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Sends a request and gives the answer.
    pub(super) fn call<T: Wire>(&self, request: &Request) -> Ck<T> {
        match self.ask(request) {
            Ok(answer) => parse(&answer),
            Err(Lost::Unreachable(e)) => {
                log::warn!("{e}");
                Err(CKR_DEVICE_REMOVED)
            }
            Err(Lost::Broken) => Err(CKR_DEVICE_REMOVED),
        }
    }

    /// Sends a request; gives the bytes of the answer.
    pub(super) fn ask(&self, request: &Request) -> Result<Bytes, Lost> {
        let message = frame(request);
        let kept = self.idle.lock().pop();
        let (mut frames, old) = match kept {
            Some(frames) => (frames, true),
            None => (self.connect().map_err(Lost::Unreachable)?, false),
        };
        if frames.stream.write_all(&message).and_then(|()| frames.stream.flush()).is_err() {
            // A kept connection may have ended long ago, with its appliance: a new one tells.
            self.idle.lock().clear();
            if !old {
                return Err(Lost::Broken);
            }
            frames = self.connect().map_err(Lost::Unreachable)?;
            frames.stream.write_all(&message).map_err(|_| Lost::Broken)?;
        }
        match frames.read(ANSWER, |answer| Zeroizing::new(answer.to_vec())) {
            Ok(answer) => {
                let mut idle = self.idle.lock();
                if idle.len() < KEEP {
                    idle.push(frames);
                }
                Ok(answer)
            }
            Err(_) => {
                self.idle.lock().clear();
                Err(Lost::Broken)
            }
        }
    }

    /// A new connection of this application.
    fn connect(&self) -> Result<Frames, HsmError> {
        let mut frames = Frames::new(self.dial()?);
        // One application: the first connection begins it while the others wait.
        let mut token = self.token.lock();
        let first = self.hello(&mut frames, &token);
        let named = match first {
            // The appliance does not know it any more: it was started anew, and so is the application.
            Err(CKR_USER_NOT_LOGGED_IN) if !token.is_empty() => self.hello(&mut frames, &[]),
            other => other,
        };
        match named {
            Ok(named) => {
                *token = named;
                Ok(frames)
            }
            Err(rv) => Err(self.unreachable(format!(
                "it speaks another version of the protocol, or refused this client ({rv:#x})"
            ))),
        }
    }

    fn hello(&self, frames: &mut Frames, token: &[u8]) -> Ck<Bytes> {
        let hello = Request::Hello { version: VERSION, app: Zeroizing::new(token.to_vec()) };
        frames.stream.write_all(&frame(&hello)).map_err(|_| CKR_DEVICE_REMOVED)?;
        frames.stream.flush().map_err(|_| CKR_DEVICE_REMOVED)?;
        let answer = frames.read(CONNECT, |a| Zeroizing::new(a.to_vec())).map_err(|_| CKR_DEVICE_REMOVED)?;
        parse(&answer)
    }

    fn unreachable(&self, why: String) -> HsmError {
        HsmError::Unreachable { at: self.address.to_string(), why }
    }

    fn dial(&self) -> Result<Stream, HsmError> {
        let failed = |e: std::io::Error| {
            self.unreachable(format!("no HSM answers ({e}); is `envelopefs hsm serve` running?"))
        };
        let stream = match (&self.address, &self.tls) {
            (Address::Unix(path), _) => Stream::Unix(UnixStream::connect(path).map_err(failed)?),
            (Address::Tcp(host), Some(config)) => {
                let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
                let mut socket = None;
                for at in host.to_socket_addrs().map_err(failed)? {
                    match TcpStream::connect_timeout(&at, CONNECT) {
                        Ok(connected) => {
                            socket = Some(connected);
                            break;
                        }
                        Err(e) => last = e,
                    }
                }
                let Some(socket) = socket else { return Err(failed(last)) };
                socket.set_nodelay(true).map_err(failed)?;
                let name = ServerName::try_from(SERVER_NAME).map_err(|e| self.unreachable(e.to_string()))?;
                let tls = ClientConnection::new(config.clone(), name);
                let tls = tls.map_err(|e| self.unreachable(e.to_string()))?;
                Stream::Client(Box::new(StreamOwned::new(tls, socket)))
            }
            (Address::Tcp(_), None) => return Err(self.unreachable("TCP needs certificates".into())),
        };
        stream.set_timeout(Some(ANSWER)).and_then(|()| stream.set_write_timeout(ANSWER)).map_err(failed)?;
        Ok(stream)
    }

    /// Leaves the sockets of a forked parent alone: closing them here tells the appliance nothing.
    pub(super) fn forget(&self) {
        for frames in self.idle.lock().drain(..) {
            match frames.stream {
                // Closing a descriptor of TLS would send nothing either; it is dropped without its goodbye.
                Stream::Unix(_) | Stream::Server(_) | Stream::Client(_) => {}
            }
        }
        *self.token.lock() = Zeroizing::new(Vec::new());
    }
}

/// CK_RV, then the value.
pub(super) fn parse<T: Wire>(mut answer: &[u8]) -> Ck<T> {
    match u64::take(&mut answer) {
        Some(CKR_OK) => decode(answer).ok_or(CKR_DEVICE_ERROR),
        Some(rv) => Err(rv),
        None => Err(CKR_DEVICE_ERROR),
    }
}
