//! A repository's objects for the library that knows their meaning: restic's layout over [`Objects`].
//!
//! Packs are sent in the background, a bounded number at once; before anything that speaks of packs (an index, a
//! snapshot) is written, all of them have arrived. The library counts a pack as stored when its sending was begun: so
//! what could not be written once fails everything that would be written after it. The library reads on to the end all the same:
//! whoever gives it what to write asks [`Backend::has_failed`]. Reading, whole packs are kept where a command goes through much of
//! the repository, so that a pack is fetched once and not once a file.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustic_core::{BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend};

use super::error::{BackupError, StoreFault};
use super::repo::sha256;
use super::s3::{Background, Objects, Put};

/// Whole packs are kept up to this size together: three of the usual size.
const KEPT: usize = 96 << 20;

/// An object whose content is not what its name says is fetched so often.
const TRIES: usize = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Backend {
    objects: Arc<Objects>,
    parallel: usize,
    flying: Mutex<Flying>,
    landed: Condvar,
    shown: Mutex<Option<Shown>>,
    /// Nothing is written any more: `flying` has the reason.
    broken: AtomicBool,
    /// A run is going on: what cannot be read because the store does not answer ends it as well.
    running: AtomicBool,
    whole: AtomicBool,
    packs: Mutex<Packs>,
    arrived: Condvar,
    held: Mutex<Held>,
}

/// Packs on their way.
#[derive(Debug, Default)]
struct Flying {
    packs: VecDeque<Flight>,
    /// Those, and the ones that a thread has taken out to wait for.
    count: usize,
    /// Why something could not be written.
    failed: Option<BackupError>,
}

#[derive(Debug)]
struct Flight {
    name: String,
    len: u64,
    put: Background,
}

/// What listings give in the store's stead.
#[derive(Debug)]
pub(super) struct Shown {
    /// Packs with their lengths.
    pub(super) packs: Vec<(Id, u32)>,
    /// Whether there are indexes.
    pub(super) indexes: bool,
}

/// Packs that were read.
#[derive(Debug, Default)]
struct Packs {
    /// The newest last. `None`: being fetched.
    kept: VecDeque<(Id, Option<Bytes>)>,
}

/// Snapshots that are not written to the store yet: those of a run that is not at its end.
#[derive(Debug, Default)]
struct Held {
    on: bool,
    snapshots: Vec<(Id, Bytes)>,
    /// The snapshot that was written last.
    last: Option<Id>,
}

/// The name of an object. restic's layout.
fn name_of(tpe: FileType, id: &Id) -> String {
    let hex = id.to_hex();
    match tpe {
        FileType::Config => "config".into(),
        FileType::Pack => format!("data/{}/{}", &hex[..2], &hex[..]),
        other => format!("{}/{}", other.dirname(), &hex[..]),
    }
}

fn failed(e: BackupError) -> Box<RusticError> {
    RusticError::with_source(ErrorKind::Backend, e.to_string(), e)
}

