//! Where a report goes, and how progress is shown.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::super::error::CliError;
use crate::bench::Progress;

/// Redraws of the progress bar.
const TICK: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct OutputArgs {
    /// Write the figures as JSON; - for stdout, instead of the tables.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    json: Option<PathBuf>,
    /// Write a report with plots: one HTML file that needs nothing else.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    html: Option<PathBuf>,
}

impl OutputArgs {
    /// Fails now rather than after minutes of measuring.
    pub(super) fn check(&self) -> Result<(), CliError> {
        for path in [&self.json, &self.html].into_iter().flatten().filter(|p| p.as_path() != Path::new("-")) {
            let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
            opened.map_err(CliError::io(path))?;
        }
        Ok(())
    }

    /// Tables to stdout, unless JSON goes there; files as asked for.
    pub(super) fn write(
        &self,
        report: &(impl Serialize + std::fmt::Display),
        html: impl FnOnce() -> String,
    ) -> Result<(), CliError> {
        match &self.json {
            Some(path) if path.as_path() == Path::new("-") => println!("{}", super::super::json(report)),
            Some(path) => {
                print!("{report}");
                std::fs::write(path, super::super::json(report) + "\n").map_err(CliError::io(path))?;
            }
            None => print!("{report}"),
        }
        match &self.html {
            Some(path) => std::fs::write(path, html()).map_err(CliError::io(path)),
            None => Ok(()),
        }
    }
}

/// A bar on a terminal, lines elsewhere.
pub(super) struct Shown {
    bar: Option<ProgressBar>,
    said: String,
}

impl Shown {
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style =
                ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} of about {duration}  {msg}")
                    .expect("a constant template");
            let bar = ProgressBar::new(0).with_style(style);
            bar.enable_steady_tick(TICK);
            bar
        });
        Self { bar, said: String::new() }
    }
}

impl Progress for Shown {
    fn begin(&mut self, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
        }
    }

    fn step(&mut self, what: &str, steps: u64) {
        match &self.bar {
            Some(bar) => {
                bar.inc(steps);
                bar.set_message(what.to_owned());
            }
            None if self.said != what => eprintln!("{what}"),
            None => {}
        }
        what.clone_into(&mut self.said);
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
