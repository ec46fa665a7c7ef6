//! A file that is being written, copied while its daemon keeps it as it is: whole, not for longer than a copy takes, and not for
//! longer than the lease lasts.
//!
//! What is stored is the copy, so that nobody waits for the network. It has no name, and is ciphertext as the file is.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::daemon::Daemon;
use super::walk::Entry;
use crate::format::names::TMP_PREFIX;
use crate::vault::copy::copy_data;
use crate::vault::entry;

/// Copies up to this length are kept in memory.
const SMALL: u64 = 1 << 20;
/// How long a lease lasts (`fs::leases`): what is not copied by then was not kept.
pub(super) const HOLD: Duration = Duration::from_secs(5);
/// What a copy leaves free where it lies: one part in so many of the filesystem.
const SPARE: u64 = 20;

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

/// What became of a copy.
#[derive(Debug)]
pub(super) enum Copied {
    Held(Held),
    /// The lease was not to be had, or did not last, or the copy failed.
    Not,
    /// It takes longer than a lease lasts, or more room than there is: why. It will be so for a while.
    TooLarge(String),
}

/// Looks at a file again and copies it, both under a lease of its daemon's, which lasts for `hold`. The entry is as it was found
/// last, in any case. An error is the daemon's. `dir`: where a long copy may lie.
pub(super) fn copy(daemon: &dyn Daemon, entry: &mut Entry, dir: &Path, hold: Duration) -> io::Result<Copied> {
    let inode = entry.stat.ino;
    if !daemon.lease(inode)? {
        return Ok(Copied::Not);
    }
    let until = Instant::now() + hold;
    let copied = entry.look_again().map_err(io::Error::from).and_then(|()| bytes_of(entry, dir, until));
    // Before the end: after it, time passes in which somebody changes the file.
    let hot = entry.stat.is_hot();
    let kept = daemon.end_lease(inode)?;
    match copied {
        Ok(copy) if kept && entry.fault.is_none() => Ok(Copied::Held(Held { copy, hot })),
        Ok(_) => Ok(Copied::Not),
        Err(e) => {
            log::debug!("{}: not copied: {e}", entry.path.display());
            let large = matches!(e.kind(), io::ErrorKind::TimedOut | io::ErrorKind::StorageFull);
            Ok(if large { Copied::TooLarge(e.to_string()) } else { Copied::Not })
        }
    }
}

fn bytes_of(entry: &Entry, dir: &Path, until: Instant) -> io::Result<Copy> {
    let len = entry.stat.size;
    let mut from = File::from(entry.open()?);
    if len <= SMALL {
        let mut bytes = Vec::new();
        // One byte more would show that it is longer.
        let copied = (&mut from).take(len + 1).read_to_end(&mut bytes)? as u64;
        same_length(copied, len)?;
        return Ok(Copy::Small(Cursor::new(bytes)));
    }
    let mut to = File::from(nameless(dir)?);
    // Where both lie on one filesystem that can, they share what they hold.
    if rustix::fs::ioctl_ficlone(&to, &from).is_err() {
        has_room(&to, entry.stat.blocks.saturating_mul(512))?;
        same_length(copy_data(&to, &from, len, in_time(until, len))?, len)?;
        same_length(from.metadata()?.len(), len)?;
    }
    same_length(to.metadata()?.len(), len)?;
    to.rewind()?;
    Ok(Copy::Large(to))
}

fn same_length(copied: u64, len: u64) -> io::Result<()> {
    if copied == len { Ok(()) } else { Err(io::Error::other(format!("{copied} of {len} bytes were copied"))) }
}

/// Lets a copy of so many bytes go on until then.
fn in_time(until: Instant, len: u64) -> impl FnMut(u64) -> io::Result<()> {
    move |at| {
        if Instant::now() < until {
            return Ok(());
        }
        let told = format!("{at} of {len} bytes were copied when its time was over");
        Err(io::Error::new(io::ErrorKind::TimedOut, told))
    }
}

/// Refuses a copy of so many bytes that would leave little to others.
fn has_room(to: &File, need: u64) -> io::Result<()> {
    let fs = rustix::fs::fstatvfs(to)?;
    let free = fs.f_bavail.saturating_mul(fs.f_frsize);
    let spare = fs.f_blocks.saturating_mul(fs.f_frsize) / SPARE;
    if free.saturating_sub(spare) < need {
        let told = format!("a copy takes {need} bytes, and {free} are free in the cache directory");
        return Err(io::Error::new(io::ErrorKind::StorageFull, told));
    }
    Ok(())
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
    use std::os::unix::fs::{FileExt, MetadataExt};

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

    /// Of a file with holes the data alone is copied, and a copy is given up with its lease, by the clock.
    #[test]
    fn a_copy_is_no_larger_and_lasts_no_longer_than_it_must() {
        const LEN: u64 = 1 << 30;
        let (base, mut entry) = file(|path| {
            let file = File::create(path).unwrap();
            file.set_len(LEN).unwrap();
            file.write_all_at(b"here", LEN - 4).unwrap();
        });
        let Copied::Held(Held { copy: Copy::Large(large), .. }) =
            copy(&Yes, &mut entry, base.path(), HOLD).unwrap()
        else {
            panic!("not copied");
        };
        let mut end = [0; 4];
        large.read_exact_at(&mut end, LEN - 4).unwrap();
        assert_eq!((&end, large.metadata().unwrap().len()), (b"here", LEN));
        assert!(large.metadata().unwrap().blocks() * 512 < 1 << 20);
        let file = File::open(base.path().join("file")).unwrap();
        let to = File::from(nameless(base.path()).unwrap());
        let late = copy_data(&to, &file, LEN, in_time(Instant::now(), LEN)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert!(has_room(&to, 1 << 20).is_ok());
        assert_eq!(has_room(&to, u64::MAX).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    /// What changed a moment before its lease ended may change again without another time, and is told from what has not.
    #[test]
    fn a_copy_of_what_has_just_changed_is_hot() {
        let (base, mut entry) = file(|path| std::fs::write(path, b"text").unwrap());
        let mut held = || match copy(&Yes, &mut entry, base.path(), HOLD).unwrap() {
            Copied::Held(held) => held,
            other => panic!("{other:?}"),
        };
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
