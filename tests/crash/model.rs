//! What a workload did, what was acknowledged when, and what may therefore be there after a cut.
//!
//! Operations are numbered. One that was covered by an fsync which had returned before the cut must be there; one that
//! began before the cut may be there, in part, in any order with others of its kind; nothing else may.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::content::{Content, Read};
use crate::target::LOWER_DEAD;

/// Bytes whose versions are kept as one.
pub(crate) const BLOCK: usize = 4096;

/// A place in the recording of the disk.
pub(crate) type Moment = usize;
/// Number of an operation; 0 is what there was before all.
pub(crate) type Op = usize;

/// What a name stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Entry {
    /// Nothing.
    Absent,
    /// A file, by its place in `Model::files`.
    File(usize),
    /// A directory.
    Dir,
}

/// A directory tree over time. Paths are relative to its top; the top itself is the empty path.
#[derive(Clone, Default)]
pub(crate) struct Model {
    pub(crate) files: Vec<Content>,
    begins: Vec<Moment>,
    names: BTreeMap<PathBuf, Vec<(Op, Entry)>>,
    acks: BTreeMap<PathBuf, Vec<(Moment, Op)>>,
    /// Names that were changed, with what was below them: from where, to where.
    moves: Vec<(Op, PathBuf, PathBuf)>,
    /// Files that lost a name on purpose, and when.
    dropped: BTreeMap<usize, Moment>,
}

/// What a tree holds after a cut.
#[derive(Default)]
pub(crate) struct Tree {
    pub(crate) files: BTreeMap<PathBuf, Read>,
    /// The listed directories; an error where listing failed.
    pub(crate) dirs: BTreeMap<PathBuf, Result<(), String>>,
}

/// Damage, counted.
#[derive(Default, Debug)]
pub(crate) struct Findings {
    /// Acknowledged blocks, files and names that are not there.
    pub(crate) lost: usize,
    /// Blocks and files that give an error, acknowledged or not.
    pub(crate) eio: usize,
    /// Directories that are gone or cannot be listed.
    pub(crate) dirs: usize,
    /// All else: a vault that does not mount, that `check` finds fault with, what was never written.
    pub(crate) other: usize,
    /// The lower filesystem itself did not mount: nothing was looked at.
    pub(crate) lower_dead: bool,
    /// Blocks with parts of several writes that nobody synced: no damage.
    pub(crate) mixed: usize,
    /// Each in words.
    pub(crate) notes: Vec<String>,
}

impl Findings {
    pub(crate) fn is_empty(&self) -> bool {
        self.notes.is_empty()
    }

    pub(crate) fn lost(&mut self, note: String) {
        self.lost += 1;
        self.notes.push(format!("lost: {note}"));
    }

    pub(crate) fn eio(&mut self, blocks: usize, note: String) {
        self.eio += blocks;
        self.notes.push(format!("eio: {note}"));
    }

    pub(crate) fn dir(&mut self, note: String) {
        self.dirs += 1;
        self.notes.push(format!("dir: {note}"));
    }

    pub(crate) fn other(&mut self, note: String) {
        self.other += 1;
        self.notes.push(format!("other: {note}"));
    }

    /// A step failed.
    pub(crate) fn failed(&mut self, why: String) {
        if why.starts_with(LOWER_DEAD) {
            self.lower_dead = true;
            self.notes.push(why);
        } else {
            self.other(why);
        }
    }

    pub(crate) fn add(&mut self, more: Self) {
        self.lower_dead |= more.lower_dead;
        self.lost += more.lost;
        self.eio += more.eio;
        self.dirs += more.dirs;
        self.other += more.other;
        self.mixed += more.mixed;
        self.notes.extend(more.notes);
    }
}

impl Model {
    fn begin(&mut self, at: Moment) -> Op {
        self.begins.push(at);
        self.begins.len()
    }

    /// What a name stands for now.
    pub(crate) fn entry(&self, path: &Path) -> Entry {
        self.names.get(path).and_then(|v| v.last()).map_or(Entry::Absent, |(_, entry)| *entry)
    }

