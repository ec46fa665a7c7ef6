//! A vault that is mounted and written while it is stored.

use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use super::harness::{Home, Killed, can_mount, has, is_root};

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
    // What the shell had begun may take a moment longer.
    home.umount_soon(&mnt);
    home.ok(&["backup", "verify", "--deep", "REPO"]);
    home.ok(&["backup", "restore", "REPO", "back"]);
    let mnt = home.mount("back");
    home.sh(&format!("cd {} && find . -type f -exec cat {{}} + > /dev/null", mnt.display()));
    home.umount(&mnt);
}

/// Directories that are renamed while they are stored are stored, or named.
#[test]
fn what_is_renamed_meanwhile_is_not_missed() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    let mnt = home.mount("vault");
    home.sh(&format!("cd {} && for n in $(seq 300); do mkdir d$n; echo $n > d$n/file; done", mnt.display()));
    home.init_repo();
    let run = home.efs(&["backup", "run", "--json", "vault", "REPO"]).spawn().unwrap();
    super::harness::eventually("the run", || {
        std::fs::read_dir(home.path("cache/envelopefs/backup"))
            .is_ok_and(|dir| dir.flatten().any(|e| e.file_name().to_string_lossy().ends_with(".running")))
    });
    for n in 1..=300 {
        std::fs::rename(mnt.join(format!("d{n}")), mnt.join(format!("other{n}"))).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(4));
    }
    let output = run.wait_with_output().unwrap();
    home.umount(&mnt);
    let told = super::harness::said(&output);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{told}");
    home.ok(&["backup", "restore", "REPO", "back"]);
    let mnt = home.mount("back");
    let there = home.sh(&format!("cat {}/*/file | sort -n | uniq | wc -l", mnt.display()));
    home.umount(&mnt);
    assert!(output.status.code() == Some(3) || there.trim() == "300", "{there} {told}");
}

/// A program writes two places of one file all the time, the first always before the second: the file is stored, whole, at
/// the first try, and the program sees no error. What is stored is of one moment: the second place is never ahead.
#[test]
fn a_file_that_is_written_all_the_time_is_stored_whole() {
    const SECOND: u64 = 3 << 20;
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    home.fill();
    home.init_repo();
    let mnt = home.mount("vault");
    let busy = std::fs::File::create(mnt.join("busy")).unwrap();
    busy.write_all_at(&vec![0; 4 << 20], 0).unwrap();
    busy.sync_all().unwrap();
    let stop = AtomicBool::new(false);
    let mut reports = Vec::new();
    std::thread::scope(|scope| {
        let stopped = Stop(&stop);
        let writer = scope.spawn(|| {
            let mut turn = 0u64;
            while !stop.load(Ordering::Relaxed) {
                turn += 1;
                for place in [0, SECOND] {
                    busy.write_all_at(&turn.to_le_bytes(), place).unwrap();
                    busy.sync_data().unwrap();
                }
            }
            turn
        });
        for _ in 0..3 {
            reports.push(home.json(0, &["backup", "run", "vault", "REPO"]));
        }
        drop(stopped);
        assert!(writer.join().unwrap() > 3);
    });
    drop(busy);
    home.umount(&mnt);
    // Where the machine itself stood still, a lease may have ended before its copy.
    assert!(reports.iter().any(|report| report["passes"].as_u64() == Some(1)), "{reports:?}");
    for (n, report) in reports.iter().enumerate() {
        let (id, back) = (report["snapshot"]["id"].as_str().unwrap(), format!("back-{n}"));
        home.ok(&["backup", "restore", "--snapshot", id, "REPO", &back]);
        let mnt = home.mount(&back);
        let restored = std::fs::File::open(mnt.join("busy")).unwrap();
        let turn = |place| {
            let mut bytes = [0; 8];
            restored.read_exact_at(&mut bytes, place).unwrap();
            u64::from_le_bytes(bytes)
        };
        let (first, second) = (turn(0), turn(SECOND));
        drop(restored);
        home.umount(&mnt);
        assert!(first == second || first == second + 1, "{first} {second}");
        home.ok(&["check", &back]);
    }
}

