//! The order of a run: in each repetition every lower filesystem and every peer in turn, so that what the machine does
//! beside it hits all of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::cells::{Cells, Place, hangs_on};
use super::defaults::{BUDGET, EXTRA_REPETITIONS, Sizes, default_jobs};
use super::fio::{self, Extent};
use super::job::Job;
use super::lower::{Lower, LowerKind};
use super::mounted::Mounted;
use super::peers::{Peer, own_program};
use super::report::{Daemon, PeerInfo, Report, Row};
use super::tree::Tarball;
use super::{tarball, verdicts};
use crate::bench::Progress;
use crate::bench::error::BenchError;
use crate::bench::guard::{Guard, clean};
use crate::bench::keeper::Keeper;
use crate::bench::machine::Machine;

/// Room beyond the files themselves: maps, headers, blocks of small files, journals.
const SPARE: u64 = 2 << 30;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where images, tarball and mounts go: a directory that is made, and removed at the end.
    pub work: PathBuf,
    /// Lower filesystems.
    pub lowers: Vec<LowerKind>,
    /// Who takes part; those that cannot are left out, and that is told.
    pub peers: Vec<Peer>,
    /// Jobs, in order; without them those of [`default_jobs`].
    pub jobs: Option<Vec<Job>>,
    /// Repetitions.
    pub repetitions: u32,
    /// Jobs with a bound alone, when none are given.
    pub quick: bool,
    /// Sizes.
    pub sizes: Sizes,
    /// For the report.
    pub command: String,
}

impl Plan {
    pub(super) fn jobs(&self, lower: LowerKind) -> Vec<Job> {
        self.jobs.clone().unwrap_or_else(|| default_jobs(lower, self.quick))
    }

    /// Repetitions of a job: one that nothing is judged by is not worth as many.
    pub(super) fn repetitions_of(&self, lower: LowerKind, job: Job) -> u32 {
        let whole = self.jobs.is_some() || lower == LowerKind::Own || verdicts::is_judged(lower, job);
        if whole { self.repetitions } else { self.repetitions.min(EXTRA_REPETITIONS) }
    }
}

/// Makes the tarball, if a job needs it.
pub(super) fn tarball(plan: &Plan, jobs: &[Job], dir: &Path) -> Result<Tarball, BenchError> {
    let path = dir.join("tree.tar");
    let files = u64::from(plan.sizes.tar_files);
    let needed = jobs.iter().any(|j| matches!(j, Job::Tree(_)));
    let bytes =
        if needed { tarball::write(&path, plan.sizes.tar_files).map_err(BenchError::io(&path))? } else { 0 };
    Ok(Tarball { path, bytes, files })
}

/// Runs a plan on mounts of its own.
pub fn run(plan: &Plan, keeper: &Keeper, progress: &mut dyn Progress) -> Result<Report, BenchError> {
    if !rustix::process::geteuid().is_root() {
        return Err(BenchError::NotRoot);
    }
    fs::create_dir(&plan.work).map_err(BenchError::io(&plan.work))?;
    let done = guarded(plan, keeper, progress);
    clean(&plan.work);
    keeper.done();
    done
}

fn guarded(plan: &Plan, keeper: &Keeper, progress: &mut dyn Progress) -> Result<Report, BenchError> {
    keeper.guarded_by(Guard::start(&own_program()?, &[&plan.work])?);
    let begin = Instant::now();
    let fio = fio::version(keeper)?;
    let all: Vec<_> = plan.lowers.iter().flat_map(|l| plan.jobs(*l)).collect();
    let tar = tarball(plan, &all, &plan.work)?;
    let room = plan.sizes.file_bytes * 4 + 3 * tar.bytes + SPARE;
    let mut run = Run::new(plan, keeper, &tar);
    for kind in &plan.lowers {
        let lower = Lower::mount(*kind, &plan.work, room, keeper)?;
        run.notes.extend(lower.caveat.as_ref().map(|c| format!("{}: {c}", kind.name())));
        run.lowers.push((*kind, lower));
    }
    progress.begin(run.total());
    for repetition in 1..=plan.repetitions {
        for at in 0..run.lowers.len() {
            for peer in run.peers(at) {
                run.round(repetition, at, peer, progress)?;
            }
        }
    }
    Ok(run.report(fio, begin.elapsed()))
}

