//! `mount`: looks at vault and mount point, gets the passphrase, starts the daemon, and returns when it serves.

use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::args::MountArgs;
use super::daemon::{self, Plan};
use super::error::CliError;
use super::exit::Exit;
use super::mount_options::MountOptions;
use super::secrets;
use super::{logging, mount_point};
use crate::crypto::kernel;
use crate::keys::{self, RecoveryKey, Unlock, token};

/// Between the passphrase, the recovery key and the PIN; the latter two do not have it.
const SEPARATOR: &[u8] = b"\0";
/// What the daemon writes to its stdout when the mount serves.
pub(super) const READY: &[u8] = b"ready\n";

pub(super) fn run(args: &MountArgs, argv: &[OsString]) -> Result<Exit, CliError> {
    let options = MountOptions::new(args)?.absolute().map_err(CliError::io(Path::new(".")))?;
    let vault = canonical_vault(&args.vault)?;
    let mount_point = mount_point::check(&args.mount_point, &vault, options.nonempty)?;
    // Before anything is asked; the first key follows below, here or in the daemon.
    kernel::choose(options.kernel).map_err(|e| CliError::Usage(e.to_string()))?;
    let plan = Plan { vault, mount_point, options };
    if !args.daemon_child {
        super::headers::warn_of_lost(&plan.vault);
    }
    if args.daemon_child {
        let unlock = unlock_from_parent(plan.options.key.kms_dir.clone())?;
        return daemon::run(&plan, &unlock, daemon::Life::Background);
    }
    let unlock = if plan.options.ciphertext {
        Unlock::default()
    } else {
        plan.options.key.asked(&plan.vault, None)?
    };
    if plan.options.foreground {
        return daemon::run(&plan, &unlock, daemon::Life::Foreground);
    }
    let child = start(argv, &unlock).map_err(CliError::io(Path::new("/proc/self/exe")))?;
    let done = await_ready(child)?;
    // The first request shows that the event loops run.
    rustix::fs::statfs(&plan.mount_point).map_err(|e| CliError::Io(plan.mount_point.clone(), e.into()))?;
    if plan.options.log_file.is_none() && !Path::new(logging::SYSLOG).exists() {
        eprintln!(
            "envelopefs: this machine has no {}: pass --log-file FILE to keep the mount's log",
            logging::SYSLOG
        );
    }
    Ok(done)
}

/// Says that a directory is no vault before anything is asked or started.
fn canonical_vault(dir: &Path) -> Result<PathBuf, CliError> {
    keys::read_config(dir)?;
    dir.canonicalize().map_err(CliError::io(dir))
}

/// This program again, as the daemon: the same command line, the secrets through a pipe.
fn start(argv: &[OsString], unlock: &Unlock) -> std::io::Result<Child> {
    let mut child = Command::new(token::program())
        .arg("mount")
        .arg("--daemon-child")
        .args(argv.iter().skip(2))
        .env_remove(secrets::ENV)
        .env_remove(token::PIN_ENV)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut pipe = child.stdin.take().expect("stdin was asked to be a pipe");
    let passphrase = unlock.passphrase.as_ref().map_or(&b""[..], |p| p.as_bytes());
    let recovery = unlock.recovery.as_ref().map(|key| key.text());
    let recovery = recovery.as_ref().map_or(&b""[..], |text| text.as_bytes());
    let pin = unlock.pin.as_ref().map_or(&b""[..], |pin| pin.as_bytes());
    for part in [passphrase, SEPARATOR, recovery, SEPARATOR, pin] {
        match pipe.write_all(part) {
            // It ended before it asked; its status tells why.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => {}
            other => other?,
        }
    }
    Ok(child)
}

/// What the parent wrote to stdin, up to its end.
fn unlock_from_parent(kms_dir: Option<PathBuf>) -> Result<Unlock, CliError> {
    let mut text = Zeroizing::new(String::with_capacity(4096));
    let mut stdin = std::io::stdin().lock().take(64 << 10);
    stdin.read_to_string(&mut text).map_err(CliError::io(Path::new("stdin")))?;
    let mut parts = text.rsplitn(3, '\0');
    let pin = parts.next().filter(|pin| !pin.is_empty()).map(|pin| Zeroizing::new(pin.to_owned()));
    let recovery = parts.next().unwrap_or_default();
    let passphrase = parts.next().unwrap_or_default();
    let recovery = match recovery {
        "" => None,
        text => Some(RecoveryKey::parse(text).map_err(|e| CliError::Secret(e.to_string()))?),
    };
    let passphrase = Some(Zeroizing::new(passphrase.to_owned())).filter(|p| !p.is_empty());
    Ok(Unlock { kms_dir, passphrase, recovery: recovery.map(Arc::new), pin, hsm: None })
}

fn await_ready(mut child: Child) -> Result<Exit, CliError> {
    let mut said = Vec::new();
    let mut stdout = child.stdout.take().expect("stdout was asked to be a pipe");
    stdout.read_to_end(&mut said).map_err(CliError::io(Path::new("the daemon")))?;
    if said == READY {
        return Ok(Exit::Ok);
    }
    let status = child.wait().map_err(CliError::io(Path::new("the daemon")))?;
    if let Some(signal) = status.signal() {
        return Err(CliError::Unmount(PathBuf::from("the daemon"), format!("ended by signal {signal}")));
    }
    let code = status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(Exit::Failure.code());
    Err(CliError::Daemon(code))
}
