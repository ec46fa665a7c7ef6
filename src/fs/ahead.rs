//! Who lists a directory of many files is likely to open them: their keys are asked for ahead, where the mount was told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Fs;
use super::dirs::OpenDir;
use crate::format::header::{FileHeader, HEADER_XATTR};
use crate::keys::Ahead;
use crate::vault::stat::{self, S_IFREG};
use crate::vault::{entry, xattr};

/// Files in a listing's first reply from which on it is worth while.
const MANY: usize = 4;
/// Read permission of the owner: without it the daemon of an ordinary user changes the mode to read a header.
const OWNER_READS: u32 = 0o400;

/// What one reply of a listing names.
pub(super) struct Files {
    names: Vec<String>,
    most: usize,
}

impl Files {
    /// Whether an entry of this type may be a regular file: a lower filesystem need not tell.
    pub(super) fn may_be(kind: u32) -> bool {
        matches!(kind, S_IFREG | 0)
    }

    /// Notes a lower name.
    pub(super) fn note(&mut self, lower: &[u8]) {
        if self.names.len() < self.most {
            self.names.push(String::from_utf8_lossy(lower).into_owned());
        }
    }
}

impl Fs {
    /// For a reply of a listing of which keys of so many files were asked for.
    pub(super) fn files_ahead(&self, asked: &AtomicUsize) -> Files {
        let most = self.keyring.ahead().saturating_sub(asked.load(Ordering::Relaxed));
        Files { names: Vec::new(), most }
    }

    /// Has the keys of a reply's files unwrapped in the background.
    pub(super) fn unwrap_ahead(&self, dir: &Arc<OpenDir>, files: Files, asked: &AtomicUsize) {
        let few = files.names.len() < MANY && asked.load(Ordering::Relaxed) == 0;
        if files.names.is_empty() || few {
            return;
        }
        asked.fetch_add(files.names.len(), Ordering::Relaxed);
        self.keyring.prefetch(files.names.into_iter().map(|lower| -> Ahead {
            let dir = Arc::clone(dir);
            Box::new(move || header(&dir, &lower))
        }));
    }
}

fn header(dir: &OpenDir, lower: &str) -> Option<FileHeader> {
    let file = entry::open_path(dir, lower).ok()?;
    let stat = stat::stat_fd(&file).ok()?;
    if stat.kind() != S_IFREG || stat.permissions() & OWNER_READS == 0 {
        return None;
    }
    FileHeader::decode(&xattr::get(file, HEADER_XATTR).ok()?).ok()
}
