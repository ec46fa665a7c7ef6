//! Bad input from outside: vaults that are none, lost headers, full and failing disks, busy mount points.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::{SmallDisk, Vault, can_mount, is_root, pattern, run, said, sh, text};

/// A `mount` that must fail; what it said.
fn refused(vault: &Vault, dir: &Path, mnt: &Path) -> String {
    let output = vault.command(&["mount", text(dir), text(mnt)]).output().unwrap();
    let said = said(&output);
    assert!(!output.status.success(), "mounted although it must not: {said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// A file whose header a tool dropped is listed; reading it gives ENOKEY or EIO and one log line; `check` names it.
#[test]
fn a_lost_header_is_told() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    fs::write(mount.path("victim"), "content").unwrap();
    fs::write(mount.path("neighbour"), "content").unwrap();
    let lower = vault.lower(&mount.path("victim"));
    mount.unmount();
    run(std::process::Command::new("setfattr").args(["-x", "user.efs.key"]).arg(&lower));
    let mount = vault.mount();
    let listed = sh(mount.top(), "ls");
    assert_eq!(listed, "neighbour\nvictim\n");
    assert!(fs::metadata(mount.path("victim")).is_ok());
    let errno = fs::read(mount.path("victim")).unwrap_err().raw_os_error();
    assert!(matches!(errno, Some(libc::ENOKEY | libc::EIO)), "{errno:?}");
    assert_eq!(fs::read_to_string(mount.path("neighbour")).unwrap(), "content");
    mount.unmount();
    let log = vault.log();
    assert_eq!(log.lines().filter(|l| l.contains("header")).count(), 1, "{log}");
    assert!(!log.contains("victim"), "the default log shows a plaintext name: {log}");
    let (code, said) = vault.check();
    assert_ne!(code, 0, "{said}");
    assert!(said.contains("victim") && !said.contains("neighbour"), "{said}");
}

/// A full lower disk: ENOSPC reaches the writer, what was there stays readable, and room helps.
#[test]
fn a_full_disk_reaches_the_writer() {
    if !can_mount() || !is_root() {
        return;
    }
    for disk in [SmallDisk::ext4(24), SmallDisk::memory("tmpfs", "size=16m")] {
        let vault = Vault::below(&disk.dir);
        let mount = vault.mount();
        let content = pattern(2 << 20, 1);
        fs::write(mount.path("before"), &content).unwrap();
        let mut file = File::create(mount.path("filler")).unwrap();
        let chunk = pattern(1 << 20, 2);
        let error = loop {
            if let Err(error) = file.write_all(&chunk).and_then(|()| file.sync_all()) {
                break error;
            }
        };
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        drop(file);
        assert!(fs::read(mount.path("before")).unwrap() == content);
        let small = fs::write(mount.path("small"), pattern(200_000, 3));
        if small.is_ok() {
            assert!(File::open(mount.path("small")).is_ok());
        }
        fs::remove_file(mount.path("filler")).unwrap();
        // The kernel tells the last close a moment later, and only then is the room free.
        let until = Instant::now() + Duration::from_secs(10);
        let again = || {
            let mut file = File::create(mount.path("after"))?;
            file.write_all(&content).and_then(|()| file.sync_all())
        };
        while again().is_err() {
            assert!(Instant::now() < until, "the removed file's room does not come back");
        }
        mount.unmount();
        let mount = vault.mount();
        assert!(fs::read(mount.path("before")).unwrap() == content);
        assert!(fs::read(mount.path("after")).unwrap() == content);
        mount.unmount();
        vault.assert_sound();
    }
}

/// Overwriting in place needs no room: it works on a full disk.
#[test]
fn a_full_disk_still_takes_overwrites() {
    if !can_mount() || !is_root() {
        return;
    }
    let disk = SmallDisk::memory("tmpfs", "size=16m");
    let vault = Vault::below(&disk.dir);
    let mount = vault.mount();
    fs::write(mount.path("f"), pattern(3 << 20, 1)).unwrap();
    File::open(mount.path("f")).unwrap().sync_all().unwrap();
    let _ = std::process::Command::new("fallocate").args(["-l", "1G"]).arg(disk.dir.join("rest")).output();
    let _ = std::process::Command::new("dd")
        .args(["if=/dev/zero", "bs=4k"])
        .arg(format!("of={}", text(&disk.dir.join("rest"))))
        .output();
    let file = File::options().read(true).write(true).open(mount.path("f")).unwrap();
    let patch = pattern(1 << 20, 2);
    file.write_all_at(&patch, 1 << 20).unwrap();
    file.sync_all().unwrap();
    drop(file);
    mount.unmount();
    let mount = vault.mount();
    assert!(fs::read(mount.path("f")).unwrap()[1 << 20..2 << 20] == patch);
    mount.unmount();
}

/// A lower filesystem without user xattrs cannot hold a vault; `init` says so and leaves nothing behind.
#[test]
fn a_lower_filesystem_without_xattrs_is_refused() {
    if !is_root() {
        return;
    }
    let disk = SmallDisk::memory("ramfs", "mode=755");
    let vault = Vault::unmade();
    let dir = disk.dir.join("vault");
    let output = vault.command(&["init", text(&dir), "--kms-key-file"]).output().unwrap();
    assert!(!output.status.success());
    assert!(said(&output).contains("extended attributes"), "{}", said(&output));
    assert!(!dir.join(".envelopefs/vault.toml").exists());
}

/// An I/O error of the lower disk is EIO for what lies there, and only for that.
#[test]
fn a_failing_disk_gives_eio() {
    if !can_mount() || !is_root() {
        return;
    }
    let disk = SmallDisk::ext4(64);
    let vault = Vault::below(&disk.dir);
    let mount = vault.mount();
    let content = pattern(100_000, 1);
    fs::write(mount.path("early"), &content).unwrap();
    fs::write(mount.path("large"), pattern(45 << 20, 2)).unwrap();
    mount.unmount();
    sh(&disk.dir, "sync -f .; cat vault/* >/dev/null; echo 3 > /proc/sys/vm/drop_caches");
    // The second half of the disk is gone.
    File::options().write(true).open(disk.dir.with_file_name("image")).unwrap().set_len(32 << 20).unwrap();
    sh(Path::new("/"), "echo 3 > /proc/sys/vm/drop_caches");
    let mount = vault.mount();
    assert!(fs::read(mount.path("early")).unwrap() == content);
    assert_eq!(fs::read(mount.path("large")).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(fs::read(mount.path("early")).unwrap() == content);
    mount.unmount();
    assert!(vault.check().1.contains("large"));
}

/// Mount points that are missing, no directory, not empty, or in use are refused with a reason.
#[test]
fn bad_mount_points_are_refused() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let at = |name: &str| vault.scratch.join(name);
    refused(&vault, &vault.dir, &at("missing"));
    fs::write(at("file"), "").unwrap();
    refused(&vault, &vault.dir, &at("file"));
    fs::create_dir(at("full")).unwrap();
    fs::write(at("full/f"), "").unwrap();
    let said = refused(&vault, &vault.dir, &at("full"));
    assert!(said.contains("not empty"), "{said}");
    // Inside the vault itself: the plaintext would be looked for below the plaintext.
    fs::create_dir(vault.dir.join("inside")).unwrap();
    refused(&vault, &vault.dir, &vault.dir.join("inside"));
    fs::remove_dir(vault.dir.join("inside")).unwrap();
    let mount = vault.mount();
    let other = Vault::new();
    refused(&other, &other.dir, mount.top());
    fs::create_dir(at("second")).unwrap();
    let said = refused(&vault, &vault.dir, &at("second"));
    assert!(said.contains("mounted") || said.contains("in use"), "{said}");
    mount.unmount();
}

/// What is no vault, or one of a newer format, is refused with a reason.
#[test]
fn what_is_no_vault_is_refused() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let said = refused(&vault, &vault.scratch, &vault.mnt);
    assert!(said.contains("no vault"), "{said}");
    refused(&vault, &vault.scratch.join("missing"), &vault.mnt);
    let config = vault.dir.join(".envelopefs/vault.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replacen("format = 1", "format = 2", 1)).unwrap();
    let said = refused(&vault, &vault.dir, &vault.mnt);
    assert!(said.contains("newer"), "{said}");
    fs::write(&config, text).unwrap();
    vault.mount().unmount();
    let output = vault.command(&["init", vault.dir.to_str().unwrap(), "--kms-key-file"]).output().unwrap();
    assert!(!output.status.success(), "a vault was initialised twice");
}

/// A KMS that lacks the key, or none at all, does not mount the vault, and says what is missing.
#[test]
fn a_wrong_key_store_is_refused() {
    if !can_mount() {
        return;
    }
    let (vault, other) = (Vault::new(), Vault::new());
    let said = refused(&other, &vault.dir, &vault.mnt);
    assert!(said.contains("key"), "{said}");
    let nowhere = Vault::unmade();
    let said = refused(&nowhere, &vault.dir, &vault.mnt);
    assert!(said.to_lowercase().contains("kms"), "{said}");
    assert!(!nowhere.kms.exists(), "a failed mount made a KMS store");
}

/// Lower names that do not decode are left out of listings; `check` names them; all else works.
#[test]
fn undecodable_names_are_left_out() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    fs::create_dir(mount.path("d")).unwrap();
    fs::write(mount.path("moved"), "x").unwrap();
    fs::write(mount.path("d/stays"), "x").unwrap();
    let (d, moved) = (vault.lower(&mount.path("d")), vault.lower(&mount.path("moved")));
    mount.unmount();
    fs::write(vault.dir.join("README.txt"), "left here by someone").unwrap();
    fs::rename(&moved, d.join(moved.file_name().unwrap())).unwrap();
    let mount = vault.mount();
    assert_eq!(sh(mount.top(), "ls; ls d"), "d\nstays\n");
    fs::write(mount.path("README.txt"), "ours").unwrap();
    assert_eq!(fs::read_to_string(mount.path("README.txt")).unwrap(), "ours");
    mount.unmount();
    assert_eq!(fs::read_to_string(vault.dir.join("README.txt")).unwrap(), "left here by someone");
    let (code, said) = vault.check();
    assert_ne!(code, 0, "{said}");
    assert!(said.contains(moved.file_name().unwrap().to_str().unwrap()), "{said}");
}

/// Unmounting what is no mount fails with a reason.
#[test]
fn unmounting_nothing_is_told() {
    let vault = Vault::unmade();
    let output = crate::harness::envelopefs(["umount", text(&vault.mnt)]).output().unwrap();
    assert!(!output.status.success());
    assert!(!said(&output).is_empty());
}
