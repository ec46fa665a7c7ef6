//! What goes wrong on the way there and back: each ends with the right code, a clear word, and nothing lost.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use super::harness::{Home, Killed, can_mount, eventually, is_root};

fn filled() -> Option<Home> {
    if !can_mount() {
        return None;
    }
    let mut home = Home::new();
    home.fill();
    home.init_repo();
    Some(home)
}

/// A flipped bit passes a look at the structure, is found when data is read, and makes a restore end with 3 and the
/// name of the file.
#[test]
fn a_flipped_bit_is_found() {
    let Some(home) = filled() else { return };
    home.ok(&["backup", "run", "vault", "REPO"]);
    let pack = fs::OpenOptions::new().read(true).write(true).open(&home.packs()[0]).unwrap();
    let mut byte = [0];
    pack.read_exact_at(&mut byte, 2_000_000).unwrap();
    pack.write_all_at(&[byte[0] ^ 1], 2_000_000).unwrap();
    home.ok(&["backup", "verify", "REPO"]);
    home.ends(11, &["backup", "verify", "--read", "all", "REPO"]);
    let told = home.ends(11, &["backup", "verify", "--deep", "REPO"]);
    assert!(told.contains("1 faults"), "{told}");
    let done = home.json(3, &["backup", "restore", "REPO", "back"]);
    assert_eq!(done["restored"]["problems"].as_array().unwrap().len(), 1, "{done}");
    // What was right is kept, and the rest comes when the pack is whole again.
    pack.write_all_at(&byte, 2_000_000).unwrap();
    let done = home.json(0, &["backup", "restore", "REPO", "back"]);
    assert_eq!(done["restored"]["files"].as_u64().unwrap(), done["restored"]["kept"].as_u64().unwrap() + 1);
}

/// A pack that vanished is found without reading data.
#[test]
fn a_vanished_pack_is_found() {
    let Some(home) = filled() else { return };
    home.ok(&["backup", "run", "vault", "REPO"]);
    fs::remove_file(&home.packs()[0]).unwrap();
    home.ends(11, &["backup", "verify", "REPO"]);
    home.ends(3, &["backup", "restore", "REPO", "back"]);
    // The next run that reads everything stores what is missing again.
    home.ok(&["backup", "run", "--all", "vault", "REPO"]);
}

/// An index that names packs which are not there is not believed, by no machine: the next run stores again what they held, reads
/// what did not change too, removes nothing, and what it stored comes back. A prune mends the index.
#[test]
fn an_index_that_names_what_is_not_there_is_not_believed() {
    let Some(mut home) = filled() else { return };
    home.ok(&["backup", "run", "vault", "REPO"]);
    // One is gone, another is not whole.
    let packs = home.packs();
    fs::remove_file(&packs[0]).unwrap();
    fs::OpenOptions::new().write(true).open(&packs[1]).unwrap().set_len(1000).unwrap();
    let indexes =
        |home: &Home| home.sh("ls repo/index | sort").lines().map(str::to_owned).collect::<Vec<_>>();
    let before = indexes(&home);
    // Another machine, and this one behind a run that was cut off.
    home.sh("rm -r cache");
    for _ in 0..2 {
        home.json(0, &["backup", "run", "vault", "REPO"]);
        home.sh("cd cache/envelopefs/backup && touch $(ls | grep -m1 -E '^[0-9a-f]{64}$').running");
    }
    let after = indexes(&home);
    assert!(before.iter().all(|name| after.contains(name)), "{before:?} {after:?}");
    home.ok(&["backup", "restore", "REPO", "back"]);
    home.assert_same("vault", "back");
    home.ok(&["backup", "forget", "--keep-last", "1", "REPO"]);
    let told = home.ends(1, &["backup", "prune", "REPO"]);
    assert!(told.contains("--at-once"), "{told}");
    home.ok(&["backup", "prune", "--at-once", "REPO"]);
    home.ok(&["backup", "verify", "--read", "all", "REPO"]);
}

