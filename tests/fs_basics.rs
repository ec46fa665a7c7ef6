//! What the POSIX layer promises, one promise a test, through its own interface and without a mount.

#![allow(clippy::unwrap_used)]

mod fs_support;

use std::sync::Arc;

use envelopefs::fs::{Caller, Fs, Options, SetAttr, SetTime};
use fs_support::{ROOT, TOP, Vault, as_user, errno, get, list, lower_names, myself, put};

const USER: Caller = Caller { uid: 1000, gid: 1000, umask: 0o027 };
const RDWR: i32 = libc::O_RDWR;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What was written before an unmount is there after it, under the same inode number and generation.
#[test]
fn content_names_and_numbers_survive_a_remount() {
    let vault = Vault::new();
    let fs = vault.open();
    let dir = fs.mkdir(&ROOT, TOP, b"dir", 0o755).unwrap();
    let long = [b'n'; 255];
    let file = put(&fs, dir.attr.ino, &long, b"hello");
    fs.close();
    drop(fs);

    let fs = vault.open();
    let dir2 = fs.lookup(TOP, b"dir").unwrap();
    let file2 = fs.lookup(dir2.attr.ino, &long).unwrap();
    assert_eq!((dir.attr.ino, dir.generation), (dir2.attr.ino, dir2.generation));
    assert_eq!((file.attr.ino, file.generation), (file2.attr.ino, file2.generation));
    assert_eq!(get(&fs, file2.attr.ino).unwrap(), b"hello");
    assert_eq!(list(&fs, dir2.attr.ino), vec![(long.to_vec(), file.attr.ino)]);
}

/// One mount at a time, unless all of them said `shared`.
#[test]
fn a_vault_is_mounted_once() {
    let vault = Vault::new();
    let first = vault.open();
    assert_eq!(errno(vault.open_with(Options::default())), libc::EBUSY);
    assert_eq!(errno(vault.open_with(Options { shared: true, ..Options::default() })), libc::EBUSY);
    drop(first);
    let shared = Options { shared: true, ..Options::default() };
    let _one = vault.open_with(shared).unwrap();
    let _two = vault.open_with(shared).unwrap();
}

/// A file that is open in one of two shared mounts, and written in the other: whoever opens it there, or looks at its length,
/// finds what was written; so does the handle that was open all the time.
#[test]
fn an_open_file_is_looked_at_again_where_vaults_are_shared() {
    let vault = Vault::new();
    let shared = Options { shared: true, ..Options::default() };
    let (one, other) = (vault.open_with(shared).unwrap(), vault.open_with(shared).unwrap());
    put(&one, TOP, b"f", b"old");
    let (f, g) = (one.lookup(TOP, b"f").unwrap().attr.ino, other.lookup(TOP, b"f").unwrap().attr.ino);
    // As the kernel holds it for a while after it was closed.
    let open = other.open_file(g, libc::O_RDONLY).unwrap();
    for (round, content) in
        [vec![1; 50_000], vec![2; 50_000], vec![3; 10], vec![4; 1_500_000]].iter().enumerate()
    {
        let fh = one.open_file(f, libc::O_WRONLY | libc::O_TRUNC).unwrap();
        one.write(fh, 0, content, false).unwrap();
        one.release(fh);
        if round % 2 == 0 {
            assert_eq!(other.getattr(g).unwrap().size, content.len() as u64);
        }
        assert!(get(&other, g).unwrap() == *content, "round {round}: opened anew");
        let mut bytes = vec![0; content.len() + 1];
        assert_eq!(other.read(open, 0, &mut bytes).unwrap(), content.len());
        assert!(bytes[..content.len()] == *content, "round {round}: the handle");
    }
    // Nobody opens it, and the length stays: the handle learns of it in a second.
    let fh = one.open_file(f, libc::O_WRONLY).unwrap();
    one.write(fh, 700_000, b"new", false).unwrap();
    let mut bytes = [0; 3];
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(other.read(open, 700_000, &mut bytes).unwrap(), 3);
    assert_eq!(bytes, *b"new");
}

