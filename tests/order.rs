//! The order in which system calls reach the lower filesystem, seen by strace: what must be durable before something
//! else is. A child is this test binary again, told by an environment variable what to do.
//!
//! Each trace is replayed into a list of what a power cut could still lose: bytes of files written since their last
//! sync, entries of directories made since theirs.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod fs_support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use envelopefs::fs::{Caller, Fs, Options};
use envelopefs::keys::{DEFAULT_URI, Unlock, ensure_embedded_key, init_vault, open_vault};
use envelopefs::kms::{Engine, Protection, RootSecrets, reprotect};
use fs_support::{ROOT, TOP, put};

const ROLE: &str = "ENVELOPEFS_TEST_ROLE";
const DIR: &str = "ENVELOPEFS_TEST_DIR";
const USER: Caller = Caller { uid: 1000, gid: 1000, umask: 0o022 };
const CALLS: &str = "openat,mkdir,mkdirat,mknodat,symlinkat,link,linkat,rename,renameat,renameat2,unlink,unlinkat,\
                     rmdir,write,writev,pwrite64,pwritev,ftruncate,fallocate,fsync,fdatasync,syncfs,setxattr,\
                     fsetxattr,fchownat,fchown";

/// Calls on what their first argument names.
const OF_ONE_THING: [&str; 10] = [
    "write",
    "writev",
    "pwrite64",
    "pwritev",
    "ftruncate",
    "fallocate",
    "fsync",
    "fdatasync",
    "fsetxattr",
    "setxattr",
];

/// One system call that succeeded, and what a power cut right before it could have lost.
#[derive(Debug)]
struct Call {
    name: String,
    /// Every path and quoted name in its arguments, descriptors as the paths behind them; names relative to a
    /// descriptor are joined with it.
    paths: Vec<String>,
    /// Text of the arguments.
    args: String,
    /// Files and directories with something unsynced.
    unsynced: BTreeSet<String>,
}

impl Call {
    fn below(&self, dir: &str) -> Vec<&String> {
        let prefix = format!("{dir}/");
        self.unsynced.iter().filter(|p| *p == dir || p.starts_with(&prefix)).collect()
    }

    fn is(&self, names: &[&str], end: &str) -> bool {
        names.contains(&self.name.as_str()) && self.paths.last().is_some_and(|p| p.ends_with(end))
    }
}

struct Trace {
    calls: Vec<Call>,
    unsynced: BTreeSet<String>,
}

impl Trace {
    fn position(&self, what: &str, found: impl Fn(&Call) -> bool) -> usize {
        let at = self.calls.iter().position(found);
        at.unwrap_or_else(|| panic!("no {what} among {:#?}", self.calls))
    }

    /// The rename or link that gives something its final name.
    fn naming(&self, end: &str) -> usize {
        self.position(end, |c| c.is(&["rename", "renameat", "renameat2", "linkat"], end))
    }

    fn acknowledged(&self, line: &str) -> usize {
        self.position(line, |c| c.name == "write" && c.args.contains(&format!("ACK {line}")))
    }
}

/// Whether strace works here; says so when not.
fn can_trace() -> bool {
    let works =
        Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status().is_ok_and(|s| s.success());
    if !works {
        eprintln!("skipped: no strace");
    }
    works
}

/// Runs a role below strace; only calls on paths below `dir` count.
fn trace(role: &str, dir: &Path) -> Trace {
    let log = dir.with_extension("trace");
    let status = Command::new("strace")
        .args(["-f", "-y", "-qq", "-s", "160", "-e"])
        .arg(format!("trace={CALLS}"))
        .arg("-o")
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "plays_a_role", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(DIR, dir)
        .env("RUST_BACKTRACE", "0")
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{role} failed");
    replay(&std::fs::read_to_string(log).unwrap(), dir.to_str().unwrap())
}

