//! The connections of a server and the threads that serve them.
//!
//! No peer holds a thread: a thread takes a connection that has something to say, answers what came whole, and leaves
//! it to the watcher when nothing more is there. A message that comes in pieces, a TLS handshake and an answer that is
//! not taken wait with the watcher too, each until a deadline. Where all threads are busy, a connection goes to the
//! end of the queue after each answer.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cryptoki_sys::{CKR_ARGUMENTS_BAD, CKR_DEVICE_ERROR, CKR_USER_NOT_LOGGED_IN};
use parking_lot::{Condvar, Mutex};
use rustix::event::epoll;
use zeroize::{Zeroize as _, Zeroizing};

use super::appliance::{App, Appliance};
use super::budget::{self, Budget, Reserved};
use super::stream::{Frames, NoFrame, Stream};
use super::wire::{MAX_FRAME, Request, VERSION, answer, decode};

/// How long the rest of a begun message may take, and an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a new connection may take to its first message, the TLS handshake included.
const GREETING: Duration = Duration::from_secs(30);
/// Threads that work at the same time; few in tests, so that a few clients keep all of them busy.
const MAX_WORKERS: usize = if cfg!(test) { 4 } else { 128 };
/// Threads beyond that for other members of the cluster: here a thread may wait for a member that waits for this one.
const SPARE_WORKERS: usize = 32;
/// Threads that are at a slow request at the same time: one that stretches a password, which takes 20 ms and more of a
/// processor and anybody can ask for.
const MAX_SLOW: usize = if cfg!(test) { 2 } else { 4 };
/// How long a thread without work stays.
const STAY: Duration = Duration::from_secs(2);
/// How often deadlines are looked at.
const SWEEP: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
/// Connections at the same time; the next one is closed at once.
const MAX_CONNECTIONS: usize = 16_384;
/// Connections of one peer: others come in beside whoever takes all he can have.
const MAX_OF_PEER: usize = MAX_CONNECTIONS / 4 * 3;
/// Answers longer than this give their memory back.
const KEEP_BUFFER: usize = 64 << 10;

/// Who is at the other end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Peer {
    /// User id, on a Unix socket.
    Uid(u32),
    /// Address, on TCP.
    Host(IpAddr),
}

/// How many connections each peer has.
#[derive(Default)]
struct Count {
    all: usize,
    of: HashMap<Peer, (usize, Arc<Budget>)>,
}

struct Connection {
    frames: Frames,
    app: Option<Arc<App>>,
    /// The answer that is on its way, and how much of it is.
    out: Zeroizing<Vec<u8>>,
    sent: usize,
    /// When it ends, unless it says or takes what it owes.
    due: Option<Instant>,
    peer: Peer,
    pool: std::sync::Weak<Pool>,
    /// Where the memory of long answers comes from, and what this one has of it.
    budget: Arc<Budget>,
    owed: Option<Reserved>,
    /// It may make the slow request that it waited with.
    turn: Option<SlowTurn>,
}

/// Who is at a slow request, and who waits with one: each peer's in order, and the peers in turns.
#[derive(Default)]
struct Slow {
    busy: usize,
    waiting: HashMap<Peer, VecDeque<Connection>>,
    order: VecDeque<Peer>,
}

impl Slow {
    fn push(&mut self, connection: Connection) {
        let peer = connection.peer;
        let queue = self.waiting.entry(peer).or_default();
        if queue.is_empty() {
            self.order.push_back(peer);
        }
        queue.push_back(connection);
    }

    fn pop(&mut self) -> Option<Connection> {
        let peer = self.order.pop_front()?;
        let queue = self.waiting.get_mut(&peer)?;
        let next = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&peer);
        } else {
            self.order.push_back(peer);
        }
        next
    }
}

/// The right to be at a slow request; at its end it goes to the next one that waits.
struct SlowTurn(std::sync::Weak<Pool>);

impl Drop for SlowTurn {
    fn drop(&mut self) {
        let Some(pool) = self.0.upgrade() else { return };
        let next = {
            let mut slow = pool.slow.lock();
            let next = slow.pop();
            slow.busy -= usize::from(next.is_none());
            next
        };
        if let Some(mut next) = next {
            next.turn = Some(SlowTurn(self.0.clone()));
            pool.dispatch(next);
        }
    }
}

