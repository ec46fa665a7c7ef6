//! Cold caches: dropped, and then looked at. A job that is called cold and is not gives no figure.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::Advice;

use super::resident;
use crate::bench::error::BenchError;
use crate::bench::keeper::Keeper;

/// A page may be in use or on its way to the disk when the caches are dropped.
const TRIES: u32 = 6;
const PAUSE: Duration = Duration::from_millis(60);

/// What must not be in the page cache.
#[derive(Clone, Debug, Default)]
pub(super) struct Cold {
    /// Files in the mount.
    pub(super) files: Vec<PathBuf>,
    /// Directory of the lower filesystem, every regular file below it; none where it lies in memory.
    pub(super) lower: Option<PathBuf>,
    /// Image that holds the lower filesystem.
    pub(super) image: Option<PathBuf>,
}

impl Cold {
    /// Drops the caches until nothing of this is in them.
    pub(super) fn reach(&self, keeper: &Keeper) -> Result<(), BenchError> {
        let mut left = None;
        for _ in 0..TRIES {
            keeper.check()?;
            self.drop_caches()?;
            left = self.first_warm()?;
            if left.is_none() {
                return Ok(());
            }
            thread::sleep(PAUSE);
        }
        let (path, pages) = left.unwrap_or_default();
        Err(BenchError::Warm(format!("{pages} pages of {} stay in the page cache", path.display())))
    }

    /// Root drops everything; anyone can drop the clean pages of a file of his own.
    fn drop_caches(&self) -> Result<(), BenchError> {
        for path in &self.files {
            let file = File::open(path).map_err(BenchError::io(path))?;
            file.sync_all().map_err(BenchError::io(path))?;
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).map_err(BenchError::io(path))?;
        }
        // Last: at an fsync or a close a daemon may read or write below.
        if rustix::process::geteuid().is_root() {
            rustix::fs::sync();
            let control = Path::new("/proc/sys/vm/drop_caches");
            fs::write(control, "3").map_err(BenchError::io(control))?;
        }
        Ok(())
    }

    fn first_warm(&self) -> Result<Option<(PathBuf, u64)>, BenchError> {
        let mut open: Vec<PathBuf> = self.lower.iter().cloned().collect();
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir).map_err(BenchError::io(&dir))? {
                let entry = entry.map_err(BenchError::io(&dir))?;
                let kind = entry.file_type().map_err(BenchError::io(&dir))?;
                if kind.is_dir() {
                    open.push(entry.path());
                } else if kind.is_file() {
                    let pages = resident::pages(&entry.path())?;
                    if pages > 0 {
                        return Ok(Some((entry.path(), pages)));
                    }
                }
            }
        }
        // Last: at an open a daemon may read a header below.
        for path in self.image.iter().chain(&self.files) {
            let pages = resident::pages(path)?;
            if pages > 0 {
                return Ok(Some((path.clone(), pages)));
            }
        }
        Ok(None)
    }
}

/// Whether `path` lies on a filesystem whose page cache is the storage itself: there nothing can be cold.
pub(super) fn is_memory(path: &Path) -> Result<bool, BenchError> {
    /// `TMPFS_MAGIC` and `RAMFS_MAGIC` of linux/magic.h.
    const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
    let stat = rustix::fs::statfs(path).map_err(BenchError::io(path))?;
    Ok(u64::try_from(stat.f_type).is_ok_and(|kind| IN_MEMORY.contains(&kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file in memory never gets cold, and that is told; one on a disk does.
    #[test]
    fn what_stays_warm_is_told() {
        let keeper = Keeper::default();
        if let Ok(dir) = tempfile::tempdir_in("/dev/shm") {
            let path = dir.path().join("file");
            fs::write(&path, vec![1; 4096]).unwrap();
            assert!(is_memory(&path).unwrap());
            let cold = Cold { files: vec![path], ..Cold::default() };
            assert!(matches!(cold.reach(&keeper), Err(BenchError::Warm(_))));
        }
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("file");
        fs::write(&path, vec![1; 4096]).unwrap();
        if !is_memory(&path).unwrap() {
            Cold { files: vec![path], ..Cold::default() }.reach(&keeper).unwrap();
        }
    }
}