/// Lines of calls, those that strace shows in two pieces put together where they ended.
fn lines(log: &str) -> Vec<String> {
    let mut open: Vec<(String, String)> = Vec::new();
    let mut whole = Vec::new();
    for line in log.lines() {
        let (pid, rest) = line.split_once(' ').unwrap_or(("", line));
        let rest = rest.trim_start();
        if let Some(start) = rest.strip_suffix(" <unfinished ...>") {
            open.push((pid.to_owned(), start.to_owned()));
        } else if let Some((_, end)) = rest.split_once(" resumed>") {
            let at = open.iter().position(|(p, _)| p == pid).unwrap();
            whole.push(open.swap_remove(at).1 + end);
        } else {
            whole.push(rest.to_owned());
        }
    }
    whole
}

fn replay(log: &str, dir: &str) -> Trace {
    let (mut calls, mut unsynced) = (Vec::new(), BTreeSet::<String>::new());
    // What descriptors stand for, under the names by which the daemon reaches them.
    let mut open = BTreeMap::new();
    for line in lines(log) {
        let Some((name, rest)) = line.split_once('(') else { continue };
        let Some((args, result)) = rest.rsplit_once(" = ") else { continue };
        if result.starts_with('-') {
            continue;
        }
        if let Some((fd, path)) = result.split_once('<').filter(|_| name == "openat") {
            open.insert(format!("/proc/self/fd/{fd}"), path.split('>').next().unwrap().to_owned());
        }
        // What is behind the first argument of these is content.
        let shown = if OF_ONE_THING.contains(&name) { args.split(", ").next().unwrap() } else { args };
        let mut paths: Vec<String> = paths(shown);
        for path in &mut paths {
            if let Some(behind) = open.get(path) {
                path.clone_from(behind);
            }
        }
        let acknowledges = name == "write" && args.contains("ACK ");
        // The journal of file content has tests of its own.
        let ours = |p: &String| p.starts_with(dir) && !p.contains("/.envelopefs/journal");
        if !acknowledges && !paths.iter().any(ours) {
            continue;
        }
        let before = unsynced.clone();
        let mut entry = |path: &str| unsynced.insert(parent(path));
        match name {
            "openat" if !args.contains("O_CREAT") => continue,
            "openat" | "mkdir" | "mkdirat" | "mknodat" | "symlinkat" | "linkat" => {
                paths.last().into_iter().for_each(|p| _ = entry(p));
            }
            "unlink" | "unlinkat" | "rmdir" => {
                let gone = paths.last().unwrap();
                entry(gone);
                unsynced.remove(gone);
            }
            "rename" | "renameat" | "renameat2" => {
                let (old, new) = (&paths[0], &paths[1]);
                entry(old);
                entry(new);
                let moved = |p: &String| match p.strip_prefix(old.as_str()) {
                    Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{new}{rest}"),
                    _ => p.clone(),
                };
                unsynced = unsynced.iter().map(moved).collect();
            }
            "fsync" | "fdatasync" => drop(unsynced.remove(&paths[0])),
            "syncfs" => unsynced.clear(),
            _ if acknowledges => {}
            _ => drop(paths.first().map(|p| unsynced.insert(p.clone()))),
        }
        calls.push(Call { name: name.to_owned(), paths, args: args.to_owned(), unsynced: before });
    }
    unsynced.retain(|p| p.starts_with(dir));
    Trace { calls, unsynced }
}

fn parent(path: &str) -> String {
    path.rsplit_once('/').map_or_else(String::new, |(above, _)| above.to_owned())
}

