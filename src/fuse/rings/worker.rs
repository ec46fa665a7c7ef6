//! A ring and its thread: the kernel puts a request into a slot, the thread answers there, and with the same call asks
//! for the next one.

#![expect(unsafe_code, reason = "commands that name memory of ours")]

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue};
use log::error;
use rustix::io::Errno;

use super::command;
use super::patience::Patience;
use super::place::{Place, Weight};
use super::slot::Slot;
use crate::fuse::abi::opcode;
use crate::fuse::channel::Channel;
use crate::fuse::dispatch::{Reply, SMALL_ANSWER, dispatch};
use crate::fuse::handler::Handler;
use crate::fuse::negotiate::Agreed;
use crate::fuse::request::{Body, Malformed, Op, Request, decode};

/// From this many bytes on a request is large: its copies and its cipher are worth another processor.
const LARGE: usize = 128 << 10;

/// A ring with its slots.
pub(in crate::fuse) struct Ring {
    uring: IoUring<Entry128, cqueue::Entry>,
    /// Slots, and the queue that each serves.
    slots: Vec<(Slot, u16)>,
    /// The processor of its queue, when it serves one alone.
    cpu: Option<usize>,
}

impl Ring {
    pub(super) fn new(
        uring: IoUring<Entry128, cqueue::Entry>,
        slots: Vec<(Slot, u16)>,
        cpu: Option<usize>,
    ) -> Self {
        Self { uring, slots, cpu }
    }

    /// Serves until the mount is gone. In the thread that does nothing else from then on.
    pub(in crate::fuse) fn serve<H: Handler>(
        mut self,
        channel: &Channel,
        handler: &H,
        agreed: &Agreed,
    ) -> io::Result<()> {
        self.uring.submitter().register_enable_rings()?;
        let (mut place, mut patience) = (Place::new(self.cpu), Patience::default());
        let mut scratch = vec![0; SMALL_ANSWER];
        self.register(channel)?;
        let mut live = self.slots.len();
        let mut may_wait_awake = false;
        while live > 0 {
            self.wait(&mut patience, may_wait_awake)?;
            loop {
                let Some(done) = self.uring.completion().next() else { break };
                let index = done.user_data();
                let slot = usize::try_from(index).ok().and_then(|i| self.slots.get_mut(i));
                let Some((slot, queue)) = slot else { continue };
                slot.take();
                match -done.result() {
                    0 => {}
                    // The mount is gone.
                    libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV | libc::ECANCELED => {
                        live -= 1;
                        continue;
                    }
                    errno => return Err(io::Error::from_raw_os_error(errno)),
                }
                let (commit_id, small) = answer(slot, handler, agreed, &mut scratch, &mut place);
                may_wait_awake = small;
                slot.give();
                let entry = command::commit_and_fetch(channel.as_fd(), *queue, commit_id, index);
                push(&mut self.uring, &entry)?;
            }
        }
        Ok(())
    }

    fn register(&mut self, channel: &Channel) -> io::Result<()> {
        // They are read while the commands are submitted.
        let vectors: Vec<_> = self.slots.iter_mut().map(|(slot, _)| slot.give()).collect();
        for (index, (vectors, (_, queue))) in (0..).zip(vectors.iter().zip(&self.slots)) {
            push(&mut self.uring, &command::register(channel.as_fd(), *queue, vectors, index))?;
        }
        while !self.uring.submission().is_empty() {
            retried(|| self.uring.submit())?;
        }
        Ok(())
    }

    /// Submits what was pushed and waits for a completion: awake for a moment when it comes soon, as a rule.
    fn wait(&mut self, patience: &mut Patience, awake: bool) -> io::Result<()> {
        let began = Instant::now();
        if let Some(until) = patience.until(began).filter(|_| awake) {
            retried(|| self.uring.submit())?;
            while !self.has_news() && Instant::now() < until {
                rustix::thread::sched_yield();
            }
        }
        while self.uring.completion().is_empty() {
            retried(|| self.uring.submit_and_wait(1))?;
        }
        patience.came_after(began.elapsed());
        Ok(())
    }

    /// Whether a completion is there, or work that makes one.
    fn has_news(&mut self) -> bool {
        !self.uring.completion().is_empty() || self.uring.submission().taskrun()
    }
}

fn push(uring: &mut IoUring<Entry128, cqueue::Entry>, entry: &Entry128) -> io::Result<()> {
    // SAFETY: the memory that the command names is a slot's, which the kernel has from here on (`Slot::give`) and which
    // is not freed while it has it; for a registration also two vectors, which live until it is submitted.
    unsafe { uring.submission().push(entry) }
        .map_err(|_| io::Error::other("a ring is shorter than its slots are many"))
}

fn retried<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<()> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(drop),
        }
    }
}

/// Answers the request in a slot there; gives its number, and whether it was a small one, whose caller may ask again soon.
fn answer<H: Handler>(
    slot: &mut Slot,
    handler: &H,
    agreed: &Agreed,
    scratch: &mut [u8],
    place: &mut Place,
) -> (u64, bool) {
    let Some((mut headers, payload)) = slot.parts() else { return (0, true) };
    let (header, entry) = (headers.request(), headers.entry());
    let ext = agreed.setxattr_ext();
    // Content and listings go straight into the payload, in which nothing of such a request stands.
    let straight = matches!(header.opcode, opcode::READ | opcode::READDIR | opcode::READDIRPLUS);
    let (reply, small) = if straight {
        let request = decode(header, Body::split(headers.operation(), &[]), ext);
        ask(handler, request, place, payload)
    } else {
        let given = payload.get(..entry.payload_sz as usize).unwrap_or_default();
        let request = decode(header, Body::split(headers.operation(), given), ext);
        match ask(handler, request, place, scratch) {
            (Reply::Data(len), small) => (put(scratch.get(..len), payload), small),
            other => other,
        }
    };
    let (error, len) = match reply {
        Reply::Data(len) => (0, u32::try_from(len).unwrap_or(0)),
        Reply::Error(errno) => (-errno.raw_os_error(), 0),
        // Such a request does not come by a ring.
        Reply::Silence => (0, 0),
    };
    headers.answer(error, len);
    (entry.commit_id, small)
}

/// Calls the handler in the right place; tells whether the request was a small one.
fn ask<H: Handler>(
    handler: &H,
    request: Result<Request<'_>, Malformed>,
    place: &mut Place,
    out: &mut [u8],
) -> (Reply, bool) {
    let request = match request {
        Ok(request) => request,
        Err(malformed) => {
            error!("{malformed}");
            return (Reply::Error(Errno::IO), true);
        }
    };
    let weight = match request.op {
        Op::Write { data, .. } if data.len() >= LARGE => Weight::Large,
        Op::Read { size, .. } if size as usize >= LARGE => Weight::Large,
        Op::Write { cached: true, .. } => Weight::Background,
        _ => Weight::Small,
    };
    place.before(weight);
    (dispatch(handler, &request, out), weight == Weight::Small)
}

fn put(answer: Option<&[u8]>, payload: &mut [u8]) -> Reply {
    let place = answer.and_then(|a| payload.get_mut(..a.len()).map(|p| (a, p)));
    let Some((answer, place)) = place else { return Reply::Error(Errno::RANGE) };
    place.copy_from_slice(answer);
    Reply::Data(answer.len())
}
