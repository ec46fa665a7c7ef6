//! What a crash may leave in a lower directory: temporaries, and sidecars whose entry is gone. They do not show in
//! the mount, so they must not keep a directory from being removed.

use std::os::fd::AsFd;

use rustix::io::{Errno, Result};

use super::{Listing, entry, stat};
use crate::format::names::{self, LowerName};

/// Removes the leftovers of a directory if it holds nothing else; gives whether it is empty now. A directory that
/// holds anything else is left as it is.
pub fn clear(dir: impl AsFd + Copy) -> Result<bool> {
    let mut junk = Vec::new();
    let mut listing = Listing::new(entry::open_dir_read(dir, false)?);
    while let Some(found) = listing.peek()? {
        let name = String::from_utf8_lossy(&found.name).into_owned();
        listing.advance();
        match names::parse(name.as_bytes()) {
            _ if name == "." || name == ".." => {}
            LowerName::Temporary => junk.push(name),
            LowerName::Sidecar(hash) => match stat::stat_at(dir, &names::long_name(&hash)) {
                Err(Errno::NOENT) => junk.push(name),
                _ => return Ok(false),
            },
            LowerName::Short(_) | LowerName::Long(_) | LowerName::Vault | LowerName::Foreign => {
                return Ok(false);
            }
        }
    }
    for name in junk {
        match entry::discard(dir, &name) {
            Err(Errno::NOENT) => {}
            other => other?,
        }
    }
    Ok(true)
}
