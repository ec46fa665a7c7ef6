//! The walk: one thread lists directories and judges names, several open files.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::names::{self, Name};
use super::report::{Fault, Kind, Report};
use super::state::StateFile;
use super::track::{Home, Reached, Track};
use super::{content, repair};
use crate::crypto::{DirKey, LinkKey};
use crate::keys::Keyring;

/// Files that wait for a worker: enough to hide a slow directory.
const QUEUE: usize = 1024;

/// Who watches a check.
pub trait Progress: Sync {
    /// `bytes` more of lower files were read; false stops the check.
    fn read(&self, bytes: u64) -> bool;
    /// A regular file is done.
    fn file_done(&self);
    /// A repair has mended one more regular file, or found nothing to mend in it; false stops it.
    fn mended(&self) -> bool {
        true
    }
}

/// Where a walk begins, and where it notes how far it came.
#[derive(Default)]
pub(super) struct Plan {
    /// What an earlier run has done.
    pub(super) earlier: Reached,
    /// Where to note it.
    pub(super) state: Option<StateFile>,
}

struct Task {
    lower: PathBuf,
    plain: Option<PathBuf>,
    /// The directory that answers for it.
    home: Arc<Home>,
}

struct Walk<'a> {
    top: &'a Path,
    keyring: &'a Keyring,
    progress: &'a dyn Progress,
    earlier: Reached,
    report: Mutex<Report>,
    track: Mutex<(Track, Option<StateFile>)>,
}

/// Checks the vault at `top` with `jobs` files open at once.
pub fn check(top: &Path, keyring: &Keyring, jobs: usize, progress: &dyn Progress) -> Report {
    run(top, keyring, jobs, progress, Plan::default())
}

/// Checks what `plan` leaves to be checked.
pub(super) fn run(top: &Path, keyring: &Keyring, jobs: usize, progress: &dyn Progress, plan: Plan) -> Report {
    let track = Track::from(plan.earlier.clone());
    let walk = Walk {
        top,
        keyring,
        progress,
        earlier: plan.earlier,
        report: Mutex::new(Report::default()),
        track: Mutex::new((track, plan.state)),
    };
    let (sender, receiver) = bounded(QUEUE);
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let receiver = receiver.clone();
            scope.spawn(|| walk.work(receiver));
        }
        drop(receiver);
        walk.list(&sender);
        drop(sender);
    });
    let mut report = walk.report.into_inner();
    let (track, state) = walk.track.into_inner();
    report.counts = track.total();
    report.faults.sort();
    if let Some(mut state) = state {
        if report.interrupted {
            // Without a state the next run begins anew.
            let _ = state.write(track.reached());
        } else {
            state.remove();
        }
    }
    report
}