/// A read-only mount reads everything and changes nothing.
#[test]
fn read_only_refuses_changes() {
    let vault = Vault::new();
    put(&vault.open(), TOP, b"f", b"data");
    let fs = vault.open_with(Options { read_only: true, ..Options::default() }).unwrap();
    let f = fs.lookup(TOP, b"f").unwrap().attr.ino;
    assert_eq!(get(&fs, f).unwrap(), b"data");
    let rofs = libc::EROFS;
    assert_eq!(errno(fs.create(&ROOT, TOP, b"g", 0o644, RDWR)), rofs);
    assert_eq!(errno(fs.open_file(f, RDWR)), rofs);
    assert_eq!(errno(fs.unlink(TOP, b"f")), rofs);
    assert_eq!(errno(fs.setattr(&ROOT, f, &SetAttr { mode: Some(0), ..SetAttr::default() })), rofs);
    assert_eq!(errno(fs.setxattr(f, b"user.a", b"b", 0)), rofs);
}

/// A file that was unlinked or replaced while it is known or open still answers, with no name left.
#[test]
fn unlinked_files_live_until_forgotten() {
    let vault = Vault::new();
    let fs = vault.open();
    let (found, fh) = fs.create(&ROOT, TOP, b"open", 0o600, RDWR).unwrap();
    let known = put(&fs, TOP, b"known", b"known").attr.ino;
    fs.unlink(TOP, b"open").unwrap();
    fs.unlink(TOP, b"known").unwrap();
    fs.write(fh, 0, b"still here", false).unwrap();
    let attr = fs.getattr(found.attr.ino).unwrap();
    assert_eq!((attr.nlink, attr.size), (0, 10));
    assert_eq!(fs.getattr(known).unwrap().nlink, 0);
    assert_eq!(get(&fs, known).unwrap(), b"known");
    fs.setattr(&ROOT, known, &SetAttr { size: Some(2), mode: Some(0o640), ..SetAttr::default() }).unwrap();
    assert_eq!(get(&fs, known).unwrap(), b"kn");

    put(&fs, TOP, b"new", b"new");
    let old = put(&fs, TOP, b"old", b"old").attr.ino;
    fs.rename(TOP, b"new", TOP, b"old", 0).unwrap();
    assert_eq!(get(&fs, old).unwrap(), b"old");
    fs.forget(known, 1);
    // It is held until the journal is done with it.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while fs.getattr(known).is_ok() && std::time::Instant::now() < until {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(errno(fs.getattr(known)), libc::ESTALE);
    fs.release(fh);
}

/// Known and open files are found again after any directory above them was renamed, evicted or not.
#[test]
fn renamed_parents_do_not_lose_their_children() {
    let vault = Vault::new();
    let fs = vault.open();
    let a = fs.mkdir(&ROOT, TOP, b"a", 0o755).unwrap().attr.ino;
    let b = fs.mkdir(&ROOT, a, b"b", 0o755).unwrap().attr.ino;
    let f = put(&fs, b, b"f", b"content").attr.ino;
    let other = fs.mkdir(&ROOT, TOP, b"other", 0o755).unwrap().attr.ino;
    fs.rename(TOP, b"a", other, b"moved", 0).unwrap();
    assert_eq!(get(&fs, f).unwrap(), b"content");
    fs.rename(b, b"f", TOP, b"top", 0).unwrap();
    assert_eq!(fs.getattr(f).unwrap().size, 7);
    assert_eq!(list(&fs, b), vec![]);
    put(&fs, b, b"later", b"x");
    assert_eq!(list(&fs, b).len(), 1);
}

/// Hard links share one inode; the last of several names keeps it reachable.
#[test]
fn hard_links_share_an_inode() {
    let vault = Vault::new();
    let fs = vault.open();
    let f = put(&fs, TOP, b"one", b"x").attr.ino;
    let two = fs.link(f, TOP, b"two").unwrap();
    assert_eq!((two.attr.ino, two.attr.nlink), (f, 2));
    assert_eq!(errno(fs.link(f, TOP, b"two")), libc::EEXIST);
    for name in [&[b'l'; 255][..], b"three"] {
        fs.link(f, TOP, name).unwrap();
    }
    fs.unlink(TOP, b"one").unwrap();
    fs.unlink(TOP, b"two").unwrap();
    fs.unlink(TOP, b"three").unwrap();
    assert_eq!(fs.getattr(f).unwrap().nlink, 1);
    assert_eq!(get(&fs, f).unwrap(), b"x");
    let link = fs.symlink(&ROOT, TOP, b"sym", b"target").unwrap().attr;
    let again = fs.link(link.ino, TOP, b"sym2").unwrap().attr;
    assert_eq!((again.ino, again.mode & libc::S_IFMT), (link.ino, libc::S_IFLNK));
}

