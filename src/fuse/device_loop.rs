//! Requests by `/dev/fuse`: one thread reads a request, answers it, and reads the next.

use std::io;
use std::sync::Arc;

use log::{debug, error};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::abi::{InHeader, OutHeader, WriteIn};
use super::buffer::Buffer;
use super::channel::Channel;
use super::dispatch::{Reply, SMALL_ANSWER, dispatch};
use super::handler::Handler;
use super::locking::Locking;
use super::negotiate::Agreed;
use super::request::{self, Malformed, Op, Request};

/// What stands before the data of a write: with it the data begins on a page.
const BEFORE_DATA: usize = size_of::<InHeader>() + size_of::<WriteIn>();

/// Serves until the mount is gone. `locking`: of a handler that keeps locks.
pub(super) fn serve<H: Handler>(
    channel: &Arc<Channel>,
    handler: &H,
    agreed: &Agreed,
    locking: Option<&Locking<H>>,
) -> io::Result<()> {
    let ask = |request: &Request<'_>, out: &mut [u8]| match locking {
        Some(locking) => beside_locks(channel, handler, locking, request, out),
        None => dispatch(handler, request, out),
    };
    let largest = agreed.max_write as usize;
    let mut request = Buffer::new(BEFORE_DATA, largest);
    let mut reply = Buffer::new(size_of::<OutHeader>(), largest.max(SMALL_ANSWER));
    while let Some(len) = channel.receive(request.whole())? {
        let bytes = request.whole().get(..len).unwrap_or_default();
        answer(channel, &ask, agreed, bytes, &mut reply);
    }
    Ok(())
}

/// Asks the handler, and those who keep its locks.
fn beside_locks<H: Handler>(
    channel: &Arc<Channel>,
    handler: &H,
    locking: &Locking<H>,
    request: &Request<'_>,
    out: &mut [u8],
) -> Reply {
    let (unique, ino) = (request.header.unique, request.header.nodeid);
    match request.op {
        Op::Setlk { ask, wait } => locking.set(channel, unique, ino, (&ask, wait)),
        // Needs no answer.
        Op::Interrupt { unique } => {
            locking.interrupt(unique);
            Reply::Silence
        }
        Op::Flush { .. } | Op::Release { .. } => {
            let reply = dispatch(handler, request, out);
            locking.nudge(ino);
            reply
        }
        _ => dispatch(handler, request, out),
    }
}

fn answer(
    channel: &Channel,
    ask: &impl Fn(&Request<'_>, &mut [u8]) -> Reply,
    agreed: &Agreed,
    bytes: &[u8],
    reply: &mut Buffer,
) {
    let (header, body) = reply.parts();
    let (unique, answer) = match request::parse(bytes, agreed.setxattr_ext()) {
        Ok(request) => (request.header.unique, ask(&request, body)),
        Err(malformed) => {
            error!("{malformed}");
            match unique_of(bytes, malformed) {
                Some(unique) => (unique, Reply::Error(Errno::IO)),
                None => return,
            }
        }
    };
    let sent = match answer {
        Reply::Silence => return,
        Reply::Error(errno) => channel.send_small(unique, -errno.raw_os_error(), &[]),
        Reply::Data(data) => {
            let whole = size_of::<OutHeader>() + data;
            let len = u32::try_from(whole).expect("an answer is shorter than 4 GiB");
            header.copy_from_slice(OutHeader { len, error: 0, unique }.as_bytes());
            channel.send(reply.whole().get(..whole).unwrap_or_default())
        }
    };
    match sent {
        // The caller was killed while he waited, or the mount went away.
        Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::NOTCONN) => {}
        Err(e) => debug!("the kernel did not take a reply: {e}"),
    }
}

/// Which request a malformed one is, if that can be told.
fn unique_of(bytes: &[u8], malformed: Malformed) -> Option<u64> {
    use zerocopy::FromBytes;
    let (header, _) = InHeader::read_from_prefix(bytes).ok()?;
    (header.unique != 0 && malformed.opcode != super::abi::opcode::FORGET).then_some(header.unique)
}
