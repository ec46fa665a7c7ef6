//! Requests that are sent again, for a bounded time; and a bound on bytes a second.

use std::future::Future;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::super::error::StoreFault;
use super::super::meter::Meter;

/// The slowest connection for which a request's bytes are waited for, in bytes a second.
const SLOWEST: u64 = 32 << 10;
/// First and longest pause before a request is sent again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(20));

/// How long to wait for an answer, and for a good one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Without bytes.
    pub(super) timeout: Duration,
    /// From the first try to the last.
    pub(super) total: Duration,
}

impl Patience {
    /// Runs a request of `len` bytes until it answers, or says something that will not change.
    pub(super) async fn run<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        len: u64,
        meter: &Meter,
        request: impl Fn() -> F,
    ) -> object_store::Result<T> {
        self.limited(len, &Limit::new(None), meter, request).await
    }

    /// The same; before each try its bytes pass a limit, for which no time counts.
    pub(super) async fn limited<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        len: u64,
        limit: &Limit,
        meter: &Meter,
        request: impl Fn() -> F,
    ) -> object_store::Result<T> {
        let mut spent = Duration::ZERO;
        let patience = self.timeout + Duration::from_secs(len / SLOWEST);
        let mut pause = PAUSE.0;
        loop {
            limit.pass(len).await;
            let begun = Instant::now();
            let failed = match tokio::time::timeout(patience, request()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(e)) => e,
                Err(_) => object_store::Error::Generic {
                    store: "store",
                    source: format!("no answer within {} seconds", patience.as_secs()).into(),
                },
            };
            spent += begun.elapsed() + pause;
            if fault_of(&failed) != StoreFault::Unreachable || spent > self.total {
                return Err(failed);
            }
            log::debug!("sent again in {} ms: {failed}", pause.as_millis());
            meter.retries.add(1);
            tokio::time::sleep(jitter(pause)).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}

/// Half of the pause to all of it, so that many clients do not come back at once.
fn jitter(pause: Duration) -> Duration {
    let mut random = [0u8; 1];
    if getrandom::fill(&mut random).is_err() {
        return pause;
    }
    pause / 2 + pause.mul_f64(f64::from(random[0]) / 512.0)
}

/// What to make of an error.
pub(super) fn fault_of(e: &object_store::Error) -> StoreFault {
    use object_store::Error;
    let text = words(e);
    if text.contains("RequestTimeTooSkewed") {
        return StoreFault::Clock;
    }
    match e {
        Error::NotFound { .. } => StoreFault::NotFound,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => StoreFault::Denied,
        Error::AlreadyExists { .. } | Error::Precondition { .. } => StoreFault::Exists,
        Error::Generic { .. } => generic(&text),
        _ => StoreFault::Other,
    }
}

/// A response that is no answer (5xx, 429, a cut connection) may be a good one later; any other will not change.
fn generic(text: &str) -> StoreFault {
    let client_error = |code: &str| text.contains(code);
    if ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken"]
        .iter()
        .any(|code| text.contains(code))
    {
        return StoreFault::Denied;
    }
    if text.contains("NoSuchBucket") {
        return StoreFault::NotFound;
    }
    // The last three: the server found another content than was sent.
    let later = [
        "status 429",
        "status 408",
        "SlowDown",
        "RequestTimeout",
        "BadDigest",
        "XAmzContentSHA256Mismatch",
        "XAmzContentChecksumMismatch",
    ];
    if !later.iter().any(|code| text.contains(code))
        && ["status 400", "status 405", "status 411", "status 501", "400 Bad Request", "501 Not Implemented"]
            .iter()
            .any(|code| client_error(code))
    {
        return StoreFault::Other;
    }
    StoreFault::Unreachable
}