/// Long names come and go with their sidecars, and nothing is left of them.
#[test]
fn long_names_leave_no_sidecar_behind() {
    let vault = Vault::new();
    let fs = vault.open();
    let name = |c: u8| [c; 200];
    let d = fs.mkdir(&ROOT, TOP, &name(b'd'), 0o755).unwrap().attr.ino;
    put(&fs, d, &name(b'a'), b"a");
    fs.rename(d, &name(b'a'), d, &name(b'b'), 0).unwrap();
    put(&fs, d, &name(b'c'), b"c");
    fs.rename(d, &name(b'c'), d, &name(b'b'), 2).unwrap();
    assert_eq!(list(&fs, d).len(), 2);
    fs.rename(d, &name(b'c'), d, &name(b'b'), 0).unwrap();
    assert_eq!(list(&fs, d).iter().map(|e| e.0.clone()).collect::<Vec<_>>(), vec![name(b'b').to_vec()]);
    fs.rename(d, &name(b'b'), TOP, b"short", 0).unwrap();
    assert_eq!(errno(fs.rename(d, b"none", d, &name(b'e'), 0)), libc::ENOENT);
    assert_eq!(errno(fs.create(&ROOT, d, &[b'x'; 256], 0o644, RDWR)), libc::ENAMETOOLONG);
    fs.rmdir(TOP, &name(b'd')).unwrap();
    // The short entry and the vault's own directory.
    assert_eq!(lower_names(&vault.lower()).len(), 2);
}

/// A link or FIFO put in the place of a sidecar hides that entry only.
#[test]
fn a_replaced_sidecar_hides_one_entry_only() {
    let vault = Vault::new();
    let fs = vault.open();
    put(&fs, TOP, &[b'a'; 200], b"");
    put(&fs, TOP, b"other", b"");
    let sidecar = lower_names(&vault.lower()).into_iter().find(|n| n.ends_with(".n")).unwrap();
    let sidecar = vault.lower().join(sidecar);
    let pristine = std::fs::read(&sidecar).unwrap();
    std::fs::remove_file(&sidecar).unwrap();
    let shown = || list(&fs, TOP).into_iter().map(|e| e.0).collect::<Vec<_>>();
    std::os::unix::fs::symlink("nowhere", &sidecar).unwrap();
    assert_eq!(shown(), vec![b"other".to_vec()]);
    std::fs::remove_file(&sidecar).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &sidecar,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert_eq!(shown(), vec![b"other".to_vec()]);
    std::fs::remove_file(&sidecar).unwrap();
    std::fs::create_dir(&sidecar).unwrap();
    assert_eq!(shown(), vec![b"other".to_vec()]);
    std::fs::remove_dir(&sidecar).unwrap();
    std::fs::write(&sidecar, pristine).unwrap();
    assert_eq!(shown().len(), 2);
}

/// Leftovers of a crash do not show and do not keep a directory from being removed or replaced.
#[test]
fn leftovers_do_not_hold_a_directory() {
    let vault = Vault::new();
    let fs = vault.open();
    let clutter = |name: &[u8]| {
        let before = lower_names(&vault.lower());
        let ino = fs.mkdir(&ROOT, TOP, name, 0o755).unwrap().attr.ino;
        let new = lower_names(&vault.lower()).into_iter().find(|n| !before.contains(n)).unwrap();
        let lower = vault.lower().join(new);
        std::fs::write(lower.join(".efs.tmp.0123"), b"").unwrap();
        std::fs::create_dir(lower.join(".efs.tmp.4567")).unwrap();
        std::fs::write(lower.join(format!("~{}.n", "A".repeat(43))), b"junk").unwrap();
        assert_eq!(list(&fs, ino), vec![]);
        lower
    };
    clutter(b"d");
    fs.rmdir(TOP, b"d").unwrap();
    clutter(b"target");
    fs.mkdir(&ROOT, TOP, b"source", 0o755).unwrap();
    fs.rename(TOP, b"source", TOP, b"target", 0).unwrap();
    let kept = clutter(b"kept");
    let ino = fs.lookup(TOP, b"kept").unwrap().attr.ino;
    put(&fs, ino, b"real", b"");
    assert_eq!(errno(fs.rmdir(TOP, b"kept")), libc::ENOTEMPTY);
    assert_eq!(lower_names(&kept).len(), 4);
}

