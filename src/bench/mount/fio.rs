//! One run of fio, and what its report says.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::job::{Access, Block, IoJob};
use super::lower::flushes;
use crate::bench::error::BenchError;
use crate::bench::keeper::Keeper;

/// Random I/O touches this part of a file, at most: enough to leave every cache of a mount, soon enough over.
const RANDOM_PART: u64 = 4;
/// Processes of a job with several.
const PROCESSES: u64 = 4;
/// Beyond the time that fio may run: its start, and a sync at the end that takes long.
const SPARE: Duration = Duration::from_secs(90);

/// The files of a job, and how long it may take.
#[derive(Clone, Debug)]
pub(super) struct Extent {
    /// Directory of the files.
    pub(super) dir: PathBuf,
    /// Bytes of all files of a job together.
    pub(super) bytes: u64,
    /// After this long fio issues nothing more; what was done until then is the figure.
    pub(super) seconds: u64,
    /// The disk below, whose flushes are counted: an fsync that does not reach it is none.
    pub(super) disk: Option<String>,
}

impl Extent {
    /// The files of a job with their lengths.
    pub(super) fn files(&self, job: IoJob) -> Vec<(PathBuf, u64)> {
        let count = if job.four { PROCESSES } else { 1 };
        (0..count).map(|i| (self.dir.join(format!("bench.{count}.{i}.dat")), self.bytes / count)).collect()
    }

    /// The command.
    fn command(&self, job: IoJob) -> Command {
        let count = if job.four { PROCESSES } else { 1 };
        let bytes = self.bytes / count;
        let io = if job.access.is_random() { (bytes / RANDOM_PART).max(job.block.bytes()) } else { bytes };
        let mut command = Command::new("fio");
        command
            .arg("--name=bench")
            .arg(format!("--directory={}", self.dir.display().to_string().replace(':', "\\:")))
            .arg(format!("--filename_format=bench.{count}.$jobnum.dat"))
            .args([
                "--ioengine=psync",
                "--randrepeat=1",
                "--end_fsync=1",
                "--invalidate=0",
                "--fallocate=none",
            ])
            .args(["--group_reporting", "--thread", "--output-format=json"])
            .arg(format!("--numjobs={count}"))
            .arg(format!("--rw={}", job.access.word()))
            .arg(format!("--bs={}", job.block.bytes()))
            .arg(format!("--size={bytes}"))
            .arg(format!("--io_size={io}"))
            .arg(format!("--runtime={}", self.seconds))
            .arg(format!("--direct={}", u8::from(job.direct)))
            .arg(format!("--fsync={}", u8::from(job.fsync)))
            .stdin(Stdio::null());
        command
    }

    /// Runs a job; gives its figure in the unit of the job. The files of everything but a sequential write must be there.
    pub(super) fn run(&self, job: IoJob, keeper: &Keeper) -> Result<f64, BenchError> {
        let flushes = || self.disk.as_deref().filter(|_| job.access.writes()).map(flushes).transpose();
        let before = flushes()?;
        let text = keeper.output(&mut self.command(job), Duration::from_secs(self.seconds) + SPARE)?;
        let flushed = flushes()?.zip(before).map(|(after, before)| after - before);
        for (path, len) in self.files(job) {
            let found = std::fs::metadata(&path).map_err(BenchError::io(&path))?.len();
            // A sequential write that ran out of time has a shorter file.
            if found != len && job.access != Access::Write {
                return Err(BenchError::Figure("file of the size asked for in the mount"));
            }
        }
        if let Some(flushed) = flushed {
            durable(&text, job, flushed)?;
        }
        figure(&text, job)
    }
}

/// What the report says of the processes together.
fn jobs(text: &str) -> Result<Value, BenchError> {
    // Warnings may stand before the report.
    let report = text.find('{').and_then(|at| serde_json::from_str::<Value>(text.get(at..)?).ok());
    report.and_then(|r| r.get("jobs")?.get(0).cloned()).ok_or(BenchError::Figure("JSON"))
}

/// Syncs that each waited for the one before flush the disk as often, give or take what falls together; the one that ends
/// any other job of writes flushes it once.
fn durable(text: &str, job: IoJob, flushed: u64) -> Result<(), BenchError> {
    let (syncs, least) = if job.fsync {
        let syncs = jobs(text)?["sync"]["total_ios"].as_u64().ok_or(BenchError::Figure("sync"))?;
        (syncs, syncs / 2)
    } else {
        (1, 1)
    };
    if flushed < least { Err(BenchError::NotDurable { syncs, flushed }) } else { Ok(()) }
}

