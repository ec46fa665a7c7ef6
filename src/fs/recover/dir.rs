//! One lower directory on the walk: its descriptor, and how it is called below and above.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustix::fs::{Mode, OFlags};
use rustix::io::Result;

use crate::crypto::{DirKey, VaultKey};
use crate::format::header::DIR_XATTR;
use crate::format::ids::DirId;
use crate::format::names::{LowerName, parse, sidecar_name};
use crate::vault::{Listing, entry, sidecar, xattr};

/// A directory of the vault, open.
pub(super) struct Dir {
    fd: OwnedFd,
    above: Option<(Arc<Dir>, Vec<u8>)>,
    key: OnceLock<Option<DirKey>>,
}

impl Dir {
    /// The vault's top.
    pub(super) fn top(fd: OwnedFd) -> Self {
        Self { fd, above: None, key: OnceLock::new() }
    }

    /// A directory in another one.
    pub(super) fn below(above: &Arc<Self>, name: &[u8]) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(above.as_fd(), name, flags, Mode::empty())?;
        Ok(Self { fd, above: Some((Arc::clone(above), name.to_vec())), key: OnceLock::new() })
    }

    /// Its lower names, sorted, without `.` and `..`.
    pub(super) fn names(&self) -> Result<BTreeSet<Vec<u8>>> {
        let mut names = BTreeSet::new();
        let mut listing = Listing::new(entry::open_dir_read(&self.fd, false)?);
        while let Some(found) = listing.peek()? {
            if !matches!(&found.name[..], b"." | b"..") {
                names.insert(found.name.clone());
            }
            listing.advance();
        }
        Ok(names)
    }

    /// Lower path of an entry, from the vault's top.
    pub(super) fn lower(&self, name: &[u8]) -> PathBuf {
        let mut names = vec![name];
        let mut at = self;
        while let Some((above, name)) = &at.above {
            names.push(name);
            at = above;
        }
        names.into_iter().rev().map(OsStr::from_bytes).collect()
    }

    /// Plaintext path of an entry, if every name on the way decodes.
    pub(super) fn plain(&self, key: &VaultKey, name: &[u8]) -> Option<PathBuf> {
        let mut names = vec![self.decode(key, name)?];
        let mut at = self;
        while let Some((above, name)) = &at.above {
            names.push(above.decode(key, name)?);
            at = above;
        }
        Some(names.iter().rev().map(|n| OsStr::from_bytes(n)).collect())
    }

    fn decode(&self, key: &VaultKey, name: &[u8]) -> Option<Vec<u8>> {
        let key = self.key.get_or_init(|| {
            let id = xattr::get(&self.fd, DIR_XATTR).ok()?;
            Some(DirKey::derive(key, &DirId(id.try_into().ok()?)))
        });
        let key = key.as_ref()?;
        match parse(name) {
            LowerName::Short(sealed) => key.decode(&sealed).ok(),
            LowerName::Long(hash) => {
                let sealed = sidecar::read(&self.fd, &sidecar_name(&hash)).ok()?;
                key.decode_long(&hash, &sealed).ok()
            }
            LowerName::Sidecar(_) | LowerName::Temporary | LowerName::Vault | LowerName::Foreign => None,
        }
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Dir {
    /// A chain of parents that only this one held is let go of one by one: a tree may be deeper than the stack.
    fn drop(&mut self) {
        let mut next = self.above.take();
        while let Some((above, _)) = next {
            next = Arc::into_inner(above).and_then(|mut dir| dir.above.take());
        }
    }
}
