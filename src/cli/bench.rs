//! `bench mount`: this filesystem beside its peers, in one run.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::error::CliError;
use super::exit::Exit;
use crate::bench::{self, Job, LowerKind, Peer, Plan};

/// The bound that the design sets for the daemon.
const MEMORY_LIMIT_KIB: u64 = 200 << 10;

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Measures real mounts with fio and tar: this program, gocryptfs, securefs, and a plain directory. Needs root.
    Mount(MountBenchArgs),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LowerArg {
    Tmpfs,
    Ext4,
}

#[derive(Debug, Args)]
struct MountBenchArgs {
    /// Directory for images and mounts (default: a new one in the directory for temporary files).
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Filesystems that hold the ciphertext.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["tmpfs", "ext4"])]
    lower: Vec<LowerArg>,
    /// Only this program and the plain directory.
    #[arg(long)]
    no_peers: bool,
    /// Repetitions; the medians are shown.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repetitions: u32,
    /// MiB of the large file.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    size: u64,
    /// Files in the tarball.
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    files: u32,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &BenchArgs) -> Result<Exit, CliError> {
    let What::Mount(args) = &args.what;
    let (work, made) = match &args.work {
        Some(dir) => (dir.canonicalize().map_err(CliError::io(dir))?, false),
        None => (temporary()?, true),
    };
    let plan = Plan {
        work: work.clone(),
        lowers: args.lower.iter().map(|l| lower(*l)).collect(),
        peers: Peer::ALL
            .into_iter()
            .filter(|p| !args.no_peers || matches!(p, Peer::Plain | Peer::Envelopefs))
            .collect(),
        jobs: Job::ALL.to_vec(),
        repetitions: args.repetitions,
        file_bytes: args.size << 20,
        tar_files: args.files,
    };
    for peer in plan.peers.iter().filter(|p| !p.is_installed()) {
        eprintln!("{} is not installed: left out", peer.name());
    }
    let tell = std::io::stderr().is_terminal() || !args.json;
    let report = bench::run(&plan, &mut |what| {
        if tell {
            eprintln!("{what}");
        }
    });
    if made {
        let _ = std::fs::remove_dir_all(&work);
    }
    let report = report.map_err(CliError::Bench)?;
    if args.json {
        println!("{}", super::json(&report));
    } else {
        print!("{report}");
    }
    let heavy = |m: &&bench::Memory| m.peer == Peer::Envelopefs && m.peak_kib >= MEMORY_LIMIT_KIB;
    if let Some(memory) = report.memory.iter().find(heavy) {
        eprintln!("the daemon took {} MiB, more than 200", memory.peak_kib >> 10);
        return Ok(Exit::Failure);
    }
    Ok(Exit::Ok)
}

fn lower(arg: LowerArg) -> LowerKind {
    match arg {
        LowerArg::Tmpfs => LowerKind::Tmpfs,
        LowerArg::Ext4 => LowerKind::Ext4,
    }
}

/// A new directory of this process.
fn temporary() -> Result<PathBuf, CliError> {
    let dir = std::env::temp_dir().join(format!("envelopefs-bench.{}", std::process::id()));
    std::fs::create_dir(&dir).map_err(CliError::io(&dir))?;
    dir.canonicalize().map_err(CliError::io(&dir))
}
