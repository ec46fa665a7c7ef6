//! The bounds that a run is judged by (docs/BENCHMARKS.md).

use super::job::Job;
use super::lower::LowerKind;
use super::peers::Peer;
use super::report::{Daemon, Row};
use crate::bench::verdict::Verdict;

/// Whom a figure is compared with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Against {
    Null,
    Rivals,
}

/// Where, what, beside whom, and how many times as fast it shall be.
const BOUNDS: [(LowerKind, &str, Against, f64); 13] = [
    (LowerKind::Tmpfs, "write-1m", Against::Null, 0.80),
    (LowerKind::Tmpfs, "read-1m-cold", Against::Null, 0.80),
    (LowerKind::Tmpfs, "randread-4k-cold", Against::Null, 0.90),
    (LowerKind::Tmpfs, "write-1m", Against::Rivals, 2.5),
    (LowerKind::Tmpfs, "read-1m-cold", Against::Rivals, 1.1),
    (LowerKind::Tmpfs, "randwrite-4k", Against::Rivals, 5.0),
    (LowerKind::Ext4, "randwrite-4k-cold", Against::Rivals, 4.0),
    (LowerKind::Ext4, "randwrite-4k-fsync", Against::Rivals, 1.0),
    (LowerKind::Tmpfs, "randread-4k-cold", Against::Rivals, 1.2),
    (LowerKind::Tmpfs, "tree-extract", Against::Rivals, 1.3),
    (LowerKind::Tmpfs, "tree-walk", Against::Rivals, 1.2),
    (LowerKind::Tmpfs, "tree-read", Against::Rivals, 1.2),
    (LowerKind::Tmpfs, "tree-remove", Against::Rivals, 1.2),
];

/// Resident memory of the daemon stays below this, in MiB.
pub(super) const MEMORY_MIB: f64 = 150.0;

/// Jobs that have a bound on this lower filesystem.
pub(super) fn judged(lower: LowerKind) -> impl Iterator<Item = Job> {
    let here = BOUNDS.iter().filter(move |b| b.0 == lower);
    here.map(|b| b.1.parse().expect("a constant that a test parses"))
}

/// Whether a job has one.
pub(super) fn is_judged(lower: LowerKind, job: Job) -> bool {
    judged(lower).any(|j| j == job)
}

/// Judges a run.
pub(super) fn judge(rows: &[Row], daemons: &[Daemon]) -> Vec<Verdict> {
    let mut verdicts: Vec<_> = BOUNDS
        .iter()
        .map(|(lower, name, against, wanted)| {
            let row = rows.iter().find(|r| r.lower == *lower && r.job.to_string() == *name);
            let title = row.map_or_else(|| (*name).to_owned(), |r| r.title.clone());
            let (other, ratio) = match against {
                Against::Null => (Some(Peer::Null), row.and_then(|r| r.times(Peer::Null))),
                Against::Rivals => {
                    row.and_then(Row::fastest_rival).map_or((None, None), |(peer, t)| (Some(peer), Some(t)))
                }
            };
            let named = match (against, other) {
                (Against::Rivals, Some(peer)) => format!("{}, the fastest rival", peer.name()),
                (Against::Rivals, None) => "the fastest rival".to_owned(),
                (Against::Null, _) => "the null filesystem".to_owned(),
            };
            Verdict::at_least(format!("{title} on {}", lower.name()), Some(named), ratio, *wanted)
        })
        .collect();
    let ours = daemons.iter().filter(|d| d.peer == Peer::Envelopefs).map(|d| d.peak_kib).max();
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    let peak = ours.map(|kib| kib as f64 / 1024.0);
    verdicts.push(Verdict::below("resident memory of the daemon, MiB", peak, MEMORY_MIB));
    verdicts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::mount::report::Cell;
    use crate::bench::verdict::Outcome;

    fn row(name: &str, figures: &[(Peer, &[f64])]) -> Row {
        let cells = figures.iter().map(|(peer, runs)| Cell::new(*peer, runs.to_vec())).collect();
        Row::new(LowerKind::Tmpfs, name.parse().unwrap(), cells)
    }

    /// The fastest rival is named, for rates and for times alike; a failed one does not count.
    #[test]
    fn a_run_is_judged_by_its_medians() {
        let write = row(
            "write-1m",
            &[
                (Peer::Null, &[1000.0]),
                (Peer::Envelopefs, &[850.0, 900.0, 10.0]),
                (Peer::Gocryptfs, &[200.0]),
                (Peer::Securefs, &[340.0]),
                (Peer::Cryfs, &[]),
            ],
        );
        let tree = row(
            "tree-extract",
            &[(Peer::Envelopefs, &[10.0]), (Peer::Gocryptfs, &[12.0]), (Peer::Securefs, &[20.0])],
        );
        let daemons = [Daemon {
            lower: LowerKind::Tmpfs,
            peer: Peer::Envelopefs,
            peak_kib: 160 << 10,
            cpu_seconds: 1.0,
        }];
        let verdicts = judge(&[write, tree], &daemons);
        assert_eq!(verdicts.len(), BOUNDS.len() + 1);
        let of = |what: &str, against: &str| {
            let fits = |v: &&Verdict| {
                v.what.starts_with(what) && v.against.as_deref().unwrap_or("").contains(against)
            };
            verdicts.iter().find(fits).unwrap()
        };
        assert_eq!(
            (of("write 1 MiB", "null").figure, of("write 1 MiB", "null").outcome),
            (Some(0.85), Outcome::Reached)
        );
        assert_eq!(of("write 1 MiB", "securefs").figure, Some(2.5));
        assert_eq!(
            (of("extract", "gocryptfs").figure, of("extract", "gocryptfs").outcome),
            (Some(1.2), Outcome::Missed)
        );
        assert_eq!(of("tree-walk", "rival").outcome, Outcome::Unknown);
        assert_eq!(of("resident", "").outcome, Outcome::Missed);
    }
}
