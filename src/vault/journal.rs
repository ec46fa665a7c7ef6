//! Where the journal's logs lie: numbered files in the vault's own directory. What they hold is for `content`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, StatxFlags};
use rustix::io::Errno;

use super::entry::{open_dir_path, open_dir_read};
use super::file::{DiskFile, LowerFile};
use super::stat::stat_at;
use super::{Listing, entry, umask};
use crate::format::config::CONFIG_FILE;
use crate::format::journal::{Home, JOURNAL_DIR, Time};
use crate::format::names::{LOST_FOUND, VAULT_DIR};

/// `STATX_MNT_ID_UNIQUE` of linux/stat.h: a mount id that is not used twice in one boot.
const MNT_ID_UNIQUE: u32 = 0x4000;
/// Logs put aside in one second.
const MAX_ASIDE: u32 = 100;
/// Tells one boot from another.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What the journal needs of the place it lies in. `DiskJournal` is the real one; tests bring stores that forget.
pub trait JournalStore: Send + Sync {
    /// Numbers of the logs that are there, ascending.
    fn list(&self) -> io::Result<Vec<u32>>;
    /// Opens a log for reading and writing, makes it where it is missing; its name is durable then.
    fn open(&self, number: u32) -> io::Result<Box<dyn LowerFile>>;
    /// Removes a log.
    fn remove(&self, number: u32) -> io::Result<()>;
    /// Puts a log aside for people to look at; where it is not there any more, nothing happens.
    fn set_aside(&self, number: u32) -> io::Result<()> {
        self.remove(number)
    }
    /// Makes everything on the vault's filesystem durable.
    fn sync_all(&self) -> io::Result<()>;
    /// Whether every file is known to be durable as it lies: no process changed one in place since the last sync.
    fn is_swept(&self) -> bool {
        false
    }
    /// Whether the logs, and so the files around them, were brought here from elsewhere: by a restore, by a copy. Then the
    /// ages of the files say nothing about what a crash may have done to them.
    fn is_copy(&self) -> bool {
        false
    }
    /// This boot and this mount of the vault's filesystem.
    fn home(&self) -> Home;
    /// The clock that gives lower files their times.
    fn now(&self) -> Time;
}

/// The logs in `.envelopefs/journal`.
#[derive(Debug)]
pub struct DiskJournal {
    top: OwnedFd,
    dir: OwnedFd,
    home: Home,
    swept: bool,
    /// A regular file of the same filesystem.
    anchor: OwnedFd,
}

/// Says that files may have been changed without a journal since the vault was last made durable.
pub const IN_PLACE: &str = "in-place";
/// In the vault's own directory: says that files and logs were restored.
pub const RESTORED: &str = "restored";

fn file_name(number: u32) -> String {
    format!("{number}.log")
}

impl DiskJournal {
    /// Opens the directory of logs below the vault's top; `None` where there is none and `make` does not ask for one.
    pub fn open(top: impl AsFd, make: bool) -> io::Result<Option<Self>> {
        let own = open_dir_path(&top, VAULT_DIR)?;
        let dir = match open_dir_path(&own, JOURNAL_DIR) {
            Err(Errno::NOENT) if make => {
                rustix::fs::mkdirat(&own, JOURNAL_DIR, Mode::RWXU)?;
                rustix::fs::fsync(open_dir_read(&own, false)?)?;
                open_dir_path(&own, JOURNAL_DIR)?
            }
            Err(Errno::NOENT) => return Ok(None),
            other => other?,
        };
        let home = home(&dir);
        let swept = stat_at(&dir, IN_PLACE) == Err(Errno::NOENT);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let anchor = rustix::fs::openat(&own, CONFIG_FILE, flags, Mode::empty())?;
        Ok(Some(Self { top: open_dir_read(&top, false)?, dir, home, swept, anchor }))
    }

    /// What [`JournalStore::is_swept`] says: after a crash the files are not, whatever was noted.
    pub fn after_crash(mut self, crashed: bool) -> Self {
        self.swept &= !crashed;
        self
    }

    /// Notes that files are changed in place from now on. Only the page cache is meant, so the note need not be durable.
    pub fn note_in_place(&self) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        private(|| rustix::fs::openat(&self.dir, IN_PLACE, flags, Mode::RUSR | Mode::WUSR))?;
        Ok(())
    }
}

/// Notes, durably, that the files of the vault at `top`, and a journal that may come with them, are restored: the logs were
/// not made for these inodes. The vault's own directory is made where it is missing.
pub fn note_restored(top: impl AsFd) -> rustix::io::Result<()> {
    match rustix::fs::mkdirat(&top, VAULT_DIR, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e),
    }
    let own = open_dir_path(&top, VAULT_DIR)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::fsync(private(|| rustix::fs::openat(&own, RESTORED, flags, Mode::RUSR | Mode::WUSR))?)?;
    rustix::fs::fsync(open_dir_read(&own, false)?)?;
    rustix::fs::fsync(open_dir_read(&top, false)?)
}

/// Takes that note away: there are no logs any more.
pub fn forget_restored(top: impl AsFd) {
    // Where it stays, a journal is judged more carefully than it need be.
    let _ = open_dir_path(top, VAULT_DIR).and_then(|own| entry::unlink(own, RESTORED));
}

/// Makes what is the daemon's own, whatever umask this thread last created somebody's file under.
fn private<T>(make: impl FnOnce() -> T) -> T {
    umask::with_umask(0o077, make)
}

