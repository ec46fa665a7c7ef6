//! New data keys: the content of a file is read under its old key and written anew under a new one, with a new file
//! id, beside it; then the new file takes its name. At any moment the name has the old file or the new one, whole.
//!
//! The vault must be used by nobody else meanwhile, and its journal be brought in.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::OFlags;
use zeroize::Zeroizing;

use super::state::WorkLock;
use super::walk::{self, Found, open_below};
use super::{Outcome, Pace, UpkeepError, Watch};
use crate::content;
use crate::crypto::{XattrKey, random};
use crate::format::header::{FileHeader, HEADER_XATTR};
use crate::format::names::{LONG_XATTR_PREFIX, TMP_PREFIX, VAULT_DIR, XATTR_PREFIX};
use crate::keys::Keyring;
use crate::vault::access::{self, Want};
use crate::vault::entry::{self, NewTime};
use crate::vault::stat::{self, S_IFREG};
use crate::vault::{FreshFile, LowerFile, xattr};

/// Plaintext that is moved at once.
const CHUNK: usize = 1 << 20;

/// Gives every file of the vault at `top` a new data key. Files with several names, which cannot change in one step,
/// are left as they are.
pub fn rekey_vault(
    top: &Path,
    keyring: &Keyring,
    pace: Pace,
    watch: &dyn Watch,
) -> Result<Outcome, UpkeepError> {
    let _alone = WorkLock::take(top)?;
    let dir = open_top(top)?;
    let outcome = Mutex::new(Outcome::default());
    let whole = walk::each_file(&dir, pace, watch, &|found| {
        let result = one(&dir, &found, keyring);
        let mut outcome = outcome.lock();
        outcome.files += 1;
        match result {
            Ok(Done::Changed) => outcome.changed += 1,
            Ok(Done::Bare) => outcome.bare += 1,
            Ok(Done::Skipped(why)) => outcome.skipped.add(found.path, why.to_owned()),
            Err(why) => outcome.failed.add(found.path, why),
        }
    })?;
    let mut outcome = outcome.into_inner();
    outcome.interrupted = !whole;
    rustix::fs::syncfs(&dir).map_err(UpkeepError::io(top))?;
    Ok(outcome)
}

/// Gives one lower file, `path` below the vault, a new data key.
pub fn rekey_file(top: &Path, path: &Path, keyring: &Keyring) -> Result<(), UpkeepError> {
    let _alone = WorkLock::take(top)?;
    let dir = open_top(top)?;
    let fail = |why: String| UpkeepError::File { path: path.to_owned(), why };
    let fd = open_below(&dir, path, OFlags::PATH | OFlags::NOFOLLOW).map_err(|e| fail(e.to_string()))?;
    let stat = stat::stat_fd(&fd).map_err(|e| fail(e.to_string()))?;
    if stat.kind() != S_IFREG {
        return Err(fail("it is no regular file".into()));
    }
    match one(&dir, &Found { fd, stat, path: path.to_owned() }, keyring) {
        Ok(Done::Changed) => rustix::fs::syncfs(&dir).map_err(UpkeepError::io(top)),
        Ok(Done::Bare) => Err(fail(format!("it has no header (xattr {HEADER_XATTR})"))),
        Ok(Done::Skipped(why)) => Err(fail(why.to_owned())),
        Err(why) => Err(fail(why)),
    }
}

