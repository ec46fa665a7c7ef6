//! Files on a disk that is cut from its power, with a journal or without one, and what they must hold.

use std::sync::Arc;

use envelopefs::content::journal::{Finder, Found, Limits, Replay};
use envelopefs::content::{ContentError, Fault, File, Journal, Link, LowerPlace};
use envelopefs::crypto::{DataKey, FileKeys, JournalRoot, Secret, VaultKey};
use envelopefs::format::ids::FileId;
use envelopefs::format::journal::Time;
use envelopefs::vault::LowerFile as _;

use crate::disk::{Chance, Disk, Logs};
use crate::model::Model;
use crate::{Again, Change, GROUP, Op, Work, pattern, reference};

/// Files of a world.
pub(crate) const FILES: usize = 2;

/// Small bounds, so that checkpoints come often; nothing happens in the background.
fn limits() -> Limits {
    Limits { bytes: 256 << 10, pages: 12, background: false, ..Limits::default() }
}

fn id(file: usize) -> FileId {
    FileId([5 + file as u8; 12])
}

fn keys(file: usize) -> Arc<FileKeys> {
    Arc::new(FileKeys::derive(&DataKey(Secret::from_slice(&[3; 32]).unwrap()), &id(file)))
}

fn root() -> JournalRoot {
    JournalRoot::derive(&VaultKey(Secret::from_slice(&[9; 32]).unwrap()))
}

struct One {
    content: Option<Arc<File>>,
    model: Model,
    born: Time,
    /// Whether it was durable at some time: until then it may vanish.
    lasting: bool,
    /// The time of the last change that a sync promised.
    modified: Time,
}

pub(crate) struct World {
    disk: Disk,
    has_journal: bool,
    journal: Option<Arc<Journal>>,
    files: Vec<One>,
    /// Something failed since the last checkpoint: there may be one that is not done.
    half_done: bool,
}

impl Drop for World {
    fn drop(&mut self) {
        self.disk.clear();
    }
}

/// Finds the files of a [`Disk`].
struct Files<'a>(&'a Disk);

impl Finder for Files<'_> {
    fn find(&mut self, wanted: &FileId, _inode: u64, _paths: &[Vec<u8>], _gone: bool) -> Found {
        match (0..FILES).find(|file| id(*file) == *wanted) {
            Some(file) => Found::File(Box::new(self.0.file(file as u64)), keys(file), false),
            None => Found::Missing,
        }
    }

    fn progress(&mut self, _done: usize, _all: usize) {}
}

fn change(content: &File, change: &Change) -> Result<(), ContentError> {
    match *change {
        Change::Write(offset, len, seed) => content.write(offset, &pattern(len, seed)),
        Change::SetLen(len) => content.set_len(len),
        Change::Punch(offset, len) => content.punch_hole(offset, len),
        Change::Zero(offset, len, keep) => content.zero_range(offset, len, keep),
        Change::Allocate(offset, len, keep) => content.allocate(offset, len, keep),
    }
}

impl World {
    fn empty(has_journal: bool) -> Self {
        Self { disk: Disk::default(), has_journal, journal: None, files: Vec::new(), half_done: false }
    }

    /// Files that are changed in place.
    pub(crate) fn without_journal() -> Self {
        let mut world = Self::empty(false);
        for file in 0..FILES {
            world.make(file);
            world.files[file].content.as_ref().unwrap().sync(true).unwrap();
            world.files[file].lasting = true;
        }
        world
    }

    /// Files that were just made, with a journal.
    pub(crate) fn with_journal() -> Self {
        let mut world = Self::empty(true);
        world.start().unwrap();
        (0..FILES).for_each(|file| world.make(file));
        world
    }

    fn start(&mut self) -> std::io::Result<()> {
        self.half_done = false;
        let store = Box::new(Logs(self.disk.clone()));
        self.journal = Some(Journal::start(store, root(), limits())?);
        Ok(())
    }

    fn link(&self, file: usize) -> Option<Link> {
        let journal = Arc::clone(self.journal.as_ref()?);
        Some(Link { journal, id: id(file), place: Box::new(LowerPlace::default) })
    }

    fn make(&mut self, file: usize) {
        let lower = Box::new(self.disk.file(file as u64));
        let content = match self.link(file) {
            Some(link) => File::create_linked(lower, keys(file), link).unwrap(),
            None => Arc::new(File::create(lower, keys(file)).unwrap()),
        };
        let one = One {
            content: Some(content),
            model: Model::default(),
            born: self.disk.time(),
            lasting: false,
            modified: Time::default(),
        };
        match self.files.get_mut(file) {
            Some(place) => *place = one,
            None => self.files.push(one),
        }
    }

    fn open(&self, file: usize) -> Result<Arc<File>, ContentError> {
        let lower = Box::new(self.disk.file(file as u64));
        match self.link(file) {
            Some(link) => {
                let durable = link.journal.is_durable(Some(self.files[file].born));
                File::open_linked(lower, keys(file), link, durable)
            }
            None => Ok(Arc::new(File::open(lower, keys(file))?)),
        }
    }

