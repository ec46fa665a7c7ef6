//! The journal: what changes in a durable file is written here first, and goes to its place later.
//!
//! Two logs are used in turn. The *active* one takes every record; when it is large or old enough it becomes the
//! *old* one, the files that it names are checkpointed, and its space is used again. Records of one moment are thus
//! in at most two logs.
//!
//! Locks: `checkpointing`, then a file's gate and slots, then `state`; none of a file's is taken under `state`.

mod log;
mod replay;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

pub(super) use log::Log;
use log::Tail;
pub use replay::{Finder, Found, Replay, Replayed};

use super::Result;
use super::file::File;
use crate::crypto::JournalRoot;
use crate::format::ids::FileId;
use crate::format::journal::{Draft, HEADER, Time};
use crate::vault::JournalStore;

/// Bounds of the journal.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a log at which its files are checkpointed; writers wait when it has twice as many.
    pub bytes: u64,
    /// Changed map pages held in memory at which files are checkpointed: 4 KiB each.
    pub pages: usize,
    /// Age of the oldest change at which files are checkpointed.
    pub age: Duration,
    /// The same for a file that was closed.
    pub closed: Duration,
    /// How often files that were made are made durable.
    pub settle: Duration,
    /// Whether a thread sees to all this; otherwise only [`Journal::checkpoint`] does, and writers that must wait.
    pub background: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 32 << 20,
            pages: 2048,
            age: Duration::from_secs(5),
            closed: Duration::from_secs(1),
            settle: Duration::from_secs(30),
            background: true,
        }
    }
}

/// Bytes of each log that are set aside, so that what is there can be changed on a full disk: more than a request has.
const RESERVED: u64 = 2 << 20;
/// Pause after a checkpoint that failed.
const RETRY: Duration = Duration::from_secs(1);
/// Leaves out what makes the order of writes durable, so that a test can see the harness find it. Debug builds only.
const UNORDERED: &str = "ENVELOPEFS_TEST_UNORDERED";

/// Where a sealed block stands in a log.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) log: Arc<Log>,
    pub(super) at: u64,
    pub(super) len: usize,
}

/// A log in use.
struct Generation {
    log: Arc<Log>,
    tail: Tail,
    /// By identity: a file that was closed and opened again is another one, with changes of its own.
    files: HashMap<usize, Arc<File>>,
    pages: usize,
}

impl Generation {
    fn new(log: Log) -> Self {
        Self { log: Arc::new(log), tail: Tail::START, files: HashMap::new(), pages: 0 }
    }

    fn is_empty(&self) -> bool {
        self.files.is_empty() && self.tail.end == HEADER as u64
    }
}

struct State {
    active: Generation,
    old: Option<Generation>,
    spare: Vec<(u32, Box<dyn crate::vault::LowerFile>)>,
    next_slot: u32,
    born_since: Time,
    /// Records appended so far.
    appended: u64,
    /// Files made and not durable yet.
    fresh: Vec<Weak<File>>,
    /// When something was made that `fresh` or a closed file holds.
    made: Option<Instant>,
    /// Count of records up to the last that says which times count no more.
    landed: u64,
    /// When to checkpoint.
    due: Option<Instant>,
    started: bool,
    stop: bool,
}

#[derive(Default)]
struct Syncs {
    /// Of the records appended so far, those that are durable.
    done: u64,
    running: bool,
}

