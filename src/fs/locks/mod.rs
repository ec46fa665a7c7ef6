//! Locks of files, handed through to the lower filesystem, where other hosts meet them (mounts with `shared` only).
//!
//! Each owner has a lower descriptor of his own, since locks below belong to open files. Nothing here waits for a lock: who
//! has to is told EAGAIN and comes again.

mod owner;
mod spans;

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;

use self::owner::{Lower, Owner, Who};
use self::spans::Span;
use super::inode::Inode;
use super::opened::Held;
use super::{Fs, Ino, Result};
use crate::vault::access::{self, Want};
use crate::vault::locks;

pub(super) use self::owner::Locks;
pub use crate::vault::locks::{LAST, LockKind, Range};

/// What a lock is asked for.
#[derive(Clone, Copy, Debug)]
pub struct LockAsk {
    /// The handle through which.
    pub fh: u64,
    /// Whose it shall be: the kernel's number of a process, or of a handle.
    pub owner: u64,
    /// Which bytes.
    pub range: Range,
    /// How; `None` lets go.
    pub kind: Option<LockKind>,
    /// The process that asks.
    pub pid: u32,
    /// `flock`: of the whole file, by the handle.
    pub whole: bool,
}

impl LockAsk {
    fn who(&self) -> Who {
        if self.whole { Who::Whole(self.fh) } else { Who::Ranges(self.owner) }
    }
}

/// A lock that somebody has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FoundLock {
    /// Which bytes.
    pub range: Range,
    /// How.
    pub kind: LockKind,
    /// The process; 0 where it is another host's.
    pub pid: u32,
}

/// What a lock that was got asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Granted {
    /// Nothing: the owner had locked all of it before, so nobody has changed it.
    AsBefore,
    /// Whatever is cached of the file above may be old.
    Fresh,
}

impl Fs {
    /// Locks or lets go; EAGAIN while another is in the way. What others wrote under their locks is seen from then on.
    pub fn set_lock(&self, ask: &LockAsk) -> Result<Granted> {
        let held = self.files.get(ask.fh)?;
        let Some(kind) = ask.kind else { return self.let_go(&held, ask) };
        let span = Span { range: ask.range, kind, pid: ask.pid };
        let owner = self.owner(&held, ask.who())?;
        let mut lower = owner.lower.lock();
        if kind == LockKind::Write && held.write && !lower.writable && !ask.whole {
            owner.move_to(&mut lower, self.lower_for(&held)?)?;
        }
        let before = owner.covers(&ask.range);
        owner.lock(&lower, ask.fh, span)?;
        if before {
            return Ok(Granted::AsBefore);
        }
        let seen = self.look_afresh(&held.inode, &lower.file);
        if let Err(e) = seen {
            // Whoever has the lock would work on what is no more.
            let _ = owner.unlock(&lower, &ask.range);
            return Err(e);
        }
        Ok(Granted::Fresh)
    }

    fn let_go(&self, held: &Held, ask: &LockAsk) -> Result<Granted> {
        let Some(owner) = self.locks.get(held.inode.ino, ask.who()) else { return Ok(Granted::AsBefore) };
        if let Err(e) = hand_over(held) {
            // `fsync` and `close` say it; the lock must go all the same.
            log::debug!("inode {}: handing its content over before an unlock: {e}", held.inode.ino);
        }
        owner.unlock(&owner.lower.lock(), &ask.range)?;
        Ok(Granted::AsBefore)
    }

    /// A lock that keeps the owner from locking so.
    pub fn find_lock(&self, ask: &LockAsk) -> Result<Option<FoundLock>> {
        let held = self.files.get(ask.fh)?;
        let (ino, who) = (held.inode.ino, ask.who());
        let Some(kind) = ask.kind else { return Err(Errno::INVAL.into()) };
        if let Some(Span { range, kind, pid }) = self.locks.in_the_way(ino, who, &ask.range, kind) {
            return Ok(Some(FoundLock { range, kind, pid }));
        }
        let found = match self.locks.get(ino, who) {
            Some(owner) => locks::in_the_way(&owner.lower.lock().file, ask.range, kind)?,
            // The descriptor of the content, which never has a lock itself.
            None => locks::in_the_way(&held.file.lower().0, ask.range, kind)?,
        };
        Ok(found.map(|(range, kind)| FoundLock { range, kind, pid: 0 }))
    }

    /// A descriptor of a handle was closed by `owner`, whose locks of ranges in the file end (close(2)). What was written
    /// stands in the lower filesystem for other hosts, or the error tells that it does not.
    pub fn flush(&self, fh: u64, owner: u64) -> Result<()> {
        let held = self.files.get(fh)?;
        let done = hand_over(&held);
        self.locks.remove(held.inode.ino, Who::Ranges(owner));
        Ok(done?)
    }

    /// The last descriptor of a handle was closed: its own locks end.
    pub(super) fn release_locks(&self, ino: Ino, fh: u64) {
        self.locks.remove_handle(ino, fh);
    }

    fn owner(&self, held: &Held, who: Who) -> Result<Arc<Owner>> {
        let ino = held.inode.ino;
        if let Some(owner) = self.locks.get(ino, who) {
            return Ok(owner);
        }
        Ok(self.locks.add(ino, who, Owner::new(who, self.lower_for(held)?))?)
    }

    fn lower_for(&self, held: &Held) -> Result<Lower> {
        let want = match (self.options.read_only, held.write) {
            (true, _) => Want::ReadOnly,
            (false, true) => Want::Write,
            (false, false) => Want::Read,
        };
        let (file, writable) = self.with_room(|| Ok(access::open_content(&held.file.lower().0, want)?))?;
        Ok(Lower { file, writable })
    }

    /// Takes what other hosts wrote before they let go of their locks.
    fn look_afresh(&self, inode: &Arc<Inode>, lower: &File) -> Result<()> {
        // A client of a network filesystem takes another's changes over when a file is opened, and its length when told to.
        drop(access::open_content(lower, Want::ReadOnly)?);
        rustix::fs::statx(
            lower.as_fd(),
            c"",
            AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC,
            StatxFlags::BASIC_STATS,
        )?;
        self.refresh(inode)
    }

    /// The one place where a lock that was got makes this mount forget what it keeps of the file.
    fn refresh(&self, inode: &Arc<Inode>) -> Result<()> {
        self.again(inode, || self.reread(inode))
    }
}

/// Has the lower client store what was written, as it does for any program that closes a descriptor.
fn hand_over(held: &Held) -> std::result::Result<(), Errno> {
    if !held.write {
        return Ok(());
    }
    locks::close_another(&held.file.lower().0)
}
