//! How a mount begins and ends: signals, death, use, and what is left behind: nothing.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Vault, can_mount, envelopefs, eventually, run, said, text};

fn is_mounted(mnt: &Path) -> bool {
    fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&format!(" {} ", text(mnt)))
}

fn signal(id: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(id).unwrap()).unwrap(), signal).unwrap();
}

/// SIGTERM unmounts; what was written a moment before, and is still in the kernel's cache, is in the vault.
#[test]
fn a_signal_unmounts_and_loses_nothing() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let content: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    fs::write(mount.path("f"), &content).unwrap();
    signal(mount.daemon_id(), Signal::TERM);
    eventually("the unmount", || !is_mounted(&vault.mnt));
    mount.wait();
    let mount = vault.mount();
    assert!(fs::read(mount.path("f")).unwrap() == content);
    mount.unmount();
    vault.assert_sound();
}

/// With a file still open, a signal detaches the mount at once, and the daemon serves the file until it is closed.
#[test]
fn a_signal_waits_for_open_files() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    fs::write(mount.path("f"), "still readable").unwrap();
    let mut open = File::open(mount.path("f")).unwrap();
    signal(mount.daemon_id(), Signal::TERM);
    eventually("the unmount", || !is_mounted(&vault.mnt));
    let mut content = String::new();
    open.read_to_string(&mut content).unwrap();
    assert_eq!(content, "still readable");
    drop(open);
    mount.wait();
    vault.assert_sound();
}

/// A daemon that is killed leaves no dead mount point: the guardian unmounts, and the vault mounts again at once.
#[test]
fn a_killed_daemon_leaves_no_dead_mount() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    fs::write(mount.path("f"), "x").unwrap();
    signal(mount.daemon_id(), Signal::KILL);
    eventually("the unmount", || !is_mounted(&vault.mnt));
    drop(mount);
    let mount = vault.mount();
    mount.unmount();
    vault.assert_sound();
}

/// A vault is mounted once: the second mount says so, with its own exit code, and the first goes on.
#[test]
fn a_vault_is_mounted_once() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let other = vault.scratch.join("other");
    fs::create_dir(&other).unwrap();
    let second = vault.command(&["mount", text(&vault.dir), text(&other)]).output().unwrap();
    assert_eq!(second.status.code(), Some(10), "{}", said(&second));
    let again = vault.command(&["mount", text(&vault.dir), text(&vault.mnt)]).output().unwrap();
    assert_eq!(again.status.code(), Some(8), "{}", said(&again));
    fs::write(mount.path("f"), "x").unwrap();
    mount.unmount();
}

/// `umount` of a mount in use says so and leaves it; `--lazy` lets go of it.
#[test]
fn a_mount_in_use_is_unmounted_lazily_only() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    fs::write(mount.path("f"), "x").unwrap();
    let open = File::open(mount.path("f")).unwrap();
    let busy = envelopefs(["umount", text(&vault.mnt)]).output().unwrap();
    assert_eq!(busy.status.code(), Some(8), "{}", said(&busy));
    assert!(is_mounted(&vault.mnt));
    run(&mut envelopefs(["umount", "--lazy", text(&vault.mnt)]));
    assert!(!is_mounted(&vault.mnt));
    drop(open);
    mount.wait();
    vault.assert_sound();
}

/// The daemon runs in its sandbox, cannot gain rights, and leaves no core.
#[test]
fn the_daemon_is_confined() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    fs::write(mount.path("f"), "x").unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", mount.daemon_id())).unwrap();
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim();
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1", "2"), "{status}");
    let limits = fs::read_to_string(format!("/proc/{}/limits", mount.daemon_id())).unwrap();
    let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    assert!(vault.log().contains("sandbox: landlock"), "{}", vault.log());
    assert!(!vault.log().contains("runs already"), "{}", vault.log());
    mount.unmount();
}

/// An overlong file that was opened once is right also after it was written: the kernel's length is the true one.
#[test]
fn a_mended_length_stays_right() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    fs::write(mount.path("f"), vec![7; 10_000]).unwrap();
    let lower = vault.lower(&mount.path("f"));
    mount.unmount();
    let mut longer = fs::read(&lower).unwrap();
    longer.extend_from_slice(&[1; 5000]);
    // Written through the same inode: the header is its xattr.
    fs::write(&lower, &longer).unwrap();
    let mount = vault.mount();
    assert!(fs::read(mount.path("f")).unwrap() == vec![7; 10_000]);
    let mut append = File::options().append(true).open(mount.path("f")).unwrap();
    std::io::Write::write_all(&mut append, &[8; 100]).unwrap();
    drop(append);
    let expected = [vec![7; 10_000], vec![8; 100]].concat();
    assert!(fs::read(mount.path("f")).unwrap() == expected);
    mount.unmount();
    let mount = vault.mount();
    assert!(fs::read(mount.path("f")).unwrap() == expected);
    mount.unmount();
    vault.assert_sound();
}
