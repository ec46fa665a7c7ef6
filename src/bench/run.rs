//! The order of a run: for each lower filesystem and repetition every peer in turn, so that what the machine does
//! beside it hits all of them.

use std::fs;
use std::path::PathBuf;

use super::error::BenchError;
use super::jobs::Job;
use super::lower::{Lower, LowerKind};
use super::peers::{Mounted, Peer};
use super::report::{Memory, Report, Row};
use super::tarball;

/// Room beyond the files themselves: maps, headers, blocks of small files, journals.
const SPARE: u64 = 2 << 30;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where images, tarball and mounts go: an existing directory.
    pub work: PathBuf,
    /// Lower filesystems, one after the other.
    pub lowers: Vec<LowerKind>,
    /// Who takes part; those that are not installed are left out.
    pub peers: Vec<Peer>,
    /// Jobs, in the order of [`Job::ALL`]; reads and random writes need the sequential write.
    pub jobs: Vec<Job>,
    /// Repetitions of everything.
    pub repetitions: u32,
    /// Bytes of the large file.
    pub file_bytes: u64,
    /// Files in the tarball.
    pub tar_files: u32,
}

/// Runs a plan. `progress` hears what is measured now.
pub fn run(plan: &Plan, progress: &mut dyn FnMut(&str)) -> Result<Report, BenchError> {
    if !rustix::process::geteuid().is_root() {
        return Err(BenchError::NotRoot);
    }
    let peers: Vec<_> = plan.peers.iter().copied().filter(|p| p.is_installed()).collect();
    let tar = plan.work.join("tree.tar");
    let mut tar_bytes = 0;
    if plan.jobs.contains(&Job::Extract) {
        progress("writing the tarball");
        tar_bytes = tarball::write(&tar, plan.tar_files).map_err(BenchError::io(&tar))?;
    }
    let mut report = Report::default();
    for kind in &plan.lowers {
        let room = plan.file_bytes + plan.file_bytes / 8 + 3 * tar_bytes + SPARE;
        let lower = Lower::mount(*kind, &plan.work, room)?;
        let mut figures = vec![vec![Vec::new(); peers.len()]; plan.jobs.len()];
        let mut peaks = vec![0; peers.len()];
        for repetition in 1..=plan.repetitions {
            for (column, peer) in peers.iter().enumerate() {
                let home = lower.dir.join(peer.name());
                let mnt = plan.work.join("mnt");
                let mounted = Mounted::new(*peer, &home, &mnt, &plan.work.join("secrets"))?;
                for (row, job) in plan.jobs.iter().enumerate() {
                    progress(&format!(
                        "{}: {}, {} ({repetition}/{})",
                        kind.name(),
                        peer.name(),
                        job.name(),
                        plan.repetitions
                    ));
                    figures[row][column].push(job.run(&mnt, plan.file_bytes, &tar)?);
                }
                peaks[column] = mounted.peak_kib().unwrap_or(0).max(peaks[column]);
                mounted.unmount()?;
                fs::remove_dir_all(&home).map_err(BenchError::io(&home))?;
                // Secrets of this repetition's vaults; the next ones make their own.
                let secrets = plan.work.join("secrets");
                fs::remove_dir_all(&secrets).map_err(BenchError::io(&secrets))?;
            }
        }
        for (job, runs) in plan.jobs.iter().zip(figures) {
            report.rows.push(Row::new(*kind, *job, peers.iter().copied().zip(runs).collect()));
        }
        let memory = peers.iter().zip(peaks).filter(|(_, peak)| *peak > 0);
        report.memory.extend(memory.map(|(peer, peak_kib)| Memory { lower: *kind, peer: *peer, peak_kib }));
    }
    Ok(report)
}
