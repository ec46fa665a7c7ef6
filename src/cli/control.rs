//! The daemon's side of `.envelopefs/control`: what a backup of the mounted vault asks, and who changes its wrapping keys
//! (`backup::daemon` has the protocol). Knows how to make lower files whole; gives no byte of plaintext and takes no order
//! that changes one.

use std::fs::Permissions;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{debug, warn};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::backup::SOCKET;
use crate::format::ids::FileId;
use crate::format::names::VAULT_DIR;
use crate::fs::{Fs, Leased};
use crate::vault::proc_path;

/// Connections at once. For one more, the one that has asked nothing for longest is ended, or that one itself.
const MOST: usize = 8;
/// A connection that has asked nothing for this long gives way to another one. Its leases are over.
const IDLE: Duration = Duration::from_secs(60);
/// Until the next try when no connection can be had: no descriptor is free, perhaps.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest question.
const QUESTION: u64 = 256;
/// Leases of one connection at once.
const LEASES: usize = 4;
/// Inodes that are named as busy at most.
const BUSY: usize = 4096;
const NO_NUMBER: &str = "error an inode is named by its number";

/// Makes the socket. The vault's lock is held, so one that is there is a dead daemon's. Without one the vault is
/// mounted all the same: only a backup meanwhile is refused.
pub(super) fn bind(vault: &Path) -> Option<UnixListener> {
    let made = open_own(vault).and_then(|own| {
        remove(&own);
        // A socket's path may have 107 bytes only.
        let path = format!("{}/{SOCKET}", proc_path(&own));
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(listener)
    });
    made.inspect_err(|e| warn!("no control socket ({e}): the vault cannot be backed up while it is mounted"))
        .ok()
}

/// Removes the socket at the end of the mount.
pub(super) fn unbind(vault: &Path) {
    if let Ok(own) = open_own(vault) {
        remove(&own);
    }
}

fn open_own(vault: &Path) -> io::Result<std::os::fd::OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(vault.join(VAULT_DIR), flags, Mode::empty())?)
}

fn remove(own: &std::os::fd::OwnedFd) {
    let _ = rustix::fs::unlinkat(own, SOCKET, AtFlags::empty());
}

/// Answers from now on, until the process ends.
pub(super) fn serve(listener: Option<UnixListener>, fs: &Arc<Fs>) {
    let Some(listener) = listener else { return };
    let fs = Arc::clone(fs);
    let open = Arc::new(Connections::default());
    let accept = move || {
        for stream in listener.incoming() {
            let stream = match stream {
                Ok(stream) => stream,
                Err(e) => {
                    debug!("control socket: {e}");
                    std::thread::sleep(PAUSE);
                    continue;
                }
            };
            let Some(connection) = open.admit(stream, IDLE) else { continue };
            let (fs, all, one) = (Arc::clone(&fs), Arc::clone(&open), Arc::clone(&connection));
            let answer = move || {
                if let Err(e) = answer_all(&one, &fs) {
                    debug!("control socket: {e}");
                }
                all.remove(&one);
            };
            if std::thread::Builder::new().name("efs-control".into()).spawn(answer).is_err() {
                open.remove(&connection);
            }
        }
    };
    if let Err(e) = std::thread::Builder::new().name("efs-control".into()).spawn(accept) {
        warn!("no thread for the control socket: {e}");
    }
}

/// The connections that are open.
#[derive(Debug, Default)]
struct Connections(Mutex<Vec<Arc<Connection>>>);

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    /// Since when it has asked nothing; `None` while it is being answered.
    idle: Mutex<Option<Instant>>,
}

impl Connections {
    /// Makes room for a connection, where there is none by ending one that has been idle for so long.
    fn admit(&self, stream: UnixStream, idle: Duration) -> Option<Arc<Connection>> {
        let mut all = self.0.lock();
        if all.len() >= MOST {
            let since = |one: &Arc<Connection>| *one.idle.lock();
            let (at, since) = all
                .iter()
                .enumerate()
                .filter_map(|(at, one)| Some((at, since(one)?)))
                .min_by_key(|(_, at)| *at)?;
            if since.elapsed() < idle {
                return None;
            }
            let _ = all.swap_remove(at).stream.shutdown(Shutdown::Both);
        }
        let connection = Arc::new(Connection { stream, idle: Mutex::new(Some(Instant::now())) });
        all.push(Arc::clone(&connection));
        Some(connection)
    }

    fn remove(&self, connection: &Arc<Connection>) {
        self.0.lock().retain(|one| !Arc::ptr_eq(one, connection));
    }
}