/// New inodes belong to the caller, with his umask, his set-id bits and the group of a set-gid directory.
#[test]
fn ownership_is_the_callers() {
    if !is_root() {
        return;
    }
    let vault = Vault::new();
    let fs = vault.open();
    let (f, fh) = fs.create(&USER, TOP, b"f", 0o6777, RDWR).unwrap();
    fs.release(fh);
    assert_eq!((f.attr.uid, f.attr.gid, f.attr.mode & 0o7777), (1000, 1000, 0o6750));
    let d = fs.mkdir(&USER, TOP, b"d", 0o777).unwrap().attr;
    assert_eq!((d.uid, d.gid, d.mode & 0o7777), (1000, 1000, 0o750));
    let set = SetAttr { mode: Some(0o2777), gid: Some(77), ..SetAttr::default() };
    fs.setattr(&ROOT, d.ino, &set).unwrap();
    let sub = fs.mkdir(&USER, d.ino, b"sub", 0o755).unwrap().attr;
    assert_eq!((sub.uid, sub.gid, sub.mode & 0o2000), (1000, 77, 0o2000));
    let fifo = fs.mknod(&USER, d.ino, b"fifo", libc::S_IFIFO | 0o666, 0).unwrap().attr;
    assert_eq!((fifo.uid, fifo.gid, fifo.mode), (1000, 77, libc::S_IFIFO | 0o640));
    let link = fs.symlink(&USER, TOP, b"s", b"t").unwrap().attr;
    assert_eq!((link.uid, link.gid), (1000, 1000));
    let node = fs.mknod(&USER, TOP, b"null", libc::S_IFCHR | 0o666, 0x103).unwrap().attr;
    assert_eq!((node.uid, node.rdev, node.mode), (1000, 0x103, libc::S_IFCHR | 0o640));
}

/// A default ACL takes the umask's place, as the kernel has it.
#[test]
fn a_default_acl_replaces_the_umask() {
    let vault = Vault::new();
    let fs = vault.open();
    let d = fs.mkdir(&ROOT, TOP, b"d", 0o755).unwrap().attr.ino;
    // Version 2; user::rwx, group::rwx, other::r-x.
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm) in [(1u16, 7u16), (4, 7), (0x20, 5)] {
        acl.extend(tag.to_le_bytes());
        acl.extend(perm.to_le_bytes());
        acl.extend(u32::MAX.to_le_bytes());
    }
    match fs.setxattr(d, b"system.posix_acl_default", &acl, 0) {
        Err(e) if e.errno() == libc::EOPNOTSUPP => return,
        other => other.unwrap(),
    }
    let caller = Caller { umask: 0o077, ..ROOT };
    let (f, _) = fs.create(&caller, d, b"f", 0o666, RDWR).unwrap();
    assert_eq!(f.attr.mode & 0o777, 0o664);
    let sub = fs.mkdir(&caller, d, b"sub", 0o777).unwrap().attr;
    assert_eq!(sub.mode & 0o777, 0o775);
    assert_eq!(fs.getxattr(sub.ino, b"system.posix_acl_default").unwrap(), acl);
    assert!(fs.listxattr(d).unwrap().starts_with(b"system.posix_acl_default\0"));
}

