//! The ciphertext view, copied by tools that keep nothing but bytes, and a look into a snapshot.

use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use super::harness::{Home, Killed, can_mount, eventually, has};

/// Mounts the view of the vault.
fn view(home: &Home) -> std::path::PathBuf {
    let point = home.path("view");
    std::fs::create_dir(&point).unwrap();
    let log = home.path("view.log");
    home.ok(&["mount", "--view", "ciphertext", "--log-file", log.to_str().unwrap(), "vault", "view"]);
    point
}

/// A plain `cp -r`, which loses xattrs, owners, times and links, of the view becomes a vault that is the same.
#[test]
fn a_copy_of_the_view_becomes_a_vault() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    home.fill();
    let point = view(&home);
    home.sh("cp -r view tree");
    home.umount(&point);
    let done = home.json(0, &["import", "tree", "back"]);
    assert!(done["files"].as_u64().unwrap() > 60, "{done}");
    home.assert_same("vault", "back");
    home.ok(&["check", "back"]);
}

/// rsync finds nothing to do a second time, and sends a file whose header alone changed.
#[test]
fn rsync_sees_a_changed_header() {
    if !can_mount() || !has("rsync") {
        return;
    }
    let mut home = Home::new();
    home.fill();
    let point = view(&home);
    let sync = "rsync -rt --out-format=%n view/ tree/";
    assert!(home.sh(sync).lines().count() > 60);
    assert_eq!(home.sh(&format!("{sync} | sed '/\\/$/d' | wc -l")).trim(), "0");
    home.umount(&point);
    let has_one_name = |file: &std::path::PathBuf| std::fs::metadata(file).unwrap().nlink() == 1;
    let file = home.lower_files("vault").into_iter().find(has_one_name).unwrap();
    // rsync compares whole seconds.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    home.sh(&format!(
        "setfattr -n user.efs.x.AAAA -v 1 {0} && setfattr -x user.efs.x.AAAA {0}",
        file.display()
    ));
    home.sh("rmdir view");
    let point = view(&home);
    let sent = home.sh(&format!("{sync} | sed '/\\/$/d'"));
    home.umount(&point);
    assert_eq!(sent.trim(), file.strip_prefix(home.vault()).unwrap().to_str().unwrap());
}

/// A file of the copy that was cut or changed on the way is named, and the import ends with 3.
#[test]
fn a_damaged_copy_is_named() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    home.fill();
    let point = view(&home);
    home.sh("cp -r view tree; chmod -R u+w tree");
    home.umount(&point);
    let files = home.lower_files("vault");
    let name = |n: usize| files[n].strip_prefix(home.vault()).unwrap().display().to_string();
    home.sh(&format!(
        "truncate -s -1 tree/{}; printf x | dd of=tree/{} bs=1 seek=80 conv=notrunc status=none",
        name(0),
        name(1)
    ));
    let told = home.ends(3, &["import", "tree", "back"]);
    assert!(told.contains(&format!("{}: ", name(0))) && told.contains("cut on the way"), "{told}");
    assert!(told.contains(&name(1)) && told.contains("changed on the way"), "{told}");
    home.sh("mkdir none");
    home.ends(1, &["import", "none", "other"]);
}

/// A file without a header cannot be read in the view: a tool must not believe that it has it.
#[test]
fn the_view_gives_no_file_without_its_header() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    home.fill();
    let file = home.lower_files("vault").remove(0);
    home.sh(&format!("setfattr -x user.efs.key {}", file.display()));
    let point = view(&home);
    let name = file.strip_prefix(home.vault()).unwrap();
    let read = Command::new("cat").arg(point.join(name)).stdout(Stdio::null()).output().unwrap();
    home.umount(&point);
    assert!(!read.status.success());
}

/// A snapshot shows its plaintext without a restore, as it was then.
#[test]
fn a_snapshot_is_looked_at() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    home.fill();
    home.init_repo();
    home.ok(&["backup", "run", "vault", "REPO"]);
    let mnt = home.mount("vault");
    let sums = "find . -type f -exec md5sum {} + | sort";
    let then = home.sh(&format!("cd {} && {sums}", mnt.display()));
    home.sh(&format!("rm -r {}/a", mnt.display()));
    home.umount(&mnt);
    home.sh("mkdir look");
    let look = Killed(home.efs(&["backup", "mount", "REPO", "look"]).spawn().unwrap());
    eventually("the mount", || home.path("look/one").exists());
    assert_eq!(home.sh(&format!("cd look && {sums}")), then);
    assert_eq!(
        home.sh("readlink look/a/link; getfattr --only-values -n user.colour look/a/f3"),
        "../one\nblue"
    );
    let touched = Command::new("touch").arg(home.path("look/new")).output().unwrap();
    assert!(!touched.status.success());
    home.ok(&["umount", "look"]);
    drop(look);
}
