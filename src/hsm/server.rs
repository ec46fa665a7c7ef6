//! The appliance's socket: a thread for each connection that is working, none for one that is idle.
//!
//! A connection that asks for nothing within [`LINGER`] is parked: one thread watches all parked ones and hands them
//! back to a worker when something comes. So ten thousand idle connections cost descriptors only, and a busy one pays
//! two system calls a request.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use cryptoki_sys::{CKR_ARGUMENTS_BAD, CKR_DEVICE_ERROR, CKR_USER_NOT_LOGGED_IN};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, epoll, eventfd, poll};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use zeroize::{Zeroize as _, Zeroizing};

use super::address::Address;
use super::appliance::{App, Appliance};
use super::error::HsmError;
use super::stream::{Frames, NoFrame, Stream};
use super::wire::{Request, VERSION, answer, decode};

/// How long a connection keeps its thread without a request.
const LINGER: Duration = Duration::from_millis(20);
/// How long the rest of a begun message may take, and an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(10);
/// Threads that work at the same time.
const MAX_WORKERS: usize = 128;
/// Connections at the same time; the next one is closed at once.
const MAX_CONNECTIONS: usize = 16_384;
/// Answers longer than this give their memory back.
const KEEP_BUFFER: usize = 64 << 10;

/// Who may connect to a Unix socket, besides the appliance's own user and root.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    /// User ids.
    pub uids: Vec<u32>,
}

struct Connection {
    frames: Frames,
    app: Option<Arc<App>>,
    out: Zeroizing<Vec<u8>>,
}

struct Shared {
    appliance: Arc<Appliance>,
    epoll: OwnedFd,
    parked: Mutex<HashMap<u64, Connection>>,
    ready: Sender<Connection>,
    queue: Receiver<Connection>,
    workers: AtomicUsize,
    idle: AtomicUsize,
    connections: AtomicUsize,
    next: std::sync::atomic::AtomicU64,
    stop: AtomicBool,
    tls: Option<Arc<ServerConfig>>,
    peers: Peers,
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A running server; ends when dropped.
pub struct Server {
    shared: Arc<Shared>,
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
        let (ready, queue) = bounded(MAX_CONNECTIONS);
        let shared = Arc::new(Shared {
            appliance,
            epoll,
            parked: Mutex::new(HashMap::new()),
            ready,
            queue,
            workers: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            next: std::sync::atomic::AtomicU64::new(1),
            stop: AtomicBool::new(false),
            tls,
            peers,
        });
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(work).map_err(HsmError::io(name))
        };
        let (a, b, w) = (shared.clone(), shared.clone(), wake.clone());
        let threads = vec![
            spawn("hsm-accept", Box::new(move || accept_all(&a, &listener, &w)))?,
            spawn("hsm-parked", Box::new(move || watch(&b)))?,
        ];
        Ok(Self { shared, wake, threads, address })
    }

    /// Where it listens: the port, where the system chose one.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Connections at this moment.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = rustix::io::write(&*self.wake, &[1; 8]);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.shared.parked.lock().clear();
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