    fn content(&self, file: usize) -> &Arc<File> {
        self.files[file].content.as_ref().expect("open between operations")
    }

    /// The whole content, or the first fault.
    fn read(&self, file: usize) -> Result<Vec<u8>, ContentError> {
        let content = self.content(file);
        let len = content.len() as usize;
        let mut all = vec![0x55; len + 10];
        assert_eq!(content.read(0, &mut all)?, len);
        all.truncate(len);
        if !content.is_pending() {
            let mut faults = Vec::new();
            content.verify(&mut |f| faults.push(f), &mut |_| true)?;
            // Bytes behind the end are what a crash may leave; the next change cuts them off.
            faults.retain(|fault| !matches!(fault, Fault::Overlong { .. }));
            if let Some(fault) = faults.into_iter().next() {
                return Err(fault.into());
            }
        }
        Ok(all)
    }

    fn work(&self, file: usize, work: &Work) -> Result<(), ContentError> {
        let content = self.content(file);
        match work {
            Work::Change(it) => change(content, it),
            Work::Sync => content.sync(true),
            Work::SyncAll => content.sync(false),
            Work::Touch => {
                {
                    let _still = content.hold_times();
                    self.disk.file(file as u64).set_modified(self.disk.time())?;
                }
                content.mark_modified();
                Ok(())
            }
            Work::Checkpoint => Ok(self.journal.as_ref().map_or(Ok(()), |j| j.checkpoint())?),
            Work::Settle => Ok(self.journal.as_ref().map_or(Ok(()), |j| j.settle())?),
            Work::Unmount => Ok(self.journal.as_ref().map_or(Ok(()), |j| j.close())?),
        }
    }

    /// Notes what completed work promises.
    fn promised(&mut self, file: usize, work: &Work) {
        for (at, one) in self.files.iter_mut().enumerate() {
            let durable = match work {
                Work::Change(_) | Work::Checkpoint | Work::Touch => false,
                Work::Sync | Work::SyncAll => at == file,
                Work::Settle | Work::Unmount => self.has_journal,
            };
            if durable {
                one.model.synced();
                one.lasting = true;
                if matches!(work, Work::SyncAll) {
                    one.modified = self.disk.file(at as u64).modified().unwrap().unwrap();
                }
            }
        }
    }

    /// The process ends, and the power with it where a seed is given.
    fn end(&mut self, power: Option<u64>) {
        self.files.iter_mut().for_each(|one| one.content = None);
        self.journal = None;
        match power {
            Some(seed) => self.disk.cut(&mut Chance::new(seed)),
            None => self.disk.kill(),
        }
    }

    /// The next mount: replays, begins a journal.
    fn mount(&mut self) -> std::io::Result<()> {
        if !self.has_journal {
            return Ok(());
        }
        if let Some(replay) = Replay::read(Box::new(Logs(self.disk.clone())), root())? {
            let replayed = replay.run(&mut Files(&self.disk))?;
            // One that was never durable may not be there for its records.
            let lasting = |at: &FileId| (0..FILES).any(|file| id(file) == *at && self.files[file].lasting);
            let refused: Vec<_> = replayed.refused.iter().filter(|(id, _)| lasting(id)).collect();
            assert!(refused.is_empty(), "files were left as they are: {refused:?}");
        }
        self.start()
    }

    /// Ends and mounts; gives whether the power failed on the way.
    fn crash(&mut self, power: Option<u64>, again: &Again) -> bool {
        let mut failed = power.is_some();
        self.end(power);
        if let Some((after, power)) = again {
            self.disk.die_after(*after);
            let _ = self.mount();
            failed |= power.is_some();
            self.end(*power);
        }
        self.mount().unwrap();
        failed
    }

    /// Compares every file; `during`: one that was being changed.
    fn compare(&mut self, failed: bool, during: Option<usize>) {
        for file in 0..self.files.len() {
            let modified = self.disk.file(file as u64).modified().unwrap().unwrap();
            let promised = self.files[file].modified;
            assert!(
                modified >= promised,
                "file {file}: changed at {modified:?}, a sync promised {promised:?}"
            );
            let opened = self.open(file);
            let found = opened.and_then(|content| {
                self.files[file].content = Some(content);
                self.read(file)
            });
            let found = match found {
                Ok(found) => found,
                // It was never durable: it starts anew, empty.
                Err(_) if failed && !self.files[file].lasting => {
                    self.files[file].content = None;
                    self.disk.file(file as u64).set_len(0).unwrap();
                    self.make(file);
                    continue;
                }
                Err(e) => panic!("file {file}: {e}"),
            };
            let one = &mut self.files[file];
            if failed {
                one.model.check(&found);
                one.model.restart(found);
                one.lasting = true;
            } else {
                one.model.check_last(&found, if during == Some(file) { 2 } else { 1 });
                one.model.found(found);
            }
        }
    }

