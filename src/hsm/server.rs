//! The appliance's sockets: who may connect. What comes of a connection stands in `pool`.

use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, epoll, eventfd, poll};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::address::Address;
use super::appliance::Appliance;
use super::error::HsmError;
use super::pool::{Peer, Pool};
use super::stream::Stream;

/// Who may connect to a Unix socket, besides the appliance's own user and root.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    /// User ids.
    pub uids: Vec<u32>,
}

/// What the accepting thread knows.
struct Door {
    pool: Arc<Pool>,
    listener: Listener,
    tls: Option<Arc<ServerConfig>>,
    peers: Peers,
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A running server; ends when dropped.
pub struct Server {
    pool: Arc<Pool>,
    wake: Arc<OwnedFd>,
    threads: Vec<std::thread::JoinHandle<()>>,
    address: Address,
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// An address that cannot be had; TCP on an appliance without certificate.
    pub fn start(appliance: Arc<Appliance>, at: &Address, peers: Peers) -> Result<Self, HsmError> {
        let (listener, address, tls) = listen(&appliance, at)?;
        let os = |e: rustix::io::Errno| HsmError::Unreachable { at: at.to_string(), why: e.to_string() };
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(os)?);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(os)?;
        epoll::add(&epoll, &*wake, epoll::EventData::new_u64(0), epoll::EventFlags::IN).map_err(os)?;
        let pool = Pool::new(appliance, epoll);
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(work).map_err(HsmError::io(name))
        };
        let (door, watched, woken) =
            (Door { pool: pool.clone(), listener, tls, peers }, pool.clone(), wake.clone());
        let threads = vec![
            spawn("hsm-accept", Box::new(move || door.accept_all(&woken)))?,
            spawn("hsm-parked", Box::new(move || watched.watch()))?,
        ];
        Ok(Self { pool, wake, threads, address })
    }

    /// Where it listens: the port, where the system chose one.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Connections at this moment.
    pub fn connections(&self) -> usize {
        self.pool.connections()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.pool.stop.store(true, Ordering::SeqCst);
        let _ = rustix::io::write(&*self.wake, &[1; 8]);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.pool.end();
        if let Address::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
    }
}

type Listening = (Listener, Address, Option<Arc<ServerConfig>>);

fn listen(appliance: &Appliance, at: &Address) -> Result<Listening, HsmError> {
    let refused = |e: std::io::Error| HsmError::Unreachable { at: at.to_string(), why: e.to_string() };
    match at {
        Address::Unix(path) => {
            // A socket that nobody answers on is left over from a killed appliance.
            if UnixStream::connect(path).is_ok() {
                let why = "another process listens there".to_owned();
                return Err(HsmError::Unreachable { at: at.to_string(), why });
            }
            if std::fs::symlink_metadata(path)
                .is_ok_and(|m| std::os::unix::fs::FileTypeExt::is_socket(&m.file_type()))
            {
                std::fs::remove_file(path).map_err(refused)?;
            }
            let listener = UnixListener::bind(path).map_err(refused)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(refused)?;
            Ok((Listener::Unix(listener), at.clone(), None))
        }
        Address::Tcp(host) => {
            let config = {
                let state = appliance.state.read();
                let meta = &state.meta;
                if meta.certificate.is_empty() {
                    return Err(HsmError::Refused(
                        "this HSM has no certificate yet: sign its CSR with your CA, then run: envelopefs hsm cluster \
                         initialize"
                            .into(),
                    ));
                }
                super::tls::server(meta.certificate.as_bytes(), meta.tls_key.as_bytes(), meta.ca.as_bytes())?
            };
            let listener = TcpListener::bind(host).map_err(refused)?;
            let address = Address::Tcp(listener.local_addr().map_err(refused)?.to_string());
            Ok((Listener::Tcp(listener), address, Some(config)))
        }
    }
}

impl Door {
    fn accept_all(&self, wake: &OwnedFd) {
        let fd = match &self.listener {
            Listener::Unix(l) => l.as_fd(),
            Listener::Tcp(l) => l.as_fd(),
        };
        loop {
            let mut both = [PollFd::new(&fd, PollFlags::IN), PollFd::new(wake, PollFlags::IN)];
            let _ = poll(&mut both, None);
            if self.pool.stop.load(Ordering::SeqCst) {
                return;
            }
            match self.accept() {
                Ok(Some((stream, peer))) => self.pool.admit(stream, peer),
                Ok(None) => {}
                Err(e) => {
                    log::warn!("a connection could not be accepted: {e}");
                    // Out of descriptors: trying again at once would spin.
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }

    fn accept(&self) -> std::io::Result<Option<(Stream, Peer)>> {
        match &self.listener {
            Listener::Unix(l) => {
                let (stream, _) = l.accept()?;
                let uid = rustix::net::sockopt::socket_peercred(&stream)?.uid.as_raw();
                let own = rustix::process::geteuid().as_raw();
                if uid == own || uid == 0 || self.peers.uids.contains(&uid) {
                    stream.set_read_timeout(Some(super::stream::LINGER))?;
                    return Ok(Some((Stream::Unix(stream), Peer::Uid(uid))));
                }
                log::warn!("a connection of user {uid} was refused; allow it with --allow-uid {uid}");
                Ok(None)
            }
            Listener::Tcp(l) => {
                let (stream, from) = l.accept()?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                let Some(tls) = &self.tls else { return Ok(None) };
                match ServerConnection::new(tls.clone()) {
                    Ok(connection) => {
                        let stream = Stream::Server(Box::new(StreamOwned::new(connection, stream)));
                        Ok(Some((stream, Peer::Host(from.ip()))))
                    }
                    Err(e) => {
                        log::warn!("TLS: {e}");
                        Ok(None)
                    }
                }
            }
        }
    }
}
