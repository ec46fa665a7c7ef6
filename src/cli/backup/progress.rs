//! What a long command says of itself while it runs: a line that changes, or a JSON line each second.

use std::io::IsTerminal;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Sender, bounded};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::backup::{Meter, Reading};

/// Lines of JSON.
const SECOND: Duration = Duration::from_secs(1);
/// Redraws of the line.
const TICK: Duration = Duration::from_millis(200);

/// Tells, until it is ended.
pub(super) struct Progress {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(serde::Serialize)]
struct Line {
    progress: Reading,
}

impl Progress {
    pub(super) fn start(meter: &Arc<Meter>, json: bool) -> Self {
        if !json && !std::io::stderr().is_terminal() {
            return Self { end: None, thread: None };
        }
        let (end, ended) = bounded::<()>(0);
        let meter = Arc::clone(meter);
        let tell = move || {
            let line = (!json).then(|| {
                let style =
                    ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
                ProgressBar::new_spinner().with_style(style)
            });
            // The sender is dropped at the end.
            while let Err(crossbeam::channel::RecvTimeoutError::Timeout) =
                ended.recv_timeout(if json { SECOND } else { TICK })
            {
                let now = meter.read();
                match &line {
                    Some(line) => line.set_message(words(&now)),
                    None => println!("{}", super::super::json(&Line { progress: now })),
                }
            }
            if let Some(line) = line {
                line.finish_and_clear();
            }
        };
        let thread = std::thread::Builder::new().name("efs-progress".into()).spawn(tell).ok();
        Self { end: Some(end), thread }
    }

    pub(super) fn end(mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The counters for people.
pub(super) fn words(now: &Reading) -> String {
    format!(
        "{} entries, {} files, {} of content; {} sent, {} received, {} retries",
        now.entries,
        now.files,
        HumanBytes(now.bytes),
        HumanBytes(now.sent),
        HumanBytes(now.received),
        now.retries
    )
}