/// A killed run is gone on with: what it stored is not sent again.
#[test]
fn a_killed_run_goes_on() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    let mnt = home.mount("vault");
    home.sh(&format!("for n in 1 2 3; do head -c 40000000 /dev/urandom > {}/f$n; done", mnt.display()));
    home.umount(&mnt);
    home.init_repo();
    let mut run = home.efs(&["backup", "run", "--limit", "20000", "vault", "REPO"]).spawn().unwrap();
    let packs = home.path("repo/data");
    eventually("two packs", || {
        let found = Command::new("find").arg(&packs).args(["-type", "f"]).output().unwrap();
        found.stdout.iter().filter(|b| **b == b'\n').count() >= 2
    });
    run.kill().unwrap();
    run.wait().unwrap();
    let done = home.json(0, &["backup", "run", "vault", "REPO"]);
    assert!(done["meter"]["sent"].as_u64().unwrap() < 90_000_000, "{done}");
    home.ok(&["backup", "verify", "--read", "all", "REPO"]);
    home.ok(&["backup", "restore", "REPO", "back"]);
    home.assert_same("vault", "back");
}

/// A snapshot of the filesystem below that a killed run has left is spoken of until a hook has removed it.
#[test]
fn a_snapshot_that_is_left_is_not_forgotten() {
    let Some(home) = filled() else { return };
    let hook = home.path("hook.sh");
    let script = format!(
        "#!/bin/bash\nset -eu\ncd {}\ncase $1 in make) cp -a vault \"$PWD/frozen-$$\"; echo \"$PWD/frozen-$$\";; \
         remove) [ ! -e stuck ] && rm -rf \"$2\";; esac\n",
        home.path("").display()
    );
    fs::write(&hook, script).unwrap();
    home.sh("chmod +x hook.sh");
    let hook = hook.to_str().unwrap();
    let frozen = |home: &Home| home.sh("find . -maxdepth 1 -name 'frozen-*' | wc -l").trim().to_owned();
    // One is killed, one cannot remove what it has made.
    let args = ["backup", "run", "--limit", "1", "--snapshot-hook", hook, "vault", "REPO"];
    let mut run = Killed(home.efs(&args).spawn().unwrap());
    eventually("its path is noted", || {
        home.sh("cat cache/envelopefs/backup/*.running 2>/dev/null || true").contains("frozen-")
    });
    run.0.kill().unwrap();
    run.0.wait().unwrap();
    fs::write(home.path("stuck"), "").unwrap();
    home.ends(3, &["backup", "run", "--snapshot-hook", hook, "vault", "REPO"]);
    assert_eq!(frozen(&home), "2");
    fs::remove_file(home.path("stuck")).unwrap();
    for _ in 0..2 {
        let told = home.ends(3, &["backup", "run", "vault", "REPO"]);
        assert!(told.contains("frozen-"), "{told}");
    }
    home.ok(&["backup", "run", "--snapshot-hook", hook, "vault", "REPO"]);
    assert_eq!(frozen(&home), "0");
    home.ok(&["backup", "run", "vault", "REPO"]);
}

/// Two runs at once: the second says so.
#[test]
fn two_runs_at_once_are_told_apart() {
    let Some(home) = filled() else { return };
    let _first = Killed(home.efs(&["backup", "run", "--limit", "200", "vault", "REPO"]).spawn().unwrap());
    eventually("the first run", || {
        fs::read_dir(home.path("cache/envelopefs/backup"))
            .is_ok_and(|dir| dir.flatten().any(|e| e.file_name().to_string_lossy().ends_with(".running")))
    });
    let told = home.ends(1, &["backup", "run", "vault", "REPO"]);
    assert!(told.contains("another run"), "{told}");
}

/// A target that cannot hold headers is refused before anything is written.
#[test]
fn a_target_without_xattrs_is_refused() {
    if !is_root() {
        return;
    }
    let Some(home) = filled() else { return };
    home.ok(&["backup", "run", "vault", "REPO"]);
    home.sh("mkdir ram && mount -t ramfs none ram");
    let output = home.efs(&["backup", "restore", "REPO", "ram/back"]).output().unwrap();
    let left = home.sh("ls -A ram");
    home.sh("umount ram");
    let told = super::harness::said(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("does not keep user extended attributes"), "{told}");
    assert_eq!(left, "");
}

