//! A directory of small files as an editor, a mail store or `git` makes them: created, replaced, linked, removed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::harness::pattern;
use crate::random::Random;
use crate::worker::{Over, Worker};

/// What a name leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    File(Arc<Vec<u8>>),
    Dir,
    Link(PathBuf),
}

type Tree = BTreeMap<String, Node>;

/// The load. Each change of the directory is one request: it has happened or not.
pub(crate) struct NameLoad {
    random: Random,
    tree: Tree,
    /// The tree when what is under way is done.
    next: Option<Tree>,
}

/// Files kept at a time.
const FULL: usize = 40;

impl NameLoad {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Random(seed), tree: Tree::new(), next: None }
    }

    /// One change: what it makes of the tree is noted before, and holds after.
    fn change(
        &mut self,
        edit: impl FnOnce(&mut Tree),
        act: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let mut next = self.tree.clone();
        edit(&mut next);
        self.next = Some(next);
        act()?;
        self.tree = self.next.take().expect("set above");
        Ok(())
    }

    /// A new name; every fifth is too long for a lower name.
    fn fresh_name(&mut self) -> String {
        let n = self.random.next();
        if self.random.percent(20) { format!("{n:x}-{}", "long".repeat(50)) } else { format!("{n:x}") }
    }

    fn some(&mut self, wanted: impl Fn(&Node) -> bool) -> Option<String> {
        let names: Vec<_> = self.tree.iter().filter(|(_, node)| wanted(node)).map(|(name, _)| name).collect();
        let at = self.random.below(names.len() as u64) as usize;
        names.get(at).map(|name| (*name).clone())
    }

    fn create(&mut self, top: &Path, name: &str) -> io::Result<()> {
        let content = Arc::new(pattern(self.random.below(9000) as usize, self.random.next()));
        let mut file = None;
        let path = top.join(name);
        self.change(
            |tree| {
                tree.insert(name.to_owned(), Node::File(Arc::default()));
            },
            || {
                let mut open = File::options();
                file = Some(open.write(true).create_new(true).custom_flags(libc::O_DIRECT).open(&path)?);
                Ok(())
            },
        )?;
        let file = file.expect("opened");
        self.change(
            |tree| {
                tree.insert(name.to_owned(), Node::File(Arc::clone(&content)));
            },
            || file.write_all_at(&content, 0),
        )?;
        if self.random.percent(30) { file.sync_all() } else { Ok(()) }
    }

    fn rename(&mut self, top: &Path, from: &str, to: &str) -> io::Result<()> {
        self.change(
            |tree| {
                if let Some(node) = tree.remove(from) {
                    tree.insert(to.to_owned(), node);
                }
            },
            || fs::rename(top.join(from), top.join(to)),
        )
    }

    /// As editors save: a new file beside the old one, synced, renamed over it.
    fn save(&mut self, top: &Path) -> io::Result<()> {
        let Some(name) = self.some(|n| matches!(n, Node::File(_))) else { return Ok(()) };
        let beside = self.fresh_name();
        self.create(top, &beside)?;
        File::open(top.join(&beside))?.sync_all()?;
        self.rename(top, &beside, &name)?;
        File::open(top)?.sync_all()
    }

    fn step(&mut self, top: &Path) -> io::Result<()> {
        let fresh = self.fresh_name();
        let at = top.join(&fresh);
        let file = self.some(|n| matches!(n, Node::File(_)));
        let node = |tree: &Tree, name: &str| tree.get(name).cloned();
        match (self.random.below(if self.tree.len() > FULL { 3 } else { 12 }), file) {
            (0 | 1, Some(name)) => {
                let gone = top.join(&name);
                self.change(|t| drop(t.remove(&name)), || fs::remove_file(gone))
            }
            (2, _) => {
                let Some(name) = self.some(|n| !matches!(n, Node::File(_))) else { return Ok(()) };
                let (gone, dir) = (top.join(&name), self.tree[&name] == Node::Dir);
                let act = || if dir { fs::remove_dir(gone) } else { fs::remove_file(gone) };
                self.change(|t| drop(t.remove(&name)), act)
            }
            (3, _) => self.change(|t| drop(t.insert(fresh, Node::Dir)), || fs::create_dir(at)),
            (4, Some(name)) => {
                let target = PathBuf::from(&name);
                self.change(|t| drop(t.insert(fresh, Node::Link(target))), || symlink(&name, at))
            }
            (5, Some(name)) => {
                let (linked, old) = (node(&self.tree, &name), top.join(&name));
                self.change(|t| drop(linked.map(|n| t.insert(fresh, n))), || fs::hard_link(old, at))
            }
            (6 | 7, Some(name)) => {
                let to = self.some(|n| matches!(n, Node::File(_))).unwrap_or_else(|| fresh.clone());
                let same = self.tree.get(&to) == self.tree.get(&name);
                // Two links of one file: a rename does nothing then.
                let to = if same || self.random.percent(50) { fresh } else { to };
                self.rename(top, &name, &to)
            }
            (8 | 9, Some(_)) => self.save(top),
            _ => self.create(top, &fresh),
        }
    }
}

