//! One job on one mount: what it needs is made, caches are brought into the state that its name says, then it runs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cold::{self, Cold};
use super::fio::Extent;
use super::job::{Access, IoJob, Job, TreeStep};
use super::peers::Peer;
use super::report::Cell;
use super::tree::{self, Tarball};
use crate::bench::error::BenchError;
use crate::bench::keeper::Keeper;
use crate::bench::stats::median;

/// Bytes of a piece, of files that are made or read beside a measurement.
const PIECE: usize = 1 << 20;

/// Everything a job needs to know of the mount that it runs on.
#[derive(Debug)]
pub(super) struct Place<'a> {
    /// Directory of the files.
    pub(super) extent: Extent,
    pub(super) tar: &'a Tarball,
    /// The ciphertext, where it is not in memory.
    pub(super) lower: Option<PathBuf>,
    pub(super) image: Option<PathBuf>,
    /// For a step of the source tree.
    pub(super) patience: Duration,
    pub(super) keeper: &'a Keeper,
}

impl Place<'_> {
    /// Runs a job; gives its figure.
    pub(super) fn run(&self, job: Job) -> Result<f64, BenchError> {
        self.keeper.check()?;
        match job {
            Job::Io(io) => {
                self.prepare(io)?;
                self.extent.run(io, self.keeper)
            }
            Job::Tree(step) => {
                if job.is_cold() {
                    self.cold(tree::sample(&self.extent.dir)?).reach(self.keeper)?;
                }
                tree::run(step, &self.extent.dir, self.tar, self.keeper, self.patience)
            }
        }
    }

    /// Why a job means nothing here.
    pub(super) fn hindrance(&self, job: Job) -> Result<Option<String>, BenchError> {
        let memory = job.is_cold() && cold::is_memory(&self.extent.dir)?;
        Ok(memory.then(|| "the page cache is the storage: nothing can be cold".to_owned()))
    }

    fn cold(&self, files: Vec<PathBuf>) -> Cold {
        Cold { files, lower: self.lower.clone(), image: self.image.clone() }
    }

    fn prepare(&self, job: IoJob) -> Result<(), BenchError> {
        let files = self.extent.files(job);
        if job.access == Access::Write {
            for (path, _) in &files {
                remove(path)?;
            }
            return if job.cold { self.cold(Vec::new()).reach(self.keeper) } else { Ok(()) };
        }
        for (path, len) in &files {
            let whole = fs::metadata(path).is_ok_and(|m| m.len() == *len);
            if !whole {
                make(path, *len, self.keeper)?;
            }
        }
        let paths: Vec<_> = files.into_iter().map(|(path, _)| path).collect();
        if job.cold {
            self.cold(paths).reach(self.keeper)?;
        } else if !job.access.writes() && !job.direct {
            paths.iter().try_for_each(|path| read_through(path, self.keeper))?;
        }
        Ok(())
    }
}

fn remove(path: &Path) -> Result<(), BenchError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(BenchError::io(path)(e)),
        _ => Ok(()),
    }
}

/// A file of bytes that no filesystem stores as a hole or compresses.
fn make(path: &Path, len: u64, keeper: &Keeper) -> Result<(), BenchError> {
    let mut piece = vec![0_u8; PIECE];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for word in piece.chunks_exact_mut(8) {
        // xorshift64 (Marsaglia, 2003)
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    let mut file = File::create(path).map_err(BenchError::io(path))?;
    let mut left = len;
    while left > 0 {
        keeper.check()?;
        let part = usize::try_from(left).map_or(PIECE, |l| l.min(PIECE));
        file.write_all(&piece[..part]).map_err(BenchError::io(path))?;
        left -= part as u64;
    }
    file.sync_all().map_err(BenchError::io(path))
}

fn read_through(path: &Path, keeper: &Keeper) -> Result<(), BenchError> {
    let mut file = File::open(path).map_err(BenchError::io(path))?;
    let mut piece = vec![0_u8; PIECE];
    while file.read(&mut piece).map_err(BenchError::io(path))? > 0 {
        keeper.check()?;
    }
    Ok(())
}

/// What all repetitions gave, by place, job and peer.
#[derive(Debug, Default)]
pub(super) struct Cells(BTreeMap<(usize, Job, Peer), Gathered>);

#[derive(Debug, Default)]
struct Gathered {
    runs: Vec<f64>,
    cpu: Vec<f64>,
    failures: Vec<String>,
    skipped: Option<String>,
    spent: Duration,
}

impl Cells {
    /// Takes in what a repetition gave.
    pub(super) fn take(
        &mut self,
        at: (usize, Job, Peer),
        result: Result<f64, BenchError>,
        spent: Duration,
        cpu: Option<f64>,
    ) -> Result<(), BenchError> {
        let gathered = self.0.entry(at).or_default();
        gathered.spent += spent;
        match result {
            Ok(figure) => {
                gathered.runs.push(figure);
                gathered.cpu.extend(cpu);
            }
            Err(e) if e.ends_the_run() => return Err(e),
            Err(e) => gathered.failures.push(e.to_string()),
        }
        Ok(())
    }

    /// Notes why something is not tried, or not again; the first reason stays.
    pub(super) fn skip(&mut self, at: (usize, Job, Peer), why: impl Into<String>) {
        self.0.entry(at).or_default().skipped.get_or_insert_with(|| why.into());
    }

    /// Time that a job has taken a peer so far; the steps of a source tree count together.
    pub(super) fn spent(&self, at: (usize, Job, Peer)) -> Duration {
        let alike = |job: Job| match (at.1, job) {
            (Job::Tree(_), Job::Tree(_)) => true,
            (mine, other) => mine == other,
        };
        let all = self.0.iter().filter(|(key, _)| key.0 == at.0 && key.2 == at.2 && alike(key.1));
        all.map(|(_, g)| g.spent).sum()
    }

    /// The finished cell.
    pub(super) fn cell(&self, at: (usize, Job, Peer)) -> Cell {
        let Some(g) = self.0.get(&at) else { return Cell::new(at.2, Vec::new()) };
        Cell {
            daemon_cpu_seconds: median(&g.cpu),
            failures: g.failures.clone(),
            skipped: g.skipped.clone(),
            ..Cell::new(at.2, g.runs.clone())
        }
    }
}

/// Whether a job can no longer run since a step before it failed.
pub(super) fn hangs_on(failed: Option<TreeStep>, job: Job) -> bool {
    matches!((failed, job), (Some(_), Job::Tree(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Failures are kept beside figures, an interruption is no failure of the cell, and the steps of a tree share a budget.
    #[test]
    fn results_are_gathered() {
        let mut cells = Cells::default();
        let at = |job| (0, job, Peer::Cryfs);
        let extract = at(Job::Tree(TreeStep::Extract));
        let second = Duration::from_secs(1);
        cells.take(extract, Ok(2.0), second, Some(0.5)).unwrap();
        cells.take(extract, Err(BenchError::Warm("x".into())), second, None).unwrap();
        assert!(cells.take(extract, Err(BenchError::Interrupted), second, None).is_err());
        cells.take(at(Job::Tree(TreeStep::Walk)), Ok(1.0), second, None).unwrap();
        cells.take(at("read-4k".parse().unwrap()), Ok(1.0), second, None).unwrap();
        assert_eq!(cells.spent(extract), 4 * second);
        let cell = cells.cell(extract);
        assert_eq!((cell.median, cell.failures.len(), cell.daemon_cpu_seconds), (Some(2.0), 1, Some(0.5)));
        assert_eq!(cells.cell(at("write-4k".parse().unwrap())).median, None);
    }
}
