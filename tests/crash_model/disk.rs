//! Lower files in memory that forget what was not synced.
//!
//! What a power cut leaves of a file: its length and freed ranges as they were at some instant since the last sync, the
//! same instant for all of them, since filesystems keep metadata in order; and of each page of 4 KiB any state it
//! was in since then, or a mix of two of them, torn at 512 bytes. Pages of a range whose freeing was forgotten keep what they
//! had before it; pages of one that was freed read as zeros until something written later arrived.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use envelopefs::format::journal::{Home, Time};
use envelopefs::vault::LowerFile;
use envelopefs::vault::journal::JournalStore;
use parking_lot::Mutex;

const PAGE: usize = 4096;
const SECTOR: usize = 512;

type Page = Box<[u8; PAGE]>;

/// What happened to a page since the last sync.
enum Event {
    /// It was written; how it looks.
    Data(Page),
    /// All of it was freed, at an instant.
    Freed(usize),
    /// What lies behind an offset in it was cut off, at an instant; how it looks.
    Cut(usize, usize, Page),
}

/// One file's bytes.
#[derive(Default)]
struct Bytes {
    now: Vec<u8>,
    durable: Vec<u8>,
    pages: BTreeMap<usize, Vec<Event>>,
    /// Length after each change of it since the last sync, with its instant.
    lengths: Vec<(usize, usize)>,
    clock: usize,
    /// When it was changed last: what is durable, and each one since.
    modified: Vec<Time>,
    /// How often it was synced by itself.
    syncs: usize,
}

impl Bytes {
    fn page(&self, at: usize) -> Page {
        let mut page = Box::new([0; PAGE]);
        let from = (at * PAGE).min(self.now.len());
        let part = &self.now[from..self.now.len().min((at + 1) * PAGE)];
        page[..part.len()].copy_from_slice(part);
        page
    }

    fn note(&mut self, at: usize, event: Event) {
        self.pages.entry(at).or_default().push(event);
    }

    fn resize(&mut self, len: usize) {
        if self.now.len() != len {
            self.now.resize(len, 0);
            self.lengths.push((self.clock, len));
        }
    }

