//! SEEK_HOLE and SEEK_DATA while the kernel may hold dirty pages that `fs` has not seen.
//!
//! One thread asks the kernel to write the inode's pages back, waits for it, and only then answers. It must not be
//! an event loop: the pages come back as WRITE requests that the event loops have to serve meanwhile.

use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use fuser::{Errno, INodeNo, Notifier, ReplyLseek};
use log::debug;

use super::convert::errno;
use super::report::Report;
use crate::fs::{Fs, Ino};

/// Seeks that wait for the thread. Beyond it a seek is answered "all data", which is always allowed.
const QUEUE: usize = 128;

/// A seek to be answered.
pub(super) struct Seek {
    pub(super) ino: Ino,
    pub(super) fh: u64,
    pub(super) offset: u64,
    pub(super) whence: i32,
    pub(super) reply: ReplyLseek,
}

/// Way in for the event loops.
pub(super) struct SeekQueue(Sender<Seek>);

/// The queue and its other end, for [`serve`].
pub(super) fn queue() -> (SeekQueue, Receiver<Seek>) {
    let (sender, receiver) = bounded(QUEUE);
    (SeekQueue(sender), receiver)
}

impl SeekQueue {
    /// Hands a seek over, or answers it on the spot when the queue is full.
    pub(super) fn push(&self, fs: &Fs, seek: Seek) {
        if let Err(TrySendError::Full(seek) | TrySendError::Disconnected(seek)) = self.0.try_send(seek) {
            answer_all_data(fs, seek);
        }
    }
}

/// Takes the whole file for data: the seek costs the caller a copy of zeros, never a byte.
fn answer_all_data(fs: &Fs, seek: Seek) {
    match fs.getattr(seek.ino) {
        Err(e) => seek.reply.error(errno(&e)),
        Ok(attr) if seek.offset >= attr.size => seek.reply.error(Errno::ENXIO),
        Ok(attr) if seek.whence == libc::SEEK_HOLE => reply(seek.reply, attr.size),
        Ok(_) => reply(seek.reply, seek.offset),
    }
}

/// Answers from what `fs` knows.
pub(super) fn answer(fs: &Fs, report: &Report, seek: Seek) {
    match fs.lseek(seek.fh, seek.offset, seek.whence) {
        Ok(offset) => reply(seek.reply, offset),
        Err(e) => {
            report.failed("seek", seek.ino, &e);
            seek.reply.error(errno(&e));
        }
    }
}

fn reply(to: ReplyLseek, offset: u64) {
    match i64::try_from(offset) {
        Ok(offset) => to.offset(offset),
        Err(_) => to.error(Errno::EOVERFLOW),
    }
}

/// Serves until the last event loop is gone.
pub(super) fn serve(seeks: &Receiver<Seek>, fs: &Arc<Fs>, report: &Report, notifier: &Notifier) {
    for seek in seeks {
        if let Err(e) = notifier.inval_inode(INodeNo(seek.ino), 0, 0) {
            // Without write-back the answer would miss data in the kernel's cache: say "all data".
            debug!("write-back before a seek in inode {}: {e}", seek.ino);
            answer_all_data(fs, seek);
            continue;
        }
        answer(fs, report, seek);
    }
}
