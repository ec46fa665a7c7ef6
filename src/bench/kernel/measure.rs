//! The order of the measurement: in each round every contender in every size, so that noise hits all of them.

use std::time::{Duration, Instant};

use super::batch::{BLOCKS, Batch};
use super::clock::{self, Took};
use super::contenders::{Contender, open_each, others, prove};
use super::ours;
use super::report::{Figure, Report};
use crate::bench::error::BenchError;
use crate::bench::keeper::Keeper;
use crate::bench::machine::Machine;
use crate::bench::stats::median;
use crate::bench::{Progress, verdict::Verdict};

/// Bytes of a block.
pub(super) const SIZES: [usize; 3] = [512, 4096, 65_536];
/// The size that files are encrypted in.
pub(super) const FILE_BLOCK: usize = 4096;
/// How many times the crate's speed the best kernel shall have, in spans of file blocks: sealing, opening.
const BOUNDS: [f64; 2] = [2.8, 3.2];

/// What to measure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// One of this program's kernels; without it all that the processor can run.
    pub kernel: Option<String>,
    /// Rounds.
    pub rounds: u32,
    /// How long a figure of a round is measured.
    pub each: Duration,
    /// For the report.
    pub command: String,
}

/// One thing that is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Case {
    block: usize,
    span: bool,
    open: bool,
}

/// Proves every contender, then measures.
pub fn run(plan: &Plan, keeper: &Keeper, progress: &mut dyn Progress) -> Result<Report, BenchError> {
    let mut makers = others();
    makers.extend(ours::makers(plan.kernel.as_deref())?);
    let key: [u8; 32] = crate::crypto::random::array();
    let mut contenders = Vec::new();
    for maker in &makers {
        keeper.check()?;
        prove(maker)?;
        contenders.push(maker(&key)?);
    }
    let mut cases = Vec::new();
    for open in [false, true] {
        for block in SIZES {
            cases.extend([false, true].map(|span| Case { block, span, open }));
        }
    }
    progress.begin(u64::from(plan.rounds) * cases.len() as u64);
    let mut runs = vec![vec![Vec::new(); contenders.len()]; cases.len()];
    for round in 1..=plan.rounds {
        for (case, runs) in cases.iter().zip(&mut runs) {
            progress.step(&format!("round {round}/{}", plan.rounds), 1);
            for (contender, runs) in contenders.iter().zip(runs) {
                keeper.check()?;
                runs.push(measure(contender.as_ref(), *case, plan.each)?);
            }
        }
    }
    let figures = cases.iter().zip(runs).flat_map(|(case, runs)| {
        let each =
            contenders.iter().zip(runs).map(|(contender, runs)| figure(contender.as_ref(), *case, &runs));
        each.collect::<Vec<_>>()
    });
    let figures: Vec<_> = figures.collect();
    let verdicts = judge(&figures);
    Ok(Report {
        machine: Machine::here(),
        command: plan.command.clone(),
        rounds: plan.rounds,
        proved: makers.len(),
        figures,
        verdicts,
    })
}

/// The middle one of many batches. What a batch needs is made beside the clock.
fn measure(contender: &dyn Contender, case: Case, each: Duration) -> Result<(f64, Option<f64>), BenchError> {
    let fresh = {
        let mut batch = Batch::new(case.block);
        if case.open {
            contender.seal_span(&mut batch);
        }
        batch
    };
    let mut batch = fresh.clone();
    let until = Instant::now() + each;
    let (mut seconds, mut ticks) = (Vec::new(), Vec::new());
    let mut warm = false;
    while Instant::now() < until || seconds.is_empty() {
        batch.data.copy_from_slice(&fresh.data);
        let (authentic, took) = once(contender, case, &mut batch);
        if !authentic {
            return Err(BenchError::Wrong {
                contender: contender.name().to_owned(),
                what: "a block did not open".to_owned(),
            });
        }
        // The first time caches and predictors are cold.
        if std::mem::replace(&mut warm, true) {
            seconds.push(took.seconds);
            ticks.extend(took.ticks.map(whole));
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "two megabytes")]
    let bytes = (case.block * BLOCKS) as f64;
    let rate = bytes / 1e9 / median(&seconds).unwrap_or(f64::INFINITY);
    Ok((rate, median(&ticks).map(|t| t / bytes)))
}