/// Content changed by an ordinary user drops set-id bits and capabilities.
#[test]
fn set_id_bits_go_when_content_changes() {
    let vault = Vault::new();
    let fs = vault.open();
    let (found, fh) = fs.create(&ROOT, TOP, b"f", 0o6755, RDWR).unwrap();
    let ino = found.attr.ino;
    let mode = || fs.getattr(ino).unwrap().mode & 0o7777;
    fs.setattr(&ROOT, ino, &SetAttr { mode: Some(0o6755), ..SetAttr::default() }).unwrap();
    fs.setxattr(ino, b"security.capability", b"not checked here", 0).unwrap();
    fs.write(fh, 0, b"x", false).unwrap();
    assert_eq!(mode(), 0o6755);
    fs.write(fh, 0, b"y", true).unwrap();
    assert_eq!(mode(), 0o755);
    assert_eq!(errno(fs.getxattr(ino, b"security.capability")), libc::ENODATA);
    fs.setattr(&ROOT, ino, &SetAttr { mode: Some(0o4755), ..SetAttr::default() }).unwrap();
    fs.write(fh, 0, b"z", true).unwrap();
    assert_eq!(mode(), 0o755);
    fs.setattr(&ROOT, ino, &SetAttr { mode: Some(0o4755), ..SetAttr::default() }).unwrap();
    fs.setattr(&USER, ino, &SetAttr { size: Some(0), ..SetAttr::default() }).unwrap();
    assert_eq!(mode(), 0o755);
}

/// Extended attributes keep names and values, to the flags' letter, and show nothing of ours.
#[test]
fn xattrs_are_kept_and_ours_are_hidden() {
    let vault = Vault::new();
    let fs = vault.open();
    let f = put(&fs, TOP, b"f", b"").attr.ino;
    let d = fs.mkdir(&ROOT, TOP, b"d", 0o755).unwrap().attr.ino;
    let long = [&b"user."[..], &[b'x'; 250]].concat();
    for ino in [f, d] {
        assert_eq!(fs.listxattr(ino).unwrap(), b"");
        assert_eq!(errno(fs.getxattr(ino, b"user.a")), libc::ENODATA);
        assert_eq!(errno(fs.setxattr(ino, b"user.a", b"1", libc::XATTR_REPLACE)), libc::ENODATA);
        fs.setxattr(ino, b"user.a", b"1", libc::XATTR_CREATE).unwrap();
        assert_eq!(errno(fs.setxattr(ino, b"user.a", b"2", libc::XATTR_CREATE)), libc::EEXIST);
        fs.setxattr(ino, b"user.efs.key", b"a user's own", 0).unwrap();
        fs.setxattr(ino, &long, b"", 0).unwrap();
        assert_eq!(fs.getxattr(ino, b"user.a").unwrap(), b"1");
        assert_eq!(fs.getxattr(ino, b"user.efs.key").unwrap(), b"a user's own");
        assert_eq!(fs.getxattr(ino, &long).unwrap(), b"");
        let mut names: Vec<_> = fs.listxattr(ino).unwrap().split(|b| *b == 0).map(<[u8]>::to_vec).collect();
        names.sort();
        assert_eq!(names, vec![b"".to_vec(), b"user.a".to_vec(), b"user.efs.key".to_vec(), long.clone()]);
        fs.removexattr(ino, b"user.a").unwrap();
        assert_eq!(errno(fs.removexattr(ino, b"user.a")), libc::ENODATA);
        assert_eq!(errno(fs.setxattr(ino, b"other.a", b"", 0)), libc::EOPNOTSUPP);
        assert_eq!(errno(fs.setxattr(ino, b"user.", b"", 0)), libc::EINVAL);
    }
    let s = fs.symlink(&ROOT, TOP, b"s", b"t").unwrap().attr.ino;
    assert_eq!(errno(fs.setxattr(s, b"user.a", b"", 0)), libc::EPERM);
    assert_eq!(errno(fs.getxattr(s, b"user.a")), libc::ENODATA);
    assert_eq!(fs.listxattr(s).unwrap(), b"");
}

/// A regular file whose header a tool dropped is listed and has attributes; opening it gives ENOKEY.
#[test]
fn a_file_without_header_is_listed_but_does_not_open() {
    let vault = Vault::new();
    let fs = vault.open();
    put(&fs, TOP, b"f", b"data");
    fs.close();
    drop(fs);
    let lower = lower_names(&vault.lower()).into_iter().find(|n| n != ".envelopefs").unwrap();
    rustix::fs::removexattr(vault.lower().join(lower), "user.efs.key").unwrap();
    let fs = vault.open();
    let f = fs.lookup(TOP, b"f").unwrap().attr;
    assert_eq!(f.size, 4);
    assert_eq!(list(&fs, TOP), vec![(b"f".to_vec(), f.ino)]);
    assert_eq!(errno(fs.open_file(f.ino, libc::O_RDONLY)), libc::ENOKEY);
    fs.unlink(TOP, b"f").unwrap();
}

