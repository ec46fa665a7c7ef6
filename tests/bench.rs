//! `envelopefs bench` as a program: what it prints is whole, and nothing of a run stays behind, however it ends.
//!
//! Mounts need root, fio and `/dev/fuse`; what cannot run says so.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_envelopefs");

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// Whether mounts can be measured here.
fn can_mount() -> bool {
    let able = rustix::process::geteuid().is_root() && has("fio") && Path::new("/dev/fuse").exists();
    if !able {
        eprintln!("skipped: needs root, fio and /dev/fuse");
    }
    able
}

fn bench(words: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("bench").args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn mounts_below(dir: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let below = format!("{}/", dir.display());
    mounts
        .lines()
        .filter(|l| l.split(' ').nth(1).is_some_and(|m| m.starts_with(&below)))
        .map(str::to_owned)
        .collect()
}

/// Command lines of processes that were told something below `dir`.
fn processes_about(dir: &Path) -> Vec<String> {
    let text = dir.display().to_string();
    let all = fs::read_dir("/proc").unwrap().filter_map(|e| fs::read(e.unwrap().path().join("cmdline")).ok());
    let lines = all.map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "));
    lines.filter(|line| line.contains(&text)).collect()
}

/// Waits for what must come true.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Kernels: every figure is there, for programs too; one that the processor or the program has not is refused.
#[test]
fn kernels_are_measured() {
    let output = bench(&["kernel", "--quick", "--kernel", "portable", "--json", "-"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let figures = json["figures"].as_array().unwrap();
    assert!(figures.len() >= 4 * 12, "{}", figures.len());
    assert!(figures.iter().all(|f| f["gb_per_second"].as_f64().unwrap() > 0.0));
    assert_eq!(json["verdicts"].as_array().unwrap().len(), 2);
    let refused = bench(&["kernel", "--kernel", "abacus"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("abacus"));
}

/// A mount of one's own: each job has a figure, or a reason why it means nothing there; the directory is as it was.
#[test]
fn a_directory_of_ones_own_is_measured() {
    if !has("fio") {
        eprintln!("skipped: needs fio");
        return;
    }
    // On a disk, so that cold means something; not in /tmp, which may be memory.
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::write(dir.path().join("mine"), "kept").unwrap();
    let target = dir.path().to_str().unwrap();
    let html = dir.path().join("report.html");
    let html = html.to_str().unwrap();
    let words = [
        "mount", "--target", target, "--quick", "--size", "8", "--files", "64", "--json", "-", "--html", html,
    ];
    let output = bench(&words).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
    for row in json["rows"].as_array().unwrap() {
        let cell = &row["cells"][0];
        assert!(cell["median"].as_f64().is_some() || cell["skipped"].is_string(), "{row}");
    }
    assert!(output.status.success(), "{said}");
    assert!(json["rows"].as_array().unwrap().len() >= 10);
    assert!(fs::read_to_string(html).unwrap().contains("</html>"));
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(mounts_below(dir.path()).is_empty());
}

/// Without fio the run says what to install, and leaves nothing.
#[test]
fn a_missing_program_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().to_str().unwrap();
    let words = ["mount", "--target", target, "--work", target, "--quick", "--files", "10"];
    let output = bench(&words).env("PATH", "/nonexistent").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("fio is not installed") && said.contains("apt install fio"), "{said}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Starts a run on real mounts that would take minutes, and waits until its filesystem is at work.
fn long_run(work: &Path) -> Child {
    let work = work.to_str().unwrap();
    let words = [
        "mount",
        "--work",
        work,
        "--lower",
        "tmpfs",
        "--peers",
        "envelopefs",
        "--jobs",
        "randwrite-4k,write-1m",
        "--size",
        "64",
        "--repetitions",
        "50",
    ];
    let child = bench(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let at_work = |m: &String| m.contains("fuse.envelopefs");
    until("the run mounts", || mounts_below(Path::new(work)).iter().any(at_work));
    until("fio runs", || processes_about(Path::new(work)).iter().any(|l| l.starts_with("fio")));
    child
}

/// An interrupted run, one that is told to end, and one that is killed leave no mount, no process and no file.
#[test]
fn an_ended_run_leaves_nothing() {
    if !can_mount() {
        return;
    }
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().canonicalize().unwrap();
        let mut child = long_run(&work);
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = child.wait().unwrap();
        if signal == Signal::KILL {
            assert_eq!(status.signal(), Some(9));
        } else {
            assert_eq!(status.code(), Some(130), "{signal:?}");
            assert!(mounts_below(&work).is_empty() && processes_about(&work).is_empty(), "{signal:?}");
        }
        until("no mount is left", || mounts_below(&work).is_empty());
        until("no process is left", || processes_about(&work).is_empty());
        until("no file is left", || fs::read_dir(&work).unwrap().next().is_none());
    }
}

/// The ceiling keeps names, modes, times and lengths, and nothing else.
#[test]
fn the_null_filesystem_keeps_metadata_only() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("skipped: needs root and /dev/fuse");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mnt = dir.path().canonicalize().unwrap().join("mnt");
    fs::create_dir(&mnt).unwrap();
    let mut child = bench(&["null-fs", mnt.to_str().unwrap()]).spawn().unwrap();
    until("it mounts", || !mounts_below(dir.path()).is_empty());
    let script = r#"cd "$1"
        mkdir -p a/b && printf hello > a/b/f && chmod 640 a/b/f && touch -d @1000 a/b/f && ln -s b a/l && ln a/b/f a/g
        mv a/b/f a/b/h && truncate -s 9000 a/g
        test "$(stat -c %a.%s.%h a/b/h)" = 640.9000.2 && test "$(readlink a/l)" = b
        test "$(tr -d '\0' < a/b/h | wc -c)" = 0 && test "$(wc -c < a/b/h)" = 9000
        for i in $(seq 600); do : > a/n$i; done
        test "$(ls a | wc -l)" = 603
        rm -rf a && test -z "$(ls -A)""#;
    let tried = Command::new("sh").args(["-euc", script, "sh"]).arg(&mnt).output().unwrap();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let status = child.wait().unwrap();
    assert!(tried.status.success(), "{}", String::from_utf8_lossy(&tried.stderr));
    assert!(status.success(), "{status}");
    assert!(mounts_below(dir.path()).is_empty());
}
