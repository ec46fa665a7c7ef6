//! Every system call of the daemon that reaches the lower filesystem fails once, with EIO, ENOSPC and EDQUOT: the error
//! reaches the caller or does no harm, what was durable stays readable, nothing hangs, the mount goes on, a later retry
//! succeeds, and after a remount everything is as it should be.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{
    CWD, FallocateFlags, FileType, Mode, XattrFlags, copy_file_range, fallocate, lremovexattr, lsetxattr,
    mknodat,
};

use crate::harness::{Vault, can_mount, envelopefs, is_root, pattern, run, text, transport};
use crate::setting;
use crate::tracer::{Plan, Tracer};
use crate::tree::{self, Tree, between, difference};

/// A step is taken for hung after this time.
pub(crate) const HUNG: Duration = Duration::from_secs(60);
/// Runs on one mount before its remount and `check`.
const RUNS_A_MOUNT: usize = 40;

pub(crate) type Step = (&'static str, fn(&Path) -> io::Result<()>);

pub(crate) fn direct(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    let options = options.read(true).write(true).create(true).truncate(false);
    // Disk filesystems want aligned memory for O_DIRECT; the reference tree does without.
    let on_mount = rustix::fs::statfs(path.parent().unwrap_or(path))?.f_type == 0x6573_5546;
    options.custom_flags(if on_mount { libc::O_DIRECT } else { 0 }).open(path)
}

pub(crate) fn put(path: &Path, at: u64, len: usize, seed: u64) -> io::Result<()> {
    direct(path)?.write_all_at(&pattern(len, seed), at)
}

fn put_cached(path: &Path, at: u64, len: usize, seed: u64) -> io::Result<()> {
    let file = File::options().write(true).create(true).truncate(false).open(path)?;
    file.write_all_at(&pattern(len, seed), at)?;
    file.sync_all()
}

fn fall(path: &Path, flags: FallocateFlags, at: u64, len: u64) -> io::Result<()> {
    Ok(fallocate(direct(path)?, flags, at, len)?)
}

fn long(name: &str) -> String {
    format!("{name}-{}", "long".repeat(55))
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn copy(dir: &Path) -> io::Result<()> {
    let (from, to) = (File::open(dir.join("big"))?, direct(&dir.join("dir/other"))?);
    let (mut read, mut written) = (0, 10_000);
    while read < 30_000 {
        let left = 30_000 - read as usize;
        let n = copy_file_range(&from, Some(&mut read), &to, Some(&mut written), left)?;
        assert!(n > 0, "copied nothing");
    }
    to.sync_data()
}

/// What is there, durable, before anything fails.
pub(crate) fn prepare(top: &Path) -> io::Result<()> {
    fs::create_dir_all(top.join("dir/empty"))?;
    put_cached(&top.join("big"), 0, 700_000, 1)?;
    put_cached(&top.join("small"), 0, 500, 2)?;
    put_cached(&top.join("dir/other"), 0, 50_000, 3)?;
    put_cached(&top.join(long("kept")), 0, 5000, 4)?;
    lsetxattr(top.join("small"), "user.note", b"old", XattrFlags::empty())?;
    [top.to_owned(), top.join("dir")].iter().try_for_each(|dir| File::open(dir)?.sync_all())
}

/// The workload. Each step can be taken again when it has failed.
pub(crate) const STEPS: &[Step] = &[
    ("create", |d| put(&d.join("new"), 0, 300, 10)),
    ("create large", |d| put_cached(&d.join("large"), 0, 1_200_000, 11)),
    ("overwrite", |d| put(&d.join("big"), 8192, 12_288, 12)),
    ("overwrite parts of blocks", |d| put(&d.join("big"), 520_001, 9_000, 13)),
    ("overwrite through the cache", |d| put_cached(&d.join("big"), 300_000, 30_000, 14)),
    ("append", |d| put(&d.join("big"), 700_000, 40_000, 15)),
    ("cut", |d| direct(&d.join("big"))?.set_len(610_000)),
    ("extend", |d| direct(&d.join("big"))?.set_len(1_300_000)),
    ("fill a hole", |d| put(&d.join("big"), 1_100_000, 20_000, 16)),
    ("punch", |d| {
        fall(&d.join("big"), FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 60_000, 100_000)
    }),
    ("zero", |d| fall(&d.join("big"), FallocateFlags::ZERO_RANGE, 200_000, 50_000)),
    ("reserve", |d| fall(&d.join("big"), FallocateFlags::KEEP_SIZE, 0, 1_000_000)),
    ("overwrite inline", |d| put(&d.join("small"), 100, 200, 17)),
    ("out of inline", |d| put(&d.join("small"), 400, 9000, 18)),
    ("back to inline", |d| direct(&d.join("small"))?.set_len(250)),
    ("to nothing", |d| direct(&d.join(long("kept")))?.set_len(0)),
    ("chmod", |d| set_mode(&d.join("small"), 0o604)),
    ("xattr", |d| Ok(lsetxattr(d.join("small"), "user.note", b"new", XattrFlags::empty())?)),
    ("no xattr", |d| Ok(lremovexattr(d.join("small"), "user.note")?)),
    ("rename over", |d| fs::rename(d.join("new"), d.join("small"))),
    ("mkdir", |d| fs::create_dir(d.join("made"))),
    ("mkdir long", |d| fs::create_dir(d.join(long("made")))),
    ("symlink", |d| symlink("some/where", d.join("link"))),
    ("link", |d| fs::hard_link(d.join("big"), d.join("dir/big"))),
    ("fifo", |d| Ok(mknodat(CWD, d.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o644), 0)?)),
    ("create long", |d| put(&d.join(long("file")), 0, 100, 19)),
    ("rename long", |d| fs::rename(d.join(long("file")), d.join(long("renamed")))),
    ("move", |d| fs::rename(d.join("large"), d.join("dir/large"))),
    ("copy", copy),
    ("unlink", |d| fs::remove_file(d.join("big"))),
    ("unlink long", |d| fs::remove_file(d.join(long("renamed")))),
    ("rmdir", |d| fs::remove_dir(d.join("dir/empty"))),
    ("rmdir long", |d| fs::remove_dir(d.join(long("made")))),
    ("read", |d| tree::read(d).map(drop)),
    ("sync directory", |d| File::open(d)?.sync_all()),
];

/// The tree after each step, as a plain directory has it.
pub(crate) fn reference() -> Vec<Tree> {
    let home = tempfile::tempdir().unwrap();
    prepare(home.path()).unwrap();
    let mut trees = vec![tree::read(home.path()).unwrap()];
    for (name, step) in STEPS {
        step(home.path()).unwrap_or_else(|e| panic!("{name}: {e}"));
        trees.push(tree::read(home.path()).unwrap());
    }
    trees
}

/// A vault whose daemon is traced.
pub(crate) struct Traced {
    pub(crate) vault: Arc<Vault>,
    tracer: Option<Tracer>,
}

impl Traced {
    pub(crate) fn mount(vault: &Arc<Vault>) -> Self {
        let log = vault.scratch.join("log");
        let transport = transport();
        let mount = [
            "mount",
            text(&vault.dir),
            text(&vault.mnt),
            "--log-file",
            text(&log),
            "--transport",
            &transport,
        ];
        run(&mut vault.command(&mount));
        let tracer = Tracer::attach(daemon_of(vault), &vault.dir).expect("the daemon can be traced");
        Self { vault: Arc::clone(vault), tracer: Some(tracer) }
    }

    pub(crate) fn tracer(&self) -> &Tracer {
        self.tracer.as_ref().expect("mounted")
    }

    fn top(&self) -> &Path {
        &self.vault.mnt
    }

    pub(crate) fn unmount(mut self) {
        run(&mut envelopefs(["umount", text(&self.vault.mnt)]));
        let status = self.tracer.take().expect("mounted").ended();
        assert_eq!(status, 0, "the daemon's end: {}", log(&self.vault));
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if self.tracer.is_some() {
            let _ = Command::new("fusermount3").arg("-uz").arg(&self.vault.mnt).status();
        }
    }
}

fn log(vault: &Vault) -> String {
    fs::read_to_string(vault.scratch.join("log")).unwrap_or_default()
}

fn daemon_of(vault: &Vault) -> i32 {
    let mut found = fs::read_dir("/proc").unwrap().filter_map(|p| {
        let pid: i32 = p.ok()?.file_name().to_str()?.parse().ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<_> = line.split(|b| *b == 0).collect();
        let is_it = words.contains(&&b"--daemon-child"[..]) && words.contains(&text(&vault.dir).as_bytes());
        is_it.then_some(pid)
    });
    found.next().expect("a daemon for the mount")
}

/// Ends the process when a step hangs: nothing else gets out of a call that does not return.
fn watch(done: Arc<AtomicBool>, vault: Arc<Vault>, what: String) {
    thread::spawn(move || {
        let until = Instant::now() + HUNG;
        while Instant::now() < until {
            if done.load(Ordering::Acquire) {
                return;
            }
            thread::sleep(Duration::from_millis(200));
        }
        eprintln!("HANGS: {what}\n{}", log(&vault));
        let _ = Command::new("fusermount3").arg("-uz").arg(&vault.mnt).status();
        std::process::exit(101);
    });
}

/// Which call fails and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) after: u64,
    pub(crate) errno: i32,
    pub(crate) for_good: bool,
}

