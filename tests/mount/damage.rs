//! After a crash and after damage: `check --repair` and `salvage` as a user runs them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::harness::{Vault, can_mount, pattern, said, text};

/// A daemon that was killed leaves a journal; `check --repair` brings it in, and a second time finds nothing to mend.
#[test]
fn a_repair_brings_the_journal_in() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let mut content = pattern(900_000, 1);
    fs::write(mount.path("file"), &content).unwrap();
    let file = File::options().write(true).open(mount.path("file")).unwrap();
    file.sync_all().unwrap();
    for at in [0, 5000, 600_000] {
        file.write_all_at(b"changed in place", at).unwrap();
        content[at as usize..at as usize + 16].copy_from_slice(b"changed in place");
    }
    file.sync_all().unwrap();
    let repair = || vault.command(&["check", "--repair", text(&vault.dir)]).output().unwrap();
    let busy = repair();
    assert_eq!(busy.status.code(), Some(10), "{}", said(&busy));
    mount.kill();
    let journal = vault.dir.join(".envelopefs/journal");
    assert_ne!(fs::read_dir(&journal).unwrap().count(), 0, "nothing was left to bring in");
    let first = repair();
    assert!(first.status.success() && said(&first).contains("replayed: "), "{}", said(&first));
    let second = repair();
    assert!(second.status.success() && !said(&second).contains("replayed"), "{}", said(&second));
    let mount = vault.mount();
    assert!(fs::read(mount.path("file")).unwrap() == content);
    mount.unmount();
}

/// A damaged block and a damaged page cost themselves; the rest comes out, and not into the vault.
#[test]
fn what_still_opens_is_salvaged() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    let mut content = pattern(1_300_000, 2);
    fs::write(mount.path("file"), &content).unwrap();
    let lower = vault.lower(&mount.path("file"));
    mount.unmount();
    let file = File::options().write(true).open(&lower).unwrap();
    file.write_all_at(b"damage", 4096 * 3).unwrap();
    file.write_all_at(b"damage", 528_384 + 1000).unwrap();
    content[4096 * 2..4096 * 3].fill(0);
    content[524_288..1_048_576].fill(0);
    let run = |out: &str| vault.command(&["salvage", text(&lower), "-o", out]).output().unwrap();
    let out = vault.scratch.join("out");
    let done = run(text(&out));
    assert_eq!(done.status.code(), Some(11), "{}", said(&done));
    assert!(said(&done).contains("129 lost"), "{}", said(&done));
    assert!(fs::read(&out).unwrap() == content);
    assert!(fs::read_to_string(vault.scratch.join("out.map")).unwrap().contains("\n2 1 lost"));
    assert_eq!(run(text(&vault.dir.join("out"))).status.code(), Some(2));
}