fn once(contender: &dyn Contender, case: Case, batch: &mut Batch) -> (bool, Took) {
    clock::time(|| match (case.open, case.span) {
        (false, true) => {
            contender.seal_span(batch);
            true
        }
        (false, false) => {
            batch.blocks().for_each(|mut b| contender.seal(&mut b));
            true
        }
        (true, true) => contender.open_span(batch),
        (true, false) => open_each(contender, batch),
    })
}

#[expect(clippy::cast_precision_loss, reason = "microseconds")]
fn whole(ticks: u64) -> f64 {
    ticks as f64
}

fn figure(contender: &dyn Contender, case: Case, runs: &[(f64, Option<f64>)]) -> Figure {
    let rates: Vec<_> = runs.iter().map(|r| r.0).collect();
    let ticks: Vec<_> = runs.iter().filter_map(|r| r.1).collect();
    Figure {
        contender: contender.name().to_owned(),
        ours: contender.is_ours(),
        operation: if case.open { "open" } else { "seal" },
        block: case.block,
        blocks_a_call: if case.span { BLOCKS } else { 1 },
        gb_per_second: median(&rates).unwrap_or(0.0),
        tsc_ticks_per_byte: median(&ticks),
        runs: rates,
    }
}

/// The best kernel in spans of file blocks against the crate.
fn judge(figures: &[Figure]) -> Vec<Verdict> {
    let judged = ["seal", "open"].into_iter().zip(BOUNDS);
    judged
        .map(|(operation, wanted)| {
            let here =
                |f: &&Figure| f.operation == operation && f.block == FILE_BLOCK && f.blocks_a_call == BLOCKS;
            let best = figures.iter().filter(here).filter(|f| f.ours);
            let best = best.max_by(|a, b| a.gb_per_second.total_cmp(&b.gb_per_second));
            let base = figures.iter().filter(here).find(|f| f.contender == super::contenders::CRATE);
            let ratio = best.zip(base).map(|(best, base)| best.gb_per_second / base.gb_per_second);
            let name = best.map_or("no kernel", |b| b.contender.as_str());
            Verdict::at_least(
                format!("{operation} blocks of 4 KiB, one core, {name}"),
                Some("the aes-gcm-siv crate".to_owned()),
                ratio,
                wanted,
            )
        })
        .collect()
}

/// Makers of everyone, for tests.
#[cfg(test)]
fn everyone() -> Vec<super::contenders::Maker> {
    let mut all = others();
    all.extend(ours::makers(None).expect("kernels of this processor"));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Silent;
    impl Progress for Silent {
        fn begin(&mut self, _: u64) {}
        fn step(&mut self, _: &str, _: u64) {}
    }

    fn plan(kernel: Option<&str>) -> Plan {
        Plan {
            kernel: kernel.map(str::to_owned),
            rounds: 1,
            each: Duration::from_micros(10),
            command: "envelopefs bench kernel".to_owned(),
        }
    }

    /// Everyone has a figure in every size, by one call and by many, and the bounds are judged.
    #[test]
    fn a_quick_run_has_every_figure() {
        everyone().iter().try_for_each(prove).unwrap();
        let report = run(&plan(None), &Keeper::default(), &mut Silent).unwrap();
        assert_eq!(report.figures.len(), everyone().len() * SIZES.len() * 2 * 2);
        assert!(report.figures.iter().all(|f| f.gb_per_second > 0.0 && f.runs.len() == 1));
        assert!(report.verdicts.iter().all(|v| v.figure.is_some()));
        let text = report.to_string();
        for word in ["| seal 4 KiB", "aes-gcm-siv", "aws-lc gcm-siv", "portable", "ticks"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(report.html().contains("<svg"));
    }

    #[test]
    fn an_unknown_kernel_is_refused() {
        let error = run(&plan(Some("abacus")), &Keeper::default(), &mut Silent).unwrap_err();
        assert!(error.to_string().contains("abacus") && error.to_string().contains("portable"), "{error}");
    }
}
