//! Figures of a run: medians, spreads and ratios, as tables for people, values for programs, and plots.

use std::fmt;

use super::defaults::Sizes;
use super::job::Job;
use super::lower::LowerKind;
use super::peers::Peer;
use crate::bench::html::{Bar, Chart, Section, page};
use crate::bench::machine::Machine;
use crate::bench::stats::{figure, median, range};
use crate::bench::table::Table;
use crate::bench::verdict::{self, Verdict};

/// What one peer did in one job.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Cell {
    /// Who.
    pub peer: Peer,
    /// The middle one of `runs`; none where it has no figure.
    pub median: Option<f64>,
    /// Every repetition, in order.
    pub runs: Vec<f64>,
    /// Processor seconds of the daemon in a repetition, the middle one.
    pub daemon_cpu_seconds: Option<f64>,
    /// Why it has no figure, or not for every repetition.
    pub failures: Vec<String>,
    /// Why it was not tried.
    pub skipped: Option<String>,
}

/// One job on one lower filesystem.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Row {
    /// What held the ciphertext.
    pub lower: LowerKind,
    /// What was measured.
    pub job: Job,
    /// The same in words.
    pub title: String,
    /// Unit of the figures.
    pub unit: &'static str,
    /// Whether a smaller figure is the better one.
    pub less_is_better: bool,
    /// A figure for each peer.
    pub cells: Vec<Cell>,
}

/// What a daemon took, over all jobs of a lower filesystem.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Daemon {
    /// What held the ciphertext.
    pub lower: LowerKind,
    /// Whose daemon.
    pub peer: Peer,
    /// The most memory resident in any repetition (VmHWM).
    pub peak_kib: u64,
    /// Processor time of all repetitions.
    pub cpu_seconds: f64,
}

/// Who took part, and how it was set.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct PeerInfo {
    /// Who.
    pub peer: Peer,
    /// As its program tells it.
    pub version: String,
    /// Options, and what is not alike.
    pub settings: &'static str,
}

/// A whole run.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Report {
    /// What it was measured on.
    pub machine: Machine,
    /// The command line.
    pub command: String,
    /// fio's version.
    pub fio: String,
    /// Sizes.
    pub sizes: Sizes,
    /// Repetitions of a job with a bound.
    pub repetitions: u32,
    /// Seconds that the run took.
    pub seconds: u64,
    /// Who took part.
    pub peers: Vec<PeerInfo>,
    /// Who did not, and other remarks.
    pub notes: Vec<String>,
    /// Jobs on lower filesystems.
    pub rows: Vec<Row>,
    /// Daemons' memory and time.
    pub daemons: Vec<Daemon>,
    /// Whether the bounds were kept; empty for a user's own mount.
    pub verdicts: Vec<Verdict>,
}

impl Cell {
    /// A cell from its repetitions.
    pub(super) fn new(peer: Peer, runs: Vec<f64>) -> Self {
        Self {
            peer,
            median: median(&runs),
            runs,
            daemon_cpu_seconds: None,
            failures: Vec::new(),
            skipped: None,
        }
    }

    /// For a table.
    fn text(&self) -> String {
        match (self.median, &self.skipped) {
            // Figures beside failures are no median of what was asked for; they are told in the notes.
            (Some(m), _) if self.failures.is_empty() => figure(m),
            (_, None) if !self.failures.is_empty() => "failed".to_owned(),
            _ => "-".to_owned(),
        }
    }
}

impl Row {
    /// A row from every peer's cell.
    pub(super) fn new(lower: LowerKind, job: Job, cells: Vec<Cell>) -> Self {
        Self { lower, job, title: job.title(), unit: job.unit(), less_is_better: job.less_is_better(), cells }
    }

    fn of(&self, peer: Peer) -> Option<f64> {
        let cell = self.cells.iter().find(|c| c.peer == peer && c.failures.is_empty());
        cell.and_then(|c| c.median).filter(|m| *m > 0.0)
    }

    /// How many times as fast as `peer` this program was.
    pub fn times(&self, peer: Peer) -> Option<f64> {
        let (ours, theirs) = self.of(Peer::Envelopefs).zip(self.of(peer))?;
        Some(if self.less_is_better { theirs / ours } else { ours / theirs })
    }

    /// The fastest of the other encrypting FUSE filesystems, and how many times as fast as it this program was.
    pub fn fastest_rival(&self) -> Option<(Peer, f64)> {
        let all = Peer::RIVALS.into_iter().filter_map(|peer| Some((peer, self.times(peer)?)));
        all.min_by(|a, b| a.1.total_cmp(&b.1))
    }

