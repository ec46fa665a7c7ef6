//! A daemon is killed, and the lower disk is full at the next mount.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::harness::{SmallDisk, Vault, can_mount, eventually, is_mounted, is_root, pattern, said, text};

const LEN: usize = 2 << 20;

/// A vault on a small disk, with changes of a durable file in the journal of a killed daemon.
fn killed(disk: &SmallDisk) -> Vault {
    let vault = Vault::below(&disk.dir);
    let mount = vault.mount();
    let file = File::create(mount.path("file")).unwrap();
    file.write_all_at(&pattern(LEN, 1), 0).unwrap();
    file.sync_all().unwrap();
    file.write_all_at(&pattern(LEN, 2), 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    mount.kill();
    eventually("the guardian's unmount", || !is_mounted(&vault.mnt));
    vault
}

/// Leaves no block free.
fn fill(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("fill");
    let mut file = File::create(&path).unwrap();
    for size in [1 << 20, 1 << 12, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
        let _ = file.sync_all();
    }
    path
}

fn look(vault: &Vault) {
    let mount = vault.mount();
    assert!(fs::read(mount.path("file")).unwrap() == pattern(LEN, 2), "what was written last");
    mount.unmount();
    vault.assert_sound();
}

/// The space that the journal has set aside is enough for a replay.
#[test]
fn a_full_disk_does_not_keep_a_vault_from_its_journal() {
    if !can_mount() || !is_root() {
        return;
    }
    let disk = SmallDisk::ext4(64);
    let vault = killed(&disk);
    fill(&disk.dir);
    look(&vault);
}

/// Where it is not, the mount says what to do, a read-only one shows what is there, and nothing is lost.
#[test]
fn a_disk_too_full_for_a_replay_is_told_of() {
    if !can_mount() || !is_root() {
        return;
    }
    let disk = SmallDisk::ext4(64);
    let vault = killed(&disk);
    for log in ["1.log", "2.log"] {
        fs::remove_file(vault.dir.join(".envelopefs/journal").join(log)).unwrap();
    }
    let filling = fill(&disk.dir);
    let output = vault.command(&["mount", text(&vault.dir), text(&vault.mnt)]).output().unwrap();
    let said = said(&output);
    assert!(!output.status.success(), "{said}");
    for part in [text(&vault.dir), "No space left", "MiB of free space", "Free space", "-o ro"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let mount = vault.mount_with("ro");
    let found = fs::read(mount.path("file")).map(|found| found.len()).ok();
    mount.unmount();
    assert_eq!(found, Some(LEN));
    fs::remove_file(filling).unwrap();
    look(&vault);
}
