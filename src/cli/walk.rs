//! Counts of a vault, from lower names and lengths alone: no key is needed.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::Serialize;

use crate::format::layout;
use crate::format::names::{LowerName, parse};

/// What a vault holds.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Counts {
    /// Regular files (names, so a file with two links counts twice).
    pub(super) files: u64,
    /// Directories, without the top.
    pub(super) directories: u64,
    /// Symlinks.
    pub(super) symlinks: u64,
    /// FIFOs, sockets, device nodes.
    pub(super) others: u64,
    /// Bytes of plaintext.
    pub(super) plain_bytes: u64,
    /// Bytes of the lower files.
    pub(super) lower_bytes: u64,
    /// Lower names that this program did not write, or that a crash left.
    pub(super) foreign: u64,
}

/// Walks the vault below `top`.
pub(super) fn count(top: &Path) -> io::Result<Counts> {
    let mut counts = Counts::default();
    let mut open = vec![top.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            match parse(entry.file_name().as_bytes()) {
                LowerName::Short(_) | LowerName::Long(_) => {}
                LowerName::Sidecar(_) => continue,
                LowerName::Vault if dir == top => continue,
                LowerName::Vault | LowerName::Temporary | LowerName::Foreign => {
                    counts.foreign += 1;
                    continue;
                }
            }
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                // Removed meanwhile: the vault may be mounted.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            if meta.is_dir() {
                counts.directories += 1;
                open.push(entry.path());
            } else if meta.is_file() {
                counts.files += 1;
                counts.lower_bytes += meta.len();
                counts.plain_bytes += layout::plain_len(meta.len()).unwrap_or(0);
            } else if meta.is_symlink() {
                counts.symlinks += 1;
            } else {
                counts.others += 1;
            }
        }
    }
    Ok(counts)
}
