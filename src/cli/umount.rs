//! `umount`: ends a mount and waits until its daemon has left the vault.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::args::UmountArgs;
use super::error::CliError;
use super::exit::Exit;
use super::mount_point;
use crate::format::names::VAULT_DIR;
use crate::fuse::{MountError, mountinfo};
use crate::vault::lock::LOCK_FILE;

/// After this long a waiting person is told what for.
const PATIENCE: Duration = Duration::from_secs(2);
/// This long a mount may be in use before `umount` gives up.
const BRIEFLY: Duration = Duration::from_secs(1);
/// Between two looks at the lock, or two tries.
const STEP: Duration = Duration::from_millis(10);

pub(super) fn run(args: &UmountArgs) -> Result<Exit, CliError> {
    let path = mount_point::resolve(&args.mount_point).map_err(CliError::io(&args.mount_point))?;
    let mounts = mountinfo().map_err(CliError::io(Path::new("/proc/self/mountinfo")))?;
    let ours = |m: &crate::fuse::MountLine| m.mount_point == path && m.fstype == "fuse.envelopefs";
    let Some(mount) = mounts.into_iter().rev().find(ours) else {
        return Err(CliError::NotMounted(args.mount_point.clone()));
    };
    unmount_patiently(&path, args.lazy)?;
    if args.lazy {
        return Ok(Exit::Ok);
    }
    await_quiet(&mount.source, Duration::from_secs(args.timeout))
}

/// As [`unmount`], trying again for a moment while it is in use: a file that was just closed, a process that is just
/// starting and still holds its parent's files.
fn unmount_patiently(path: &Path, lazy: bool) -> Result<(), CliError> {
    let begin = Instant::now();
    loop {
        match unmount(path, lazy) {
            Err(CliError::Busy(_)) if begin.elapsed() < BRIEFLY => std::thread::sleep(STEP),
            done => return done,
        }
    }
}

/// Unmounts: as root by the system call, else through fusermount3.
pub(super) fn unmount(path: &Path, lazy: bool) -> Result<(), CliError> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(path, flags) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(CliError::Busy(path.to_owned())),
        Err(Errno::PERM) => by_helper(path, lazy),
        Err(e) => Err(CliError::Io(path.to_owned(), e.into())),
    }
}

fn by_helper(path: &Path, lazy: bool) -> Result<(), CliError> {
    let mut command = Command::new("fusermount3");
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command
        .arg("--")
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| CliError::Mount(path.to_owned(), MountError::NoHelper(e)))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if said.contains("busy") {
        return Err(CliError::Busy(path.to_owned()));
    }
    Err(CliError::Unmount(path.to_owned(), said))
}

/// Waits until no daemon holds the vault's lock any more.
fn await_quiet(vault: &Path, limit: Duration) -> Result<Exit, CliError> {
    let path = vault.join(VAULT_DIR).join(LOCK_FILE);
    let lock = match File::open(&path) {
        Ok(lock) => lock,
        // Another user's vault, or a read-only one without a lock: nothing to wait for.
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
            return Ok(Exit::Ok);
        }
        Err(e) => return Err(CliError::Io(path, e)),
    };
    let begin = Instant::now();
    let mut told = false;
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(Exit::Ok),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(e) => return Err(CliError::Io(path, io::Error::from(e))),
        }
        if begin.elapsed() > limit {
            return Err(CliError::StillWriting(vault.to_owned()));
        }
        if !told && begin.elapsed() > PATIENCE {
            eprintln!("envelopefs: waiting for the daemon to finish writing ...");
            told = true;
        }
        std::thread::sleep(STEP);
    }
}