/// A run under way.
struct Run<'a> {
    plan: &'a Plan,
    keeper: &'a Keeper,
    tar: &'a Tarball,
    lowers: Vec<(LowerKind, Lower)>,
    cells: Cells,
    daemons: Vec<Daemon>,
    notes: Vec<String>,
    /// Those that did not mount: not tried again.
    broken: Vec<(usize, Peer)>,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Plan, keeper: &'a Keeper, tar: &'a Tarball) -> Self {
        Self {
            plan,
            keeper,
            tar,
            lowers: Vec::new(),
            cells: Cells::default(),
            daemons: Vec::new(),
            notes: Vec::new(),
            broken: Vec::new(),
        }
    }

    /// Those that can take part on a lower filesystem.
    fn peers(&self, at: usize) -> Vec<Peer> {
        let kind = self.lowers[at].0;
        self.plan.peers.iter().copied().filter(|p| p.hindrance(kind).is_none()).collect()
    }

    /// Jobs of the whole run, for its progress.
    fn total(&self) -> u64 {
        let of = |(at, (kind, _)): (usize, &(LowerKind, Lower))| {
            let repetitions =
                self.plan.jobs(*kind).into_iter().map(|j| u64::from(self.plan.repetitions_of(*kind, j)));
            repetitions.sum::<u64>() * self.peers(at).len() as u64
        };
        self.lowers.iter().enumerate().map(of).sum()
    }

    /// One peer, freshly made and mounted, does all jobs of a repetition.
    fn round(
        &mut self,
        repetition: u32,
        at: usize,
        peer: Peer,
        progress: &mut dyn Progress,
    ) -> Result<(), BenchError> {
        let kind = self.lowers[at].0;
        let jobs: Vec<_> = self
            .plan
            .jobs(kind)
            .into_iter()
            .filter(|job| repetition <= self.plan.repetitions_of(kind, *job))
            .filter(|job| self.may_repeat((at, *job, peer)))
            .collect();
        if jobs.is_empty() || self.broken.contains(&(at, peer)) {
            return Ok(());
        }
        let home = self.lowers[at].1.dir.join(peer.name());
        let secrets = self.plan.work.join("secrets");
        let mnt = self.plan.work.join("mnt");
        let keeper = self.keeper;
        progress.step(&format!("{} on {}: mounting", peer.name(), kind.name()), 0);
        match Mounted::new(peer, &home, &mnt, &secrets, keeper) {
            Ok(mounted) => {
                self.jobs((repetition, at, peer), &jobs, &home, &mounted, progress)?;
                self.account(kind, peer, &mounted);
                mounted.unmount()?;
            }
            Err(e) if e.ends_the_run() => return Err(e),
            Err(e) => {
                self.broken.push((at, peer));
                self.notes.push(format!("{} on {} gives no figure any more: {e}", peer.name(), kind.name()));
                for job in jobs {
                    self.cells.skip((at, job, peer), "it did not mount");
                }
            }
        }
        fs::remove_dir_all(&home).map_err(BenchError::io(&home))?;
        // Secrets of this repetition's vaults; the next ones make their own.
        fs::remove_dir_all(&secrets).map_err(BenchError::io(&secrets))
    }

    /// A slow rival's figure does not get better by waiting for it again.
    fn may_repeat(&mut self, at: (usize, Job, Peer)) -> bool {
        if matches!(at.2, Peer::Null | Peer::Envelopefs) || self.cells.spent(at) < BUDGET {
            return true;
        }
        self.cells.skip(at, format!("the job took it more than {} s in all", BUDGET.as_secs()));
        false
    }

    fn jobs(
        &mut self,
        (repetition, at, peer): (u32, usize, Peer),
        jobs: &[Job],
        home: &Path,
        mounted: &Mounted<'_>,
        progress: &mut dyn Progress,
    ) -> Result<(), BenchError> {
        let (kind, lower) = &self.lowers[at];
        let sizes = self.plan.sizes;
        let place = Place {
            extent: Extent {
                dir: mounted.mnt.clone(),
                bytes: sizes.file_bytes,
                seconds: sizes.seconds,
                disk: lower.device.clone().filter(|_| peer != Peer::Null),
            },
            tar: self.tar,
            lower: (*kind != LowerKind::Tmpfs && peer != Peer::Null).then(|| home.to_owned()),
            image: lower.image.clone().filter(|_| lower.caveat.is_none()),
            patience: Duration::from_secs(sizes.patience),
            keeper: self.keeper,
        };
        let mut felled = None;
        for job in jobs {
            let key = (at, *job, peer);
            let times = self.plan.repetitions_of(*kind, *job);
            progress.step(
                &format!("{} on {}: {} ({repetition}/{times})", peer.name(), kind.name(), job.title()),
                1,
            );
            if let Some(why) = place.hindrance(*job)? {
                self.cells.skip(key, why);
                continue;
            }
            if hangs_on(felled, *job) {
                self.cells.skip(key, "a step before it failed");
                continue;
            }
            let (begin, cpu) = (Instant::now(), mounted.cpu_seconds());
            let result = place.run(*job);
            let cpu = mounted.cpu_seconds().zip(cpu).map(|(after, before)| after - before);
            if let (Job::Tree(step), Err(_)) = (job, &result) {
                felled = Some(*step);
            }
            self.cells.take(key, result, begin.elapsed(), cpu)?;
        }
        Ok(())
    }

    fn account(&mut self, lower: LowerKind, peer: Peer, mounted: &Mounted<'_>) {
        let (Some(peak_kib), Some(cpu_seconds)) = (mounted.peak_kib(), mounted.cpu_seconds()) else { return };
        match self.daemons.iter_mut().find(|d| d.lower == lower && d.peer == peer) {
            Some(d) => {
                d.peak_kib = d.peak_kib.max(peak_kib);
                d.cpu_seconds += cpu_seconds;
            }
            None => self.daemons.push(Daemon { lower, peer, peak_kib, cpu_seconds }),
        }
    }

    fn report(mut self, fio: String, took: Duration) -> Report {
        let mut rows = Vec::new();
        for (at, (kind, _)) in self.lowers.iter().enumerate() {
            for job in self.plan.jobs(*kind) {
                let cells = self.peers(at).into_iter().map(|peer| self.cells.cell((at, job, peer)));
                rows.push(Row::new(*kind, job, cells.collect()));
            }
        }
        let there = |p: &Peer| (0..self.lowers.len()).any(|at| self.peers(at).contains(p));
        let peers: Vec<_> = self.plan.peers.iter().copied().filter(there).collect();
        for (kind, _) in &self.lowers {
            let missing = self.plan.peers.iter().filter_map(|p| p.hindrance(*kind).map(|why| (p, why)));
            for (peer, why) in missing {
                self.notes.push(format!("{} on {} is left out: {why}", peer.name(), kind.name()));
            }
        }
        Report {
            machine: Machine::here(),
            command: self.plan.command.clone(),
            fio,
            sizes: self.plan.sizes,
            repetitions: self.plan.repetitions,
            seconds: took.as_secs(),
            peers: peers
                .into_iter()
                .map(|peer| PeerInfo { peer, version: peer.version(self.keeper), settings: peer.settings() })
                .collect(),
            notes: self.notes,
            verdicts: verdicts::judge(&rows, &self.daemons),
            rows,
            daemons: self.daemons,
        }
    }
}
