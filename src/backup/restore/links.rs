//! Which names of a snapshot are one file.
//!
//! A snapshot of a vault in use is made over hours: an inode number that a file had may have gone to another file before
//! its turn came, and a file may have changed between the visits of two of its names. So inode numbers alone join nothing: two
//! names are one file if the id in the header is one too, or, where there is no header, if everything is the same. Of one
//! file in several states the last one seen counts, under all its names.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::super::repo::Item;
use crate::format::header::{FileHeader, HEADER_XATTR};

type Hash = [u8; 32];

/// The names seen so far of inodes with several.
#[derive(Debug, Default)]
pub(super) struct Links {
    files: HashMap<Hash, Seen>,
    /// Names to be given when all files are written.
    names: Vec<(Hash, Item)>,
}

/// The last state of a file.
#[derive(Debug)]
struct Seen {
    path: PathBuf,
    state: Hash,
    /// Names under which older states were written.
    older: Vec<PathBuf>,
}

/// One name that is to be given to the file at `first`.
#[derive(Debug)]
pub(super) struct Name {
    /// Where the file is.
    pub(super) first: PathBuf,
    /// The name.
    pub(super) path: PathBuf,
    /// The entry, unless it was counted already, in an older state.
    pub(super) item: Option<Item>,
}

fn state_of(item: &Item) -> Hash {
    let mut hash = Sha256::new();
    hash.update(item.size.to_le_bytes());
    let attributes = (item.mode, item.owner, item.modified, &item.xattrs, &item.target, item.device);
    hash.update(format!("{attributes:?}"));
    for chunk in 0..item.content.chunks() {
        hash.update(item.content.digest(chunk).unwrap_or_default());
    }
    hash.finalize().into()
}

fn file_of(item: &Item, inode: (u64, u64), state: &Hash) -> Hash {
    let header = item.xattrs.iter().find(|(name, _)| name == HEADER_XATTR);
    let header = header.and_then(|(_, value)| FileHeader::decode(value).ok());
    let mut hash = Sha256::new();
    hash.update(format!("{inode:?} {}", item.kind));
    match header {
        Some(header) => hash.update(header.file_id.0),
        None => hash.update(state),
    }
    hash.finalize().into()
}

impl Links {
    /// Gives the item back if it is to be written under its own name; keeps it if it is another name of one that was.
    pub(super) fn take(&mut self, item: Item) -> Option<Item> {
        let Some(inode) = item.inode else { return Some(item) };
        let state = state_of(&item);
        let file = file_of(&item, inode, &state);
        let Some(seen) = self.files.get_mut(&file) else {
            let seen = Seen { path: item.path.clone(), state, older: Vec::new() };
            self.files.insert(file, seen);
            return Some(item);
        };
        if seen.path == item.path {
            return Some(item);
        }
        if seen.state == state {
            self.names.push((file, item));
            return None;
        }
        seen.older.push(std::mem::replace(&mut seen.path, item.path.clone()));
        seen.state = state;
        Some(item)
    }

    /// The names that are left to be given.
    pub(super) fn left(self) -> impl Iterator<Item = Name> {
        let Self { files, names } = self;
        let first = |file: &Hash| files.get(file).map_or(Path::new(""), |seen| &seen.path).to_owned();
        let names: Vec<_> = names
            .into_iter()
            .map(|(file, item)| Name { first: first(&file), path: item.path.clone(), item: Some(item) })
            .collect();
        let older = files.into_values().flat_map(|seen| {
            let first = seen.path;
            seen.older.into_iter().map(move |path| Name { first: first.clone(), path, item: None })
        });
        names.into_iter().chain(older)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::ContentRef;
    use crate::format::header::{Recipient, Wrapped};
    use crate::format::ids::FileId;

    fn item(path: &str, inode: u64, id: Option<u8>, time: i64) -> Item {
        let header = |id: u8| {
            let wrapped = Wrapped::Compact { version: 1, bytes: [0; 48] };
            let recipients = vec![Recipient { key_index: 0, wrapped }];
            FileHeader { file_id: FileId([id; 12]), recipients }.encode().unwrap()
        };
        Item {
            path: path.into(),
            kind: libc::S_IFREG,
            mode: 0o644,
            owner: (1, 1),
            modified: Some((time, 0)),
            size: 10,
            xattrs: id.map(|id| (HEADER_XATTR.to_owned(), header(id))).into_iter().collect(),
            target: None,
            device: 0,
            inode: (inode > 0).then_some((1, inode)),
            content: ContentRef::default(),
        }
    }

    fn run(items: Vec<Item>) -> (Vec<String>, Vec<(String, String)>) {
        let mut links = Links::default();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let written = items.into_iter().filter_map(|i| links.take(i)).map(|i| text(&i.path)).collect();
        (written, links.left().map(|name| (text(&name.first), text(&name.path))).collect())
    }

    /// Names of one file are one; a file that got the number of another one is not that one; of a file that changed
    /// meanwhile all names get the last state.
    #[test]
    fn names_are_joined_by_what_they_name() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let one = vec![item("a", 7, Some(1), 5), item("b", 7, Some(1), 5), item("c", 0, Some(3), 5)];
        assert_eq!(run(one), (vec!["a".into(), "c".into()], vec![pair("a", "b")]));
        let reused = vec![item("a", 7, Some(1), 5), item("b", 7, Some(2), 5), item("c", 7, Some(1), 5)];
        assert_eq!(run(reused), (vec!["a".into(), "b".into()], vec![pair("a", "c")]));
        let bare = vec![item("a", 7, None, 5), item("b", 7, None, 6), item("c", 7, None, 5)];
        assert_eq!(run(bare), (vec!["a".into(), "b".into()], vec![pair("a", "c")]));
        let changed = vec![
            item("a", 7, Some(1), 5),
            item("b", 7, Some(1), 5),
            item("c", 7, Some(1), 6),
            item("d", 7, Some(1), 6),
        ];
        let (written, named) = run(changed);
        assert_eq!(written, ["a", "c"]);
        assert_eq!(named, [pair("c", "b"), pair("c", "d"), pair("c", "a")]);
    }
}
