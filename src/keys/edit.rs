//! Changing the small files of `.envelopefs` as a whole, also while the vault is mounted: who changes one says what he
//! read, and starts again when somebody else was faster.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags};

use super::init::{sync, temporary, write_durable};
use super::open::OpenError;
use crate::format::names::VAULT_DIR;

/// Held for the moment of a replacement.
const LOCK: &str = "edit.lock";

/// What stands in a file of the vault's own directory, up to `most` bytes and one; `None` where there is none. Follows
/// no link and waits for no FIFO.
pub(super) fn read(vault: &Path, name: &str, most: usize) -> Result<Option<Vec<u8>>, OpenError> {
    let path = vault.join(VAULT_DIR).join(name);
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).expect("open flags fit an int");
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(OpenError::io(&path))?,
    };
    if !file.metadata().map_err(OpenError::io(&path))?.is_file() {
        return Err(OpenError::io(&path)(std::io::Error::other("it is no regular file")));
    }
    let mut text = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut text).map_err(OpenError::io(&path))?;
    Ok(Some(text))
}

/// Replaces a file that still holds `before` by `after`, durably; gives whether it did.
pub(super) fn replace(
    vault: &Path,
    name: &str,
    before: Option<&[u8]>,
    after: &[u8],
) -> Result<bool, OpenError> {
    let dir = vault.join(VAULT_DIR);
    let lock = dir.join(LOCK);
    // As in `read`: no link is followed, no FIFO waited for.
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).expect("open flags fit an int");
    let guard = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags)
        .open(&lock)
        .map_err(OpenError::io(&lock))?;
    // Others hold it for a write and a rename.
    rustix::fs::flock(&guard, FlockOperation::LockExclusive).map_err(|e| OpenError::io(&lock)(e.into()))?;
    if read(vault, name, usize::MAX - 1)?.as_deref() != before {
        return Ok(false);
    }
    let (path, tmp) = (dir.join(name), dir.join(temporary()));
    let written = write_durable(&tmp, after).and_then(|()| std::fs::rename(&tmp, &path));
    if written.is_err() {
        let _ = std::fs::remove_file(&tmp);
    }
    written.map_err(OpenError::io(&path))?;
    sync(&dir)?;
    drop::<File>(guard);
    Ok(true)
}