thread_local! {
    /// The turn of this thread's request.
    static TURN: std::cell::RefCell<Option<SlowTurn>> = const { std::cell::RefCell::new(None) };
}

/// The slow part of this thread's request is done: the next one may begin its own.
pub(super) fn end_slow_turn() {
    drop(TURN.take());
}

/// Whether a request stretches a password.
fn is_slow(request: &Request) -> bool {
    match request {
        Request::Login { .. }
        | Request::InitToken { .. }
        | Request::InitPin { .. }
        | Request::SetPin { .. } => true,
        // The commands' own names of their passwords, which an escape would hide.
        Request::Admin { json } => {
            json.contains(&b'\\') || json.windows(10).any(|word| word == b"\"password\"")
        }
        _ => false,
    }
}

/// Threads with nothing to do, threads, and connections that wait for one.
#[derive(Default)]
struct Queue {
    ready: VecDeque<Connection>,
    idle: usize,
    workers: usize,
}

/// What the threads of a server share.
pub(super) struct Pool {
    appliance: Arc<Appliance>,
    epoll: OwnedFd,
    parked: Mutex<HashMap<u64, Connection>>,
    queue: Mutex<Queue>,
    slow: Mutex<Slow>,
    /// What long messages of all peers take of memory.
    wire: Arc<Budget>,
    wake: Condvar,
    /// All threads are busy and a connection waits.
    pressed: AtomicBool,
    count: Mutex<Count>,
    next: AtomicU64,
    pub(super) stop: AtomicBool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(pool) = self.pool.upgrade() else { return };
        if let Some(app) = &self.app {
            pool.appliance.goodbye(app);
        }
        let mut count = pool.count.lock();
        count.all -= 1;
        if let Some((of, _)) = count.of.get_mut(&self.peer) {
            *of -= 1;
            if *of == 0 {
                count.of.remove(&self.peer);
            }
        }
    }
}

/// What is next for a connection.
enum Turn {
    /// It waits for bytes, or (`true`) for room to send.
    Park(bool),
    /// It has more to do; others come first.
    Later,
    /// It has a slow request, for which it waits until fewer are made.
    Slow,
    /// It ends.
    End,
}

impl Connection {
    /// Sends what can be sent: whether all of the answer is away.
    fn drain(&mut self) -> std::io::Result<bool> {
        while let Some(rest) = self.out.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.frames.stream.send(rest)? {
                Some(n) => self.sent += n,
                None => return Ok(false),
            }
        }
        if !self.out.is_empty() {
            if !self.frames.stream.flushed()? {
                return Ok(false);
            }
            self.out.zeroize();
            self.sent = 0;
            self.owed = None;
            if self.out.capacity() > KEEP_BUFFER {
                *self.out = Vec::new();
            }
        }
        Ok(true)
    }

    /// Whether it owes something; a deadline for that, where it has none.
    fn owes(&mut self) {
        if !self.out.is_empty() || self.frames.begun() {
            self.due.get_or_insert_with(|| Instant::now() + PATIENCE);
        } else if self.app.is_some() {
            self.due = None;
        }
    }

    fn late(&self) -> bool {
        self.due.is_some_and(|due| due <= Instant::now())
    }

    /// An answer that is not taken at once is kept, if there is memory for it.
    fn wait_to_send(&mut self) -> Turn {
        if self.owed.is_none() && self.out.len() > KEEP_BUFFER {
            let Ok(owed) = self.budget.take(self.out.len()) else {
                log::warn!("a connection was closed: too many answers are not taken");
                return Turn::End;
            };
            self.owed = Some(owed);
        }
        Turn::Park(true)
    }

    /// Answers until nothing is there, or others wait.
    fn converse(&mut self, pool: &Pool) -> Turn {
        loop {
            if pool.stop.load(Ordering::Relaxed) || self.late() {
                return Turn::End;
            }
            match self.drain() {
                Ok(true) => {}
                Ok(false) => return self.wait_to_send(),
                Err(_) => return Turn::End,
            }
            let pressed = pool.pressed.load(Ordering::Relaxed);
            let Self { frames, app, out, turn, .. } = self;
            let work = |message: &[u8]| respond(&pool.appliance, app, turn, message, out);
            match frames.advance(!pressed, work) {
                Ok(true) => {
                    // A whole message came: what it owes is this answer.
                    if self.app.is_some() {
                        self.due = None;
                        self.frames.most = MAX_FRAME;
                    }
                    match self.drain() {
                        Ok(true) if !pressed => {}
                        Ok(true) => return Turn::Later,
                        Ok(false) => return self.wait_to_send(),
                        Err(_) => return Turn::End,
                    }
                }
                Err(NoFrame::Idle) => return Turn::Park(false),
                Err(NoFrame::More) => return Turn::Later,
                Err(NoFrame::Kept) => return Turn::Slow,
                Ok(false) | Err(NoFrame::Ended) => return Turn::End,
            }
        }
    }
}

