//! The headers of a vault in one file, for copies by tools that lose them.

use super::harness::{Home, can_mount};

/// `cp -r` loses every header; the exported file, which it copies, brings them back.
#[test]
fn a_copy_without_headers_is_mended() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    home.fill();
    home.ok(&["headers", "export", "vault"]);
    home.sh("cp -r vault copy");
    let point = home.path("point");
    std::fs::create_dir(&point).unwrap();
    let output = home.efs(&["mount", "copy", "point"]).output().unwrap();
    let told = super::harness::said(&output);
    assert!(!output.status.success(), "{told}");
    assert!(told.contains("have no header") && told.contains("envelopefs headers import"), "{told}");
    let done = home.json(0, &["headers", "import", "copy"]);
    assert!(done["put_back"].as_u64().unwrap() > 60, "{done}");
    // `cp -r` keeps neither times nor modes nor hard links: contents and names are compared.
    let (a, b) = (home.mount("vault"), home.mount("copy"));
    let list = "find . -type f -exec md5sum {} + | sort; (getfattr -hR -d -m user. . || true) | sort";
    let seen = |at: &std::path::Path| home.sh(&format!("cd {} && {list}", at.display()));
    assert_eq!(seen(&a), seen(&b));
    home.umount(&a);
    home.umount(&b);
}

/// A file that has lost its header is named by the export, which then does not end with 0.
#[test]
fn an_export_names_what_is_missing() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    home.fill();
    let file = home.lower_files("vault").remove(0);
    home.sh(&format!("setfattr -x user.efs.key {}", file.display()));
    let told = home.ends(11, &["headers", "export", "vault"]);
    assert!(told.contains("no header"), "{told}");
}

/// Once exported, the file is true after each mount: a copy made then has the headers of what was written since.
#[test]
fn a_mount_keeps_the_exported_headers_true() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    home.fill();
    home.ok(&["headers", "export", "vault"]);
    let mnt = home.mount("vault");
    home.sh(&format!("echo later > {}/later", mnt.display()));
    home.umount(&mnt);
    home.sh("cp -r vault copy");
    home.ok(&["headers", "import", "copy"]);
    let mnt = home.mount("copy");
    assert_eq!(home.sh(&format!("cat {}/later", mnt.display())), "later\n");
    home.umount(&mnt);
}
