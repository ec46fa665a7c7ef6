//! One lower system call of a directory operation fails, for every one of them: the caller hears of it, nothing half
//! made shows or stays, the next try succeeds. strace lets the calls fail, in a child that is this test binary again.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod fs_support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use envelopefs::fs::{Caller, Fs, FsError, Options};
use envelopefs::keys::{self, DEFAULT_URI, Unlock, ensure_embedded_key, init_vault};
use envelopefs::kms::{Engine, Protection};
use fs_support::{TOP, get};

const ROLE: &str = "ENVELOPEFS_TEST_FAULTS";
const FAILING: &str = "ENVELOPEFS_TEST_FAILING";
const USER: Caller = Caller { uid: 1000, gid: 1000, umask: 0o022 };
/// Calls that fail, and a bound of how often each is made by one run.
const CALLS: [(&str, u32); 14] = [
    ("mkdirat", 20),
    ("mknodat", 20),
    ("symlinkat", 20),
    ("linkat", 40),
    ("renameat2", 60),
    ("setxattr", 40),
    ("fsetxattr", 40),
    ("fchownat", 40),
    ("fdatasync", 40),
    ("fsync", 40),
    ("pwritev", 80),
    ("unlinkat", 60),
    ("statx", 400),
    ("openat", 400),
];
/// Every so many calls of the frequent kinds, to keep the time within bounds; all of them where this is set to 1.
const STEP: &str = "ENVELOPEFS_TEST_STEP";

fn unlock(dir: &Path) -> Unlock {
    Unlock { kms_dir: Some(dir.join("kms")), ..Unlock::default() }
}

/// Not a test of its own: what the child does. Without a role it does nothing.
#[test]
fn plays_a_role() {
    let Ok(dir) = std::env::var(ROLE) else { return };
    let dir = PathBuf::from(dir);
    let mut seen = Seen { lower: dir.join("vault"), faults: 0 };
    let fs = loop {
        let opened = keys::open_vault(&seen.lower, &unlock(&dir));
        let opened = opened.map(|ring| Fs::open(&seen.lower, ring, Options::default()));
        match opened {
            Ok(Ok(fs)) => break fs,
            _ if seen.faults == 0 => seen.faults += 1,
            other => panic!("{:?}", other.map(|r| r.map(drop))),
        }
    };
    operations(&fs, &mut seen);
    fs.close();
}

/// What is looked at after each operation that failed.
struct Seen {
    lower: PathBuf,
    faults: u32,
}

impl Seen {
    /// Runs an operation; where it fails, nothing of it shows or stays, and it succeeds when it is run again.
    fn tried<T>(&mut self, fs: &Fs, op: impl Fn() -> Result<T, FsError>) -> T {
        let before = names(fs);
        match op() {
            Ok(done) => {
                self.nothing_stays();
                done
            }
            Err(e) => {
                self.faults += 1;
                assert_eq!(self.faults, 1, "a second failure: {e}");
                assert!(matches!(e.errno(), libc::ENOSPC | libc::EDQUOT | libc::EIO | libc::ENOKEY), "{e}");
                assert_eq!(names(fs), before, "{e}: half made");
                self.nothing_stays();
                op().unwrap_or_else(|e| panic!("the next try fails: {e}"))
            }
        }
    }

    fn nothing_stays(&self) {
        let listed = std::fs::read_dir(&self.lower).or_else(|_| std::fs::read_dir(&self.lower)).unwrap();
        let names: Vec<String> = listed.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        assert!(!names.iter().any(|n| n.starts_with(".efs.tmp.")), "a temporary stays: {names:?}");
        // Where removing it, or looking whether it may go, was what failed, a sidecar stays: it does not show, and goes with its directory.
        let removes = std::env::var(FAILING).is_ok_and(|call| call == "unlinkat" || call == "statx");
        for sidecar in names.iter().filter(|n| n.ends_with(".n")) {
            let entry = sidecar.trim_end_matches(".n").to_owned();
            assert!(removes || names.contains(&entry), "a sidecar stays: {sidecar}");
        }
    }
}

/// Names in the top directory. The call that fails may be one of this.
fn names(fs: &Fs) -> Vec<Vec<u8>> {
    let once = || {
        let fh = fs.opendir(TOP)?;
        let mut names = Vec::new();
        let done = fs.readdir(fh, 0, false, &mut |e| {
            if e.name != b"." && e.name != b".." {
                names.push(e.name.to_vec());
            }
            true
        });
        fs.releasedir(fh);
        names.sort();
        done.map(|()| names)
    };
    once().or_else(|_: FsError| once()).unwrap()
}

