//! What is put to the test: EnvelopeFS, and others as yardsticks.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

use crate::disk::Disk;

/// How long a mount may take to appear or to go, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(1);

/// The filesystem on the recording disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lower {
    Ext4,
    Xfs,
}

impl Lower {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Ext4, Self::Xfs].into_iter().find(|l| l.name() == name)
    }

    /// A disk large enough for it.
    pub(crate) fn disk_len(self) -> u64 {
        match self {
            Self::Ext4 => 128 << 20,
            // mkfs.xfs makes none below 300 MiB.
            Self::Xfs => 320 << 20,
        }
    }

    pub(crate) fn make(self, disk: &Disk) {
        let mut command = match self {
            Self::Ext4 => {
                let mut command = Command::new("mkfs.ext4");
                // Nothing is left to be written by the kernel some time later.
                command.args(["-q", "-F", "-b", "4096", "-m", "0", "-J", "size=8"]);
                command.args(["-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"]);
                command
            }
            Self::Xfs => {
                let mut command = Command::new("mkfs.xfs");
                command.args(["-q", "-f", "-K", "-s", "size=4096"]);
                command
            }
        };
        run(command.arg(disk.file())).unwrap();
    }

    /// Mounts it, which replays its journal.
    pub(crate) fn mount(self, disk: &Disk, at: &Path) -> Result<Mounted, String> {
        let options = match self {
            // Commits come as in half a minute of real work.
            Self::Ext4 => "loop,commit=1",
            Self::Xfs => "loop",
        };
        run(Command::new("mount").args(["-t", self.name(), "-o", options]).arg(disk.file()).arg(at))
            .map_err(|why| format!("{LOWER_DEAD}{why}"))?;
        Ok(Mounted { daemon: None, mnt: at.to_owned() })
    }
}

/// What an error begins with where the lower filesystem itself does not mount any more.
pub(crate) const LOWER_DEAD: &str = "the lower filesystem does not mount: ";

/// A filesystem on top of the lower one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    /// This program.
    Envelopefs,
    /// This program with its barriers left out.
    Unordered,
    /// The one to compare with.
    Gocryptfs,
    /// The lower filesystem itself: whatever it loses, the harness made up.
    Plain,
}

/// Where everything lies.
pub(crate) struct Place {
    /// The lower filesystem is mounted here.
    pub(crate) lower: PathBuf,
    /// The target is mounted here.
    pub(crate) mnt: PathBuf,
    /// Keys: outside the disk, or in it.
    pub(crate) keys: PathBuf,
    /// What daemons said.
    pub(crate) log: PathBuf,
}

impl Place {
    /// The ciphertext.
    pub(crate) fn vault(&self) -> PathBuf {
        self.lower.join("vault")
    }

    /// What daemons said last.
    pub(crate) fn said(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

impl Target {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Envelopefs => "envelopefs",
            Self::Unordered => "unordered",
            Self::Gocryptfs => "gocryptfs",
            Self::Plain => "plain",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Envelopefs, Self::Unordered, Self::Gocryptfs, Self::Plain]
            .into_iter()
            .find(|t| t.name() == name)
    }

    fn envelopefs(self, place: &Place, args: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_envelopefs")]).args(args);
        command.arg("--kms-dir").arg(&place.keys);
        if self == Self::Unordered {
            command.env("ENVELOPEFS_TEST_UNORDERED", "1");
        }
        command
    }

    /// Makes the vault.
    pub(crate) fn init(self, place: &Place) {
        fs::create_dir_all(place.keys.parent().unwrap()).unwrap();
        let vault = place.vault();
        match self {
            Self::Envelopefs | Self::Unordered => {
                run(self.envelopefs(place, &["init", text(&vault), "--kms-key-file"])).unwrap();
            }
            Self::Gocryptfs => {
                fs::create_dir(&vault).unwrap();
                fs::create_dir(&place.keys).unwrap();
                fs::write(place.keys.join("pass"), "cut").unwrap();
                run(gocryptfs(place).args(["-init", "-scryptn", "10"]).arg(&vault)).unwrap();
            }
            Self::Plain => fs::create_dir(&vault).unwrap(),
        }
    }

