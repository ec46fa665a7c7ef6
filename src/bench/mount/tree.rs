//! A source tree on a mount: extracted by `tar`, walked, read and removed by this process, so that no program's start or
//! habits are in the figure.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::job::TreeStep;
use crate::bench::error::BenchError;
use crate::bench::keeper::Keeper;

/// The directory in the mount.
pub(super) const NAME: &str = "tree";
/// Bytes of one read.
const PIECE: usize = 128 << 10;

/// What one goes through: names found, bytes read.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Seen {
    pub(super) names: u64,
    pub(super) bytes: u64,
}

/// A tarball and what is in it.
#[derive(Clone, Debug)]
pub(super) struct Tarball {
    pub(super) path: PathBuf,
    /// Of the content of its files.
    pub(super) bytes: u64,
    pub(super) files: u64,
}

/// Runs a step in the top of a mount; gives the seconds. `patience` bounds it.
pub(super) fn run(
    step: TreeStep,
    mnt: &Path,
    tar: &Tarball,
    keeper: &Keeper,
    patience: Duration,
) -> Result<f64, BenchError> {
    let top = mnt.join(NAME);
    let watch = Watch { keeper, begin: Instant::now(), patience };
    match step {
        TreeStep::Extract => {
            fs::create_dir(&top).map_err(BenchError::io(&top))?;
            // From memory: what the disk of the tarball does is no part of the figure.
            read_file(&tar.path, &mut vec![0; PIECE])?;
            let begin = Instant::now();
            let mut command = Command::new("tar");
            command.arg("-C").arg(&top).arg("-xf").arg(&tar.path).stdin(Stdio::null());
            keeper.output(&mut command, patience)?;
            sync(mnt)?;
            Ok(begin.elapsed().as_secs_f64())
        }
        TreeStep::Walk => {
            watch.time(|w| w.walk(&top, false)).and_then(|(seen, seconds)| expect(seen, tar, seconds))
        }
        TreeStep::Read => watch.time(|w| w.walk(&top, true)).and_then(|(seen, seconds)| {
            if seen.bytes == tar.bytes {
                expect(seen, tar, seconds)
            } else {
                Err(BenchError::Figure("as many bytes in the tree as in the tarball"))
            }
        }),
        TreeStep::Remove => {
            let begin = Instant::now();
            watch.remove(&top)?;
            sync(mnt)?;
            Ok(begin.elapsed().as_secs_f64())
        }
    }
}

/// Some of the tree's files, spread over it: for a look at whether they are in a cache.
pub(super) fn sample(mnt: &Path) -> Result<Vec<PathBuf>, BenchError> {
    let top = mnt.join(NAME).join(super::tarball::TOP);
    let mut found = Vec::new();
    for (at, dir) in fs::read_dir(&top).map_err(BenchError::io(&top))?.enumerate() {
        let dir = dir.map_err(BenchError::io(&top))?.path();
        if at % 64 == 0 {
            let first = fs::read_dir(&dir).map_err(BenchError::io(&dir))?.next();
            found.extend(first.transpose().map_err(BenchError::io(&dir))?.map(|e| e.path()));
        }
    }
    Ok(found)
}

fn expect(seen: Seen, tar: &Tarball, seconds: f64) -> Result<f64, BenchError> {
    if seen.names >= tar.files { Ok(seconds) } else { Err(BenchError::Figure("whole tree")) }
}

fn sync(mnt: &Path) -> Result<(), BenchError> {
    let dir = File::open(mnt).map_err(BenchError::io(mnt))?;
    rustix::fs::syncfs(&dir).map_err(BenchError::io(mnt))
}

fn read_file(path: &Path, piece: &mut [u8]) -> Result<u64, BenchError> {
    let mut file = File::open(path).map_err(BenchError::io(path))?;
    let mut total = 0;
    loop {
        match file.read(piece).map_err(BenchError::io(path))? {
            0 => return Ok(total),
            n => total += n as u64,
        }
    }
}

/// Looks at the clock and at the wish to end, once a directory.
struct Watch<'a> {
    keeper: &'a Keeper,
    begin: Instant,
    patience: Duration,
}

impl Watch<'_> {
    fn time<T>(&self, work: impl FnOnce(&Self) -> Result<T, BenchError>) -> Result<(T, f64), BenchError> {
        let begin = Instant::now();
        let done = work(self)?;
        Ok((done, begin.elapsed().as_secs_f64()))
    }

    fn look(&self) -> Result<(), BenchError> {
        self.keeper.check()?;
        if self.begin.elapsed() > self.patience {
            let seconds = self.patience.as_secs();
            return Err(BenchError::TooLong { command: "the source tree".to_owned(), seconds });
        }
        Ok(())
    }

    /// Lists everything below `top`, and either looks at each name or reads each file.
    fn walk(&self, top: &Path, read: bool) -> Result<Seen, BenchError> {
        let mut seen = Seen::default();
        let mut piece = vec![0; PIECE];
        let mut open = vec![top.to_owned()];
        while let Some(dir) = open.pop() {
            self.look()?;
            for entry in fs::read_dir(&dir).map_err(BenchError::io(&dir))? {
                let entry = entry.map_err(BenchError::io(&dir))?;
                let path = entry.path();
                seen.names += 1;
                // The walk looks at every name; a reader knows from the listing what to open.
                let is_dir = if read {
                    entry.file_type().map_err(BenchError::io(&path))?.is_dir()
                } else {
                    entry.metadata().map_err(BenchError::io(&path))?.is_dir()
                };
                if is_dir {
                    open.push(path);
                } else if read {
                    seen.bytes += read_file(&path, &mut piece)?;
                }
            }
        }
        Ok(seen)
    }

    fn remove(&self, dir: &Path) -> Result<(), BenchError> {
        self.look()?;
        for entry in fs::read_dir(dir).map_err(BenchError::io(dir))? {
            let entry = entry.map_err(BenchError::io(dir))?;
            let path = entry.path();
            if entry.file_type().map_err(BenchError::io(&path))?.is_dir() {
                self.remove(&path)?;
            } else {
                fs::remove_file(&path).map_err(BenchError::io(&path))?;
            }
        }
        fs::remove_dir(dir).map_err(BenchError::io(dir))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::mount::tarball;

    /// The four steps leave nothing behind, and notice a tree that is not whole.
    #[test]
    fn a_tree_comes_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.tar");
        let bytes = tarball::write(&path, 100).unwrap();
        let tar = Tarball { path, bytes, files: 100 };
        let keeper = Keeper::default();
        let patience = Duration::from_secs(30);
        let mnt = dir.path().join("mnt");
        fs::create_dir(&mnt).unwrap();
        let step = |step| run(step, &mnt, &tar, &keeper, patience);
        step(TreeStep::Extract).unwrap();
        assert!(!sample(&mnt).unwrap().is_empty());
        step(TreeStep::Walk).unwrap();
        step(TreeStep::Read).unwrap();
        fs::remove_file(sample(&mnt).unwrap().remove(0)).unwrap();
        assert!(step(TreeStep::Read).is_err());
        step(TreeStep::Remove).unwrap();
        assert_eq!(fs::read_dir(&mnt).unwrap().count(), 0);
        assert!(step(TreeStep::Walk).is_err());
    }
}