/// With a snapshot of the filesystem below, the tree too is of one moment: of two files that a program writes in turn, the
/// second is never ahead of the first. The snapshot is gone afterwards, also that of a run which was killed.
#[test]
fn a_snapshot_of_the_filesystem_below_is_of_one_moment() {
    if !can_mount() || !is_root() || !has("mkfs.btrfs") {
        return;
    }
    let mut home = Home::new();
    let made = "truncate -s 200M disk && mkfs.btrfs -q disk >&2 && mkdir lower && mount -o loop disk lower && \
                btrfs subvolume create lower/vol >&2 && mv vault lower/vol/vault && ln -s lower/vol/vault vault";
    home.sh(made);
    let _lower = Unmounted(home.path("lower"));
    home.fill();
    home.init_repo();
    let hook = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/snapshot-btrfs.sh");
    let snapshots = |home: &Home| home.sh("btrfs subvolume list lower | grep -c snapshot-for-backup || true");
    let mnt = home.mount("vault");
    let [one, other] = ["z", "y"].map(|name| std::fs::File::create(mnt.join(name)).unwrap());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stopped = Stop(&stop);
        scope.spawn(|| {
            for turn in 1u64.. {
                for file in [&one, &other] {
                    file.write_all_at(&turn.to_le_bytes(), 0).unwrap();
                    file.sync_all().unwrap();
                }
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let done = home.json(0, &["backup", "run", "--snapshot-hook", hook, "vault", "REPO"]);
        assert_eq!((done["frozen"].as_bool(), done["mounted"].as_bool()), (Some(true), Some(true)), "{done}");
        assert_eq!(done["passes"].as_u64(), Some(1), "{done}");
    });
    drop((one, other));
    assert_eq!(snapshots(&home).trim(), "0");
    // Killed when the snapshot was made and little was stored.
    let mut run =
        home.efs(&["backup", "run", "--all", "--limit", "1", "--snapshot-hook", hook, "vault", "REPO"]);
    let mut run = Killed(run.spawn().unwrap());
    super::harness::eventually("a snapshot", || snapshots(&home).trim() == "1");
    super::harness::eventually("its path is noted", || {
        home.sh("cat cache/envelopefs/backup/*.running 2>/dev/null || true").contains("snapshot-for-backup")
    });
    let _ = run.0.kill();
    let _ = run.0.wait();
    home.ok(&["backup", "run", "--snapshot-hook", hook, "vault", "REPO"]);
    assert_eq!(snapshots(&home).trim(), "0");
    home.umount(&mnt);
    let first = home.json(0, &["backup", "list", "REPO"])[0]["id"].as_str().unwrap().to_owned();
    home.ok(&["backup", "restore", "--snapshot", &first, "REPO", "back"]);
    let mnt = home.mount("back");
    let turn = |name: &str| u64::from_le_bytes(std::fs::read(mnt.join(name)).unwrap().try_into().unwrap());
    let (one, other) = (turn("z"), turn("y"));
    home.umount(&mnt);
    assert!(one == other || one == other + 1, "{one} {other}");
    home.ok(&["check", "back"]);
    // A program that fails, or names something else, stores nothing.
    home.ends(1, &["backup", "run", "--snapshot-hook", "/bin/false", "vault", "REPO"]);
    let told = home.ends(1, &["backup", "run", "--snapshot-hook", "/bin/echo", "vault", "REPO"]);
    assert!(told.contains("no absolute path"), "{told}");
}

/// Stops a writer, also when the test fails.
struct Stop<'s>(&'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A mount of the test's own, which goes with it.
pub(crate) struct Unmounted(pub(crate) std::path::PathBuf);

impl Drop for Unmounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).output();
    }
}