    fn chart(&self) -> Chart {
        let bars = self.cells.iter().filter(|c| c.failures.is_empty()).filter_map(|c| {
            let ours = matches!(c.peer, Peer::Envelopefs | Peer::Target);
            Some(Bar { label: c.peer.name().to_owned(), value: c.median?, range: range(&c.runs), ours })
        });
        Chart {
            title: self.title.clone(),
            unit: self.unit.to_owned(),
            less_is_better: self.less_is_better,
            bars: bars.collect(),
        }
    }
}

impl Report {
    /// Whether something that belongs to this program has no figure although it was tried.
    pub fn has_failures(&self) -> bool {
        let ours = |c: &&Cell| matches!(c.peer, Peer::Envelopefs | Peer::Target | Peer::Null);
        self.rows.iter().flat_map(|r| r.cells.iter()).filter(ours).any(|c| !c.failures.is_empty())
    }

    fn lowers(&self) -> Vec<LowerKind> {
        let mut lowers: Vec<_> = self.rows.iter().map(|r| r.lower).collect();
        lowers.dedup();
        lowers
    }

    /// Jobs of a lower filesystem.
    fn table(&self, lower: LowerKind) -> Table {
        let rows: Vec<_> = self.rows.iter().filter(|r| r.lower == lower).collect();
        let here = |p: &Peer| rows.iter().any(|r| r.cells.iter().any(|c| c.peer == *p));
        let peers: Vec<_> = self.peers.iter().map(|p| p.peer).filter(here).collect();
        let mut head = vec![format!("on {}", lower.name()), "unit".to_owned()];
        head.extend(peers.iter().map(|p| p.name().to_owned()));
        let compared = peers.contains(&Peer::Envelopefs);
        if compared {
            head.extend(["x null", "x rival", "rival"].map(str::to_owned));
        }
        let mut table = Table::new(&head, 2);
        for row in rows {
            let mut cells = vec![row.title.clone(), row.unit.to_owned()];
            for peer in &peers {
                cells.push(row.cells.iter().find(|c| c.peer == *peer).map_or("-".to_owned(), Cell::text));
            }
            if compared {
                let rival = row.fastest_rival();
                let ratio = |r: Option<f64>| r.map_or("-".to_owned(), |r| format!("{r:.2}"));
                cells.push(ratio(row.times(Peer::Null)));
                cells.push(ratio(rival.map(|r| r.1)));
                cells.push(rival.map_or("-", |r| r.0.name()).to_owned());
            }
            table.row(cells);
        }
        table
    }

    fn daemon_table(&self) -> Option<Table> {
        if self.daemons.is_empty() {
            return None;
        }
        let mut table = Table::new(&["daemon", "lower", "most resident, MiB", "processor time, s"], 2);
        for d in &self.daemons {
            let mib = d.peak_kib.div_ceil(1024).to_string();
            table.row([d.peer.name().to_owned(), d.lower.name().to_owned(), mib, figure(d.cpu_seconds)]);
        }
        Some(table)
    }

    fn peer_table(&self) -> Table {
        let mut table = Table::new(&["filesystem", "version", "settings"], 3);
        for p in &self.peers {
            table.row([p.peer.name().to_owned(), p.version.clone(), p.settings.to_owned()]);
        }
        table
    }

    /// What was not measured, or not as often as the rest.
    fn remarks(&self) -> Vec<String> {
        let mut remarks = self.notes.clone();
        for row in &self.rows {
            for cell in &row.cells {
                let place = format!("{} on {}, {}", row.title, row.lower.name(), cell.peer.name());
                if let Some(failure) = cell.failures.first() {
                    let runs = cell.runs.len();
                    remarks
                        .push(format!("{place}: failed ({runs} other repetitions had a figure): {failure}"));
                }
                if let Some(why) = &cell.skipped {
                    let runs = cell.runs.len();
                    let so_far =
                        if runs > 0 { format!("{runs} repetitions only") } else { "left out".to_owned() };
                    remarks.push(format!("{place}: {so_far}: {why}"));
                }
            }
        }
        remarks
    }

    fn intro(&self) -> Vec<String> {
        vec![
            self.machine.line(),
            format!("Command: {}", self.command),
            format!(
                "{}; files of {} MiB, source tree of {} files, fio for at most {} s a job. Medians of {} repetitions of jobs \
                 with a bound, interleaved; {} s in all. MB/s are 10^6 bytes. Writes count up to their fsync.",
                self.fio,
                self.sizes.file_bytes >> 20,
                self.sizes.tar_files,
                self.sizes.seconds,
                self.repetitions,
                self.seconds
            ),
        ]
    }

