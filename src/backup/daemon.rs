//! The daemon of a mount, asked by a backup of the same vault: what it holds of a file, and to bring that to its place.
//!
//! A mount keeps overwritten blocks in its journal for a while. A lower file alone is then what it was at the last
//! checkpoint, or, while it grows out of its inline record, nothing that opens. So a backup asks for a checkpoint
//! first, and of each file that it reads whether something of it has come into the journal since. Of a file that is being
//! written it asks for a lease: everything of the file in its place, and changes kept off until it was copied.
//!
//! Protocol, over the socket `.envelopefs/control` (mode 0600): lines, one answer to each.
//! ```text
//! checkpoint        ok | error TEXT      everything that was changed so far is in its place
//! pending FILE-ID   yes | no             whether the journal holds anything of the file
//! keys              ok | error TEXT      new files are wrapped for the keys of the volume config as it is now, and
//!                                        those that were begun before have their names, but nameless ones (O_TMPFILE)
//! busy              busy INODE ...       lower inodes that are open for writing or not in their places, 4,096 at most
//! lease INODE       ok | no              the lower inode is whole, and stays as it is
//! end INODE         kept | broken        the end of a lease: whether it stayed so
//! ```
//! `keys` is asked by who changes wrapping keys (`rewrap`, `recipient remove`). Changes wait for a lease five seconds at
//! most; then it is broken. It ends with its connection. There are four leases to a connection, and sixteen to a mount;
//! who asks for more is told `no`.

use std::fmt::Debug;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;

use crate::format::ids::FileId;
use crate::format::names::VAULT_DIR;

/// The socket below the vault's own directory.
pub const SOCKET: &str = "control";
/// How long an answer may take: a checkpoint of much writes it all.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a backup asks a daemon.
pub trait Daemon: Send + Sync + Debug {
    /// Brings everything that was changed so far to its place.
    fn checkpoint(&self) -> io::Result<()>;
    /// Whether something of a file is not in its place.
    fn is_pending(&self, file: FileId) -> io::Result<bool>;
    /// Numbers of lower inodes that are being written.
    fn busy(&self) -> io::Result<Vec<u64>>;
    /// Brings everything of a lower inode to its place and keeps it so; false where that cannot be had now.
    fn lease(&self, inode: u64) -> io::Result<bool>;
    /// Ends a lease: whether the lower inode was kept as it was all the time.
    fn end_lease(&self, inode: u64) -> io::Result<bool>;
}

/// A daemon behind its socket.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    stream: Mutex<BufReader<UnixStream>>,
}

impl Control {
    /// Connects to the daemon that has the vault mounted.
    pub fn connect(vault: &Path) -> io::Result<Self> {
        let path = vault.join(VAULT_DIR).join(SOCKET);
        let stream = connect(&path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { path, stream: Mutex::new(BufReader::new(stream)) })
    }

    /// Makes new files follow the volume config as it is now; ends when those that were begun before have their names, but
    /// nameless ones (O_TMPFILE).
    pub fn follow_keys(&self) -> io::Result<()> {
        self.ask("keys").map(drop)
    }

    fn choose(&self, question: &str, yes: &str, no: &str) -> io::Result<bool> {
        match self.ask(question)?.as_str() {
            answer if answer == yes => Ok(true),
            answer if answer == no => Ok(false),
            other => Err(strange(other)),
        }
    }

    fn ask(&self, question: &str) -> io::Result<String> {
        let mut stream = self.stream.lock();
        stream.get_mut().write_all(format!("{question}\n").as_bytes())?;
        let mut answer = String::new();
        if stream.read_line(&mut answer)? == 0 {
            return Err(io::Error::other(format!(
                "{}: the daemon ended the connection",
                self.path.display()
            )));
        }
        let answer = answer.trim_end().to_owned();
        match answer.strip_prefix("error ") {
            Some(why) => Err(io::Error::other(format!("the daemon: {why}"))),
            None => Ok(answer),
        }
    }
}

fn strange(answer: &str) -> io::Error {
    io::Error::other(format!("the daemon answered {answer:?}"))
}

/// Connects through the directory's descriptor: a socket's path may have 107 bytes only.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = std::fs::File::open(dir)?;
    UnixStream::connect(Path::new(&crate::vault::proc_path(&dir)).join(name))
}

impl Daemon for Control {
    fn checkpoint(&self) -> io::Result<()> {
        self.ask("checkpoint").map(drop)
    }

    fn is_pending(&self, file: FileId) -> io::Result<bool> {
        self.choose(&format!("pending {file}"), "yes", "no")
    }

    fn busy(&self) -> io::Result<Vec<u64>> {
        let answer = self.ask("busy")?;
        let mut words = answer.split(' ');
        let known = words.next() == Some("busy");
        let numbers = words.map(str::parse).collect::<Result<_, _>>();
        numbers.ok().filter(|_| known).ok_or_else(|| strange(&answer))
    }

    fn lease(&self, inode: u64) -> io::Result<bool> {
        self.choose(&format!("lease {inode}"), "ok", "no")
    }

    fn end_lease(&self, inode: u64) -> io::Result<bool> {
        self.choose(&format!("end {inode}"), "kept", "broken")
    }
}
