//! A small process that unmounts when the daemon asks or dies: the daemon itself, in its sandbox, cannot.
//!
//! It starts before any key is unlocked, holds no secret, hears the daemon over a pipe, and ends with it.

use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crossbeam::channel::{Receiver, bounded};

use super::exit::Exit;
use super::{signals, umount};
use crate::fuse::{DeviceNumber, mountinfo};
use crate::keys::token::program;

/// First argument of the process. It is no command: help, completions and man pages do not know it.
pub(super) const NAME: &str = "guardian";

/// The daemon's end of the pipe.
pub(super) struct Guardian {
    /// `None` only while it is dropped: the pipe's end is what ends the process.
    pipe: Option<ChildStdin>,
    answers: Option<ChildStdout>,
    child: Child,
}

impl Drop for Guardian {
    /// Lets it go and waits for its end, which comes when what is still mounted is unmounted.
    fn drop(&mut self) {
        self.pipe = None;
        let _ = self.child.wait();
    }
}

impl Guardian {
    /// Starts the process.
    pub(super) fn start(mount_point: &Path) -> io::Result<Self> {
        let mut child = Command::new(program())
            .arg(NAME)
            .arg(mount_point)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name == "PATH"))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (pipe, answers) = (child.stdin.take(), child.stdout.take());
        Ok(Self { pipe, answers, child })
    }

    /// A message once it has unmounted as it was asked to: everything the kernel held has come back by then.
    pub(super) fn unmounted(&mut self) -> io::Result<Receiver<()>> {
        let (sender, receiver) = bounded(1);
        let answers =
            self.answers.take().ok_or_else(|| io::Error::other("its answers are awaited already"))?;
        std::thread::Builder::new().name("efs-guardian".to_owned()).spawn(move || {
            for _answer in BufReader::new(answers).lines().map_while(Result::ok) {
                let _ = sender.try_send(());
            }
        })?;
        Ok(receiver)
    }

    fn say(&mut self, line: &str) -> io::Result<()> {
        self.pipe.as_mut().map_or(Ok(()), |pipe| writeln!(pipe, "{line}"))
    }

    /// Tells what is mounted now.
    pub(super) fn mounted(&mut self, device: &DeviceNumber) -> io::Result<()> {
        self.say(&format!("mounted {device}"))
    }

    /// Tells that the mount is gone: from now on the same mount point and device number are another mount's.
    pub(super) fn gone(&mut self) -> io::Result<()> {
        self.say("gone")
    }

    /// Asks to unmount.
    pub(super) fn unmount(&mut self) -> io::Result<()> {
        self.say("unmount")
    }
}

/// The process itself.
pub(super) fn run(mount_point: PathBuf) -> Exit {
    signals::ignore();
    // Out of the terminal's reach: its Ctrl-C and its end concern the daemon.
    let _ = rustix::process::setsid();
    let mut guarded = Guarded { mount_point, device: None };
    for line in BufReader::new(io::stdin()).lines() {
        match line.as_deref().map(|l| l.split_once(' ').unwrap_or((l, ""))) {
            Ok(("mounted", device)) => guarded.device = Some(device.to_owned()),
            Ok(("gone", _)) => guarded.device = None,
            Ok(("unmount", _)) => {
                guarded.unmount();
                println!("unmounted");
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    guarded.detach();
    Exit::Ok
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
