//! A FUSE filesystem that keeps nothing: the ceiling of what one with a cipher and a disk can reach on this machine.
//!
//! Names, modes, times and lengths are real, so that a source tree can be extracted, walked and removed. What is written
//! is thrown away; what is read is zeros. It stands on the same FUSE layer as the vault's mount, with the same settings.

mod node;
mod tree;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use rustix::io::Errno;

use crate::fs::{Caller, Ino, SetAttr, SetTime, StatFs, Time};
use crate::fuse::{
    Answer, Attributes, Entries, Entry, Handler, Listed, Looked, MountConfig, MountError, NewMode, Opened,
    Session,
};
use node::Node;
use tree::Tree;

/// As a vault's own mount says (`fuse::adapter`).
const TTL: Duration = Duration::from_secs(3600);
/// For a name that does not exist, likewise.
const MISSING: Duration = Duration::from_secs(60);

/// The filesystem.
struct NullFs {
    tree: RwLock<Tree>,
}

/// Mounts at `mount_point` (canonical) and serves until the mount is gone. `mounted` is called when it is there.
pub fn serve(mount_point: &Path, mounted: impl FnOnce()) -> Result<(), NullError> {
    let config = MountConfig { source: PathBuf::from("null"), allow_other: true, ..MountConfig::default() };
    let handler = NullFs { tree: RwLock::new(Tree::new(now())) };
    let session = Session::mount(handler, mount_point, &config)?;
    mounted();
    Ok(session.run()?)
}

/// Why it does not serve.
#[derive(Debug, thiserror::Error)]
pub enum NullError {
    /// Nothing was mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Serving ended early.
    #[error(transparent)]
    Serve(#[from] io::Error),
}

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
}

fn entry(node: &mut Node) -> Entry {
    node.references += 1;
    Entry { attr: node.attr, generation: 0, name_for: TTL, attr_for: TTL }
}

const OPENED: Opened = Opened { fh: 0, keep_cache: true, cache_dir: false };

impl NullFs {
    fn make(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Answer<Entry> {
        let mut tree = self.tree.write();
        let node = Node::new(mode & !caller.umask, caller, now());
        tree.add(parent, name, node).map(entry)
    }
}

impl Handler for NullFs {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Answer<Looked> {
        let mut tree = self.tree.write();
        let Some(ino) = tree.node(parent)?.child(name) else { return Ok(Looked::Missing(MISSING)) };
        Ok(Looked::Found(entry(tree.node_mut(ino)?)))
    }

    fn forget(&self, ino: Ino, count: u64) {
        self.tree.write().forget(ino, count);
    }

    fn getattr(&self, ino: Ino) -> Answer<Attributes> {
        Ok(Attributes { attr: self.tree.read().node(ino)?.attr, valid: TTL })
    }

    fn statx(&self, ino: Ino) -> Answer<Attributes> {
        self.getattr(ino)
    }

    fn setattr(&self, _: &Caller, ino: Ino, set: &SetAttr) -> Answer<Attributes> {
        let mut tree = self.tree.write();
        let attr = &mut tree.node_mut(ino)?.attr;
        let time = |set: SetTime| match set {
            SetTime::Now => now(),
            SetTime::At(time) => time,
        };
        attr.mode = set.mode.map_or(attr.mode, |mode| attr.mode & libc::S_IFMT | mode & !libc::S_IFMT);
        attr.uid = set.uid.unwrap_or(attr.uid);
        attr.gid = set.gid.unwrap_or(attr.gid);
        attr.atime = set.atime.map_or(attr.atime, time);
        attr.mtime = set.mtime.map_or(attr.mtime, time);
        attr.ctime = now();
        if let Some(size) = set.size {
            node::resize(attr, size);
        }
        Ok(Attributes { attr: *attr, valid: TTL })
    }

    fn readlink(&self, ino: Ino) -> Answer<Vec<u8>> {
        self.tree.read().node(ino)?.target().map(<[u8]>::to_vec)
    }