/// The journal of a mounted vault.
pub struct Journal {
    store: Box<dyn JournalStore>,
    root: JournalRoot,
    limits: Limits,
    state: Mutex<State>,
    wake: Condvar,
    checkpointing: Mutex<()>,
    syncs: Mutex<Syncs>,
    synced: Condvar,
    /// Number of the active generation, to look at without the lock.
    generation: AtomicU64,
    /// A log could not be made durable: what it holds must reach its place before anything counts as durable again.
    doubtful: AtomicBool,
    unordered: bool,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// What a record's append gives.
pub(super) struct Appended {
    pub(super) log: Arc<Log>,
    pub(super) at: u64,
    /// Count of records up to this one, for [`Journal::sync`].
    pub(super) ticket: u64,
}

impl Journal {
    /// Begins a journal in a store whose old logs were replayed and removed.
    pub fn start(store: Box<dyn JournalStore>, root: JournalRoot, limits: Limits) -> io::Result<Arc<Self>> {
        let born_since = store.now();
        if !store.is_swept() {
            // A process that was killed, or changed files in place, may have left them in the page cache alone.
            store.sync_all()?;
        }
        let first = (0, store.open(0)?);
        // One more than are in use at once: a replay has one for itself then, also on a full disk.
        let spare = vec![(2, store.open(2)?), (1, store.open(1)?)];
        for file in [&first.1, &spare[0].1, &spare[1].1] {
            match file.reserve(0, RESERVED) {
                Ok(()) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
                    ::log::warn!(
                        "no room for the journal: durable files cannot be changed until there is: {e}"
                    );
                }
                Err(e) => return Err(e),
            }
        }
        let log = Log::begin(first, &root, (1, 1), born_since, store.home())?;
        // What was made since then must be found again, whatever else is lost.
        log.sync()?;
        let state = State {
            active: Generation::new(log),
            old: None,
            spare,
            next_slot: 3,
            born_since,
            appended: 0,
            fresh: Vec::new(),
            made: None,
            landed: 0,
            due: None,
            started: false,
            stop: false,
        };
        Ok(Arc::new(Self {
            store,
            root,
            limits,
            state: Mutex::new(state),
            wake: Condvar::new(),
            checkpointing: Mutex::default(),
            syncs: Mutex::default(),
            synced: Condvar::new(),
            generation: AtomicU64::new(1),
            doubtful: AtomicBool::new(false),
            unordered: cfg!(debug_assertions) && std::env::var_os(UNORDERED).is_some(),
        }))
    }

    /// Whether a file born at this time is known to be durable as it lies.
    pub fn is_durable(&self, born: Option<Time>) -> bool {
        born.is_some_and(|born| born < self.state.lock().born_since)
    }

    /// The newest record: its generation and sequence number.
    pub(super) fn position(&self) -> (u64, u64) {
        let active = &self.state.lock().active;
        (active.log.header.generation, active.tail.sequence - 1)
    }

    /// What [`Self::sync`] must make durable so that times in logs which are done with count no more.
    pub(super) fn landed(&self) -> u64 {
        self.state.lock().landed
    }

    /// Notes a file that was just made.
    pub(super) fn made(self: &Arc<Self>, file: &Arc<File>) {
        let mut state = self.state.lock();
        if state.fresh.len() == state.fresh.capacity() {
            state.fresh.retain(|f| f.strong_count() > 0);
        }
        state.fresh.push(Arc::downgrade(file));
        // The thread knows from the first one on when it has to look: a wake-up for each would cost more than the create.
        if state.made.is_none() || !state.started {
            state.made.get_or_insert_with(Instant::now);
            self.started(state);
        }
    }

    /// Appends a record of a file. Under the file's locks.
    pub(super) fn append(
        self: &Arc<Self>,
        file: &Arc<File>,
        draft: Draft,
        pages: usize,
    ) -> io::Result<Appended> {
        let mut name = None;
        loop {
            // Its name takes locks of others: not under the state's.
            let generation = self.generation.load(Ordering::Acquire);
            if file.named_in() != generation && name.is_none() {
                name = Some(file.name());
            }
            let mut state = self.state.lock();
            let known = state.active.files.contains_key(&identity(file));
            if !known && name.is_none() {
                continue;
            }
            if !known && let Some(name) = name.take() {
                state.write(name)?;
                state.active.files.insert(identity(file), Arc::clone(file));
                file.set_named_in(state.active.log.header.generation);
            }
            let is_times = draft.is_times();
            let at = state.write(draft)?;
            if is_times {
                file.set_times_in(state.active.log.header.generation);
            }
            state.active.pages += pages;
            let appended = Appended { log: Arc::clone(&state.active.log), at, ticket: state.appended };
            let full = self.is_full(&state);
            let now = Instant::now();
            let due = if full { now } else { now + self.limits.age };
            let sooner = state.due.is_none_or(|d| due < d);
            if sooner {
                state.due = Some(due);
            }
            if full && sooner || !state.started {
                self.started(state);
            }
            return Ok(appended);
        }
    }

    /// Appends a note about a file if records of it are waiting.
    pub(super) fn note(&self, file: &File, draft: Draft) -> io::Result<()> {
        let mut state = self.state.lock();
        let waits = |g: &Generation| g.files.contains_key(&identity(file));
        if waits(&state.active) || state.old.as_ref().is_some_and(waits) {
            state.write(draft)?;
        }
        Ok(())
    }

