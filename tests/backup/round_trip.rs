//! There and back again.

use std::os::unix::fs::MetadataExt;

use super::harness::{Home, can_mount, has};

/// What was stored comes back the same in everything that a user sees, header for header below; a second run reads
/// nothing; the repository verifies without any key of the vault, and block for block with it.
#[test]
fn a_vault_comes_back_as_it_was() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    home.fill();
    home.init_repo();
    let first = home.json(0, &["backup", "run", "vault", "REPO"]);
    assert_eq!(first["problems"].as_array().unwrap().len(), 0);
    assert!(first["new"].as_u64().unwrap() > 60, "{first}");
    let again = home.json(0, &["backup", "run", "vault", "REPO"]);
    assert_eq!((again["new"].as_u64(), again["changed"].as_u64()), (Some(0), Some(0)), "{again}");
    assert_eq!(again["meter"]["files"].as_u64(), Some(0), "nothing is read again: {again}");
    assert_eq!(home.json(0, &["backup", "list", "REPO"]).as_array().unwrap().len(), 2);
    let done = home.json(0, &["backup", "restore", "REPO", "back"]);
    assert_eq!(done["restored"]["problems"].as_array().unwrap().len(), 0);
    let headers = "(getfattr -hR -d -m user.efs . || true) | sort";
    assert_eq!(home.sh(&format!("cd vault && {headers}")), home.sh(&format!("cd back && {headers}")));
    home.assert_same("vault", "back");
    let verified = home.json(0, &["backup", "verify", "--read", "all", "REPO"]);
    assert_eq!(verified["snapshots"].as_u64(), Some(2));
    let deep = home.json(0, &["backup", "verify", "--deep", "REPO"]);
    assert!(deep["files"].as_u64().unwrap() > 60 && deep["bytes"].as_u64().unwrap() > 3_000_000, "{deep}");
}

/// When the key file is lost, the vault's key opens the repository: only the bucket and the KMS are left.
#[test]
fn the_vault_key_opens_the_repository_when_all_else_is_lost() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    home.fill();
    home.init_repo();
    home.ok(&["backup", "run", "vault", "REPO"]);
    home.sh("mv vault lost; rm -r config cache");
    let told = home.ends(1, &["backup", "restore", "REPO", "back"]);
    assert!(told.contains("no such key file"), "{told}");
    home.ok(&["backup", "restore", "--vault-key", "REPO", "back"]);
    home.assert_same("lost", "back");
    // Another vault's key does not.
    home.sh("mv data gone");
    home.ok(&["init", "--kms-key-file", "other"]);
    home.ends(7, &["backup", "list", "--vault-key", "REPO"]);
}

/// A header is not in the file's bytes: a run that finds none, or one that does not parse, names the file and ends with 3.
#[test]
fn a_missing_header_is_named() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    home.fill();
    home.init_repo();
    let mut files = home.lower_files("vault");
    files.retain(|file| std::fs::metadata(file).unwrap().nlink() == 1);
    let name = |n: usize| files[n].strip_prefix(home.vault()).unwrap().display().to_string();
    home.sh(&format!("setfattr -x user.efs.key {}", files[0].display()));
    home.sh(&format!("setfattr -n user.efs.key -v 0x07 {}", files[1].display()));
    let told = home.ends(3, &["backup", "run", "vault", "REPO"]);
    assert!(told.contains(&format!("{}: no header", name(0))), "{told}");
    assert!(told.contains(&format!("{}: file header: kind 7", name(1))), "{told}");
    let list = home.ok(&["backup", "list", "REPO"]);
    assert!(list.contains("incomplete"), "{list}");
    let verified = home.ends(11, &["backup", "verify", "REPO"]);
    assert!(verified.contains(&name(0)) && verified.contains(&name(1)), "{verified}");
}

