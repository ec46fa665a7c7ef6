//! `envelopefs rewrap` as a program: which system calls reach the lower files, and what a kill leaves.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod fs_support;

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use envelopefs::kms::Engine;
use envelopefs::upkeep::WorkLock;
use fs_support::{TOP, Vault, get, list, put};
use serde_json::Value;

/// Calls on a lower file that would read or write its content.
const CONTENT: [&str; 15] = [
    "read",
    "readv",
    "pread64",
    "preadv",
    "write",
    "writev",
    "pwrite64",
    "pwritev",
    "ftruncate",
    "fallocate",
    "fsync",
    "fdatasync",
    "mmap",
    "copy_file_range",
    "sendfile",
];

/// A vault with so many files, whose key was rotated afterwards.
fn rotated(files: usize) -> Vault {
    let vault = Vault::new();
    let fs = vault.open();
    for n in 0..files {
        put(&fs, TOP, format!("file{n}").as_bytes(), format!("content of {n}").as_bytes());
    }
    drop(fs);
    let kms = Engine::open(&vault.beside("kms"), None).unwrap();
    let key = kms.list_keys().unwrap().remove(0);
    kms.rotate_key_on_demand(&key.key_id).unwrap();
    vault
}

fn arguments(vault: &Vault, command: &str, more: &[&str]) -> Vec<String> {
    let mut all = vec![command.to_owned(), vault.lower().to_str().unwrap().to_owned()];
    if command != "keys" {
        all.extend(["--kms-dir".to_owned(), vault.beside("kms").to_str().unwrap().to_owned()]);
    }
    all.extend(more.iter().map(|&text| text.to_owned()));
    all
}

fn envelopefs() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_envelopefs"));
    command.stdin(Stdio::null());
    command
}

fn good(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Files by version of the one key.
fn versions(vault: &Vault) -> (u64, u64) {
    let seen = good(&envelopefs().args(arguments(vault, "keys", &["--json"])).output().unwrap());
    let of = |version: u64| {
        let found = seen["keys"].as_array().unwrap().iter().find(|key| key["version"] == version);
        found.map_or(0, |key| key["files"].as_u64().unwrap())
    };
    (of(1), of(2))
}

fn assert_contents(vault: &Vault, files: usize) {
    let fs = vault.open();
    let all = list(&fs, TOP);
    assert_eq!(all.len(), files);
    for (name, ino) in all {
        let n = std::str::from_utf8(&name).unwrap().strip_prefix("file").unwrap();
        fs.lookup(TOP, &name).unwrap();
        assert_eq!(get(&fs, ino).unwrap(), format!("content of {n}").as_bytes());
    }
}

/// A lower file is opened as a place only, its header is read and replaced: one call each, and one more look in the
/// pass that finds nothing left to do. No byte of content is touched.
#[test]
fn only_headers_are_read_and_written() {
    const FILES: usize = 40;
    if !Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status().is_ok_and(|s| s.success()) {
        eprintln!("skipped: no strace");
        return;
    }
    let vault = rotated(FILES);
    let log = vault.beside("trace");
    // As the kernel names it, which strace shows.
    let lower = vault.lower().canonicalize().unwrap();
    let output = Command::new("strace")
        .args(["-f", "-y", "-qq", "-s", "300", "-o"])
        .arg(&log)
        .arg(env!("CARGO_BIN_EXE_envelopefs"))
        .args(arguments(&vault, "rewrap", &["--json"]))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let done = good(&output);
    assert_eq!((done["files"].as_u64(), done["changed"].as_u64()), (Some(40), Some(40)), "{done}");
    let text = std::fs::read_to_string(log).unwrap();
    let (inside, own) = (format!("<{}/", lower.display()), format!("<{}/.envelopefs", lower.display()));
    let (mut read, mut written, mut seen) = (0, 0, 0);
    for line in text.lines() {
        let call = line.split_once(' ').map_or(line, |(_, rest)| rest.trim_start());
        let name = call.split_once('(').map_or("", |(name, _)| name);
        assert!(
            !CONTENT.contains(&name) || !call.contains(&inside) || call.contains(&own),
            "it touches content: {call}"
        );
        seen += usize::from(call.contains(&inside) && !call.contains(&own));
        match name {
            "getxattr" | "fgetxattr" if call.contains("user.efs.key") => read += 1,
            "setxattr" | "fsetxattr" => written += 1,
            _ => {}
        }
    }
    assert!(seen >= FILES, "only {seen} calls name a lower file: the trace shows other paths");
    assert_eq!(written, FILES, "headers written");
    assert_eq!(read, 2 * FILES, "headers read, in two passes");
    assert_eq!(versions(&vault), (0, 40));
    assert_contents(&vault, FILES);
}

/// A killed run when the test leaves, however it leaves.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A run that is killed with -9 leaves every file with a header that opens; the next run does what is left, and no
/// more.
#[test]
fn a_killed_run_goes_on() {
    const FILES: usize = 200;
    let vault = rotated(FILES);
    let running = envelopefs()
        .args(arguments(&vault, "rewrap", &["--rate", "10", "--jobs", "2"]))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let running = Guarded(running);
    let until = Instant::now() + Duration::from_secs(120);
    while versions(&vault).1 < 10 {
        assert!(Instant::now() < until, "it does not begin");
    }
    drop(running);
    let (old, new) = versions(&vault);
    assert_eq!(old + new, 200);
    assert!(old > 0, "it was not killed midway");
    assert_contents(&vault, FILES);
    let rest = good(&envelopefs().args(arguments(&vault, "rewrap", &["--json"])).output().unwrap());
    assert_eq!(rest["changed"].as_u64(), Some(old), "{rest}");
    assert_eq!(versions(&vault), (0, 200));
    assert_contents(&vault, FILES);
}

/// While one is at work on a vault's headers nobody adds a key to it, and none is shown that the vault would not have.
#[test]
fn wrapping_keys_are_changed_by_one_at_a_time() {
    let vault = rotated(1);
    let config = vault.lower().join(".envelopefs/vault.toml");
    let before = std::fs::read(&config).unwrap();
    let held = WorkLock::take(&vault.lower()).unwrap();
    let store = vault.beside("kms");
    let kms_dir = ["--kms-dir", store.to_str().unwrap()];
    let uri = "kms:embedded/alias/envelopefs";
    let lower = vault.lower();
    let dir = lower.to_str().unwrap();
    let commands: [&[&str]; 4] = [
        &["recipient", "add", dir, uri],
        &["recipient", "remove", dir, "0"],
        &["recovery-key", dir],
        &["rewrap", dir, "--to", uri],
    ];
    for command in commands {
        let output = envelopefs().args(command).args(kms_dir).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(10), "{command:?}: {said}");
        assert!(said.contains("is at work on this vault"), "{command:?}: {said}");
        assert!(output.stdout.is_empty(), "{command:?}");
    }
    assert_eq!(std::fs::read(&config).unwrap(), before);
    drop(held);
    let added = envelopefs().args(["recovery-key", dir]).args(kms_dir).output().unwrap();
    assert!(added.status.success() && added.stdout.starts_with(b"EFS1-"));
}