/// `3</a/b>, "c"` is `/a/b/c`; `3</a/b>, "", ...` is `/a/b`.
fn paths(args: &str) -> Vec<String> {
    let (mut found, mut base, mut rest) = (Vec::<String>::new(), None::<String>, args);
    while let Some(at) = rest.find(['"', '<']) {
        let close = if rest[at..].starts_with('"') { '"' } else { '>' };
        let Some(len) = rest[at + 1..].find(close) else { break };
        let text = &rest[at + 1..at + 1 + len];
        match close {
            '>' => {
                found.extend(base.replace(text.to_owned()));
            }
            _ => match base.take() {
                Some(above) if text.is_empty() => found.push(above),
                Some(above) if !text.starts_with('/') => found.push(format!("{above}/{text}")),
                _ => found.push(text.to_owned()),
            },
        }
        rest = &rest[at + len + 2..];
    }
    found.extend(base);
    found
}

fn acknowledge(line: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "ACK {line}").and_then(|()| out.flush());
}

/// Not a test of its own: what the children of the tests below do. Without a role it does nothing.
#[test]
fn plays_a_role() {
    let (Ok(role), Ok(dir)) = (std::env::var(ROLE), std::env::var(DIR)) else { return };
    let dir = PathBuf::from(dir);
    let unlock = |passphrase: Option<&str>| Unlock {
        kms_dir: Some(dir.join("deep/er/kms")),
        passphrase: passphrase.map(|p| p.to_owned().into()),
        ..Unlock::default()
    };
    let kms = dir.join("deep/er/kms");
    match role.as_str() {
        "init" => {
            Engine::create(&kms, &Protection::KeyFile).unwrap();
            acknowledge("store");
            ensure_embedded_key(DEFAULT_URI, &unlock(None)).unwrap();
            acknowledge("key");
            init_vault(&dir.join("vault"), DEFAULT_URI, &unlock(None)).unwrap();
            acknowledge("vault");
        }
        "rotate" => {
            let engine = Engine::open(&kms, None).unwrap();
            for _ in 0..3 {
                let version = engine.rotate_key_on_demand("alias/envelopefs").unwrap().version;
                acknowledge(&format!("version {version}"));
            }
        }
        "passwd" => {
            reprotect(&kms, &RootSecrets::default(), &Protection::Passphrase("secret".to_owned().into()))
                .unwrap();
            acknowledge("passphrase");
            reprotect(&kms, &RootSecrets { passphrase: Some("secret"), tokens: None }, &Protection::KeyFile)
                .unwrap();
            acknowledge("key file");
        }
        "fs" => {
            let ring = open_vault(&dir.join("vault"), &unlock(None)).unwrap();
            on_a_vault(&Fs::open(&dir.join("vault"), ring, Options::default()).unwrap());
        }
        other => panic!("no such role: {other}"),
    }
}

fn on_a_vault(fs: &Fs) {
    acknowledge("mkdir");
    let dir = fs.mkdir(&USER, TOP, b"d", 0o755).unwrap().attr.ino;
    acknowledge("symlink");
    fs.symlink(&USER, TOP, b"s", b"target").unwrap();
    acknowledge("mknod");
    fs.mknod(&USER, TOP, b"p", libc::S_IFIFO | 0o644, 0).unwrap();
    acknowledge("create");
    fs.create(&USER, TOP, b"f", 0o644, libc::O_RDWR | libc::O_EXCL).unwrap();
    acknowledge("long");
    let (_, long) = fs.create(&ROOT, TOP, &[b'n'; 200], 0o644, libc::O_RDWR | libc::O_EXCL).unwrap();
    fs.release(long);
    acknowledge("new name");
    put(fs, TOP, b"new", b"new content");
    put(fs, TOP, b"old", b"old content");
    fs.rename(TOP, b"new", TOP, b"newer", 0).unwrap();
    acknowledge("replace");
    fs.rename(TOP, b"newer", TOP, b"old", 0).unwrap();
    acknowledge("exchange");
    let one = put(fs, TOP, b"one", &[1; 9000]).attr.ino;
    put(fs, TOP, b"two", &[2; 9000]);
    let open = fs.open_file(one, libc::O_RDWR).unwrap();
    fs.rename(TOP, b"one", TOP, b"two", libc::RENAME_EXCHANGE).unwrap();
    fs.release(open);
    acknowledge("empty target");
    put(fs, TOP, b"three", &[3; 9000]);
    put(fs, TOP, b"nothing", b"");
    fs.rename(TOP, b"three", TOP, b"nothing", 0).unwrap();
    acknowledge("fsyncdir");
    put(fs, dir, b"inside", b"");
    let fh = fs.opendir(dir).unwrap();
    fs.fsyncdir(fh).unwrap();
    fs.releasedir(fh);
    acknowledge("end");
    fs.close();
}