/// Of a file that changed in one place, the group that holds it is sent, not the file; a change of attributes sends no
/// content at all.
#[test]
fn only_what_changed_is_sent() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    let mnt = home.mount("vault");
    home.sh(&format!("head -c 40000000 /dev/urandom > {}/large", mnt.display()));
    home.umount(&mnt);
    home.init_repo();
    let first = home.json(0, &["backup", "run", "vault", "REPO"]);
    assert!(first["meter"]["sent"].as_u64().unwrap() > 40_000_000);
    let mnt = home.mount("vault");
    home.sh(&format!(
        "printf changed | dd of={}/large bs=1 seek=20000000 conv=notrunc status=none",
        mnt.display()
    ));
    home.umount(&mnt);
    let second = home.json(0, &["backup", "run", "vault", "REPO"]);
    let sent = second["meter"]["sent"].as_u64().unwrap();
    // The group, and the first one, whose map page holds the length.
    assert!((528_384..1_200_000).contains(&sent), "{second}");
    home.sh("chmod 0604 vault/[A-Za-z0-9_-]*");
    let third = home.json(0, &["backup", "run", "vault", "REPO"]);
    assert!(third["meter"]["sent"].as_u64().unwrap() < 20_000, "{third}");
}

/// Restic, without any of our code, brings the vault back with its headers.
#[test]
fn stock_restic_restores_it() {
    if !can_mount() || !has("restic") {
        return;
    }
    let mut home = Home::new();
    home.fill();
    home.init_repo();
    home.ok(&["backup", "run", "vault", "REPO"]);
    home.sh("RESTIC_CACHE_DIR=$PWD/rc restic -q -r repo --password-file config/envelopefs/backup.key check");
    home.sh("RESTIC_CACHE_DIR=$PWD/rc restic -q -r repo --password-file config/envelopefs/backup.key restore latest --target out");
    home.assert_same("vault", "out/vault");
}

/// Old snapshots go by rules, and their space with them; what is left is whole.
#[test]
fn old_snapshots_go() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    home.init_repo();
    for n in 0..3 {
        let mnt = home.mount("vault");
        home.sh(&format!("head -c 2000000 /dev/urandom > {}/f{n}; rm -f {0}/f{}", mnt.display(), n - 1));
        home.umount(&mnt);
        home.ok(&["backup", "run", "vault", "REPO"]);
    }
    let size = |home: &Home| home.sh("du -sb repo/data | cut -f1").trim().parse::<u64>().unwrap();
    let before = size(&home);
    let dry = home.json(0, &["backup", "forget", "--keep-last", "1", "--dry-run", "REPO"]);
    assert_eq!(dry["removed"].as_array().unwrap().len(), 2);
    assert_eq!(home.json(0, &["backup", "list", "REPO"]).as_array().unwrap().len(), 3);
    home.ok(&["backup", "forget", "--keep-last", "1", "REPO"]);
    home.ok(&["backup", "prune", "--at-once", "REPO"]);
    assert!(size(&home) < before / 2, "{} of {before} bytes are left", size(&home));
    home.ok(&["backup", "verify", "--read", "all", "REPO"]);
    home.ok(&["backup", "restore", "REPO", "back"]);
    home.assert_same("vault", "back");
}

/// A restore over a vault in which a file has a directory's name: the file is named and keeps its header.
#[test]
fn a_file_in_a_directorys_place_keeps_its_header() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    home.fill();
    home.init_repo();
    home.ok(&["backup", "run", "vault", "REPO"]);
    let dir =
        home.sh("find vault -mindepth 1 -maxdepth 1 -name .envelopefs -prune -o -type d -print | head -1");
    let file = home.lower_files("vault").into_iter().find(|f| f.parent() == Some(&home.vault())).unwrap();
    let header =
        |at: &str| home.sh(&format!("getfattr --absolute-names --only-values -n user.efs.key {at} | base64"));
    let before = header(file.to_str().unwrap());
    home.sh(&format!("rm -r {0}; mv {1} {0}", dir.trim(), file.display()));
    let told = home.ends(3, &["backup", "restore", "REPO", "vault"]);
    assert!(told.contains("something that is no directory is in its place"), "{told}");
    assert_eq!(header(dir.trim()), before);
    home.sh(&format!("rm {}", dir.trim()));
    home.ok(&["backup", "restore", "REPO", "vault"]);
}
