//! A small process that outlives a run that is killed, and takes away what it left: daemons, mounts, directories.
//!
//! It hears over a pipe what the run starts and ends. The pipe's end without a farewell means that the run is dead.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process_group};

use super::error::BenchError;
use crate::fuse::mountinfo;

/// What the run says when everything is cleaned up.
const DONE: &str = "done";
/// Tries to unmount: a daemon that was just killed may still hold its mount.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// The run's end of the pipe.
#[derive(Debug)]
pub(super) struct Guard {
    pipe: Option<ChildStdin>,
    child: Child,
}

impl Guard {
    /// Starts the guard of some directories with this program's hidden command.
    pub(super) fn start(program: &Path, work: &[&Path]) -> Result<Self, BenchError> {
        let mut child = Command::new(program)
            .args(["bench", "guard"])
            .args(work)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(BenchError::io(program))?;
        let pipe = child.stdin.take();
        Ok(Self { pipe, child })
    }

    /// `group ID` for one that was started, `gone ID` for one that ended.
    pub(super) fn tell(&mut self, word: &str, id: u32) {
        if let Some(pipe) = &mut self.pipe {
            // A guard that is gone guards nothing; the run itself still cleans up.
            let _ = writeln!(pipe, "{word} {id}");
        }
    }

    /// Ends it.
    pub(super) fn done(mut self) {
        if let Some(pipe) = &mut self.pipe {
            let _ = writeln!(pipe, "{DONE}");
        }
        self.pipe = None;
        let _ = self.child.wait();
    }
}

/// The guard itself: reads what the run says, and cleans up the directories of `work` when it died. Its caller ignores
/// signals.
pub fn serve(said: impl Read, work: &[PathBuf]) {
    let _ = rustix::process::setsid();
    let mut groups = BTreeSet::new();
    for line in BufReader::new(said).lines().map_while(Result::ok) {
        // Group 1 would be everyone: kill(-1).
        let number = |id: &str| id.parse::<i32>().ok().filter(|id| *id > 1);
        match line.split_once(' ') {
            Some(("group", id)) => groups.extend(number(id)),
            Some(("gone", id)) => {
                number(id).map(|id| groups.remove(&id));
            }
            _ if line == DONE => return,
            _ => {}
        }
    }
    for pid in groups.into_iter().filter_map(Pid::from_raw) {
        let _ = kill_process_group(pid, Signal::KILL);
    }
    work.iter().for_each(|dir| clean(dir));
}

/// Unmounts everything below `work`, innermost first, and removes it when nothing is mounted there any more.
pub(super) fn clean(work: &Path) {
    for _ in 0..TRIES {
        let mounts = mounts_below(work);
        if mounts.is_empty() {
            let _ = fs::remove_dir_all(work);
            return;
        }
        for mount in mounts.iter().rev() {
            let _ = rustix::mount::unmount(mount, UnmountFlags::DETACH);
        }
        if !mounts_below(work).is_empty() {
            thread::sleep(PAUSE);
        }
    }
}

/// Mount points below `work`, in mount order.
pub(super) fn mounts_below(work: &Path) -> Vec<PathBuf> {
    let mounts = mountinfo().unwrap_or_default();
    mounts.into_iter().map(|m| m.mount_point).filter(|m| m.starts_with(work)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;

    /// A run that died leaves a group and a directory: both go. One that said farewell keeps what it has.
    #[test]
    fn what_a_dead_run_left_goes() {
        let mut left = Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        fs::create_dir(&work).unwrap();
        fs::write(work.join("file"), "x").unwrap();
        serve(format!("group {}\ndone\n", left.id()).as_bytes(), std::slice::from_ref(&work));
        assert!(work.exists() && left.try_wait().unwrap().is_none());
        serve(
            format!("group 1\ngroup 99999999\ngone 99999999\ngroup {}\n", left.id()).as_bytes(),
            std::slice::from_ref(&work),
        );
        assert!(!work.exists());
        assert!(!left.wait().unwrap().success());
    }
}
