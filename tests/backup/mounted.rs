//! A vault that is mounted and written while it is stored.

use std::process::Stdio;

use super::harness::{Home, Killed, can_mount};

/// What was overwritten a moment ago stands in the journal, not in its place: it is brought there, and what comes back
/// is what was written last.
#[test]
fn what_the_journal_holds_is_stored() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    home.fill();
    home.init_repo();
    let mnt = home.mount("vault");
    let write = format!(
        "cd {} && for n in $(seq 20); do echo new-$n > a/f$n.txt; printf over-$n | dd of=a/b/c/large bs=1 seek=$((n * 90000)) \
         conv=notrunc,fsync status=none; done; exec 9>a/grows; head -c 9000 /dev/urandom >&9; sync a/grows",
        mnt.display()
    );
    home.sh(&write);
    let report = home.json(0, &["backup", "run", "vault", "REPO"]);
    assert_eq!(report["mounted"].as_bool(), Some(true), "{report}");
    home.umount(&mnt);
    home.ok(&["backup", "restore", "REPO", "back"]);
    home.ok(&["check", "back"]);
    home.assert_same("vault", "back");
}

/// While somebody writes all the time, everything else is stored, and what is stored of his files opens, whole; what
/// could not be caught is named.
#[test]
fn a_writer_does_not_spoil_a_backup() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    home.fill();
    home.init_repo();
    let mnt = home.mount("vault");
    let work = "i=0; while :; do i=$((i+1)); echo line-$i >> log; head -c 20000 /dev/urandom > new-$((i % 9)); \
                printf %08d $i | dd of=a/b/two-groups bs=1 seek=$((i * 977 % 590000)) conv=notrunc status=none; done";
    let writer = std::process::Command::new("bash")
        .args(["-c", work])
        .current_dir(&mnt)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let writer = Killed(writer);
    for _ in 0..2 {
        let output = home.efs(&["backup", "run", "--json", "vault", "REPO"]).output().unwrap();
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 3)), "{}", super::harness::said(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        let report: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        let problems = report["problems"].as_array().unwrap();
        assert_eq!(code == Some(0), problems.is_empty());
        // At most the log, the nine new files and the one that is overwritten.
        assert!(problems.len() <= 11, "{report}");
        assert!(problems.iter().all(|p| p[1] == "it changes all the time"), "{report}");
    }
    drop(writer);
    home.umount(&mnt);
    home.ok(&["backup", "verify", "--deep", "REPO"]);
    home.ok(&["backup", "restore", "REPO", "back"]);
    let mnt = home.mount("back");
    home.sh(&format!("cd {} && find . -type f -exec cat {{}} + > /dev/null", mnt.display()));
    home.umount(&mnt);
}