    /// The report as a document for a browser.
    pub fn html(&self) -> String {
        let mut sections = vec![Section {
            title: "What was measured".into(),
            notes: self.intro(),
            table: Some(self.peer_table()),
            charts: Vec::new(),
        }];
        if !self.verdicts.is_empty() {
            let table = Some(verdict::table(&self.verdicts));
            sections.push(Section { title: "Verdict".into(), table, ..Section::default() });
        }
        for lower in self.lowers() {
            let charts = self.rows.iter().filter(|r| r.lower == lower).map(Row::chart);
            sections.push(Section {
                title: format!("On {}", lower.name()),
                notes: vec!["A line on a bar spans the repetitions.".into()],
                table: Some(self.table(lower)),
                charts: charts.filter(|c| !c.bars.is_empty()).collect(),
            });
        }
        if let Some(table) = self.daemon_table() {
            sections.push(Section { title: "Daemons".into(), table: Some(table), ..Section::default() });
        }
        let remarks = self.remarks();
        if !remarks.is_empty() {
            sections.push(Section { title: "Remarks".into(), notes: remarks, ..Section::default() });
        }
        page("envelopefs bench mount", &sections)
    }
}

/// Markdown tables.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.intro() {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "\n{}", self.peer_table())?;
        for lower in self.lowers() {
            writeln!(f, "{}", self.table(lower))?;
        }
        if let Some(table) = self.daemon_table() {
            writeln!(f, "{table}")?;
        }
        if !self.verdicts.is_empty() {
            writeln!(f, "{}", verdict::table(&self.verdicts))?;
        }
        for remark in self.remarks() {
            writeln!(f, "- {remark}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let row = |name: &str, cells| Row::new(LowerKind::Tmpfs, name.parse().unwrap(), cells);
        let mut warm = Cell::new(Peer::Securefs, vec![1.0]);
        warm.failures.push("not cold: 3 pages".into());
        let cells = vec![
            Cell::new(Peer::Envelopefs, vec![900.0, 100.0, 800.0]),
            Cell::new(Peer::Gocryptfs, vec![400.0]),
            warm,
        ];
        let tree = vec![Cell::new(Peer::Envelopefs, vec![5.0, 15.0]), Cell::new(Peer::Gocryptfs, vec![40.0])];
        let info = |peer: Peer| PeerInfo { peer, version: "1".into(), settings: peer.settings() };
        Report {
            machine: Machine::here(),
            command: "envelopefs bench mount".into(),
            fio: "fio-3".into(),
            sizes: Sizes::quick(),
            repetitions: 3,
            seconds: 9,
            peers: [Peer::Envelopefs, Peer::Gocryptfs, Peer::Securefs].map(info).into(),
            notes: vec!["cryfs is not installed".into()],
            rows: vec![row("read-1m-cold", cells), row("tree-extract", tree)],
            daemons: Vec::new(),
            verdicts: Vec::new(),
        }
    }

    /// Ratios say "times as fast" for rates and for durations alike; a figure that failed counts for nothing.
    #[test]
    fn ratios_mean_times_as_fast() {
        let report = report();
        assert_eq!(report.rows[0].fastest_rival(), Some((Peer::Gocryptfs, 2.0)));
        assert_eq!(report.rows[1].times(Peer::Gocryptfs), Some(4.0));
        let text = report.to_string();
        let line = text.lines().find(|l| l.starts_with("| read 1 MiB, cold")).unwrap();
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        assert_eq!(cells[2..9], ["MB/s", "800", "400", "failed", "-", "2.00", "gocryptfs"], "{text}");
        assert!(text.contains("not cold: 3 pages") && text.contains("cryfs is not installed"));
        assert!(!report.has_failures());
    }

    /// Programs find names and figures in the JSON; the page shows the same, but no bar for what failed.
    #[test]
    fn the_other_forms_say_the_same() {
        let report = report();
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["rows"][0]["job"], "read-1m-cold");
        assert_eq!(json["rows"][0]["cells"][0]["median"], 800.0);
        let html = report.html();
        assert!(html.contains(">800</td>") && html.contains("extract source tree"));
        let chart = &html[html.find("<figure>").unwrap()..html.find("</figure>").unwrap()];
        assert!(chart.contains("gocryptfs") && !chart.contains("securefs"), "{chart}");
    }
}