/// Entries that nobody of ours wrote do not show; the others do.
#[test]
fn foreign_lower_entries_are_skipped() {
    let vault = Vault::new();
    let fs = vault.open();
    let f = put(&fs, TOP, b"f", b"").attr.ino;
    std::fs::write(vault.lower().join("README"), b"x").unwrap();
    std::fs::write(vault.lower().join("AAAAAAAAAAAAAAAAAAAAAAAAAAAA"), b"x").unwrap();
    assert_eq!(list(&fs, TOP), vec![(b"f".to_vec(), f)]);
    assert_eq!(errno(fs.lookup(TOP, b"README")), libc::ENOENT);
    assert_eq!(errno(fs.lookup(TOP, b".envelopefs")), libc::ENOENT);
}

/// A listing goes on from any cookie while entries come and go, and a refused entry comes again.
#[test]
fn listings_continue_from_their_cookies() {
    let vault = Vault::new();
    let fs = vault.open();
    let d = fs.mkdir(&ROOT, TOP, b"d", 0o755).unwrap().attr.ino;
    let names: Vec<Vec<u8>> = (0..300).map(|i| format!("file{i}").into_bytes()).collect();
    for name in &names {
        let ino = fs.mknod(&ROOT, d, name, libc::S_IFREG | 0o600, 0).unwrap().attr.ino;
        fs.forget(ino, 1);
    }
    let fh = fs.opendir(d).unwrap();
    let mut seen = Vec::new();
    let mut cookie = 0;
    loop {
        let mut taken = 0;
        let mut plus = Vec::new();
        fs.readdir(fh, cookie, true, &mut |e| {
            if taken == 7 {
                return false;
            }
            taken += 1;
            cookie = e.next;
            seen.push(e.name.to_vec());
            plus.extend(e.found.map(|f| f.attr.ino));
            true
        })
        .unwrap();
        if taken == 0 {
            break;
        }
        plus.iter().for_each(|ino| fs.forget(*ino, 1));
        // Each reference that was taken is given back; a refused entry left none.
        plus.iter().for_each(|ino| assert_eq!(errno(fs.getattr(*ino)), libc::ESTALE));
        fs.unlink(d, seen.last().unwrap()).ok();
    }
    seen.sort();
    let mut expected = names;
    expected.extend([b".".to_vec(), b"..".to_vec()]);
    expected.sort();
    assert_eq!(seen, expected);
    fs.releasedir(fh);
}

/// A directory that was removed while it is open lists as empty.
#[test]
fn a_removed_directory_lists_nothing() {
    let vault = Vault::new();
    let fs = vault.open();
    let d = fs.mkdir(&ROOT, TOP, b"d", 0o755).unwrap().attr.ino;
    let fh = fs.opendir(d).unwrap();
    fs.rmdir(TOP, b"d").unwrap();
    let mut count = 0;
    fs.readdir(fh, 0, true, &mut |_| {
        count += 1;
        true
    })
    .unwrap();
    assert_eq!(count, 0);
    assert_eq!(fs.getattr(d).unwrap().nlink, 0);
    assert_eq!(errno(fs.create(&ROOT, d, b"f", 0o644, RDWR)), libc::ENOENT);
    assert_eq!(errno(fs.mkdir(&ROOT, d, b"f", 0o755)), libc::ENOENT);
}