enum Done {
    Changed,
    Bare,
    Skipped(&'static str),
}

fn open_top(top: &Path) -> Result<OwnedFd, UpkeepError> {
    Ok(File::open(top).map_err(|source| UpkeepError::Io { path: top.to_owned(), source })?.into())
}

fn one(top: &OwnedFd, found: &Found, keyring: &Keyring) -> Result<Done, String> {
    let said = |what: &'static str| move |e: rustix::io::Errno| format!("{what}: {e}");
    if found.path.starts_with(VAULT_DIR) {
        return Ok(Done::Skipped("it lies in lost+found"));
    }
    if found.stat.nlink > 1 {
        return Ok(Done::Skipped(
            "it has several names (hard links), which cannot be given a new file in one step",
        ));
    }
    let bytes = match xattr::get(&found.fd, HEADER_XATTR) {
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => return Ok(Done::Bare),
        other => other.map_err(said("header"))?,
    };
    let header = FileHeader::decode(&bytes).map_err(|e| e.to_string())?;
    let parent = found.path.parent().unwrap_or(Path::new(""));
    let name = found.path.file_name().and_then(|n| n.to_str()).ok_or("its name is no text")?;
    let dir = open_below(top, parent, OFlags::RDONLY | OFlags::DIRECTORY).map_err(said("directory"))?;

    let (lower, _) = access::open_content(&found.fd, Want::ReadOnly).map_err(said("open"))?;
    let keys = keyring.open_file(&header).map_err(|e| e.to_string())?;
    let old = content::File::open(Box::new(Arc::new(crate::vault::DiskFile(lower))), keys);
    let old = old.map_err(|e| e.to_string())?;

    let new = keyring.new_file().map_err(|e| e.to_string())?;
    let fresh = FreshFile::make(dir.as_fd(), (0o600, 0), temporary).map_err(said("new file"))?;
    fresh.set_xattr(HEADER_XATTR, &new.header).map_err(said("new header"))?;
    let file =
        content::File::create(Box::new(Arc::clone(fresh.file())), new.keys).map_err(|e| e.to_string())?;
    copy(&old, &file).map_err(|e| e.to_string())?;
    let vault_key = keyring.vault_key();
    let keys = (XattrKey::derive(vault_key, &header.file_id.0), XattrKey::derive(vault_key, &new.file_id.0));
    attributes(found, &fresh.file().0, &keys)?;
    fresh.file().sync(false).map_err(|e| e.to_string())?;
    fresh.replace(name, temporary()).map_err(said("rename"))?;
    rustix::fs::fsync(&dir).map_err(said("sync"))?;
    Ok(Done::Changed)
}

fn temporary() -> String {
    format!("{TMP_PREFIX}{:016x}", u64::from_le_bytes(random::array()))
}

/// Moves the plaintext over, hole by hole.
fn copy(old: &content::File, new: &content::File) -> content::Result<()> {
    let mut buffer = Zeroizing::new(vec![0; CHUNK]);
    let mut at = 0;
    while let Some(start) = old.seek_data(at)? {
        let end = old.seek_hole(start)?.unwrap_or_else(|| old.len());
        at = start;
        while at < end {
            let want = usize::try_from(end - at).map_or(CHUNK, |n| n.min(CHUNK));
            let read = old.read(at, &mut buffer[..want])?;
            if read == 0 {
                break;
            }
            new.write(at, &buffer[..read])?;
            at += read as u64;
        }
        if at <= start {
            break;
        }
    }
    if new.len() != old.len() {
        new.set_len(old.len())?;
    }
    new.sync(false)
}

/// Everything that the old file has beside its content: xattrs (those of users sealed anew: their key follows from the
/// file id), owner, mode, ACLs, times.
fn attributes(old: &Found, new: &File, (before, after): &(XattrKey, XattrKey)) -> Result<(), String> {
    let said = |what: &str| {
        let what = what.to_owned();
        move |e: rustix::io::Errno| format!("{what}: {e}")
    };
    let stat = &old.stat;
    entry::chown(new, Some(stat.uid), Some(stat.gid)).map_err(said("owner"))?;
    access::chmod(new, stat.permissions()).map_err(said("mode"))?;
    for lower in xattr::list(&old.fd).map_err(said("xattrs"))? {
        if lower == HEADER_XATTR {
            continue;
        }
        let value = xattr::get(&old.fd, &lower).map_err(said(&lower))?;
        let (lower, value) = if lower.starts_with(XATTR_PREFIX) || lower.starts_with(LONG_XATTR_PREFIX) {
            let changed = || format!("xattr {lower} does not open: changed, or of another file");
            let name = before.decode_name(&lower, || Some(value.clone())).map_err(|_| changed())?;
            let plain = Zeroizing::new(before.decode_value(&name, &value).map_err(|_| changed())?);
            (after.encode_name(&name), after.encode_value(&name, &plain))
        } else {
            (lower, value)
        };
        xattr::set(new, &lower, &value, 0).map_err(said(&lower))?;
    }
    let time = |(seconds, nanos)| NewTime::At(seconds, nanos);
    entry::set_times(new, time(stat.atime), time(stat.mtime)).map_err(said("times"))
}
