//! Directories as lists. The cookies are the lower filesystem's own, so they stay valid while entries come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::ahead::Files;
use super::dirs::OpenDir;
use super::inode::Inode;
use super::{DirEntry, Fs, Ino, Result, TOP};
use crate::format::names::{self, LowerName};
use crate::vault::{Listing, RawEntry, entry, sidecar};

/// An open directory.
pub(super) struct OpenListing {
    inode: Arc<Inode>,
    dir: Arc<OpenDir>,
    listing: Mutex<Listing>,
    warned: AtomicBool,
    /// Files whose keys were asked for ahead.
    ahead: AtomicUsize,
}

fn shown<'a>(raw: &RawEntry, ino: Ino, name: &'a [u8]) -> DirEntry<'a> {
    DirEntry { ino, next: raw.next, kind: raw.kind, name, found: None }
}

type Sink<'a> = dyn FnMut(&DirEntry<'_>) -> bool + 'a;

impl Fs {
    /// Opens a directory; gives its handle.
    pub fn opendir(&self, ino: Ino) -> Result<u64> {
        let inode = self.inode(ino)?;
        let dir = self.dir(ino)?;
        let listing = Mutex::new(Listing::new(entry::open_dir_read(
            &*dir,
            self.options.read_only || self.options.no_atime,
        )?));
        let (warned, ahead) = (AtomicBool::new(false), AtomicUsize::new(0));
        Ok(self.listings.put(OpenListing { inode, dir, listing, warned, ahead }))
    }

    /// Lists from cookie `offset` on until `sink` returns false (full; the entry it refused is not consumed).
    /// With `plus`, entries carry attributes and a reference; a refused entry's reference is given back here.
    pub fn readdir(
        &self,
        fh: u64,
        offset: u64,
        plus: bool,
        sink: &mut dyn FnMut(&DirEntry<'_>) -> bool,
    ) -> Result<()> {
        let open = self.listings.get(fh)?;
        let mut listing = open.listing.lock();
        listing.seek(offset)?;
        let mut files = self.files_ahead(&open.ahead);
        while let Some(raw) = listing.peek()? {
            let mut is_file = false;
            let mut noting = |entry: &DirEntry<'_>| {
                is_file = Files::may_be(entry.kind);
                sink(entry)
            };
            if !self.show(&open, raw, plus, &mut noting)? {
                break;
            }
            if is_file {
                files.note(&raw.name);
            }
            listing.advance();
        }
        drop(listing);
        self.unwrap_ahead(&open.dir, files, &open.ahead);
        Ok(())
    }

    /// Closes a directory.
    pub fn releasedir(&self, fh: u64) {
        self.listings.remove(fh);
    }

    /// Makes a directory's entries durable.
    pub fn fsyncdir(&self, fh: u64) -> Result<()> {
        let open = self.listings.get(fh)?;
        let listing = open.listing.lock();
        Ok(rustix::fs::fsync(listing.fd())?)
    }

    /// Shows one lower entry, if it is one of the mount; `false` when the sink is full.
    fn show(&self, open: &OpenListing, raw: &RawEntry, plus: bool, sink: &mut Sink<'_>) -> Result<bool> {
        match raw.name.as_slice() {
            b"." => return Ok(sink(&shown(raw, open.inode.ino, b"."))),
            b".." => return Ok(sink(&shown(raw, self.above(open, raw), b".."))),
            _ => {}
        }
        let Some(name) = self.plain_name(open, &raw.name)? else { return Ok(true) };
        let ino = self.ino_of(raw.ino);
        if !plus {
            return Ok(sink(&shown(raw, ino, &name)));
        }
        // Encoded names are text; `plain_name` took no other.
        let lower = String::from_utf8_lossy(&raw.name);
        match self.enter(&open.inode, &open.dir, &lower) {
            Ok(found) => {
                let kind = found.attr.mode & libc::S_IFMT;
                let full = DirEntry { kind, found: Some(found), ..shown(raw, found.attr.ino, &name) };
                let taken = sink(&full);
                if !taken {
                    self.forget(found.attr.ino, 1);
                }
                Ok(taken)
            }
            // Removed since the lower listing was read; or another filesystem, whose number may be one of ours.
            Err(e) if matches!(e.errno(), libc::ENOENT | libc::EXDEV) => Ok(true),
            Err(_) => Ok(sink(&shown(raw, ino, &name))),
        }
    }

    fn above(&self, open: &OpenListing, raw: &RawEntry) -> Ino {
        if open.inode.ino == TOP { TOP } else { self.ino_of(raw.ino) }
    }

    /// Plaintext of a lower name; `None` for what does not show.
    fn plain_name(&self, open: &OpenListing, lower: &[u8]) -> Result<Option<Vec<u8>>> {
        let key = open.dir.names(self.keyring.vault_key())?;
        let name = match names::parse(lower) {
            LowerName::Short(sealed) => key.decode(&sealed).ok(),
            LowerName::Long(hash) => match sidecar::read(&*open.dir, &names::sidecar_name(&hash)) {
                Ok(sealed) => key.decode_long(&hash, &sealed).ok(),
                // Removed since the lower listing was read, or lost.
                Err(Errno::NOENT) => None,
                // Something else that someone put in its place must not hide the other entries.
                Err(Errno::LOOP | Errno::NXIO | Errno::SPIPE | Errno::ISDIR | Errno::ACCESS) => None,
                Err(e) => return Err(e.into()),
            },
            LowerName::Sidecar(_) | LowerName::Temporary => return Ok(None),
            LowerName::Vault if open.inode.ino == TOP => return Ok(None),
            LowerName::Vault | LowerName::Foreign => None,
        };
        if name.is_none() && !open.warned.swap(true, Ordering::Relaxed) {
            let text = String::from_utf8_lossy(lower);
            log::warn!(
                "directory inode {}: lower entry {text:?} does not decode and is not shown",
                open.inode.ino
            );
        }
        Ok(name)
    }
}
