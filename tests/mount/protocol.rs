//! What the kernel is told over the protocol, and what it therefore need not ask again.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use crate::harness::{Vault, can_mount, eventually, is_root, run, sh};

/// Read calls that a process has made: with the device as transport the daemon makes one for each request.
fn reads(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    io.lines().find_map(|l| l.strip_prefix("syscr: ")).unwrap().parse().unwrap()
}

/// The birth time is the lower file's, and does not move when the file is written.
#[test]
fn birth_times_are_shown() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    fs::write(mount.path("f"), "x").unwrap();
    let born = |path: &std::path::Path| fs::metadata(path).unwrap().created();
    let Ok(below) = born(&vault.lower(&mount.path("f"))) else { return mount.unmount() };
    assert_eq!(born(&mount.path("f")).unwrap(), below);
    fs::write(mount.path("f"), "again").unwrap();
    assert_eq!(born(&mount.path("f")).unwrap(), below);
    fs::create_dir(mount.path("d")).unwrap();
    assert_eq!(born(&mount.path("d")).unwrap(), born(&vault.lower(&mount.path("d"))).unwrap());
    mount.unmount();
}

/// An ACL that is set by someone outside the file's group takes the set-gid bit away; one set by root leaves it.
#[test]
fn a_new_acl_drops_the_set_gid_bit() {
    if !can_mount() || !is_root() {
        return;
    }
    let vault = Vault::new();
    fs::set_permissions(vault.mnt.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    let mount = vault.mount_with("allow_other");
    sh(mount.top(), "chmod 755 .; echo x > f; chown daemon:bin f; chmod 2755 f; setfacl -m u:nobody:r f");
    let mode = || fs::metadata(mount.path("f")).unwrap().mode() & 0o7777;
    assert_eq!(mode() & 0o2000, 0o2000);
    let owner = ["--reuid", "daemon", "--regid", "daemon", "--clear-groups"];
    run(Command::new("setpriv")
        .args(owner)
        .args(["setfacl", "-m", "u:nobody:rx", "f"])
        .current_dir(mount.top()));
    assert_eq!(mode() & 0o2000, 0);
    mount.unmount();
}

/// A name that does not exist is asked for once; it shows as soon as it is made, however that happens.
#[test]
fn missing_names_are_remembered_until_they_are_made() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount_with("transport=device");
    let names = ["made", "linked", "renamed", "dir"];
    let missing = || names.iter().filter(|n| !mount.path(n).exists()).count();
    assert_eq!(missing(), 4);
    let before = reads(mount.daemon_id());
    for _ in 0..100 {
        assert_eq!(missing(), 4);
    }
    let asked = reads(mount.daemon_id()) - before;
    assert!(asked < 100, "{asked} requests for 400 looks at names that were known to be missing");
    fs::write(mount.path("made"), "x").unwrap();
    fs::hard_link(mount.path("made"), mount.path("linked")).unwrap();
    fs::write(mount.path("other"), "y").unwrap();
    fs::rename(mount.path("other"), mount.path("renamed")).unwrap();
    fs::create_dir(mount.path("dir")).unwrap();
    assert_eq!(missing(), 0);
    fs::remove_file(mount.path("made")).unwrap();
    assert_eq!(missing(), 1);
    mount.unmount();
}

/// Hosts that share a vault remember nothing: what another one makes shows at the next look.
#[test]
fn a_shared_mount_asks_again_for_missing_names() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount_with("shared,transport=device");
    assert!(!mount.path("f").exists());
    let before = reads(mount.daemon_id());
    for _ in 0..100 {
        assert!(!mount.path("f").exists());
    }
    assert!(reads(mount.daemon_id()) - before >= 100);
    mount.unmount();
}

/// Opening and closing a file is two requests: nothing is to be done at the close of a descriptor.
#[test]
fn a_close_costs_no_request_of_its_own() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount_with("transport=device");
    fs::write(mount.path("f"), "x").unwrap();
    // While it is open, opening it again reads nothing below.
    let open = File::open(mount.path("f")).unwrap();
    // The pool of data keys is filled behind the first create, and reads the head of the audit log for each.
    let mut seen = 0;
    eventually("the daemon is still", || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        std::mem::replace(&mut seen, reads(mount.daemon_id())) == seen
    });
    let before = reads(mount.daemon_id());
    for _ in 0..200 {
        drop(File::open(mount.path("f")).unwrap());
    }
    let asked = reads(mount.daemon_id()) - before;
    drop(open);
    assert!((390..500).contains(&asked), "{asked} requests for 200 opens and closes");
    mount.unmount();
}
