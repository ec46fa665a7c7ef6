//! What is measured on a mount.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::error::{BenchError, output};

/// Random I/O touches this part of the file, at most: enough to leave every cache of a mount, soon enough over.
const RANDOM_PART: u64 = 4;

/// The large file, in a mount.
const FILE: &str = "bench.dat";

/// One measurement.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Job {
    /// A new file, written front to back in 1 MiB, up to its fsync.
    SequentialWrite,
    /// The same file, read front to back in 1 MiB, caches dropped before.
    SequentialRead,
    /// Random 4 KiB overwrites of it, up to their fsync.
    RandomWrite,
    /// Random 4 KiB reads, caches dropped before.
    RandomRead,
    /// A tarball of many small files extracted, up to a sync of the filesystem.
    Extract,
}

impl Job {
    /// Every one, in the order they build on each other.
    pub const ALL: [Self; 5] =
        [Self::SequentialWrite, Self::SequentialRead, Self::RandomWrite, Self::RandomRead, Self::Extract];

    /// For a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::SequentialWrite => "write 1 MiB",
            Self::SequentialRead => "read 1 MiB",
            Self::RandomWrite => "random write 4 KiB",
            Self::RandomRead => "random read 4 KiB",
            Self::Extract => "extract tarball",
        }
    }

    /// Unit of its figure.
    pub fn unit(self) -> &'static str {
        match self {
            Self::SequentialWrite | Self::SequentialRead => "MB/s",
            Self::RandomWrite | Self::RandomRead => "IOPS",
            Self::Extract => "s",
        }
    }

    /// Whether a smaller figure is the better one.
    pub fn less_is_better(self) -> bool {
        self == Self::Extract
    }

    /// Runs it in the top of a mount; gives its figure.
    pub(super) fn run(self, mnt: &Path, file_bytes: u64, tarball: &Path) -> Result<f64, BenchError> {
        drop_caches()?;
        match self {
            Self::SequentialWrite => fio(mnt, "write", "1M", file_bytes, file_bytes, Figure::Megabytes),
            Self::SequentialRead => fio(mnt, "read", "1M", file_bytes, file_bytes, Figure::Megabytes),
            Self::RandomWrite => {
                fio(mnt, "randwrite", "4k", file_bytes, file_bytes / RANDOM_PART, Figure::Iops)
            }
            Self::RandomRead => {
                fio(mnt, "randread", "4k", file_bytes, file_bytes / RANDOM_PART, Figure::Iops)
            }
            Self::Extract => extract(mnt, tarball),
        }
    }
}

/// What of fio's report is wanted.
#[derive(Clone, Copy)]
enum Figure {
    Megabytes,
    Iops,
}

fn fio(mnt: &Path, rw: &str, bs: &str, size: u64, io: u64, figure: Figure) -> Result<f64, BenchError> {
    let mut command = Command::new("fio");
    command
        // The whole path: fio joins a directory to those file names only that come behind it.
        .args(["--name=bench", &format!("--filename={}", mnt.join(FILE).display())])
        .args(["--ioengine=psync", "--numjobs=1", "--randrepeat=1", "--end_fsync=1", "--invalidate=0"])
        .args(["--fallocate=none", "--output-format=json"])
        .args([
            format!("--rw={rw}"),
            format!("--bs={bs}"),
            format!("--size={size}"),
            format!("--io_size={io}"),
        ]);
    let text = output(&mut command)?;
    let len = fs::metadata(mnt.join(FILE)).map_err(BenchError::io(&mnt.join(FILE)))?.len();
    if len != size {
        return Err(BenchError::Figure("file of the size asked for in the mount"));
    }
    // Warnings may stand before the report.
    let report = text.find('{').and_then(|at| serde_json::from_str::<serde_json::Value>(&text[at..]).ok());
    let report = report.ok_or(BenchError::Figure("JSON"))?;
    let side = &report["jobs"][0][if rw.ends_with("write") { "write" } else { "read" }];
    match figure {
        Figure::Megabytes => side["bw_bytes"].as_f64().map(|b| b / 1e6).ok_or(BenchError::Figure("bw_bytes")),
        Figure::Iops => side["iops"].as_f64().ok_or(BenchError::Figure("iops")),
    }
}

fn extract(mnt: &Path, tarball: &Path) -> Result<f64, BenchError> {
    let into = mnt.join("extracted");
    fs::create_dir(&into).map_err(BenchError::io(&into))?;
    let begin = Instant::now();
    output(Command::new("tar").arg("-C").arg(&into).arg("-xf").arg(tarball))?;
    output(Command::new("sync").arg("-f").arg(&into))?;
    Ok(begin.elapsed().as_secs_f64())
}

/// So that reads come from the lower filesystem and through the cipher.
fn drop_caches() -> Result<(), BenchError> {
    rustix::fs::sync();
    let control = Path::new("/proc/sys/vm/drop_caches");
    fs::write(control, "3").map_err(BenchError::io(control))
}