    /// How often the lower file was synced by itself.
    pub(crate) fn syncs(&self, file: usize) -> usize {
        self.disk.file(file as u64).syncs()
    }

    /// Does `work` while the disk fails after some more calls: what was there stays readable.
    fn fault(&mut self, file: usize, work: &Work, after: u32) {
        self.half_done = true;
        self.disk.fail_after(after);
        let done = self.work(file, work);
        let failed = self.disk.heal();
        assert!(failed || done.is_ok(), "an error from nowhere: {done:?}");
        if let Work::Change(change) = work {
            self.files[file].model.changed(|content| reference(change, content));
        }
        if done.is_ok() {
            self.promised(file, work);
        }
        if matches!(work, Work::Unmount) {
            let failed = self.crash(None, &None);
            return self.compare(failed, None);
        }
        let found = self.read(file).expect("what was there stays readable");
        let model = &mut self.files[file].model;
        model.check_last(&found, if done.is_err() && matches!(work, Work::Change(_)) { 2 } else { 1 });
        model.found(found);
    }

    pub(crate) fn apply(&mut self, op: &Op) {
        if !self.has_journal && !self.stands(op) {
            return;
        }
        match op {
            Op::Do(file, work) => {
                self.work(*file, work).unwrap();
                if let Work::Change(change) = work {
                    self.files[*file].model.changed(|content| reference(change, content));
                }
                self.promised(*file, work);
                if matches!(work, Work::Unmount) {
                    self.mount_again();
                }
            }
            Op::Meanwhile(file, it, others) => self.change_meanwhile(*file, it, *others),
            Op::Fault(file, work, after) => self.fault(*file, work, *after),
            Op::Remount => {
                self.work(0, &Work::Unmount).unwrap();
                self.promised(0, &Work::Unmount);
                self.mount_again();
            }
            Op::Reopen(file) => {
                if !self.content(*file).is_pending() {
                    self.files[*file].content = None;
                    self.disk.file(*file as u64).set_modified(self.disk.time()).unwrap();
                    self.files[*file].content = Some(self.open(*file).unwrap());
                }
                assert!(
                    self.read(*file).unwrap() == self.files[*file].model.newest(),
                    "an operation was lost"
                );
            }
            Op::Crash(power, again) => {
                let failed = self.crash(*power, again);
                self.compare(failed, None);
            }
            Op::Die(file, work, after, power, again) => {
                self.disk.die_after(*after);
                if let Work::Change(change) = work {
                    self.files[*file].model.changed(|content| reference(change, content));
                }
                let done = self.work(*file, work);
                // What succeeded although the disk was dead by then did so without it.
                if done.is_ok() {
                    self.promised(*file, work);
                }
                let during = (done.is_err() && matches!(work, Work::Change(_))).then_some(*file);
                let failed = self.crash(*power, again);
                self.compare(failed, during);
            }
        }
    }

    /// Checkpoints, and changes a file while that is under way.
    fn change_meanwhile(&mut self, file: usize, it: &Change, others: u32) {
        if self.half_done {
            // What is left of another one comes first, and might make the change wait for this.
            self.work(file, &Work::Checkpoint).unwrap();
            self.half_done = false;
        }
        let (content, work) = (Arc::clone(self.content(file)), it.clone());
        self.disk.meanwhile(others, Box::new(move || change(&content, &work).unwrap()));
        self.work(file, &Work::Checkpoint).unwrap();
        if let Some(work) = self.disk.not_done() {
            work();
        }
        self.files[file].model.changed(|content| reference(it, content));
    }

    /// After a clean end nothing is left to replay, and everything is there.
    fn mount_again(&mut self) {
        if self.has_journal {
            let left = envelopefs::vault::journal::JournalStore::list(&Logs(self.disk.clone())).unwrap();
            assert_eq!(left, Vec::<u32>::new(), "a clean end leaves no log");
        }
        self.end(None);
        self.mount().unwrap();
        self.compare(false, None);
    }

    /// Whether files that are changed in place stand this.
    fn stands(&self, op: &Op) -> bool {
        match op {
            Op::Crash(Some(_), _) | Op::Crash(_, Some((_, Some(_)))) => {
                self.files.iter().all(|one| one.model.is_synced())
            }
            Op::Die(file, Work::Change(Change::Write(offset, n, _)), _, None, None) => {
                // Blocks that a killed process left behind the end, in a group that exists, are taken for sealed
                // ones later.
                let len = self.files[*file].model.newest().len() as u64;
                let end = offset + *n as u64;
                let anew = len.is_multiple_of(GROUP) || len.is_multiple_of(4096) && end <= GROUP;
                *offset >= len && anew
            }
            Op::Die(..) | Op::Fault(..) => false,
            _ => true,
        }
    }
}