/// A place for a role, with a store and vault made by the role `init` where that is asked for.
fn place(made: bool) -> (tempfile::TempDir, PathBuf) {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("x");
    std::fs::create_dir(&dir).unwrap();
    if made {
        drop(trace("init", &dir));
    }
    (base, dir)
}

/// A store and a vault are durable below their temporary names before they get their own, with every directory above
/// them, and nothing is left to lose when `init` says that they are made.
#[test]
fn init_names_what_is_durable() {
    if !can_trace() {
        return;
    }
    let (_base, dir) = place(false);
    let trace = trace("init", &dir);
    // Lines of the audit log may wait a second for their sync; the log's directory may not.
    let lost = |at: usize| {
        let mut lost = trace.calls[at].below(dir.to_str().unwrap());
        lost.retain(|path| !path.contains("/kms/audit/"));
        lost
    };
    for (named, above) in [("/deep/er/kms", "deep/er"), ("/vault/.envelopefs", "vault")] {
        let at = trace.naming(named);
        let [from, _] = &trace.calls[at].paths[..] else { panic!("{:?}", trace.calls[at]) };
        assert_eq!(trace.calls[at].below(from), Vec::<&String>::new(), "{named} appears too early");
        // The temporary name itself is the only thing that may be lost.
        assert!(lost(at).into_iter().all(|p| *p == *dir.join(above).to_str().unwrap()), "{:?}", lost(at));
    }
    for done in ["store", "key", "vault"] {
        assert_eq!(lost(trace.acknowledged(done)), Vec::<&String>::new(), "{done}");
    }
    assert_eq!(trace.unsynced, BTreeSet::new());
}

/// A rotation is durable when it is answered.
#[test]
fn a_rotation_is_durable_when_it_is_answered() {
    if !can_trace() {
        return;
    }
    let (_base, dir) = place(true);
    let trace = trace("rotate", &dir);
    for version in 2..=4 {
        let at = trace.acknowledged(&format!("version {version}"));
        assert_eq!(trace.calls[at].unsynced, BTreeSet::new());
    }
}

/// A changed protection is durable before the old one's key file goes, and the new one's key file before it is needed.
#[test]
fn a_protection_changes_in_order() {
    if !can_trace() {
        return;
    }
    let (_base, dir) = place(true);
    let trace = trace("passwd", &dir);
    let mut changes = 0;
    for call in &trace.calls {
        // A root file that replaces another, and a key file that goes.
        if call.is(&["rename"], "/root.toml") || call.is(&["unlink"], "/root.key") {
            let lost: Vec<_> = call.unsynced.iter().filter(|p| !p.ends_with("/kms")).collect();
            assert_eq!(lost, Vec::<&String>::new(), "{call:?}");
            changes += 1;
        }
    }
    assert_eq!(changes, 3, "{:#?}", trace.calls);
    let gone = trace.position("removal", |c| c.is(&["unlink"], "/root.key"));
    assert_eq!(trace.calls[gone].unsynced, BTreeSet::new(), "the key file goes too early");
    let key = trace.naming("/root.key");
    let root = key + trace.calls[key..].iter().position(|c| c.is(&["rename"], "/root.toml")).unwrap();
    let synced = trace.calls[key..root].iter().any(|c| c.name == "fsync" && c.paths[0].ends_with("/kms"));
    assert!(synced, "the root file comes before the key file's name is durable");
    for done in ["passphrase", "key file"] {
        assert_eq!(trace.calls[trace.acknowledged(done)].unsynced, BTreeSet::new(), "{done}");
    }
}

