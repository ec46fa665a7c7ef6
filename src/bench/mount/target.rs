//! `bench mount --target`: the jobs in a fresh directory of a mount that somebody else made.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::cells::{Cells, Place, hangs_on};
use super::fio::{self, Extent};
use super::job::Job;
use super::lower::LowerKind;
use super::peers::Peer;
use super::report::{PeerInfo, Report, Row};
use super::run::{Plan, tarball};
use crate::bench::Progress;
use crate::bench::error::BenchError;
use crate::bench::guard::Guard;
use crate::bench::keeper::Keeper;
use crate::bench::machine::Machine;
use crate::bench::mount::peers::own_program;

/// Measures `target`, an existing directory. The tarball lies in the plan's working directory, which is made and removed.
pub fn run(
    plan: &Plan,
    target: &Path,
    keeper: &Keeper,
    progress: &mut dyn Progress,
) -> Result<Report, BenchError> {
    fs::create_dir(&plan.work).map_err(BenchError::io(&plan.work))?;
    let dir = target.join(format!("envelopefs-bench-files.{}", std::process::id()));
    let done = fs::create_dir(&dir).map_err(BenchError::io(&dir)).and_then(|()| {
        keeper.guarded_by(Guard::start(&own_program()?, &[&dir, &plan.work])?);
        let measured = measure(plan, target, &dir, keeper, progress);
        let removed = fs::remove_dir_all(&dir).map_err(BenchError::io(&dir));
        measured.and_then(|report| removed.map(|()| report))
    });
    let _ = fs::remove_dir_all(&plan.work);
    keeper.done();
    done
}

fn measure(
    plan: &Plan,
    target: &Path,
    dir: &Path,
    keeper: &Keeper,
    progress: &mut dyn Progress,
) -> Result<Report, BenchError> {
    let begin = Instant::now();
    let fio = fio::version(keeper)?;
    let (kind, peer) = (LowerKind::Own, Peer::Target);
    let jobs = plan.jobs(kind);
    let tar = tarball(plan, &jobs, &plan.work)?;
    let sizes = plan.sizes;
    let mut cells = Cells::default();
    progress.begin(jobs.len() as u64 * u64::from(plan.repetitions));
    for repetition in 1..=plan.repetitions {
        let home = dir.join(repetition.to_string());
        fs::create_dir(&home).map_err(BenchError::io(&home))?;
        let place = Place {
            extent: Extent { dir: home.clone(), bytes: sizes.file_bytes, seconds: sizes.seconds, disk: None },
            tar: &tar,
            lower: None,
            image: None,
            patience: Duration::from_secs(sizes.patience),
            keeper,
        };
        let mut felled = None;
        for job in &jobs {
            let key = (0, *job, peer);
            progress.step(&format!("{} ({repetition}/{})", job.title(), plan.repetitions), 1);
            if let Some(why) = place.hindrance(*job)? {
                cells.skip(key, why);
                continue;
            }
            if hangs_on(felled, *job) {
                cells.skip(key, "a step before it failed");
                continue;
            }
            let begin = Instant::now();
            let result = place.run(*job);
            if let (Job::Tree(step), Err(_)) = (job, &result) {
                felled = Some(*step);
            }
            cells.take(key, result, begin.elapsed(), None)?;
        }
        fs::remove_dir_all(&home).map_err(BenchError::io(&home))?;
    }
    let rows = jobs.iter().map(|job| Row::new(kind, *job, vec![cells.cell((0, *job, peer))])).collect();
    Ok(Report {
        machine: Machine::here(),
        command: plan.command.clone(),
        fio,
        sizes,
        repetitions: plan.repetitions,
        seconds: begin.elapsed().as_secs(),
        peers: vec![PeerInfo { peer, version: filesystem_of(target), settings: peer.settings() }],
        notes: vec![
            "Of a mount made elsewhere only its own page cache can be looked at, not what lies below it."
                .into(),
        ],
        rows,
        daemons: Vec::new(),
        verdicts: Vec::new(),
    })
}

/// Type and source of the mount that holds `path`.
fn filesystem_of(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| PathBuf::from(path));
    let mounts = crate::fuse::mountinfo().unwrap_or_default();
    let best = mounts
        .iter()
        .filter(|m| path.starts_with(&m.mount_point))
        .max_by_key(|m| m.mount_point.as_os_str().len());
    best.map_or_else(|| "unknown".to_owned(), |m| format!("{} of {}", m.fstype, m.source.display()))
}
