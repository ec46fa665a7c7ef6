//! Appending: one write for the lines of a call, one for the head, before the request is answered.
//!
//! A lock on the head's file makes processes take turns. A process that died between the two writes leaves lines
//! that the next one finds and takes in; half a line is cut off. Every second, and when the log is closed, what was
//! written is synced; nobody who appends waits for that.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::fs::{FlockOperation, flock};

use super::chain::{self, Link};
use super::error::AuditError;
use super::event::Event;
use super::files;
use super::head::Head;
use super::lines::{Line, Lines};
use crate::crypto::{MacKey, random};

/// Lines that are written at once.
const AT_ONCE: usize = 128;

/// What the log does with its files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// A file that would grow beyond this many bytes is followed by the next one.
    pub max_file: u64,
    /// Files that are kept, at least 1; the oldest goes when one more begins. `None`: all.
    pub keep: Option<u64>,
    /// How long a line may wait for its sync.
    pub sync_every: Duration,
}

impl Default for Settings {
    /// Files of 64 MiB, about 80,000 events each; all are kept.
    fn default() -> Self {
        Self { max_file: 64 << 20, keep: None, sync_every: Duration::from_secs(1) }
    }
}

/// The audit log of a store. Thread-safe.
pub struct Log {
    shared: Arc<Shared>,
    /// Started by the first line: it has the rights of whoever wrote that.
    syncer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

struct Shared {
    dir: PathBuf,
    key: MacKey,
    settings: Settings,
    state: Mutex<State>,
    closing: Condvar,
}

struct State {
    head_file: Arc<File>,
    file: Arc<File>,
    /// As this process left it.
    head: Head,
    closed: bool,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

impl Log {
    /// Opens the log in `dir`, which is made where it does not exist; its parent has to.
    pub fn open(dir: &Path, key: MacKey, settings: Settings) -> Result<Self, AuditError> {
        files::make_dir(dir)?;
        let head_file = Arc::new(files::open(&files::head_path(dir), false)?);
        let locked = Locked::take(&head_file, dir)?;
        let head = Head::load(&head_file, &files::head_path(dir), &key)?;
        let file = Arc::new(files::open(&files::path(dir, head.file), true)?);
        drop(locked);
        let state = Mutex::new(State { head_file, file, head, closed: false });
        let settings = Settings { keep: settings.keep.map(|n| n.max(1)), ..settings };
        let shared = Arc::new(Shared { dir: dir.into(), key, settings, state, closing: Condvar::new() });
        Ok(Self { shared, syncer: Mutex::default() })
    }

    /// Writes events, in this order, a line each; they are in the log when this returns.
    pub fn append(&self, events: &[Event<'_>]) -> Result<(), AuditError> {
        self.start()?;
        for some in events.chunks(AT_ONCE) {
            // Everything that needs no order is done before the lock.
            let lines: Vec<_> = some.iter().map(|event| event.json(&random::array())).collect();
            let mut state = self.shared.state.lock();
            self.shared.append(&mut state, &lines)?;
        }
        Ok(())
    }

    fn start(&self) -> Result<(), AuditError> {
        let mut syncer = self.syncer.lock();
        if syncer.is_none() {
            let syncing = self.shared.clone();
            let thread = std::thread::Builder::new().name("audit-sync".into());
            let thread = thread.spawn(move || syncing.sync_now_and_then());
            *syncer = Some(thread.map_err(AuditError::io(&self.shared.dir))?);
        }
        Ok(())
    }

    /// Syncs, and ends the thread that does; the next line starts another one.
    pub fn settle(&self) {
        let mut syncer = self.syncer.lock();
        let Some(thread) = syncer.take() else { return };
        self.shared.state.lock().closed = true;
        self.shared.closing.notify_all();
        // It panics nowhere; and where a log closes, nobody is left to tell.
        let _ = thread.join();
        self.shared.state.lock().closed = false;
    }

    /// Makes what was written before the call durable.
    pub fn sync(&self) -> Result<(), AuditError> {
        self.shared.sync()
    }

    /// Where the log is.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.settle();
    }
}

impl Shared {
    fn append(&self, state: &mut State, events: &[Vec<u8>]) -> Result<(), AuditError> {
        let lock = state.head_file.clone();
        let _locked = Locked::take(&lock, &self.dir)?;
        self.catch_up(state)?;
        let (mut text, mut last) = (Vec::new(), state.head.last);
        for json in events {
            let (line, link) = chain::forge(&self.key, &last, json);
            let len = state.head.len + text.len() as u64;
            if len > 0 && len + line.len() as u64 > self.settings.max_file {
                self.write(state, &mut text, last)?;
                self.next_file(state)?;
            }
            text.extend_from_slice(&line);
            last = link;
        }
        self.write(state, &mut text, last)?;
        self.write_head(state)
    }

    /// Writes lines, the last of which is `last`.
    fn write(&self, state: &mut State, text: &mut Vec<u8>, last: Link) -> Result<(), AuditError> {
        let path = files::path(&self.dir, state.head.file);
        (&*state.file).write_all(text).map_err(AuditError::io(&path))?;
        state.head.last = last;
        state.head.len += text.len() as u64;
        text.clear();
        Ok(())
    }

    fn write_head(&self, state: &State) -> Result<(), AuditError> {
        state.head.store(&state.head_file, &files::head_path(&self.dir), &self.key)
    }

    /// Takes in what other processes, or one that died, left behind.
    fn catch_up(&self, state: &mut State) -> Result<(), AuditError> {
        let found = Head::load(&state.head_file, &files::head_path(&self.dir), &self.key)?;
        if found != state.head {
            if found.file != state.head.file {
                state.file = Arc::new(files::open(&files::path(&self.dir, found.file), true)?);
            }
            state.head = found;
        }
        let path = files::path(&self.dir, state.head.file);
        let len = state.file.metadata().map_err(AuditError::io(&path))?.len();
        if len == state.head.len {
            return Ok(());
        }
        if len < state.head.len {
            return self.go_on_behind_a_gap(state, &path, len);
        }
        self.adopt(state, &path)
    }

