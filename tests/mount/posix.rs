//! Names, links, attributes, locks and directories, as POSIX and Linux have them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};

use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, RawDir, RenameFlags, SeekFrom, Timespec,
    Timestamps, XattrFlags, fcntl_lock, flock, getxattr, listxattr, mknodat, openat, removexattr,
    renameat_with, seek, setxattr, statvfs, utimensat,
};
use rustix::io::Errno;

use crate::harness::{Vault, can_mount, is_root, pattern, run, sh};

/// RENAME_NOREPLACE refuses an existing target, RENAME_EXCHANGE swaps two, also of different types.
#[test]
fn renames_take_their_flags() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    fs::write(mount.path("a"), "a").unwrap();
    fs::write(mount.path("b"), "b").unwrap();
    fs::create_dir_all(mount.path("d/e")).unwrap();
    let (a, b, d) = (mount.path("a"), mount.path("b"), mount.path("d"));
    assert_eq!(renameat_with(CWD, &a, CWD, &b, RenameFlags::NOREPLACE), Err(Errno::EXIST));
    renameat_with(CWD, &a, CWD, mount.path("c"), RenameFlags::NOREPLACE).unwrap();
    assert_eq!(fs::read_to_string(mount.path("c")).unwrap(), "a");
    renameat_with(CWD, &b, CWD, &d, RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read_to_string(&d).unwrap(), "b");
    assert!(b.join("e").is_dir());
    renameat_with(CWD, mount.path("b/e"), CWD, &d, RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read_to_string(mount.path("b/e")).unwrap(), "b");
    assert_eq!(renameat_with(CWD, &b, CWD, mount.path("none"), RenameFlags::EXCHANGE), Err(Errno::NOENT));
    mount.unmount();
    vault.assert_sound();
    let mount = vault.mount();
    assert_eq!(fs::read_to_string(mount.path("b/e")).unwrap(), "b");
    assert!(mount.path("d").is_dir());
    mount.unmount();
}

/// Hard links are one inode: number, link count, content; across directories and a remount.
#[test]
fn hard_links_are_one_inode() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    fs::create_dir(mount.path("d")).unwrap();
    fs::write(mount.path("a"), "first").unwrap();
    fs::hard_link(mount.path("a"), mount.path("d/b")).unwrap();
    fs::write(mount.path("d/b"), "second, longer").unwrap();
    let stat = |name: &str| fs::metadata(mount.path(name)).unwrap();
    assert_eq!(fs::read_to_string(mount.path("a")).unwrap(), "second, longer");
    assert_eq!((stat("a").ino(), stat("a").nlink(), stat("a").len()), (stat("d/b").ino(), 2, 14));
    let ino = stat("a").ino();
    mount.unmount();
    vault.assert_sound();
    let mount = vault.mount();
    let stat = |name: &str| fs::metadata(mount.path(name)).unwrap();
    assert_eq!((stat("a").ino(), stat("d/b").ino(), stat("d/b").nlink()), (ino, ino, 2));
    fs::remove_file(mount.path("a")).unwrap();
    assert_eq!(stat("d/b").nlink(), 1);
    assert_eq!(fs::read_to_string(mount.path("d/b")).unwrap(), "second, longer");
    mount.unmount();
}

/// A file that was unlinked, or replaced by a rename, lives as long as it is open; nothing of it stays below.
#[test]
fn unlinked_files_live_while_they_are_open() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let content = pattern(300_000, 1);
    let mut open = Vec::new();
    for name in ["unlinked", "replaced"] {
        fs::write(mount.path(name), &content).unwrap();
        open.push(File::options().read(true).write(true).open(mount.path(name)).unwrap());
    }
    fs::remove_file(mount.path("unlinked")).unwrap();
    fs::write(mount.path("new"), "new").unwrap();
    fs::rename(mount.path("new"), mount.path("replaced")).unwrap();
    for file in &open {
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        file.write_all_at(b"still here", 299_995).unwrap();
        file.set_len(300_003).unwrap();
        let mut seen = vec![0; 300_003];
        file.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen[..299_995] == content[..299_995] && &seen[299_995..] == b"still he");
    }
    assert_eq!(fs::read_to_string(mount.path("replaced")).unwrap(), "new");
    drop(open);
    mount.unmount();
    let left = sh(&vault.dir, "find . -path ./.envelopefs -prune -o -type f -print");
    assert_eq!(left.lines().count(), 1, "{left}");
    vault.assert_sound();
}

