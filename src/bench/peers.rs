//! The filesystems that are compared, each mounted by its own program in the foreground.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::error::{BenchError, output};

/// How long a mount may take to appear or to go.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const STEP: Duration = Duration::from_millis(10);

/// A filesystem to measure.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Peer {
    /// A bind mount of the lower directory: the ceiling.
    Plain,
    /// This program.
    Envelopefs,
    /// The one to beat.
    Gocryptfs,
    /// Another one in C++.
    Securefs,
}

impl Peer {
    /// Every one, in the order of a table.
    pub const ALL: [Self; 4] = [Self::Plain, Self::Envelopefs, Self::Gocryptfs, Self::Securefs];

    /// Its name, which is also its program's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Envelopefs => "envelopefs",
            Self::Gocryptfs => "gocryptfs",
            Self::Securefs => "securefs",
        }
    }

    /// Whether its program is there.
    pub fn is_installed(self) -> bool {
        let on_path = |name: &str| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
        };
        matches!(self, Self::Plain | Self::Envelopefs) || on_path(self.name())
    }

    /// Makes what it keeps in `lower`, then gives the command that serves it at `mnt` in the foreground.
    fn prepare(self, lower: &Path, mnt: &Path, secrets: &Path) -> Result<Option<Command>, BenchError> {
        let mut serve = match self {
            Self::Plain => {
                output(Command::new("mount").arg("--bind").arg(lower).arg(mnt))?;
                return Ok(None);
            }
            Self::Envelopefs => {
                let exe = own_program()?;
                let kms = secrets.join("kms");
                output(
                    Command::new(&exe)
                        .arg("init")
                        .arg(lower)
                        .arg("--kms-key-file")
                        .arg("--kms-dir")
                        .arg(&kms),
                )?;
                let mut serve = Command::new(exe);
                serve.arg("mount").arg(lower).arg(mnt).arg("--foreground").arg("--kms-dir").arg(kms);
                serve
            }
            Self::Gocryptfs => {
                let passfile = secrets.join("passphrase");
                let mut file = fs::File::create(&passfile).map_err(BenchError::io(&passfile))?;
                file.write_all(b"bench").map_err(BenchError::io(&passfile))?;
                let gocryptfs = || {
                    let mut command = Command::new("gocryptfs");
                    command.args(["-q", "-passfile"]).arg(&passfile);
                    command
                };
                output(gocryptfs().args(["-init", "-scryptn", "10"]).arg(lower))?;
                let mut serve = gocryptfs();
                serve.args(["-fg", "-nosyslog"]).arg(lower).arg(mnt);
                serve
            }
            Self::Securefs => {
                output(
                    Command::new("securefs").args(["create", "--pass", "bench", "--rounds", "1"]).arg(lower),
                )?;
                let mut serve = Command::new("securefs");
                serve.args(["mount", "--pass", "bench"]).arg(lower).arg(mnt);
                serve
            }
        };
        serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Some(serve))
    }
}

fn own_program() -> Result<PathBuf, BenchError> {
    std::env::current_exe().map_err(BenchError::io(Path::new("/proc/self/exe")))
}

/// A mounted peer; unmounted and ended when dropped.
#[derive(Debug)]
pub(super) struct Mounted {
    daemon: Option<Child>,
    mnt: PathBuf,
}

impl Mounted {
    /// Mounts a fresh `peer` with its ciphertext in `lower` (made here) at `mnt`.
    pub(super) fn new(peer: Peer, lower: &Path, mnt: &Path, secrets: &Path) -> Result<Self, BenchError> {
        for dir in [lower, mnt, secrets] {
            fs::create_dir_all(dir).map_err(BenchError::io(dir))?;
        }
        let mut mounted = Self { daemon: None, mnt: mnt.to_owned() };
        if let Some(mut serve) = peer.prepare(lower, mnt, secrets)? {
            mounted.daemon = Some(serve.spawn().map_err(BenchError::io(Path::new(peer.name())))?);
        }
        let until = Instant::now() + PATIENCE;
        while !is_mounted(mnt)? {
            let ended = mounted.daemon.as_mut().and_then(|d| d.try_wait().ok().flatten());
            if let Some(status) = ended {
                return Err(BenchError::NoMount { peer: peer.name(), why: status.to_string() });
            }
            if Instant::now() > until {
                return Err(BenchError::NoMount { peer: peer.name(), why: "it takes too long".to_owned() });
            }
            thread::sleep(STEP);
        }
        Ok(mounted)
    }

    /// The most memory that the daemon had resident, in KiB.
    pub(super) fn peak_kib(&self) -> Option<u64> {
        let id = self.daemon.as_ref()?.id();
        let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
        line.trim().trim_end_matches("kB").trim().parse().ok()
    }

    /// Unmounts and waits for the daemon.
    pub(super) fn unmount(mut self) -> Result<(), BenchError> {
        let until = Instant::now() + PATIENCE;
        // Busy for a moment where the kernel has not yet told the last close.
        while let Err(e) = output(Command::new("umount").arg(&self.mnt)) {
            if Instant::now() > until {
                return Err(e);
            }
            thread::sleep(STEP);
        }
        if let Some(mut daemon) = self.daemon.take() {
            while daemon.try_wait().is_ok_and(|s| s.is_none()) && Instant::now() < until {
                thread::sleep(STEP);
            }
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if is_mounted(&self.mnt).unwrap_or(false) {
            let _ = output(Command::new("umount").arg("-l").arg(&self.mnt));
        }
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

fn is_mounted(dir: &Path) -> Result<bool, BenchError> {
    let table = Path::new("/proc/self/mounts");
    let text = fs::read_to_string(table).map_err(BenchError::io(table))?;
    Ok(text.lines().any(|l| l.split(' ').nth(1).map(Path::new) == Some(dir)))
}
