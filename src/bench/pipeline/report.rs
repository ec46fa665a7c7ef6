//! Figures of the pipeline: as a table for people, values for programs, and plots.

use std::fmt;

use crate::bench::html::{Bar, Chart, Section, page};
use crate::bench::machine::Machine;
use crate::bench::stats::{figure, range};
use crate::bench::table::Table;
use crate::bench::verdict::{self, Verdict};

/// Independent threads that scale worse than this share of their number are a sign of a busy machine.
const NOISY: f64 = 0.9;

/// A number of threads.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Row {
    /// `seal` or `open`.
    pub operation: &'static str,
    /// Threads: the caller and its workers.
    pub threads: usize,
    /// 10^9 bytes a second, the median of the rounds.
    pub gb_per_second: f64,
    /// Against one thread, the median of the rounds' ratios.
    pub scaling: f64,
    /// What as many threads reach that share nothing.
    pub ceiling_gb_per_second: f64,
    /// Likewise, against one of them.
    pub ceiling_scaling: f64,
    /// GB/s of each round.
    pub runs: Vec<f64>,
    /// Likewise, of independent threads.
    pub ceiling_runs: Vec<f64>,
}

/// A whole run.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Report {
    /// What it was measured on.
    pub machine: Machine,
    /// The command line.
    pub command: String,
    /// Interleaved rounds.
    pub rounds: u32,
    /// Everything measured.
    pub rows: Vec<Row>,
    /// Whether the bounds were kept.
    pub verdicts: Vec<Verdict>,
}

impl Report {
    fn table(&self) -> Table {
        let head = ["requests of 1 MiB", "threads", "GB/s", "scaling", "independent, GB/s", "their scaling"];
        let mut table = Table::new(&head, 1);
        for r in &self.rows {
            let figures = [r.gb_per_second, r.scaling, r.ceiling_gb_per_second, r.ceiling_scaling];
            let cells = [r.operation.to_owned(), r.threads.to_string()];
            table.row(cells.into_iter().chain(figures.map(figure)));
        }
        table
    }

    /// What speaks against the figures.
    fn remarks(&self) -> Vec<String> {
        #[expect(clippy::cast_precision_loss, reason = "a few threads")]
        let noisy = |r: &&Row| r.ceiling_scaling < NOISY * r.threads as f64;
        let rows =
            self.rows.iter().filter(|r| r.threads > 1 && r.threads <= self.machine.processors).filter(noisy);
        rows.map(|r| {
            format!(
                "{} by {} threads: even threads that share nothing scale by {:.2} only: the machine is busy, or its \
                 processors share a core",
                r.operation, r.threads, r.ceiling_scaling
            )
        })
        .collect()
    }

    fn intro(&self) -> Vec<String> {
        vec![
            self.machine.line(),
            format!("Command: {}", self.command),
            format!(
                "Medians of {} interleaved rounds; scaling is the median of the rounds' ratios.",
                self.rounds
            ),
        ]
    }

    /// The report as a document for a browser.
    pub fn html(&self) -> String {
        let chart = |operation: &str| {
            let rows = self.rows.iter().filter(|r| r.operation == operation);
            let bars = rows.flat_map(|r| {
                let bar = |label, value, runs: &[f64], ours| Bar { label, value, range: range(runs), ours };
                [
                    bar(format!("{} threads", r.threads), r.gb_per_second, &r.runs, true),
                    bar(
                        format!("{} independent", r.threads),
                        r.ceiling_gb_per_second,
                        &r.ceiling_runs,
                        false,
                    ),
                ]
            });
            Chart {
                title: format!("{operation} requests of 1 MiB"),
                unit: "GB/s".into(),
                less_is_better: false,
                bars: bars.collect(),
            }
        };
        let mut notes = self.intro();
        notes.extend(self.remarks());
        let verdict = Some(verdict::table(&self.verdicts));
        page(
            "envelopefs bench pipeline",
            &[
                Section { title: "Verdict".into(), notes, table: verdict, charts: Vec::new() },
                Section {
                    title: "Threads".into(),
                    notes: Vec::new(),
                    table: Some(self.table()),
                    charts: vec![chart("seal"), chart("open")],
                },
            ],
        )
    }
}

/// Markdown tables.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.intro() {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "\n{}\n{}", self.table(), verdict::table(&self.verdicts))?;
        self.remarks().iter().try_for_each(|remark| writeln!(f, "- {remark}"))
    }
}