/// An open file, and the working directory of a process, survive the rename of a parent.
#[test]
fn open_files_survive_the_rename_of_a_parent() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    fs::create_dir_all(mount.path("a/b/c")).unwrap();
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(mount.path("a/b/c/f"))
        .unwrap();
    let dir = openat(CWD, mount.path("a/b/c"), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    fs::rename(mount.path("a"), mount.path("z")).unwrap();
    fs::create_dir_all(mount.path("a/b/c")).unwrap();
    file.write_all_at(b"after the rename", 0).unwrap();
    file.sync_all().unwrap();
    drop(openat(&dir, "g", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap());
    assert_eq!(fs::read_to_string(mount.path("z/b/c/f")).unwrap(), "after the rename");
    assert!(mount.path("z/b/c/g").exists() && !mount.path("a/b/c/g").exists());
    drop((file, dir));
    mount.unmount();
    vault.assert_sound();
}

/// Names of every length up to 255 bytes, of any bytes but NUL and slash, work everywhere a name is used.
#[test]
fn names_of_any_bytes_up_to_255_work() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let mut names: Vec<Vec<u8>> =
        [1, 2, 100, 174, 175, 176, 177, 200, 254, 255].map(|n| vec![b'x'; n]).to_vec();
    names.extend([
        b"\xff\xfe not text".to_vec(),
        b"new\nline".to_vec(),
        b"...".to_vec(),
        "ümläut".into(),
        b"~x.n".to_vec(),
    ]);
    names.extend([b".envelopefs2".to_vec(), b".efs.tmp.x".to_vec(), vec![0xff; 255]]);
    for (i, name) in names.iter().enumerate() {
        fs::write(mount.top().join(OsStr::from_bytes(name)), [i as u8]).unwrap();
    }
    let too_long = mount.path(&"x".repeat(256));
    assert_eq!(fs::write(too_long, "").unwrap_err().raw_os_error(), Some(libc::ENAMETOOLONG));
    // Long names are renamed, linked and removed without leaving anything behind.
    let long = mount.path(&"l".repeat(255));
    fs::create_dir(&long).unwrap();
    fs::write(long.join("y".repeat(250)), "inside").unwrap();
    fs::rename(&long, mount.path(&"m".repeat(255))).unwrap();
    fs::hard_link(mount.path(&"x".repeat(255)), mount.path(&"h".repeat(200))).unwrap();
    fs::remove_file(mount.path(&"h".repeat(200))).unwrap();
    mount.unmount();
    vault.assert_sound();
    let mount = vault.mount();
    let listed: BTreeSet<_> =
        fs::read_dir(mount.top()).unwrap().map(|e| e.unwrap().file_name().as_bytes().to_vec()).collect();
    let mut expected: BTreeSet<_> = names.iter().cloned().collect();
    expected.insert(vec![b'm'; 255]);
    assert_eq!(listed, expected);
    for (i, name) in names.iter().enumerate() {
        assert_eq!(fs::read(mount.top().join(OsStr::from_bytes(name))).unwrap(), [i as u8]);
        fs::remove_file(mount.top().join(OsStr::from_bytes(name))).unwrap();
    }
    fs::remove_dir_all(mount.path(&"m".repeat(255))).unwrap();
    mount.unmount();
    let left = sh(&vault.dir, "find . -mindepth 1 -path ./.envelopefs -prune -o -print");
    assert_eq!(left.lines().filter(|l| *l != "./.envelopefs").collect::<Vec<_>>(), Vec::<&str>::new());
}

/// The vault's own directory neither shows nor can be reached through the mount.
#[test]
fn the_vaults_own_directory_does_not_show() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    assert_eq!(fs::read_dir(mount.top()).unwrap().count(), 0);
    assert_eq!(fs::metadata(mount.path(".envelopefs")).unwrap_err().kind(), ErrorKind::NotFound);
    fs::write(mount.path(".envelopefs"), "a file of the user's").unwrap();
    mount.unmount();
    let mount = vault.mount();
    assert_eq!(fs::read_to_string(mount.path(".envelopefs")).unwrap(), "a file of the user's");
    mount.unmount();
    vault.assert_sound();
}