/// A target that is too small is refused before anything is written.
#[test]
fn a_target_that_is_too_small_is_refused() {
    if !is_root() {
        return;
    }
    let Some(home) = filled() else { return };
    home.ok(&["backup", "run", "vault", "REPO"]);
    home.sh("mkdir small && mount -t tmpfs -o size=6m none small");
    let output = home.efs(&["backup", "restore", "REPO", "small/back"]).output().unwrap();
    let left = home.sh("ls -A small");
    home.sh("umount small");
    let told = super::harness::said(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("bytes are needed") && left.is_empty(), "{told} {left}");
}

/// Restored over a damaged vault: a file that was changed, one that is gone and one that lost its header come back; the
/// rest is not written again.
#[test]
fn a_damaged_vault_is_mended() {
    let Some(mut home) = filled() else { return };
    home.ok(&["backup", "run", "vault", "REPO"]);
    home.sh("cp -a vault whole");
    let files = home.lower_files("vault");
    let long: Vec<_> = files.iter().filter(|f| fs::metadata(f).unwrap().len() > 600).collect();
    let file = fs::OpenOptions::new().write(true).open(long[0]).unwrap();
    file.write_all_at(b"damage", 500).unwrap();
    fs::remove_file(long[1]).unwrap();
    home.sh(&format!("setfattr -x user.efs.key {}", long[2].display()));
    let done = home.json(0, &["backup", "restore", "REPO", "vault"]);
    let count = |name: &str| done["restored"][name].as_u64().unwrap();
    assert_eq!(count("files"), count("kept") + 2, "{done}");
    home.assert_same("whole", "vault");
}

/// A mounted vault is not restored over.
#[test]
fn a_mounted_target_is_refused() {
    let Some(mut home) = filled() else { return };
    home.ok(&["backup", "run", "vault", "REPO"]);
    let mnt = home.mount("vault");
    let told = home.ends(1, &["backup", "restore", "REPO", "vault"]);
    home.umount(&mnt);
    assert!(told.contains("the vault is mounted"), "{told}");
}

/// One file comes back with the directories above it, as a vault that mounts.
#[test]
fn a_part_comes_back() {
    let Some(mut home) = filled() else { return };
    home.ok(&["backup", "run", "vault", "REPO"]);
    let large = home.sh("find vault -type f -size +2900k -size -3200k").trim().to_owned();
    let path = large.strip_prefix("vault/").unwrap();
    home.ok(&["backup", "restore", "--path", path, "REPO", "back"]);
    let mnt = home.mount("back");
    let seen = home.sh(&format!("cd {} && find . -type f -printf '%p %s\\n'", mnt.display()));
    home.umount(&mnt);
    assert_eq!(seen, "./a/b/c/large 3000000\n");
    home.ends(1, &["backup", "restore", "--path", "no/such", "REPO", "none"]);
}

/// Wrong input is told apart: no repository, another's key, a vault that is none, a key file that others can read.
#[test]
fn wrong_input_is_named() {
    let Some(home) = filled() else { return };
    let told = home.ends(1, &["backup", "list", "nowhere"]);
    assert!(told.contains("no repository") && told.contains("backup init"), "{told}");
    home.sh(
        "echo wrong > wrong.key; chmod 600 wrong.key; echo x > wide.key; chmod 644 wide.key; mkdir plain",
    );
    let told = home.ends(1, &["backup", "list", "--key-file", "wrong.key", "REPO"]);
    assert!(told.contains("does not open it"), "{told}");
    let told = home.ends(1, &["backup", "list", "--key-file", "wide.key", "REPO"]);
    assert!(told.contains("chmod 600"), "{told}");
    home.ends(1, &["backup", "run", "plain", "REPO"]);
    let told = home.ends(1, &["backup", "init", "vault", "REPO"]);
    assert!(told.contains("repository already"), "{told}");
    let told = home.ends(1, &["backup", "list", "s3://UPPER"]);
    assert!(told.contains("3 to 63 characters"), "{told}");
    let told = home.ends(1, &["backup", "restore", "--snapshot", "abcd", "REPO", "back"]);
    assert!(told.contains("no snapshot abcd"), "{told}");
}

