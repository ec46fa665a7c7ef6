//! One inode that the kernel knows, and the table of all of them.
//!
//! An inode costs memory, not a descriptor: it is found again by the names it was seen under. Those names are kept
//! true by every rename and unlink that passes through this mount.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::opened::OpenState;
use super::{Ino, TOP, memory};
use crate::content::LowerPlace;
use crate::format::journal::MAX_PATH;
use crate::vault::LowerStat;
use crate::vault::stat::S_IFDIR;

/// The names of one inode that are remembered; a file with more hard links is found by one of these.
const MAX_LINKS: usize = 8;
/// Parts of the table that are locked apart from one another.
const SHARDS: u64 = 64;
/// Places of the table for each inode at most, once there were more; a small table keeps what it has.
const ROOM: usize = 64;

/// A place where an inode was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Link {
    /// Directory.
    pub(super) parent: Ino,
    /// Lower name in it.
    pub(super) lower: Arc<str>,
}

/// Ways to find an inode without a handle.
#[derive(Debug, Default)]
pub(super) struct Ways {
    /// Names, the most recently seen first.
    pub(super) links: Vec<Link>,
    /// A descriptor of an inode whose last known name was removed; lives until the kernel forgets the inode.
    pub(super) pin: Option<Arc<OwnedFd>>,
}

/// An inode with kernel references.
#[derive(Debug)]
pub(super) struct Inode {
    /// Number as the mount shows it.
    pub(super) ino: Ino,
    /// What it looked like when first seen: number, device, birth time and type do not change.
    pub(super) first: LowerStat,
    /// Tells it from an earlier inode of the same number.
    pub(super) generation: u64,
    /// Where it is.
    pub(super) ways: Mutex<Ways>,
    /// Of a directory: how many entries were renamed away. A lookup that saw another count looks again.
    pub(super) moves: AtomicU64,
    /// Of a file: its content while it is open.
    pub(super) open: Mutex<OpenState>,
    /// Handles open for writing.
    pub(super) writers: AtomicU32,
    /// Whether it is known to have no xattr of the user's: made by this mount, which is the only one, and given none.
    pub(super) bare: AtomicBool,
}

impl Inode {
    /// An inode seen for the first time.
    pub(super) fn new(ino: Ino, first: LowerStat) -> Self {
        // The birth time makes the generation the same after a remount; without one a number that is used again
        // cannot be told from its predecessor, and the type alone has to do.
        let (seconds, nanos) = first.btime.unwrap_or((i64::from(first.kind()), 0));
        let generation = seconds.cast_unsigned().wrapping_mul(1_000_000_000).wrapping_add(nanos.into());
        Self {
            ino,
            first,
            generation,
            ways: Mutex::default(),
            moves: AtomicU64::new(0),
            open: Mutex::default(),
            writers: AtomicU32::new(0),
            bare: AtomicBool::new(false),
        }
    }

    /// Whether it is a directory.
    pub(super) fn is_dir(&self) -> bool {
        self.first.kind() == S_IFDIR
    }

    /// Remembers a name.
    pub(super) fn add_link(&self, parent: Ino, lower: &str) {
        let mut ways = self.ways.lock();
        if let Some(at) = ways.links.iter().position(|l| l.parent == parent && *l.lower == *lower) {
            ways.links[..=at].rotate_right(1);
            return;
        }
        // A directory has one name.
        ways.links.truncate(if self.is_dir() { 0 } else { MAX_LINKS - 1 });
        ways.links.insert(0, Link { parent, lower: lower.into() });
    }

    /// Forgets a name.
    pub(super) fn remove_link(&self, parent: Ino, lower: &str) {
        self.ways.lock().links.retain(|l| l.parent != parent || *l.lower != *lower);
    }

    /// The names, the most recently seen first.
    pub(super) fn links(&self) -> Vec<Link> {
        self.ways.lock().links.clone()
    }

    /// The descriptor that keeps a nameless inode.
    pub(super) fn pin(&self) -> Option<Arc<OwnedFd>> {
        self.ways.lock().pin.clone()
    }
}

/// An inode and its kernel references.
struct Known {
    inode: Arc<Inode>,
    references: u64,
}

/// What became of an attempt to enter an inode.
pub(super) enum Entered {
    /// It has one reference more.
    Yes(Arc<Inode>),
    /// An entry was renamed out of the directory meanwhile: what was looked up may be gone from there.
    Moved,
    /// The table knows another inode under this number: look again, then say `replace`.
    Other,
}

/// Every inode that the kernel knows, or that is open, or has changes in the journal.
pub(super) struct Table {
    shards: Vec<Mutex<HashMap<Ino, Known>>>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Table")
    }
}

impl Table {
    /// An empty table.
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, Known>> {
        &self.shards[(ino % SHARDS) as usize]
    }

    /// The inode of a number.
    pub(super) fn get(&self, ino: Ino) -> Option<Arc<Inode>> {
        self.shard(ino).lock().get(&ino).map(|k| Arc::clone(&k.inode))
    }

