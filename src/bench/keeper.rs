//! Keeps what a run starts: programs in process groups of their own, which end when the run is told to end, and a
//! guard that cleans up after a run that was killed.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::error::BenchError;
use super::guard::Guard;

/// Between two looks at the wish to end.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes of a program's output that are kept.
const OUTPUT_LIMIT: u64 = 16 << 20;

/// The wish to end, and the guard.
#[derive(Debug, Default)]
pub struct Keeper {
    stop: Arc<AtomicBool>,
    guard: Mutex<Option<Guard>>,
}

/// A program in a process group of its own; killed with its group when dropped.
#[derive(Debug)]
pub(super) struct Running<'a> {
    child: Child,
    shown: String,
    keeper: &'a Keeper,
}

impl Keeper {
    /// One that ends what it keeps when `stop` is set.
    pub fn new(stop: Arc<AtomicBool>) -> Self {
        Self { stop, guard: Mutex::default() }
    }

    /// From now on `guard` hears what is started.
    pub(super) fn guarded_by(&self, guard: Guard) {
        *self.guard.lock() = Some(guard);
    }

    /// Everything is cleaned up: the guard may go.
    pub(super) fn done(&self) {
        if let Some(guard) = self.guard.lock().take() {
            guard.done();
        }
    }

    /// An error when the run shall end.
    pub(super) fn check(&self) -> Result<(), BenchError> {
        if self.stop.load(Ordering::Relaxed) { Err(BenchError::Interrupted) } else { Ok(()) }
    }

    /// Starts a program.
    pub(super) fn spawn(&self, command: &mut Command) -> Result<Running<'_>, BenchError> {
        let shown = show(command);
        let child = command.process_group(0).spawn().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                BenchError::Missing(command.get_program().to_string_lossy().into_owned())
            }
            _ => BenchError::Failed { command: shown.clone(), said: e.to_string() },
        })?;
        self.tell("group", child.id());
        Ok(Running { child, shown, keeper: self })
    }

    /// Runs a program to its end; gives its standard output.
    pub(super) fn output(&self, command: &mut Command, patience: Duration) -> Result<String, BenchError> {
        self.output_with(command, patience, |_| Ok(()))
    }

    /// As [`Self::output`]; `feed` may write to the program's standard input, where the command asks for a pipe.
    pub(super) fn output_with(
        &self,
        command: &mut Command,
        patience: Duration,
        feed: impl FnOnce(&mut Child) -> io::Result<()>,
    ) -> Result<String, BenchError> {
        self.check()?;
        let mut running = self.spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let fed = feed(&mut running.child);
        let shown = running.shown.clone();
        let (stdout, stderr) = (running.child.stdout.take(), running.child.stderr.take());
        let (ended, stdout, stderr) = std::thread::scope(|scope| {
            let stdout = scope.spawn(move || read(stdout));
            let stderr = scope.spawn(move || read(stderr));
            let ended = running.wait(patience);
            // Its group is gone then, and with it the other ends of the pipes.
            drop(running);
            (ended, stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default())
        });
        let status = ended?;
        if !status.success() || fed.is_err() {
            let said = fed.err().map_or_else(|| stderr.trim().to_owned(), |e| e.to_string());
            return Err(BenchError::Failed { command: shown, said: format!("{status}: {said}") });
        }
        Ok(stdout)
    }

    fn tell(&self, word: &str, id: u32) {
        if let Some(guard) = self.guard.lock().as_mut() {
            guard.tell(word, id);
        }
    }
}

impl Running<'_> {
    /// The process.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child itself, for its pipes.
    pub(super) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end, without a delay of polling; for `patience` at most, and not beyond the wish to end.
    pub(super) fn wait(&mut self, patience: Duration) -> Result<ExitStatus, BenchError> {
        let until = Instant::now() + patience;
        let failed = |e: io::Error| BenchError::Failed { command: self.shown.clone(), said: e.to_string() };
        let pid = Pid::from_child(&self.child);
        let fd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| failed(e.into()))?;
        loop {
            let left = until.saturating_duration_since(Instant::now()).min(LOOK);
            let timeout = Timespec::try_from(left).unwrap_or_default();
            let ready = match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => 0,
                other => other.map_err(|e| failed(e.into()))?,
            };
            if ready > 0 {
                return self.child.wait().map_err(failed);
            }
            self.keeper.check()?;
            if Instant::now() >= until {
                return Err(BenchError::TooLong { command: self.shown.clone(), seconds: patience.as_secs() });
            }
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // Also what it started itself; a group that is empty already has no members to tell.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
        self.keeper.tell("gone", self.child.id());
    }
}

/// At most `OUTPUT_LIMIT` bytes; the rest is read and forgotten, so that the program does not wait for a reader.
fn read(pipe: Option<impl Read>) -> String {
    let Some(mut pipe) = pipe else { return String::new() };
    let mut bytes = Vec::new();
    let _ = pipe.by_ref().take(OUTPUT_LIMIT).read_to_end(&mut bytes);
    let _ = io::copy(&mut pipe, &mut io::sink());
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Program and arguments, as one would type them.
fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null());
        command
    }

    /// Output comes whole, a failure brings what the program said.
    #[test]
    fn output_and_failures_come_back() {
        let keeper = Keeper::default();
        let long = Duration::from_secs(20);
        assert_eq!(keeper.output(&mut sh("echo one"), long).unwrap(), "one\n");
        let big = keeper.output(&mut sh("head -c 300000 /dev/zero | tr '\\0' x"), long).unwrap();
        assert_eq!(big.len(), 300_000);
        let error = keeper.output(&mut sh("echo why >&2; exit 3"), long).unwrap_err().to_string();
        assert!(error.contains("why") && error.contains('3'), "{error}");
        let missing = keeper.output(&mut Command::new("/no/such/program"), long).unwrap_err();
        assert!(matches!(missing, BenchError::Missing(_)), "{missing}");
    }

    /// A program that takes too long, and one whose run is told to end, go at once, children included.
    #[test]
    fn programs_end_with_the_run() {
        let keeper = Keeper::default();
        let begin = Instant::now();
        let slow = keeper.output(&mut sh("sleep 60 & sleep 60"), Duration::from_millis(50)).unwrap_err();
        assert!(matches!(slow, BenchError::TooLong { .. }), "{slow}");
        let stop = Arc::new(AtomicBool::new(false));
        let keeper = Keeper::new(Arc::clone(&stop));
        let stopped = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(100));
                stop.store(true, Ordering::Relaxed);
            });
            keeper.output(&mut sh("sleep 60"), Duration::from_secs(60)).unwrap_err()
        });
        assert!(stopped.ends_the_run(), "{stopped}");
        assert!(begin.elapsed() < Duration::from_secs(20));
    }
}
