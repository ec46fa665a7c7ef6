//! The way back over what is there: a vault that went on since, another vault, a journal that waits.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use envelopefs::format::view::Frame;
use serde_json::Value;

use super::harness::{Home, Killed, can_mount, eventually, is_root};

/// Lower path, from the vault's top, of the file that holds so many bytes of ciphertext or a few more.
pub(crate) fn lower_of(home: &Home, vault: &str, len: u64) -> String {
    let files = home.lower_files(vault);
    let is_it = |file: &PathBuf| (len..len + len / 16 + 8192).contains(&fs::metadata(file).unwrap().len());
    let found: Vec<_> = files.into_iter().filter(is_it).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].strip_prefix(home.path(vault)).unwrap().to_str().unwrap().to_owned()
}

fn own(home: &Home, vault: &str, name: &str) -> PathBuf {
    home.path(vault).join(".envelopefs").join(name)
}

/// Names in a vault's `lost+found` that begin so.
fn aside(home: &Home, vault: &str, name: &str) -> Vec<PathBuf> {
    let found = fs::read_dir(own(home, vault, "lost+found")).into_iter().flatten().flatten();
    found.map(|e| e.path()).filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with(name)).collect()
}

fn notes(done: &Value) -> Vec<String> {
    let notes = done["restored"]["notes"].as_array().unwrap();
    notes.iter().map(|note| note.as_str().unwrap().to_owned()).collect()
}

/// A key-encryption key that was made after the snapshot, and the config of that time, stay when the snapshot comes back over
/// the vault, a part of it or all: what was written with it since goes on opening.
#[test]
fn what_came_since_goes_on_opening() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    home.ok(&["init", "--envelope", "env"]);
    let mnt = home.mount("env");
    home.sh(&format!("cd {} && head -c 100000 /dev/urandom > old && echo then > gone", mnt.display()));
    home.umount(&mnt);
    home.ok(&["backup", "init", "env", "REPO"]);
    home.ok(&["backup", "run", "env", "REPO"]);
    let old = lower_of(&home, "env", 100_000);
    home.sh("cp -a env then");
    home.ok(&["kms", "create-key", "--alias", "alias/second"]);
    home.ok(&["recipient", "add", "env", "kms:embedded/alias/second"]);
    home.ok(&["recipient", "remove", "env", "2"]);
    let mnt = home.mount("env");
    home.sh(&format!("cd {} && echo since > new && rm gone", mnt.display()));
    home.umount(&mnt);
    let keks = fs::read(own(&home, "env", "keks.toml")).unwrap();
    let config = fs::read(own(&home, "env", "vault.toml")).unwrap();
    assert_ne!(keks, fs::read(own(&home, "then", "keks.toml")).unwrap());
    fs::remove_file(home.path("env").join(&old)).unwrap();
    let done = home.json(0, &["backup", "restore", "--path", &old, "REPO", "env"]);
    assert_eq!(done["restored"]["files"].as_u64(), Some(1), "{done}");
    assert_eq!(fs::read(own(&home, "env", "keks.toml")).unwrap(), keks);
    let done = home.json(0, &["backup", "restore", "REPO", "env"]);
    assert_eq!(notes(&done).iter().filter(|note| note.contains("stays as it is")).count(), 2, "{done}");
    assert_eq!(fs::read(own(&home, "env", "keks.toml")).unwrap(), keks);
    assert_eq!(fs::read(own(&home, "env", "vault.toml")).unwrap(), config);
    let mnt = home.mount("env");
    assert_eq!(
        home.sh(&format!("cd {} && cat gone new && wc -c < old", mnt.display())),
        "then\nsince\n100000\n"
    );
    home.umount(&mnt);
    home.ok(&["check", "env"]);
}