/// Takes the steps with one call failing. What fails is taken again. Gives what was injected and what went wrong.
fn steps(traced: &Traced, dir: &Path, fault: Fault, trees: &[Tree]) -> (Plan, Vec<String>) {
    let mut faults = Vec::new();
    let mut plan: Option<Plan> = None;
    traced.tracer().arm(fault.after, fault.errno, fault.for_good);
    for (i, (name, step)) in STEPS.iter().enumerate() {
        let done = Arc::new(AtomicBool::new(false));
        watch(Arc::clone(&done), Arc::clone(&traced.vault), format!("{name}, {fault:?}"));
        let outcome = step(dir);
        let (old, new) = (&trees[i], &trees[i + 1]);
        if plan.is_none() && traced.tracer().has_fired() {
            let fired = traced.tracer().disarm();
            if setting("EFS_FAULT_TELL", 0) == 1 {
                eprintln!("{fault:?}, step {name:?} gives {outcome:?}: {:?}", fired.failed);
            }
            plan = Some(fired);
        }
        let mut wrong = |what: String| faults.push(format!("{fault:?}, step {name:?}: {what}"));
        if let Err(e) = &outcome {
            let injected = io::Error::from_raw_os_error(fault.errno).kind();
            let expected = plan.is_some() && e.kind() == injected;
            if !expected {
                wrong(format!("failed with {e}"));
            }
            match tree::read(dir) {
                Ok(found) => between(&found, old, new).into_iter().for_each(&mut wrong),
                Err(e) => wrong(format!("afterwards cannot be read: {e}")),
            }
            // The kernel tells of what it could not write back once more, to the next who syncs.
            if let Err(e) = step(dir).or_else(|_| step(dir)) {
                // What could not be reported as done may have been done.
                if !matches!(e.raw_os_error(), Some(libc::EEXIST | libc::ENOENT | libc::ENODATA)) {
                    wrong(format!("the retry failed: {e}"));
                }
            }
        }
        if outcome.is_err() || plan.is_some() {
            // What fails behind a close is heard of by the next one who opens, once.
            match tree::read(dir).or_else(|_| tree::read(dir)) {
                Ok(found) => difference(&found, new).into_iter().for_each(&mut wrong),
                Err(e) => wrong(format!("in the end cannot be read: {e}")),
            }
        }
        done.store(true, Ordering::Release);
        if !faults.is_empty() {
            break;
        }
    }
    (plan.unwrap_or_else(|| traced.tracer().disarm()), faults)
}

