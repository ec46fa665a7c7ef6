//! Counters for Prometheus (text format 0.0.4). Labels are actions and exceptions: a bounded set, no names of keys.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use parking_lot::Mutex;

/// Upper ends of the duration buckets, in microseconds.
const BUCKETS: [u64; 8] = [50, 100, 250, 1_000, 5_000, 25_000, 100_000, 1_000_000];

/// What was counted.
#[derive(Default)]
pub(super) struct Metrics(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    /// By action and exception; no exception for a success.
    requests: BTreeMap<(&'static str, &'static str), u64>,
    buckets: [u64; BUCKETS.len()],
    total: u64,
    micros: u64,
}

impl Metrics {
    /// Counts a request.
    pub(super) fn count(&self, action: &'static str, code: &'static str, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut counts = self.0.lock();
        *counts.requests.entry((action, code)).or_default() += 1;
        for (count, _) in counts.buckets.iter_mut().zip(BUCKETS).filter(|(_, end)| micros <= *end) {
            *count += 1;
        }
        counts.total += 1;
        counts.micros = counts.micros.saturating_add(micros);
    }

    /// The text that Prometheus reads.
    pub(super) fn text(&self) -> String {
        let counts = self.0.lock();
        let mut out = String::from(
            "# HELP envelopefs_kms_requests_total Requests, by action and exception.\n\
             # TYPE envelopefs_kms_requests_total counter\n",
        );
        for ((action, code), count) in &counts.requests {
            let _ = writeln!(
                out,
                "envelopefs_kms_requests_total{{action=\"{action}\",error=\"{code}\"}} {count}"
            );
        }
        out.push_str(
            "# HELP envelopefs_kms_request_seconds Time from the head of a request to its answer.\n\
             # TYPE envelopefs_kms_request_seconds histogram\n",
        );
        for (count, end) in counts.buckets.iter().zip(BUCKETS) {
            let _ = writeln!(out, "envelopefs_kms_request_seconds_bucket{{le=\"{}\"}} {count}", seconds(end));
        }
        let _ = writeln!(out, "envelopefs_kms_request_seconds_bucket{{le=\"+Inf\"}} {}", counts.total);
        let _ = writeln!(out, "envelopefs_kms_request_seconds_sum {}", seconds(counts.micros));
        let _ = writeln!(out, "envelopefs_kms_request_seconds_count {}", counts.total);
        out
    }
}

#[expect(clippy::cast_precision_loss, reason = "a sum of microseconds for a graph")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}