    /// Every name there is now.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&Path, Entry)> {
        self.names.keys().map(|p| (p.as_path(), self.entry(p))).filter(|(_, e)| *e != Entry::Absent)
    }

    fn set(&mut self, op: Op, path: &Path, entry: Entry) {
        self.names.entry(path.to_owned()).or_default().push((op, entry));
    }

    /// The file behind a name, if there is one, goes on purpose.
    fn drop_name(&mut self, at: Moment, path: &Path) {
        if let Entry::File(id) = self.entry(path) {
            self.dropped.entry(id).or_insert(at);
        }
    }

    /// A new empty file.
    pub(crate) fn create(&mut self, at: Moment, path: &Path) -> usize {
        let op = self.begin(at);
        self.files.push(Content::default());
        let id = self.files.len() - 1;
        self.set(op, path, Entry::File(id));
        id
    }

    pub(crate) fn mkdir(&mut self, at: Moment, path: &Path) {
        let op = self.begin(at);
        self.set(op, path, Entry::Dir);
    }

    pub(crate) fn remove(&mut self, at: Moment, path: &Path) {
        self.drop_name(at, path);
        let op = self.begin(at);
        self.set(op, path, Entry::Absent);
    }

    pub(crate) fn link(&mut self, at: Moment, from: &Path, to: &Path) {
        let op = self.begin(at);
        self.set(op, to, self.entry(from));
    }

    /// Renames a file, or a directory with all below it.
    pub(crate) fn rename(&mut self, at: Moment, from: &Path, to: &Path) {
        self.drop_name(at, to);
        let op = self.begin(at);
        let moved: Vec<_> = self
            .names
            .keys()
            .filter(|p| p.starts_with(from))
            .map(|p| (p.clone(), self.entry(p)))
            .filter(|(_, e)| *e != Entry::Absent)
            .collect();
        for (path, entry) in moved {
            let below = path.strip_prefix(from).unwrap();
            let new = if below.as_os_str().is_empty() { to.to_owned() } else { to.join(below) };
            self.set(op, &new, entry);
            self.set(op, &path, Entry::Absent);
        }
        self.moves.push((op, from.to_owned(), to.to_owned()));
    }

    /// An fsync of a directory covers its entries, and with a directory that was renamed into it, all that was known to be
    /// in that one.
    pub(crate) fn ack_dir(&mut self, at: Moment, dir: &Path, with_all_below: bool) {
        let op = self.begins.len();
        let below: Vec<_> = self
            .entries()
            .filter(|(p, e)| with_all_below && *e == Entry::Dir && p.starts_with(dir))
            .map(|(p, _)| p.to_owned())
            .collect();
        for dir in below.into_iter().chain([dir.to_owned()]) {
            self.acks.entry(dir).or_default().push((at, op));
        }
    }

    /// Everything that was done up to now is durable.
    pub(crate) fn ack_all(&mut self, at: Moment) {
        self.ack_dir(at, Path::new(""), true);
        for file in &mut self.files {
            file.ack(at);
        }
    }

    /// What a name may stand for after a cut.
    fn may_be(&self, path: &Path, cut: Moment) -> Vec<Entry> {
        let dir = path.parent().unwrap_or(Path::new(""));
        let synced = |dir: &Path| {
            let acks = self.acks.get(dir).map(Vec::as_slice).unwrap_or_default();
            acks.iter().filter(|(at, _)| *at <= cut).map(|(_, op)| *op).max().unwrap_or(0)
        };
        // What is in a directory is where the directory is: its own new name is durable with the one above it.
        let not_moved = |(op, from, to): &&(Op, PathBuf, PathBuf)| {
            let below = dir.starts_with(from) || dir.starts_with(to);
            let above = |path: &Path| synced(path.parent().unwrap_or(Path::new("")));
            below && above(from).min(above(to)) < *op
        };
        let not_moved = self.moves.iter().find(not_moved).map_or(Op::MAX, |(op, ..)| op - 1);
        let sure = synced(dir).min(not_moved);
        let last = self.begins.partition_point(|at| *at <= cut).max(sure);
        let versions = self.names.get(path).map(Vec::as_slice).unwrap_or_default();
        let first = versions.partition_point(|(op, _)| *op <= sure);
        let base = first.checked_sub(1).map_or(Entry::Absent, |i| versions[i].1);
        let later = versions[first..].iter().take_while(|(op, _)| *op <= last).map(|(_, e)| *e);
        std::iter::once(base).chain(later).collect()
    }

    /// Compares what was found with what may be there.
    pub(crate) fn judge(&self, cut: Moment, tree: &Tree) -> Findings {
        let mut findings = Findings::default();
        let mut found = BTreeSet::new();
        let lost_dirs: Vec<&Path> = tree
            .dirs
            .iter()
            .filter_map(|(path, listed)| {
                let why = listed.as_ref().err()?;
                findings.dir(format!("{}: {why}", path.display()));
                Some(path.as_path())
            })
            .collect();
        for path in self.names.keys() {
            let may = self.may_be(path, cut);
            let here = if tree.dirs.contains_key(path) {
                Entry::Dir
            } else if tree.files.contains_key(path) {
                Entry::File(usize::MAX)
            } else {
                Entry::Absent
            };
            let fits = may.iter().any(|m| match m {
                Entry::File(_) => matches!(here, Entry::File(_)),
                other => *other == here,
            });
            if fits || lost_dirs.iter().any(|d| path.starts_with(d)) {
                continue;
            }
            let note = format!("{}: {here:?}, may be {may:?}", path.display());
            if may.contains(&Entry::Dir) { findings.dir(note) } else { findings.lost(note) }
        }
        for (path, read) in &tree.files {
            if let Some(why) = &read.refused {
                findings.eio(1, format!("{}: {why}", path.display()));
            } else if !read.failed.is_empty() {
                findings.eio(read.failed.len(), format!("{}: blocks {:?}", path.display(), read.failed));
            }
            let ids: Vec<usize> = self
                .may_be(path, cut)
                .into_iter()
                .filter_map(|e| if let Entry::File(id) = e { Some(id) } else { None })
                .collect();
            let verdicts: Vec<_> = ids.iter().map(|id| (*id, self.files[*id].judge(cut, read))).collect();
            for (id, _) in verdicts.iter().filter(|(_, verdict)| verdict.wrong.is_empty()) {
                found.insert(*id);
            }
            let Some((id, verdict)) = verdicts.into_iter().min_by_key(|(_, v)| (v.wrong.len(), v.mixed))
            else {
                findings.other(format!("{}: nobody made it", path.display()));
                continue;
            };
            found.insert(id);
            findings.mixed += verdict.mixed;
            for what in verdict.wrong {
                findings.lost(format!("{} (file {id}): {what}", path.display()));
            }
        }
        for path in tree.dirs.keys().filter(|p| !p.as_os_str().is_empty()) {
            if !self.names.contains_key(path) {
                findings.other(format!("{}/: nobody made it", path.display()));
            }
        }
        for (id, path) in self.known(cut) {
            if !found.contains(&id) && !lost_dirs.iter().any(|d| path.starts_with(d)) {
                findings.lost(format!("file {id}, once {}: nowhere", path.display()));
            }
        }
        findings
    }

    /// Files whose name was acknowledged, and that nobody removed.
    fn known(&self, cut: Moment) -> BTreeMap<usize, &Path> {
        let mut known = BTreeMap::new();
        for path in self.names.keys() {
            if let Some(Entry::File(id)) = self.may_be(path, cut).first()
                && self.dropped.get(id).is_none_or(|at| *at > cut)
            {
                known.insert(*id, path.as_path());
            }
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a directory holds that was renamed is durable where the directory is: an fsync of the directory itself does
    /// not bring it to its new name, one of the directory above does.
    #[test]
    fn what_a_moved_directory_holds_is_where_it_is() {
        let path = Path::new;
        let mut model = Model::default();
        model.mkdir(1, path("t"));
        let file = Entry::File(model.create(2, path("t/c")));
        model.ack_dir(3, path("t"), false);
        model.ack_dir(4, path(""), false);
        model.rename(5, path("t"), path("m"));
        model.ack_dir(6, path("m"), false);
        assert_eq!(model.may_be(path("m/c"), 7), [Entry::Absent, file]);
        assert_eq!(model.may_be(path("t/c"), 7), [file, Entry::Absent]);
        model.ack_dir(8, path(""), false);
        assert_eq!(model.may_be(path("m/c"), 7), [Entry::Absent, file]);
        assert_eq!(model.may_be(path("m/c"), 9), [file]);
    }
}
