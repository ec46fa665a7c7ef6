//! One regular file: cut where it is overlong; put aside and emptied where it is fresh and does not open.

use std::fs::File;
use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::{Errno, Result};

use super::lost::LostFound;
use super::{Deed, EMPTY};
use crate::content::{self, ContentError, Fault};
use crate::crypto::FileKeys;
use crate::format::header::{FileHeader, HEADER_XATTR};
use crate::format::layout::disk_len;
use crate::keys::Keyring;
use crate::vault::access::{self, Want};
use crate::vault::sidecar::errno;
use crate::vault::stat::S_IFREG;
use crate::vault::{DiskFile, LowerFile, entry, stat, xattr};

/// What was done to a file, and why.
pub(super) struct Done {
    pub(super) deed: Deed,
    pub(super) why: String,
    pub(super) kept: Option<PathBuf>,
}

/// Mends a regular file where a crash explains what is wrong with it; `fresh` says that a power cut may have torn it.
/// What nothing explains is left for `check`.
pub(super) fn mend(
    dir: impl std::os::fd::AsFd,
    name: &str,
    fresh: bool,
    keyring: &Keyring,
    keep: impl Fn(&File, &str) -> Result<PathBuf>,
) -> Result<Option<Done>> {
    let fd = entry::open_path(dir, name)?;
    if stat::stat_fd(&fd)?.kind() != S_IFREG {
        return Ok(None);
    }
    let header = match xattr::get(&fd, HEADER_XATTR) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
        other => other?,
    };
    let Ok(header) = FileHeader::decode(&header) else { return Ok(None) };
    let Ok(keys) = keyring.open_file(&header) else { return Ok(None) };
    let (file, _) = access::open_content(&fd, Want::ReadOnly)?;
    let lower = Arc::new(DiskFile(file));
    let writable = || Ok(DiskFile(access::open_content(&fd, Want::Write)?.0));
    match judge(&lower, &keys, fresh)? {
        Judged::Sound | Judged::Unexplained => Ok(None),
        Judged::Overlong { found, expected } => {
            let lower = writable()?;
            lower.set_len(expected).and_then(|()| lower.sync(false)).map_err(errno)?;
            let why = format!("its lower file had {found} bytes, its authenticated length needs {expected}");
            Ok(Some(Done { deed: Deed::Cut, why, kept: None }))
        }
        Judged::Torn(why) => {
            let kept = keep(&lower.0, &why)?;
            empty(&writable()?, &keys)?;
            Ok(Some(Done { deed: Deed::Emptied, why, kept: Some(kept) }))
        }
    }
}

enum Judged {
    Sound,
    Overlong { found: u64, expected: u64 },
    Torn(String),
    Unexplained,
}

fn judge(lower: &Arc<DiskFile>, keys: &Arc<FileKeys>, fresh: bool) -> Result<Judged> {
    let found = lower.len().map_err(errno)?;
    let file = match content::File::open(Box::new(Arc::clone(lower)), Arc::clone(keys)) {
        Ok(file) => file,
        Err(ContentError::Damaged(what)) if fresh => return Ok(Judged::Torn(what.to_string())),
        Err(ContentError::Damaged(_) | ContentError::TooLong) => return Ok(Judged::Unexplained),
        Err(ContentError::Io(e)) => return Err(errno(e)),
    };
    if fresh {
        let mut first: Option<Fault> = None;
        let mut note = |fault| {
            if !matches!(fault, Fault::Overlong { .. }) {
                first.get_or_insert(fault);
            }
        };
        match file.verify(&mut note, &mut |_| true) {
            Ok(_) => {}
            Err(ContentError::Io(e)) => return Err(errno(e)),
            Err(ContentError::Damaged(what)) => return Ok(Judged::Torn(what.to_string())),
            Err(ContentError::TooLong) => return Ok(Judged::Unexplained),
        }
        if let Some(what) = first {
            return Ok(Judged::Torn(what.to_string()));
        }
    }
    let expected = disk_len(file.len());
    Ok(if found > expected { Judged::Overlong { found, expected } } else { Judged::Sound })
}

/// Makes a lower file what it was at its creation. The record comes first: with it in place the rest is bytes behind
/// the end, so that a crash in between loses nothing that is not kept already.
fn empty(lower: &DiskFile, keys: &FileKeys) -> Result<()> {
    let record = keys.seal_inline(&[]);
    let done = lower.write_at(&[IoSlice::new(&record)], 0).and_then(|()| lower.set_len(EMPTY));
    done.and_then(|()| lower.sync(false)).map_err(errno)
}

/// Copies a file to `lost+found`.
pub(super) fn keep(lost: &LostFound, file: &File, lower: &std::path::Path, why: &str) -> Result<PathBuf> {
    lost.copy(file, &stat::stat_fd(file)?, lower, why)
}
