//! Files that are made without a name (O_TMPFILE): what programs write before they let others see it.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, XattrFlags, fgetxattr, fsetxattr, linkat};
use rustix::io::Errno;

use crate::harness::{Vault, can_mount, is_root, pattern};

fn nameless(dir: &Path, more: i32) -> std::io::Result<File> {
    File::options().read(true).write(true).mode(0o640).custom_flags(libc::O_TMPFILE | more).open(dir)
}

/// As linkat(2) tells every user to do it.
fn name(file: &File, path: &Path) -> rustix::io::Result<()> {
    use std::os::fd::AsRawFd;
    linkat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), CWD, path, AtFlags::SYMLINK_FOLLOW)
}

/// Lower entries of the mount's top: all but the vault's own directory.
fn count(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().filter(|e| e.as_ref().unwrap().file_name() != ".envelopefs").count()
}

fn ready() -> Option<Vault> {
    if !can_mount() {
        return None;
    }
    let vault = Vault::new();
    if nameless(&vault.dir, 0).is_err() {
        eprintln!("skipped: the lower filesystem has no O_TMPFILE");
        return None;
    }
    Some(vault)
}

/// Written, made durable, named, written again and named once more: the file is as any other, also after a remount.
#[test]
fn a_nameless_file_is_given_a_name() {
    let Some(vault) = ready() else { return };
    let mount = vault.mount();
    let dir = mount.path("dir");
    fs::create_dir(&dir).unwrap();
    let data = pattern(3 << 20, 5);
    for (n, len) in [(0, 0), (1, 700), (2, data.len())] {
        let file = nameless(&dir, 0).unwrap();
        file.write_all_at(&data[..len], 0).unwrap();
        file.sync_all().unwrap();
        fsetxattr(&file, "user.kind", b"draft", XattrFlags::empty()).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), n, "it shows before it has a name");
        let seen = file.metadata().unwrap();
        assert_eq!((seen.nlink(), seen.len(), seen.mode() & 0o7777), (0, len as u64, 0o640));
        let path = dir.join(format!("file{n}"));
        name(&file, &path).unwrap();
        assert_eq!(name(&file, &path), Err(Errno::EXIST));
        assert_eq!(fs::metadata(&path).unwrap().nlink(), 1);
        file.write_all_at(b"end", len as u64).unwrap();
    }
    fs::hard_link(dir.join("file2"), dir.join("other")).unwrap();
    fs::remove_file(dir.join("file2")).unwrap();
    assert_eq!(fs::metadata(dir.join("other")).unwrap().nlink(), 1);
    mount.unmount();
    let mount = vault.mount();
    for (path, len) in [("dir/file0", 0), ("dir/file1", 700), ("dir/other", data.len())] {
        let path = mount.path(path);
        assert_eq!(fs::read(&path).unwrap(), [&data[..len], b"end"].concat());
        let mut value = [0; 16];
        let n = fgetxattr(File::open(&path).unwrap(), "user.kind", &mut value[..]).unwrap();
        assert_eq!(&value[..n], b"draft");
    }
    mount.unmount();
    vault.assert_sound();
}

/// What never had a name leaves nothing, and O_EXCL keeps it so.
#[test]
fn a_file_that_stays_nameless_leaves_nothing() {
    let Some(vault) = ready() else { return };
    let mount = vault.mount();
    let before = count(&vault.dir);
    for len in [10, 1 << 20] {
        let file = nameless(mount.top(), libc::O_EXCL).unwrap();
        file.write_all_at(&pattern(len, 1), 0).unwrap();
        let mut seen = vec![0; len];
        file.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(seen, pattern(len, 1));
        assert_eq!(name(&file, &mount.path("name")), Err(Errno::NOENT));
    }
    assert_eq!(fs::read_dir(mount.top()).unwrap().count(), 0);
    mount.unmount();
    assert_eq!(count(&vault.dir), before);
    vault.assert_sound();
}

/// Many of them, each with a name at the end: descriptors go with it.
#[test]
fn a_name_frees_the_descriptor() {
    let Some(vault) = ready() else { return };
    if !is_root() {
        return;
    }
    let mount = vault.mount();
    let open = || fs::read_dir(format!("/proc/{}/fd", mount.daemon_id())).unwrap().count();
    let before = open();
    for n in 0..200 {
        let file = nameless(mount.top(), 0).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        name(&file, &mount.path(&format!("file{n}"))).unwrap();
    }
    // Releases come behind the close.
    crate::harness::eventually("descriptors are closed", || open() < before + 100);
    mount.unmount();
}
