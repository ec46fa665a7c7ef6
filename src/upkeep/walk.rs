//! The regular files of a vault, handed to several workers. Nothing is followed out of the vault.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crossbeam::channel::bounded;
use parking_lot::Mutex;
use rustix::fs::{Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{MOST_JOBS, Pace, UpkeepError, Watch};
use crate::format::names::{LOST_FOUND, LowerName, VAULT_DIR, parse};
use crate::vault::stat::{self, S_IFDIR, S_IFREG};
use crate::vault::{LowerStat, entry};

/// Files that wait for a worker.
const QUEUE: usize = 256;

/// One regular file: open without rights to its content, with the directory it was found in.
pub(super) struct Found {
    pub(super) fd: OwnedFd,
    pub(super) stat: LowerStat,
    /// Below the vault.
    pub(super) path: PathBuf,
}

/// Opens a path below the vault's top that leads through no link.
pub(super) fn open_below(top: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    loop {
        match rustix::fs::openat2(&top, path, flags | OFlags::CLOEXEC, Mode::empty(), inside) {
            // The kernel saw a rename on the way.
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// Calls `work` for each regular file, several at once; gives whether all were seen.
pub(super) fn each_file(
    top: &OwnedFd,
    pace: Pace,
    watch: &dyn Watch,
    work: &(impl Fn(Found) + Sync),
) -> Result<bool, UpkeepError> {
    let stop = AtomicBool::new(false);
    let throttle = Throttle::new(pace);
    let (sender, receiver) = bounded::<Found>(QUEUE);
    std::thread::scope(|scope| {
        for _ in 0..pace.jobs.clamp(1, MOST_JOBS) {
            let receiver = receiver.clone();
            let (stop, throttle) = (&stop, &throttle);
            scope.spawn(move || {
                for found in receiver {
                    if stop.load(Relaxed) {
                        continue;
                    }
                    throttle.wait();
                    work(found);
                    if !watch.file_done() {
                        stop.store(true, Relaxed);
                    }
                }
            });
        }
        drop(receiver);
        let listed = list(top, &stop, &|found| sender.send(found).is_ok());
        // The workers end when nobody can send any more.
        drop(sender);
        listed
    })?;
    Ok(!stop.load(Relaxed))
}

/// Lists every directory of a vault.
fn list(top: &OwnedFd, stop: &AtomicBool, give: &dyn Fn(Found) -> bool) -> Result<(), UpkeepError> {
    let kept = Path::new(VAULT_DIR).join(LOST_FOUND);
    let mut open = vec![PathBuf::new(), kept.clone()];
    while let Some(path) = open.pop() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let dir = match open_below(top, &path, flags) {
            // Removed or renamed meanwhile: the vault may be mounted.
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            other => other.map_err(UpkeepError::io(&path))?,
        };
        for item in Dir::read_from(&dir).map_err(UpkeepError::io(&path))? {
            if stop.load(Relaxed) {
                return Ok(());
            }
            let item = item.map_err(UpkeepError::io(&path))?;
            let bytes = item.file_name().to_bytes();
            let ours = matches!(parse(bytes), LowerName::Short(_) | LowerName::Long(_));
            if !ours && path != kept || matches!(bytes, b"." | b"..") {
                continue;
            }
            let Ok(name) = item.file_name().to_str() else { continue };
            let fd = match entry::open_path(&dir, name) {
                Err(Errno::NOENT) => continue,
                other => other.map_err(UpkeepError::io(path.join(name)))?,
            };
            let stat = stat::stat_fd(&fd).map_err(UpkeepError::io(path.join(name)))?;
            let path = path.join(std::ffi::OsStr::from_bytes(bytes));
            match stat.kind() {
                S_IFDIR => open.push(path),
                S_IFREG if !give(Found { fd, stat, path }) => return Ok(()),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Spaces files out in time.
struct Throttle {
    pause: Option<Duration>,
    next: Mutex<Instant>,
}

impl Throttle {
    fn new(pace: Pace) -> Self {
        Self { pause: pace.rate.map(|n| Duration::from_secs(1) / n.get()), next: Mutex::new(Instant::now()) }
    }

    fn wait(&self) {
        let Some(pause) = self.pause else { return };
        let turn = {
            let mut next = self.next.lock();
            let turn = (*next).max(Instant::now());
            *next = turn + pause;
            turn
        };
        std::thread::sleep(turn.saturating_duration_since(Instant::now()));
    }
}
