//! `bench kernel`: ciphers on one core.

use std::time::Duration;

use clap::Args;

use super::super::error::CliError;
use super::super::exit::Exit;
use super::output::{OutputArgs, Shown};
use crate::bench::{BenchError, kernel};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  envelopefs bench kernel --html kernel.html      about ten seconds")]
pub(super) struct KernelBenchArgs {
    /// Only this one of the program's kernels (default: all that the processor can run).
    #[arg(long, value_name = "NAME")]
    kernel: Option<String>,
    /// Interleaved rounds; the medians are shown.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
    /// Milliseconds that each figure of a round is measured for.
    #[arg(long, value_name = "MS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    milliseconds: u64,
    /// One round of a millisecond: a look, no measurement.
    #[arg(long, conflicts_with_all = ["repetitions", "milliseconds"])]
    quick: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &KernelBenchArgs) -> Result<Exit, CliError> {
    args.output.check()?;
    let plan = kernel::Plan {
        kernel: args.kernel.clone(),
        rounds: if args.quick { 1 } else { args.repetitions },
        each: Duration::from_millis(if args.quick { 1 } else { args.milliseconds }),
        command: super::command_line(),
    };
    let keeper = super::keeper()?;
    let mut shown = Shown::new();
    let done = kernel::run(&plan, &keeper, &mut shown);
    drop(shown);
    let report = match done {
        Err(BenchError::Interrupted) => return Ok(Exit::Interrupted),
        other => other.map_err(CliError::Bench)?,
    };
    args.output.write(&report, || report.html())?;
    Ok(Exit::Ok)
}