fn answer_all(connection: &Connection, fs: &Fs) -> io::Result<()> {
    let stream = &connection.stream;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    let mut asker = Asker { fs, leases: Vec::new() };
    loop {
        line.clear();
        if reader.by_ref().take(QUESTION).read_line(&mut line)? == 0 {
            return Ok(());
        }
        *connection.idle.lock() = None;
        let mut to = stream;
        to.write_all(format!("{}\n", asker.answer(line.trim_end())).as_bytes())?;
        *connection.idle.lock() = Some(Instant::now());
    }
}

/// Who asks, and what he was given; it goes back when he is gone.
struct Asker<'f> {
    fs: &'f Fs,
    leases: Vec<(u64, Leased)>,
}

impl Drop for Asker<'_> {
    fn drop(&mut self) {
        for (_, lease) in &self.leases {
            self.fs.end_lease(lease);
        }
    }
}

impl Asker<'_> {
    fn answer(&mut self, question: &str) -> String {
        match question.split_once(' ').unwrap_or((question, "")) {
            ("busy", "") => {
                let numbers = self.fs.busy(BUSY).into_iter().map(|inode| format!(" {inode}"));
                format!("busy{}", numbers.collect::<String>())
            }
            ("lease", inode) => inode.parse().map_or_else(|_| NO_NUMBER.into(), |inode| self.lease(inode)),
            ("end", inode) => inode.parse().map_or_else(|_| NO_NUMBER.into(), |inode| self.end(inode)),
            _ => answer(question, self.fs),
        }
    }

    fn lease(&mut self, inode: u64) -> String {
        if self.leases.len() >= LEASES {
            return "taken".into();
        }
        match self.fs.lease(inode) {
            Ok(Some(lease)) => {
                self.leases.push((inode, lease));
                "held".into()
            }
            Ok(None) => "taken".into(),
            Err(e) => format!("error {e}"),
        }
    }

    fn end(&mut self, inode: u64) -> String {
        let Some(at) = self.leases.iter().position(|(held, _)| *held == inode) else {
            return "error no lease of that inode".into();
        };
        let (_, lease) = self.leases.swap_remove(at);
        if self.fs.end_lease(&lease) { "kept" } else { "broken" }.into()
    }
}

fn answer(question: &str, fs: &Fs) -> String {
    match question.split_once(' ').unwrap_or((question, "")) {
        ("checkpoint", "") => match fs.checkpoint() {
            Ok(()) => "ok".into(),
            Err(e) => format!("error {e}"),
        },
        ("keys", "") => match fs.follow_keys() {
            Ok(()) => "ok".into(),
            Err(e) => format!("error {e}"),
        },
        ("pending", id) => match file_id(id) {
            Some(id) if fs.is_pending(id) => "yes".into(),
            Some(_) => "no".into(),
            None => "error a file id has 24 hexadecimal digits".into(),
        },
        _ => "error this question is not known".into(),
    }
}

fn file_id(text: &str) -> Option<FileId> {
    if text.len() != 2 * FileId::LEN || !text.is_ascii() {
        return None;
    }
    let bytes: Option<Vec<u8>> =
        (0..FileId::LEN).map(|n| u8::from_str_radix(text.get(2 * n..2 * n + 2)?, 16).ok()).collect();
    FileId::from_slice(&bytes?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    /// Connections that ask nothing do not keep others out for longer than their time; those that are being answered do.
    #[test]
    fn who_asks_nothing_gives_way() {
        let all = Connections::default();
        let mut ends: Vec<_> = (0..MOST).map(|_| pair()).collect();
        let open: Vec<_> = ends
            .iter()
            .map(|(stream, _)| all.admit(stream.try_clone().unwrap(), Duration::ZERO).unwrap())
            .collect();
        assert!(all.admit(pair().0, IDLE).is_none());
        // The first is being answered, the third asked last before the others.
        *open[0].idle.lock() = None;
        let past = Instant::now().checked_sub(Duration::from_millis(1)).unwrap();
        *open[2].idle.lock() = Some(past);
        assert!(all.admit(pair().0, Duration::ZERO).is_some());
        assert_eq!(ends[2].1.read(&mut [0]).unwrap(), 0, "the third is ended");
        assert_eq!(all.0.lock().len(), MOST);
        for one in &open {
            *one.idle.lock() = None;
            all.remove(&open[2]);
        }
        all.0.lock().iter().for_each(|one| *one.idle.lock() = None);
        assert!(all.admit(pair().0, Duration::ZERO).is_none());
        all.remove(&open[0]);
        assert!(all.admit(pair().0, IDLE).is_some());
    }
}
