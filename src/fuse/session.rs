//! A mount from the agreement with the kernel to its end.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crossbeam::channel::Receiver;
use fuser::{Config, Notifier, Session, SessionACL};
use log::debug;

use super::adapter::Adapter;
use super::corrected::Corrected;
use super::device::{self, MountError, mountinfo};
use super::report::Report;
use super::seek::{self, Seek};
use crate::fs::Fs;

/// Event loops beyond one for each core: one may wait for the disk while the cores seal. With two a core, loops take
/// turns on the lower file's lock: sequential 1 MiB reads and writes were a tenth slower on two cores
/// (`envelopefs bench mount`).
const SPARE_LOOPS: usize = 1;
/// Bounds of the event loops; each holds about 2 MiB of buffers when it has served large requests.
const LOOPS: std::ops::RangeInclusive<usize> = 3..=16;
/// Readahead of the mount in KiB, where it may be set: four requests of 1 MiB in flight for one reader.
const READ_AHEAD_KIB: u32 = 4096;

/// How to mount.
#[derive(Clone, Debug, Default)]
pub struct MountConfig {
    /// The vault's path; shows as the source of the mount.
    pub source: PathBuf,
    /// Refuse every change.
    pub read_only: bool,
    /// Do not keep access times.
    pub no_atime: bool,
    /// Honour set-id bits.
    pub suid: bool,
    /// Honour device nodes.
    pub dev: bool,
    /// Refuse to run programs.
    pub no_exec: bool,
    /// Let other users in; the kernel checks permissions.
    pub allow_other: bool,
    /// Other hosts may change the vault: the kernel caches nothing.
    pub shared: bool,
}

/// `MAJOR:MINOR` of a mount: names it also when it no longer answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNumber(pub String);

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A mount that is agreed with the kernel; its requests wait until [`Mounted::run`].
pub struct Mounted {
    session: Session<Adapter>,
    fs: Arc<Fs>,
    report: Arc<Report>,
    seeks: Receiver<Seek>,
    notifier: Arc<OnceLock<Notifier>>,
    device: DeviceNumber,
}

impl fmt::Debug for Mounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mounted({})", self.device)
    }
}

/// Mounts `fs` at `mount_point`. On an error nothing stays mounted but what the error's source left.
pub fn mount(fs: Arc<Fs>, mount_point: &Path, config: &MountConfig) -> Result<Mounted, MountError> {
    let device = device::open(mount_point, config)?;
    let report = Arc::new(Report::new());
    let notifier = Arc::new(OnceLock::new());
    let (queue, seeks) = seek::queue();
    let adapter = Adapter {
        fs: Arc::clone(&fs),
        report: Arc::clone(&report),
        seeks: queue,
        notifier: Arc::clone(&notifier),
        shared: config.shared,
        corrected: Corrected::default(),
    };
    let mut options = Config::default();
    options.n_threads = Some(event_loops());
    options.clone_fd = true;
    // Who may use the mount is decided by the mount's own options, in the kernel.
    options.acl = SessionACL::All;
    let session = Session::from_fd(adapter, device, SessionACL::All, options)?;
    let number = number_of(mount_point)?;
    if !config.shared {
        raise_readahead(&number);
    }
    Ok(Mounted { session, fs, report, seeks, notifier, device: number })
}

fn event_loops() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (cores + SPARE_LOOPS).clamp(*LOOPS.start(), *LOOPS.end())
}

/// The device number of the mount on top at `mount_point`.
fn number_of(mount_point: &Path) -> io::Result<DeviceNumber> {
    let mounts = mountinfo()?;
    let ours = mounts.into_iter().rev().find(|m| m.mount_point == mount_point);
    ours.map(|m| DeviceNumber(m.device))
        .ok_or_else(|| io::Error::other("the new mount is not in /proc/self/mountinfo"))
}

/// The protocol cannot ask for more readahead than the kernel's default of 128 KiB; root may set it here.
fn raise_readahead(number: &DeviceNumber) {
    let path = format!("/sys/class/bdi/{number}/read_ahead_kb");
    if let Err(e) = std::fs::write(&path, READ_AHEAD_KIB.to_string()) {
        debug!("{path}: {e}; the mount keeps the kernel's default readahead");
    }
}

impl Mounted {
    /// Names the mount for `/proc/self/mountinfo`.
    pub fn device(&self) -> &DeviceNumber {
        &self.device
    }

    /// Serves until the mount is gone. Starts the event loops: whatever they shall inherit is set up before.
    pub fn run(self) -> io::Result<()> {
        let Self { session, fs, report, seeks, notifier, .. } = self;
        let for_seeks = session.notifier();
        let _ = notifier.set(for_seeks.clone());
        let thread = std::thread::Builder::new()
            .name("efs-seek".to_owned())
            .spawn(move || seek::serve(&seeks, &fs, &report, &for_seeks))?;
        let ended = match session.run() {
            // The kernel ended the connection while an event loop waited for a request: the mount is gone.
            Err(e) if e.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
            other => other,
        };
        // The adapter went with the session, and with it the queue's only way in. After a panic in an event loop
        // others may still hold it: then the thread ends with the process.
        if ended.is_ok() {
            let _ = thread.join();
        }
        ended
    }
}
