//! `bench pipeline`: sealing and opening on many threads.

use std::time::Duration;

use clap::Args;

use super::super::error::CliError;
use super::super::exit::Exit;
use super::output::{OutputArgs, Shown};
use crate::bench::{BenchError, pipeline};

#[derive(Debug, Args)]
pub(super) struct PipelineBenchArgs {
    /// Threads, from 1 to this (default: one for each processor).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: Option<u16>,
    /// Interleaved rounds; the medians are shown.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
    /// Milliseconds that each figure of a round is measured for.
    #[arg(long, value_name = "MS", default_value_t = 200, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    milliseconds: u64,
    /// One round of some milliseconds: a look, no measurement.
    #[arg(long, conflicts_with_all = ["repetitions", "milliseconds"])]
    quick: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &PipelineBenchArgs) -> Result<Exit, CliError> {
    args.output.check()?;
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let plan = pipeline::Plan {
        threads: args.threads.map_or(processors.min(64), usize::from),
        rounds: if args.quick { 1 } else { args.repetitions },
        each: Duration::from_millis(if args.quick { 5 } else { args.milliseconds }),
        command: super::command_line(),
    };
    let keeper = super::keeper()?;
    let mut shown = Shown::new();
    let done = pipeline::run(&plan, &keeper, &mut shown);
    drop(shown);
    let report = match done {
        Err(BenchError::Interrupted) => return Ok(Exit::Interrupted),
        other => other.map_err(CliError::Bench)?,
    };
    args.output.write(&report, || report.html())?;
    Ok(Exit::Ok)
}