/// Symlinks keep targets of any bytes up to the longest path; the lower filesystem does not see them.
#[test]
fn symlink_targets_are_kept_and_hidden() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let targets: Vec<Vec<u8>> =
        vec![b"x".to_vec(), b"secret-target".to_vec(), b"\xff\n".to_vec(), vec![b't'; 2000]];
    for (i, target) in targets.iter().enumerate() {
        symlink(OsStr::from_bytes(target), mount.path(&format!("l{i}"))).unwrap();
        assert_eq!(fs::symlink_metadata(mount.path(&format!("l{i}"))).unwrap().len(), target.len() as u64);
    }
    fs::write(mount.path("x"), "through the link").unwrap();
    assert_eq!(fs::read_to_string(mount.path("l0")).unwrap(), "through the link");
    mount.unmount();
    let mount = vault.mount();
    for (i, target) in targets.iter().enumerate() {
        assert_eq!(fs::read_link(mount.path(&format!("l{i}"))).unwrap().as_os_str().as_bytes(), target);
    }
    mount.unmount();
    assert!(!sh(&vault.dir, "find . -type l -printf '%l\\n'").contains("secret"));
    vault.assert_sound();
}

/// FIFOs carry bytes; sockets and FIFOs keep their type across a remount.
#[test]
fn fifos_and_sockets_work() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let fifo = mount.path("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let reader = std::thread::spawn({
        let fifo = fifo.clone();
        move || fs::read_to_string(fifo).unwrap()
    });
    File::options().write(true).open(&fifo).unwrap().write_all(b"through the fifo").unwrap();
    assert_eq!(reader.join().unwrap(), "through the fifo");
    let listener = std::os::unix::net::UnixListener::bind(mount.path("s")).unwrap();
    std::os::unix::net::UnixStream::connect(mount.path("s")).unwrap();
    drop(listener);
    mount.unmount();
    let mount = vault.mount();
    assert!(fs::metadata(mount.path("fifo")).unwrap().file_type().is_fifo());
    assert!(fs::metadata(mount.path("s")).unwrap().file_type().is_socket());
    mount.unmount();
    vault.assert_sound();
}

/// User xattrs: set, replaced, listed, removed, long names and values; neither shows below.
#[test]
fn user_xattrs_are_kept_and_hidden() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    fs::create_dir(mount.path("d")).unwrap();
    fs::write(mount.path("f"), "x").unwrap();
    let long = format!("user.{}", "n".repeat(250));
    for path in [mount.path("f"), mount.path("d")] {
        setxattr(&path, "user.visible", b"secret-value", XattrFlags::CREATE).unwrap();
        assert_eq!(setxattr(&path, "user.visible", b"", XattrFlags::CREATE), Err(Errno::EXIST));
        assert_eq!(setxattr(&path, "user.none", b"", XattrFlags::REPLACE), Err(Errno::NODATA));
        setxattr(&path, "user.empty", b"", XattrFlags::empty()).unwrap();
        setxattr(&path, &*long, &pattern(1000, 1), XattrFlags::empty()).unwrap();
        setxattr(&path, "user.gone", b"x", XattrFlags::empty()).unwrap();
        removexattr(&path, "user.gone").unwrap();
        assert_eq!(removexattr(&path, "user.gone"), Err(Errno::NODATA));
        // Nobody reads or changes the vault's own attributes through the mount.
        let mut buf = [0_u8; 200];
        assert_eq!(getxattr(&path, "user.efs.key", &mut buf), Err(Errno::NODATA));
    }
    mount.unmount();
    let below = sh(&vault.dir, "getfattr -R -d -m - --absolute-names .");
    assert!(!below.contains("visible") && !below.contains("secret-value"), "{below}");
    vault.assert_sound();
    let mount = vault.mount();
    for path in [mount.path("f"), mount.path("d")] {
        let mut buf = vec![0_u8; 65_536];
        let n = listxattr(&path, &mut buf).unwrap();
        let names: BTreeSet<_> =
            buf[..n].split(|b| *b == 0).filter(|s| !s.is_empty()).map(<[u8]>::to_vec).collect();
        let expected = ["user.visible", "user.empty", &long].map(|s| s.as_bytes().to_vec());
        assert_eq!(names, BTreeSet::from(expected));
        let n = getxattr(&path, "user.visible", &mut buf).unwrap();
        assert_eq!(&buf[..n], b"secret-value");
        let n = getxattr(&path, &*long, &mut buf).unwrap();
        assert_eq!(&buf[..n], pattern(1000, 1));
        assert_eq!(getxattr(&path, "user.visible", &mut [0_u8; 3][..]), Err(Errno::RANGE));
    }
    mount.unmount();
}