fn u32_of(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Backend {
    pub(super) fn new(objects: Arc<Objects>, parallel: usize) -> Self {
        Self {
            objects,
            parallel: parallel.clamp(1, 64),
            flying: Mutex::default(),
            landed: Condvar::new(),
            shown: Mutex::default(),
            broken: AtomicBool::new(false),
            running: AtomicBool::new(false),
            whole: AtomicBool::new(false),
            packs: Mutex::default(),
            arrived: Condvar::new(),
            held: Mutex::default(),
        }
    }

    /// From now on packs are read whole.
    pub(super) fn read_whole_packs(&self) {
        self.whole.store(true, Ordering::Relaxed);
    }

    /// From now on (`true`) snapshots are kept in memory, as the parents of others; none of them is ever written.
    pub(super) fn hold_snapshots(&self, on: bool) {
        let mut held = self.held.lock();
        held.on = on;
        if !on {
            held.snapshots.clear();
        }
    }

    /// The snapshot that was written last, or held.
    pub(super) fn last_snapshot(&self) -> Option<Id> {
        self.held.lock().last
    }

    /// Calls `work` while listings give only what is shown. Nobody else uses the repository meanwhile.
    pub(super) fn showing<T>(&self, shown: Shown, work: impl FnOnce() -> T) -> T {
        *self.shown.lock() = Some(shown);
        let done = work();
        *self.shown.lock() = None;
        done
    }

    /// Why something could not be written; nothing is from then on.
    pub(super) fn failure(&self) -> Option<BackupError> {
        self.flying.lock().failed.as_ref().map(BackupError::again)
    }

    /// Whether [`Self::failure`] has something to say.
    pub(super) fn has_failed(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// From now on a store that does not answer is asked nothing more.
    pub(super) fn begin_run(&self) {
        self.running.store(true, Ordering::Relaxed);
    }

    /// Nothing is written from now on.
    fn fail(&self, e: BackupError) -> Box<RusticError> {
        self.break_off(&mut self.flying.lock(), e.again());
        failed(e)
    }

    fn break_off(&self, flying: &mut Flying, e: BackupError) {
        flying.failed.get_or_insert(e);
        self.broken.store(true, Ordering::Relaxed);
    }

    /// Reads for the library, which passes over what it cannot read of the last snapshot: one thing after another, for a
    /// whole patience each, if a run asked on.
    fn reading<T>(&self, read: impl FnOnce() -> Result<T, BackupError>) -> RusticResult<T> {
        let running = self.running.load(Ordering::Relaxed);
        if let Some(e) = self.failure().filter(|_| running) {
            return Err(failed(e));
        }
        read().map_err(|e| match e.store_fault() {
            Some(StoreFault::Unreachable) if running => self.fail(e),
            _ => failed(e),
        })
    }

    /// Waits until no more than `left` packs are on their way. A pack that somebody waits for is on its way, for
    /// everybody, until it has arrived.
    fn land(&self, left: usize) -> RusticResult<()> {
        let mut flying = self.flying.lock();
        loop {
            if let Some(e) = &flying.failed {
                return Err(failed(e.again()));
            }
            if flying.count <= left && flying.packs.front().is_none_or(|f| !f.put.is_done()) {
                return Ok(());
            }
            let Some(flight) = flying.packs.pop_front() else {
                // Other threads wait for those; a bounded wait, since each put is.
                self.landed.wait(&mut flying);
                continue;
            };
            let landed = MutexGuard::unlocked(&mut flying, || self.finish(flight));
            flying.count -= 1;
            if let Err(e) = landed {
                self.break_off(&mut flying, e);
            }
            self.landed.notify_all();
        }
    }

    fn finish(&self, Flight { name, len, put }: Flight) -> Result<(), BackupError> {
        let put = self.objects.finish(put)?;
        self.settle(&name, len, put)
    }

    /// An object that was there already is the same one where its name is its content's hash, if all of it is there.
    fn settle(&self, name: &str, len: u64, put: Put) -> Result<(), BackupError> {
        if put == Put::Made {
            return Ok(());
        }
        match self.objects.len_of(name)? {
            Some(there) if there == len => Ok(()),
            there => Err(BackupError::Repository {
                location: self.objects.location().to_owned(),
                why: format!("{name}: {} bytes are in its place, {len} belong there", there.unwrap_or(0)),
            }),
        }
    }

    /// A whole object, whose name is its content's hash: what was damaged on the way is fetched again, before it gets into the
    /// library's cache. A pack that is damaged in the store is given all the same, as most of it may be right.
    fn fetch(&self, tpe: FileType, id: &Id) -> Result<Bytes, BackupError> {
        let name = name_of(tpe, id);
        for attempt in 1.. {
            let bytes = self.objects.get(&name, None)?;
            if tpe == FileType::Config || sha256(&bytes) == *id.to_hex() {
                return Ok(bytes);
            }
            log::debug!("{name}: its content is not what its name says, try {attempt}");
            if attempt == TRIES {
                let why = "its content is not what its name says: it is damaged".to_owned();
                let location = self.objects.location().to_owned();
                let damaged = BackupError::Repository { location, why: format!("{name}: {why}") };
                return if tpe == FileType::Pack { Ok(bytes) } else { Err(damaged) };
            }
            self.objects.again();
        }
        unreachable!("the last try returns")
    }

    fn whole_pack(&self, id: &Id) -> RusticResult<Bytes> {
        let mut packs = self.packs.lock();
        loop {
            match packs.kept.iter().position(|(kept, _)| kept == id) {
                Some(at) => match packs.kept.get(at).and_then(|(_, pack)| pack.clone()) {
                    Some(pack) => return Ok(pack),
                    // Another thread fetches it; a bounded wait, since that one may fail.
                    None => {
                        self.arrived.wait(&mut packs);
                    }
                },
                None => {
                    packs.kept.push_back((*id, None));
                    break;
                }
            }
        }
        drop(packs);
        let fetched = self.fetch(FileType::Pack, id);
        let mut packs = self.packs.lock();
        packs.kept.retain(|(kept, _)| kept != id);
        if let Ok(pack) = &fetched {
            packs.kept.push_back((*id, Some(pack.clone())));
            let size = |packs: &Packs| packs.kept.iter().flat_map(|(_, p)| p).map(Bytes::len).sum::<usize>();
            while size(&packs) > KEPT && packs.kept.len() > 1 {
                let Some(oldest) = packs.kept.iter().position(|(kept, p)| p.is_some() && kept != id) else {
                    break;
                };
                packs.kept.remove(oldest);
            }
        }
        self.arrived.notify_all();
        fetched.map_err(failed)
    }
}

impl ReadBackend for Backend {
    fn location(&self) -> String {
        self.objects.location().to_owned()
    }

    fn list_with_size(&self, tpe: FileType) -> RusticResult<Vec<(Id, u32)>> {
        if tpe == FileType::Config {
            let len = self.objects.len_of("config").map_err(failed)?;
            return Ok(len.map(|len| (Id::default(), u32_of(len))).into_iter().collect());
        }
        if let Some(shown) = &*self.shown.lock() {
            match tpe {
                FileType::Pack => return Ok(shown.packs.clone()),
                FileType::Index if !shown.indexes => return Ok(Vec::new()),
                _ => {}
            }
        }
        let found = self.reading(|| self.objects.list(tpe.dirname()))?;
        // What is not named like an object of the repository is none.
        let named = found.into_iter().filter_map(|(name, len)| Some((name.parse().ok()?, u32_of(len))));
        let mut listed: Vec<(Id, u32)> = named.collect();
        if tpe == FileType::Snapshot {
            let held = self.held.lock();
            listed.extend(held.snapshots.iter().map(|(id, bytes)| (*id, u32_of(bytes.len() as u64))));
        }
        Ok(listed)
    }

    fn read_full(&self, tpe: FileType, id: &Id) -> RusticResult<Bytes> {
        if tpe == FileType::Snapshot
            && let Some((_, bytes)) = self.held.lock().snapshots.iter().find(|(held, _)| held == id)
        {
            return Ok(bytes.clone());
        }
        self.reading(|| self.fetch(tpe, id))
    }

    fn read_partial(
        &self,
        tpe: FileType,
        id: &Id,
        cacheable: bool,
        offset: u32,
        length: u32,
    ) -> RusticResult<Bytes> {
        // Packs of metadata are kept on disk by the library.
        if tpe == FileType::Pack && !cacheable && self.whole.load(Ordering::Relaxed) {
            let pack = self.whole_pack(id)?;
            let (from, to) = (offset as usize, offset as usize + length as usize);
            if to > pack.len() {
                let name = name_of(tpe, id);
                return Err(RusticError::new(
                    ErrorKind::Backend,
                    format!("{name}: it ends at {}, bytes up to {to} were expected", pack.len()),
                ));
            }
            return Ok(pack.slice(from..to));
        }
        let range = Some((offset.into(), length.into()));
        self.reading(|| self.objects.get(&name_of(tpe, id), range))
    }

    fn warmup_path(&self, tpe: FileType, id: &Id) -> String {
        name_of(tpe, id)
    }
}

impl WriteBackend for Backend {
    fn write_bytes(&self, tpe: FileType, id: &Id, _cacheable: bool, content: BytesList) -> RusticResult<()> {
        let name = name_of(tpe, id);
        let len = content.size() as u64;
        let parts = content.into_vec();
        if tpe == FileType::Pack {
            self.land(self.parallel - 1)?;
            let put = self.objects.put_in_background(name.clone(), parts);
            let mut flying = self.flying.lock();
            flying.packs.push_back(Flight { name, len, put });
            flying.count += 1;
            return Ok(());
        }
        self.land(0)?;
        if tpe == FileType::Snapshot {
            let mut held = self.held.lock();
            held.last = Some(*id);
            if held.on {
                held.snapshots.push((*id, parts.concat().into()));
                return Ok(());
            }
        }
        let put = self.objects.put(&name, &parts).map_err(|e| self.fail(e))?;
        if put == Put::WasThere && tpe == FileType::Config {
            return Err(RusticError::new(ErrorKind::Repository, "a repository was made there meanwhile"));
        }
        self.settle(&name, len, put).map_err(|e| self.fail(e))
    }

    fn remove(&self, tpe: FileType, id: &Id, _cacheable: bool) -> RusticResult<()> {
        self.objects.remove(&name_of(tpe, id)).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::super::meter::Meter;
    use super::super::s3::StoreOptions;
    use super::*;

    /// A backend over a directory.
    fn backend(options: &StoreOptions) -> (tempfile::TempDir, Backend) {
        let base = tempfile::tempdir().unwrap();
        let objects =
            Objects::open(base.path().to_str().unwrap(), options, Arc::new(Meter::default())).unwrap();
        let backend = Backend::new(Arc::new(objects), options.parallel);
        (base, backend)
    }

    fn id(n: u8) -> Id {
        hex::encode([n; 32]).parse().unwrap()
    }

    fn write(backend: &Backend, tpe: FileType, n: u8) -> RusticResult<()> {
        backend.write_bytes(tpe, &id(n), false, vec![n; 100].into())
    }

    fn place(base: &tempfile::TempDir, tpe: FileType, n: u8) -> PathBuf {
        base.path().join(name_of(tpe, &id(n)))
    }

    /// A pack that one thread waits for is on its way for all others: no index is written before it has arrived.
    #[test]
    fn an_index_waits_for_packs_that_others_wait_for() {
        // Half a second an object.
        let (base, backend) = backend(&StoreOptions { limit: Some(200), ..StoreOptions::default() });
        for n in 0..4 {
            write(&backend, FileType::Pack, n).unwrap();
        }
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    backend.land(0).unwrap();
                    assert!((0..4).all(|n| place(&base, FileType::Pack, n).exists()));
                });
                std::thread::sleep(Duration::from_millis(100));
            }
        });
    }

    /// When a pack could not be sent nothing is written any more, also when the error was told to somebody, and the store
    /// takes everything again.
    #[test]
    fn what_could_not_be_sent_is_not_forgotten() {
        let none = Duration::ZERO;
        let (base, backend) =
            backend(&StoreOptions { patience: none, parallel: 1, ..StoreOptions::default() });
        // Nothing can be below a file.
        let in_the_way = place(&base, FileType::Pack, 1).parent().unwrap().to_owned();
        std::fs::create_dir_all(in_the_way.parent().unwrap()).unwrap();
        std::fs::write(&in_the_way, b"").unwrap();
        write(&backend, FileType::Pack, 1).unwrap();
        assert!(write(&backend, FileType::Pack, 2).is_err());
        std::fs::remove_file(&in_the_way).unwrap();
        for tpe in [FileType::Index, FileType::Pack, FileType::Snapshot] {
            assert!(write(&backend, tpe, 3).is_err(), "{tpe:?}");
            assert!(!place(&base, tpe, 3).exists(), "{tpe:?}");
        }
        assert!(backend.has_failed() && backend.failure().is_some());
    }
}
