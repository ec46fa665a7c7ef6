//! A peer's mount from its making to its end.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

use super::peers::Peer;
use super::usage;
use crate::bench::error::BenchError;
use crate::bench::guard::mounts_below;
use crate::bench::keeper::{Keeper, Running};

/// How long a mount may take to appear or to go.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const STEP: Duration = Duration::from_millis(10);
/// Bytes of a daemon's last words that are told.
const WORDS: u64 = 2000;

/// A mounted peer; unmounted and ended when dropped.
#[derive(Debug)]
pub(super) struct Mounted<'a> {
    daemon: Option<Running<'a>>,
    pub(super) mnt: PathBuf,
    said: PathBuf,
    keeper: &'a Keeper,
}

impl<'a> Mounted<'a> {
    /// Mounts a fresh `peer` with its ciphertext in `lower` (made here) at `mnt`.
    pub(super) fn new(
        peer: Peer,
        lower: &Path,
        mnt: &Path,
        secrets: &Path,
        keeper: &'a Keeper,
    ) -> Result<Self, BenchError> {
        for dir in [lower, mnt, secrets] {
            fs::create_dir_all(dir).map_err(BenchError::io(dir))?;
        }
        let said = secrets.join("daemon.log");
        let mut mounted = Self { daemon: None, mnt: mnt.to_owned(), said, keeper };
        if let Some((mut serve, input)) = peer.prepare(lower, mnt, secrets, keeper)? {
            let log = fs::File::create(&mounted.said).map_err(BenchError::io(&mounted.said))?;
            let also = log.try_clone().map_err(BenchError::io(&mounted.said))?;
            serve.stdin(Stdio::piped()).stdout(log).stderr(also);
            let mut running = keeper.spawn(&mut serve)?;
            if let Some(mut stdin) = running.child().stdin.take() {
                // A program that reads nothing may be gone already; that is told below.
                let _ = writeln!(stdin, "{input}");
            }
            mounted.daemon = Some(running);
        }
        mounted.appear(peer)?;
        Ok(mounted)
    }

    fn appear(&mut self, peer: Peer) -> Result<(), BenchError> {
        let until = Instant::now() + PATIENCE;
        while !is_mounted(&self.mnt) {
            self.keeper.check()?;
            let why = match self.daemon.as_mut().and_then(Running::ended) {
                Some(status) => format!("{status}; {}", self.last_words()),
                None if Instant::now() > until => "it takes too long".to_owned(),
                None => {
                    thread::sleep(STEP);
                    continue;
                }
            };
            return Err(BenchError::NoMount { peer: peer.name(), why });
        }
        Ok(())
    }

    /// What the daemon told, cut.
    fn last_words(&self) -> String {
        let mut text = Vec::new();
        if let Ok(file) = fs::File::open(&self.said) {
            let _ = file.take(WORDS).read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).trim().to_owned()
    }

    /// The most memory that the daemon had resident, in KiB.
    pub(super) fn peak_kib(&self) -> Option<u64> {
        usage::peak_kib(self.daemon.as_ref()?.id())
    }

    /// Processor time that the daemon has taken so far.
    pub(super) fn cpu_seconds(&self) -> Option<f64> {
        usage::cpu_seconds(self.daemon.as_ref()?.id())
    }

    /// Unmounts and waits for the daemon.
    pub(super) fn unmount(mut self) -> Result<(), BenchError> {
        let until = Instant::now() + PATIENCE;
        // Busy for a moment where the kernel has not yet told the last close.
        while let Err(e) = rustix::mount::unmount(&self.mnt, UnmountFlags::empty()) {
            if Instant::now() > until || e != rustix::io::Errno::BUSY {
                return Err(BenchError::io(&self.mnt)(e));
            }
            self.keeper.check()?;
            thread::sleep(STEP);
        }
        if let Some(mut daemon) = self.daemon.take() {
            daemon.wait(PATIENCE)?;
        }
        Ok(())
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if is_mounted(&self.mnt) {
            let _ = rustix::mount::unmount(&self.mnt, UnmountFlags::DETACH);
        }
    }
}

fn is_mounted(dir: &Path) -> bool {
    mounts_below(dir).iter().any(|m| m == dir)
}