    fn write(&mut self, bufs: &[IoSlice<'_>], offset: usize) {
        self.clock += 1;
        let end = offset + bufs.iter().map(|b| b.len()).sum::<usize>();
        self.resize(self.now.len().max(end));
        let mut at = offset;
        for buf in bufs {
            self.now[at..at + buf.len()].copy_from_slice(buf);
            at += buf.len();
        }
        for page in offset / PAGE..end.div_ceil(PAGE) {
            let event = Event::Data(self.page(page));
            self.note(page, event);
        }
    }

    fn set_len(&mut self, len: usize) {
        self.clock += 1;
        let old = self.now.len();
        self.resize(len);
        if !len.is_multiple_of(PAGE) && len < old {
            let event = Event::Cut(self.clock, len % PAGE, self.page(len / PAGE));
            self.note(len / PAGE, event);
        }
        for page in len.div_ceil(PAGE)..old.div_ceil(PAGE) {
            self.note(page, Event::Freed(self.clock));
        }
    }

    fn punch(&mut self, offset: usize, len: usize) {
        self.clock += 1;
        let end = (offset + len).min(self.now.len());
        if offset >= end {
            return;
        }
        self.now[offset..end].fill(0);
        for page in offset / PAGE..end.div_ceil(PAGE) {
            let whole = offset <= page * PAGE && (page + 1) * PAGE <= offset + len;
            let event = if whole { Event::Freed(self.clock) } else { Event::Data(self.page(page)) };
            self.note(page, event);
        }
    }

    fn sync(&mut self) {
        self.durable.clone_from(&self.now);
        self.pages.clear();
        self.lengths.clear();
        self.clock = 0;
    }

    fn modified(&self) -> Time {
        self.modified.last().copied().unwrap_or_default()
    }

    fn sync_modified(&mut self) {
        self.modified = vec![self.modified()];
    }

    /// As after a power cut.
    fn cut(&mut self, chance: &mut Chance) {
        if !self.modified.is_empty() {
            self.modified = vec![self.modified[chance.below(self.modified.len())]];
        }
        let instant = match chance.below(4) {
            0 => 0,
            1 => self.clock,
            _ => chance.below(self.clock + 1),
        };
        let len = self.lengths.iter().rfind(|(at, _)| *at <= instant).map_or(self.durable.len(), |l| l.1);
        let pages = std::mem::take(&mut self.pages);
        let mut left = std::mem::take(&mut self.durable);
        let highest = pages.keys().next_back().map_or(0, |p| (p + 1) * PAGE);
        left.resize(left.len().max(highest).max(len), 0);
        for (at, events) in pages {
            let Some(page) = left.get_mut(at * PAGE..(at + 1) * PAGE) else {
                left.resize((at + 1) * PAGE, 0);
                continue;
            };
            let mut states: Vec<Page> = vec![Box::new(page.try_into().unwrap())];
            for event in events {
                match event {
                    Event::Data(state) => states.push(state),
                    Event::Freed(when) if when <= instant => states = vec![Box::new([0; PAGE])],
                    // Whatever was written later went to new places, which nothing leads to.
                    Event::Freed(_) => break,
                    Event::Cut(when, behind, state) if when <= instant => {
                        states.iter_mut().for_each(|s| s[behind..].fill(0));
                        states.push(state);
                    }
                    Event::Cut(_, _, state) => states.push(state),
                }
            }
            mix(page, &states, chance);
        }
        left.truncate(len);
        left.resize(len, 0);
        self.now = left;
        self.sync();
    }
}

/// One of the states, or two of them torn.
fn mix(page: &mut [u8], states: &[Page], chance: &mut Chance) {
    // The newest and the oldest more often than one between.
    let pick = |chance: &mut Chance| match chance.below(3) {
        0 => 0,
        1 => states.len() - 1,
        _ => chance.below(states.len()),
    };
    let (one, other) = (pick(chance), pick(chance));
    let torn = chance.below(3) == 0;
    for sector in 0..PAGE / SECTOR {
        let state = if torn && chance.below(2) == 0 { &states[other] } else { &states[one] };
        let range = sector * SECTOR..(sector + 1) * SECTOR;
        page[range.clone()].copy_from_slice(&state[range]);
    }
}

/// A small generator of its own, so that a case is the same each time it runs.
pub(crate) struct Chance(u64);

impl Chance {
    /// From a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `n`, which is not zero.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }
}

/// Files by number, on one disk that can be cut from its power.
#[derive(Clone, Default)]
pub(crate) struct Disk(Arc<Inner>);

/// Something that happens while others are at work.
type Meanwhile = Box<dyn FnOnce() + Send>;

struct Inner {
    files: Mutex<BTreeMap<u64, Arc<Mutex<Bytes>>>>,
    /// Removed, in order, which is not durable yet.
    removed: Mutex<Vec<(u64, Arc<Mutex<Bytes>>)>>,
    /// Changes that still reach the disk; none does once it is zero. Negative: all.
    left: AtomicI64,
    /// Changes until one fails, once. Negative: none.
    until_fault: AtomicI64,
    /// What happens before one of the next writes or syncs of a file that is no log, and how many come before it.
    meanwhile: Mutex<Option<(u32, Meanwhile)>>,
    /// Ticks with each look at the clock.
    clock: AtomicU64,
    cuts: AtomicU64,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            files: Mutex::default(),
            removed: Mutex::default(),
            left: AtomicI64::new(-1),
            until_fault: AtomicI64::new(-1),
            meanwhile: Mutex::default(),
            clock: AtomicU64::new(1_000_000),
            cuts: AtomicU64::new(1),
        }
    }
}

impl Disk {
    /// A file, made where it is not there.
    pub(crate) fn file(&self, number: u64) -> LowerMem {
        let bytes = Arc::clone(self.0.files.lock().entry(number).or_default());
        LowerMem { disk: self.clone(), bytes, is_log: number >= LOGS }
    }

    /// The process dies after `changes` more changes: everything behind them fails.
    pub(crate) fn die_after(&self, changes: u32) {
        self.0.left.store(i64::from(changes), Ordering::SeqCst);
    }

    /// The change behind `changes` more fails, and only that one.
    pub(crate) fn fail_after(&self, changes: u32) {
        self.0.until_fault.store(i64::from(changes), Ordering::SeqCst);
    }

    /// No change fails from now on; gives whether one did.
    pub(crate) fn heal(&self) -> bool {
        self.0.until_fault.swap(-1, Ordering::SeqCst) < 0
    }

