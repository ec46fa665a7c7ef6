//! The daemon's end: requests with a deadline to a helper that may die, hang or lie.
//!
//! There is no thread here: whoever waits for an answer reads the socket for all who wait. So nothing has to be ended
//! before the sandbox, and nothing started in it.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use zeroize::{Zeroize as _, Zeroizing};

use super::keeper::{KEEPER, program};
use super::wire::{Answer, MAX_MESSAGE, Packet, Request};

/// Time for a request with all its tries: what an `open` waits at most.
pub(super) const DEADLINE: Duration = Duration::from_secs(8);
/// A helper that said nothing for this long while it was asked is ended.
const SILENCE: Duration = Duration::from_secs(4);
/// Requests that are under way at once; those beyond wait their turn.
const IN_FLIGHT: usize = 16;
/// Tells our own module which HSM it is for.
const HSM_ENV: &str = "ENVELOPEFS_HSM";
/// Variables that hold secrets of the daemon's, which the module gets nowhere else.
const SECRETS: [&str; 2] = ["ENVELOPEFS_PASSPHRASE", super::PIN_ENV];

/// A helper, by its keeper.
pub(super) struct Channel {
    socket: OwnedFd,
    state: Mutex<State>,
    changed: Condvar,
    /// What the one who reads takes packets into: one byte more than a message has, so that a longer one is seen to be.
    buffer: Mutex<Packet>,
    keeper: Mutex<Keeper>,
}

struct Keeper {
    child: Child,
    /// `None` only while it is dropped: its end is the keeper's.
    pipe: Option<ChildStdin>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// Requests under way, with their answers where those have come.
    flying: HashMap<u64, Option<Answer>>,
    /// Whether somebody reads the socket.
    reading: bool,
    /// When the helper last said anything.
    heard: Option<Instant>,
    /// Nobody is at the other end.
    closed: bool,
}

/// What a look at the socket found.
enum Come {
    Nothing,
    /// Nobody is at the other end.
    Closed,
    /// No message.
    Junk,
    Message(u64, Answer),
}

/// Why no answer came.
#[derive(Debug)]
pub(super) enum Lost {
    /// The helper died with the request: the next one may do it.
    Died(String),
    /// It took too long.
    Late,
    /// The keeper is gone: nothing will be answered any more.
    Gone,
    /// It does not fit into a message.
    TooLong,
}

