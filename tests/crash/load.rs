//! The workloads, each with its own way to tell what must be there after a cut.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::Advice;

use crate::disk::Disk;
use crate::files::{self, Step};
use crate::git::Git;
use crate::keys::Keys;
use crate::model::{Findings, Moment};
use crate::random::Random;
use crate::sqlite::Sqlite;
use crate::target::{Place, Target};
use crate::work::{Work, read_tree};

/// Events of a recording after which a workload ends early: 4 KiB of memory each.
const MOST_EVENTS: usize = 100_000;
/// Works of one workload that go on at the same time.
const WORKERS: usize = 2;

/// What a workload works with.
pub(crate) struct Bench<'a> {
    pub(crate) disk: &'a Disk,
    pub(crate) place: &'a Place,
    pub(crate) target: Target,
    pub(crate) until: Instant,
}

impl Bench<'_> {
    /// Whether it is time to end.
    pub(crate) fn is_over(&self) -> bool {
        Instant::now() > self.until || self.disk.now() > MOST_EVENTS
    }
}

/// A workload.
pub(crate) trait Load {
    /// Makes what the recording begins with. Mounts what it needs.
    fn prepare(&mut self, bench: &Bench);
    /// Works until the time is over; all is unmounted again then.
    fn work(&mut self, bench: &Bench);
    /// Compares what is in the mount with what was acknowledged before the cut.
    fn judge(&self, cut: Moment, mnt: &Path) -> Findings;
    /// Whether the keys lie on the disk too.
    fn keys_inside(&self) -> bool {
        false
    }
}

/// The names of all workloads.
pub(crate) const NAMES: &[&str] =
    &["overwrites", "appends", "editors", "space", "trees", "fresh", "sqlite", "git", "keys"];

/// A workload by its name.
pub(crate) fn named<'a>(name: &str, disk: &'a Disk, seed: u64) -> Box<dyn Load + 'a> {
    let files = |step: Step| Box::new(Files::new(disk, step, seed));
    match name {
        "overwrites" => files(files::overwrites),
        "appends" => files(files::appends),
        "editors" => files(files::editors),
        "space" => files(files::space),
        "trees" => files(files::trees),
        "fresh" => files(files::fresh),
        "sqlite" => Box::new(Sqlite::new(disk, seed)),
        "git" => Box::new(Git::new(disk, seed)),
        "keys" => Box::new(Keys::new(disk, seed)),
        _ => panic!("no workload {name}, there are {NAMES:?}"),
    }
}

/// Random operations on files, by several threads, with their models.
struct Files<'a> {
    disk: &'a Disk,
    step: Step,
    seed: u64,
    works: Vec<(Work<'a>, Random)>,
}

impl<'a> Files<'a> {
    fn new(disk: &'a Disk, step: Step, seed: u64) -> Self {
        Self { disk, step, seed, works: Vec::new() }
    }
}

impl Load for Files<'_> {
    fn prepare(&mut self, bench: &Bench) {
        let mounted = bench.target.mount(bench.place).unwrap();
        for i in 0..WORKERS {
            let mut random = Random::new(self.seed + i as u64);
            let mut work = Work::new(self.disk, bench.place.mnt.join(format!("work{i}")));
            files::prepare(&mut work, &mut random);
            work.close_all();
            work.settle();
            self.works.push((work, random));
        }
        mounted.unmount().unwrap();
    }

    fn work(&mut self, bench: &Bench) {
        let (start, until) = (Instant::now(), bench.until);
        // Two mounts: their end, and what is settled between them, are cut too.
        for phase in 1..=2 {
            let mounted = bench.target.mount(bench.place).unwrap();
            let phase = Bench { until: start + (until - start) * phase / 2, ..*bench };
            while_written_back(bench.place, || {
                thread::scope(|scope| {
                    for (work, random) in &mut self.works {
                        let (phase, step) = (&phase, self.step);
                        scope.spawn(move || {
                            while !phase.is_over() {
                                step(work, random);
                            }
                            work.close_all();
                        });
                    }
                });
            });
            mounted.unmount().unwrap();
        }
    }

    fn judge(&self, cut: Moment, mnt: &Path) -> Findings {
        let mut findings = Findings::default();
        for (work, _) in &self.works {
            let tree = read_tree(&mnt.join(work.top().file_name().unwrap()));
            findings.add(work.model.judge(cut, &tree));
        }
        findings
    }
}

/// Starts the writing back of random lower files all the while, as the kernel does of files that were dirty for half a
/// minute: so that what nobody synced is partly on the disk, in any order.
pub(crate) fn while_written_back(place: &Place, work: impl FnOnce()) {
    /// Ends the thread also where `work` panics: the scope waits for it.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = Over(&over);
        scope.spawn(|| {
            let mut random = Random::new(1);
            while !over.load(Ordering::Relaxed) {
                let mut files = Vec::new();
                lower_files(&place.vault(), &mut files);
                for _ in 0..3 {
                    let Some(path) = files.get(random.index(files.len())) else { break };
                    if let Ok(file) = File::open(path) {
                        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
                    }
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        work();
    });
}

fn lower_files(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => lower_files(&entry.path(), files),
            Ok(kind) if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
}

/// Everything below `top` must read, whatever it holds.
pub(crate) fn all_reads(top: &Path) -> Findings {
    let mut findings = Findings::default();
    let tree = read_tree(top);
    for (path, listed) in tree.dirs {
        if let Err(why) = listed {
            findings.dir(format!("{}: {why}", path.display()));
        }
    }
    for (path, read) in tree.files {
        if let Some(why) = read.refused {
            findings.eio(1, format!("{}: {why}", path.display()));
        } else if !read.failed.is_empty() {
            findings.eio(read.failed.len(), format!("{}: blocks {:?}", path.display(), read.failed));
        }
    }
    findings
}
