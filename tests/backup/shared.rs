//! One vault, mounted twice, as two hosts have it on a filesystem that they share.

use std::fs;
use std::os::unix::fs::FileExt;

use super::harness::{Home, can_mount};

/// What one mount writes and closes, makes, renames, cuts or removes, the other sees at once; a backup beside both is whole.
#[test]
fn what_one_writes_and_closes_the_other_reads() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    let mounts = [home.mount_with("vault", "shared"), home.mount_with("vault", "shared")];
    for turn in 0..20usize {
        let (one, other) = (&mounts[turn % 2], &mounts[(turn + 1) % 2]);
        // Inline, grouped, more than one group; the same names each time, so that old content would show.
        for (name, len) in [("small", 100 + turn), ("middle", 50_000 + turn), ("large", 1_500_000 + turn)] {
            let content = vec![turn as u8 + 1; len];
            fs::write(one.join(name), &content).unwrap();
            assert!(fs::read(other.join(name)).unwrap() == content, "turn {turn}: {name}");
            assert_eq!(fs::metadata(other.join(name)).unwrap().len(), len as u64);
        }
        let file = fs::OpenOptions::new().write(true).open(other.join("large")).unwrap();
        file.write_all_at(b"over", 700_000).unwrap();
        drop(file);
        assert_eq!(fs::read(one.join("large")).unwrap()[700_000..700_004], *b"over");
        let dir = format!("dir-{turn}");
        fs::create_dir(one.join(&dir)).unwrap();
        fs::rename(other.join("small"), other.join(&dir).join("moved")).unwrap();
        assert_eq!(fs::read_dir(one.join(&dir)).unwrap().count(), 1);
        assert!(!one.join("small").exists());
        fs::OpenOptions::new().write(true).open(one.join("middle")).unwrap().set_len(10).unwrap();
        assert_eq!(fs::read(other.join("middle")).unwrap().len(), 10);
        fs::remove_file(other.join(&dir).join("moved")).unwrap();
        fs::remove_dir(one.join(&dir)).unwrap();
        assert!(!other.join(&dir).exists());
    }
    home.init_repo();
    home.ok(&["backup", "run", "vault", "REPO"]);
    // Whoever does not share is kept out.
    let alone = home.path("alone");
    fs::create_dir(&alone).unwrap();
    let output = home.efs(&["mount", "vault", "alone"]).output().unwrap();
    assert!(!output.status.success());
    for mount in &mounts {
        home.umount(mount);
    }
    let told = home.ok(&["check", "vault"]);
    assert!(told.contains("no fault"), "{told}");
    home.ok(&["backup", "restore", "REPO", "back"]);
    home.assert_same("vault", "back");
}
