//! Repair: the journal, then what a crash can leave, then a check of everything, which can be resumed.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::report::{Fault, Kind, Report};
use super::state::StateFile;
use super::walk::{self, Plan, Progress};
use crate::format::journal::JOURNAL_DIR;
use crate::format::names::{LOST_FOUND, LowerName, VAULT_DIR, parse};
use crate::fs::recover::{self, Born, Deed, LostFound, Mended, Watch};
use crate::fs::{self, FsError};
use crate::keys::Keyring;
use crate::vault::journal::IN_PLACE;

/// Mends what a crash can leave in the vault at `top`, then checks all of it with `jobs` files open at once.
///
/// Files born since `fresh_since` may have been torn by a power cut; by default the journal says since when. The
/// caller holds the vault's lock alone.
pub fn repair(
    top: &Path,
    keyring: &Keyring,
    jobs: usize,
    fresh_since: Option<Born>,
    progress: &dyn Progress,
) -> Report {
    let mut state = StateFile::of(top, keyring.vault_key()).ok();
    let earlier = state.as_ref().and_then(StateFile::read);
    let mut mended = Vec::new();
    let mut faults = Vec::new();
    // An earlier run that came to checking has mended everything, and nobody has mounted the vault since.
    if earlier.is_none() || fresh_since.is_some() {
        match mend(top, keyring, fresh_since, progress) {
            Ok(outcome) if outcome.interrupted => {
                return Report { mended: outcome.mended, interrupted: true, ..Report::default() };
            }
            Ok(outcome) => {
                mended = outcome.mended;
                // What could not be mended now may be later: the next run begins anew.
                state = state.filter(|_| outcome.failed.is_empty());
                faults.extend(outcome.failed.into_iter().map(not_mended));
            }
            Err(e) => faults.push(not_mended(("".into(), None, e.to_string()))),
        }
    }
    let resumed = earlier.is_some();
    let plan = Plan { earlier: earlier.unwrap_or_default(), state };
    let mut report = walk::run(top, keyring, jobs, progress, plan);
    report.resumed = resumed;
    report.mended = mended;
    report.faults.extend(faults);
    report.faults.sort();
    report
}

fn not_mended((lower, plain, why): (PathBuf, Option<PathBuf>, String)) -> Fault {
    Fault { lower, plain, kind: Kind::Io, what: format!("not mended: {why}") }
}

fn mend(
    top: &Path,
    keyring: &Keyring,
    fresh_since: Option<Born>,
    progress: &dyn Progress,
) -> Result<recover::Outcome, FsError> {
    let watch = Mending(progress);
    let replayed = replay_journal(top, keyring)?;
    let mut outcome = recover::mend(top, keyring, fresh_since, &watch)?;
    outcome.mended.extend(replayed.mended);
    outcome.failed.extend(replayed.failed);
    outcome.mended.sort();
    Ok(outcome)
}

struct Mending<'a>(&'a dyn Progress);

impl Watch for Mending<'_> {
    fn looked_at(&self) -> bool {
        self.0.mended()
    }
}

/// What the journal of a crashed mount said.
#[derive(Default)]
struct Replayed {
    mended: Vec<Mended>,
    failed: Vec<(PathBuf, Option<PathBuf>, String)>,
}

/// Brings what stands in the journal to its places, before anything else is looked at.
fn replay_journal(top: &Path, keyring: &Keyring) -> Result<Replayed, FsError> {
    let fd = std::fs::File::open(top).map_err(FsError::Replay)?;
    let Some(fs::Recovered { replayed, fresh }) = fs::replay(&fd, keyring, true)? else {
        return Ok(Replayed::default());
    };
    let lower = [VAULT_DIR, JOURNAL_DIR].iter().collect();
    let why = format!("changes of {} files", replayed.files);
    let mut mended = fresh.mended;
    mended.push(Mended { lower, plain: None, deed: Deed::Replayed, why, kept: None });
    let refused = |(file, why)| (PathBuf::new(), None, format!("journal, file {file}: {why}"));
    let failed = fresh.failed.into_iter().chain(replayed.refused.into_iter().map(refused)).collect();
    Ok(Replayed { mended, failed })
}

/// What `.envelopefs` itself holds of a crash; gives how many objects are in `lost+found`.
pub(super) fn look_inside(top: &Path, fault: &mut dyn FnMut(PathBuf, Kind, String)) -> u64 {
    let vault = top.join(VAULT_DIR);
    for entry in std::fs::read_dir(&vault).into_iter().flatten().flatten() {
        if parse(entry.file_name().as_bytes()) == LowerName::Temporary {
            fault(entry.path(), Kind::Leftover, "a temporary name that a crash left".into());
        }
    }
    let journal = vault.join(JOURNAL_DIR);
    // The note of mounts without a journal holds no changes.
    let is_log = |entry: std::io::Result<std::fs::DirEntry>| entry.is_ok_and(|e| e.file_name() != IN_PLACE);
    if std::fs::read_dir(&journal).is_ok_and(|mut entries| entries.any(is_log)) {
        let what = "changes of a mount that crashed stand in the journal: mount the vault, or check --repair; \
                    until then files may look damaged";
        fault(journal, Kind::Leftover, what.into());
    }
    LostFound::count(top).unwrap_or_else(|e| {
        fault(vault.join(LOST_FOUND), Kind::Io, e.to_string());
        0
    })
}
