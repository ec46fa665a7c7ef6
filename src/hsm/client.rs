//! A client of one appliance: a pool of connections of one application.

use std::io::Write as _;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cryptoki_sys::*;
use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use zeroize::Zeroizing;

use super::Ck;
use super::address::Address;
use super::error::HsmError;
use super::stream::{Frames, NoFrame, Stream};
use super::tls::ClientTls;
use super::wire::{Bytes, Request, VERSION, Wire, decode, frame};

/// How long connecting may take, and a member's sign of life.
const CONNECT: Duration = Duration::from_secs(3);
/// How long an answer may take: a key pair of 4,096 bits, a domain of old.
const ANSWER: Duration = Duration::from_secs(120);
/// How long an answer is waited for before its appliance is asked for a sign of life.
const QUIET: Duration = Duration::from_secs(2);
/// How long the rest of a begun answer may take.
const REST: Duration = Duration::from_secs(10);
/// Connections that are kept for the next call.
const KEEP: usize = 64;
/// The name that an appliance's certificate carries, whatever its address.
pub(super) const SERVER_NAME: &str = "hsm.envelopefs.internal";

/// What one application has with one appliance.
pub struct Link {
    address: Address,
    tls: Option<Arc<ClientConfig>>,
    /// How long an answer may take.
    answer: Duration,
    /// Names the application; empty before the first connection.
    token: Mutex<Bytes>,
    /// Applications that were begun: another one where the appliance was started anew.
    begun: AtomicU64,
    idle: Mutex<Vec<Frames>>,
}

/// Why no answer came.
pub(super) enum Lost {
    /// No connection could be had: the request was not sent.
    Unreachable(HsmError),
    /// The connection ended, or the appliance fell silent, while the request was on its way.
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
        Ok(Self::with(address, config, ANSWER))
    }

    /// The same, with a configuration that is ready and a bound for each answer.
    pub(super) fn with(address: Address, tls: Option<Arc<ClientConfig>>, answer: Duration) -> Self {
        let token = Mutex::new(Zeroizing::new(Vec::new()));
        Self { address, tls, answer, token, begun: AtomicU64::new(0), idle: Mutex::new(Vec::new()) }
    }

    /// Which application of this process the appliance knows: sessions of another one are gone.
    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
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

    /// Sends a request and gives the answer, for tests.
    #[cfg(test)]
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
        match self.await_answer(&mut frames) {
            Some(answer) => {
                let mut idle = self.idle.lock();
                if idle.len() < KEEP {
                    idle.push(frames);
                }
                Ok(answer)
            }
            None => {
                self.idle.lock().clear();
                Err(Lost::Broken)
            }
        }
    }

    /// Waits for as long as the appliance lives: one that is stopped or cut off is given up in seconds, one that works
    /// on something long is not.
    fn await_answer(&self, frames: &mut Frames) -> Option<Bytes> {
        let begun = Instant::now();
        loop {
            match frames.read(REST, |answer| Zeroizing::new(answer.to_vec())) {
                Ok(answer) => return Some(answer),
                Err(NoFrame::Idle) if begun.elapsed() < self.answer => {
                    let alive = self.connect().ok()?;
                    let mut idle = self.idle.lock();
                    if idle.len() < KEEP {
                        idle.push(alive);
                    }
                }
                Err(_) => return None,
            }
        }
    }

    /// A new connection of this application.
    fn connect(&self) -> Result<Frames, HsmError> {
        let mut frames = Frames::new(self.dial()?, None);
        let known = self.token.lock().clone();
        if !known.is_empty() {
            // Without the lock: where the appliance is silent, nobody waits for who waits for it.
            match self.hello(&mut frames, &known) {
                Ok(_) => return self.steady(frames),
                // The appliance does not know it any more: it was started anew, and so is the application.
                Err(CKR_USER_NOT_LOGGED_IN) => {}
                Err(rv) => return Err(self.refused(rv)),
            }
        }
        // One application: the first connection begins it while the others wait.
        let mut token = self.token.lock();
        if !token.is_empty() && *token != known {
            self.hello(&mut frames, &token).map_err(|rv| self.refused(rv))?;
            return self.steady(frames);
        }
        *token = self.hello(&mut frames, &[]).map_err(|rv| self.refused(rv))?;
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.steady(frames)
    }

    fn refused(&self, rv: CK_RV) -> HsmError {
        let why = match (rv, &self.address) {
            (CKR_DEVICE_REMOVED, Address::Unix(_)) => "the HSM does not answer; is it stopped?".to_owned(),
            (CKR_DEVICE_REMOVED, Address::Tcp(_)) => {
                "the HSM does not answer, or one side's certificate is not by the other's CA".to_owned()
            }
            (rv, _) => {
                format!("it speaks another version of the protocol, or refused this client ({rv:#x})")
            }
        };
        self.unreachable(why)
    }

    /// A connection whose other side has said hello may be quiet for longer.
    fn steady(&self, frames: Frames) -> Result<Frames, HsmError> {
        let set = frames.stream.set_timeout(Some(QUIET)).and_then(|()| frames.stream.set_write_timeout(REST));
        set.map_err(|e| self.unreachable(e.to_string()))?;
        Ok(frames)
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
            (Address::Unix(path), _) => Stream::Unix(dial_unix(path).map_err(failed)?),
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
        stream.set_timeout(Some(CONNECT)).and_then(|()| stream.set_write_timeout(CONNECT)).map_err(failed)?;
        Ok(stream)
    }

    /// Leaves the sockets of a forked parent alone: closing them here tells the appliance nothing. A lock that a thread of
    /// the parent held at the fork is held for ever here, and what it guards is left as it is.
    pub(super) fn forget(&self) {
        let Some(mut idle) = self.idle.try_lock() else { return };
        for frames in idle.drain(..) {
            match frames.stream {
                // Closing a descriptor of TLS would send nothing either; it is dropped without its goodbye.
                Stream::Unix(_) | Stream::Server(_) | Stream::Client(_) => {}
            }
        }
        if let Some(mut token) = self.token.try_lock() {
            *token = Zeroizing::new(Vec::new());
        }
    }
}

/// Connects to a socket; one whose process takes no connections any more is given up.
fn dial_unix(path: &std::path::Path) -> std::io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let address = SocketAddrUnix::new(path)?;
    let begun = Instant::now();
    loop {
        match connect(&socket, &address) {
            Ok(()) => break,
            // The queue of connections is full.
            Err(rustix::io::Errno::AGAIN) if begun.elapsed() < CONNECT => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// CK_RV, then the value.
pub(super) fn parse<T: Wire>(mut answer: &[u8]) -> Ck<T> {
    match u64::take(&mut answer) {
        Some(CKR_OK) => decode(answer).ok_or(CKR_DEVICE_ERROR),
        Some(rv) => Err(rv),
        None => Err(CKR_DEVICE_ERROR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A child that was forked while a thread of its parent connected does not wait for that thread, which it has not.
    #[test]
    fn a_lock_of_the_parent_holds_up_no_child() {
        let link = Link::new(Address::Unix("/nowhere".into()), None).unwrap();
        let (token, idle) = (link.token.lock(), link.idle.lock());
        let (done, waits) = std::sync::mpsc::channel();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                link.forget();
                done.send(()).unwrap();
            });
            let forgotten = waits.recv_timeout(Duration::from_secs(30));
            drop((token, idle));
            forgotten.unwrap();
        });
    }
}