impl Pool {
    pub(super) fn new(appliance: Arc<Appliance>, epoll: OwnedFd) -> Arc<Self> {
        Arc::new(Self {
            appliance,
            epoll,
            parked: Mutex::new(HashMap::new()),
            queue: Mutex::new(Queue::default()),
            slow: Mutex::new(Slow::default()),
            wire: Budget::new(budget::WIRE, None),
            wake: Condvar::new(),
            pressed: AtomicBool::new(false),
            count: Mutex::new(Count::default()),
            next: AtomicU64::new(1),
            stop: AtomicBool::new(false),
        })
    }

    pub(super) fn connections(&self) -> usize {
        self.count.lock().all
    }

    /// Takes a new connection in, or closes it.
    pub(super) fn admit(self: &Arc<Self>, stream: Stream, peer: Peer) {
        let budget = {
            let mut count = self.count.lock();
            if count.all >= MAX_CONNECTIONS || count.of.get(&peer).is_some_and(|(n, _)| *n >= MAX_OF_PEER) {
                log::warn!("{} connections, too many of {peer:?}: the next one was closed", count.all);
                return;
            }
            count.all += 1;
            let fresh = || (0, Budget::new(budget::WIRE_OF_PEER, Some(self.wire.clone())));
            let (of, budget) = count.of.entry(peer).or_insert_with(fresh);
            *of += 1;
            budget.clone()
        };
        let connection = Connection {
            frames: Frames::new(stream, Some(budget.clone())),
            budget,
            owed: None,
            app: None,
            out: Zeroizing::new(Vec::new()),
            sent: 0,
            due: Some(Instant::now() + GREETING),
            peer,
            pool: Arc::downgrade(self),
            turn: None,
        };
        self.dispatch(connection);
    }

    /// Gives a connection to a thread; makes one where all are busy.
    fn dispatch(self: &Arc<Self>, connection: Connection) {
        let spawn = {
            let mut queue = self.queue.lock();
            let mut most = MAX_WORKERS;
            if connection.app.as_ref().is_some_and(|app| app.is_unit.load(Ordering::Relaxed)) {
                queue.ready.push_front(connection);
                most += SPARE_WORKERS;
            } else {
                queue.ready.push_back(connection);
            }
            // A thread that was woken and has not come yet counts as idle, and what it was woken for is still here.
            let spawn = queue.ready.len() > queue.idle && queue.workers < most;
            queue.workers += usize::from(spawn);
            self.note(&queue);
            spawn
        };
        if !spawn {
            self.wake.notify_one();
            return;
        }
        let mine = self.clone();
        let made = std::thread::Builder::new().name("hsm-worker".into()).spawn(move || mine.work());
        if let Err(e) = made {
            log::warn!("no thread for a connection, which waits for another's: {e}");
            self.queue.lock().workers -= 1;
            self.wake.notify_one();
        }
    }

    fn note(&self, queue: &Queue) {
        let pressed = queue.workers >= MAX_WORKERS && queue.ready.len() > queue.idle;
        self.pressed.store(pressed, Ordering::Relaxed);
    }

    /// The next connection for a thread; `None` where the thread ends.
    fn take(&self) -> Option<Connection> {
        let mut queue = self.queue.lock();
        loop {
            if self.stop.load(Ordering::SeqCst) {
                queue.workers -= 1;
                return None;
            }
            if let Some(connection) = queue.ready.pop_front() {
                self.note(&queue);
                return Some(connection);
            }
            queue.idle += 1;
            let late = self.wake.wait_for(&mut queue, STAY).timed_out();
            queue.idle -= 1;
            if late && queue.ready.is_empty() {
                queue.workers -= 1;
                return None;
            }
        }
    }

