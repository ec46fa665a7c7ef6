//! A file that is being written, copied while its daemon keeps it as it is: whole, and not for longer than a copy takes.
//!
//! What is stored is the copy, so that nobody waits for the network. It has no name, and is ciphertext as the file is.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::daemon::Daemon;
use super::walk::Entry;
use crate::format::names::TMP_PREFIX;
use crate::vault::entry;

/// Copies up to this length are kept in memory.
const SMALL: u64 = 1 << 20;

/// The bytes of a file, read from the first on.
#[derive(Debug)]
pub(super) enum Copy {
    /// In memory.
    Small(Cursor<Vec<u8>>),
    /// In a file without a name.
    Large(File),
}

impl Read for Copy {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Small(bytes) => bytes.read(buf),
            Self::Large(file) => file.read(buf),
        }
    }
}

/// A copy that a lease has covered.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) copy: Copy,
    /// The file changed so shortly before the lease ended that a change after it may bear the same time.
    pub(super) hot: bool,
}

/// Looks at a file again and copies it, both under a lease of its daemon's. `None` where the lease was not to be had, or did
/// not last, or the copy failed; the entry is as it was found last, in any case. An error is the daemon's. `dir`: where a long
/// copy may lie.
pub(super) fn copy(daemon: &dyn Daemon, entry: &mut Entry, dir: &Path) -> io::Result<Option<Held>> {
    let inode = entry.stat.ino;
    if !daemon.lease(inode)? {
        return Ok(None);
    }
    let copied = entry.look_again().map_err(io::Error::from).and_then(|()| bytes_of(entry, dir));
    // Before the end: after it, time passes in which somebody changes the file.
    let hot = entry.stat.is_hot();
    let kept = daemon.end_lease(inode)?;
    let copied = copied.inspect_err(|e| log::debug!("{}: not copied: {e}", entry.path.display()));
    Ok(copied.ok().filter(|_| kept && entry.fault.is_none()).map(|copy| Held { copy, hot }))
}

fn bytes_of(entry: &Entry, dir: &Path) -> io::Result<Copy> {
    let len = entry.stat.size;
    // One byte more would show that it is longer.
    let mut from = File::from(entry.open()?).take(len + 1);
    let (copy, copied) = if len <= SMALL {
        let mut bytes = Vec::new();
        let copied = from.read_to_end(&mut bytes)? as u64;
        (Copy::Small(Cursor::new(bytes)), copied)
    } else {
        let mut to = File::from(nameless(dir)?);
        let copied = io::copy(&mut from, &mut to)?;
        to.rewind()?;
        (Copy::Large(to), copied)
    };
    if copied == len {
        Ok(copy)
    } else {
        Err(io::Error::other(format!("{copied} of {len} bytes were copied")))
    }
}

/// A file that nobody else can open and that goes with its descriptor.
fn nameless(dir: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(dir, flags | OFlags::TMPFILE, mode) {
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOSYS) => {}
        other => return other,
    }
    let dir = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let name = format!("{TMP_PREFIX}copy.{}", std::process::id());
    match entry::unlink(&dir, &name) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e),
    }
    let file =
        rustix::fs::openat(&dir, &name, flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW, mode)?;
    entry::unlink(&dir, &name).map(|()| file)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::walk::Tree;
    use super::*;
    use crate::format::config::CONFIG_FILE;
    use crate::format::ids::FileId;
    use crate::format::names::VAULT_DIR;

    /// Gives every lease, and keeps it.
    #[derive(Debug)]
    struct Yes;

    impl Daemon for Yes {
        fn checkpoint(&self) -> io::Result<()> {
            Ok(())
        }
        fn is_pending(&self, _: FileId) -> io::Result<bool> {
            Ok(false)
        }
        fn busy(&self) -> io::Result<Vec<u64>> {
            Ok(Vec::new())
        }
        fn lease(&self, _: u64) -> io::Result<bool> {
            Ok(true)
        }
        fn end_lease(&self, _: u64) -> io::Result<bool> {
            Ok(true)
        }
    }

    /// A file in a vault that has nothing else.
    fn file(make: impl FnOnce(&Path)) -> (tempfile::TempDir, Entry) {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir(base.path().join(VAULT_DIR)).unwrap();
        std::fs::write(base.path().join(VAULT_DIR).join(CONFIG_FILE), b"").unwrap();
        make(&base.path().join("file"));
        let entry = Tree::open(base.path()).unwrap().entry(Path::new("file")).unwrap();
        (base, entry)
    }

    /// What changed a moment before its lease ended may change again without another time, and is told from what has not.
    #[test]
    fn a_copy_of_what_has_just_changed_is_hot() {
        let (base, mut entry) = file(|path| std::fs::write(path, b"text").unwrap());
        let mut held = || copy(&Yes, &mut entry, base.path()).unwrap().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(!held().hot);
        // A machine that stands still for a moment is given another chance.
        let hot = (0..50).any(|_| {
            std::fs::write(base.path().join("file"), b"next").unwrap();
            held().hot
        });
        assert!(hot);
    }
}
