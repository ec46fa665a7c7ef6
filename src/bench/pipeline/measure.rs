//! The order of the measurement, and one figure of it.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use super::report::{Report, Row};
use crate::bench::error::BenchError;
use crate::bench::keeper::Keeper;
use crate::bench::machine::Machine;
use crate::bench::stats::median;
use crate::bench::{Progress, Verdict};
use crate::crypto::{DataKey, FileKeys, Secret, random};
use crate::format::ids::FileId;
use crate::format::layout::BlockIndex;
use crate::format::map::Entry;
use crate::pipeline::{self, BLOCKS_PER_PART, Piece, Pool};

/// Bytes of a request: the largest that the kernel sends.
const REQUEST: usize = 1 << 20;
/// Bytes of a block.
const BLOCK: usize = 4096;
/// Bytes that one thread takes at a time.
const PART: usize = BLOCKS_PER_PART * BLOCK;
/// How many times one thread's speed two shall have.
const BOUND: f64 = 1.85;

/// What to measure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// From 1 to so many threads.
    pub threads: usize,
    /// Interleaved rounds.
    pub rounds: u32,
    /// How long a figure of a round is measured.
    pub each: Duration,
    /// For the report.
    pub command: String,
}

/// One thing that is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Case {
    open: bool,
    threads: usize,
    /// By as many callers that share nothing, instead of by one and its workers.
    apart: bool,
}

/// Measures.
pub fn run(plan: &Plan, keeper: &Keeper, progress: &mut dyn Progress) -> Result<Report, BenchError> {
    let keys = FileKeys::derive(&DataKey(Secret::random()), &FileId([7; 12]));
    let mut cases = Vec::new();
    for open in [false, true] {
        for threads in 1..=plan.threads {
            cases.extend([false, true].map(|apart| Case { open, threads, apart }));
        }
    }
    let mut runs = vec![Vec::new(); cases.len()];
    progress.begin(u64::from(plan.rounds) * cases.len() as u64);
    for round in 1..=plan.rounds {
        for (case, runs) in cases.iter().zip(&mut runs) {
            keeper.check()?;
            progress.step(&format!("round {round}/{}", plan.rounds), 1);
            runs.push(measure(&keys, *case, plan.each)?);
        }
    }
    let of = |open, threads, apart| {
        let here = cases.iter().zip(&runs).find(|(case, _)| **case == Case { open, threads, apart });
        here.map(|(_, runs)| runs.clone()).unwrap_or_default()
    };
    let mut rows = Vec::new();
    for open in [false, true] {
        let base = [false, true].map(|apart| of(open, 1, apart));
        for threads in 1..=plan.threads {
            let (shared, apart) = (of(open, threads, false), of(open, threads, true));
            rows.push(Row {
                operation: if open { "open" } else { "seal" },
                threads,
                scaling: paired(&shared, &base[0]),
                ceiling_scaling: paired(&apart, &base[1]),
                gb_per_second: median(&shared).unwrap_or(0.0),
                ceiling_gb_per_second: median(&apart).unwrap_or(0.0),
                runs: shared,
                ceiling_runs: apart,
            });
        }
    }
    let verdicts = judge(&rows);
    Ok(Report {
        machine: Machine::here(),
        command: plan.command.clone(),
        rounds: plan.rounds,
        rows,
        verdicts,
    })
}

/// The middle one of the rounds' ratios: what slows a whole round down is in both of its figures.
fn paired(runs: &[f64], base: &[f64]) -> f64 {
    let ratios: Vec<_> = runs.iter().zip(base).map(|(run, base)| run / base).collect();
    median(&ratios).unwrap_or(0.0)
}

fn judge(rows: &[Row]) -> Vec<Verdict> {
    let judged = ["seal", "open"].into_iter();
    judged
        .map(|operation| {
            let row = rows.iter().find(|r| r.operation == operation && r.threads == 2);
            let ceiling =
                row.map_or_else(String::new, |r| format!(" (independent threads: {:.2})", r.ceiling_scaling));
            let against = Some(format!("one thread{ceiling}"));
            Verdict::at_least(
                format!("{operation} 1 MiB requests by 2 threads"),
                against,
                row.map(|r| r.scaling),
                BOUND,
            )
        })
        .collect()
}

