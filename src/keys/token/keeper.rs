//! The process between a daemon and its helper: it starts the helper, says when it ends, and starts it anew.
//!
//! The daemon cannot: in its sandbox it may start no process. The keeper is started before, holds no secret and loads no
//! module. Daemon and helper share one socket of which the keeper keeps the helper's end, so a new helper goes on where
//! the old one ended: with what the daemon asked and nobody took.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SendFlags;
use rustix::process::{PidfdFlags, pidfd_open};

use super::wire::Answer;

/// First argument of the process; it is no command.
pub const KEEPER: &str = "token-keeper";
/// First argument of the helper.
pub const HELPER: &str = "token-helper";

/// A helper that lived this long was not ended by its start.
const STEADY: Duration = Duration::from_secs(10);
/// Pause after the second helper in a row that ended soon, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How often the helper is looked at where the kernel gives no descriptor for a process (before 5.3).
const LOOK: Duration = Duration::from_millis(50);

/// What the daemon says over the pipe; its end is the end of all.
enum Wish {
    /// The helper does not answer any more.
    Restart,
    End,
}

/// This program's file, for starting it again: by its name, so that `ps` shows it, while that still leads to it.
pub fn program() -> PathBuf {
    let path = std::env::current_exe().ok().filter(|path| path.is_file());
    path.unwrap_or_else(|| "/proc/self/exe".into())
}

/// Runs the process: stdin is the daemon's pipe, stdout the helper's end of the socket.
///
/// # Errors
/// Only of its beginning: what ends later is started again.
pub fn keeper(module: &Path) -> io::Result<()> {
    // Out of the terminal's reach: its Ctrl-C concerns the daemon.
    let _ = rustix::process::setsid();
    let pipe = rustix::stdio::stdin().try_clone_to_owned()?;
    let socket = rustix::stdio::stdout().try_clone_to_owned()?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    let mut soon = 0_u32;
    loop {
        let began = Instant::now();
        let why = match start(module, &socket) {
            Ok(mut child) => {
                let handle = handle(&child);
                match watch(&mut child, handle.as_ref(), &pipe) {
                    Some(why) => why,
                    None => return Ok(()),
                }
            }
            Err(e) => format!("it does not start: {e}"),
        };
        let died = Answer::Died(why).encode(0);
        // Where the socket is full, the daemon has not looked for a long time and waits for nothing.
        let _ = rustix::net::send(&socket, &died, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        soon = if began.elapsed() < STEADY { soon.saturating_add(1) } else { 0 };
        if soon > 1 {
            let pause = FIRST_PAUSE.saturating_mul(1 << (soon - 2).min(16)).min(LONGEST_PAUSE);
            if matches!(hear(&pipe, Some(pause)), Some(Wish::End)) {
                return Ok(());
            }
        }
    }
}

fn start(module: &Path, socket: &OwnedFd) -> io::Result<Child> {
    Command::new(program())
        .arg(HELPER)
        .arg(module)
        .stdin(Stdio::from(socket.try_clone()?))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// A descriptor that tells of a process's end.
fn handle(child: &Child) -> Option<OwnedFd> {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Waits for the helper's end; gives its cause, or `None` where the daemon is gone.
fn watch(child: &mut Child, handle: Option<&OwnedFd>, pipe: &OwnedFd) -> Option<String> {
    let mut why = None;
    let mut gone = false;
    let look = handle.map_or_else(|| Timespec::try_from(LOOK).ok(), |_| None);
    while let Ok(None) = child.try_wait() {
        let mut fds = vec![PollFd::new(pipe, PollFlags::IN)];
        fds.extend(handle.map(|handle| PollFd::new(handle, PollFlags::IN)));
        if poll(&mut fds, look.as_ref()).is_err() {
            continue;
        }
        let said = fds.first().is_some_and(|fd| !fd.revents().is_empty());
        match said.then(|| hear(pipe, Some(Duration::ZERO))).flatten() {
            Some(Wish::End) => gone = true,
            Some(Wish::Restart) => why = Some("it did not answer and was ended".to_owned()),
            None => continue,
        }
        let _ = child.kill();
        break;
    }
    let status = child.wait();
    if gone {
        return None;
    }
    Some(why.unwrap_or_else(|| match status {
        Ok(status) => format!("it ended: {status}"),
        Err(e) => format!("it ended: {e}"),
    }))
}

/// What the daemon says within a time.
fn hear(pipe: &OwnedFd, time: Option<Duration>) -> Option<Wish> {
    let timeout = time.and_then(|time| Timespec::try_from(time).ok());
    let mut fds = [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)];
    match poll(&mut fds, timeout.as_ref()) {
        Ok(0) | Err(_) => None,
        Ok(_) => match rustix::io::read(pipe, &mut [0; 64]) {
            Ok(0) => Some(Wish::End),
            Ok(_) => Some(Wish::Restart),
            Err(_) => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a watched process's end is put down to, and how long that took.
    fn watched(program: &str, args: &[&str], by_handle: bool, say: impl FnOnce(OwnedFd)) -> Option<String> {
        let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut child = Command::new(program).args(args).spawn().unwrap();
        let handle = handle(&child).filter(|_| by_handle);
        let began = Instant::now();
        say(theirs);
        let why = watch(&mut child, handle.as_ref(), &ours);
        assert!(began.elapsed() < Duration::from_secs(60), "it waited for {program}");
        why
    }

    /// The helper's end and the daemon's wishes are heard, also where the kernel gives no descriptor for a process.
    #[test]
    fn ends_and_wishes_are_heard() {
        for by_handle in [true, false] {
            let end = watched("sleep", &["600"], by_handle, drop);
            assert_eq!(end, None);
            let mut open = None;
            let ended = watched("false", &[], by_handle, |pipe| open = Some(pipe));
            assert!(ended.unwrap().contains("exit status: 1"));
            let restarted = watched("sleep", &["600"], by_handle, |pipe| {
                rustix::io::write(&pipe, b"\n").unwrap();
                open = Some(pipe);
            });
            assert!(restarted.unwrap().contains("did not answer"));
        }
    }
}
