//! Sockets: binding, accepting, and the time and room that each connection gets.

use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_rustls::TlsAcceptor;

use super::patience::Patient;
use super::{GRACE, ServeError, Shared, http, tls};

/// Time for the head of a request, from the end of the one before: also the longest idle time.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Time in which a client must take some of an answer.
const WRITE_TIME: Duration = Duration::from_secs(30);
/// Time for a TLS handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Bytes of one connection's read buffer; a head must fit.
const BUFFER: usize = 64 << 10;
/// Pause after a failing accept (no descriptors left): the loop must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An address that is listened on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// `http://` or `https://`.
    Tcp {
        /// Address and port.
        at: SocketAddr,
        /// Whether it speaks TLS.
        tls: bool,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { at, tls: true } => write!(f, "https://{at}"),
            Self::Tcp { at, tls: false } => write!(f, "http://{at}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Where a connection comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    Tcp {
        from: IpAddr,
        tls: bool,
    },
    Unix,
    /// The owner of the store.
    Control,
}

/// A bound socket.
pub(super) struct Listener {
    pub(super) address: Address,
    /// Of a Unix socket, to be removed at the end.
    pub(super) path: Option<PathBuf>,
    socket: Socket,
    tls: Option<TlsAcceptor>,
    is_control: bool,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A bound socket within the runtime.
pub(super) struct Active {
    socket: ActiveSocket,
    tls: Option<TlsAcceptor>,
    is_control: bool,
}

enum ActiveSocket {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

impl Listener {
    /// The address for clients.
    pub(super) fn public(
        listen: &str,
        pems: Option<&(PathBuf, PathBuf)>,
        allow_plain: bool,
    ) -> Result<Self, ServeError> {
        let tls = pems.map(|(cert, key)| tls::acceptor(cert, key)).transpose()?;
        if let Some(path) = listen.strip_prefix("unix:") {
            return Self::unix(Path::new(path), 0o660, tls, false);
        }
        let refuse = || ServeError::Address(listen.to_owned());
        let at = listen.to_socket_addrs().map_err(|_| refuse())?.next().ok_or_else(refuse)?;
        if tls.is_none() && !at.ip().is_loopback() && !allow_plain {
            return Err(ServeError::Plain(listen.to_owned()));
        }
        let socket = TcpListener::bind(at).map_err(ServeError::io(listen))?;
        socket.set_nonblocking(true).map_err(ServeError::io(listen))?;
        let at = socket.local_addr().map_err(ServeError::io(listen))?;
        let address = Address::Tcp { at, tls: tls.is_some() };
        Ok(Self { address, path: None, socket: Socket::Tcp(socket), tls, is_control: false })
    }

    /// The owner's socket in the store's directory, which nobody else may enter.
    pub(super) fn control(path: &Path) -> Result<Self, ServeError> {
        Self::unix(path, 0o600, None, true)
    }

    fn unix(path: &Path, mode: u32, tls: Option<TlsAcceptor>, is_control: bool) -> Result<Self, ServeError> {
        let what = || format!("unix:{}", path.display());
        // A socket that a killed server left behind; one that answers is another server's.
        if std::os::unix::net::UnixStream::connect(path).is_err() {
            let is_socket = std::fs::symlink_metadata(path)
                .is_ok_and(|m| std::os::unix::fs::FileTypeExt::is_socket(&m.file_type()));
            if is_socket {
                std::fs::remove_file(path).map_err(ServeError::io(what()))?;
            }
        }
        let socket = UnixListener::bind(path).map_err(ServeError::io(what()))?;
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path, permissions).map_err(ServeError::io(what()))?;
        socket.set_nonblocking(true).map_err(ServeError::io(what()))?;
        let address = Address::Unix(path.into());
        Ok(Self { address, path: Some(path.into()), socket: Socket::Unix(socket), tls, is_control })
    }

    /// Hands the socket to the runtime; to be called inside it.
    pub(super) fn activate(self) -> Result<Active, ServeError> {
        let what = self.address.to_string();
        let socket = match self.socket {
            Socket::Tcp(s) => {
                ActiveSocket::Tcp(tokio::net::TcpListener::from_std(s).map_err(ServeError::io(what))?)
            }
            Socket::Unix(s) => {
                ActiveSocket::Unix(tokio::net::UnixListener::from_std(s).map_err(ServeError::io(what))?)
            }
        };
        Ok(Active { socket, tls: self.tls, is_control: self.is_control })
    }
}

/// Accepts until it is told to stop. A connection holds a place of the room for as long as it lives.
pub(super) async fn serve(listener: Active, shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut open = tokio::task::JoinSet::new();
    loop {
        // The owner gets in also when the room is full.
        let place = if listener.is_control {
            None
        } else {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                place = shared.room.clone().acquire_owned() => place.ok(),
            }
        };
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = accept(&listener) => accepted,
        };
        while open.try_join_next().is_some() {}
        match accepted {
            Ok((stream, origin)) => {
                let work =
                    connection(stream, listener.tls.clone(), origin, shared.clone(), stop.clone(), place);
                open.spawn(work);
            }
            Err(error) => {
                log::warn!("the KMS server could not accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(GRACE, async { while open.join_next().await.is_some() {} }).await;
}

/// A stream of either kind.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

async fn accept(listener: &Active) -> std::io::Result<(Box<dyn Stream>, Origin)> {
    match &listener.socket {
        ActiveSocket::Tcp(socket) => {
            let (stream, peer) = socket.accept().await?;
            // An answer is one small write: it must not wait for the acknowledgement of the one before.
            let _ = stream.set_nodelay(true);
            let tls = listener.tls.is_some();
            Ok((Box::new(Patient::new(stream, WRITE_TIME)), Origin::Tcp { from: peer.ip(), tls }))
        }
        ActiveSocket::Unix(socket) => {
            let (stream, _) = socket.accept().await?;
            if !listener.is_control {
                return Ok((Box::new(Patient::new(stream, WRITE_TIME)), Origin::Unix));
            }
            let peer = stream.peer_cred()?.uid();
            let me = rustix::process::geteuid().as_raw();
            if peer != me && peer != 0 {
                return Err(std::io::Error::other(format!("user {peer} may not use the control socket")));
            }
            Ok((Box::new(stream), Origin::Control))
        }
    }
}

async fn connection(
    stream: Box<dyn Stream>,
    tls: Option<TlsAcceptor>,
    origin: Origin,
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
    place: Option<OwnedSemaphorePermit>,
) {
    let _place = place;
    let stream: Box<dyn Stream> = match tls {
        None => stream,
        Some(tls) => match tokio::time::timeout(HANDSHAKE_TIME, tls.accept(stream)).await {
            Ok(Ok(stream)) => Box::new(stream),
            // A client that does not get through the handshake has seen why.
            Ok(Err(_)) | Err(_) => return,
        },
    };
    talk(stream, origin, shared, stop).await;
}

async fn talk(stream: Box<dyn Stream>, origin: Origin, shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { http::answer(&shared, request, origin).await }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    let stopped = tokio::select! {
        // A client that breaks off is no event.
        _ = served.as_mut() => false,
        _ = stop.wait_for(|stop| *stop) => true,
    };
    if stopped {
        served.as_mut().graceful_shutdown();
        let _ = served.await;
    }
}