/// A config that does not open what comes back gives way, and is kept; a part whose header names no key that the vault still
/// has is named.
#[test]
fn a_config_that_gives_way_is_kept() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    home.fill();
    home.init_repo();
    home.ok(&["backup", "run", "vault", "REPO"]);
    home.ok(&["kms", "create-key", "--alias", "alias/second"]);
    home.ok(&["recipient", "add", "vault", "kms:embedded/alias/second"]);
    home.ok(&["rewrap", "vault"]);
    home.ok(&["recipient", "remove", "--force", "vault", "0"]);
    let since = fs::read(own(&home, "vault", "vault.toml")).unwrap();
    let large = lower_of(&home, "vault", 3_000_000);
    let told = home.ends(3, &["backup", "restore", "--path", &large, "REPO", "vault"]);
    assert!(told.contains("names no key that the vault still has"), "{told}");
    let done = home.json(0, &["backup", "restore", "REPO", "vault"]);
    assert!(notes(&done)[0].contains("it is kept as"), "{done}");
    let kept = aside(&home, "vault", "vault.toml-");
    assert_eq!(kept.len(), 1);
    assert_eq!(fs::read(&kept[0]).unwrap(), since);
    home.ok(&["check", "vault"]);
}

/// Two vaults in one repository: over one of them comes its own newest snapshot, and never the other's; where nothing says
/// which is meant, nothing is guessed.
#[test]
fn one_vault_does_not_come_over_another() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    home.fill();
    home.init_repo();
    home.ok(&["init", "--kms-key-file", "other"]);
    home.ok(&["backup", "run", "vault", "REPO"]);
    let other = home.json(0, &["backup", "run", "other", "REPO"])["snapshot"].clone();
    let config = fs::read(own(&home, "vault", "vault.toml")).unwrap();
    let done = home.json(0, &["backup", "restore", "REPO", "vault"]);
    assert!(done["restored"]["files"].as_u64().unwrap() > 60, "{done}");
    let told = home.ends(1, &["backup", "restore", "REPO", "fresh"]);
    assert!(told.contains("several vaults") && told.contains("--vault-id"), "{told}");
    let (snapshot, id) = (other["id"].as_str().unwrap(), other["vault"].as_str().unwrap());
    for args in [["--snapshot", snapshot], ["--vault-id", id]] {
        let told = home.ends(1, &["backup", "restore", args[0], args[1], "REPO", "vault"]);
        assert!(told.contains("it is vault") && told.contains(id), "{told}");
    }
    assert_eq!(fs::read(own(&home, "vault", "vault.toml")).unwrap(), config);
    assert!(!home.path("fresh").exists());
    home.ok(&["backup", "restore", "--vault-id", &id[..8], "REPO", "fresh"]);
    assert_eq!(
        fs::read(own(&home, "fresh", "vault.toml")).unwrap(),
        fs::read(own(&home, "other", "vault.toml")).unwrap()
    );
    home.ends(1, &["backup", "verify", "--deep", "REPO"]);
    home.ok(&["backup", "verify", "--deep", "--vault-id", id, "REPO"]);
    // A copy of a view is no other than a snapshot.
    let (view, log) = (home.path("view"), home.path("view.log"));
    fs::create_dir(&view).unwrap();
    home.ok(&["mount", "--view", "ciphertext", "--log-file", log.to_str().unwrap(), "other", "view"]);
    home.sh("cp -r view tree");
    home.umount(&view);
    let told = home.ends(1, &["import", "tree", "vault"]);
    assert!(told.contains("it is vault"), "{told}");
    assert_eq!(fs::read(own(&home, "vault", "vault.toml")).unwrap(), config);
}

