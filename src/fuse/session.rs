//! A mount from the agreement with the kernel to its end.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crossbeam::channel::{Sender, bounded};
use log::debug;

use super::adapter::Adapter;
use super::channel::Channel;
use super::device::{self, MountError, mountinfo};
use super::device_loop;
use super::handler::Handler;
use super::locking::Locking;
use super::negotiate::{self, Agreed, Wanted};
use super::notify::Notifier;
use super::rings::{NoRings, Ring};
use super::transport::Transport;
use crate::fs::Fs;
use crate::fs::waits::LongWaits;

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
    /// How requests come.
    pub transport: Transport,
    /// Event loops beside the usual ones, for requests that wait long: opens that ask a KMS behind a network. While
    /// fewer wait, everything else goes on.
    pub waiting_loops: usize,
}

/// `MAJOR:MINOR` of a mount: names it also when it no longer answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNumber(pub String);

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A mount that is agreed with the kernel; its requests wait until [`Session::run`].
pub struct Session<H> {
    channel: Arc<Channel>,
    handler: Arc<H>,
    agreed: Agreed,
    rings: Vec<Ring>,
    device: DeviceNumber,
    waiting_loops: usize,
}

impl<H> fmt::Debug for Session<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({})", self.device)
    }
}

/// A mounted vault.
#[derive(Debug)]
pub struct Mounted(Session<Adapter>);

/// Mounts `fs` at `mount_point`. On an error nothing stays mounted but what the error's source left.
pub fn mount(fs: Arc<Fs>, mount_point: &Path, config: &MountConfig) -> Result<Mounted, MountError> {
    Session::mount(Adapter::new(fs, config.shared), mount_point, config).map(Mounted)
}

impl Mounted {
    /// Names the mount for `/proc/self/mountinfo`.
    pub fn device(&self) -> &DeviceNumber {
        &self.0.device
    }

    /// How requests come: never [`Transport::Auto`].
    pub fn transport(&self) -> Transport {
        self.0.transport()
    }

    /// Serves until the mount is gone. Starts the event loops: whatever they shall inherit is set up before.
    pub fn run(self) -> io::Result<()> {
        self.0.run()
    }
}

fn event_loops(waiting: usize) -> usize {
    const { assert!(*LOOPS.start() > LongWaits::MOST, "a loop is left while others wait") };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (cores + SPARE_LOOPS).clamp(*LOOPS.start(), *LOOPS.end()) + waiting
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

impl<H: Handler> Session<H> {
    /// Mounts what `handler` answers for at `mount_point` (canonical), as `fuse.envelopefs`.
    pub fn mount(handler: H, mount_point: &Path, config: &MountConfig) -> Result<Self, MountError> {
        let locks = handler.keeps_locks();
        let mut rings = config.transport.rings(negotiate::MAX_WRITE as usize, locks)?;
        let channel = Channel::new(device::open(mount_point, config)?);
        let agreed =
            negotiate::agree(&channel, Wanted { shared: config.shared, locks, rings: !rings.is_empty() })?;
        if !agreed.rings() {
            if config.transport == Transport::Rings {
                return Err(NoRings::NotInKernel.into());
            }
            rings.clear();
        }
        let device = number_of(mount_point)?;
        if !config.shared {
            raise_readahead(&device);
        }
        let (channel, handler) = (Arc::new(channel), Arc::new(handler));
        Ok(Self { channel, handler, agreed, rings, device, waiting_loops: config.waiting_loops })
    }

    /// Names the mount for `/proc/self/mountinfo`.
    pub fn device(&self) -> &DeviceNumber {
        &self.device
    }

    /// How requests come: never [`Transport::Auto`].
    pub fn transport(&self) -> Transport {
        if self.rings.is_empty() { Transport::Device } else { Transport::Rings }
    }

    /// Serves until the mount is gone; then no request is in the handler any more. On an error some may be.
    pub fn run(mut self) -> io::Result<()> {
        let notifier = Notifier::new(Arc::clone(&self.channel));
        self.handler.start(&notifier);
        let locking =
            self.agreed.locks().then(|| Arc::new(Locking::new(Arc::clone(&self.handler), notifier)));
        if let Some(locking) = locking.clone() {
            std::thread::Builder::new().name("efs-locks".into()).spawn(move || locking.run())?;
        }
        let served = self.serve(locking.as_ref());
        if let Some(locking) = locking {
            locking.end();
        }
        served
    }

    fn serve(&mut self, locking: Option<&Arc<Locking<H>>>) -> io::Result<()> {
        let rings = std::mem::take(&mut self.rings);
        // Beside rings the device brings what has no answer.
        let loops = if rings.is_empty() { event_loops(self.waiting_loops) } else { 1 };
        let (sender, ended) = bounded(loops + rings.len());
        for n in 0..loops {
            let (channel, handler, agreed) = (self.channel_for(n), Arc::clone(&self.handler), self.agreed);
            let locking = locking.cloned();
            let serve = move || device_loop::serve(&channel, &*handler, &agreed, locking.as_deref());
            start(format!("efs-loop-{n}"), serve, sender.clone())?;
        }
        for (n, ring) in rings.into_iter().enumerate() {
            let (channel, handler, agreed) =
                (Arc::clone(&self.channel), Arc::clone(&self.handler), self.agreed);
            let serve = move || ring.serve(&channel, &*handler, &agreed);
            start(format!("efs-ring-{n}"), serve, sender.clone())?;
        }
        drop(sender);
        ended.iter().try_for_each(|served| served)
    }

    /// Each loop's own descriptor, where one can be had.
    fn channel_for(&self, n: usize) -> Arc<Channel> {
        if n == 0 {
            return Arc::clone(&self.channel);
        }
        match self.channel.another() {
            Ok(channel) => Arc::new(channel),
            Err(e) => {
                debug!("no descriptor of its own for an event loop: {e}");
                Arc::clone(&self.channel)
            }
        }
    }
}

/// Starts a thread that tells how it ended, also by a panic.
fn start(
    name: String,
    serve: impl FnOnce() -> io::Result<()> + Send + 'static,
    ended: Sender<io::Result<()>>,
) -> io::Result<()> {
    std::thread::Builder::new().name(name).spawn(move || {
        let served = catch_unwind(AssertUnwindSafe(serve));
        let _ = ended.send(served.unwrap_or_else(|_| Err(io::Error::other("an event loop panicked"))));
    })?;
    Ok(())
}
