//! `bench mount`: this filesystem beside others, in one run.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::super::error::CliError;
use super::super::exit::Exit;
use super::output::{OutputArgs, Shown};
use crate::bench::{self, BenchError, Job, LowerKind, Peer, Plan, Report, Sizes};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LowerArg {
    Tmpfs,
    Ext4,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PeerArg {
    Plain,
    Null,
    Envelopefs,
    Gocryptfs,
    Securefs,
    Cryfs,
    Encfs,
    Fscrypt,
}

/// A job, or a set of jobs; `None` stands for the default ones.
#[derive(Clone, Debug)]
struct Jobs(Option<Vec<Job>>);

#[derive(Debug, Args)]
#[command(
    after_help = "Jobs are named by access, request size and conditions: write-1m, read-64k-cold, randread-4k-j4,\n\
    randwrite-4k-direct, randwrite-4k-fsync (j4: four processes; fsync: after each request; cold: caches dropped, and\n\
    looked at); tree stands for tree-extract,tree-walk,tree-read,tree-remove; all for every job there is.\n\n\
    Examples:\n  \
    envelopefs bench mount --html report.html                 about half an hour\n  \
    envelopefs bench mount --quick                            a look\n  \
    envelopefs bench mount --target ~/plain                   a mount of your own; needs no root\n  \
    envelopefs bench mount --peers null,envelopefs --lower tmpfs --jobs randread-4k-cold,tree"
)]
pub(super) struct MountBenchArgs {
    /// Measure in a fresh directory below DIR, removed afterwards, instead of on mounts made for the run.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["lower", "peers"])]
    target: Option<PathBuf>,
    /// Filesystems that hold the ciphertext.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["tmpfs", "ext4"])]
    lower: Vec<LowerArg>,
    /// Who takes part (default: all that are installed).
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',')]
    peers: Vec<PeerArg>,
    /// What is measured (default: a choice for each lower filesystem).
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = parse_jobs)]
    jobs: Vec<Jobs>,
    /// Repetitions; the medians are shown.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    repetitions: Option<u32>,
    /// Small, once, and only what has a bound: a look, no measurement.
    #[arg(long)]
    quick: bool,
    /// MiB of the large file.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(4..=1_048_576))]
    size: Option<u64>,
    /// Files of the source tree.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    files: Option<u32>,
    /// Directory for images, mounts and the tarball (default: that for temporary files).
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

fn parse_jobs(word: &str) -> Result<Jobs, bench::NoSuchJob> {
    if word == "default" { Ok(Jobs(None)) } else { Job::parse_set(word).map(|jobs| Jobs(Some(jobs))) }
}

pub(super) fn run(args: &MountBenchArgs) -> Result<Exit, CliError> {
    args.output.check()?;
    let plan = plan(args)?;
    let keeper = super::keeper()?;
    let mut shown = Shown::new();
    let done = match &args.target {
        Some(dir) => {
            let dir = dir.canonicalize().map_err(CliError::io(dir))?;
            bench::run_target(&plan, &dir, &keeper, &mut shown)
        }
        None => bench::run(&plan, &keeper, &mut shown),
    };
    drop(shown);
    let report = match done {
        Err(BenchError::Interrupted) => return Ok(Exit::Interrupted),
        other => other.map_err(CliError::Bench)?,
    };
    args.output.write(&report, || Report::html(&report))?;
    Ok(if report.has_failures() { Exit::Failure } else { Exit::Ok })
}

fn plan(args: &MountBenchArgs) -> Result<Plan, CliError> {
    let base = args.work.clone().unwrap_or_else(std::env::temp_dir);
    let base = base.canonicalize().map_err(CliError::io(&base))?;
    let mut sizes = if args.quick { Sizes::quick() } else { Sizes::default() };
    sizes.file_bytes = args.size.map_or(sizes.file_bytes, |mib| mib << 20);
    sizes.tar_files = args.files.unwrap_or(sizes.tar_files);
    let given: Option<Vec<Vec<Job>>> = args.jobs.iter().map(|j| j.0.clone()).collect();
    let peers: Vec<_> = args.peers.iter().map(|p| peer(*p)).collect();
    Ok(Plan {
        work: base.join(format!("envelopefs-bench.{}", std::process::id())),
        lowers: args.lower.iter().map(|l| lower(*l)).collect(),
        peers: if peers.is_empty() { Peer::ALL.to_vec() } else { peers },
        jobs: given.map(|sets| unique(sets.concat())).filter(|jobs| !jobs.is_empty()),
        repetitions: args.repetitions.unwrap_or(if args.quick { 1 } else { 5 }),
        quick: args.quick,
        sizes,
        command: super::command_line(),
    })
}

/// Each job once, where it stands first.
fn unique(jobs: Vec<Job>) -> Vec<Job> {
    let mut seen = Vec::new();
    for job in jobs {
        if !seen.contains(&job) {
            seen.push(job);
        }
    }
    seen
}

fn lower(arg: LowerArg) -> LowerKind {
    match arg {
        LowerArg::Tmpfs => LowerKind::Tmpfs,
        LowerArg::Ext4 => LowerKind::Ext4,
    }
}

fn peer(arg: PeerArg) -> Peer {
    match arg {
        PeerArg::Plain => Peer::Plain,
        PeerArg::Null => Peer::Null,
        PeerArg::Envelopefs => Peer::Envelopefs,
        PeerArg::Gocryptfs => Peer::Gocryptfs,
        PeerArg::Securefs => Peer::Securefs,
        PeerArg::Cryfs => Peer::Cryfs,
        PeerArg::Encfs => Peer::Encfs,
        PeerArg::Fscrypt => Peer::Fscrypt,
    }
}
