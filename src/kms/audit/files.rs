//! Files of the log: `audit-00000001.jsonl`, `audit-00000002.jsonl`, ... and `head`, private to their owner.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::AuditError;

/// The file of a number.
pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("audit-{number:08}.jsonl"))
}

/// The head's file.
pub(super) fn head_path(dir: &Path) -> PathBuf {
    dir.join("head")
}

/// Makes the directory where it does not exist, private to its owner; durable when this returns.
pub(super) fn make_dir(dir: &Path) -> Result<(), AuditError> {
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => sync_above(dir),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(AuditError::io(dir)(e)),
    }
}

/// Opens a file for reading and appending; makes it where it does not exist, with a durable name.
pub(super) fn open(path: &Path, append: bool) -> Result<File, AuditError> {
    let mut options = OpenOptions::new();
    options.read(true).mode(0o600);
    if append {
        options.append(true);
    } else {
        options.write(true).truncate(false);
    }
    match options.open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let file = options.create(true).open(path).map_err(AuditError::io(path))?;
            sync_above(path)?;
            Ok(file)
        }
        other => other.map_err(AuditError::io(path)),
    }
}

fn sync_above(path: &Path) -> Result<(), AuditError> {
    path.parent().map_or(Ok(()), sync_dir)
}

/// Makes the entries of a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), AuditError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(AuditError::io(dir))
}

/// Numbers of the files that there are, in order.
pub(super) fn numbers(dir: &Path) -> Result<Vec<u64>, AuditError> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(AuditError::io(dir))? {
        let name = entry.map_err(AuditError::io(dir))?.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix("audit-")?.strip_suffix(".jsonl"));
        all.extend(number.and_then(|n| n.parse::<u64>().ok()));
    }
    all.sort_unstable();
    Ok(all)
}
