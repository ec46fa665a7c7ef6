//! Inode numbers for paths, as long as the kernel knows them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::fs::Ino;

/// The kernel's number for the top.
pub(super) const TOP: Ino = 1;

/// The table. Bounded by what the kernel keeps.
#[derive(Debug)]
pub(super) struct Nodes(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    by_number: HashMap<Ino, (PathBuf, u64)>,
    by_path: HashMap<PathBuf, Ino>,
    next: Ino,
}

impl Nodes {
    pub(super) fn new() -> Self {
        let by_number = HashMap::from([(TOP, (PathBuf::new(), 1))]);
        let by_path = HashMap::from([(PathBuf::new(), TOP)]);
        Self(Mutex::new(Inner { by_number, by_path, next: TOP + 1 }))
    }

    /// The path behind a number.
    pub(super) fn path(&self, ino: Ino) -> Result<PathBuf, Errno> {
        self.0.lock().by_number.get(&ino).map(|(path, _)| path.clone()).ok_or(Errno::STALE)
    }

    /// The number of a path, which the kernel now knows once more.
    pub(super) fn known(&self, path: &Path) -> Ino {
        let mut inner = self.0.lock();
        let ino = match inner.by_path.get(path) {
            Some(ino) => *ino,
            None => {
                let ino = inner.next;
                inner.next += 1;
                inner.by_path.insert(path.to_owned(), ino);
                inner.by_number.insert(ino, (path.to_owned(), 0));
                ino
            }
        };
        if let Some((_, count)) = inner.by_number.get_mut(&ino) {
            *count += 1;
        }
        ino
    }

    /// The kernel gives references back.
    pub(super) fn forget(&self, ino: Ino, count: u64) {
        if ino == TOP {
            return;
        }
        let mut inner = self.0.lock();
        let Some((_, left)) = inner.by_number.get_mut(&ino) else { return };
        *left = left.saturating_sub(count);
        if *left == 0
            && let Some((path, _)) = inner.by_number.remove(&ino)
        {
            inner.by_path.remove(&path);
        }
    }
}

/// Open files or listings by number.
#[derive(Debug)]
pub(super) struct Handles<T>(Mutex<(u64, HashMap<u64, std::sync::Arc<T>>)>);

impl<T> Handles<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new((0, HashMap::new())))
    }

    pub(super) fn open(&self, value: T) -> u64 {
        let mut inner = self.0.lock();
        inner.0 += 1;
        let number = inner.0;
        inner.1.insert(number, std::sync::Arc::new(value));
        number
    }

    pub(super) fn get(&self, number: u64) -> Result<std::sync::Arc<T>, Errno> {
        self.0.lock().1.get(&number).cloned().ok_or(Errno::BADF)
    }

    pub(super) fn close(&self, number: u64) {
        self.0.lock().1.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path keeps its number while the kernel knows it, and is forgotten with its last reference.
    #[test]
    fn numbers_live_as_long_as_the_kernel_knows_them() {
        let nodes = Nodes::new();
        let a = nodes.known(Path::new("a"));
        assert_eq!(nodes.known(Path::new("a")), a);
        assert_ne!(nodes.known(Path::new("b")), a);
        nodes.forget(a, 1);
        assert_eq!(nodes.path(a), Ok(PathBuf::from("a")));
        nodes.forget(a, 1);
        assert_eq!(nodes.path(a), Err(Errno::STALE));
        nodes.forget(TOP, 99);
        assert_eq!(nodes.path(TOP), Ok(PathBuf::new()));
    }
}
