//! Which keys the files of a vault are wrapped with. Needs no key: a header names row and version in the clear.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::walk;
use super::{Pace, UpkeepError, Watch};
use crate::format::header::{FileHeader, HEADER_XATTR, Wrapped};
use crate::vault::xattr;

/// One kind of wrapped copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Used {
    /// Row of the volume config.
    pub row: u8,
    /// Version of the key; `None` where the provider's bytes keep it to themselves.
    pub version: Option<u16>,
}

/// What headers name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Regular files (names, so a file with two links counts twice).
    pub files: u64,
    /// Files with a copy of each kind.
    pub copies: BTreeMap<Used, u64>,
    /// Files that one row alone opens, by row.
    pub sole: BTreeMap<u8, u64>,
    /// Files without a header.
    pub bare: u64,
    /// Files whose header cannot be read or does not decode: they may hold a copy of any kind.
    pub unread: u64,
    /// Whether it was stopped.
    pub interrupted: bool,
}

/// Looks at every header of the vault at `top`.
pub fn inventory(top: &Path, pace: Pace, watch: &dyn Watch) -> Result<Inventory, UpkeepError> {
    let dir: OwnedFd =
        File::open(top).map_err(|source| UpkeepError::Io { path: top.to_owned(), source })?.into();
    let found = Mutex::new(Inventory::default());
    let whole = walk::each_file(&dir, pace, watch, &|file| {
        let header = match xattr::get(&file.fd, HEADER_XATTR) {
            Ok(bytes) => FileHeader::decode(&bytes).map(Some).map_err(drop),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            Err(_) => Err(()),
        };
        found.lock().add(header);
    })?;
    let mut found = found.into_inner();
    found.interrupted = !whole;
    Ok(found)
}

impl Inventory {
    fn add(&mut self, header: Result<Option<FileHeader>, ()>) {
        self.files += 1;
        let header = match header {
            Ok(Some(header)) => header,
            Ok(None) => return self.bare += 1,
            Err(()) => return self.unread += 1,
        };
        for recipient in &header.recipients {
            let version = match recipient.wrapped {
                Wrapped::Compact { version, .. } => Some(version),
                Wrapped::Blob(_) => None,
            };
            *self.copies.entry(Used { row: recipient.key_index, version }).or_default() += 1;
        }
        if let [only] = header.recipients.as_slice() {
            *self.sole.entry(only.key_index).or_default() += 1;
        }
    }

    /// Files with a copy for a row.
    pub fn of_row(&self, row: u8) -> u64 {
        self.copies.iter().filter(|(used, _)| used.row == row).map(|(_, count)| count).sum()
    }
}
