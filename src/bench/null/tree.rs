//! The inodes of the null filesystem and how names lead to them.

use std::collections::HashMap;

use rustix::io::Errno;

use super::node::Node;
use crate::fs::{Caller, Ino, Time};

/// Inodes at most, so that a test program cannot take all memory.
pub(super) const MOST: u64 = 4 << 20;
/// Entries of one answer to readdir at most: what the largest buffer holds.
const LISTED: usize = 8192;
/// The top.
const TOP: Ino = 1;

/// An entry of a listing: cookie, name, inode.
pub(super) type Named = (u64, Box<[u8]>, Ino);

/// All inodes.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: HashMap<Ino, Node>,
    last: Ino,
}

impl Tree {
    /// An empty top.
    pub(super) fn new(now: Time) -> Self {
        let owner = Caller { uid: 0, gid: 0, umask: 0 };
        let mut top = Node::new(libc::S_IFDIR | 0o755, &owner, now);
        top.attr.ino = TOP;
        // The kernel never gives the top back.
        top.references = 1;
        if let Ok(dir) = top.dir_mut() {
            dir.parent = TOP;
        }
        Self { nodes: HashMap::from([(TOP, top)]), last: TOP }
    }

    pub(super) fn node(&self, ino: Ino) -> Result<&Node, Errno> {
        self.nodes.get(&ino).ok_or(Errno::STALE)
    }