    /// A changed file was closed: it is not kept waiting long.
    pub(super) fn closed(&self) {
        let mut state = self.state.lock();
        let due = Instant::now() + self.limits.closed;
        if state.due.is_some_and(|d| due < d) {
            state.due = Some(due);
            self.wake.notify_all();
        }
    }

    fn is_full(&self, state: &State) -> bool {
        state.active.tail.end >= self.limits.bytes || state.active.pages >= self.limits.pages
    }

    /// Waits until there is room for a change. Not under a file's locks.
    pub(super) fn admit(&self) -> io::Result<()> {
        let full = |state: &State, times: u64| {
            state.active.tail.end >= times * self.limits.bytes
                || state.active.pages as u64 >= times * self.limits.pages as u64
        };
        let times = if self.limits.background { 2 } else { 1 };
        if !full(&self.state.lock(), times) {
            return Ok(());
        }
        let done = self.checkpoint();
        if full(&self.state.lock(), 2 * times) { done } else { Ok(()) }
    }

    /// Makes the first `ticket` records durable. Callers that wait at the same time share one sync.
    pub(super) fn sync(&self, ticket: u64) -> io::Result<()> {
        if self.unordered {
            return Ok(());
        }
        let mut syncs = self.syncs.lock();
        loop {
            if self.doubtful.load(Ordering::Acquire) {
                drop(syncs);
                return self.checkpoint();
            }
            if syncs.done >= ticket {
                return Ok(());
            }
            if !syncs.running {
                break;
            }
            self.synced.wait(&mut syncs);
        }
        syncs.running = true;
        drop(syncs);
        let (logs, appended) = {
            let state = self.state.lock();
            let old = state.old.as_ref().map(|g| Arc::clone(&g.log));
            (old.into_iter().chain([Arc::clone(&state.active.log)]).collect::<Vec<_>>(), state.appended)
        };
        let done = logs.iter().try_for_each(|log| log.sync());
        let mut syncs = self.syncs.lock();
        syncs.running = false;
        match done {
            Ok(()) => syncs.done = syncs.done.max(appended),
            // The kernel may have dropped the pages that it could not write: asking again would prove nothing.
            Err(_) => self.doubtful.store(true, Ordering::Release),
        }
        self.synced.notify_all();
        done
    }

    /// Whether something of a file may be in the journal only.
    pub fn holds(&self, id: FileId) -> bool {
        let state = self.state.lock();
        let logs = [Some(&state.active), state.old.as_ref()];
        logs.into_iter().flatten().flat_map(|log| log.files.values()).any(|file| file.id() == id)
    }

    /// Brings every change that stands in the journal now to its place.
    pub fn checkpoint(&self) -> io::Result<()> {
        let _one = self.checkpointing.lock();
        let old_left = self.state.lock().old.is_some();
        if old_left {
            self.checkpoint_old()?;
        }
        let active = {
            let state = self.state.lock();
            if state.active.is_empty() {
                return Ok(());
            }
            Arc::clone(&state.active.log)
        };
        let next = self.begin_next(active.header.generation)?;
        let appended = self.state.lock().appended;
        if !self.unordered {
            active.sync()?;
        }
        drop(active);
        {
            let mut state = self.state.lock();
            // Records of the next log must not outlive those before them. What came since the line above is little.
            if !self.unordered && state.appended != appended {
                state.active.log.sync()?;
            }
            self.switch(&mut state, next);
        }
        self.checkpoint_old()?;
        self.doubtful.store(false, Ordering::Release);
        Ok(())
    }

    /// The log behind the generation `last`. Under `checkpointing`.
    fn begin_next(&self, last: u64) -> io::Result<Log> {
        let (spare, born_since) = {
            let mut state = self.state.lock();
            let spare = state.spare.pop().map_or_else(|| Err(state.next_slot), Ok);
            (spare, state.born_since)
        };
        let spare = match spare {
            Ok(spare) => spare,
            Err(slot) => (slot, self.store.open(slot)?),
        };
        {
            let mut state = self.state.lock();
            state.next_slot = state.next_slot.max(spare.0 + 1);
        }
        let slot = spare.0;
        let begun = Log::begin(spare, &self.root, (last + 1, last), born_since, self.store.home());
        let log = begun.inspect_err(|_| {
            // For the next try; where it cannot even be opened, that takes another.
            if let Ok(file) = self.store.open(slot) {
                self.state.lock().spare.push((slot, file));
            }
        })?;
        // Records go over those of a log that is done: it must not be read again with a part of them.
        if !self.unordered {
            log.sync()?;
        }
        Ok(log)
    }