    fn work(self: &Arc<Self>) {
        while let Some(mut connection) = self.take() {
            match connection.converse(self) {
                Turn::Park(to_send) => self.park(connection, to_send),
                Turn::Later => {
                    connection.owes();
                    self.dispatch(connection);
                }
                Turn::Slow => self.line_up(connection),
                Turn::End => drop(connection),
            }
        }
    }

    /// Gives a connection its turn at a slow request, or keeps it until there is one.
    fn line_up(self: &Arc<Self>, mut connection: Connection) {
        // It owes nothing: its message came whole.
        connection.due = None;
        {
            let mut slow = self.slow.lock();
            if slow.busy >= MAX_SLOW {
                slow.push(connection);
                return;
            }
            slow.busy += 1;
        }
        connection.turn = Some(SlowTurn(Arc::downgrade(self)));
        self.dispatch(connection);
    }

    /// Leaves a connection to the watcher.
    fn park(&self, mut connection: Connection, to_send: bool) {
        connection.owes();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let wait = if to_send { epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
        let flags = wait | epoll::EventFlags::RDHUP | epoll::EventFlags::ONESHOT;
        let mut parked = self.parked.lock();
        let added =
            epoll::add(&self.epoll, connection.frames.stream.as_fd(), epoll::EventData::new_u64(id), flags);
        match added {
            Ok(()) => drop(parked.insert(id, connection)),
            Err(e) => {
                drop(parked);
                log::warn!("a connection was closed: it cannot be watched ({e})");
            }
        }
    }

    /// Watches the parked connections until the server ends.
    pub(super) fn watch(self: &Arc<Self>) {
        let mut events = Vec::with_capacity(256);
        let mut swept = Instant::now();
        loop {
            events.clear();
            let waited = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&SWEEP));
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            if waited.is_ok() {
                for event in &events {
                    let connection = self.parked.lock().remove(&event.data.u64());
                    if let Some(connection) = connection {
                        let _ = epoll::delete(&self.epoll, connection.frames.stream.as_fd());
                        self.dispatch(connection);
                    }
                }
            }
            if swept.elapsed() >= Duration::from_secs(1) {
                swept = Instant::now();
                // Ended outside of the lock: the end of an application takes others.
                let late: Vec<_> = self.parked.lock().extract_if(|_, c| c.late()).collect();
                drop(late);
            }
        }
    }

    /// Ends all connections and threads.
    pub(super) fn end(&self) {
        self.stop.store(true, Ordering::SeqCst);
        let waiting = std::mem::take(&mut self.queue.lock().ready);
        let slow = std::mem::take(&mut self.slow.lock().waiting);
        self.wake.notify_all();
        let parked = std::mem::take(&mut *self.parked.lock());
        drop((waiting, slow, parked));
    }
}

/// Fills `out` with the answer; false where the connection must end. `None`: the request waits for its turn.
fn respond(
    appliance: &Arc<Appliance>,
    app: &mut Option<Arc<App>>,
    turn: &mut Option<SlowTurn>,
    message: &[u8],
    out: &mut Vec<u8>,
) -> Option<bool> {
    Some(match (decode::<Request>(message), app.as_ref()) {
        (Some(Request::Hello { version, app: token }), None) => {
            if version != VERSION {
                answer::<()>(Err(CKR_DEVICE_ERROR), out);
                return Some(true);
            }
            match appliance.hello(&token) {
                Ok(joined) => {
                    answer(Ok(Zeroizing::new(joined.token.to_vec())), out);
                    *app = Some(joined);
                }
                Err(rv) => answer::<()>(Err(rv), out),
            }
            true
        }
        (Some(request), Some(app)) => {
            if is_slow(&request) {
                TURN.set(Some(turn.take()?));
            }
            let run = || appliance.call(app, request, &mut *out);
            let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            end_slow_turn();
            if ran.is_err() {
                log::error!("a request ended in a fault of this program; its connection was closed");
            }
            ran.is_ok()
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
    })
}