/// POSIX ACLs: set, inherited from a directory's default ACL, enforced by the kernel for another user.
#[test]
fn acls_are_kept_inherited_and_enforced() {
    if !can_mount() || !is_root() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount_with("allow_other");
    sh(
        mount.top(),
        "chmod 755 .; mkdir d; chmod 750 d; setfacl -m u:bin:rwx d; setfacl -d -m u:bin:rw,g::-,o::- d",
    );
    sh(mount.top(), "umask 022; echo inherited > d/f; mkdir d/sub; echo private > p; chmod 600 p");
    let acl = sh(mount.top(), "getfacl -cp d/f d/sub");
    assert!(acl.contains("user:bin:rw-") && acl.contains("default:user:bin:rw-"), "{acl}");
    let as_bin = |line: &str| {
        let mut command = std::process::Command::new("setpriv");
        command
            .args(["--reuid", "bin", "--regid", "bin", "--clear-groups", "sh", "-c", line])
            .current_dir(mount.top());
        command
    };
    assert_eq!(run(&mut as_bin("cat d/f && echo more >> d/f && echo own > d/own")), "inherited\n");
    assert!(!as_bin("cat p").output().unwrap().status.success());
    mount.unmount();
    let mount = vault.mount_with("allow_other");
    assert_eq!(sh(mount.top(), "getfacl -cp d/f d/sub"), acl);
    mount.unmount();
    vault.assert_sound();
}

/// flock and fcntl locks exclude other processes.
#[test]
fn locks_exclude_others() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let path = mount.path("f");
    fs::write(&path, "x").unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let other = File::open(&path).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    assert_eq!(flock(&other, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK));
    flock(&file, FlockOperation::Unlock).unwrap();
    flock(&other, FlockOperation::NonBlockingLockShared).unwrap();
    drop(other);
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    // fcntl locks are a process's own: python asks from another one.
    let ask = "import fcntl,sys\nf=open(sys.argv[1],'r+')\ntry: fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB)\nexcept OSError: print('held')\nelse: print('free')";
    let python =
        |path: &std::path::Path| run(std::process::Command::new("python3").args(["-c", ask]).arg(path));
    assert_eq!(python(&path), "held\n");
    fcntl_lock(&file, FlockOperation::Unlock).unwrap();
    assert_eq!(python(&path), "free\n");
    drop(file);
    mount.unmount();
}

/// Times are kept to the nanosecond; UTIME_OMIT and the change time behave.
#[test]
fn times_are_kept_to_the_nanosecond() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    fs::write(mount.path("f"), "x").unwrap();
    symlink("f", mount.path("l")).unwrap();
    let times = |a: i64, m: i64| Timestamps {
        last_access: Timespec { tv_sec: a, tv_nsec: 123_456_789 },
        last_modification: Timespec { tv_sec: m, tv_nsec: 987_654_321 },
    };
    utimensat(CWD, mount.path("f"), &times(1_000_000_000, 1_500_000_000), AtFlags::empty()).unwrap();
    utimensat(CWD, mount.path("l"), &times(1, -5), AtFlags::SYMLINK_NOFOLLOW).unwrap();
    let shown = |path: &std::path::Path| {
        let m = fs::symlink_metadata(path).unwrap();
        (m.atime(), m.atime_nsec(), m.mtime(), m.mtime_nsec())
    };
    for _ in 0..2 {
        assert_eq!(shown(&mount.path("f")), (1_000_000_000, 123_456_789, 1_500_000_000, 987_654_321));
        assert_eq!(shown(&mount.path("l")), (1, 123_456_789, -5, 987_654_321));
    }
    // A write moves the modification time on, whatever the kernel's writeback cache holds back.
    File::options().append(true).open(mount.path("f")).unwrap().write_all(b"y").unwrap();
    assert!(shown(&mount.path("f")).2 > 1_500_000_000);
    let moved = shown(&mount.path("f"));
    mount.unmount();
    let mount = vault.mount();
    let again = shown(&mount.path("f"));
    assert_eq!((again.2, again.3), (moved.2, moved.3));
    mount.unmount();
}