fn operations(fs: &Fs, seen: &mut Seen) {
    let long = [b'n'; 200];
    let make = |name: &[u8], content: &[u8]| {
        let (found, fh) = fs.create(&USER, TOP, name, 0o644, libc::O_RDWR | libc::O_EXCL)?;
        let written = fs.write(fh, 0, content, false);
        fs.release(fh);
        written.or_else(|e| fs.unlink(TOP, name).and(Err(e)))?;
        Ok(found.attr.ino)
    };
    let dir = seen.tried(fs, || fs.mkdir(&USER, TOP, b"dir", 0o755)).attr.ino;
    seen.tried(fs, || fs.symlink(&USER, TOP, b"symlink", &[b't'; 300]));
    seen.tried(fs, || fs.mknod(&USER, TOP, b"fifo", libc::S_IFIFO | 0o644, 0));
    let file = seen.tried(fs, || make(b"file", b"content"));
    seen.tried(fs, || make(&long, b"long"));
    seen.tried(fs, || fs.mkdir(&USER, TOP, &[b'd'; 200], 0o755));
    seen.tried(fs, || fs.link(file, TOP, b"link"));
    seen.tried(fs, || fs.link(file, TOP, &[b'l'; 200]));
    seen.tried(fs, || fs.rename(TOP, &long, TOP, &[b'm'; 200], 0));
    let new = seen.tried(fs, || make(b"new", b"new content"));
    seen.tried(fs, || fs.rename(TOP, b"new", TOP, b"link", 0));
    seen.tried(fs, || fs.rename(TOP, b"link", TOP, &[b'l'; 200], libc::RENAME_EXCHANGE));
    seen.tried(fs, || fs.setxattr(dir, b"user.colour", b"blue", 0));
    seen.tried(fs, || {
        let fh = fs.opendir(dir)?;
        let done = fs.fsyncdir(fh);
        fs.releasedir(fh);
        done
    });
    seen.tried(fs, || fs.unlink(TOP, &[b'm'; 200]));
    seen.tried(fs, || fs.rmdir(TOP, b"dir"));
    assert_eq!(seen.tried(fs, || get(fs, file)), b"content");
    assert_eq!(seen.tried(fs, || get(fs, new)), b"new content");
    let names = names(fs);
    let expected =
        [&[b'd'; 200][..], b"fifo", b"file", b"link", &[b'l'; 200], b"symlink"].map(<[u8]>::to_vec);
    let short = |names: &[Vec<u8>]| {
        names.iter().map(|n| String::from_utf8_lossy(&n[..n.len().min(9)]).into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(short(&names), short(&expected));
}

/// A run with the `n`-th `call` of each thread failing; whether there was one.
fn run(template: &Path, call: &str, n: u32) -> bool {
    let base = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").args(["-a"]).arg(template).arg(base.path().join("x")).status().unwrap();
    assert!(copied.success());
    let dir = base.path().join("x");
    let log = base.path().join("trace");
    let error = ["ENOSPC", "EDQUOT", "EIO"][n as usize % 3];
    let output = Command::new("strace")
        .args(["-f", "-qq", "-e", &format!("trace={call}")])
        .args(["-e", &format!("inject={call}:error={error}:when={n}"), "-o"])
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "plays_a_role", "--nocapture", "--test-threads=1"])
        .env(ROLE, &dir)
        .env(FAILING, call)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let trace = std::fs::read_to_string(&log).unwrap_or_default();
    let injected: Vec<_> = trace.lines().filter(|l| l.contains("(INJECTED)")).collect();
    // The test program itself, before it does anything of ours.
    let ours = |l: &&str| l.contains("/vault") || l.contains("/kms") || !l.contains("\"/");
    if !injected.is_empty() && !injected.iter().any(ours) {
        return true;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{call} {n} {error}: {injected:?}\n{said}");
    !injected.is_empty()
}

#[test]
fn every_failing_call_is_told_and_leaves_nothing() {
    let works = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status();
    if !works.is_ok_and(|s| s.success()) {
        eprintln!("skipped: no strace");
        return;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("x");
    std::fs::create_dir(&dir).unwrap();
    drop(Engine::create(&dir.join("kms"), &Protection::KeyFile).unwrap());
    ensure_embedded_key(DEFAULT_URI, &unlock(&dir)).unwrap();
    init_vault(&dir.join("vault"), DEFAULT_URI, &unlock(&dir)).unwrap();
    let step = std::env::var(STEP).ok().and_then(|n| n.parse().ok()).unwrap_or(7);
    for (call, most) in CALLS {
        let step = if most > 100 { step } else { 1 };
        let failed = (1..=most).step_by(step).take_while(|n| run(&dir, call, *n)).count();
        eprintln!("{call}: {failed}");
        assert!(failed > 0, "{call} is never made");
        assert!(failed < most as usize, "{call} is made more often than the bound");
    }
}

/// A small disk in memory that goes with the test.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, options: &str) -> Option<Self> {
        std::fs::create_dir(&at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&at).status();
        mounted.is_ok_and(|s| s.success()).then_some(Self(at))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// On a disk that is out of inodes, or of space, nothing new appears and nothing stays; what needs no room works, and
/// everything does once there is some.
#[test]
fn a_full_disk_makes_nothing_by_halves() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    for options in ["size=64m,nr_inodes=64", "size=12m"] {
        let base = tempfile::tempdir().unwrap();
        let Some(disk) = Small::mount(base.path().join("vault"), options) else {
            eprintln!("skipped: no tmpfs");
            return;
        };
        drop(Engine::create(&base.path().join("kms"), &Protection::KeyFile).unwrap());
        ensure_embedded_key(DEFAULT_URI, &unlock(base.path())).unwrap();
        init_vault(&disk.0, DEFAULT_URI, &unlock(base.path())).unwrap();
        let ring = keys::open_vault(&disk.0, &unlock(base.path())).unwrap();
        let fs = Fs::open(&disk.0, ring, Options::default()).unwrap();
        let (_, fh) = fs.create(&USER, TOP, b"there", 0o644, libc::O_RDWR).unwrap();
        fs.release(fh);
        let before = names(&fs);
        let junk = disk.0.join(".envelopefs/junk");
        std::fs::create_dir(&junk).unwrap();
        let fill = |n: usize| {
            let path = junk.join(n.to_string());
            std::fs::write(&path, if options.contains("nr_inodes") { &[][..] } else { &[7; 4096] })
        };
        let full = (0..).find(|n| fill(*n).is_err()).unwrap();
        let long = [b'n'; 200];
        let told = |e: FsError| assert_eq!(e.errno(), libc::ENOSPC, "{options}: {e}");
        let seen = Seen { lower: disk.0.clone(), faults: 0 };
        for name in [&b"short"[..], &long] {
            let made = [
                fs.mkdir(&USER, TOP, name, 0o755).map(drop),
                fs.create(&USER, TOP, name, 0o644, libc::O_RDWR | libc::O_EXCL)
                    .map(|made| fs.release(made.1)),
                fs.symlink(&USER, TOP, name, &[b't'; 2000]).map(drop),
                fs.mknod(&USER, TOP, name, libc::S_IFIFO | 0o644, 0).map(drop),
            ];
            // What needs an inode and no block may have come to be.
            for error in made.into_iter().filter_map(Result::err).filter(|e| e.errno() != libc::EEXIST) {
                told(error);
            }
            seen.nothing_stays();
            for made in names(&fs).iter().filter(|n| !before.contains(n)) {
                fs.unlink(TOP, made).or_else(|_| fs.rmdir(TOP, made)).unwrap();
            }
        }
        fs.rename(TOP, b"there", TOP, b"moved", 0).expect("a rename needs no room");
        fs.rename(TOP, b"moved", TOP, &long, 0).expect_err("a long name needs a sidecar");
        seen.nothing_stays();
        assert_eq!(names(&fs), [b"moved".to_vec()]);
        assert!(full > 4);
        std::fs::remove_dir_all(&junk).unwrap();
        fs.mkdir(&USER, TOP, &long, 0o755).unwrap();
        fs.symlink(&USER, TOP, b"symlink", &[b't'; 2000]).unwrap();
        let (_, fh) = fs.create(&USER, TOP, b"file", 0o644, libc::O_RDWR).unwrap();
        fs.write(fh, 0, &[1; 9000], false).unwrap();
        fs.fsync(fh, true).unwrap();
        fs.release(fh);
        fs.close();
    }
}