    /// Before the write or sync of a file behind `others` more, `work` is done.
    pub(crate) fn meanwhile(&self, others: u32, work: Meanwhile) {
        *self.0.meanwhile.lock() = Some((others, work));
    }

    /// Gives back what was not done meanwhile.
    pub(crate) fn not_done(&self) -> Option<Meanwhile> {
        self.0.meanwhile.lock().take().map(|(_, work)| work)
    }

    fn interrupt(&self) {
        let due = {
            let mut meanwhile = self.0.meanwhile.lock();
            match &mut *meanwhile {
                Some((0, _)) => meanwhile.take(),
                Some((others, _)) => {
                    *others -= 1;
                    None
                }
                None => None,
            }
        };
        if let Some((_, work)) = due {
            work();
        }
    }

    /// The process was killed and starts anew: what it wrote is there.
    pub(crate) fn kill(&self) {
        self.0.left.store(-1, Ordering::SeqCst);
    }

    /// The power was cut and is back.
    pub(crate) fn cut(&self, chance: &mut Chance) {
        self.kill();
        self.0.cuts.fetch_add(1, Ordering::SeqCst);
        let mut files = self.0.files.lock();
        let removed = std::mem::take(&mut *self.0.removed.lock());
        let kept = chance.below(removed.len() + 1);
        files.extend(removed.into_iter().skip(kept));
        for bytes in files.values() {
            bytes.lock().cut(chance);
        }
    }

    /// The time, later with each look.
    pub(crate) fn time(&self) -> Time {
        (self.0.clock.fetch_add(1, Ordering::SeqCst) as i64, 0)
    }

    /// Lets go of all bytes: a journal that is never closed and its files hold one another, and this disk.
    pub(crate) fn clear(&self) {
        for bytes in self.0.files.lock().values() {
            *bytes.lock() = Bytes::default();
        }
    }

    fn charge(&self) -> io::Result<()> {
        if self.0.until_fault.fetch_sub(1, Ordering::SeqCst) == 0 {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let spend = |left: i64| match left {
            0 => None,
            n if n < 0 => Some(n),
            n => Some(n - 1),
        };
        let spent = self.0.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend);
        spent.map(drop).map_err(|_| io::Error::from_raw_os_error(libc::EIO))
    }
}

/// One file of a [`Disk`].
#[derive(Clone)]
pub(crate) struct LowerMem {
    disk: Disk,
    bytes: Arc<Mutex<Bytes>>,
    is_log: bool,
}

impl LowerMem {
    fn interrupt(&self) {
        // Records are written under the journal's own lock.
        if !self.is_log {
            self.disk.interrupt();
        }
    }
}

impl LowerMem {
    /// How often it was synced by itself.
    pub(crate) fn syncs(&self) -> usize {
        self.bytes.lock().syncs
    }

    /// The bytes, for a change at this moment.
    fn changed(&self) -> parking_lot::MutexGuard<'_, Bytes> {
        let time = self.disk.time();
        let mut bytes = self.bytes.lock();
        // A disk remembers a few.
        if bytes.modified.len() > 64 {
            bytes.modified.drain(1..32);
        }
        bytes.modified.push(time);
        bytes
    }
}

impl LowerFile for LowerMem {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.bytes.lock();
        let from = bytes.now.len().min(offset as usize);
        let n = buf.len().min(bytes.now.len() - from);
        buf[..n].copy_from_slice(&bytes.now[from..from + n]);
        Ok(n)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.interrupt();
        self.disk.charge()?;
        self.changed().write(bufs, offset as usize);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().now.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.charge()?;
        self.changed().set_len(len as usize);
        Ok(())
    }

    fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        self.disk.charge()
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.charge()?;
        self.changed().punch(offset as usize, len as usize);
        Ok(())
    }

    fn sync(&self, data_only: bool) -> io::Result<()> {
        self.interrupt();
        self.disk.charge()?;
        let mut bytes = self.bytes.lock();
        bytes.sync();
        bytes.syncs += 1;
        if !data_only {
            bytes.sync_modified();
        }
        Ok(())
    }

    fn modified(&self) -> io::Result<Option<Time>> {
        Ok(Some(self.bytes.lock().modified()))
    }

    fn set_modified(&self, time: Time) -> io::Result<()> {
        self.disk.charge()?;
        self.bytes.lock().modified.push(time);
        Ok(())
    }
}

