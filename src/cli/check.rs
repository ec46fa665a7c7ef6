//! `check`: opens everything in a vault and lists what does not open; with `--repair` mends what a crash can leave.

use std::fs::File;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use rustix::io::Errno;

use super::args::CheckArgs;
use super::error::CliError;
use super::exit::Exit;
use super::{signals, walk};
use crate::check::{self, Progress, Report};
use crate::fs::recover::Deed;
use crate::keys;
use crate::vault::VaultLock;

/// Redraws of the progress bar.
const TICK: Duration = Duration::from_millis(100);

pub(super) fn run(args: &CheckArgs) -> Result<Exit, CliError> {
    keys::read_config(&args.vault)?;
    let unlock = args.key.unlock_vault(&args.vault)?;
    let blocked = signals::block().map_err(CliError::io(&args.vault))?;
    let keyring = keys::open_vault(&args.vault, &unlock)?;
    let vault = args.vault.canonicalize().map_err(CliError::io(&args.vault))?;
    let lock = lock(&vault, args.repair)?;
    let repair = args.repair && lock.is_some();
    let jobs =
        args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let watch = Watch::new(&vault, repair);
    let wishes = signals::listen(blocked).map_err(CliError::io(&args.vault))?;
    let mut report = std::thread::scope(|scope| {
        let (done, end) = crossbeam::channel::bounded::<()>(0);
        let stop = &watch.stop;
        scope.spawn(move || {
            crossbeam::channel::select! {
                recv(wishes) -> _ => stop.store(true, Ordering::Relaxed),
                recv(end) -> _ => {}
            }
        });
        let report = if repair {
            let since = args.fresh_since.map(|seconds| (seconds, 0));
            check::repair(&vault, &keyring, jobs, since, &watch)
        } else {
            check::check(&vault, &keyring, jobs, &watch)
        };
        drop(done);
        report
    });
    report.mounted = lock.is_none();
    watch.finish();
    if args.json {
        println!("{}", super::json(&report));
    } else {
        print(&report);
    }
    Ok(match &report {
        Report { interrupted: true, .. } => Exit::Interrupted,
        faulty if !faulty.is_clean() => Exit::Faults,
        Report { mounted: true, .. } if args.repair => Exit::InUse,
        _ => Exit::Ok,
    })
}

/// Keeps others from mounting the vault meanwhile. One that is mounted is checked all the same, with a word of
/// warning: an operator whose vault cannot be unmounted needs the answer most. A repair wants to be alone.
fn lock(vault: &Path, repair: bool) -> Result<Option<VaultLock>, CliError> {
    let top = File::open(vault).map_err(CliError::io(vault))?;
    match VaultLock::take(&top, !repair) {
        Ok(lock) => Ok(Some(lock)),
        Err(Errno::WOULDBLOCK) => {
            if repair {
                eprintln!(
                    "envelopefs: the vault is mounted, or being checked: nothing is mended, only looked at"
                );
            }
            eprintln!("envelopefs: the vault is mounted: a file that changes meanwhile may look damaged");
            Ok(None)
        }
        Err(e) => Err(CliError::Io(vault.to_owned(), e.into())),
    }
}

struct Watch {
    /// Over the files that a repair looks at first.
    mending: ProgressBar,
    bar: ProgressBar,
    stop: AtomicBool,
}

impl Watch {
    fn new(vault: &Path, repair: bool) -> Self {
        let counts = if std::io::stderr().is_terminal() { walk::count(vault).ok() } else { None };
        let files = counts.filter(|_| repair).map(|c| c.files);
        let bars = MultiProgress::new();
        let bytes = counts.map(|c| c.lower_bytes);
        Self {
            mending: bar(&bars, files, "{bar:40} {pos}/{len} files mended or sound"),
            bar: bar(&bars, bytes, "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta} left"),
            stop: AtomicBool::new(false),
        }
    }

    fn finish(&self) {
        self.mending.finish_and_clear();
        self.bar.finish_and_clear();
    }
}

impl Progress for Watch {
    fn read(&self, bytes: u64) -> bool {
        if bytes > 0 && !self.mending.is_finished() {
            self.mending.finish_and_clear();
        }
        self.bar.inc(bytes);
        !self.stop.load(Ordering::Relaxed)
    }

    fn file_done(&self) {}

    fn mended(&self) -> bool {
        self.mending.inc(1);
        !self.stop.load(Ordering::Relaxed)
    }
}

/// A bar, where there is a terminal to show it.
fn bar(bars: &MultiProgress, total: Option<u64>, template: &str) -> ProgressBar {
    let Some(total) = total else { return ProgressBar::hidden() };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = bars.add(ProgressBar::new(total).with_style(style));
    bar.enable_steady_tick(TICK);
    bar
}

fn print(report: &Report) {
    if report.resumed {
        println!("resumed: what an interrupted repair found whole was not looked at again");
    }
    for mended in &report.mended {
        let plain = mended.plain.as_ref().map_or_else(String::new, |p| format!(" ({})", p.display()));
        let kept = mended.kept.as_ref().map_or_else(String::new, |k| format!("; kept as {}", k.display()));
        println!("{}: {}{plain}: {}{kept}", deed(mended.deed), mended.lower.display(), mended.why);
    }
    for fault in &report.faults {
        let plain = fault.plain.as_ref().map_or_else(String::new, |p| format!(" ({})", p.display()));
        println!("{}{plain}: {}", fault.lower.display(), fault.what);
    }
    if report.interrupted {
        println!("interrupted: the rest was not looked at");
    }
    if report.lost_found > 0 {
        println!("{} in .envelopefs/lost+found: look at them with salvage", objects(report.lost_found));
    }
    let counts = &report.counts;
    println!(
        "{} files, {} directories, {} symlinks, {} other nodes, {} bytes read: {}",
        counts.files,
        counts.directories,
        counts.symlinks,
        counts.others,
        counts.bytes,
        if report.faults.is_empty() {
            "no fault".to_owned()
        } else {
            format!("{} fault{}", report.faults.len(), if report.faults.len() == 1 { "" } else { "s" })
        }
    );
}

fn deed(deed: Deed) -> &'static str {
    match deed {
        Deed::Cut => "cut",
        Deed::Emptied => "emptied",
        Deed::Removed => "removed",
        Deed::Kept => "moved",
        Deed::Replayed => "replayed",
    }
}

fn objects(count: u64) -> String {
    if count == 1 { "1 object".to_owned() } else { format!("{count} objects") }
}