    /// The active log becomes the old one.
    fn switch(&self, state: &mut State, next: Log) {
        let generation = next.header.generation;
        state.old = Some(std::mem::replace(&mut state.active, Generation::new(next)));
        state.due = None;
        self.generation.store(generation, Ordering::Release);
    }

    /// Checkpoints the files of the old log, then gives its space back.
    fn checkpoint_old(&self) -> io::Result<()> {
        let (files, generation) = {
            let state = self.state.lock();
            let Some(old) = &state.old else { return Ok(()) };
            (old.files.values().cloned().collect::<Vec<_>>(), old.log.header.generation)
        };
        let mut failed = None;
        for batch in files.chunks(BATCH) {
            if let Err(e) = self.checkpoint_files(batch) {
                failed.get_or_insert(e);
            }
        }
        if let Some(e) = failed {
            return Err(e);
        }
        let old = {
            let mut state = self.state.lock();
            state.end_times(generation, &files)?;
            state.old.take()
        };
        files.iter().for_each(|file| drop(file.done()));
        drop(files);
        if let Some(Generation { log, .. }) = old {
            match Arc::try_unwrap(log) {
                Ok(log) => self.state.lock().spare.push(log.into_file()),
                Err(log) => self.store.remove(log.slot)?,
            }
        }
        Ok(())
    }

    /// The order that makes a cut at any moment harmless: data, images of the pages in the journal, the places.
    fn checkpoint_files(&self, files: &[Arc<File>]) -> io::Result<()> {
        let many = files.len() > SYNC_ALL_FROM;
        let sync = |file: &Arc<File>| if many || self.unordered { Ok(()) } else { file.sync_places() };
        let sync_all = |file: &Arc<File>| if many || self.unordered { Ok(()) } else { file.sync_filled() };
        let mut failed = None;
        let mut step = |files: &mut Vec<&Arc<File>>, work: &dyn Fn(&Arc<File>) -> Result<bool>| {
            files.retain(|file| match work(file) {
                Ok(more) => more,
                Err(e) => {
                    ::log::warn!("file {}: checkpoint: {e}; its changes stay in the journal", file.id());
                    failed.get_or_insert(e.into());
                    false
                }
            });
        };
        let mut left: Vec<_> = files.iter().collect();
        step(&mut left, &|file| file.snapshot());
        // Files of which the log has nothing else are synced for their times.
        let mut rest: Vec<_> =
            files.iter().filter(|file| file.times_in() != 0 && !file.is_in_flight()).collect();
        step(&mut rest, &|file| sync_all(file).map(|()| true));
        step(&mut left, &|file| sync(file).map(|()| true));
        if many && !self.unordered {
            self.store.sync_all()?;
        }
        step(&mut left, &|file| {
            file.images().into_iter().try_for_each(|draft| self.state.lock().write(draft).map(drop))?;
            Ok(true)
        });
        if !left.is_empty() && !self.unordered {
            let log = Arc::clone(&self.state.lock().active.log);
            log.sync()?;
        }
        step(&mut left, &|file| file.fill_places().map(|()| true));
        step(&mut left, &|file| sync_all(file).map(|()| true));
        if many && !self.unordered {
            self.store.sync_all()?;
        }
        // What was cut is made durable too, so that the lower length tells the file's.
        step(&mut left, &|file| file.land().map(|(_, cut)| cut));
        if left.len() > SYNC_ALL_FROM && !self.unordered {
            self.store.sync_all()?;
        } else if !self.unordered {
            step(&mut left, &|file| file.sync_filled().map(|()| true));
        }
        match failed {
            None => Ok(()),
            Some(e) => Err(e),
        }
    }

    /// Makes every file that was made so far durable, and with it everything else on the vault's filesystem.
    pub fn settle(&self) -> io::Result<()> {
        let (fresh, since) = {
            let mut state = self.state.lock();
            state.made = None;
            (std::mem::take(&mut state.fresh), self.store.now())
        };
        // From here on their changes are journaled: what the sync finds in place is what stays there.
        for file in fresh.iter().filter_map(Weak::upgrade) {
            file.end_of_freshness()?;
        }
        if !self.unordered {
            self.store.sync_all()?;
        }
        let mut state = self.state.lock();
        state.born_since = since;
        state.write(Draft::settled(since)).map(drop)
    }