/// What a loop over all calls did.
#[derive(Debug, Default)]
struct Tally {
    /// Calls of the workload.
    calls: u64,
    injected: u64,
    faults: Vec<String>,
}

/// A vault, its mount, and the directories of the runs on it, which have all come to the last tree or are left out.
struct Bench {
    vault: Arc<Vault>,
    traced: Option<Traced>,
    dirs: Vec<PathBuf>,
}

impl Bench {
    fn new() -> Self {
        let vault = Arc::new(Vault::new());
        let traced = Some(Traced::mount(&vault));
        Self { vault, traced, dirs: Vec::new() }
    }

    fn traced(&self) -> &Traced {
        self.traced.as_ref().expect("mounted")
    }

    /// One run in a directory of its own.
    fn run(&mut self, fault: Fault, trees: &[Tree]) -> (Plan, Vec<String>) {
        let name = format!("run{}", self.dirs.len());
        let dir = self.traced().top().join(&name);
        fs::create_dir(&dir).unwrap();
        prepare(&dir).unwrap();
        let outcome = steps(self.traced(), &dir, fault, trees);
        self.dirs.push(dir);
        outcome
    }

    /// Remounts and looks at everything again.
    fn finish(mut self, trees: &[Tree], broken: bool) -> Vec<String> {
        self.traced.take().expect("mounted").unmount();
        let traced = Traced::mount(&self.vault);
        let last = trees.last().expect("a tree for each step");
        let mut faults = Vec::new();
        for dir in self.dirs.iter().take(self.dirs.len() - usize::from(broken)) {
            match tree::read(dir) {
                Ok(found) => faults.extend(difference(&found, last)),
                Err(e) => faults.push(format!("after the remount: {e}")),
            }
        }
        traced.unmount();
        let (code, said) = self.vault.check();
        if code != 0 {
            faults.push(format!("check gives {code}: {said}"));
        }
        if log(&self.vault).contains("panicked") {
            faults.push(format!("a panic: {}", log(&self.vault)));
        }
        faults
    }
}

