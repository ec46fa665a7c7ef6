//! The file that says how far an interrupted repair came: `.envelopefs/repair.state`.
//!
//! Sealed under a key of the vault, so that nobody else can make a repair skip what it should look at; an old one that
//! somebody kept is good for a few days at most. A mount removes it, and so does a repair that comes to its end.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::track::Reached;
use crate::crypto::derive::{REPAIR_KEY, hkdf};
use crate::crypto::{SealKey, VaultKey, random};
use crate::format::names::{TMP_PREFIX, VAULT_DIR};
use crate::fs::recover::REPAIR_STATE;
use crate::vault::{DiskFile, FreshFile, LowerFile, entry};

/// What the seal binds.
const AD: &[u8] = b"repair state 1";
/// The longest state that is read: 256 paths and the cursor fit, unless they are very long; then none is kept.
const LONGEST: usize = 1 << 20;
/// Time between two writes.
const EVERY: Duration = Duration::from_secs(5);
/// An older state is no longer believed.
const OLDEST: u64 = 7 * 24 * 3600;

#[derive(Serialize, Deserialize)]
struct State {
    /// Seconds since 1970.
    written: u64,
    reached: Reached,
}

/// The state file of a vault.
pub(super) struct StateFile {
    dir: OwnedFd,
    key: SealKey,
    last: Instant,
}

impl StateFile {
    /// That of the vault at `top`.
    pub(super) fn of(top: &Path, key: &VaultKey) -> io::Result<Self> {
        let dir = entry::open_dir_path(File::open(top)?, VAULT_DIR)?;
        let dir = entry::open_dir_read(dir, false)?;
        Ok(Self { dir, key: SealKey::new(hkdf(key.0.expose(), &[], REPAIR_KEY)), last: Instant::now() })
    }

    /// How far an earlier run came, if it left a state that is ours and not old.
    pub(super) fn read(&self) -> Option<Reached> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, REPAIR_STATE, flags, Mode::empty()).ok()?;
        let mut bytes = vec![0; LONGEST];
        let read = DiskFile(file.into()).read_at(&mut bytes, 0).ok()?;
        let opened = self.key.open(AD, bytes.get(..read)?).ok()?;
        let state: State = serde_json::from_slice(&opened).ok()?;
        let age = now().checked_sub(state.written)?;
        (age < OLDEST).then_some(state.reached)
    }

    /// Whether it is time to write.
    pub(super) fn is_due(&self) -> bool {
        self.last.elapsed() >= EVERY
    }

    /// Writes how far the walk came, in one step.
    pub(super) fn write(&mut self, reached: &Reached) -> io::Result<()> {
        self.last = Instant::now();
        // Lower paths are text; one that is none cannot be said here, and the walk begins anew.
        let Ok(text) = serde_json::to_vec(&State { written: now(), reached: reached.clone() }) else {
            return Ok(());
        };
        let sealed = self.key.seal(AD, &text);
        if sealed.len() > LONGEST {
            return Ok(());
        }
        let name = || format!("{TMP_PREFIX}{:016x}", u64::from_le_bytes(random::array()));
        let fresh = FreshFile::make(self.dir.as_fd(), (0o600, 0o077), name)?;
        fresh.file().write_at(&[IoSlice::new(&sealed)], 0)?;
        fresh.file().sync(true)?;
        Ok(fresh.replace(REPAIR_STATE, name())?)
    }

    /// The repair came to its end.
    pub(super) fn remove(&self) {
        let _ = entry::unlink(&self.dir, REPAIR_STATE);
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
