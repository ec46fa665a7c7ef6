//! The daemon's sandbox, entered after mounting and before the first request: landlock leaves it the vault, the key
//! store and the log; seccomp leaves it the system calls it makes. Both reach every thread started afterwards.
//!
//! What the kernel does not have is left out, and the log says so; nothing else may fail quietly.

use std::fmt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, NetPort, PathBeneath, PathFd,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::{harden, seccomp};

/// The newest landlock this program knows what to ask of; older kernels give what they have.
const NEWEST: ABI = ABI::V6;

/// Opened by each event loop.
const FUSE_DEVICE: &str = "/dev/fuse";

/// What is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Active {
    landlock: &'static str,
    seccomp: bool,
}

impl fmt::Display for Active {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "landlock {}, seccomp {}", self.landlock, if self.seccomp { "on" } else { "off" })
    }
}

/// Why the sandbox could not be entered.
#[derive(Debug, thiserror::Error)]
pub(super) enum SandboxError {
    #[error("landlock: {0}")]
    Landlock(#[from] RulesetError),
    #[error("landlock: {0}: {1}")]
    Path(PathBuf, landlock::PathFdError),
    #[error("landlock: {0}: {1}")]
    Rule(PathBuf, RulesetError),
    #[error("landlock: {0}: {1}")]
    Look(PathBuf, std::io::Error),
    #[error("seccomp: {0}")]
    Filter(#[from] seccompiler::BackendError),
    #[error("seccomp: {0}")]
    Install(#[from] seccompiler::Error),
}

/// What serving needs beside files.
pub(super) struct Needs<'a> {
    /// What serving by io_uring needs; the rings were made before.
    pub(super) rings: bool,
    /// TCP ports that may be connected to; without any there is no network at all.
    pub(super) ports: &'a [u16],
}

/// Restricts this thread and those it starts from now on; seccomp also those that run already.
pub(super) fn enter(
    writable: &[&Path],
    readable: &[&Path],
    needs: &Needs<'_>,
) -> Result<Active, SandboxError> {
    for name in others() {
        log::warn!("sandbox: the thread {name} runs already: it keeps its rights to files");
    }
    harden::no_new_privileges();
    let status = landlock(writable, readable, needs.ports)?;
    for filter in seccomp::filters(needs.rings, !needs.ports.is_empty())? {
        seccompiler::apply_filter_all_threads(&filter)?;
    }
    Ok(Active { landlock: in_words(status.ruleset), seccomp: true })
}

/// Threads of this process beside this one.
fn others() -> Vec<String> {
    let this = rustix::thread::gettid().as_raw_nonzero().to_string();
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let others = threads.filter(|thread| *thread.file_name() != *this);
    others
        .map(|thread| {
            std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default().trim().to_owned()
        })
        .collect()
}

fn in_words(status: RulesetStatus) -> &'static str {
    match status {
        RulesetStatus::FullyEnforced => "on",
        RulesetStatus::PartiallyEnforced => "on (what this kernel has of it)",
        RulesetStatus::NotEnforced => "not in this kernel",
    }
}

fn landlock(
    writable: &[&Path],
    readable: &[&Path],
    ports: &[u16],
) -> Result<RestrictionStatus, SandboxError> {
    let all = AccessFs::from_all(NEWEST);
    let files = all & !AccessFs::Execute & !AccessFs::IoctlDev;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    for (paths, access) in [(writable, files), (readable, AccessFs::ReadFile | AccessFs::ReadDir)] {
        for path in paths {
            let fd = PathFd::new(path).map_err(|e| SandboxError::Path(path.to_path_buf(), e))?;
            let rule = PathBeneath::new(fd, fitting(path, access)?);
            rules = rules.add_rule(rule).map_err(|e| SandboxError::Rule(path.to_path_buf(), e))?;
        }
    }
    for port in ports {
        rules = rules.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    // Each event loop opens the device anew and joins the mount by an ioctl.
    let device = Path::new(FUSE_DEVICE);
    let fd = PathFd::new(device).map_err(|e| SandboxError::Path(device.to_owned(), e))?;
    let serve = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    Ok(rules.add_rule(PathBeneath::new(fd, serve))?.restrict_self()?)
}

/// A rule on a file may only speak of file rights.
fn fitting(
    path: &Path,
    access: landlock::BitFlags<AccessFs>,
) -> Result<landlock::BitFlags<AccessFs>, SandboxError> {
    let found = path.metadata().map_err(|e| SandboxError::Look(path.to_owned(), e))?;
    Ok(if found.is_dir() { access } else { access & AccessFs::from_file(NEWEST) })
}
