//! What an interrupted rewrap has done: `.envelopefs/rewrap.state`.
//!
//! A line of text that says what the run is for, then a mark of 16 bytes for each header it wrote whose bytes do not
//! tell their version. Marks are authenticators over the header, so a stranger can make a rewrap do too much, never
//! too little. Headers that do tell need no mark.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::FlockOperation;

use super::UpkeepError;
use crate::format::names::VAULT_DIR;

/// File below the vault's own directory.
const FILE: &str = "rewrap.state";
/// Held by whoever rewraps, rekeys, adds or removes a wrapping key.
const LOCK: &str = "upkeep.lock";
/// The longest first line.
const LONGEST_LINE: usize = 64 << 10;
/// Marks that are kept: 64 MiB. Headers beyond are done again by a run that goes on.
const MOST_MARKS: usize = 4 << 20;
/// Marks that wait for a write.
const BATCH: usize = 64 * 16;

/// Work on the vault's headers or wrapping keys, by one at a time; ends when it is dropped.
#[derive(Debug)]
pub struct WorkLock {
    top: PathBuf,
    _file: File,
}

impl WorkLock {
    /// Takes it for the vault at `top`; [`UpkeepError::Busy`] where somebody has it.
    pub fn take(top: &Path) -> Result<Self, UpkeepError> {
        let path = top.join(VAULT_DIR).join(LOCK);
        let file = options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|source| UpkeepError::Io { path: path.clone(), source })?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => Err(UpkeepError::Busy),
            other => other.map_err(UpkeepError::io(path)).map(|()| Self { top: top.to_owned(), _file: file }),
        }
    }

    /// The vault that it was taken for.
    pub fn top(&self) -> &Path {
        &self.top
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

/// The marks of this run and of those it goes on from.
pub(super) struct State {
    path: PathBuf,
    done: Mutex<HashSet<[u8; 16]>>,
    earlier: usize,
    out: Mutex<(File, Vec<u8>)>,
    run: [u8; 16],
}

impl State {
    /// Goes on with the state of an earlier run for the same target, or begins one with the id `run`.
    pub(super) fn begin(top: &Path, target: &str, run: [u8; 16]) -> Result<Self, UpkeepError> {
        let path = top.join(VAULT_DIR).join(FILE);
        let io = |source| UpkeepError::Io { path: path.clone(), source };
        if let Some((run, earlier)) = read(&path, target) {
            let file = options().append(true).open(&path).map_err(io)?;
            return Ok(Self {
                path,
                earlier: earlier.len(),
                done: Mutex::new(earlier),
                out: Mutex::new((file, Vec::new())),
                run,
            });
        }
        let _ = std::fs::remove_file(&path);
        let mut file = options().append(true).create_new(true).open(&path).map_err(io)?;
        file.write_all(first_line(target, &run).as_bytes()).map_err(io)?;
        Ok(Self { path, earlier: 0, done: Mutex::default(), out: Mutex::new((file, Vec::new())), run })
    }

    /// The run's id: that of the earlier one, where it goes on.
    pub(super) fn run(&self) -> [u8; 16] {
        self.run
    }

    /// Whether this run, or what it goes on from, wrote a header with this mark.
    pub(super) fn is_done(&self, mark: &[u8; 16]) -> bool {
        self.done.lock().contains(mark)
    }

    /// How many headers earlier parts wrote.
    pub(super) fn earlier(&self) -> usize {
        self.earlier
    }

    /// Notes a header. A note that cannot be written costs doing it again.
    pub(super) fn note(&self, mark: &[u8; 16]) {
        {
            let mut done = self.done.lock();
            if done.len() >= MOST_MARKS {
                return;
            }
            done.insert(*mark);
        }
        let mut out = self.out.lock();
        let (file, waiting) = &mut *out;
        waiting.extend_from_slice(mark);
        if waiting.len() >= BATCH {
            let _ = file.write_all(waiting);
            waiting.clear();
        }
    }

    /// Writes what waits.
    pub(super) fn flush(&self) {
        let mut out = self.out.lock();
        let (file, waiting) = &mut *out;
        let _ = file.write_all(waiting);
        waiting.clear();
    }

    /// The run came to its end.
    pub(super) fn finish(self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn first_line(target: &str, run: &[u8; 16]) -> String {
    format!("rewrap {} to {target}\n", hex::encode(run))
}

fn read(path: &Path, target: &str) -> Option<([u8; 16], HashSet<[u8; 16]>)> {
    let (line, rest) = parts(path)?;
    let id = line.strip_prefix("rewrap ")?.get(..32)?;
    let run = u128::from_str_radix(id, 16).ok()?.to_be_bytes();
    if line != first_line(target, &run).trim_end() {
        return None;
    }
    let (marks, _torn) = rest.as_chunks::<16>();
    Some((run, marks.iter().copied().collect()))
}

fn parts(path: &Path) -> Option<(String, Vec<u8>)> {
    let file = options().read(true).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take((LONGEST_LINE + MOST_MARKS * 16) as u64).read_to_end(&mut bytes).ok()?;
    let end = bytes.iter().take(LONGEST_LINE).position(|b| *b == b'\n')?;
    let rest = bytes.split_off(end + 1);
    bytes.truncate(end);
    Some((String::from_utf8(bytes).ok()?, rest))
}

/// What an interrupted rewrap of the vault was for, where there is one. Not authenticated.
pub fn interrupted(top: &Path) -> Option<String> {
    let (line, _) = parts(&top.join(VAULT_DIR).join(FILE))?;
    let (_, target) = line.split_once(" to ")?;
    Some(target.chars().filter(|c| !c.is_control()).take(1000).collect())
}