/// The figure of a report: MB/s, or requests a second.
fn figure(text: &str, job: IoJob) -> Result<f64, BenchError> {
    let all = jobs(text)?;
    if all["error"].as_i64() != Some(0) {
        return Err(BenchError::Figure("success: a request failed"));
    }
    let side = &all[if job.access.writes() { "write" } else { "read" }];
    let iops = job.block == Block::K4 && (job.access.is_random() || job.fsync);
    let value = if iops { side["iops"].as_f64() } else { side["bw_bytes"].as_f64().map(|b| b / 1e6) };
    value.filter(|v| *v > 0.0).ok_or(BenchError::Figure(if iops { "iops" } else { "bw_bytes" }))
}

/// fio's version.
pub(super) fn version(keeper: &Keeper) -> Result<String, BenchError> {
    let text = keeper.output(Command::new("fio").arg("--version").stdin(Stdio::null()), SPARE)?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::mount::job::Job;

    fn io(name: &str) -> IoJob {
        match name.parse() {
            Ok(Job::Io(job)) => job,
            other => panic!("{name}: {other:?}"),
        }
    }

    /// A report as fio 3.33 writes it, cut down; a warning stands before it.
    const REPORT: &str = r#"fio: a warning
{ "fio version" : "fio-3.33", "jobs" : [ { "jobname" : "bench", "error" : 0,
  "read" : { "io_bytes" : 0, "bw_bytes" : 0, "iops" : 0.0 },
  "sync" : { "total_ios" : 1000 },
  "write" : { "io_bytes" : 134217728, "bw_bytes" : 1234567890, "iops" : 301408.2 } } ] }"#;

    /// The right side of a report is read, in the job's unit.
    #[test]
    fn figures_are_found() {
        assert!((figure(REPORT, io("write-1m")).unwrap() - 1_234.567_89).abs() < 1e-6);
        assert!((figure(REPORT, io("randwrite-4k-j4")).unwrap() - 301_408.2).abs() < 1e-6);
        assert!((figure(REPORT, io("randwrite-64k")).unwrap() - 1_234.567_89).abs() < 1e-6);
    }

    /// What was not measured is an error, never a zero.
    #[test]
    fn a_missing_figure_is_an_error() {
        assert!(figure(REPORT, io("read-1m")).is_err());
        assert!(figure("", io("write-1m")).is_err());
        assert!(figure("{\"jobs\": []}", io("write-1m")).is_err());
        let failed = REPORT.replace("\"error\" : 0", "\"error\" : 5");
        assert!(figure(&failed, io("write-1m")).is_err());
    }

    /// An fsync that leaves the disk alone is found out.
    #[test]
    fn a_sync_without_flushes_is_none() {
        durable(REPORT, io("randwrite-4k-fsync"), 990).unwrap();
        let error = durable(REPORT, io("randwrite-4k-fsync"), 3).unwrap_err().to_string();
        assert!(error.contains("1000") && error.contains('3'), "{error}");
        durable(REPORT, io("randwrite-4k"), 1).unwrap();
        assert!(durable(REPORT, io("randwrite-4k"), 0).is_err());
    }

    /// Four processes share the bytes of one; random access touches a quarter.
    #[test]
    fn the_command_says_what_the_job_says() {
        let extent = Extent { dir: "/m:nt".into(), bytes: 64 << 20, seconds: 2, disk: None };
        let words = |name| format!("{:?}", extent.command(io(name)));
        let four = words("randread-4k-j4-direct");
        for word in [
            "--numjobs=4",
            "--size=16777216\"",
            "--io_size=4194304\"",
            "--direct=1",
            "--fsync=0",
            "--bs=4096\"",
        ] {
            assert!(four.contains(word), "{word}: {four}");
        }
        assert!(
            words("write-1m-fsync").contains("--fsync=1") && words("write-1m").contains("--io_size=67108864")
        );
        assert!(four.contains(r"--directory=/m\\:nt"), "{four}");
        assert_eq!(extent.files(io("read-4k-j4")).len(), 4);
        assert_eq!(extent.files(io("read-4k"))[0].1, 64 << 20);
    }
}