/// A directory of 10,000 entries lists each once, and every cookie leads back to its entry.
#[test]
fn cookies_of_a_large_directory_are_stable() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let count = 10_000;
    fs::create_dir(mount.path("d")).unwrap();
    for i in 0..count {
        fs::write(mount.path(&format!("d/entry-{i}")), "").unwrap();
    }
    let dir = openat(CWD, mount.path("d"), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let mut buf = vec![MaybeUninit::uninit(); 32 << 10];
    let mut list = |from: u64, most: usize| {
        seek(&dir, SeekFrom::Start(from)).unwrap();
        let mut entries = Vec::new();
        let mut raw = RawDir::new(&dir, &mut buf);
        while let Some(entry) = raw.next() {
            let entry = entry.unwrap();
            entries.push((entry.file_name().to_bytes().to_vec(), entry.next_entry_cookie()));
            if entries.len() == most {
                break;
            }
        }
        entries
    };
    let all = list(0, usize::MAX);
    let names: BTreeSet<_> = all.iter().map(|e| &e.0).collect();
    assert_eq!((all.len(), names.len()), (count + 2, count + 2));
    for at in (0..all.len() - 1).step_by(997) {
        assert_eq!(list(all[at].1, 1)[0].0, all[at + 1].0, "behind entry {at}");
    }
    // Removing what was listed already does not disturb what comes.
    let rest: Vec<_> = all[6000..].iter().map(|e| e.0.clone()).collect();
    for (name, _) in all[..5000].iter().filter(|e| e.0 != b"." && e.0 != b"..") {
        fs::remove_file(mount.path("d").join(OsStr::from_bytes(name))).unwrap();
    }
    let again: BTreeSet<_> = list(all[5999].1, usize::MAX).into_iter().map(|e| e.0).collect();
    assert!(rest.iter().all(|n| again.contains(n)), "an entry was skipped");
    drop(dir);
    mount.unmount();
}

/// Inode numbers are those of before after a remount, in `stat` and in `readdir`.
#[test]
fn inode_numbers_survive_a_remount() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    sh(mount.top(), "mkdir -p a/b; touch a/f a/b/g; ln -s x a/l; mkfifo a/p");
    let list = "find . -mindepth 1 -printf '%i %p\\n' | sort; ls -iaf a | sort";
    let before = sh(mount.top(), list);
    mount.unmount();
    let mount = vault.mount();
    assert_eq!(sh(mount.top(), list), before);
    mount.unmount();
}

/// `statfs` shows the lower filesystem's space and names of 255 bytes; fsync of files and directories works.
#[test]
fn statfs_and_fsync_answer() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let (here, below) = (statvfs(mount.top()).unwrap(), statvfs(&vault.dir).unwrap());
    assert_eq!(here.f_namemax, 255);
    assert_eq!(here.f_blocks * here.f_frsize, below.f_blocks * below.f_frsize);
    fs::create_dir(mount.path("d")).unwrap();
    let mut file = File::create(mount.path("d/f")).unwrap();
    file.write_all(b"durable").unwrap();
    file.sync_data().unwrap();
    file.sync_all().unwrap();
    drop(file);
    File::open(mount.path("d")).unwrap().sync_all().unwrap();
    let mut seen = String::new();
    File::open(mount.path("d/f")).unwrap().read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "durable");
    mount.unmount();
}

/// What a completed write stored is there after the daemon was killed.
#[test]
fn a_killed_daemon_loses_no_synced_write() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let content = pattern(1_300_000, 3);
    let file = File::create(mount.path("f")).unwrap();
    file.write_all_at(&content, 0).unwrap();
    file.sync_all().unwrap();
    mount.kill();
    drop(file);
    let mount = vault.mount();
    assert!(fs::read(mount.path("f")).unwrap() == content);
    mount.unmount();
    vault.assert_sound();
}

/// Modes, set-id and sticky bits are kept; a write by another user than root drops the set-id bits.
#[test]
fn modes_are_kept() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    fs::write(mount.path("f"), "x").unwrap();
    for mode in [0o000, 0o400, 0o644, 0o755, 0o1777, 0o2755, 0o4755] {
        fs::set_permissions(mount.path("f"), fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(fs::metadata(mount.path("f")).unwrap().mode() & 0o7777, mode);
    }
    fs::create_dir(mount.path("d")).unwrap();
    fs::set_permissions(mount.path("d"), fs::Permissions::from_mode(0o3770)).unwrap();
    mount.unmount();
    let mount = vault.mount();
    assert_eq!(fs::metadata(mount.path("d")).unwrap().mode() & 0o7777, 0o3770);
    assert_eq!(fs::metadata(mount.path("f")).unwrap().mode() & 0o7777, 0o4755);
    mount.unmount();
}
