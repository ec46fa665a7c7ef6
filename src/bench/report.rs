//! Figures of a run: medians, spreads and ratios, as a table for people and as values for programs.

use std::fmt::{self, Write};

use super::jobs::Job;
use super::lower::LowerKind;
use super::peers::Peer;

/// What one peer did in one job.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Cell {
    /// Who.
    pub peer: Peer,
    /// The middle one of `runs`.
    pub median: f64,
    /// Every repetition, in order.
    pub runs: Vec<f64>,
}

/// One job on one lower filesystem.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Row {
    /// What held the ciphertext.
    pub lower: LowerKind,
    /// What was measured.
    pub job: Job,
    /// Unit of the figures.
    pub unit: &'static str,
    /// A figure for each peer.
    pub cells: Vec<Cell>,
    /// How many times as fast as gocryptfs this program was.
    pub times_gocryptfs: Option<f64>,
}

/// The most resident memory of a daemon, over all repetitions.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Memory {
    /// What held the ciphertext.
    pub lower: LowerKind,
    /// Whose daemon.
    pub peer: Peer,
    /// VmHWM.
    pub peak_kib: u64,
}

/// A whole run.
#[derive(Clone, PartialEq, Debug, Default, serde::Serialize)]
pub struct Report {
    /// Jobs on lower filesystems.
    pub rows: Vec<Row>,
    /// Daemons' memory.
    pub memory: Vec<Memory>,
}

impl Row {
    /// A row from every repetition of every peer.
    pub(super) fn new(lower: LowerKind, job: Job, runs: Vec<(Peer, Vec<f64>)>) -> Self {
        let cells: Vec<_> =
            runs.into_iter().map(|(peer, runs)| Cell { peer, median: median(&runs), runs }).collect();
        let of = |peer| cells.iter().find(|c| c.peer == peer).map(|c| c.median).filter(|m| *m > 0.0);
        let times_gocryptfs = of(Peer::Envelopefs)
            .zip(of(Peer::Gocryptfs))
            .map(|(ours, theirs)| if job.less_is_better() { theirs / ours } else { ours / theirs });
        Self { lower, job, unit: job.unit(), cells, times_gocryptfs }
    }
}

fn median(runs: &[f64]) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.len() % 2) {
        (Some(m), 1) => *m,
        (Some(m), _) => f64::midpoint(*m, sorted[middle - 1]),
        (None, _) => 0.0,
    }
}

/// A figure with as many digits as mean something.
fn figure(value: f64) -> String {
    if value < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

/// A Markdown table.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peers: Vec<_> = Peer::ALL
            .into_iter()
            .filter(|p| self.rows.iter().any(|r| r.cells.iter().any(|c| c.peer == *p)))
            .collect();
        let mut head = "| lower | job | unit |".to_owned();
        let mut line = "|---|---|---|".to_owned();
        for peer in &peers {
            write!(head, " {} |", peer.name())?;
            line.push_str("--:|");
        }
        writeln!(f, "{head} times gocryptfs |\n{line}--:|")?;
        for row in &self.rows {
            write!(f, "| {} | {} | {} |", row.lower.name(), row.job.name(), row.unit)?;
            for peer in &peers {
                let cell = row.cells.iter().find(|c| c.peer == *peer);
                write!(f, " {} |", cell.map_or("-".to_owned(), |c| figure(c.median)))?;
            }
            writeln!(f, " {} |", row.times_gocryptfs.map_or("-".to_owned(), |t| format!("{t:.2}")))?;
        }
        for m in &self.memory {
            let mib = m.peak_kib.div_ceil(1024);
            writeln!(f, "\n{} on {}: at most {mib} MiB resident", m.peer.name(), m.lower.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ratios say "times as fast" for rates and for durations alike.
    #[test]
    fn ratios_mean_times_as_fast() {
        let runs = |ours: &[f64], theirs: &[f64]| {
            vec![(Peer::Envelopefs, ours.to_vec()), (Peer::Gocryptfs, theirs.to_vec())]
        };
        let rate = Row::new(LowerKind::Tmpfs, Job::SequentialWrite, runs(&[900.0, 100.0, 800.0], &[400.0]));
        assert_eq!((rate.cells[0].median, rate.times_gocryptfs), (800.0, Some(2.0)));
        let time = Row::new(LowerKind::Ext4, Job::Extract, runs(&[5.0, 15.0], &[40.0]));
        assert_eq!((time.cells[0].median, time.times_gocryptfs), (10.0, Some(4.0)));
        let shown = Report { rows: vec![rate, time], memory: Vec::new() }.to_string();
        assert!(shown.contains("| tmpfs | write 1 MiB | MB/s | 800 | 400 | 2.00 |"), "{shown}");
    }
}