    fn mknod(&self, caller: &Caller, parent: Ino, name: &[u8], new: NewMode) -> Answer<Entry> {
        let mut made = self.make(caller, parent, name, new.mode)?;
        made.attr.rdev = new.rdev;
        if let Ok(node) = self.tree.write().node_mut(made.attr.ino) {
            node.attr.rdev = new.rdev;
        }
        Ok(made)
    }

    fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Answer<Entry> {
        self.make(caller, parent, name, libc::S_IFDIR | mode & !libc::S_IFMT)
    }

    fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Answer<Entry> {
        let mut tree = self.tree.write();
        tree.add(parent, name, Node::link(target, caller, now())).map(entry)
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Answer<()> {
        self.tree.write().remove(parent, name, false, now())
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Answer<()> {
        self.tree.write().remove(parent, name, true, now())
    }

    fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), flags: u32) -> Answer<()> {
        self.tree.write().rename(from, to, flags, now())
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Answer<Entry> {
        let mut tree = self.tree.write();
        tree.link(ino, parent, name, now())?;
        Ok(entry(tree.node_mut(ino)?))
    }

    fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        _: i32,
    ) -> Answer<(Entry, Opened)> {
        let made = self.make(caller, parent, name, libc::S_IFREG | mode & !libc::S_IFMT)?;
        Ok((made, OPENED))
    }

    fn open(&self, _: Ino, _: i32) -> Answer<Opened> {
        Ok(OPENED)
    }

    fn read(&self, ino: Ino, _: u64, offset: u64, buf: &mut [u8]) -> Answer<usize> {
        let left = self.tree.read().node(ino)?.attr.size.saturating_sub(offset);
        let len = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        buf[..len].fill(0);
        Ok(len)
    }

    fn write(&self, ino: Ino, _: u64, offset: u64, data: &[u8], _: bool) -> Answer<()> {
        let end = offset.checked_add(data.len() as u64).ok_or(Errno::FBIG)?;
        let mut tree = self.tree.write();
        let attr = &mut tree.node_mut(ino)?.attr;
        if end > attr.size {
            node::resize(attr, end);
        }
        attr.mtime = now();
        attr.ctime = attr.mtime;
        Ok(())
    }

    fn fsync(&self, _: Ino, _: u64, _: bool) -> Answer<()> {
        Ok(())
    }

    fn opendir(&self, _: Ino) -> Answer<Opened> {
        Ok(Opened { cache_dir: true, ..OPENED })
    }

    fn readdir(&self, ino: Ino, _: u64, offset: u64, into: &mut Entries<'_>) -> Answer<()> {
        let mut tree = self.tree.write();
        for (cookie, name, child) in tree.listing(ino, offset)? {
            let node = tree.node_mut(child)?;
            let listed =
                Listed { ino: child, next: cookie, kind: node.attr.mode & libc::S_IFMT, name: &name };
            let dots = matches!(&*name, b"." | b"..");
            if !into.plus() || dots {
                if !into.add(&listed) {
                    break;
                }
                continue;
            }
            let entry = entry(node);
            if !into.add_entry(&listed, &entry) {
                node.references -= 1;
                break;
            }
        }
        Ok(())
    }

    fn fsyncdir(&self, _: Ino, _: u64) -> Answer<()> {
        Ok(())
    }

    fn statfs(&self) -> Answer<StatFs> {
        let free = 1 << 28;
        Ok(StatFs {
            blocks: free,
            bfree: free,
            bavail: free,
            files: tree::MOST,
            ffree: tree::MOST,
            bsize: 4096,
            namelen: 255,
            frsize: 4096,
        })
    }

    fn fallocate(&self, ino: Ino, _: u64, offset: u64, len: u64, mode: i32) -> Answer<()> {
        if mode != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        self.write(ino, 0, offset, &[], false)?;
        let end = offset.checked_add(len).ok_or(Errno::FBIG)?;
        let mut tree = self.tree.write();
        let attr = &mut tree.node_mut(ino)?.attr;
        node::resize(attr, end.max(attr.size));
        Ok(())
    }
}