impl Channel {
    /// Starts a keeper, and with it a helper, for a module. `hsm`: address of the HSM that our own module shall use.
    pub(super) fn start(module: &Path, hsm: Option<&str>) -> io::Result<Self> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = Command::new(program());
        command
            .arg(KEEPER)
            .arg(module)
            .stdin(Stdio::piped())
            .stdout(Stdio::from(theirs))
            .stderr(Stdio::null());
        if let Some(address) = hsm {
            command.env(HSM_ENV, address);
        }
        for name in SECRETS {
            command.env_remove(name);
        }
        let mut child = command.spawn()?;
        let pipe = child.stdin.take();
        Ok(Self {
            socket: ours,
            state: Mutex::default(),
            changed: Condvar::new(),
            buffer: Mutex::new(Zeroizing::new(vec![0; MAX_MESSAGE + 1])),
            keeper: Mutex::new(Keeper { child, pipe }),
        })
    }

    /// One request and its answer, which comes until a time or not at all.
    pub(super) fn ask(&self, request: &Request, until: Instant) -> Result<Answer, Lost> {
        let asked = Instant::now();
        let id = self.admit(until)?;
        let outcome = self.send(request, id, until).and_then(|()| self.wait(id, until));
        let mut state = self.state.lock();
        state.flying.remove(&id);
        // A last try may have had a moment only.
        let silent = asked.elapsed() >= SILENCE && state.heard.is_none_or(|heard| heard < asked);
        drop(state);
        self.changed.notify_all();
        if matches!(outcome, Err(Lost::Late)) && silent {
            // Whatever it is doing, it is doing it for all of us.
            if let Some(pipe) = &mut self.keeper.lock().pipe {
                let _ = pipe.write_all(b"\n");
            }
        }
        outcome
    }

    /// Waits for a place among those under way, and takes in what has come meanwhile.
    fn admit(&self, until: Instant) -> Result<u64, Lost> {
        let mut state = self.state.lock();
        while state.flying.len() >= IN_FLIGHT {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return Err(Lost::Late);
            }
        }
        // A helper that died while nobody asked concerns nobody who asks now.
        while !state.reading && Instant::now() < until {
            state.reading = true;
            let come = MutexGuard::unlocked(&mut state, || self.look());
            state.reading = false;
            self.changed.notify_all();
            if matches!(come, Come::Nothing) {
                break;
            }
            state.take_in(come);
        }
        if state.closed {
            return Err(Lost::Gone);
        }
        state.next += 1;
        let id = state.next;
        state.flying.insert(id, None);
        Ok(id)
    }

    fn send(&self, request: &Request, id: u64, until: Instant) -> Result<(), Lost> {
        let packet = request.encode(id).ok_or(Lost::TooLong)?;
        loop {
            match rustix::net::send(&self.socket, &packet, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => {
                    self.state.lock().closed = true;
                    return Err(Lost::Gone);
                }
            }
            if !self.ready(PollFlags::OUT, until) {
                return Err(Lost::Late);
            }
        }
    }

    fn wait(&self, id: u64, until: Instant) -> Result<Answer, Lost> {
        let mut state = self.state.lock();
        loop {
            match state.flying.get_mut(&id).and_then(Option::take) {
                Some(Answer::Died(why)) => return Err(Lost::Died(why)),
                Some(answer) => return Ok(answer),
                None if state.closed => return Err(Lost::Gone),
                None if Instant::now() >= until => return Err(Lost::Late),
                None => {}
            }
            if state.reading {
                self.changed.wait_until(&mut state, until);
                continue;
            }
            state.reading = true;
            let come = MutexGuard::unlocked(&mut state, || match self.ready(PollFlags::IN, until) {
                true => self.look(),
                false => Come::Nothing,
            });
            state.reading = false;
            state.take_in(come);
            // The next one who waits reads on.
            self.changed.notify_all();
        }
    }

    /// One packet, where there is one. For the one who reads.
    fn look(&self) -> Come {
        let mut buffer = self.buffer.lock();
        match rustix::net::recv(&self.socket, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((0, _)) => Come::Closed,
            Ok((len, _)) => {
                let packet = buffer.get_mut(..len).unwrap_or_default();
                let message = Some(&*packet).filter(|_| len <= MAX_MESSAGE).and_then(Answer::decode);
                packet.zeroize();
                message.map_or(Come::Junk, |(id, answer)| Come::Message(id, answer))
            }
            Err(Errno::AGAIN | Errno::INTR) => Come::Nothing,
            Err(_) => Come::Closed,
        }
    }

    fn ready(&self, what: PollFlags, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        poll(&mut [PollFd::new(&self.socket, what)], timeout.as_ref()).is_ok_and(|n| n > 0)
    }
}

impl State {
    /// Gives an answer to who waits for it. What nobody asked for, and what is no message, is dropped.
    fn take_in(&mut self, come: Come) {
        let (id, answer) = match come {
            Come::Message(id, answer) => (id, answer),
            Come::Closed => {
                self.closed = true;
                return;
            }
            Come::Nothing | Come::Junk => return,
        };
        self.heard = Some(Instant::now());
        if let Answer::Died(why) = answer {
            log::warn!("the helper for the PKCS#11 module: {why}; it is started again");
            for slot in self.flying.values_mut().filter(|slot| slot.is_none()) {
                *slot = Some(Answer::Died(why.clone()));
            }
        } else if let Some(slot @ None) = self.flying.get_mut(&id) {
            *slot = Some(answer);
        }
    }
}

impl Drop for Channel {
    /// Lets the keeper go, which ends the helper, and waits for its end.
    fn drop(&mut self) {
        let keeper = self.keeper.get_mut();
        keeper.pipe = None;
        let _ = keeper.child.wait();
    }
}