/// Names that are taken, or not there, are refused as POSIX has it.
#[test]
fn taken_and_missing_names_are_refused() {
    let vault = Vault::new();
    let fs = vault.open();
    let f = put(&fs, TOP, b"f", b"").attr.ino;
    fs.mkdir(&ROOT, TOP, b"d", 0o755).unwrap();
    assert_eq!(errno(fs.create(&ROOT, TOP, b"f", 0o644, RDWR | libc::O_EXCL)), libc::EEXIST);
    assert_eq!(errno(fs.create(&ROOT, TOP, b"f", 0o644, RDWR)), libc::ESTALE);
    assert_eq!(errno(fs.mkdir(&ROOT, TOP, b"f", 0o755)), libc::EEXIST);
    assert_eq!(errno(fs.symlink(&ROOT, TOP, b"d", b"x")), libc::EEXIST);
    assert_eq!(errno(fs.mknod(&ROOT, TOP, b"d", libc::S_IFIFO, 0)), libc::EEXIST);
    assert_eq!(errno(fs.symlink(&ROOT, TOP, b"s", &[b'x'; 4096])), libc::ENAMETOOLONG);
    assert_eq!(errno(fs.lookup(f, b"x")), libc::ENOTDIR);
    assert_eq!(errno(fs.rmdir(TOP, b"f")), libc::ENOTDIR);
    assert_eq!(errno(fs.unlink(TOP, b"d")), libc::EISDIR);
    assert_eq!(errno(fs.rename(TOP, b"f", TOP, b"d", 0)), libc::EISDIR);
    assert_eq!(errno(fs.rename(TOP, b"f", TOP, b"d", 1)), libc::EEXIST);
    assert_eq!(errno(fs.rename(TOP, b"f", TOP, b"none", 2)), libc::ENOENT);
    assert_eq!(errno(fs.rename(TOP, b"f", TOP, b"none", 4)), libc::EINVAL);
    assert_eq!(list(&fs, TOP).len(), 2);
    // Nothing is left below of what was refused.
    assert_eq!(lower_names(&vault.lower()).len(), 3);
}

/// Times are set to the nanosecond; a truncate to the same length still marks the time.
#[test]
fn times_are_kept() {
    let vault = Vault::new();
    let fs = vault.open();
    let f = put(&fs, TOP, b"f", b"abc").attr.ino;
    let s = fs.symlink(&ROOT, TOP, b"s", b"t").unwrap().attr.ino;
    for ino in [f, s] {
        let set = SetAttr {
            atime: Some(SetTime::At((1, 2))),
            mtime: Some(SetTime::At((-3, 4))),
            ..SetAttr::default()
        };
        let attr = fs.setattr(&ROOT, ino, &set).unwrap();
        assert_eq!((attr.atime, attr.mtime), ((1, 2), (-3, 4)));
        let attr =
            fs.setattr(&ROOT, ino, &SetAttr { atime: Some(SetTime::Now), ..SetAttr::default() }).unwrap();
        assert!(attr.atime.0 > 1_000_000_000);
        assert_eq!(attr.mtime, (-3, 4));
    }
    let attr = fs.setattr(&ROOT, f, &SetAttr { size: Some(3), ..SetAttr::default() }).unwrap();
    assert!(attr.mtime.0 > 1_000_000_000);
}

/// Handles that open one file at the same moment share one content, whichever comes first.
#[test]
fn concurrent_opens_share_one_content() {
    let vault = Vault::new();
    let fs = Arc::new(vault.open());
    let f = put(&fs, TOP, b"f", &[0; 4096]).attr.ino;
    std::thread::scope(|scope| {
        for n in 0..8u8 {
            let fs = Arc::clone(&fs);
            scope.spawn(move || {
                for round in 0..50u8 {
                    let fh = fs.open_file(f, RDWR).unwrap();
                    fs.write(fh, u64::from(n) * 512, &[round; 512], false).unwrap();
                    fs.release(fh);
                }
            });
        }
    });
    assert_eq!(get(&fs, f).unwrap(), [49; 4096]);
    assert!(!fs.has_writers(f));
}

/// Copies within the vault; overlapping ranges of one file are refused.
#[test]
fn ranges_are_copied() {
    let vault = Vault::new();
    let fs = vault.open();
    let data: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
    let a = put(&fs, TOP, b"a", &data).attr.ino;
    let b = put(&fs, TOP, b"b", b"").attr.ino;
    let (from, to) = (fs.open_file(a, libc::O_RDONLY).unwrap(), fs.open_file(b, RDWR).unwrap());
    assert_eq!(fs.copy_file_range(from, 5, to, 7, 4_000_000).unwrap(), 2_999_995);
    assert_eq!(get(&fs, b).unwrap()[7..], data[5..]);
    assert_eq!(errno(fs.copy_file_range(to, 0, to, 10, 20)), libc::EINVAL);
    assert_eq!(errno(fs.copy_file_range(to, 0, from, 0, 20)), libc::EBADF);
}