/// Zeros where the kernel is too old to tell.
fn home(dir: impl AsFd) -> Home {
    let mask = StatxFlags::from_bits_retain(MNT_ID_UNIQUE);
    let mount = rustix::fs::statx(dir, c"", AtFlags::EMPTY_PATH, mask)
        .ok()
        .filter(|found| found.stx_mask & MNT_ID_UNIQUE != 0)
        .map_or(0, |found| found.stx_mnt_id);
    let text = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    let digits: Vec<u8> = text.bytes().filter_map(|b| (b as char).to_digit(16)).map(|d| d as u8).collect();
    let mut boot = [0; 16];
    for (byte, pair) in boot.iter_mut().zip(digits.chunks_exact(2)) {
        if let [high, low] = pair {
            *byte = high << 4 | low;
        }
    }
    if boot == [0; 16] { Home::default() } else { Home { boot, mount } }
}

impl JournalStore for DiskJournal {
    fn list(&self) -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        let mut listing = Listing::new(open_dir_read(&self.dir, false)?);
        while let Some(entry) = listing.peek()? {
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            listing.advance();
            let number = name.strip_suffix(".log").and_then(|n| n.parse().ok());
            found.extend(number.filter(|n| file_name(*n) == name));
        }
        found.sort_unstable();
        Ok(found)
    }

    fn open(&self, number: u32) -> io::Result<Box<dyn LowerFile>> {
        let name = file_name(number);
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.dir, &name, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                let flags = flags | OFlags::CREATE | OFlags::EXCL;
                let file = private(|| rustix::fs::openat(&self.dir, &name, flags, Mode::RUSR | Mode::WUSR))?;
                rustix::fs::fsync(open_dir_read(&self.dir, false)?)?;
                file
            }
            other => other?,
        };
        let file = File::from(file);
        if !file.metadata()?.is_file() {
            return Err(io::Error::other(format!("journal/{name} is no regular file")));
        }
        Ok(Box::new(DiskFile(file)))
    }

    fn remove(&self, number: u32) -> io::Result<()> {
        entry::unlink(&self.dir, &file_name(number))?;
        Ok(())
    }

    fn set_aside(&self, number: u32) -> io::Result<()> {
        let own = open_dir_path(&self.top, VAULT_DIR)?;
        match private(|| rustix::fs::mkdirat(&own, LOST_FOUND, Mode::RWXU)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        let aside = open_dir_path(&own, LOST_FOUND)?;
        let (now, _) = self.now();
        for attempt in 0..=MAX_ASIDE {
            let name = format!("journal-{now}-{attempt}.log");
            match entry::rename(&self.dir, &file_name(number), &aside, &name, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                other => return Ok(other?),
            }
        }
        Err(Errno::EXIST.into())
    }

    fn sync_all(&self) -> io::Result<()> {
        rustix::fs::syncfs(&self.top)?;
        // XFS flushes the disk's cache only when its log has something to write; a file's own sync always does.
        rustix::fs::fdatasync(&self.anchor)?;
        match entry::unlink(&self.dir, IN_PLACE) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn is_swept(&self) -> bool {
        self.swept
    }

    fn is_copy(&self) -> bool {
        let marked = open_dir_path(&self.top, VAULT_DIR).and_then(|own| stat_at(own, RESTORED));
        // A log is written after it is made, unless it was made by a copy that kept the time of the last write.
        let is_copied = |number: u32| {
            let stat = stat_at(&self.dir, &file_name(number));
            stat.is_ok_and(|stat| stat.btime.is_some_and(|born| born > stat.mtime))
        };
        !matches!(marked, Err(Errno::NOENT)) || self.list().is_ok_and(|logs| logs.into_iter().any(is_copied))
    }

    fn home(&self) -> Home {
        self.home
    }

    fn now(&self) -> Time {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        (now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::*;

    /// Logs that a copy brought here are told from those that were written here; so are those that a restore notes.
    #[test]
    fn copied_logs_are_told_apart() {
        let base = tempfile::tempdir().unwrap();
        let top = File::open(base.path()).unwrap();
        note_restored(&top).unwrap();
        std::fs::write(base.path().join(VAULT_DIR).join(CONFIG_FILE), "").unwrap();
        let journal = DiskJournal::open(&top, true).unwrap().unwrap();
        journal.open(0).unwrap().write_at(&[IoSlice::new(b"x")], 0).unwrap();
        assert!(journal.is_copy());
        forget_restored(&top);
        assert!(!journal.is_copy());
        let log = base.path().join(VAULT_DIR).join("journal/0.log");
        let there = stat_at(&journal.dir, "0.log").unwrap();
        File::options().write(true).open(log).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(journal.is_copy(), there.btime.is_some());
    }

    /// Logs come, are found again and go; a symlink in the place of one is not followed.
    #[test]
    fn logs_come_and_go() {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir(base.path().join(VAULT_DIR)).unwrap();
        std::fs::write(base.path().join(VAULT_DIR).join(CONFIG_FILE), "").unwrap();
        let top = File::open(base.path()).unwrap();
        assert!(DiskJournal::open(&top, false).unwrap().is_none());
        let journal = DiskJournal::open(&top, true).unwrap().unwrap();
        assert!(journal.list().unwrap().is_empty());
        journal.open(1).unwrap().write_at(&[IoSlice::new(b"x")], 0).unwrap();
        journal.open(0).unwrap();
        assert_eq!(journal.list().unwrap(), [0, 1]);
        assert_eq!(journal.open(1).unwrap().len().unwrap(), 1);
        journal.remove(1).unwrap();
        assert_eq!(journal.list().unwrap(), [0]);
        std::os::unix::fs::symlink("/etc/passwd", base.path().join(VAULT_DIR).join("journal/7.log")).unwrap();
        assert!(journal.open(7).is_err());
        assert!(
            journal.home().is_same(&DiskJournal::open(&top, false).unwrap().unwrap().home())
                || journal.home().mount == 0
        );
        journal.sync_all().unwrap();
        assert!(journal.now().0 > 1_700_000_000);
    }
}