const ERRNOS: [i32; 3] = [libc::EIO, libc::ENOSPC, libc::EDQUOT];

/// How a call fails, and whether all behind it do as well: one of the ways in turn, unless `all`.
pub(crate) fn modes(turn: u64, all: bool) -> impl Iterator<Item = (i32, bool)> {
    let modes = ERRNOS.into_iter().map(|errno| (errno, false)).chain([(libc::ENOSPC, true)]);
    modes.enumerate().filter(move |(i, _)| all || *i as u64 == turn % 4).map(|(_, mode)| mode)
}

/// Lets every so-manieth call fail; the modes take turns unless `all`.
fn every_call(every: u64, all: bool) -> Tally {
    let trees = reference();
    let mut tally = Tally::default();
    let mut bench = Bench::new();
    let none = Fault { after: u64::MAX, errno: libc::EIO, for_good: false };
    let (plan, faults) = bench.run(none, &trees);
    assert!(faults.is_empty(), "without any fault: {faults:?}");
    tally.calls = plan.seen;
    let from = setting("EFS_FAULT_FROM", 0);
    let to = setting("EFS_FAULT_TO", tally.calls);
    for (turn, after) in (from..to).step_by(every as usize).enumerate() {
        for (errno, for_good) in modes(turn as u64, all) {
            let (plan, mut faults) = bench.run(Fault { after, errno, for_good }, &trees);
            tally.injected += u64::from(!plan.failed.is_empty());
            let broken = !faults.is_empty();
            if broken || bench.dirs.len() >= RUNS_A_MOUNT {
                let done = std::mem::replace(&mut bench, Bench::new());
                faults.extend(done.finish(&trees, broken));
            }
            for fault in faults {
                eprintln!("{fault} ({:?})", plan.failed);
                tally.faults.push(format!("{fault} ({:?})", plan.failed));
            }
        }
    }
    tally.faults.extend(bench.finish(&trees, false));
    eprintln!(
        "fault injection: {} system calls in the workload, {} failures injected, {} faults",
        tally.calls,
        tally.injected,
        tally.faults.len()
    );
    tally
}

fn assert_survives(every: u64, all: bool) {
    if !can_mount() || !is_root() {
        return;
    }
    let tally = every_call(setting("EFS_FAULT_EVERY", every), all);
    assert!(tally.faults.is_empty(), "{} faults: {}", tally.faults.len(), tally.faults.join("\n"));
    assert!(tally.injected > 0, "nothing was injected");
}

/// No failing system call of the lower filesystem does more than fail what it was for.
#[test]
fn a_failing_call_does_no_harm() {
    assert_survives(9, false);
}

/// The same, for every call of the workload and each error.
#[test]
#[ignore = "minutes: scripts/crash.sh runs it"]
fn a_failing_call_does_no_harm_in_full() {
    assert_survives(1, true);
}
