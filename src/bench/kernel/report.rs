//! Figures of the kernels: as tables for people, values for programs, and plots.

use std::fmt;

use super::measure::{FILE_BLOCK, SIZES};
use crate::bench::html::{Bar, Chart, Section, page};
use crate::bench::machine::Machine;
use crate::bench::stats::{figure, range};
use crate::bench::table::Table;
use crate::bench::verdict::{self, Verdict};

/// One contender in one case.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Figure {
    /// Kernel, or library and cipher.
    pub contender: String,
    /// Whether it is one of this program's kernels.
    pub ours: bool,
    /// `seal` or `open`.
    pub operation: &'static str,
    /// Bytes of a block.
    pub block: usize,
    /// Blocks that are handed over in one call.
    pub blocks_a_call: usize,
    /// 10^9 bytes a second, the median of the rounds.
    pub gb_per_second: f64,
    /// Ticks of the time stamp counter for a byte: cycles at the processor's nominal rate, not at the one it ran at.
    pub tsc_ticks_per_byte: Option<f64>,
    /// GB/s of each round.
    pub runs: Vec<f64>,
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
    /// Contenders that gave the bytes they should before they were measured: all of them.
    pub proved: usize,
    /// Everything measured.
    pub figures: Vec<Figure>,
    /// Whether the bounds were kept.
    pub verdicts: Vec<Verdict>,
}

impl Report {
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for f in &self.figures {
            if !names.contains(&f.contender.as_str()) {
                names.push(&f.contender);
            }
        }
        names
    }

    /// Operation, block and blocks a call, in the order they were measured.
    fn cases(&self) -> Vec<(&'static str, usize, usize)> {
        let mut cases = Vec::new();
        for f in &self.figures {
            let case = (f.operation, f.block, f.blocks_a_call);
            if !cases.contains(&case) {
                cases.push(case);
            }
        }
        cases
    }

    fn find(&self, case: (&str, usize, usize), name: &str) -> Option<&Figure> {
        let here = |f: &&Figure| (f.operation, f.block, f.blocks_a_call) == case && f.contender == name;
        self.figures.iter().find(here)
    }

    fn table(&self, unit: &str, value: impl Fn(&Figure) -> Option<f64>) -> Table {
        let names = self.names();
        let mut head = vec![unit.to_owned(), "blocks a call".to_owned()];
        head.extend(names.iter().map(|n| (*n).to_owned()));
        let mut table = Table::new(&head, 1);
        for case in self.cases() {
            let mut row = vec![title(case), case.2.to_string()];
            row.extend(
                names.iter().map(|name| self.find(case, name).and_then(&value).map_or("-".into(), figure)),
            );
            table.row(row);
        }
        table
    }

    fn intro(&self) -> Vec<String> {
        vec![
            self.machine.line(),
            format!("Command: {}", self.command),
            format!(
                "One core; medians of {} interleaved rounds. All {} contenders gave the published bytes, those of the \
                 aes-gcm-siv crate (but AES-GCM, another cipher), and refused changed ones, before they were measured. They \
                 work in place. Ticks are those of the time stamp counter (TSC): its rate is fixed, the core's is not.",
                self.rounds, self.proved
            ),
        ]
    }

    /// The report as a document for a browser.
    pub fn html(&self) -> String {
        let charts = self.cases().into_iter().map(|case| Chart {
            title: format!("{}, {} a call", title(case), case.2),
            unit: "GB/s".into(),
            less_is_better: false,
            bars: self
                .names()
                .into_iter()
                .filter_map(|name| self.find(case, name))
                .map(|f| Bar {
                    label: f.contender.clone(),
                    value: f.gb_per_second,
                    range: range(&f.runs),
                    ours: f.ours,
                })
                .collect(),
        });
        let section = |title: &str, table: Table| Section {
            title: title.to_owned(),
            table: Some(table),
            ..Section::default()
        };
        page(
            "envelopefs bench kernel",
            &[
                Section { notes: self.intro(), ..section("Verdict", verdict::table(&self.verdicts)) },
                Section {
                    charts: charts.collect(),
                    ..section("GB/s", self.table("GB/s", |f| Some(f.gb_per_second)))
                },
                section("TSC ticks for a byte", self.table("ticks/byte", |f| f.tsc_ticks_per_byte)),
            ],
        )
    }
}

fn title((operation, block, _): (&str, usize, usize)) -> String {
    if block < 1024 { format!("{operation} {block} B") } else { format!("{operation} {} KiB", block >> 10) }
}

/// Markdown tables.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.intro() {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "\n{}", self.table("GB/s", |f| Some(f.gb_per_second)))?;
        writeln!(f, "{}", self.table("TSC ticks/byte", |f| f.tsc_ticks_per_byte))?;
        write!(f, "{}", verdict::table(&self.verdicts))
    }
}

// Files are encrypted in one of the sizes that are measured, so that the bounds have their figures.
const _: () = assert!(SIZES[1] == FILE_BLOCK);