impl Walk<'_> {
    fn fault(
        &self,
        home: Option<&Home>,
        lower: &Path,
        plain: Option<&Path>,
        kind: Kind,
        what: impl Into<String>,
    ) {
        if let Some(home) = home {
            home.faulted();
        }
        let lower = self.relative(lower);
        let fault = Fault { lower, plain: plain.map(Path::to_owned), kind, what: what.into() };
        self.report.lock().faults.push(fault);
    }

    fn relative(&self, lower: &Path) -> PathBuf {
        lower.strip_prefix(self.top).unwrap_or(lower).to_owned()
    }

    fn stopped(&self) -> bool {
        self.report.lock().interrupted
    }

    fn stop(&self) {
        self.report.lock().interrupted = true;
    }

    /// One thing of a directory is done.
    fn done(&self, home: &Home) {
        let mut guard = self.track.lock();
        let (track, state) = &mut *guard;
        track.done(home);
        if let Some(state) = state.as_mut().filter(|s| s.is_due()) {
            // A run that cannot note how far it came goes on all the same.
            let _ = state.write(track.reached());
        }
    }

    /// Opens files until the lister is done.
    fn work(&self, tasks: Receiver<Task>) {
        for task in tasks {
            // What a stopped check leaves out stays pending, and so does its directory.
            if !self.stopped() && self.verify(&task) {
                self.progress.file_done();
                self.done(&task.home);
            }
        }
    }

    /// Opens a file; gives whether that came to its end.
    fn verify(&self, task: &Task) -> bool {
        let mut before = 0;
        let mut whole = true;
        let mut progress = |done: u64| {
            let more = self.progress.read(done.saturating_sub(before));
            before = done;
            if !more {
                whole = false;
                self.stop();
            }
            more
        };
        let mut fault =
            |kind, what| self.fault(Some(&task.home), &task.lower, task.plain.as_deref(), kind, what);
        let read = match names::open(&task.lower) {
            Ok(file) => content::verify(file, self.keyring, &mut fault, &mut progress),
            Err(e) => {
                fault(Kind::Io, e.to_string());
                0
            }
        };
        task.home.count(|c| {
            c.files += 1;
            c.bytes += read;
        });
        whole
    }

    /// Lists every directory, each before those in it, in the order of their lower names; hands regular files over.
    fn list(&self, files: &Sender<Task>) {
        let inside = repair::look_inside(self.top, &mut |lower, kind, what| {
            self.fault(None, &lower, None, kind, what);
        });
        self.report.lock().lost_found = inside;
        let mut open = vec![(self.top.to_owned(), Some(PathBuf::new()))];
        while let Some((lower, plain)) = open.pop() {
            let at = self.relative(&lower);
            let covered = self.earlier.covers(&at);
            let home = self.track.lock().0.enter(at);
            let dir = Task { lower, plain, home };
            if !self.list_one(&dir, covered, &mut open, files) {
                return self.stop();
            }
            self.done(&dir.home);
        }
    }

    /// Lists a directory; one that is covered only for the directories in it. False: stopped.
    fn list_one(
        &self,
        dir: &Task,
        covered: bool,
        open: &mut Vec<(PathBuf, Option<PathBuf>)>,
        files: &Sender<Task>,
    ) -> bool {
        if !covered {
            dir.home.count(|c| c.directories += 1);
        }
        let key = self.dir_key(dir, covered);
        let siblings = match siblings(&dir.lower) {
            Ok(siblings) => siblings,
            Err(e) => {
                self.fault(Some(&dir.home), &dir.lower, dir.plain.as_deref(), Kind::Io, e.to_string());
                return true;
            }
        };
        let mut names: Vec<_> = siblings.iter().collect();
        names.sort_unstable();
        let mut inner = Vec::new();
        for lower in names {
            if self.stopped() || !self.progress.read(0) {
                return false;
            }
            if covered && !self.leads_on(dir, lower) {
                continue;
            }
            if let Some(entry) = self.judge(dir, lower, &siblings, key.as_ref()) {
                self.enter(entry, &mut inner, files);
            }
        }
        open.extend(inner.into_iter().rev());
        true
    }

    /// Whether an entry of a covered directory is a directory in which something is left to do.
    fn leads_on(&self, dir: &Task, lower: &[u8]) -> bool {
        let path = dir.lower.join(names::component(lower));
        !self.earlier.covers_below(&self.relative(&path))
            && fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir())
    }

    fn dir_key(&self, dir: &Task, covered: bool) -> Option<DirKey> {
        let fault = |kind, what| self.fault(Some(&dir.home), &dir.lower, dir.plain.as_deref(), kind, what);
        let file = match File::open(&dir.lower) {
            Ok(file) => file,
            Err(e) => {
                fault(Kind::Io, e.to_string());
                return None;
            }
        };
        match names::dir_id(&file) {
            Ok(id) => {
                if !covered {
                    let key = self.keyring.vault_key();
                    names::xattrs(&file, key, &id.0, &mut |why| fault(Kind::Xattr, why));
                }
                Some(DirKey::derive(self.keyring.vault_key(), &id))
            }
            Err(why) => {
                fault(Kind::Directory, why);
                None
            }
        }
    }

    /// An entry of the mount; its content is checked also when its name does not decode.
    fn judge(
        &self,
        dir: &Task,
        lower: &[u8],
        siblings: &HashSet<Vec<u8>>,
        key: Option<&DirKey>,
    ) -> Option<Task> {
        let path = dir.lower.join(names::component(lower));
        let beside = |kind, what: &str| self.fault(Some(&dir.home), &path, dir.plain.as_deref(), kind, what);
        let entry = |plain| Some(Task { lower: path.clone(), plain, home: Arc::clone(&dir.home) });
        match names::judge(&dir.lower, lower, siblings, key) {
            Name::Entry(Ok(name)) => {
                return entry(dir.plain.as_ref().map(|p| p.join(names::component(&name))));
            }
            Name::Entry(Err(why)) => {
                // Below a directory without id each name would be one more line about the same loss.
                if key.is_some() {
                    beside(Kind::Name, &why);
                }
                return entry(None);
            }
            Name::Vault if dir.lower == self.top => {}
            Name::Sidecar => {}
            Name::Leftover(what) => beside(Kind::Leftover, what),
            Name::Vault | Name::Foreign => beside(Kind::Foreign, "nothing that this program wrote"),
        }
        None
    }

    fn enter(&self, entry: Task, inner: &mut Vec<(PathBuf, Option<PathBuf>)>, files: &Sender<Task>) {
        let fault = |kind, what| {
            self.fault(Some(&entry.home), &entry.lower, entry.plain.as_deref(), kind, what);
        };
        let meta = match fs::symlink_metadata(&entry.lower) {
            Ok(meta) => meta,
            Err(e) => return fault(Kind::Io, e.to_string()),
        };
        if meta.is_dir() {
            inner.push((entry.lower, entry.plain));
        } else if meta.is_file() {
            entry.home.begin();
            // The workers end only after this sender is gone.
            let _ = files.send(entry);
        } else if meta.is_symlink() {
            entry.home.count(|c| c.symlinks += 1);
            let link = LinkKey::derive(self.keyring.vault_key());
            let decoded = fs::read_link(&entry.lower).map_err(|e| e.to_string()).and_then(|t| {
                link.decode(t.as_os_str().as_bytes()).map_err(|_| "its target does not decode".into())
            });
            if let Err(why) = decoded {
                fault(Kind::Symlink, why);
            }
        } else {
            entry.home.count(|c| c.others += 1);
        }
    }
}

fn siblings(dir: &Path) -> std::io::Result<HashSet<Vec<u8>>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().as_bytes().to_vec())).collect()
}
