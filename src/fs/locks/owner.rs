//! Who has locks in a file, with a lower descriptor of his own; and all of them, by inode.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::spans::{Span, Spans};
use crate::fs::Ino;
use crate::vault::locks::{self, LockKind, Range};

/// Owners at once, at most; and no more than an eighth of the descriptors.
const MOST: u64 = 4096;

/// By whom locks are owned.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Who {
    /// Ranges: a process (or, of open file description locks, a handle), by the kernel's number.
    Ranges(u64),
    /// `flock`: a handle.
    Whole(u64),
}

/// The descriptor that has the locks below.
#[derive(Debug)]
pub(super) struct Lower {
    pub(super) file: File,
    /// Whether it may have write locks of ranges.
    pub(super) writable: bool,
}

/// An owner's locks in one file; they end with it.
#[derive(Debug)]
pub(super) struct Owner {
    who: Who,
    /// Held while the lower filesystem is asked, so that what is remembered follows in the same order.
    pub(super) lower: Mutex<Lower>,
    spans: Mutex<Spans>,
    /// The handle that was used last.
    fh: AtomicU64,
}

impl Owner {
    pub(super) fn new(who: Who, lower: Lower) -> Self {
        Self { who, lower: Mutex::new(lower), spans: Mutex::default(), fh: AtomicU64::new(0) }
    }

    /// Whether all of a range is locked already.
    pub(super) fn covers(&self, range: &Range) -> bool {
        self.spans.lock().cover(range)
    }

    /// Locks. The caller holds `lower`.
    pub(super) fn lock(&self, lower: &Lower, fh: u64, span: Span) -> Result<(), Errno> {
        self.fh.store(fh, Ordering::Release);
        self.spans.lock().has_room()?;
        match self.who {
            Who::Ranges(_) => locks::lock(&lower.file, span.range, span.kind),
            Who::Whole(_) => locks::lock_whole(&lower.file, span.kind),
        }
        // A conversion of `flock` that has to wait has let go first (flock(2)).
        .inspect_err(|_| {
            if matches!(self.who, Who::Whole(_)) {
                self.spans.lock().remove(&span.range)
            }
        })?;
        self.spans.lock().put(span);
        Ok(())
    }

    /// Lets go of a range. The caller holds `lower`.
    pub(super) fn unlock(&self, lower: &Lower, range: &Range) -> Result<(), Errno> {
        self.spans.lock().has_room()?;
        match self.who {
            Who::Ranges(_) => locks::unlock(&lower.file, *range),
            Who::Whole(_) => locks::unlock_whole(&lower.file),
        }?;
        self.spans.lock().remove(range);
        Ok(())
    }

    /// Moves locks of ranges to a descriptor that may have write locks, too; without letting go of any: what the old one has
    /// are locks for reading. The caller holds `lower`.
    pub(super) fn move_to(&self, lower: &mut Lower, new: Lower) -> Result<(), Errno> {
        for span in self.spans.lock().iter() {
            locks::lock(&new.file, span.range, span.kind)?;
        }
        let old = std::mem::replace(lower, new);
        locks::unlock(&old.file, Range::WHOLE)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Not left to the closing of the descriptor: a FUSE filesystem below does not hear of it in time, or at all.
        let lower = self.lower.get_mut();
        let done = match (self.who, self.spans.get_mut().is_empty()) {
            (_, true) => Ok(()),
            (Who::Ranges(_), _) => locks::unlock(&lower.file, Range::WHOLE),
            (Who::Whole(_), _) => locks::unlock_whole(&lower.file),
        };
        if let Err(e) = done {
            log::debug!("locks of a closed file are left to the lower filesystem to free: {e}");
        }
    }
}

/// Every owner of locks.
pub(in crate::fs) struct Locks {
    owners: Mutex<BTreeMap<(Ino, Who), Arc<Owner>>>,
    most: usize,
}

impl Locks {
    /// Nobody yet; `descriptors`: how many this process may have.
    pub(in crate::fs) fn new(descriptors: u64) -> Self {
        let most = usize::try_from((descriptors / 8).min(MOST)).unwrap_or(0);
        Self { owners: Mutex::default(), most }
    }

    pub(super) fn get(&self, ino: Ino, who: Who) -> Option<Arc<Owner>> {
        self.owners.lock().get(&(ino, who)).cloned()
    }

    /// Adds an owner, unless he was added meanwhile; ENOLCK where there are too many who have locks.
    pub(super) fn add(&self, ino: Ino, who: Who, owner: Owner) -> Result<Arc<Owner>, Errno> {
        let idle = |owner: &mut Arc<Owner>| Arc::strong_count(owner) == 1 && owner.spans.lock().is_empty();
        let mut owners = self.owners.lock();
        if owners.len() >= self.most {
            // Those who let go of everything, and have not closed.
            owners.retain(|_, owner| !idle(owner));
        }
        if owners.len() >= self.most {
            return Err(Errno::NOLCK);
        }
        Ok(Arc::clone(owners.entry((ino, who)).or_insert_with(|| Arc::new(owner))))
    }

    /// Ends an owner's locks; whether there was one.
    pub(super) fn remove(&self, ino: Ino, who: Who) -> bool {
        let gone = self.owners.lock().remove(&(ino, who));
        // Dropped after the lock: the lower filesystem is asked.
        gone.is_some()
    }

    /// Ends the locks of a handle; whether there were any.
    pub(super) fn remove_handle(&self, ino: Ino, fh: u64) -> bool {
        let mut gone = Vec::new();
        let mut owners = self.owners.lock();
        if owners.is_empty() {
            return false;
        }
        gone.extend(owners.remove(&(ino, Who::Whole(fh))));
        let of_handle = |owner: &Owner| owner.fh.load(Ordering::Acquire) == fh;
        let all = owners.range((ino, Who::Ranges(0))..=(ino, Who::Ranges(u64::MAX)));
        let keys: Vec<_> = all.filter(|(_, owner)| of_handle(owner)).map(|(key, _)| *key).collect();
        gone.extend(keys.iter().filter_map(|key| owners.remove(key)));
        drop(owners);
        !gone.is_empty()
    }

    /// A range that somebody else of this mount has, where it keeps `who` from locking `range` so.
    pub(super) fn in_the_way(&self, ino: Ino, who: Who, range: &Range, kind: LockKind) -> Option<Span> {
        let owners = self.owners.lock();
        let all = owners.range((ino, Who::Ranges(0))..=(ino, Who::Ranges(u64::MAX)));
        let mut others = all.filter(|((_, other), _)| *other != who);
        others.find_map(|(_, owner)| owner.spans.lock().in_the_way(range, kind))
    }

    /// Ends everybody's locks.
    pub(in crate::fs) fn clear(&self) {
        let gone = std::mem::take(&mut *self.owners.lock());
        drop(gone);
    }
}
