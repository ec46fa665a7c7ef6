//! One connection: frames in, frames out, one system call each where they are short.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustls::{ClientConnection, ServerConnection, StreamOwned};
use zeroize::{Zeroize as _, Zeroizing};

use super::budget::{Budget, Reserved};
use super::wire::MAX_FRAME;

/// How long a served connection keeps its thread without a word.
pub(super) const LINGER: Duration = Duration::from_millis(20);
/// The longest first message to a server: whoever has not said what he wants takes no more memory.
const FIRST_FRAME: usize = 4 << 10;
/// What one read asks for: most messages come whole.
const READ_STEP: usize = 16 << 10;

/// A connected socket, with TLS on TCP.
pub(super) enum Stream {
    Unix(UnixStream),
    Server(Box<StreamOwned<ServerConnection, TcpStream>>),
    Client(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    /// A read that waits longer fails with `WouldBlock` or `TimedOut`.
    pub(super) fn set_timeout(&self, wait: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(s) => s.set_read_timeout(wait),
            Self::Server(s) => s.sock.set_read_timeout(wait),
            Self::Client(s) => s.sock.set_read_timeout(wait),
        }
    }

    /// The server's read: of what is there, or (`wait`) of what comes within [`LINGER`]. `WouldBlock` or `TimedOut` where
    /// that is nothing. A Unix socket has that time as its own, a TLS socket does not block.
    fn receive(&mut self, buf: &mut [u8], wait: bool) -> io::Result<usize> {
        match self {
            Self::Unix(s) if wait => s.read(buf),
            Self::Unix(s) => Ok(recv(s, buf, RecvFlags::DONTWAIT)?.0),
            Self::Server(s) => match s.read(buf) {
                Err(e) if wait && e.kind() == ErrorKind::WouldBlock => {
                    let linger = Timespec { tv_sec: 0, tv_nsec: i64::from(LINGER.subsec_nanos()) };
                    poll(&mut [PollFd::new(&s.sock, PollFlags::IN)], Some(&linger))?;
                    s.read(buf)
                }
                other => other,
            },
            Self::Client(s) => s.read(buf),
        }
    }

