//! The walk: one thread lists directories and mends names, several mend files.

use std::collections::{BTreeSet, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};

use super::dir::Dir;
use super::lost::LostFound;
use super::{Born, Deed, Mended, Outcome, Watch, content, may_pass, names};
use crate::format::names::{LowerName, VAULT_DIR, parse};
use crate::keys::Keyring;
use crate::vault::stat::{S_IFDIR, S_IFREG};
use crate::vault::{LowerStat, stat};

/// Files that wait for a worker; each may hold a directory open.
const QUEUE: usize = 128;
/// Workers: a repair waits for the disk most of the time.
const MOST_WORKERS: usize = 8;

/// A regular file to look at.
struct Task {
    dir: Arc<Dir>,
    name: Vec<u8>,
    fresh: bool,
}

struct Walk<'a> {
    top: Arc<Dir>,
    device: (u32, u32),
    keyring: &'a Keyring,
    /// Files born from here on may have been torn by a power cut.
    fresh_since: Option<Born>,
    /// Whether settled files are looked at as well.
    all: bool,
    watch: &'a dyn Watch,
    outcome: Mutex<Outcome>,
    files: AtomicU64,
    stopped: AtomicBool,
    /// Files with several names that were looked at.
    shared: Mutex<HashSet<u64>>,
}

/// After a power cut: looks at every file born since `born_since`, puts aside and empties those that do not open, cuts
/// overlong ones, and removes leftover names. One log line for each file that lost content. The caller holds the
/// vault's lock alone.
pub fn mend_fresh(top: &Path, keyring: &Keyring, born_since: Born, watch: &dyn Watch) -> Result<Outcome> {
    walk(top, keyring, Some(born_since), false, watch)
}

/// Mends all that a crash can leave, settled files included; files born since `fresh_since` as [`mend_fresh`] does.
/// The caller holds the vault's lock alone.
pub fn mend(top: &Path, keyring: &Keyring, fresh_since: Option<Born>, watch: &dyn Watch) -> Result<Outcome> {
    walk(top, keyring, fresh_since, true, watch)
}

fn walk(
    top: &Path,
    keyring: &Keyring,
    fresh_since: Option<Born>,
    all: bool,
    watch: &dyn Watch,
) -> Result<Outcome> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd: OwnedFd = rustix::fs::open(top, flags, Mode::empty())?;
    let device = stat::stat_fd(&fd)?.dev;
    let walk = Walk {
        top: Arc::new(Dir::top(fd)),
        device,
        keyring,
        fresh_since,
        all,
        watch,
        outcome: Mutex::default(),
        files: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
        shared: Mutex::default(),
    };
    let (sender, receiver) = bounded(QUEUE);
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MOST_WORKERS);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            let receiver = receiver.clone();
            scope.spawn(|| walk.work(receiver));
        }
        drop(receiver);
        walk.list(&sender);
        drop(sender);
    });
    let mut outcome = walk.outcome.into_inner();
    outcome.files = walk.files.into_inner();
    outcome.interrupted = walk.stopped.into_inner();
    outcome.mended.sort();
    outcome.failed.sort();
    Ok(outcome)
}

