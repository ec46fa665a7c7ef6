//! A small process that unmounts when the daemon asks or dies: the daemon itself, in its sandbox, cannot.
//!
//! It starts before any key is unlocked, holds no secret, hears the daemon over a pipe, and ends with it.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use super::args::GuardianArgs;
use super::error::CliError;
use super::exit::Exit;
use super::{signals, umount};
use crate::fuse::{DeviceNumber, mountinfo};

/// The daemon's end of the pipe.
pub(super) struct Guardian {
    pipe: ChildStdin,
    child: Child,
}

impl Guardian {
    /// Starts the process.
    pub(super) fn start(mount_point: &Path) -> io::Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .arg0("envelopefs")
            .arg("guardian")
            .arg(mount_point)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name == "PATH"))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let pipe = child.stdin.take().expect("stdin was asked to be a pipe");
        Ok(Self { pipe, child })
    }

    /// Tells what is mounted now.
    pub(super) fn mounted(&mut self, device: &DeviceNumber) -> io::Result<()> {
        writeln!(self.pipe, "mounted {device}")
    }

    /// Asks to unmount.
    pub(super) fn unmount(&mut self) -> io::Result<()> {
        writeln!(self.pipe, "unmount")
    }

    /// Lets it go; waits for its end, which comes at once when nothing is mounted any more.
    pub(super) fn dismiss(self) {
        let Self { pipe, mut child } = self;
        drop(pipe);
        let _ = child.wait();
    }
}

/// The process itself.
pub(super) fn run(args: &GuardianArgs) -> Result<Exit, CliError> {
    signals::ignore();
    // Out of the terminal's reach: its Ctrl-C and its end concern the daemon.
    let _ = rustix::process::setsid();
    let mut guarded = Guarded { mount_point: args.mount_point.clone(), device: None };
    for line in BufReader::new(io::stdin()).lines() {
        match line.as_deref().map(|l| l.split_once(' ').unwrap_or((l, ""))) {
            Ok(("mounted", device)) => guarded.device = Some(device.to_owned()),
            Ok(("unmount", _)) => guarded.unmount(),
            Ok(_) => {}
            Err(_) => break,
        }
    }
    guarded.detach();
    Ok(Exit::Ok)
}

struct Guarded {
    mount_point: PathBuf,
    device: Option<String>,
}

impl Guarded {
    /// Whether the daemon's mount is still there; not another one that took its place.
    fn is_there(&self) -> bool {
        let Some(device) = &self.device else { return false };
        let mounts = mountinfo().unwrap_or_default();
        mounts.iter().any(|m| m.mount_point == self.mount_point && m.device == *device)
    }

    /// The daemon lives: write back what the kernel holds, then unmount; in use, it goes with its last user.
    fn unmount(&self) {
        if !self.is_there() {
            return;
        }
        if let Ok(dir) = std::fs::File::open(&self.mount_point) {
            let _ = rustix::fs::syncfs(&dir);
        }
        if umount::unmount(&self.mount_point, false).is_err() {
            self.detach();
        }
    }

    /// The daemon may be dead: nothing here may wait for it.
    fn detach(&self) {
        if self.is_there() {
            let _ = umount::unmount(&self.mount_point, true);
        }
    }
}