    pub(super) fn node_mut(&mut self, ino: Ino) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&ino).ok_or(Errno::STALE)
    }

    /// Gives a new inode a number and a name.
    pub(super) fn add(&mut self, parent: Ino, name: &[u8], mut node: Node) -> Result<&mut Node, Errno> {
        if self.nodes.len() as u64 >= MOST {
            return Err(Errno::NOSPC);
        }
        let ino = self.last + 1;
        let now = node.attr.ctime;
        let is_dir = node.is_dir();
        let home = self.node_mut(parent)?;
        if home.child(name).is_some() {
            return Err(Errno::EXIST);
        }
        if home.attr.nlink == 0 {
            return Err(Errno::NOENT);
        }
        home.dir_mut()?.insert(name, ino);
        home.attr.nlink += u32::from(is_dir);
        (home.attr.mtime, home.attr.ctime) = (now, now);
        if let Ok(dir) = node.dir_mut() {
            dir.parent = parent;
        }
        node.attr.ino = ino;
        self.last = ino;
        Ok(self.nodes.entry(ino).or_insert(node))
    }

    /// One more name for an inode.
    pub(super) fn link(&mut self, ino: Ino, parent: Ino, name: &[u8], now: Time) -> Result<(), Errno> {
        if self.node(ino)?.is_dir() {
            return Err(Errno::PERM);
        }
        let home = self.node_mut(parent)?;
        if home.child(name).is_some() {
            return Err(Errno::EXIST);
        }
        home.dir_mut()?.insert(name, ino);
        (home.attr.mtime, home.attr.ctime) = (now, now);
        let node = self.node_mut(ino)?;
        node.attr.nlink += 1;
        node.attr.ctime = now;
        Ok(())
    }

    /// Removes a name: a directory's, which must be empty, or another one's.
    pub(super) fn remove(&mut self, parent: Ino, name: &[u8], dir: bool, now: Time) -> Result<(), Errno> {
        let ino = self.node(parent)?.dir()?.get(name).ok_or(Errno::NOENT)?;
        match (self.node(ino)?.dir(), dir) {
            (Ok(_), false) => return Err(Errno::ISDIR),
            (Err(_), true) => return Err(Errno::NOTDIR),
            (Ok(inside), true) if !inside.is_empty() => return Err(Errno::NOTEMPTY),
            _ => {}
        }
        let home = self.node_mut(parent)?;
        home.dir_mut()?.remove(name);
        home.attr.nlink -= u32::from(dir);
        (home.attr.mtime, home.attr.ctime) = (now, now);
        let node = self.node_mut(ino)?;
        node.attr.nlink = if dir { 0 } else { node.attr.nlink.saturating_sub(1) };
        node.attr.ctime = now;
        self.drop_if_gone(ino);
        Ok(())
    }

    /// Renames, over another one where there is one. The kernel has ruled out what would make a circle.
    pub(super) fn rename(
        &mut self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        flags: u32,
        now: Time,
    ) -> Result<(), Errno> {
        if flags & !libc::RENAME_NOREPLACE != 0 {
            return Err(Errno::INVAL);
        }
        let ino = self.node(from.0)?.dir()?.get(from.1).ok_or(Errno::NOENT)?;
        let is_dir = self.node(ino)?.is_dir();
        match self.node(to.0)?.dir()?.get(to.1) {
            Some(_) if flags != 0 => return Err(Errno::EXIST),
            Some(there) if there == ino => return Ok(()),
            Some(there) => {
                let over_dir = self.node(there)?.is_dir();
                match (is_dir, over_dir) {
                    (true, false) => return Err(Errno::NOTDIR),
                    (false, true) => return Err(Errno::ISDIR),
                    _ => self.remove(to.0, to.1, over_dir, now)?,
                }
            }
            None => {}
        }
        let old = self.node_mut(from.0)?;
        old.dir_mut()?.remove(from.1);
        old.attr.nlink -= u32::from(is_dir);
        (old.attr.mtime, old.attr.ctime) = (now, now);
        let new = self.node_mut(to.0)?;
        new.dir_mut()?.insert(to.1, ino);
        new.attr.nlink += u32::from(is_dir);
        (new.attr.mtime, new.attr.ctime) = (now, now);
        let node = self.node_mut(ino)?;
        node.attr.ctime = now;
        if let Ok(dir) = node.dir_mut() {
            dir.parent = to.0;
        }
        Ok(())
    }

    /// Entries of a directory behind a cookie, with names of their own; `.` and `..` come first.
    pub(super) fn listing(&self, ino: Ino, cookie: u64) -> Result<Vec<Named>, Errno> {
        let dir = self.node(ino)?.dir()?;
        let dots: [(u64, &[u8], Ino); 2] = [(1, b".", ino), (2, b"..", dir.parent)];
        let all = dots.into_iter().filter(|dot| dot.0 > cookie).chain(dir.behind(cookie));
        Ok(all.take(LISTED).map(|(cookie, name, ino)| (cookie, name.into(), ino)).collect())
    }

    /// The kernel gives references back.
    pub(super) fn forget(&mut self, ino: Ino, count: u64) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.references = node.references.saturating_sub(count);
            self.drop_if_gone(ino);
        }
    }

    fn drop_if_gone(&mut self, ino: Ino) {
        if self.nodes.get(&ino).is_some_and(|n| n.references == 0 && n.attr.nlink == 0) {
            self.nodes.remove(&ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = (7, 0);
    const WHO: Caller = Caller { uid: 1, gid: 2, umask: 0 };

    fn file(tree: &mut Tree, parent: Ino, name: &[u8]) -> Ino {
        tree.add(parent, name, Node::new(libc::S_IFREG | 0o644, &WHO, NOW)).unwrap().attr.ino
    }

    fn dir(tree: &mut Tree, parent: Ino, name: &[u8]) -> Ino {
        tree.add(parent, name, Node::new(libc::S_IFDIR | 0o755, &WHO, NOW)).unwrap().attr.ino
    }

    /// A listing that is gone on with after removals leaves nothing out and brings nothing twice.
    #[test]
    fn listings_survive_removals() {
        let mut tree = Tree::new(NOW);
        for name in [b"a", b"b", b"c", b"d"] {
            file(&mut tree, TOP, name);
        }
        let first = tree.listing(TOP, 0).unwrap();
        assert_eq!(
            first.iter().map(|e| &*e.1).collect::<Vec<_>>(),
            [&b"."[..], b"..", b"a", b"b", b"c", b"d"]
        );
        let cookie = first[3].0;
        tree.remove(TOP, b"a", false, NOW).unwrap();
        tree.remove(TOP, b"b", false, NOW).unwrap();
        let rest = tree.listing(TOP, cookie).unwrap();
        assert_eq!(rest.iter().map(|e| &*e.1).collect::<Vec<_>>(), [b"c", b"d"]);
    }

    /// An inode goes when it has neither a name nor a reference of the kernel's.
    #[test]
    fn inodes_go_with_their_last_holder() {
        let mut tree = Tree::new(NOW);
        let ino = file(&mut tree, TOP, b"f");
        tree.node_mut(ino).unwrap().references = 3;
        tree.link(ino, TOP, b"g", NOW).unwrap();
        tree.remove(TOP, b"f", false, NOW).unwrap();
        tree.remove(TOP, b"g", false, NOW).unwrap();
        assert!(tree.node(ino).is_ok());
        tree.forget(ino, 2);
        assert!(tree.node(ino).is_ok());
        tree.forget(ino, 1);
        assert!(tree.node(ino).is_err());
    }

    /// Names, kinds and link counts are kept as a filesystem keeps them.
    #[test]
    fn renames_and_refusals() {
        let mut tree = Tree::new(NOW);
        let (a, b) = (dir(&mut tree, TOP, b"a"), dir(&mut tree, TOP, b"b"));
        let f = file(&mut tree, a, b"f");
        assert_eq!(tree.remove(TOP, b"a", true, NOW), Err(Errno::NOTEMPTY));
        assert_eq!(tree.remove(TOP, b"a", false, NOW), Err(Errno::ISDIR));
        assert_eq!(tree.remove(a, b"f", true, NOW), Err(Errno::NOTDIR));
        assert_eq!(tree.remove(a, b"g", false, NOW), Err(Errno::NOENT));
        assert_eq!(tree.add(a, b"f", Node::new(libc::S_IFREG, &WHO, NOW)).err(), Some(Errno::EXIST));
        assert_eq!(tree.rename((a, b"f"), (TOP, b"b"), 0, NOW), Err(Errno::ISDIR));
        assert_eq!(tree.rename((a, b"f"), (TOP, b"b"), libc::RENAME_NOREPLACE, NOW), Err(Errno::EXIST));
        tree.rename((a, b"f"), (b, b"g"), 0, NOW).unwrap();
        assert_eq!(tree.node(b).unwrap().child(b"g"), Some(f));
        tree.rename((TOP, b"a"), (b, b"inner"), 0, NOW).unwrap();
        assert_eq!((tree.node(TOP).unwrap().attr.nlink, tree.node(b).unwrap().attr.nlink), (3, 3));
        assert_eq!(tree.listing(a, 0).unwrap()[1].2, b);
    }
}