impl Walk<'_> {
    fn lost(&self) -> Result<LostFound> {
        LostFound::open(&self.top)
    }

    fn failed(&self, dir: &Dir, name: &[u8], e: Errno) {
        let (lower, plain) = (dir.lower(name), dir.plain(self.keyring.vault_key(), name));
        let mut outcome = self.outcome.lock();
        if may_pass(e) {
            outcome.trouble.get_or_insert((lower.clone(), e));
        }
        outcome.failed.push((lower, plain, e.to_string()));
    }

    /// Lists every directory; mends its names; hands regular files over.
    fn list(&self, files: &Sender<Task>) {
        self.tidy_vault_dir();
        let mut open = vec![(Arc::clone(&self.top), None::<Vec<u8>>)];
        while let Some((above, name)) = open.pop() {
            let dir = match name {
                None => above,
                Some(name) => match Dir::below(&above, &name) {
                    Ok(dir) => Arc::new(dir),
                    Err(e) => {
                        self.failed(&above, &name, e);
                        continue;
                    }
                },
            };
            let names = match dir.names() {
                Ok(names) => names,
                Err(e) => {
                    self.failed(&dir, b".", e);
                    continue;
                }
            };
            let mut inner = Vec::new();
            let mut removed = false;
            for name in names {
                if self.stopped.load(Ordering::Relaxed) {
                    return;
                }
                match self.enter(&dir, &name, files) {
                    Ok(Entered::Directory) => inner.push(name),
                    Ok(Entered::Mended) => removed = true,
                    Ok(Entered::Nothing) | Err(Errno::NOENT) => {}
                    Err(e) => self.failed(&dir, &name, e),
                }
            }
            if removed && let Err(e) = rustix::fs::fsync(dir.as_fd()) {
                self.failed(&dir, b".", e);
            }
            open.extend(inner.into_iter().rev().map(|name| (Arc::clone(&dir), Some(name))));
        }
    }

    /// Temporary names in the vault's own directory.
    fn tidy_vault_dir(&self) {
        let dir = match Dir::below(&self.top, VAULT_DIR.as_bytes()) {
            Ok(dir) => dir,
            Err(e) => return self.failed(&self.top, VAULT_DIR.as_bytes(), e),
        };
        let names = dir.names().unwrap_or_else(|e| {
            self.failed(&dir, b".", e);
            BTreeSet::new()
        });
        for name in names {
            if parse(&name) == LowerName::Temporary
                && let Err(e) = self.mend_name(&dir, &name)
            {
                self.failed(&dir, &name, e);
            }
        }
    }

    fn mend_name(&self, dir: &Dir, name: &[u8]) -> Result<bool> {
        let mended = names::mend(dir, name, || self.lost())?;
        let any = mended.is_some();
        self.outcome.lock().mended.extend(mended);
        Ok(any)
    }

    fn enter(&self, dir: &Arc<Dir>, name: &[u8], files: &Sender<Task>) -> Result<Entered> {
        if self.mend_name(dir, name)? {
            return Ok(Entered::Mended);
        }
        if !matches!(parse(name), LowerName::Short(_) | LowerName::Long(_)) {
            return Ok(Entered::Nothing);
        }
        let text = std::str::from_utf8(name).map_err(|_| Errno::ILSEQ)?;
        let at = stat::stat_at(dir, text)?;
        match at.kind() {
            // Another filesystem mounted in the vault is not the vault's.
            S_IFDIR if at.dev == self.device => return Ok(Entered::Directory),
            S_IFREG => {
                let fresh = self.fresh_since.is_some_and(|since| born(&at) >= since);
                if (fresh || self.all) && (at.nlink == 1 || self.shared.lock().insert(at.ino)) {
                    // The workers end only after this sender is gone.
                    let _ = files.send(Task { dir: Arc::clone(dir), name: name.to_vec(), fresh });
                }
            }
            _ => {}
        }
        Ok(Entered::Nothing)
    }

    fn work(&self, tasks: Receiver<Task>) {
        for task in tasks {
            if self.stopped.load(Ordering::Relaxed) {
                continue;
            }
            match self.mend_file(&task) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => {
                    log::warn!("{}: not mended: {e}", task.dir.lower(&task.name).display());
                    self.failed(&task.dir, &task.name, e);
                }
            }
            self.files.fetch_add(1, Ordering::Relaxed);
            if !self.watch.looked_at() {
                self.stopped.store(true, Ordering::Relaxed);
            }
        }
    }

    fn mend_file(&self, task: &Task) -> Result<()> {
        let text = std::str::from_utf8(&task.name).map_err(|_| Errno::ILSEQ)?;
        let lower = task.dir.lower(&task.name);
        let keep = |file: &std::fs::File, why: &str| content::keep(&self.lost()?, file, &lower, why);
        let done = content::mend(&*task.dir, text, task.fresh, self.keyring, keep)?;
        let Some(content::Done { deed, why, kept }) = done else { return Ok(()) };
        if deed == Deed::Emptied {
            // No plaintext name: whoever reads the log may not read the vault.
            let kept = kept.as_deref().map(Path::display);
            log::warn!(
                "{}: torn by a crash before it was synced ({why}): empty now, kept as {}",
                lower.display(),
                kept.map_or_else(String::new, |k| k.to_string())
            );
        }
        let plain = task.dir.plain(self.keyring.vault_key(), &task.name);
        self.outcome.lock().mended.push(Mended { lower, plain, deed, why, kept });
        Ok(())
    }
}

/// What an entry of a directory turned out to be.
enum Entered {
    Directory,
    Mended,
    Nothing,
}

/// When an inode came to be; its last change where the lower filesystem does not keep that.
fn born(at: &LowerStat) -> Born {
    at.btime.unwrap_or(at.ctime)
}