/// GB/s of a case.
fn measure(keys: &FileKeys, case: Case, each: Duration) -> Result<f64, BenchError> {
    if !case.apart {
        let pool = Pool::new(case.threads - 1);
        let bring = |buffer: &mut [u8], sealed: &[u8]| {
            let parts = buffer.chunks_mut(PART).zip(sealed.chunks(PART)).collect();
            pipeline::share_on(Some(&pool), parts, |(to, from)| to.copy_from_slice(from));
        };
        return caller(keys, case.open, each, bring, |pieces| {
            if case.open {
                pipeline::open_on(&pool, keys, pieces);
            } else {
                pipeline::seal_on(&pool, keys, pieces);
            }
        });
    }
    let start = Barrier::new(case.threads);
    thread::scope(|scope| {
        let callers: Vec<_> = (0..case.threads)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    caller(keys, case.open, each, <[u8]>::copy_from_slice, |pieces| {
                        // In the same parts as the pipeline cuts.
                        for part in pieces.chunks_mut(BLOCKS_PER_PART) {
                            if case.open {
                                keys.open_blocks(part);
                            } else {
                                keys.seal_blocks(part);
                            }
                        }
                    })
                })
            })
            .collect();
        let failed = |_| BenchError::Figure("figure of a thread");
        callers.into_iter().map(|c| c.join().map_err(failed)?).sum()
    })
}

/// One caller with requests of its own: GB/s of the time it spends in `work`, waits and preemption included. `bring` puts
/// sealed blocks into the buffer; a mount does it in parts, each by the thread that opens it, so that they are in its cache.
fn caller(
    keys: &FileKeys,
    open: bool,
    each: Duration,
    bring: impl Fn(&mut [u8], &[u8]),
    work: impl Fn(&mut [Piece<'_>]),
) -> Result<f64, BenchError> {
    let plain = vec![0x5a_u8; REQUEST];
    let mut sealed = plain.clone();
    let fresh: Vec<_> =
        (0..REQUEST / BLOCK).map(|_| Entry { nonce: random::array(), tag: [0; 16] }).collect();
    let mut pieces = cut(&mut sealed, &fresh, None);
    keys.seal_blocks(&mut pieces);
    let entries: Vec<_> = pieces.iter().map(|p| p.entry).collect();
    drop(pieces);
    let mut buffer = vec![0_u8; REQUEST];
    let (mut spent, mut requests) = (Duration::ZERO, 0_u32);
    let until = Instant::now() + each;
    while Instant::now() < until || requests == 0 {
        // Opening works in place: what it needs is brought beside the clock.
        if open {
            bring(&mut buffer, &sealed);
        }
        let mut pieces =
            if open { cut(&mut buffer, &entries, None) } else { cut(&mut buffer, &fresh, Some(&plain)) };
        let begin = Instant::now();
        work(&mut pieces);
        spent += begin.elapsed();
        requests += 1;
        if pieces.iter().any(|p| p.failed) {
            return Err(BenchError::Wrong {
                contender: "the pipeline".into(),
                what: "a block did not open".into(),
            });
        }
    }
    if buffer != if open { plain } else { sealed } {
        return Err(BenchError::Wrong {
            contender: "the pipeline".into(),
            what: "it gave other bytes".into(),
        });
    }
    #[expect(clippy::cast_precision_loss, reason = "a megabyte")]
    let bytes = REQUEST as f64 * f64::from(requests);
    Ok(bytes / 1e9 / spent.as_secs_f64())
}

/// A request in blocks.
fn cut<'a>(buffer: &'a mut [u8], entries: &[Entry], source: Option<&'a [u8]>) -> Vec<Piece<'a>> {
    let blocks = (0..).map(BlockIndex).zip(buffer.chunks_mut(BLOCK).zip(entries));
    match source {
        Some(source) => blocks
            .zip(source.chunks(BLOCK))
            .map(|((index, (buf, entry)), source)| Piece::of(index, *entry, source, buf))
            .collect(),
        None => blocks.map(|(index, (buf, entry))| Piece::new(index, *entry, buf)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Silent;
    impl Progress for Silent {
        fn begin(&mut self, _: u64) {}
        fn step(&mut self, _: &str, _: u64) {}
    }

    /// Every number of threads has a figure and its ceiling, for sealing and opening.
    #[test]
    fn a_quick_run_has_every_figure() {
        let each = Duration::from_millis(1);
        let plan = Plan { threads: 3, rounds: 1, each, command: "envelopefs bench pipeline".into() };
        let report = run(&plan, &Keeper::default(), &mut Silent).unwrap();
        assert_eq!(report.rows.len(), 6);
        assert!(report.rows.iter().all(|r| r.gb_per_second > 0.0 && r.ceiling_gb_per_second > 0.0));
        assert!((report.rows[0].scaling - 1.0).abs() < 1e-9);
        assert!(report.verdicts.iter().all(|v| v.figure.is_some()));
        assert!(report.to_string().contains("| seal") && report.html().contains("<svg"));
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        assert!((paired(&[2.0, 20.0, 3.0], &[1.0, 10.0, 2.0]) - 2.0).abs() < 1e-9);
    }
}