/// A vault whose daemon was killed keeps its journal: a part is not restored over it before it was brought in.
#[test]
fn a_journal_that_waits_is_left_alone() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    home.fill();
    home.init_repo();
    home.ok(&["backup", "run", "vault", "REPO"]);
    let large = lower_of(&home, "vault", 3_000_000);
    crash(&mut home, |mnt| {
        let file = fs::OpenOptions::new().write(true).open(mnt.join("a/b/c/large")).unwrap();
        file.write_all_at(b"acknowledged", 1_000_000).unwrap();
        file.sync_all().unwrap();
    });
    let told = home.ends(1, &["backup", "restore", "--path", &large, "REPO", "vault"]);
    assert!(
        told.contains("changes that are not in their places") && told.contains("Mount the vault once"),
        "{told}"
    );
    let told = home.ends(1, &["backup", "restore", "--path", ".envelopefs/journal", "REPO", "vault"]);
    assert!(told.contains("with the whole vault only"), "{told}");
    let mnt = home.mount("vault");
    let mut there = [0; 12];
    fs::File::open(mnt.join("a/b/c/large")).unwrap().read_exact_at(&mut there, 1_000_000).unwrap();
    home.umount(&mnt);
    assert_eq!(&there, b"acknowledged");
    home.ok(&["backup", "restore", "--path", &large, "REPO", "vault"]);
    // Names of the ciphertext may begin so: it is one that is not there, not an option.
    let told = home.ends(1, &["backup", "restore", "--path", "-2xDtoNAAxyax", "REPO", "vault"]);
    assert!(told.contains("-2xDtoNAAxyax") && !told.contains("Usage"), "{told}");
}

/// Mounts the vault, has something done, and kills the daemon, so that its journal stays.
pub(crate) fn crash(home: &mut Home, work: impl FnOnce(&Path)) {
    let mnt = home.path("crashed");
    let _ = fs::create_dir(&mnt);
    let args = ["mount", "--foreground", "vault", mnt.to_str().unwrap()];
    let mut daemon = Killed(home.efs(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let before = fs::metadata(home.dir()).unwrap().dev();
    eventually("the mount", || fs::metadata(&mnt).is_ok_and(|m| m.dev() != before));
    work(&mnt);
    let _ = daemon.0.kill();
    let _ = daemon.0.wait();
    home.sh("fusermount3 -uz crashed || true");
}

/// A directory that was made anew has another id, under which alone its names open: the old one does not take its place, nor
/// do the files that were in it; what is in the new one goes on showing.
#[test]
fn a_directory_that_was_made_anew_keeps_its_names() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    home.fill();
    home.init_repo();
    home.ok(&["backup", "run", "vault", "REPO"]);
    let mnt = home.mount("vault");
    home.sh(&format!("cd {} && rm -r a/b && mkdir a/b && echo new > a/b/new", mnt.display()));
    home.umount(&mnt);
    let told = home.ends(3, &["backup", "restore", "REPO", "vault"]);
    assert!(told.contains("another directory, with another id"), "{told}");
    let mnt = home.mount("vault");
    assert_eq!(home.sh(&format!("cd {} && ls a/b && cat a/b/new", mnt.display())), "new\nnew\n");
    home.umount(&mnt);
    home.ok(&["check", "vault"]);
}

/// A part below a directory with a long name, under a long name of its own, shows when it is mounted.
#[test]
fn a_part_with_long_names_shows() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    let mnt = home.mount("vault");
    let long = "n".repeat(200);
    home.sh(&format!(
        "cd {} && mkdir d{long} && head -c 70000 /dev/urandom > d{long}/f{long}",
        mnt.display()
    ));
    home.umount(&mnt);
    home.init_repo();
    home.ok(&["backup", "run", "vault", "REPO"]);
    let file = lower_of(&home, "vault", 70_000);
    home.ok(&["backup", "restore", "--path", &file, "REPO", "back"]);
    let mnt = home.mount("back");
    assert_eq!(
        home.sh(&format!("cd {} && find . -type f -printf '%p %s'", mnt.display())),
        format!("./d{long}/f{long} 70000")
    );
    home.umount(&mnt);
    home.ok(&["check", "back"]);
}

