//! A tree as it is: kinds, contents, targets, modes and xattrs, for comparison with another.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::versions::{BLOCK, Versions};

/// One object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File(Vec<u8>),
    Dir,
    Link(String),
    Fifo,
}

/// With what surrounds its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    mode: u32,
    note: Option<Vec<u8>>,
}

/// By path from the top.
pub(crate) type Tree = BTreeMap<String, Node>;

/// Reads a tree, past the kernel's cache of contents where the filesystem lets it.
pub(crate) fn read(top: &Path) -> io::Result<Tree> {
    let mut tree = Tree::new();
    read_into(top, "", &mut tree)?;
    Ok(tree)
}

fn read_into(top: &Path, prefix: &str, tree: &mut Tree) -> io::Result<()> {
    for entry in fs::read_dir(top.join(prefix))? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{name:.60}: {e}"));
        let meta = fs::symlink_metadata(entry.path()).map_err(named)?;
        let kind = if meta.is_dir() {
            read_into(top, &format!("{name}/"), tree)?;
            Kind::Dir
        } else if meta.is_symlink() {
            Kind::Link(fs::read_link(entry.path()).map_err(named)?.to_string_lossy().into_owned())
        } else if meta.file_type().is_fifo() {
            Kind::Fifo
        } else {
            Kind::File(content(&entry.path(), meta.len()).map_err(named)?)
        };
        let mut note = [0; 100];
        let note = match rustix::fs::lgetxattr(entry.path(), "user.note", &mut note[..]) {
            Ok(n) => Some(note[..n].to_vec()),
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PERM) => None,
            Err(e) => return Err(named(e.into())),
        };
        tree.insert(name, Node { kind, mode: meta.permissions().mode(), note });
    }
    Ok(())
}

fn content(path: &Path, len: u64) -> io::Result<Vec<u8>> {
    let flags = libc::O_DIRECT;
    let mut file = match File::options().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return fs::read(path),
        Err(e) => return Err(e),
    };
    let mut content = Vec::with_capacity(len as usize + BLOCK);
    match file.read_to_end(&mut content) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => fs::read(path),
        Err(e) => Err(e),
        Ok(_) => Ok(content),
    }
}

/// How `found` differs from `expected`.
pub(crate) fn difference(found: &Tree, expected: &Tree) -> Option<String> {
    between(found, expected, expected)
}

/// How `found` is neither `old` nor `new` nor on its way, block by block.
pub(crate) fn between(found: &Tree, old: &Tree, new: &Tree) -> Option<String> {
    let names: BTreeSet<_> = found.keys().chain(old.keys()).chain(new.keys()).collect();
    names.into_iter().find_map(|name| {
        let (f, o, n) = (found.get(name), old.get(name), new.get(name));
        if f == o || f == n {
            return None;
        }
        let told = |node: Option<&Node>| match node {
            Some(Node { kind: Kind::File(content), mode, note }) => {
                format!("{} bytes, {mode:o}, {note:?}", content.len())
            }
            other => format!("{other:?}"),
        };
        let wrong = || Some(format!("{name:.60} is {}, was {}, becomes {}", told(f), told(o), told(n)));
        let bytes = |node: Option<&Node>| match node {
            Some(Node { kind: Kind::File(content), .. }) => Some(content.clone()),
            None => Some(vec![]),
            _ => None,
        };
        let (Some(found), Some(old), Some(new)) = (f.and_then(|f| bytes(Some(f))), bytes(o), bytes(n)) else {
            return wrong();
        };
        let mut versions = Versions::of(old);
        versions.begin(new);
        versions.check(&found, BLOCK, |_| true).err().map(|e| format!("{name:.60} {e}"))
    })
}