    /// The file is shorter than the head says: a power cut, or somebody. The chain goes on, so that it shows.
    fn go_on_behind_a_gap(&self, state: &mut State, path: &Path, len: u64) -> Result<(), AuditError> {
        log::error!(
            "{}: {} bytes are missing at the end of the audit log; see `envelopefs kms audit verify`",
            path.display(),
            state.head.len - len
        );
        let mut last = [b'\n'];
        if len > 0 {
            state.file.read_exact_at(&mut last, len - 1).map_err(AuditError::io(path))?;
        }
        state.head.len = len;
        if last != [b'\n'] {
            (&*state.file).write_all(b"\n").map_err(AuditError::io(path))?;
            state.head.len += 1;
        }
        Ok(())
    }

    /// Lines beyond the head that continue the chain were written by a process that died before it wrote the head.
    fn adopt(&self, state: &mut State, path: &Path) -> Result<(), AuditError> {
        let mut reader = Tail { file: &state.file, at: state.head.len };
        for line in Lines::new(&mut reader) {
            let Line::Whole(line) = line.map_err(AuditError::io(path))? else { break };
            match chain::read(&self.key, &line) {
                Some((claim, true)) if follows(&state.head.last, &claim) => {
                    state.head.last = claim.link;
                    state.head.len += line.len() as u64 + 1;
                }
                _ => break,
            }
        }
        let len = state.file.metadata().map_err(AuditError::io(path))?.len();
        if len > state.head.len {
            log::warn!("{}: a torn line of {} bytes is cut off", path.display(), len - state.head.len);
            state.file.set_len(state.head.len).map_err(AuditError::io(path))?;
        }
        self.write_head(state)
    }

    fn next_file(&self, state: &mut State) -> Result<(), AuditError> {
        let old = files::path(&self.dir, state.head.file);
        state.file.sync_data().map_err(AuditError::io(&old))?;
        state.head.synced = state.head.last.seq;
        state.head.file += 1;
        state.head.len = 0;
        state.file = Arc::new(files::open(&files::path(&self.dir, state.head.file), true)?);
        files::sync_dir(&self.dir)?;
        self.write_head(state)?;
        let Some(keep) = self.settings.keep else { return Ok(()) };
        while state.head.file - state.head.first_file + 1 > keep {
            let oldest = files::path(&self.dir, state.head.first_file);
            state.head.before = self.last_line(&oldest)?.unwrap_or(state.head.before);
            state.head.first_file += 1;
            // The head first: a file too many is passed over, one too few would look removed.
            self.write_head(state)?;
            std::fs::remove_file(&oldest).map_err(AuditError::io(&oldest))?;
        }
        Ok(())
    }

    fn last_line(&self, path: &Path) -> Result<Option<Link>, AuditError> {
        let file = File::open(path).map_err(AuditError::io(path))?;
        let mut last = None;
        for line in Lines::new(file) {
            if let Line::Whole(line) = line.map_err(AuditError::io(path))? {
                last = chain::read(&self.key, &line).map(|(claim, _)| claim.link).or(last);
            }
        }
        Ok(last)
    }

    /// Waits for the disk without a lock, so that lines go on being written.
    fn sync(&self) -> Result<(), AuditError> {
        let (head_file, file, path, upto) = {
            let mut state = self.state.lock();
            let head_file = state.head_file.clone();
            let _locked = Locked::take(&head_file, &self.dir)?;
            self.catch_up(&mut state)?;
            if state.head.synced == state.head.last.seq {
                return Ok(());
            }
            // Files before this one were synced when it was begun.
            let path = files::path(&self.dir, state.head.file);
            (head_file.clone(), state.file.clone(), path, state.head.last.seq)
        };
        file.sync_data().map_err(AuditError::io(&path))?;
        {
            let mut state = self.state.lock();
            let _locked = Locked::take(&head_file, &self.dir)?;
            self.catch_up(&mut state)?;
            state.head.synced = state.head.synced.max(upto);
            self.write_head(&state)?;
        }
        head_file.sync_data().map_err(AuditError::io(&files::head_path(&self.dir)))
    }

    /// The thread: one sync each second in which something was written, and a last one.
    fn sync_now_and_then(&self) {
        loop {
            let (closed, due) = {
                let state = self.state.lock();
                (state.closed, state.head.synced != state.head.last.seq)
            };
            if due && let Err(error) = self.sync() {
                log::error!("{error}");
            }
            if closed {
                return;
            }
            let mut state = self.state.lock();
            if !state.closed {
                self.closing.wait_for(&mut state, self.settings.sync_every);
            }
        }
    }
}

/// Whether a line is the next one.
pub(super) fn follows(last: &Link, claim: &chain::Claim) -> bool {
    claim.link.seq == last.seq + 1 && claim.prev == last.mac
}

/// Reads a file from a place, without moving the descriptor's own.
struct Tail<'a> {
    file: &'a File,
    at: u64,
}

impl std::io::Read for Tail<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read_at(buf, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// The turn of this process.
pub(super) struct Locked<'a>(&'a File);

impl<'a> Locked<'a> {
    pub(super) fn take(file: &'a File, dir: &Path) -> Result<Self, AuditError> {
        loop {
            match flock(file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self(file)),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(AuditError::io(dir)(e.into())),
            }
        }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Closing the descriptor would do it too.
        let _ = flock(self.0, FlockOperation::Unlock);
    }
}
