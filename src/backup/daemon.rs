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
//! lease INODE       held | taken         the lower inode is whole, and stays as it is
//! end INODE         kept | broken        the end of a lease: whether it stayed so
//! ```
//! `keys` is asked by who changes wrapping keys (`rewrap`, `recipient remove`). Changes wait for a lease five seconds at
//! most; then it is broken. It ends with its connection. There are four leases to a connection, and sixteen to a mount;
//! who asks for more is told `taken`. No word is an answer to two questions that are asked of files. A connection on which an answer
//! is late, or none to its question, is given up, since what comes on it later would answer another question.

use std::fmt::Debug;
use std::io::{self, BufRead, BufReader, Read, Write};
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
/// The longest answer: 4,096 numbers of inodes.
const ANSWER: u64 = 128 << 10;
/// Connections that are given up in a row before no question is asked any more.
const CONNECTIONS: u32 = 4;

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
    patience: Duration,
    line: Mutex<Line>,
}

/// A connection on which each answer belongs to the question before it.
#[derive(Debug)]
struct Line {
    stream: Option<BufReader<UnixStream>>,
    /// How often another one may be made.
    left: u32,
}

impl Control {
    /// Connects to the daemon that has the vault mounted.
    pub fn connect(vault: &Path) -> io::Result<Self> {
        Self::patient(vault.join(VAULT_DIR).join(SOCKET), PATIENCE)
    }

    fn patient(path: PathBuf, patience: Duration) -> io::Result<Self> {
        let stream = Some(connect(&path, patience)?);
        Ok(Self { path, patience, line: Mutex::new(Line { stream, left: CONNECTIONS - 1 }) })
    }

    /// Makes new files follow the volume config as it is now; ends when those that were begun before have their names, but
    /// nameless ones (O_TMPFILE).
    pub fn follow_keys(&self) -> io::Result<()> {
        self.ask("keys", |answer| (answer == "ok").then_some(()))
    }

    fn choose(&self, question: &str, yes: &str, no: &str) -> io::Result<bool> {
        self.ask(question, |answer| match answer {
            answer if answer == yes => Some(true),
            answer if answer == no => Some(false),
            _ => None,
        })
    }

    /// Asks; `read` knows what may be answered.
    fn ask<T>(&self, question: &str, read: impl FnOnce(&str) -> Option<T>) -> io::Result<T> {
        let mut line = self.line.lock();
        // Put back only where the answer is one to this question.
        let mut stream = match line.stream.take() {
            Some(stream) => stream,
            None if line.left == 0 => {
                return Err(io::Error::other(format!("{}: the daemon does not answer", self.path.display())));
            }
            None => {
                line.left -= 1;
                connect(&self.path, self.patience)?
            }
        };
        stream.get_mut().write_all(format!("{question}\n").as_bytes())?;
        let mut answer = String::new();
        match stream.by_ref().take(ANSWER).read_line(&mut answer) {
            Ok(len) if len > 0 && answer.ends_with('\n') => {}
            Ok(_) => {
                let ended = format!("{}: the daemon ended the connection", self.path.display());
                return Err(io::Error::other(ended));
            }
            Err(e) => return Err(e),
        }
        let answer = answer.trim_end();
        if let Some(why) = answer.strip_prefix("error ") {
            line.stream = Some(stream);
            return Err(io::Error::other(format!("the daemon: {why}")));
        }
        let known =
            read(answer).ok_or_else(|| io::Error::other(format!("the daemon answered {answer:?}")))?;
        (line.stream, line.left) = (Some(stream), CONNECTIONS - 1);
        Ok(known)
    }
}

/// Connects through the directory's descriptor: a socket's path may have 107 bytes only.
fn connect(path: &Path, patience: Duration) -> io::Result<BufReader<UnixStream>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = std::fs::File::open(dir)?;
    let stream = UnixStream::connect(Path::new(&crate::vault::proc_path(&dir)).join(name))?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(BufReader::new(stream))
}

impl Daemon for Control {
    fn checkpoint(&self) -> io::Result<()> {
        self.ask("checkpoint", |answer| (answer == "ok").then_some(()))
    }

    fn is_pending(&self, file: FileId) -> io::Result<bool> {
        self.choose(&format!("pending {file}"), "yes", "no")
    }

    fn busy(&self) -> io::Result<Vec<u64>> {
        self.ask("busy", |answer| {
            let mut words = answer.split(' ');
            words.next().filter(|word| *word == "busy")?;
            words.map(str::parse).collect::<Result<_, _>>().ok()
        })
    }

    fn lease(&self, inode: u64) -> io::Result<bool> {
        self.choose(&format!("lease {inode}"), "held", "taken")
    }

    fn end_lease(&self, inode: u64) -> io::Result<bool> {
        self.choose(&format!("end {inode}"), "kept", "broken")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// A daemon that says the next of `answers` to each question, on as many connections as there are; one that begins
    /// with `late ` half a second after its time. Gives what it was asked, each with the number of its connection.
    fn daemon(answers: &'static [&'static str]) -> (tempfile::TempDir, Control, Receiver<(usize, String)>) {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join(SOCKET);
        let listener = UnixListener::bind(&path).unwrap();
        let (told, asked) = channel();
        std::thread::spawn(move || {
            let mut answers = answers.iter();
            for (number, stream) in listener.incoming().flatten().enumerate() {
                let mut reader = BufReader::new(stream);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|len| len > 0) {
                    if told.send((number, line.trim_end().to_owned())).is_err() {
                        return;
                    }
                    line.clear();
                    let answer = answers.next().copied().unwrap_or("none");
                    let soon = answer.strip_prefix("late ");
                    if soon.is_some() {
                        std::thread::sleep(Duration::from_millis(600));
                    }
                    let _ = reader.get_mut().write_all(format!("{}\n", soon.unwrap_or(answer)).as_bytes());
                }
            }
        });
        let control = Control::patient(path, Duration::from_millis(100)).unwrap();
        (base, control, asked)
    }

    fn id() -> FileId {
        FileId::from_slice(&[7; FileId::LEN]).unwrap()
    }

    /// An answer that comes too late is none to the next question.
    #[test]
    fn a_late_answer_answers_nothing_else() {
        let (_base, control, asked) = daemon(&["late no", "yes", "kept"]);
        assert!(control.is_pending(id()).is_err());
        // The late answer would be here by now.
        std::thread::sleep(Duration::from_millis(700));
        assert!(control.is_pending(id()).unwrap());
        assert!(control.end_lease(7).unwrap());
        let connections: Vec<usize> = asked.try_iter().map(|(number, _)| number).collect();
        assert_eq!(connections, [0, 1, 1]);
    }

    /// An answer to another question ends the connection; an error is an answer. After some connections no more is asked.
    #[test]
    fn an_answer_to_another_question_is_none() {
        let (_base, control, asked) = daemon(&["error why", "no", "yes", "ok", "kept", "held"]);
        assert!(control.lease(7).unwrap_err().to_string().contains("why"));
        for _ in 0..5 {
            assert!(control.lease(7).is_err());
        }
        assert!(control.is_pending(id()).unwrap_err().to_string().contains("does not answer"));
        assert_eq!(asked.try_iter().map(|(number, _)| number).max(), Some(CONNECTIONS as usize - 1));
    }
}