/// Number of the first log among the disk's files.
const LOGS: u64 = 1 << 32;

/// The journal's logs on a [`Disk`].
pub(crate) struct Logs(pub(crate) Disk);

impl JournalStore for Logs {
    fn list(&self) -> io::Result<Vec<u32>> {
        let files = self.0.0.files.lock();
        Ok(files.range(LOGS..).map(|(number, _)| (number - LOGS) as u32).collect())
    }

    fn open(&self, number: u32) -> io::Result<Box<dyn LowerFile>> {
        let number = LOGS + u64::from(number);
        if !self.0.0.files.lock().contains_key(&number) {
            self.0.charge()?;
            // The directory is synced: what was removed from it will not come back.
            self.0.0.removed.lock().clear();
        }
        Ok(Box::new(self.0.file(number)))
    }

    fn remove(&self, number: u32) -> io::Result<()> {
        self.0.charge()?;
        let number = LOGS + u64::from(number);
        let gone = self.0.0.files.lock().remove(&number);
        let gone = gone.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        self.0.0.removed.lock().push((number, gone));
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.charge()?;
        self.0.0.removed.lock().clear();
        for bytes in self.0.0.files.lock().values() {
            let mut bytes = bytes.lock();
            bytes.sync();
            bytes.sync_modified();
        }
        Ok(())
    }

    fn home(&self) -> Home {
        Home { boot: [1; 16], mount: self.0.0.cuts.load(Ordering::SeqCst) }
    }

    fn now(&self) -> Time {
        self.0.time()
    }
}

/// What was synced is there, what was not is there in part at most, and both happen.
#[test]
fn a_cut_forgets_what_was_not_synced() {
    let (mut kept, mut lost, mut torn, mut short) = (0, 0, 0, 0);
    for seed in 0..400 {
        let disk = Disk::default();
        let file = disk.file(7);
        let put = |byte: u8, offset| file.write_at(&[IoSlice::new(&[byte; 2 * PAGE])], offset).unwrap();
        put(1, 0);
        file.sync(true).unwrap();
        put(2, PAGE as u64);
        disk.cut(&mut Chance::new(seed));
        let mut all = vec![9; 4 * PAGE];
        let len = file.read_at(&mut all, 0).unwrap();
        assert!(all[..PAGE].iter().all(|b| *b == 1), "synced bytes were lost");
        let middle = &all[PAGE..2 * PAGE];
        match (middle.contains(&1), middle.contains(&2)) {
            (true, false) => lost += 1,
            (false, true) => kept += 1,
            (true, true) => torn += 1,
            _ => panic!("bytes from nowhere"),
        }
        assert!(len == 2 * PAGE || len == 3 * PAGE);
        short += usize::from(len == 2 * PAGE);
    }
    assert!([kept, lost, torn, short].iter().all(|n| *n > 20), "{kept} {lost} {torn} {short}");
}

/// A cut that forgets a truncate brings the old bytes back, one that does not leaves zeros behind the new end.
#[test]
fn a_cut_forgets_or_keeps_a_truncate_with_what_came_after() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let disk = Disk::default();
        let file = disk.file(0);
        file.write_at(&[IoSlice::new(&[1; 3 * PAGE])], 0).unwrap();
        file.sync(true).unwrap();
        file.set_len(PAGE as u64).unwrap();
        file.set_len(3 * PAGE as u64).unwrap();
        file.write_at(&[IoSlice::new(&[2; PAGE])], 2 * PAGE as u64).unwrap();
        disk.cut(&mut Chance::new(seed));
        let mut all = vec![9; 3 * PAGE];
        let len = file.read_at(&mut all, 0).unwrap();
        let first = |page: usize| if page * PAGE < len { all[page * PAGE] } else { 9 };
        seen.insert((len / PAGE, first(1), all[2 * PAGE..].contains(&1), all[2 * PAGE..].contains(&2)));
    }
    // Forgotten: all as it was. Kept alone: short. Kept with the growth: zeros, with what was written or without.
    let expected = [(1, 9, false, false), (3, 0, false, false), (3, 0, false, true), (3, 1, true, false)];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), expected);
}
