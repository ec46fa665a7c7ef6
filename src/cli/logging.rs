//! Where log lines go: stderr in the foreground, else a file or syslog. `ENVELOPEFS_LOG` sets the level.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use env_logger::{Builder, Target};
use log::{Level, Log, Metadata, Record};
use parking_lot::Mutex;

use super::error::CliError;

/// The level unless `ENVELOPEFS_LOG` says otherwise. At it no plaintext name is logged.
const DEFAULT: &str = "info";
const ENV: &str = "ENVELOPEFS_LOG";
/// The local log daemon.
pub(super) const SYSLOG: &str = "/dev/log";
/// Facility "daemon" of RFC 5424.
const DAEMON: u8 = 3;

/// To stderr.
pub(super) fn to_stderr() {
    let _ = builder().format_target(false).try_init();
}

/// To the end of a file, made with mode 0600.
pub(super) fn to_file(path: &Path) -> Result<(), CliError> {
    let file = open_log(path).map_err(CliError::io(path))?;
    let _ = builder().format_target(false).target(Target::Pipe(Box::new(file))).try_init();
    Ok(())
}

fn open_log(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn builder() -> Builder {
    Builder::from_env(env_logger::Env::default().filter_or(ENV, DEFAULT))
}

/// To syslog; false when this machine has none.
pub(super) fn to_syslog() -> bool {
    let Ok(socket) = UnixDatagram::unbound() else { return false };
    if socket.connect(SYSLOG).is_err() {
        return false;
    }
    let filter = builder().build();
    let level = filter.filter();
    let logger = Syslog { filter, socket: Mutex::new(socket), pid: std::process::id() };
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(level);
    }
    true
}

/// Writes RFC 3164 datagrams, as syslog(3) does.
struct Syslog {
    /// Decides what is logged; its own output is not used.
    filter: env_logger::Logger,
    socket: Mutex<UnixDatagram>,
    pid: u32,
}

impl Log for Syslog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.filter.matches(record) {
            return;
        }
        let severity = match record.level() {
            Level::Error => 3,
            Level::Warn => 4,
            Level::Info => 6,
            Level::Debug | Level::Trace => 7,
        };
        let mut line = Vec::with_capacity(256);
        let _ = write!(line, "<{}>envelopefs[{}]: {}", DAEMON * 8 + severity, self.pid, record.args());
        let socket = self.socket.lock();
        if socket.send(&line).is_err() && socket.connect(SYSLOG).is_ok() {
            // The log daemon was restarted; a second failure loses the line, as syslog(3) does.
            let _ = socket.send(&line);
        }
    }

    fn flush(&self) {}
}
