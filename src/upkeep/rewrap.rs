//! Brings every header of a vault to its newest keys. Contents are not touched.
//!
//! A header is replaced in one step (setxattr(2) replaces a value as a whole), so at any moment a file has its old
//! header or its new one, and both open. Before the first pass mounts are told, so that no file is made for the old
//! keys any more. A file that a mount moves meanwhile may be missed by one pass; passes follow until one finds nothing
//! to do. Files that have no name (O_TMPFILE) are seen by none: one that gets a name later is the next run's.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::state::{State, WorkLock};
use super::walk::{self, Found};
use super::{Outcome, Pace, UpkeepError, Watch};
use crate::format::header::{FileHeader, HEADER_XATTR};
use crate::keys::{Keyring, Rewrapped, Target};
use crate::vault::{VaultLock, xattr};

/// `XATTR_REPLACE`: a header that went away meanwhile is not made anew.
const REPLACE: u32 = 2;
/// Passes at most: the last ones see what a busy mount made meanwhile.
const PASSES: usize = 5;
/// A mount that cannot be asked learns within this that the keys for new files are others.
const LEARNING: Duration = Duration::from_millis(2500);

/// The mounts of a vault.
pub trait Mounts {
    /// Tells them that wrapping keys were changed. True when every new file is wrapped for the keys of the volume
    /// config, and files that were begun before have their names, but nameless ones (O_TMPFILE); false where one cannot be
    /// asked.
    fn follow(&self) -> bool;
}

impl Mounts for () {
    fn follow(&self) -> bool {
        false
    }
}

/// Ends when mounts of the vault at `top` make no file for keys that the volume config does not name any more, and those
/// that were begun before have their names, but nameless ones (O_TMPFILE). One that cannot be asked (a shared one, maybe of
/// another host) is given the time in which it looks by itself.
pub fn settle(top: &Path, mounts: &dyn Mounts) -> Result<(), UpkeepError> {
    if is_mounted(&open_top(top)?) && !mounts.follow() {
        std::thread::sleep(LEARNING);
    }
    Ok(())
}

struct Run<'a> {
    keyring: &'a Keyring,
    target: &'a Target,
    state: &'a State,
    outcome: Mutex<Outcome>,
}

/// Rewraps the vault that `alone` was taken for: before the wrapping keys were changed, where they were, so that nobody
/// else changes them on the way. With `only`, headers that hold a key of that version alone.
pub fn rewrap(
    alone: &WorkLock,
    keyring: &Keyring,
    only: Option<u16>,
    pace: Pace,
    watch: &dyn Watch,
    mounts: &dyn Mounts,
) -> Result<Outcome, UpkeepError> {
    let top = alone.top();
    let dir = open_top(top)?;
    settle(top, mounts)?;
    let mut target = keyring.rewrap_target(only)?;
    let state = State::begin(top, &target.describe(), target.run())?;
    target.resume(state.run());
    if state.earlier() > 0 {
        log::info!("an interrupted rewrap goes on: {} headers are done", state.earlier());
    }
    let run = Run { keyring, target: &target, state: &state, outcome: Mutex::default() };
    for _ in 0..PASSES {
        let before = {
            let mut outcome = run.outcome.lock();
            (outcome.files, outcome.bare) = (0, 0);
            (outcome.failed, outcome.skipped) = Default::default();
            outcome.changed
        };
        let whole = walk::each_file(&dir, pace, watch, &|found| run.one(&found));
        state.flush();
        if !whole? {
            run.outcome.lock().interrupted = true;
            break;
        }
        if run.outcome.lock().changed == before {
            break;
        }
    }
    let outcome = run.outcome.into_inner();
    if !outcome.interrupted {
        // Until this is durable the old keys must be kept: the caller says that it is.
        rustix::fs::syncfs(&dir).map_err(UpkeepError::io(top))?;
        if outcome.failed.count == 0 {
            state.finish();
        }
    }
    Ok(outcome)
}

fn open_top(top: &Path) -> Result<OwnedFd, UpkeepError> {
    Ok(File::open(top).map_err(|source| UpkeepError::Io { path: top.to_owned(), source })?.into())
}

fn is_mounted(dir: &OwnedFd) -> bool {
    matches!(VaultLock::take(dir, false), Err(Errno::WOULDBLOCK))
}

impl Run<'_> {
    fn one(&self, found: &Found) {
        let result = self.try_one(found);
        let mut outcome = self.outcome.lock();
        outcome.files += 1;
        match result {
            Ok(Some(true)) => outcome.changed += 1,
            Ok(Some(false)) => {}
            Ok(None) => outcome.bare += 1,
            Err(why) => outcome.failed.add(found.path.clone(), why),
        }
    }

    /// Whether the header was replaced; `None` where there is none.
    fn try_one(&self, found: &Found) -> Result<Option<bool>, String> {
        let bytes = match xattr::get(&found.fd, HEADER_XATTR) {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            other => other.map_err(|e| format!("header: {e}"))?,
        };
        let header = FileHeader::decode(&bytes).map_err(|e| e.to_string())?;
        let done = self.state.is_done(&self.keyring.mark(self.target, &bytes));
        match self.keyring.rewrap(&header, self.target, done).map_err(|e| e.to_string())? {
            Rewrapped::Good => Ok(Some(false)),
            Rewrapped::New(new) => {
                let new_bytes = new.encode().map_err(|e| e.to_string())?;
                xattr::set(&found.fd, HEADER_XATTR, &new_bytes, REPLACE)
                    .map_err(|e| format!("header not replaced: {e}"))?;
                if self.keyring.is_opaque(&new, self.target) {
                    self.state.note(&self.keyring.mark(self.target, &new_bytes));
                }
                Ok(Some(true))
            }
        }
    }
}
