//! The walk: one thread lists directories and judges names, several open files.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::content;
use super::names::{self, Name};
use super::report::{Fault, Kind, Report};
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
}

struct Task {
    lower: PathBuf,
    plain: Option<PathBuf>,
}

struct Walk<'a> {
    top: &'a Path,
    keyring: &'a Keyring,
    progress: &'a dyn Progress,
    report: Mutex<Report>,
    bytes: AtomicU64,
}

/// Checks the vault at `top` with `jobs` files open at once.
pub fn check(top: &Path, keyring: &Keyring, jobs: usize, progress: &dyn Progress) -> Report {
    let walk =
        Walk { top, keyring, progress, report: Mutex::new(Report::default()), bytes: AtomicU64::new(0) };
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
    report.bytes = walk.bytes.into_inner();
    report.faults.sort();
    report
}

impl Walk<'_> {
    fn fault(&self, lower: &Path, plain: Option<&Path>, kind: Kind, what: impl Into<String>) {
        let lower = lower.strip_prefix(self.top).unwrap_or(lower).to_owned();
        let fault = Fault { lower, plain: plain.map(Path::to_owned), kind, what: what.into() };
        self.report.lock().faults.push(fault);
    }

    fn stopped(&self) -> bool {
        self.report.lock().interrupted
    }

    /// Opens files until the lister is done.
    fn work(&self, tasks: Receiver<Task>) {
        for task in tasks {
            if self.stopped() {
                continue;
            }
            let mut before = 0;
            let mut progress = |done: u64| {
                let more = self.progress.read(done.saturating_sub(before));
                before = done;
                if !more {
                    self.report.lock().interrupted = true;
                }
                more
            };
            let mut fault = |kind, what| self.fault(&task.lower, task.plain.as_deref(), kind, what);
            match names::open(&task.lower) {
                Ok(file) => {
                    let read = content::verify(file, self.keyring, &mut fault, &mut progress);
                    self.bytes.fetch_add(read, Ordering::Relaxed);
                }
                Err(e) => fault(Kind::Io, e.to_string()),
            }
            self.report.lock().files += 1;
            self.progress.file_done();
        }
    }

    /// Lists every directory; hands regular files over.
    fn list(&self, files: &Sender<Task>) {
        let mut open = vec![Task { lower: self.top.to_owned(), plain: Some(PathBuf::new()) }];
        while let Some(dir) = open.pop() {
            self.report.lock().directories += 1;
            let key = self.dir_key(&dir);
            let siblings = match siblings(&dir.lower) {
                Ok(siblings) => siblings,
                Err(e) => {
                    self.fault(&dir.lower, dir.plain.as_deref(), Kind::Io, e.to_string());
                    continue;
                }
            };
            for lower in &siblings {
                if self.stopped() || !self.progress.read(0) {
                    self.report.lock().interrupted = true;
                    return;
                }
                if let Some(entry) = self.judge(&dir, lower, &siblings, key.as_ref()) {
                    self.enter(entry, &mut open, files);
                }
            }
        }
    }

    fn dir_key(&self, dir: &Task) -> Option<DirKey> {
        let fault = |kind, what| self.fault(&dir.lower, dir.plain.as_deref(), kind, what);
        let file = match File::open(&dir.lower) {
            Ok(file) => file,
            Err(e) => {
                fault(Kind::Io, e.to_string());
                return None;
            }
        };
        match names::dir_id(&file) {
            Ok(id) => {
                names::xattrs(&file, self.keyring.vault_key(), &id.0, &mut |why| fault(Kind::Xattr, why));
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
        let beside = |kind, what: &str| self.fault(&path, dir.plain.as_deref(), kind, what);
        match names::judge(&dir.lower, lower, siblings, key) {
            Name::Entry(Ok(name)) => {
                let plain = dir.plain.as_ref().map(|p| p.join(names::component(&name)));
                return Some(Task { lower: path, plain });
            }
            Name::Entry(Err(why)) => {
                // Below a directory without id each name would be one more line about the same loss.
                if key.is_some() {
                    beside(Kind::Name, &why);
                }
                return Some(Task { lower: path, plain: None });
            }
            Name::Vault if dir.lower == self.top => {}
            Name::Sidecar => {}
            Name::Leftover(what) => beside(Kind::Leftover, what),
            Name::Vault | Name::Foreign => beside(Kind::Foreign, "nothing that this program wrote"),
        }
        None
    }

    fn enter(&self, entry: Task, open: &mut Vec<Task>, files: &Sender<Task>) {
        let meta = match fs::symlink_metadata(&entry.lower) {
            Ok(meta) => meta,
            Err(e) => return self.fault(&entry.lower, entry.plain.as_deref(), Kind::Io, e.to_string()),
        };
        if meta.is_dir() {
            open.push(entry);
        } else if meta.is_file() {
            // The workers end only after this sender is gone.
            let _ = files.send(entry);
        } else if meta.is_symlink() {
            self.report.lock().symlinks += 1;
            let link = LinkKey::derive(self.keyring.vault_key());
            let decoded = fs::read_link(&entry.lower).map_err(|e| e.to_string()).and_then(|t| {
                link.decode(t.as_os_str().as_bytes()).map_err(|_| "its target does not decode".into())
            });
            if let Err(why) = decoded {
                self.fault(&entry.lower, entry.plain.as_deref(), Kind::Symlink, why);
            }
        } else {
            self.report.lock().others += 1;
        }
    }
}

fn siblings(dir: &Path) -> std::io::Result<HashSet<Vec<u8>>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().as_bytes().to_vec())).collect()
}
