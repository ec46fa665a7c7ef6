//! A snapshot of a repository as a lower directory, with its xattrs, read by ranges as it is asked for.
//!
//! Over it a vault is opened read-only, so that a user looks into a backup before he restores it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use log::warn;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::ciphertext::list;
use super::nodes::{Handles, Nodes};
use crate::backup::{BackupError, Item, Reader, Snapshot, StoredFile};
use crate::fs::{Attr, Ino, StatFs};
use crate::fuse::{Answer, Attributes, Entries, Entry, Handler, Looked, Opened};
use crate::vault::LowerFile;
use crate::vault::stat::S_IFDIR;

/// A snapshot never changes.
const TTL: Duration = Duration::from_secs(86_400);
/// Directories whose entries are kept in memory.
const DIRS: usize = 256;

/// The entries of a directory, by name.
type Children = Arc<HashMap<Vec<u8>, Arc<Item>>>;

/// See the module.
#[derive(Debug)]
pub struct SnapshotView {
    reader: Arc<Reader>,
    snapshot: Snapshot,
    top: Arc<Item>,
    nodes: Nodes,
    files: Handles<StoredFile>,
    listings: Handles<Vec<(Vec<u8>, u32)>>,
    dirs: Mutex<lru::LruCache<PathBuf, Children>>,
}

impl SnapshotView {
    /// The view of one snapshot.
    pub fn new(reader: Arc<Reader>, snapshot: Snapshot) -> crate::backup::Result<Self> {
        let top = Arc::new(reader.item(&snapshot, Path::new(""))?);
        let dirs = lru::LruCache::new(std::num::NonZeroUsize::new(DIRS).expect("not zero"));
        Ok(Self {
            reader,
            snapshot,
            top,
            nodes: Nodes::new(),
            files: Handles::new(),
            listings: Handles::new(),
            dirs: Mutex::new(dirs),
        })
    }

    fn children(&self, dir: &Path) -> Answer<Children> {
        if let Some(found) = self.dirs.lock().get(dir) {
            return Ok(Arc::clone(found));
        }
        let items = self.reader.children(&self.snapshot, dir).map_err(|e| failed(dir, &e))?;
        let named = items.into_iter().filter_map(|item| {
            let name = item.path.file_name()?.as_bytes().to_vec();
            Some((name, Arc::new(item)))
        });
        let children: Children = Arc::new(named.collect());
        self.dirs.lock().put(dir.to_owned(), Arc::clone(&children));
        Ok(children)
    }

    fn item(&self, path: &Path) -> Answer<Arc<Item>> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(Arc::clone(&self.top));
        };
        self.children(dir)?.get(name.as_bytes()).cloned().ok_or(Errno::NOENT)
    }

    fn of(&self, ino: Ino) -> Answer<Arc<Item>> {
        self.item(&self.nodes.path(ino)?)
    }
}

fn failed(path: &Path, e: &BackupError) -> Errno {
    warn!("{}: {e}", path.display());
    match e {
        BackupError::NoPath(..) => Errno::NOENT,
        _ => Errno::IO,
    }
}

fn attr(ino: Ino, item: &Item) -> Attr {
    let time = item.modified.unwrap_or((0, 0));
    let size = item.target.as_ref().map_or(item.size, |target| target.len() as u64);
    Attr {
        ino,
        size,
        blocks: size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        btime: None,
        mode: item.kind | item.mode,
        nlink: 1,
        uid: item.owner.0,
        gid: item.owner.1,
        rdev: u32::try_from(item.device).unwrap_or(0),
        blksize: 4096,
    }
}

impl Handler for SnapshotView {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Answer<Looked> {
        let path = self.nodes.path(parent)?.join(OsStr::from_bytes(name));
        match self.item(&path) {
            Ok(item) => {
                let attr = attr(self.nodes.known(&path), &item);
                Ok(Looked::Found(Entry { attr, generation: 0, name_for: TTL, attr_for: TTL }))
            }
            Err(Errno::NOENT) => Ok(Looked::Missing(TTL)),
            Err(e) => Err(e),
        }
    }

    fn forget(&self, ino: Ino, count: u64) {
        self.nodes.forget(ino, count);
    }

    fn getattr(&self, ino: Ino) -> Answer<Attributes> {
        let item = self.of(ino)?;
        Ok(Attributes { attr: attr(ino, &item), valid: TTL })
    }

    fn statx(&self, ino: Ino) -> Answer<Attributes> {
        self.getattr(ino)
    }

    fn readlink(&self, ino: Ino) -> Answer<Vec<u8>> {
        self.of(ino)?.target.clone().ok_or(Errno::INVAL)
    }

    fn open(&self, ino: Ino, flags: i32) -> Answer<Opened> {
        if flags & libc::O_ACCMODE != libc::O_RDONLY {
            return Err(Errno::ROFS);
        }
        let item = self.of(ino)?;
        let file = StoredFile::open(&self.reader, &item).map_err(|e| failed(&item.path, &e))?;
        Ok(Opened { fh: self.files.open(file), keep_cache: true, cache_dir: false })
    }

    fn read(&self, _ino: Ino, fh: u64, offset: u64, buf: &mut [u8]) -> Answer<usize> {
        self.files.get(fh)?.read_at(buf, offset).map_err(|e| {
            warn!("{}: {e}", self.snapshot.id);
            Errno::IO
        })
    }

    fn release(&self, _ino: Ino, fh: u64) {
        self.files.close(fh);
    }

    fn opendir(&self, ino: Ino) -> Answer<Opened> {
        let children = self.children(&self.nodes.path(ino)?)?;
        let mut names: Vec<_> = children.iter().map(|(name, item)| (name.clone(), item.kind)).collect();
        names.sort_unstable();
        names.extend([(b".".to_vec(), S_IFDIR), (b"..".to_vec(), S_IFDIR)]);
        Ok(Opened { fh: self.listings.open(names), keep_cache: true, cache_dir: true })
    }

    fn readdir(&self, ino: Ino, fh: u64, offset: u64, into: &mut Entries<'_>) -> Answer<()> {
        list(&self.listings.get(fh)?[..], ino, offset, into);
        Ok(())
    }

    fn releasedir(&self, _ino: Ino, fh: u64) {
        self.listings.close(fh);
    }

    fn statfs(&self) -> Answer<StatFs> {
        let blocks = self.snapshot.bytes.div_ceil(4096);
        Ok(StatFs {
            blocks,
            bfree: 0,
            bavail: 0,
            files: self.snapshot.files,
            ffree: 0,
            bsize: 4096,
            namelen: 255,
            frsize: 4096,
        })
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Answer<Vec<u8>> {
        let item = self.of(ino)?;
        let found = item.xattrs.iter().find(|(n, _)| n.as_bytes() == name);
        found.map(|(_, value)| value.clone()).ok_or(Errno::NODATA)
    }

    fn listxattr(&self, ino: Ino) -> Answer<Vec<u8>> {
        let item = self.of(ino)?;
        Ok(item.xattrs.iter().flat_map(|(name, _)| [name.as_bytes(), &[0]].concat()).collect())
    }
}