    /// Mounts the vault.
    pub(crate) fn mount(self, place: &Place) -> Result<Mounted, String> {
        let vault = place.vault();
        let mut command = match self {
            Self::Envelopefs | Self::Unordered => {
                self.envelopefs(place, &["mount", text(&vault), text(&place.mnt), "--foreground"])
            }
            Self::Gocryptfs => {
                let mut command = gocryptfs(place);
                command.args(["-fg", "-nosyslog"]).arg(&vault).arg(&place.mnt);
                command
            }
            Self::Plain => {
                run(Command::new("mount").arg("--bind").arg(&vault).arg(&place.mnt))?;
                return Ok(Mounted { daemon: None, mnt: place.mnt.clone() });
            }
        };
        let log = File::create(&place.log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let daemon = command.spawn().map_err(|e| format!("{command:?}: {e}"))?;
        let mut mounted = Mounted { daemon: Some(daemon), mnt: place.mnt.clone() };
        let until = Instant::now() + PATIENCE;
        while !is_mounted(&place.mnt) {
            let ended = mounted.daemon.as_mut().and_then(|d| d.try_wait().unwrap());
            if ended.is_some() || Instant::now() > until {
                return Err(format!("no mount ({ended:?}): {}", place.said()));
            }
            thread::sleep(STEP);
        }
        // It answers: it has also seen its own mount.
        fs::metadata(&place.mnt).map_err(|e| format!("the mount gives {e}: {}", place.said()))?;
        Ok(mounted)
    }

    /// Looks the unmounted vault over.
    pub(crate) fn check(self, place: &Place) -> Result<(), String> {
        match self {
            Self::Envelopefs | Self::Unordered => {
                run(self.envelopefs(place, &["check", text(&place.vault())])).map(drop)
            }
            Self::Gocryptfs => run(gocryptfs(place).arg("-fsck").arg(place.vault())).map(drop),
            Self::Plain => Ok(()),
        }
    }

    /// Whether it has a repair.
    pub(crate) fn can_repair(self) -> bool {
        self == Self::Envelopefs
    }

    /// Whether it can do what a workload does: gocryptfs has no holes to punch and no keys of ours.
    pub(crate) fn can(self, workload: &str) -> bool {
        self != Self::Gocryptfs || !matches!(workload, "space" | "keys")
    }

    /// Repairs the unmounted vault.
    pub(crate) fn repair(self, place: &Place) -> Result<(), String> {
        run(self.envelopefs(place, &["check", "--repair", text(&place.vault())])).map(drop)
    }
}

fn gocryptfs(place: &Place) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "gocryptfs", "-q", "-passfile"]).arg(place.keys.join("pass"));
    command
}

/// A mounted filesystem, with its daemon if it has one; unmounted when dropped.
pub(crate) struct Mounted {
    daemon: Option<Child>,
    mnt: PathBuf,
}

impl Mounted {
    /// Unmounts as a user does, and waits for the daemon.
    pub(crate) fn unmount(mut self) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        while let Err(e) = rustix::mount::unmount(&self.mnt, UnmountFlags::empty()) {
            if Instant::now() > until || e != rustix::io::Errno::BUSY {
                return Err(format!("{}: umount: {e}", self.mnt.display()));
            }
            thread::sleep(STEP);
        }
        while let Some(daemon) = &mut self.daemon {
            if let Some(status) = daemon.try_wait().unwrap() {
                self.daemon = None;
                return if status.success() {
                    Ok(())
                } else {
                    Err(format!("the daemon ended with {status}"))
                };
            }
            if Instant::now() > until {
                return Err("the daemon does not end".to_owned());
            }
            thread::sleep(STEP);
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if is_mounted(&self.mnt) {
            let _ = rustix::mount::unmount(&self.mnt, UnmountFlags::DETACH);
        }
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// Runs a command and gives what it printed; an error is all that it said.
pub(crate) fn run(mut command: impl std::borrow::BorrowMut<Command>) -> Result<String, String> {
    let command = command.borrow_mut().stdin(Stdio::null());
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(out);
    }
    let err = String::from_utf8_lossy(&output.stderr);
    Err(format!("{:?} gave {}: {}{}", command.get_program(), output.status, out, err))
}

/// A path as text.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn is_mounted(dir: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    table.lines().any(|l| l.split(' ').nth(1) == Some(text(dir)))
}