/// A vault that was left dirty is stored with its journal and restored, or copied, to another filesystem. The first mount there
/// brings the journal in. A block that was damaged long before costs its own file that block, and no more: nobody knows
/// from the age of restored files what a power cut may have torn. Records of a file that did not come back are put aside.
#[test]
fn a_restored_journal_empties_nothing() {
    if !can_mount() || !is_root() {
        return;
    }
    let mut home = Home::new();
    home.fill();
    home.init_repo();
    let large = lower_of(&home, "vault", 3_000_000);
    let sparse = lower_of(&home, "vault", 5_000_003);
    let file = fs::OpenOptions::new().write(true).open(home.vault().join(&large)).unwrap();
    file.write_all_at(b"damage", 2_000_000).unwrap();
    drop(file);
    crash(&mut home, |mnt| {
        for (name, place) in [("a/b/two-groups", 300_000), ("sparse", 100)] {
            let file = fs::OpenOptions::new().write(true).open(mnt.join(name)).unwrap();
            file.write_all_at(b"acknowledged", place).unwrap();
            file.sync_all().unwrap();
        }
    });
    home.ok(&["backup", "run", "vault", "REPO"]);
    let told = home.ends(3, &["backup", "verify", "--deep", "REPO"]);
    assert!(told.contains("faults that may be none"), "{told}");
    home.sh("mkdir ram && mount -t tmpfs -o size=64m none ram");
    let ram = super::mounted::Unmounted(home.path("ram"));
    home.ok(&["backup", "restore", "REPO", "ram/back"]);
    assert!(own(&home, "ram/back", "restored").exists());
    // As any other tool brings it back, which leaves no note.
    home.sh("cp -a ram/back ram/copy && rm ram/copy/.envelopefs/restored");
    for vault in ["ram/back", "ram/copy"] {
        fs::remove_file(home.path(vault).join(&sparse)).unwrap();
        let mnt = home.mount(vault);
        let mut there = [0; 12];
        fs::File::open(mnt.join("a/b/two-groups")).unwrap().read_exact_at(&mut there, 300_000).unwrap();
        assert_eq!(&there, b"acknowledged");
        let damaged = fs::File::open(mnt.join("a/b/c/large")).unwrap();
        assert_eq!(damaged.metadata().unwrap().len(), 3_000_000);
        damaged.read_exact_at(&mut [0; 1_000_000], 0).unwrap();
        drop(damaged);
        home.umount(&mnt);
        assert!(aside(&home, vault, "torn").is_empty());
        assert!(!aside(&home, vault, "journal-").is_empty(), "{vault}");
        assert!(!own(&home, vault, "restored").exists());
    }
    drop(ram);
}

/// An inode number that a file had, and that another one got in the middle of a run, joins no two files. Here all frames of a
/// copy are given one number.
#[test]
fn a_used_inode_number_joins_no_files() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    let mnt = home.mount("vault");
    home.sh(&format!("cd {} && echo one > a && ln a a2 && echo other > b && ln b b2", mnt.display()));
    home.umount(&mnt);
    let view = home.path("view");
    fs::create_dir(&view).unwrap();
    let log = home.path("view.log");
    home.ok(&["mount", "--view", "ciphertext", "--log-file", log.to_str().unwrap(), "vault", "view"]);
    home.sh("cp -r view tree; chmod -R u+w tree");
    home.umount(&view);
    let files: Vec<_> = home.lower_files("vault");
    let numbers: Vec<u64> = files.iter().map(|file| fs::metadata(file).unwrap().ino()).collect();
    let frames: Vec<_> =
        files.iter().map(|f| home.path("tree").join(f.strip_prefix(home.vault()).unwrap())).collect();
    for frame in &frames {
        renumber(frame, *numbers.iter().min().unwrap());
    }
    home.ok(&["import", "tree", "back"]);
    home.assert_same("vault", "back");
}

/// Gives the frame of a file of the view another inode number.
fn renumber(file: &Path, inode: u64) {
    let bytes = fs::read(file).unwrap();
    let mut frame = Frame::decode(&bytes).unwrap();
    let len = Frame::len_of(&bytes).unwrap();
    frame.inode = inode;
    fs::write(file, [frame.encode().unwrap(), bytes[len..].to_vec()].concat()).unwrap();
}
