//! The life of a mount: unlock, mount, go into the sandbox, serve, and leave the vault whole.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, after, bounded, never, select};
use log::{error, info, warn};

use super::error::CliError;
use super::exit::Exit;
use super::guardian::Guardian;
use super::mount_options::MountOptions;
use super::sandbox::{self, Needs};
use super::{control, embedded_hsm, harden, logging, mount, network, signals};
use crate::backup;
use crate::crypto::kernel;
use crate::fs::{self, Fs, FsError};
use crate::fuse::{self, MountConfig, Session, Transport};
use crate::keys::{self, Unlock};
use crate::view::CiphertextView;

/// After a signal to end, this long for programs to let go of their open files.
const GRACE: Duration = Duration::from_secs(10);

/// Opens that may wait for a KMS behind a network at once before others have to wait too.
const WAITING_LOOPS: usize = 32;

/// What the background process has for a terminal.
const NULL: &str = "/dev/null";

/// What to mount where, and how.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Canonical path.
    pub(super) vault: PathBuf,
    /// Canonical path.
    pub(super) mount_point: PathBuf,
    pub(super) options: MountOptions,
}

/// Who waits for this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Life {
    /// A terminal or a service manager.
    Foreground,
    /// `mount`, until the mount is ready; then nobody.
    Background,
}

/// Runs until the mount is gone.
pub(super) fn run(plan: &Plan, unlock: &Unlock, life: Life) -> Result<Exit, CliError> {
    harden::raise_descriptor_limit();
    let blocked = signals::block().map_err(CliError::io(Path::new("signals")))?;
    start_log(plan, life)?;
    info!("cipher kernel: {}", kernel::chosen());
    let nowhere =
        OpenOptions::new().read(true).write(true).open(NULL).map_err(CliError::io(Path::new(NULL)))?;
    if life == Life::Background {
        let _ = rustix::process::setsid();
        // A working directory would keep its filesystem busy.
        rustix::process::chdir("/").map_err(|e| CliError::Io("/".into(), e.into()))?;
    }
    let mut guardian =
        Guardian::start(&plan.mount_point).map_err(CliError::io(Path::new("/proc/self/exe")))?;
    if plan.options.ciphertext {
        return show_ciphertext(plan, guardian, blocked, life, &nowhere);
    }
    // Before the sandbox, in which no process is started.
    let unlock = Unlock { hsm: plan.options.key.host_unheard()?, ..unlock.clone() };
    let fs = Arc::new(open(plan, &unlock)?);
    let mounted = fuse::mount(Arc::clone(&fs), &plan.mount_point, &mount_config(plan, fs.keyring().is_far()))
        .map_err(|e| CliError::Mount(plan.mount_point.clone(), e))?;
    let told = guardian.mounted(mounted.device());
    told.map_err(CliError::io(Path::new("the guardian")))?;
    // Mounts of several hosts keep nothing in a journal, and would take each other's socket away.
    let control = if plan.options.shared { None } else { control::bind(&plan.vault) };
    enter_sandbox(plan, Some(fs.keyring()), mounted.transport())?;
    embedded_hsm::listen().map_err(CliError::io(Path::new("the embedded HSM")))?;
    control::serve(control, &fs);
    let wishes = signals::listen(blocked).map_err(CliError::io(Path::new("signals")))?;
    report_ready(life, &nowhere).map_err(CliError::io(Path::new("stdout")))?;
    info!("mounted: filesystem {}, transport {}", mounted.device(), mounted.transport());
    let served = serve(move || mounted.run(), &mut guardian, &wishes);
    if let Err(e) = &served {
        error!("serving ended early: {e}");
    }
    if !plan.options.shared {
        control::unbind(&plan.vault);
    }
    refresh_headers(plan);
    fs.close();
    // Before the vault is let go of: who mounts it next finds the HSM free.
    embedded_hsm::end();
    info!("unmounted");
    drop(guardian);
    served.map(|()| Exit::Ok).map_err(CliError::io(&plan.mount_point))
}

/// The vault as it is, with its headers inside the files: no key is needed.
fn show_ciphertext(
    plan: &Plan,
    mut guardian: Guardian,
    blocked: signals::Blocked,
    life: Life,
    nowhere: &File,
) -> Result<Exit, CliError> {
    let access = backup::access(&plan.vault)?;
    let view = CiphertextView::new(&plan.vault, access.daemon.clone())?;
    let config = MountConfig { read_only: true, ..mount_config(plan, false) };
    let session = Session::mount(view, &plan.mount_point, &config)
        .map_err(|e| CliError::Mount(plan.mount_point.clone(), e))?;
    guardian.mounted(session.device()).map_err(CliError::io(Path::new("the guardian")))?;
    enter_sandbox(plan, None, session.transport())?;
    let wishes = signals::listen(blocked).map_err(CliError::io(Path::new("signals")))?;
    report_ready(life, nowhere).map_err(CliError::io(Path::new("stdout")))?;
    info!("mounted: ciphertext, filesystem {}", session.device());
    let served = serve(move || session.run(), &mut guardian, &wishes);
    info!("unmounted");
    drop((access, guardian));
    served.map(|()| Exit::Ok).map_err(CliError::io(&plan.mount_point))
}

/// Whoever exported the headers once wants the file to be true: it is written anew at each end of a mount.
fn refresh_headers(plan: &Plan) {
    if plan.options.read_only || !backup::headers::is_exported(&plan.vault) {
        return;
    }
    match backup::headers::export(&plan.vault) {
        Ok(done) if done.faults.is_empty() => info!("headers exported: {} entries", done.entries),
        Ok(done) => warn!("headers exported: {} entries, {} without theirs", done.entries, done.faults.len()),
        Err(e) => warn!("headers are not exported: {e}"),
    }
}