fn accept_all(shared: &Arc<Shared>, listener: &Listener, wake: &OwnedFd) {
    let fd = match listener {
        Listener::Unix(l) => l.as_fd(),
        Listener::Tcp(l) => l.as_fd(),
    };
    loop {
        let mut both = [PollFd::new(&fd, PollFlags::IN), PollFd::new(wake, PollFlags::IN)];
        let _ = poll(&mut both, None);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        match accept(shared, listener) {
            Ok(Some(stream)) => admit(shared, stream),
            Ok(None) => {}
            Err(e) => {
                log::warn!("a connection could not be accepted: {e}");
                // Out of descriptors: trying again at once would spin.
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

fn accept(shared: &Shared, listener: &Listener) -> std::io::Result<Option<Stream>> {
    match listener {
        Listener::Unix(l) => {
            let (stream, _) = l.accept()?;
            let uid = rustix::net::sockopt::socket_peercred(&stream)?.uid.as_raw();
            let own = rustix::process::geteuid().as_raw();
            if uid == own || uid == 0 || shared.peers.uids.contains(&uid) {
                return Ok(Some(Stream::Unix(stream)));
            }
            log::warn!("a connection of user {uid} was refused; allow it with --allow-uid {uid}");
            Ok(None)
        }
        Listener::Tcp(l) => {
            let (stream, _) = l.accept()?;
            stream.set_nodelay(true)?;
            let Some(tls) = &shared.tls else { return Ok(None) };
            match ServerConnection::new(tls.clone()) {
                Ok(connection) => Ok(Some(Stream::Server(Box::new(StreamOwned::new(connection, stream))))),
                Err(e) => {
                    log::warn!("TLS: {e}");
                    Ok(None)
                }
            }
        }
    }
}

fn admit(shared: &Arc<Shared>, stream: Stream) {
    if shared.connections.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
        shared.connections.fetch_sub(1, Ordering::Relaxed);
        log::warn!("{MAX_CONNECTIONS} connections: the next one was closed");
        return;
    }
    let set = stream.set_timeout(Some(LINGER)).and_then(|()| stream.set_write_timeout(PATIENCE));
    if set.is_err() {
        shared.connections.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let connection = Connection { frames: Frames::new(stream), app: None, out: Zeroizing::new(Vec::new()) };
    dispatch(shared, connection);
}

/// Gives a connection to a worker; makes one where all are busy.
fn dispatch(shared: &Arc<Shared>, connection: Connection) {
    if shared.ready.send(connection).is_err() {
        return;
    }
    if shared.idle.load(Ordering::SeqCst) == 0 && shared.workers.load(Ordering::SeqCst) < MAX_WORKERS {
        shared.workers.fetch_add(1, Ordering::SeqCst);
        let mine = shared.clone();
        let made = std::thread::Builder::new().name("hsm-worker".into()).spawn(move || work(&mine));
        if made.is_err() {
            shared.workers.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn work(shared: &Arc<Shared>) {
    while !shared.stop.load(Ordering::SeqCst) {
        shared.idle.fetch_add(1, Ordering::SeqCst);
        let next = shared.queue.recv_timeout(Duration::from_secs(2));
        shared.idle.fetch_sub(1, Ordering::SeqCst);
        match next {
            Ok(connection) => converse(shared, connection),
            // The last worker stays: a connection may come between its check and its end.
            Err(_) if shared.workers.load(Ordering::SeqCst) > 1 => break,
            Err(_) => {}
        }
    }
    shared.workers.fetch_sub(1, Ordering::SeqCst);
}

/// Answers a connection until it is idle or ends.
fn converse(shared: &Arc<Shared>, mut connection: Connection) {
    loop {
        if shared.stop.load(Ordering::SeqCst) {
            break;
        }
        let Connection { frames, app, out } = &mut connection;
        let answered = frames.read(PATIENCE, |message| respond(shared, app, message, out));
        match answered {
            Ok(true) => {
                let sent = frames.stream.write_all(out).and_then(|()| frames.stream.flush());
                out.zeroize();
                if out.capacity() > KEEP_BUFFER {
                    **out = Vec::new();
                }
                if sent.is_err() {
                    break;
                }
            }
            Err(NoFrame::Idle) => {
                if park(shared, connection) {
                    return;
                }
                shared.connections.fetch_sub(1, Ordering::Relaxed);
                return;
            }
            Ok(false) | Err(NoFrame::Ended) => break,
        }
    }
    end(shared, &connection);
}

fn end(shared: &Shared, connection: &Connection) {
    if let Some(app) = &connection.app {
        shared.appliance.goodbye(app);
    }
    shared.connections.fetch_sub(1, Ordering::Relaxed);
}

/// Fills `out` with the answer; false where the connection must end.
fn respond(shared: &Shared, app: &mut Option<Arc<App>>, message: &[u8], out: &mut Vec<u8>) -> bool {
    match (decode::<Request>(message), app.as_ref()) {
        (Some(Request::Hello { version, app: token }), None) => {
            if version != VERSION {
                answer::<()>(Err(CKR_DEVICE_ERROR), out);
                return true;
            }
            match shared.appliance.hello(&token) {
                Ok(joined) => {
                    answer(Ok(Zeroizing::new(joined.token.to_vec())), out);
                    *app = Some(joined);
                }
                Err(rv) => answer::<()>(Err(rv), out),
            }
            true
        }
        (Some(request), Some(app)) => {
            let run = || shared.appliance.call(app, request, &mut *out);
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
                log::error!("a request ended in a fault of this program; its connection was closed");
                return false;
            }
            true
        }
        (Some(_), None) => {
            answer::<()>(Err(CKR_USER_NOT_LOGGED_IN), out);
            true
        }
        // What is no message is answered once; the two sides no longer understand each other.
        (None, _) => {
            answer::<()>(Err(CKR_ARGUMENTS_BAD), out);
            true
        }
    }
}

/// Leaves a connection to the watcher.
fn park(shared: &Arc<Shared>, connection: Connection) -> bool {
    let id = shared.next.fetch_add(1, Ordering::Relaxed);
    let fd = connection.frames.stream.as_fd().as_raw_fd();
    let mut parked = shared.parked.lock();
    parked.insert(id, connection);
    let Some(connection) = parked.get(&id) else { return false };
    let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ONESHOT;
    let added =
        epoll::add(&shared.epoll, connection.frames.stream.as_fd(), epoll::EventData::new_u64(id), flags);
    if let Err(e) = added {
        log::warn!("descriptor {fd}: {e}");
        if let Some(connection) = parked.remove(&id)
            && let Some(app) = &connection.app
        {
            shared.appliance.goodbye(app);
        }
        return false;
    }
    true
}

fn watch(shared: &Arc<Shared>) {
    let mut events = Vec::with_capacity(256);
    loop {
        events.clear();
        if epoll::wait(&shared.epoll, rustix::buffer::spare_capacity(&mut events), None).is_err() {
            continue;
        }
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        for event in &events {
            let connection = shared.parked.lock().remove(&event.data.u64());
            if let Some(connection) = connection {
                let _ = epoll::delete(&shared.epoll, connection.frames.stream.as_fd());
                dispatch(shared, connection);
            }
        }
    }
}
