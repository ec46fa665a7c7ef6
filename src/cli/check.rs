//! `check`: opens everything in a vault and lists what does not open.

use std::fs::File;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use rustix::io::Errno;

use super::args::CheckArgs;
use super::error::CliError;
use super::exit::Exit;
use super::{signals, walk};
use crate::check::{self, Progress, Report};
use crate::keys;
use crate::vault::VaultLock;

/// Redraws of the progress bar.
const TICK: Duration = Duration::from_millis(100);

pub(super) fn run(args: &CheckArgs) -> Result<Exit, CliError> {
    keys::read_config(&args.vault)?;
    let unlock = args.key.unlock()?;
    let blocked = signals::block().map_err(CliError::io(&args.vault))?;
    let keyring = keys::open_vault(&args.vault, &unlock)?;
    let vault = args.vault.canonicalize().map_err(CliError::io(&args.vault))?;
    let _lock = lock(&vault)?;
    let jobs =
        args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let watch = Watch { bar: bar(&vault), stop: AtomicBool::new(false) };
    let wishes = signals::listen(blocked).map_err(CliError::io(&args.vault))?;
    let report = std::thread::scope(|scope| {
        let (done, end) = crossbeam::channel::bounded::<()>(0);
        let stop = &watch.stop;
        scope.spawn(move || {
            crossbeam::channel::select! {
                recv(wishes) -> _ => stop.store(true, Ordering::Relaxed),
                recv(end) -> _ => {}
            }
        });
        let report = check::check(&vault, &keyring, jobs, &watch);
        drop(done);
        report
    });
    watch.bar.finish_and_clear();
    if args.json {
        println!("{}", super::json(&report));
    } else {
        print(&report);
    }
    Ok(match &report {
        Report { interrupted: true, .. } => Exit::Interrupted,
        clean if clean.is_clean() => Exit::Ok,
        _ => Exit::Faults,
    })
}

/// Keeps others from mounting the vault meanwhile. One that is mounted is checked all the same, with a word of
/// warning: an operator whose vault cannot be unmounted needs the answer most.
fn lock(vault: &Path) -> Result<Option<VaultLock>, CliError> {
    let top = File::open(vault).map_err(CliError::io(vault))?;
    match VaultLock::take(&top, true) {
        Ok(lock) => Ok(Some(lock)),
        Err(Errno::WOULDBLOCK) => {
            eprintln!("envelopefs: the vault is mounted: a file that changes meanwhile may look damaged");
            Ok(None)
        }
        Err(e) => Err(CliError::Io(vault.to_owned(), e.into())),
    }
}

struct Watch {
    bar: ProgressBar,
    stop: AtomicBool,
}

impl Progress for Watch {
    fn read(&self, bytes: u64) -> bool {
        self.bar.inc(bytes);
        !self.stop.load(Ordering::Relaxed)
    }

    fn file_done(&self) {}
}

/// A bar over the lower bytes, on a terminal.
fn bar(vault: &Path) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let total = walk::count(vault).map_or(0, |c| c.lower_bytes);
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(total).with_style(style);
    bar.enable_steady_tick(TICK);
    bar
}

fn print(report: &Report) {
    for fault in &report.faults {
        let plain = fault.plain.as_ref().map_or_else(String::new, |p| format!(" ({})", p.display()));
        println!("{}{plain}: {}", fault.lower.display(), fault.what);
    }
    if report.interrupted {
        println!("interrupted: the rest was not looked at");
    }
    println!(
        "{} files, {} directories, {} symlinks, {} other nodes, {} bytes read: {}",
        report.files,
        report.directories,
        report.symlinks,
        report.others,
        report.bytes,
        if report.faults.is_empty() {
            "no fault".to_owned()
        } else {
            format!("{} fault{}", report.faults.len(), if report.faults.len() == 1 { "" } else { "s" })
        }
    );
}