    /// Ends the journal: everything goes to its place, the logs go.
    pub fn close(&self) -> io::Result<()> {
        {
            let mut state = self.state.lock();
            state.stop = true;
            self.wake.notify_all();
        }
        // Changes made while the first one ran.
        for _ in 0..2 {
            self.checkpoint()?;
        }
        let made = self.state.lock().made.is_some();
        if made {
            self.settle()?;
        }
        let mut state = self.state.lock();
        if !state.active.files.is_empty() {
            return Err(io::Error::other("changes are still being made"));
        }
        state.spare.clear();
        let active = state.active.log.slot;
        drop(state);
        // Also one that an error left behind. The newest last: it tells which of the others count.
        let others = self.store.list()?.into_iter().filter(|slot| *slot != active);
        for slot in others.chain([active]) {
            self.store.remove(slot)?;
        }
        Ok(())
    }

    /// Starts the thread when there is something to do, so that it inherits the sandbox of whoever came first.
    fn started(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        self.wake.notify_all();
        if state.started || !self.limits.background {
            return;
        }
        state.started = true;
        drop(state);
        let journal = Arc::downgrade(self);
        let thread = std::thread::Builder::new().name("efs-journal".to_owned());
        if let Err(e) = thread.spawn(move || work(&journal)) {
            ::log::error!("the journal's thread does not start: {e}; writers checkpoint themselves");
        }
    }

    /// Waits for something to do, and does it; false at the end.
    fn turn(&self) -> bool {
        let (checkpoint, settle) = {
            let mut state = self.state.lock();
            if state.stop {
                return false;
            }
            let now = Instant::now();
            let settle = state.made.map(|m| m + self.limits.settle);
            let next = [state.due, settle].into_iter().flatten().min();
            match next {
                Some(at) if at <= now => {
                    (state.due.is_some_and(|d| d <= now), settle.is_some_and(|s| s <= now))
                }
                _ => {
                    // A while at most, so that a journal nobody holds any more is let go.
                    let until = next.unwrap_or(now + TURN).min(now + TURN);
                    self.wake.wait_until(&mut state, until);
                    return !state.stop;
                }
            }
        };
        let done = if checkpoint { self.checkpoint() } else { Ok(()) };
        let done = done.and_then(|()| if settle { self.settle() } else { Ok(()) });
        if let Err(e) = done {
            ::log::error!("the journal could not be checkpointed: {e}; trying again");
            let mut state = self.state.lock();
            let again = Instant::now() + RETRY;
            state.due = Some(again);
            if settle {
                state.made = Some(Instant::now());
            }
            if !state.stop {
                self.wake.wait_until(&mut state, again);
            }
        }
        true
    }
}

/// Tells an open file from another opening of the same one, as long as somebody holds it.
fn identity(file: &File) -> usize {
    std::ptr::from_ref(file).addr()
}

/// Files checkpointed together.
const BATCH: usize = 1024;
/// From so many files on, one sync of the whole filesystem is less work than one for each.
const SYNC_ALL_FROM: usize = 16;
/// The longest sleep of the journal's thread.
const TURN: Duration = Duration::from_secs(10);

fn work(journal: &Weak<Journal>) {
    while let Some(journal) = journal.upgrade() {
        if !journal.turn() {
            return;
        }
    }
}

impl State {
    fn write(&mut self, draft: Draft) -> io::Result<u64> {
        let at = self.active.log.append(&mut self.active.tail, draft)?;
        self.appended += 1;
        Ok(at)
    }

    /// Times of files in logs up to `generation` are durable where they belong.
    fn end_times(&mut self, generation: u64, files: &[Arc<File>]) -> io::Result<()> {
        let ended = |file: &&Arc<File>| (1..=generation).contains(&file.times_in());
        if !files.iter().any(|file| ended(&file)) {
            return Ok(());
        }
        self.write(Draft::landed(generation))?;
        self.landed = self.appended;
        for file in files.iter().filter(ended) {
            // In this order: whoever sees no time any more waits for the record.
            file.raise_ticket(self.appended);
            file.set_times_in(0);
        }
        Ok(())
    }
}