/// A target that fills up while it is written: what does not fit is named, the rest is right, and when there is room a
/// second restore brings what was missing.
#[test]
fn a_target_that_fills_up_is_completed_later() {
    if !is_root() {
        return;
    }
    let Some(mut home) = filled() else { return };
    home.ok(&["backup", "run", "vault", "REPO"]);
    // Inodes run out, which nobody can reckon beforehand.
    home.sh("mkdir full && mount -t tmpfs -o size=64m,nr_inodes=40 none full");
    let output = home.efs(&["backup", "restore", "--json", "REPO", "full/back"]).output().unwrap();
    home.sh("mount -o remount,nr_inodes=4000 full");
    let done = home.efs(&["backup", "restore", "--json", "REPO", "full/back"]).output().unwrap();
    let same =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| home.assert_same("vault", "full/back")));
    home.sh("umount full");
    let told = super::harness::said(&output);
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(told.contains("No space left on device"), "{told}");
    assert_eq!(done.status.code(), Some(0), "{}", super::harness::said(&done));
    same.unwrap();
}

/// An `init` that failed half way is completed by the next one: without the vault key's password, without the copies beside the
/// repository, and where nothing but a key was made. A repository of another vault is not touched.
#[test]
fn an_unfinished_init_is_completed() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    home.fill();
    home.init_repo();
    home.ends(1, &["backup", "init", "vault", "REPO"]);
    home.sh("rm repo/README.txt; rm \"$(grep -l 'vault key' repo/keys/*)\"");
    home.ends(1, &["backup", "list", "--vault-key", "REPO"]);
    home.ok(&["backup", "init", "vault", "REPO"]);
    home.ok(&["backup", "list", "--vault-key", "REPO"]);
    assert_eq!(home.sh("ls repo/keys | wc -l; ls repo/README.txt"), "2\nrepo/README.txt\n");
    home.ends(1, &["backup", "init", "vault", "REPO"]);
    home.ok(&["init", "--kms-key-file", "other"]);
    home.sh("rm \"$(grep -l 'vault key' repo/keys/*)\"");
    home.ends(1, &["backup", "init", "other", "REPO"]);
    assert_eq!(home.sh("ls repo/keys | wc -l"), "1\n");
    // The key that is left belongs to no repository.
    home.sh("rm -r cache; rm repo/config");
    home.ok(&["backup", "init", "vault", "REPO"]);
    assert_eq!(home.sh("ls repo/keys | wc -l"), "2\n");
    home.ok(&["backup", "run", "vault", "REPO"]);
    home.ok(&["backup", "restore", "--vault-key", "REPO", "back"]);
    home.assert_same("vault", "back");
    home.sh("rm -r cache; mv repo/config lost");
    let told = home.ends(1, &["backup", "init", "vault", "REPO"]);
    assert!(told.contains("a repository that lost it"), "{told}");
    home.sh("mv lost repo/config");
    home.ok(&["backup", "list", "REPO"]);
}

/// A vault whose disk is not there stores nothing and says 1, not the 3 of an incomplete backup; an incomplete snapshot says
/// so when it is brought back; the newest complete one is never forgotten.
#[test]
fn what_is_incomplete_is_not_taken_for_complete() {
    let Some(home) = filled() else { return };
    home.sh("mkdir plain; cp -a vault broken; printf x >> broken/.envelopefs/vault.toml");
    let told = home.ends(1, &["backup", "run", "plain", "REPO"]);
    assert!(told.contains("plain is no vault"), "{told}");
    home.ends(1, &["backup", "run", "broken", "REPO"]);
    home.ok(&["backup", "run", "vault", "REPO"]);
    let file = home.lower_files("vault").into_iter().find(|f| fs::metadata(f).unwrap().nlink() == 1).unwrap();
    home.sh(&format!("setfattr -x user.efs.key {}", file.display()));
    home.ends(3, &["backup", "run", "vault", "REPO"]);
    let told = home.ends(3, &["backup", "restore", "REPO", "back"]);
    assert!(told.contains("is incomplete") && told.contains("lacked something"), "{told}");
    assert!(!told.contains("all is as it was"), "{told}");
    let done = home.json(0, &["backup", "forget", "--keep-last", "1", "REPO"]);
    assert_eq!(
        (done["kept"].as_array().unwrap().len(), done["removed"].as_array().unwrap().len()),
        (2, 0),
        "{done}"
    );
    assert_eq!(done["kept"][1][1][0].as_str(), Some("newest complete"), "{done}");
    let first = done["kept"][1][0]["id"].as_str().unwrap();
    home.ok(&["backup", "restore", "--snapshot", first, "REPO", "whole"]);
}