fn start_log(plan: &Plan, life: Life) -> Result<(), CliError> {
    match (&plan.options.log_file, life) {
        (Some(path), _) => logging::to_file(path)?,
        (None, Life::Foreground) => logging::to_stderr(),
        (None, Life::Background) => {
            let _ = logging::to_syslog();
        }
    }
    Ok(())
}

fn open(plan: &Plan, unlock: &Unlock) -> Result<Fs, CliError> {
    let mut tuning = keys::Tuning::default();
    if let Some(seconds) = plan.options.key_cache {
        tuning.cache_age = Duration::from_secs(seconds);
    }
    let keyring = keys::open_vault_tuned(&plan.vault, unlock, &tuning)?;
    let options = fs::Options {
        read_only: plan.options.read_only,
        shared: plan.options.shared,
        no_atime: plan.options.no_atime,
        no_journal: plan.options.no_journal,
        direct_lower: plan.options.direct_lower,
    };
    if options.no_journal {
        warn!("no journal: a power cut may tear what is being overwritten, also where fsync covered it");
    }
    Fs::open(&plan.vault, keyring, options).map_err(|e| match e {
        FsError::Busy => CliError::InUse(plan.vault.clone()),
        other => CliError::Top(plan.vault.clone(), other),
    })
}

fn mount_config(plan: &Plan, far: bool) -> MountConfig {
    let options = &plan.options;
    MountConfig {
        source: plan.vault.clone(),
        read_only: options.read_only,
        no_atime: options.no_atime,
        suid: options.suid,
        dev: options.dev,
        no_exec: options.no_exec,
        allow_other: options.allow_other,
        shared: options.shared,
        // Requests that come by rings are bound to a core's queue, where one that waits for a KMS holds up the rest.
        transport: if far && options.transport == Transport::Auto {
            Transport::Device
        } else {
            options.transport
        },
        waiting_loops: if far { WAITING_LOOPS } else { 0 },
    }
}

fn enter_sandbox(plan: &Plan, keyring: Option<&keys::Keyring>, transport: Transport) -> Result<(), CliError> {
    if plan.options.no_sandbox {
        warn!("running without a sandbox (--no-sandbox)");
        return Ok(());
    }
    let store = plan.options.key.store_dir().ok().filter(|dir| dir.is_dir());
    let mut writable = vec![plan.vault.as_path()];
    writable.extend(store.as_deref());
    writable.extend(plan.options.log_file.as_deref());
    // A umask of its own needs no file; what /proc/self/fd leads to is allowed by its own path.
    let mut readable = vec![PathBuf::from("/proc/self")];
    let mut ports = keyring.map_or_else(Vec::new, keys::Keyring::ports);
    if !ports.is_empty() {
        network::add(&mut readable, &mut ports);
    }
    if let Some(keyring) = keyring {
        // Its threads were started with all the rights of this process.
        keyring.settle();
    }
    let readable: Vec<&Path> = readable.iter().map(PathBuf::as_path).collect();
    let needs = Needs { rings: transport == Transport::Rings, ports: &ports };
    let active = sandbox::enter(&writable, &readable, &needs)
        .map_err(|e| CliError::Usage(format!("sandbox: {e} (run without it: --no-sandbox)")))?;
    info!("sandbox: {active}");
    Ok(())
}

/// Lets the waiting `mount` return, and lets go of its terminal.
fn report_ready(life: Life, nowhere: &File) -> std::io::Result<()> {
    if life == Life::Foreground {
        return Ok(());
    }
    let mut parent = File::from(rustix::stdio::stdout().try_clone_to_owned()?);
    rustix::stdio::dup2_stdin(nowhere)?;
    rustix::stdio::dup2_stdout(nowhere)?;
    rustix::stdio::dup2_stderr(nowhere)?;
    parent.write_all(mount::READY)
}

/// Serves until the mount is gone, or until someone asks for the end and `GRACE` is over.
///
/// `GRACE` begins when the guardian has unmounted: before that the kernel may still write pages back, and however
/// long that takes, ending would lose them.
fn serve(
    run: impl FnOnce() -> std::io::Result<()> + Send + 'static,
    guardian: &mut Guardian,
    wishes: &Receiver<i32>,
) -> std::io::Result<()> {
    let mut unmounted = guardian.unmounted()?;
    let (sender, ended) = bounded(1);
    std::thread::Builder::new().name("efs-serve".to_owned()).spawn(move || {
        let _ = sender.send(run());
    })?;
    let mut deadline = never();
    loop {
        select! {
            recv(ended) -> result => {
                let result = result.unwrap_or_else(|_| Err(std::io::Error::other("the event loops are gone")));
                if result.is_ok() {
                    let _ = guardian.gone();
                }
                return result;
            }
            recv(wishes) -> signal => {
                info!("signal {}: unmounting", signal.unwrap_or(0));
                if let Err(e) = guardian.unmount() {
                    error!("the guardian is gone ({e}); unmount by hand");
                }
            }
            recv(unmounted) -> answer => match answer {
                Ok(()) => deadline = after(GRACE),
                // Without a guardian the mount still ends by umount(8).
                Err(_) => unmounted = never(),
            },
            recv(deadline) -> _ => {
                warn!("files are still open {} s after unmounting; closing them", GRACE.as_secs());
                return Ok(());
            }
        }
    }
}
