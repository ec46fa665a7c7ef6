//! Leftover names: temporaries, and sidecars whose long name is gone.

use rustix::io::{Errno, Result};

use super::dir::Dir;
use super::lost::LostFound;
use super::{Deed, EMPTY, Mended};
use crate::format::header::HEADER_XATTR;
use crate::format::names::{LowerName, long_name, parse};
use crate::vault::stat::{S_IFDIR, S_IFREG};
use crate::vault::{LowerStat, entry, stat, xattr};

/// A leftover that is longer is looked after: the longest sidecar, and what `init` writes, are shorter.
const WORTHLESS: u64 = 512;

/// Removes a leftover name, or moves to `lost+found` what still holds something. `None`: it is no leftover.
pub(super) fn mend(dir: &Dir, name: &[u8], lost: impl Fn() -> Result<LostFound>) -> Result<Option<Mended>> {
    let why = match parse(name) {
        LowerName::Temporary => "a temporary name that a crash left",
        LowerName::Sidecar(hash) => match stat::stat_at(dir, &long_name(&hash)) {
            Err(Errno::NOENT) => "a sidecar whose long name is gone",
            other => return other.map(|_| None),
        },
        LowerName::Short(_) | LowerName::Long(_) | LowerName::Vault | LowerName::Foreign => return Ok(None),
    };
    // Neither sort has other characters unless someone else made it.
    let Ok(text) = std::str::from_utf8(name) else { return Ok(None) };
    let at = stat::stat_at(dir, text)?;
    let lower = dir.lower(name);
    let kept = if is_worthless(dir, text, &at)? && remove(dir, text, &at)? {
        None
    } else {
        Some(lost()?.take(dir, text, at.ino, &lower, why)?)
    };
    let deed = if kept.is_some() { Deed::Kept } else { Deed::Removed };
    Ok(Some(Mended { lower, plain: None, deed, why: why.to_owned(), kept }))
}

/// Whether removing an entry loses nothing that anybody wrote.
fn is_worthless(dir: &Dir, name: &str, at: &LowerStat) -> Result<bool> {
    if at.kind() != S_IFREG || at.nlink > 1 {
        return Ok(true);
    }
    match xattr::get(entry::open_path(dir, name)?, HEADER_XATTR) {
        // The record of an empty file, or less.
        Ok(_) => Ok(at.size <= EMPTY),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(at.size <= WORTHLESS),
        Err(e) => Err(e),
    }
}

/// Removes an entry; false for a directory that is not empty.
fn remove(dir: &Dir, name: &str, at: &LowerStat) -> Result<bool> {
    if at.kind() != S_IFDIR {
        return entry::unlink(dir, name).map(|()| true);
    }
    match entry::rmdir(dir, name) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        other => other.map(|()| true),
    }
}