    /// Adds a reference to the inode that `stat` shows, found in `parent` under `lower` when the parent's count
    /// of moves was `moves`. `replace`: the number certainly belongs to another inode now.
    pub(super) fn enter(
        &self,
        (ino, stat): (Ino, &LowerStat),
        (parent, lower): (&Inode, &str),
        moves: Option<u64>,
        replace: bool,
    ) -> Entered {
        let mut shard = self.shard(ino).lock();
        // Under the shard's lock, as in `moved`: a name is never remembered after it was renamed away.
        if moves.is_some_and(|seen| parent.moves.load(Ordering::Acquire) != seen) {
            return Entered::Moved;
        }
        let fresh = || Arc::new(Inode::new(ino, *stat));
        let known = shard.entry(ino).or_insert_with(|| Known { inode: fresh(), references: 0 });
        if !known.inode.first.same_inode(stat) {
            if !replace {
                return Entered::Other;
            }
            // The kernel will give the old one's references back under the same number.
            known.inode = fresh();
        }
        known.references += 1;
        known.inode.add_link(parent.ino, lower);
        Entered::Yes(Arc::clone(&known.inode))
    }

    /// Notes that the inode `stat` left the name `old`, for `new` if that is given.
    pub(super) fn moved(
        &self,
        (ino, stat): (Ino, &LowerStat),
        (parent, old): (&Inode, &str),
        new: Option<(Ino, &str)>,
    ) {
        let shard = self.shard(ino).lock();
        parent.moves.fetch_add(1, Ordering::AcqRel);
        if let Some(known) = shard.get(&ino).filter(|k| k.inode.first.same_inode(stat)) {
            known.inode.remove_link(parent.ino, old);
            if let Some((parent, lower)) = new {
                known.inode.add_link(parent, lower);
            }
        }
    }

    /// Adds an inode that was made without a name and is found by `pin` until it has one; one reference. What the table knew
    /// by its number is gone.
    pub(super) fn enter_nameless(&self, (ino, made): (Ino, &LowerStat), pin: Arc<OwnedFd>) -> Arc<Inode> {
        let inode = Arc::new(Inode::new(ino, *made));
        inode.ways.lock().pin = Some(pin);
        let mut shard = self.shard(ino).lock();
        // The kernel will give the old one's references back under the same number.
        let references = shard.get(&ino).map_or(0, |k| k.references) + 1;
        let old = shard.insert(ino, Known { inode: Arc::clone(&inode), references });
        drop(shard);
        drop(old);
        inode
    }

    /// Adds a reference to an inode that someone holds, so that whoever looks it up meets the same one. False where the
    /// table knows another inode by that number.
    pub(super) fn hold(&self, inode: &Arc<Inode>) -> bool {
        let mut shard = self.shard(inode.ino).lock();
        let fresh = || Known { inode: Arc::clone(inode), references: 0 };
        let known = shard.entry(inode.ino).or_insert_with(fresh);
        let same = Arc::ptr_eq(&known.inode, inode);
        known.references += u64::from(same);
        same
    }

    /// Gives references back; `true` when the last one went and the inode with it.
    pub(super) fn forget(&self, ino: Ino, count: u64) -> bool {
        let mut shard = self.shard(ino).lock();
        let Some(known) = shard.get_mut(&ino) else { return false };
        known.references = known.references.saturating_sub(count);
        if known.references > 0 {
            return false;
        }
        let gone = shard.remove(&ino);
        if shard.capacity() > ROOM * (shard.len() + 1) {
            let some = 2 * shard.len();
            shard.shrink_to(some);
        }
        drop(shard);
        // Closing a pin may free a whole lower file: not under the lock.
        drop(gone);
        memory::forgotten();
        true
    }

    /// Where an inode is: its lower number, and the lower path under which it was seen last.
    pub(super) fn place(&self, inode: &Inode) -> LowerPlace {
        let mut parts: Vec<Arc<str>> = Vec::new();
        let mut link = inode.links().into_iter().next();
        let mut length = 0;
        while let Some(Link { parent, lower }) = link {
            length += lower.len() + 1;
            parts.push(lower);
            if parent == TOP {
                let path = parts.iter().rev().map(|p| p.as_bytes()).collect::<Vec<_>>().join(&b'/');
                return LowerPlace { inode: inode.first.ino, path };
            }
            if length > MAX_PATH {
                break;
            }
            link = self.get(parent).and_then(|above| above.links().into_iter().next());
        }
        LowerPlace { inode: inode.first.ino, path: Vec::new() }
    }

    /// Every inode, for closing.
    pub(super) fn all(&self) -> Vec<Arc<Inode>> {
        let of = |s: &Mutex<HashMap<Ino, Known>>| {
            s.lock().values().map(|k| Arc::clone(&k.inode)).collect::<Vec<_>>()
        };
        self.shards.iter().flat_map(of).collect()
    }
}
