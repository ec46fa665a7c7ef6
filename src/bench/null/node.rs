//! An inode of the null filesystem: attributes, and for a directory its names.

use std::collections::{BTreeMap, HashMap};

use rustix::io::Errno;

use crate::fs::{Attr, Caller, Ino, Time};

/// One inode.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) attr: Attr,
    /// Those that the kernel holds.
    pub(super) references: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    Plain,
    Link(Box<[u8]>),
    Dir(Box<Dir>),
}

/// Names by the order they came in, whose numbers are the cookies of a listing: removing one moves no other.
#[derive(Debug, Default)]
pub(super) struct Dir {
    pub(super) parent: Ino,
    names: HashMap<Box<[u8]>, u64>,
    order: BTreeMap<u64, (Box<[u8]>, Ino)>,
    last: u64,
}

/// Cookies of `.` and `..`.
const DOTS: u64 = 2;

impl Node {
    /// A file, directory or other inode of this `st_mode`.
    pub(super) fn new(mode: u32, caller: &Caller, now: Time) -> Self {
        let dir = mode & libc::S_IFMT == libc::S_IFDIR;
        let attr = Attr {
            atime: now,
            mtime: now,
            ctime: now,
            btime: Some(now),
            mode,
            nlink: if dir { 2 } else { 1 },
            uid: caller.uid,
            gid: caller.gid,
            blksize: 4096,
            ..Attr::default()
        };
        let what = if dir { What::Dir(Box::new(Dir { last: DOTS, ..Dir::default() })) } else { What::Plain };
        Self { attr, references: 0, what }
    }

    /// A symlink.
    pub(super) fn link(target: &[u8], caller: &Caller, now: Time) -> Self {
        let mut node = Self::new(libc::S_IFLNK | 0o777, caller, now);
        node.attr.size = target.len() as u64;
        node.what = What::Link(target.into());
        node
    }

    /// Where a symlink leads.
    pub(super) fn target(&self) -> Result<&[u8], Errno> {
        match &self.what {
            What::Link(target) => Ok(target),
            _ => Err(Errno::INVAL),
        }
    }

    /// The names of a directory.
    pub(super) fn dir(&self) -> Result<&Dir, Errno> {
        match &self.what {
            What::Dir(dir) => Ok(dir),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// Likewise, to change.
    pub(super) fn dir_mut(&mut self) -> Result<&mut Dir, Errno> {
        match &mut self.what {
            What::Dir(dir) => Ok(dir),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// What a name in this directory leads to.
    pub(super) fn child(&self, name: &[u8]) -> Option<Ino> {
        self.dir().ok()?.get(name)
    }

    /// Whether it is a directory.
    pub(super) fn is_dir(&self) -> bool {
        matches!(self.what, What::Dir(_))
    }
}

impl Dir {
    pub(super) fn get(&self, name: &[u8]) -> Option<Ino> {
        self.order.get(self.names.get(name)?).map(|(_, ino)| *ino)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub(super) fn insert(&mut self, name: &[u8], ino: Ino) {
        self.last += 1;
        self.names.insert(name.into(), self.last);
        self.order.insert(self.last, (name.into(), ino));
    }

    pub(super) fn remove(&mut self, name: &[u8]) -> Option<Ino> {
        let cookie = self.names.remove(name)?;
        self.order.remove(&cookie).map(|(_, ino)| ino)
    }

    /// Entries behind a cookie, each with its own.
    pub(super) fn behind(&self, cookie: u64) -> impl Iterator<Item = (u64, &[u8], Ino)> {
        self.order.range(cookie.max(DOTS) + 1..).map(|(cookie, (name, ino))| (*cookie, &**name, *ino))
    }
}

/// Sets a length, and the blocks that go with it.
pub(super) fn resize(attr: &mut Attr, size: u64) {
    attr.size = size;
    attr.blocks = size.div_ceil(512);
}
