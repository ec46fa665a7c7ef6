//! Between a lower entry and a repository's node. Modes are those of Go's `os.FileMode`, as restic has them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustic_core::jiff::Timestamp;
use rustic_core::repofile::{Metadata, Node, NodeType};

use super::walk::{Entry, Xattr};
use crate::vault::LowerStat;

const DIR: u32 = 1 << 31;
const SYMLINK: u32 = 1 << 27;
const DEVICE: u32 = 1 << 26;
const FIFO: u32 = 1 << 25;
const SOCKET: u32 = 1 << 24;
const SET_UID: u32 = 1 << 23;
const SET_GID: u32 = 1 << 22;
const CHAR: u32 = 1 << 21;
const STICKY: u32 = 1 << 20;
const PERMISSIONS: u32 = 0o777;

/// Bits that Go has elsewhere than POSIX.
const MOVED: [(u32, u32); 3] = [(libc::S_ISUID, SET_UID), (libc::S_ISGID, SET_GID), (libc::S_ISVTX, STICKY)];

/// `st_mode` as Go has it.
fn go_mode(mode: u32) -> u32 {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => DIR,
        libc::S_IFLNK => SYMLINK,
        libc::S_IFBLK => DEVICE,
        libc::S_IFCHR => DEVICE | CHAR,
        libc::S_IFIFO => FIFO,
        libc::S_IFSOCK => SOCKET,
        _ => 0,
    };
    let moved = MOVED.iter().filter(|(posix, _)| mode & posix != 0).fold(0, |all, (_, go)| all | go);
    kind | moved | (mode & PERMISSIONS)
}

/// Permissions with set-id and sticky bits of a node.
pub(super) fn permissions(node: &Node) -> u32 {
    let mode = node.meta.mode.unwrap_or(0o600);
    MOVED.iter().filter(|(_, go)| mode & go != 0).fold(mode & PERMISSIONS, |all, (posix, _)| all | posix)
}

fn time((seconds, nanos): (i64, u32)) -> Option<Timestamp> {
    Timestamp::new(seconds, i32::try_from(nanos).ok()?).ok()
}

/// Seconds and nanoseconds since 1970 of a node's modification.
pub(super) fn modified(node: &Node) -> Option<(i64, u32)> {
    let time = node.meta.mtime?;
    let (mut seconds, mut nanos) = (time.as_second(), time.subsec_nanosecond());
    if nanos < 0 {
        (seconds, nanos) = (seconds - 1, nanos + 1_000_000_000);
    }
    Some((seconds, u32::try_from(nanos).unwrap_or(0)))
}

fn kind(stat: &LowerStat, target: Option<&[u8]>) -> NodeType {
    let device = u64::from(stat.rdev);
    match stat.kind() {
        libc::S_IFDIR => NodeType::Dir,
        libc::S_IFLNK => NodeType::from_link(Path::new(OsStr::from_bytes(target.unwrap_or_default()))),
        libc::S_IFBLK => NodeType::Dev { device },
        libc::S_IFCHR => NodeType::Chardev { device },
        libc::S_IFIFO => NodeType::Fifo,
        libc::S_IFSOCK => NodeType::Socket,
        _ => NodeType::File,
    }
}

/// The node of an entry, without content, named `name`. `read_anew`: so that it does not look like its parent's.
pub(super) fn node_of(entry: &Entry, name: &OsStr, read_anew: bool) -> Node {
    let stat = &entry.stat;
    let mut ctime = time(stat.ctime);
    if read_anew {
        ctime = ctime.and_then(|t| Timestamp::from_nanosecond(t.as_nanosecond() - 1).ok());
    }
    let linked = stat.kind() != libc::S_IFDIR && stat.nlink > 1;
    let device = (u64::from(stat.dev.0) << 32) | u64::from(stat.dev.1);
    let meta = Metadata {
        mode: Some(go_mode(stat.mode)),
        mtime: time(stat.mtime),
        ctime,
        uid: Some(stat.uid),
        gid: Some(stat.gid),
        inode: stat.ino,
        device_id: if linked { device } else { 0 },
        size: if stat.kind() == libc::S_IFREG { stat.size } else { 0 },
        links: stat.nlink.into(),
        // The type of an xattr has no public name; its fields have.
        extended_attributes: entry
            .xattrs
            .iter()
            .map(|(name, value)| serde_json::json!({ "name": name, "value": STANDARD.encode(value) }))
            .filter_map(|json| serde_json::from_value(json).ok())
            .collect(),
        ..Metadata::default()
    };
    Node::new_node(name, kind(stat, entry.target.as_deref()), meta)
}

/// Xattrs of a node, by name.
pub(super) fn xattrs_of(node: &Node) -> Vec<Xattr> {
    let all = node.meta.extended_attributes.iter();
    all.map(|x| (x.name.clone(), x.value.clone().unwrap_or_default())).collect()
}

/// `S_IFMT` bits of a node.
pub(super) fn kind_bits(node: &Node) -> u32 {
    match node.node_type {
        NodeType::File => libc::S_IFREG,
        NodeType::Dir => libc::S_IFDIR,
        NodeType::Symlink { .. } => libc::S_IFLNK,
        NodeType::Dev { .. } => libc::S_IFBLK,
        NodeType::Chardev { .. } => libc::S_IFCHR,
        NodeType::Fifo => libc::S_IFIFO,
        NodeType::Socket => libc::S_IFSOCK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kind and bit of a mode is where restic looks for it, and comes back.
    #[test]
    fn modes_are_those_of_go() {
        assert_eq!(go_mode(libc::S_IFREG | 0o644), 0o644);
        assert_eq!(go_mode(libc::S_IFDIR | 0o1777), DIR | STICKY | 0o777);
        assert_eq!(go_mode(libc::S_IFREG | 0o6755), SET_UID | SET_GID | 0o755);
        assert_eq!(go_mode(libc::S_IFCHR | 0o600), DEVICE | CHAR | 0o600);
        for mode in [0o644, 0o7777, 0o4755, 0o2750, 0] {
            let meta = Metadata { mode: Some(go_mode(libc::S_IFREG | mode)), ..Metadata::default() };
            let node = Node::new_node(OsStr::new("x"), NodeType::File, meta);
            assert_eq!(permissions(&node), mode);
        }
    }

    #[test]
    fn times_before_1970_come_back() {
        for at in [(-5, 1), (-1, 999_999_999), (0, 0), (7, 3)] {
            let meta = Metadata { mtime: time(at), ..Metadata::default() };
            assert_eq!(modified(&Node::new_node(OsStr::new("x"), NodeType::File, meta)), Some(at));
        }
    }
}