/// An ordinary user's daemon serves his files of any mode: the kernel has checked what he may do, and whoever
/// holds a descriptor keeps it when the mode changes. The mode is the same afterwards.
#[test]
fn modes_do_not_keep_an_owners_daemon_out() {
    as_user(|| {
        let vault = Vault::new();
        let fs = vault.open();
        let me = myself();
        for mode in [0, 0o200, 0o400, 0o444] {
            let name = format!("f{mode:o}").into_bytes();
            let (found, fh) = fs.create(&me, TOP, &name, mode, RDWR).unwrap();
            let ino = found.attr.ino;
            fs.write(fh, 0, b"written", false).unwrap();
            fs.release(fh);
            fs.setxattr(ino, b"user.a", b"b", 0).unwrap();
            let fh = fs.open_file(ino, libc::O_RDONLY).unwrap();
            let again = fs.open_file(ino, RDWR).unwrap();
            fs.write(again, 7, b"!", false).unwrap();
            fs.release(fh);
            fs.release(again);
            assert_eq!(get(&fs, ino).unwrap(), b"written!");
            assert_eq!(fs.getxattr(ino, b"user.a").unwrap(), b"b");
            fs.setattr(&me, ino, &SetAttr { size: Some(1), ..SetAttr::default() }).unwrap();
            assert_eq!(fs.getattr(ino).unwrap().mode & 0o7777, mode);
        }
        for mode in [0, 0o100, 0o300, 0o500] {
            let name = format!("d{mode:o}").into_bytes();
            let dir = fs.mkdir(&me, TOP, &name, mode).unwrap().attr;
            assert_eq!(dir.mode & 0o7777, mode);
            assert_eq!(errno(fs.getxattr(dir.ino, b"user.a")), libc::ENODATA);
            fs.rmdir(TOP, &name).unwrap();
        }
        let stranger = errno(fs.create(&USER, TOP, b"g", 0o644, RDWR));
        assert!(stranger == libc::EPERM || me.uid == USER.uid);
    });
}

/// Unwraps of each operation: one for the first open of a file, none for anything else.
#[test]
fn operations_cost_the_fewest_unwraps() {
    let vault = Vault::new();
    let fs = vault.open();
    let unwraps = |fs: &Fs| fs.provider_calls().0;
    let start = unwraps(&fs);
    let mib = vec![7; 1 << 20];
    let made: Vec<_> = (0..20).map(|i| put(&fs, TOP, format!("f{i}").as_bytes(), &mib).attr.ino).collect();
    assert_eq!(get(&fs, made[0]).unwrap(), mib);
    assert_eq!(unwraps(&fs), start, "creates, writes and reads of files that were made here");
    fs.close();
    drop(fs);

    let fs = vault.open();
    let start = unwraps(&fs);
    let files: Vec<_> =
        (0..20).map(|i| fs.lookup(TOP, format!("f{i}").as_bytes()).unwrap().attr.ino).collect();
    files.iter().for_each(|ino| assert_eq!(fs.getattr(*ino).unwrap().size, 1 << 20));
    assert_eq!(list(&fs, TOP).len(), 20);
    let fh = fs.opendir(TOP).unwrap();
    fs.readdir(fh, 0, true, &mut |e| {
        e.found.iter().for_each(|found| fs.forget(found.attr.ino, 1));
        true
    })
    .unwrap();
    fs.releasedir(fh);
    fs.rename(TOP, b"f19", TOP, b"g19", 0).unwrap();
    fs.unlink(TOP, b"f18").unwrap();
    assert_eq!(unwraps(&fs), start, "lookup, stat, readdir, readdirplus, rename, unlink");
    assert_eq!(get(&fs, files[3]).unwrap(), mib);
    assert_eq!(unwraps(&fs), start + 1, "the first read");
    for _ in 0..3 {
        let fh = fs.open_file(files[3], libc::O_RDWR).unwrap();
        fs.write(fh, 0, &mib, false).unwrap();
        fs.release(fh);
        assert_eq!(get(&fs, files[3]).unwrap(), mib);
    }
    assert_eq!(unwraps(&fs), start + 1, "writes and later opens");
}