/// The error with what caused it, in one line.
pub(super) fn words(e: &object_store::Error) -> String {
    let mut out = e.to_string();
    let mut cause = std::error::Error::source(e);
    while let Some(next) = cause {
        let text = next.to_string();
        if !out.contains(&text) {
            out += ": ";
            out += &text;
        }
        cause = next.source();
    }
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Lets so many bytes a second pass, an object at a time: a burst is as long as an object.
#[derive(Debug)]
pub(super) struct Limit {
    rate: Option<u64>,
    free_at: Mutex<Instant>,
}

impl Limit {
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.filter(|r| *r > 0), free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until `len` bytes may go.
    pub(super) async fn pass(&self, len: u64) {
        let Some(rate) = self.rate else { return };
        let wait = {
            let mut free_at = self.free_at.lock();
            let now = Instant::now();
            let start = (*free_at).max(now);
            #[expect(clippy::cast_precision_loss, reason = "a duration need not be exact")]
            let takes = Duration::from_secs_f64(len as f64 / rate as f64);
            *free_at = start + takes;
            start - now
        };
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn generic_error(text: &str) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: text.to_owned().into() }
    }

    /// A 503 is asked again and counted; a refusal is believed at once.
    #[test]
    fn only_what_may_pass_is_tried_again() {
        let patience = Patience { timeout: Duration::from_secs(5), total: Duration::from_secs(5) };
        let meter = Meter::default();
        let tries = AtomicU32::new(0);
        let request = |text: &'static str| {
            let tries = &tries;
            move || async move {
                match tries.fetch_add(1, Ordering::Relaxed) {
                    0 => Err(generic_error(text)),
                    _ => Ok(()),
                }
            }
        };
        runtime().block_on(patience.run(0, &meter, request("status 503 SlowDown"))).unwrap();
        assert_eq!((tries.swap(0, Ordering::Relaxed), meter.retries.get()), (2, 1));
        let refused = runtime().block_on(patience.run(0, &meter, request("SignatureDoesNotMatch")));
        assert_eq!(fault_of(&refused.unwrap_err()), StoreFault::Denied);
        assert_eq!((tries.load(Ordering::Relaxed), meter.retries.get()), (1, 1));
    }

    /// A request that never answers is given up after its time, and the whole after its own.
    #[test]
    fn a_frozen_server_is_given_up() {
        let patience = Patience { timeout: Duration::from_millis(50), total: Duration::from_millis(400) };
        let begun = Instant::now();
        let done: object_store::Result<()> =
            runtime().block_on(patience.run(0, &Meter::default(), std::future::pending));
        assert_eq!(fault_of(&done.unwrap_err()), StoreFault::Unreachable);
        assert!(begun.elapsed() < Duration::from_secs(3));
    }

    /// Waiting for a limit is no waiting for the server: what has to wait longer than a request may take, and for longer than a
    /// request is sent again, is sent, at its first try and at its second.
    #[test]
    fn waiting_for_a_limit_is_not_counted() {
        let patience = Patience { timeout: Duration::from_millis(100), total: Duration::from_millis(300) };
        let (meter, limit, tries) = (Meter::default(), Limit::new(Some(1000)), AtomicU32::new(0));
        let request = || async {
            match tries.fetch_add(1, Ordering::Relaxed) {
                0 => Err(generic_error("status 503 SlowDown")),
                _ => Ok(()),
            }
        };
        let begun = Instant::now();
        runtime().block_on(async {
            limit.pass(500).await;
            patience.limited(500, &limit, &meter, request).await.unwrap();
        });
        assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
        assert_eq!((tries.load(Ordering::Relaxed), meter.retries.get()), (2, 1));
    }

    /// Ten objects of 100 bytes at 2,000 bytes a second take about half a second.
    #[test]
    fn bytes_pass_at_their_rate() {
        let limit = Limit::new(Some(2000));
        let begun = Instant::now();
        runtime().block_on(async {
            for _ in 0..10 {
                limit.pass(100).await;
            }
        });
        assert!(begun.elapsed() >= Duration::from_millis(440), "{:?}", begun.elapsed());
    }
}