    /// The server's write: what is taken at once; `None` where that is nothing.
    pub(super) fn send(&mut self, buf: &[u8]) -> io::Result<Option<usize>> {
        let sent = match self {
            Self::Unix(s) => send(s, buf, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).map_err(io::Error::from),
            Self::Server(s) => s.write(buf),
            Self::Client(s) => s.write(buf),
        };
        match sent {
            Ok(0) => Err(ErrorKind::WriteZero.into()),
            Ok(n) => Ok(Some(n)),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether the system has all that was sent.
    pub(super) fn flushed(&mut self) -> io::Result<bool> {
        match self.flush() {
            Ok(()) => Ok(true),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// A peer that takes nothing for so long is cut off.
    pub(super) fn set_write_timeout(&self, wait: Duration) -> io::Result<()> {
        match self {
            Self::Unix(s) => s.set_write_timeout(Some(wait)),
            Self::Server(s) => s.sock.set_write_timeout(Some(wait)),
            Self::Client(s) => s.sock.set_write_timeout(Some(wait)),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(s) => s.as_fd(),
            Self::Server(s) => s.sock.as_fd(),
            Self::Client(s) => s.sock.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(s) => s.read(buf),
            Self::Server(s) => s.read(buf),
            Self::Client(s) => s.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(s) => s.write(buf),
            Self::Server(s) => s.write(buf),
            Self::Client(s) => s.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Unix(s) => s.flush(),
            Self::Server(s) => s.flush(),
            Self::Client(s) => s.flush(),
        }
    }
}

/// Why no frame came.
pub(super) enum NoFrame {
    /// Nothing came in time.
    Idle,
    /// A piece of one came, and there may be more at once.
    More,
    /// One is there, which was not taken.
    Kept,
    /// The peer is gone, or sent what is no frame.
    Ended,
}

/// A connection with its read buffer.
pub(super) struct Frames {
    pub(super) stream: Stream,
    /// What was read; wiped with the connection and after each long message.
    buffer: Zeroizing<Vec<u8>>,
    filled: usize,
    /// The longest message that is taken.
    pub(super) most: usize,
    /// Where the memory of long messages comes from, and what this one has of it.
    budget: Option<Arc<Budget>>,
    reserved: Option<Reserved>,
}

impl Frames {
    /// A client's connection, or (with a budget) a server's.
    pub(super) fn new(stream: Stream, budget: Option<Arc<Budget>>) -> Self {
        let most = if budget.is_some() { FIRST_FRAME } else { MAX_FRAME };
        let buffer = Zeroizing::new(vec![0; READ_STEP]);
        Self { stream, buffer, filled: 0, most, budget, reserved: None }
    }

    /// Whether a piece of a message is there.
    pub(super) fn begun(&self) -> bool {
        self.filled > 0
    }

    /// The client's read: waits for a frame and gives its message to `work`. `patience` is how long the rest of a begun
    /// frame may take.
    pub(super) fn read<T>(
        &mut self,
        patience: Duration,
        work: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, NoFrame> {
        let mut begun: Option<Instant> = None;
        loop {
            let needed = self.needed()?;
            if self.head().is_some() && self.filled >= needed {
                return Ok(self.give(needed, work));
            }
            self.room(needed)?;
            let filled = self.filled;
            match self.stream.read(self.buffer.get_mut(filled..).unwrap_or_default()) {
                Ok(0) => return Err(NoFrame::Ended),
                Ok(n) => self.filled += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if self.filled == 0 {
                        return Err(NoFrame::Idle);
                    }
                }
                Err(_) => return Err(NoFrame::Ended),
            }
            if self.filled > 0 && begun.get_or_insert_with(Instant::now).elapsed() > patience {
                return Err(NoFrame::Ended);
            }
        }
    }

    /// The server's read: gives a frame's message to `work` where a whole one is there or (`wait`) comes within moments.
    /// Where `work` gives nothing the message stays for the next time.
    pub(super) fn advance<T>(
        &mut self,
        wait: bool,
        work: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Result<T, NoFrame> {
        let mut begun: Option<Instant> = None;
        loop {
            let needed = self.needed()?;
            if self.head().is_some() && self.filled >= needed {
                let done = work(self.buffer.get(4..needed).unwrap_or_default());
                let done = done.ok_or(NoFrame::Kept)?;
                self.consume(needed);
                return Ok(done);
            }
            // Whoever sends his message in drops has the thread no longer than whoever sends nothing.
            if self.filled > 0 && begun.get_or_insert_with(Instant::now).elapsed() > LINGER {
                return Err(NoFrame::More);
            }
            self.room(needed)?;
            let filled = self.filled;
            match self.stream.receive(self.buffer.get_mut(filled..).unwrap_or_default(), wait) {
                Ok(0) => return Err(NoFrame::Ended),
                Ok(n) => self.filled += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(NoFrame::Idle);
                }
                Err(_) => return Err(NoFrame::Ended),
            }
        }
    }

    /// The length that a frame begins with, where it is there.
    fn head(&self) -> Option<usize> {
        let head = self.buffer.first_chunk().filter(|_| self.filled >= 4);
        head.map(|h| u32::from_le_bytes(*h) as usize)
    }

    /// Bytes of the frame that is coming, its length included: 4 until that is known.
    fn needed(&self) -> Result<usize, NoFrame> {
        match self.head() {
            Some(len) if len > self.most => Err(NoFrame::Ended),
            Some(len) => Ok(len + 4),
            None => Ok(4),
        }
    }

    fn give<T>(&mut self, needed: usize, work: impl FnOnce(&[u8]) -> T) -> T {
        let done = work(self.buffer.get(4..needed).unwrap_or_default());
        self.consume(needed);
        done
    }

    /// Makes room for a frame of `needed` bytes; grows with what really came, so a false length costs nothing. A server's
    /// peer that has all that it may have in long messages ends here.
    fn room(&mut self, needed: usize) -> Result<(), NoFrame> {
        let wanted = needed.min(self.filled * 2 + READ_STEP);
        if self.buffer.len() < wanted {
            if let Some(budget) = &self.budget {
                let taken = match &mut self.reserved {
                    Some(reserved) => reserved.grow(wanted.saturating_sub(reserved.bytes())),
                    none => budget.take(wanted).map(|new| *none = Some(new)),
                };
                if taken.is_err() {
                    log::warn!("a connection was closed: too many long messages are on their way");
                    return Err(NoFrame::Ended);
                }
            }
            let mut longer = Zeroizing::new(vec![0; wanted]);
            if let (Some(to), Some(from)) = (longer.get_mut(..self.filled), self.buffer.get(..self.filled)) {
                to.copy_from_slice(from);
            }
            self.buffer = longer;
        }
        Ok(())
    }

    fn consume(&mut self, used: usize) {
        if self.buffer.len() > READ_STEP && self.filled == used {
            self.buffer = Zeroizing::new(vec![0; READ_STEP]);
            self.reserved = None;
        } else {
            if let Some(used) = self.buffer.get_mut(..used) {
                used.zeroize();
            }
            self.buffer.copy_within(used..self.filled, 0);
        }
        self.filled -= used;
    }
}