/// Calls between two acknowledgements.
fn between<'t>(trace: &'t Trace, from: &str, to: &str) -> &'t [Call] {
    &trace.calls[trace.acknowledged(from) + 1..trace.acknowledged(to)]
}

fn names(calls: &[Call]) -> Vec<&str> {
    calls.iter().map(|c| c.name.as_str()).collect()
}

/// Ids, headers and owners come before names; a sidecar is durable before its name, and comes before its entry.
#[test]
fn entries_are_whole_before_they_are_named() {
    if !can_trace() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let (_base, dir) = place(true);
    let trace = trace("fs", &dir);
    let of = |from, to| names(between(&trace, from, to));
    assert_eq!(of("mkdir", "symlink"), ["mkdirat", "setxattr", "fchownat", "renameat2"]);
    assert_eq!(of("symlink", "mknod"), ["symlinkat", "fchownat", "renameat2"]);
    assert_eq!(of("mknod", "create"), ["mknodat", "fchownat", "renameat2"]);
    // Beside the audit log of the KMS, whose data keys are made meanwhile.
    let create: Vec<_> = between(&trace, "create", "long")
        .iter()
        .filter(|call| !call.paths.iter().any(|path| path.contains("/kms/")))
        .map(|call| call.name.as_str())
        .collect();
    assert_eq!(create.last(), Some(&"linkat"), "{create:?}");
    assert!(create.contains(&"fsetxattr") && create.iter().any(|n| n.starts_with("fchown")), "{create:?}");
    for calls in ["mkdir", "symlink", "mknod"].windows(2).map(|w| between(&trace, w[0], w[1])) {
        let made = &calls[0].paths.last().unwrap();
        assert!(made.contains("/.efs.tmp."), "made under its final name: {made}");
    }
    let long = between(&trace, "long", "new name");
    let sidecar = long.iter().position(|c| c.is(&["renameat2"], ".n")).unwrap();
    let entry = long.iter().rposition(|c| c.name == "linkat").unwrap();
    assert!(long[..sidecar].iter().any(|c| c.name == "fdatasync"), "{long:#?}");
    assert!(sidecar < entry, "{long:#?}");
}

/// A file that takes the name of another one with content is durable before; one that takes a free name, or that of an
/// empty file, costs no sync.
#[test]
fn a_replacing_file_is_synced_first() {
    if !can_trace() {
        return;
    }
    let (_base, dir) = place(true);
    let trace = trace("fs", &dir);
    let syncs = |from, to| {
        let calls = between(&trace, from, to);
        let rename = calls.iter().position(|c| c.name == "renameat2").unwrap();
        assert!(!names(&calls[rename..]).contains(&"fdatasync"), "{calls:#?}");
        let ends = calls[rename].paths.clone();
        let early = calls[..rename].iter().filter(|c| c.name == "fdatasync").map(|c| c.paths[0].clone());
        (early.collect::<Vec<_>>(), ends)
    };
    assert_eq!(syncs("new name", "replace").0, Vec::<String>::new());
    let (synced, ends) = syncs("replace", "exchange");
    assert_eq!(synced, ends[..1]);
    let (synced, ends) = syncs("exchange", "empty target");
    assert_eq!(synced, ends);
    assert_eq!(syncs("empty target", "fsyncdir").0, Vec::<String>::new());
    let synced = between(&trace, "fsyncdir", "end");
    let listed = synced.iter().rfind(|c| c.name == "fsync").unwrap();
    let name = synced.iter().rfind(|c| c.name == "linkat").unwrap().paths.last().unwrap();
    assert_eq!(parent(name), listed.paths[0], "fsync of a directory syncs the lower directory");
}