/// The tree as it is.
fn found(top: &Path) -> Result<Tree, String> {
    let mut tree = Tree::new();
    for entry in fs::read_dir(top).map_err(|e| format!("cannot be listed: {e}"))? {
        let entry = entry.map_err(|e| format!("cannot be listed: {e}"))?;
        let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        let failed = |e: io::Error| format!("{name} cannot be read: {e}");
        let kind = entry.file_type().map_err(failed)?;
        let node = if kind.is_dir() {
            Node::Dir
        } else if kind.is_symlink() {
            Node::Link(fs::read_link(path).map_err(failed)?)
        } else {
            Node::File(Arc::new(fs::read(path).map_err(failed)?))
        };
        tree.insert(name, node);
    }
    Ok(tree)
}

/// How two trees differ.
fn difference(a: &Tree, b: &Tree) -> String {
    let in_words = |node: Option<&Node>| match node {
        Some(Node::File(content)) => format!("a file of {} bytes", content.len()),
        Some(other) => format!("{other:?}"),
        None => "nothing".to_owned(),
    };
    let names = a.keys().chain(b.keys()).filter(|name| a.get(*name) != b.get(*name));
    let lines: Vec<_> =
        names.map(|n| format!("{:.20} is {}, not {}", n, in_words(a.get(n)), in_words(b.get(n)))).collect();
    lines.join("; ")
}

impl Worker for NameLoad {
    fn name(&self) -> String {
        "names".to_owned()
    }

    fn prepare(&mut self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir.join("names"))
    }

    fn work(&mut self, dir: &Path, over: &Over) -> (u64, io::Result<()>) {
        let top = dir.join("names");
        let mut done = 0;
        while !over.is_set() {
            if let Err(e) = self.step(&top) {
                return (done, Err(e));
            }
            done += 1;
        }
        (done, Ok(()))
    }

    fn verify(&mut self, dir: &Path) -> Result<(), String> {
        let found = found(&dir.join("names"))?;
        let next = self.next.take();
        let fits = found == self.tree || next.as_ref() == Some(&found);
        let before = std::mem::replace(&mut self.tree, found);
        // A write of a new file that was under way may have come part of its way: then only that file differs.
        if fits || next.is_some_and(|next| is_between(&before, &self.tree, &next)) {
            return Ok(());
        }
        Err(difference(&self.tree, &before))
    }
}

/// Whether `found` is `before` but for one file that is on its way from empty to what `next` has.
fn is_between(before: &Tree, found: &Tree, next: &Tree) -> bool {
    if found.len() != next.len() || before.len() != next.len() {
        return false;
    }
    found.iter().all(|(name, node)| {
        let (old, new) = (before.get(name), next.get(name));
        let (Node::File(found), Some(Node::File(new))) = (node, new) else { return old == Some(node) };
        let whole = |at: usize| at.is_multiple_of(crate::versions::BLOCK) || at == new.len();
        old == Some(node)
            || (whole(found.len()) || found.len() == new.len())
                && found.chunks(4096).enumerate().all(|(i, piece)| {
                    new.get(i * 4096..i * 4096 + piece.len()) == Some(piece) || piece.iter().all(|b| *b == 0)
                })
    })
}
