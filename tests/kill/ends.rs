//! Every system call that a mount makes on the lower filesystem before it is there, and that an unmount makes until it
//! is done, fails once, with EIO, ENOSPC and EDQUOT, and from then on with ENOSPC. A mount that brings in the journal
//! of a killed daemon succeeds, or says what failed and why and leaves the vault to the next one; an unmount leaves
//! behind what it could not bring to its place. Nothing is lost in either.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::faults::{Fault, HUNG, STEPS, modes, prepare, reference};
use crate::harness::{Vault, can_mount, envelopefs, is_mounted, is_root, run, said, text, transport};
use crate::setting;
use crate::tracer::{Plan, Tracer};
use crate::tree::{self, Tree, difference};

/// What the daemon says when it serves.
const SERVES: &str = "mounted: filesystem";

/// A daemon that is traced from its first call on.
struct Daemon {
    tracer: Option<Tracer>,
    go: ChildStdin,
    said: PathBuf,
    mnt: PathBuf,
}

impl Daemon {
    /// It waits for `start`.
    #[expect(clippy::zombie_processes, reason = "the tracer waits for it")]
    fn prepared(vault: &Vault) -> Self {
        let said = vault.scratch.join("said");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "sh", "-c", "read go; exec \"$@\"", "sh"]);
        command.arg(env!("CARGO_BIN_EXE_envelopefs"));
        command.args([
            "mount",
            text(&vault.dir),
            text(&vault.mnt),
            "--foreground",
            "--transport",
            &transport(),
        ]);
        command.args(["--kms-dir", text(&vault.kms)]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.stderr(File::create(&said).unwrap()).spawn().unwrap();
        let tracer = Tracer::attach(child.id().cast_signed(), &vault.dir).expect("it can be traced");
        let go = child.stdin.take().expect("stdin was asked to be a pipe");
        Self { tracer: Some(tracer), go, said, mnt: vault.mnt.clone() }
    }

    fn tracer(&self) -> &Tracer {
        self.tracer.as_ref().expect("not ended")
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap_or_default()
    }

    /// Mounts. `false`: it ended instead.
    fn start(&mut self) -> bool {
        self.go.write_all(b"\n").unwrap();
        let until = Instant::now() + HUNG;
        while !self.said().contains(SERVES) {
            if self.tracer().has_ended() {
                return false;
            }
            assert!(Instant::now() < until, "no mount and no end: {}", self.said());
            thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Its wait status, once it has ended.
    fn end(mut self) -> i32 {
        let until = Instant::now() + HUNG;
        while !self.tracer().has_ended() {
            assert!(Instant::now() < until, "the daemon does not end: {}", self.said());
            thread::sleep(Duration::from_millis(2));
        }
        self.tracer.take().expect("not ended").ended()
    }

    fn unmount(self) -> (i32, String) {
        let output = envelopefs(["umount", text(&self.mnt)]).output().unwrap();
        let told = if output.status.success() { String::new() } else { said(&output) };
        (self.end(), told)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.tracer.is_some() {
            let _ = Command::new("fusermount3").arg("-uz").arg(&self.mnt).status();
        }
    }
}

/// A vault as it is before each try.
struct Start {
    vault: Vault,
    seed: PathBuf,
    tree: Tree,
    /// On another mount of the lower filesystem than before, as after a power cut: nothing is taken for durable.
    elsewhere: bool,
}

impl Start {
    fn of(vault: Vault, tree: Tree, elsewhere: bool) -> Self {
        let seed = vault.scratch.join("seed");
        fs::rename(&vault.dir, &seed).unwrap();
        fs::create_dir(&vault.dir).unwrap();
        Self { vault, seed, tree, elsewhere }
    }

    /// As a killed daemon leaves it, changes in the journal.
    fn killed(elsewhere: bool) -> Self {
        let trees = reference();
        let vault = Vault::new();
        let mount = vault.mount();
        prepare(mount.top()).unwrap();
        STEPS.iter().for_each(|(name, step)| step(mount.top()).unwrap_or_else(|e| panic!("{name}: {e}")));
        mount.kill();
        let until = Instant::now() + HUNG;
        while is_mounted(&vault.mnt) {
            assert!(Instant::now() < until, "the mount stays");
            thread::sleep(Duration::from_millis(5));
        }
        Self::of(vault, trees.last().expect("a tree for each step").clone(), elsewhere)
    }

    /// As an unmount leaves it, with files to change.
    fn in_order() -> Self {
        let vault = Vault::new();
        let mount = vault.mount();
        prepare(mount.top()).unwrap();
        let tree = tree::read(mount.top()).unwrap();
        mount.unmount();
        Self::of(vault, tree, false)
    }

    fn restore(&self) {
        self.leave();
        let dir = &self.vault.dir;
        fs::remove_dir_all(dir).unwrap();
        run(Command::new("cp").arg("-a").arg(&self.seed).arg(dir));
        if self.elsewhere {
            run(Command::new("mount").arg("--bind").arg(dir).arg(dir));
        }
    }

    fn leave(&self) {
        while is_mounted(&self.vault.dir) {
            run(Command::new("umount").arg("-l").arg(&self.vault.dir));
        }
    }

    /// The vault through a mount on which nothing fails.
    fn look(&self, expected: &Tree) -> Vec<String> {
        let mount = self.vault.mount();
        let mut wrong: Vec<_> = differs(tree::read(mount.top()), expected).into_iter().collect();
        mount.unmount();
        let (code, said) = self.vault.check();
        if code != 0 {
            wrong.push(format!("check gives {code}: {said}"));
        }
        wrong
    }

    /// Mounts with a call failing.
    fn mount(&self, fault: Fault) -> Try {
        self.restore();
        let mut daemon = Daemon::prepared(&self.vault);
        daemon.tracer().arm(fault.after, fault.errno, fault.for_good);
        let mounted = daemon.start();
        let plan = daemon.tracer().disarm();
        let mut wrong = Vec::new();
        let log = daemon.said.clone();
        if mounted {
            wrong.extend(differs(tree::read(&self.vault.mnt), &self.tree));
            let (status, told) = daemon.unmount();
            if status != 0 || !told.is_empty() {
                wrong.push(format!("the unmount gives {status:#x}: {told}"));
            }
        } else {
            let (said, status) = (daemon.said(), daemon.end());
            wrong.extend(unclear(status, &said, fault, &self.vault.dir));
        }
        if is_mounted(&self.vault.mnt) {
            wrong.push("it is still mounted".into());
        }
        if !plan.failed.is_empty() || !wrong.is_empty() {
            wrong.extend(self.look(&self.tree));
        }
        Try { refused: !mounted, plan, wrong, said: fs::read_to_string(log).unwrap_or_default() }
    }

    /// Changes everything, then unmounts with a call failing.
    fn unmount(&self, fault: Fault, expected: &Tree) -> Try {
        self.restore();
        let mut daemon = Daemon::prepared(&self.vault);
        assert!(daemon.start(), "no mount: {}", daemon.said());
        for (name, step) in STEPS {
            step(&self.vault.mnt).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        daemon.tracer().arm(fault.after, fault.errno, fault.for_good);
        let plan = daemon.tracer().shared();
        let log = daemon.said.clone();
        let (status, told) = daemon.unmount();
        let plan = std::mem::take(&mut *plan.lock().unwrap());
        let mut wrong = Vec::new();
        let said = fs::read_to_string(log).unwrap_or_default();
        let journal = fs::read_dir(self.vault.dir.join(".envelopefs/journal")).unwrap().count();
        let told_of = said.contains("the journal stays");
        if (status, told.as_str()) != (0, "") && !told_of {
            wrong.push(format!("the unmount gives {status:#x}: {told}"));
        }
        if journal > 0 && !told_of {
            wrong.push("the journal stays, and the log does not say so".to_owned());
        }
        if !plan.failed.is_empty() || !wrong.is_empty() {
            wrong.extend(self.look(expected));
        }
        Try { refused: journal > 0, plan, wrong, said }
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        self.leave();
    }
}

/// One mount or unmount.
struct Try {
    /// There is no mount; the journal is still there.
    refused: bool,
    plan: Plan,
    wrong: Vec<String>,
    said: String,
}

fn differs(found: io::Result<Tree>, expected: &Tree) -> Option<String> {
    match found {
        Ok(found) => difference(&found, expected),
        Err(e) => Some(format!("cannot be read: {e}")),
    }
}

/// What a refusal lacks: a code of its own, what failed and why.
fn unclear(status: i32, said: &str, fault: Fault, dir: &Path) -> Option<String> {
    let cause = io::Error::from_raw_os_error(fault.errno).to_string();
    let exits = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) != 0 && libc::WEXITSTATUS(status) != 101;
    let named =
        said.lines().any(|l| l.starts_with("envelopefs: ") && l.contains(text(dir)) && l.contains(&cause));
    (!exits || !named).then(|| format!("ends with {status:#x} and says: {said}"))
}

/// Lets every so-manieth call fail; the modes take turns unless `all`.
fn every_call(what: &str, every: u64, all: bool, attempt: &dyn Fn(Fault) -> Try) {
    let none = attempt(Fault { after: u64::MAX, errno: libc::EIO, for_good: false });
    assert!(none.wrong.is_empty() && !none.refused, "without any fault: {:?}: {}", none.wrong, none.said);
    let calls = none.plan.seen;
    let (from, to) = (setting("EFS_FAULT_FROM", 0), setting("EFS_FAULT_TO", calls));
    let (mut injected, mut refused, mut faults) = (0, 0, Vec::new());
    for (turn, after) in (from..to).step_by(every as usize).enumerate() {
        for (errno, for_good) in modes(turn as u64, all) {
            let fault = Fault { after, errno, for_good };
            let done = attempt(fault);
            injected += u64::from(!done.plan.failed.is_empty());
            refused += u64::from(done.refused);
            if setting("EFS_FAULT_TELL", 0) == 1 {
                eprintln!("{fault:?}: refused {}, {:?}: {}", done.refused, done.plan.failed, done.said);
            }
            for wrong in done.wrong {
                eprintln!("{what}, {fault:?}, {:?}: {wrong}\n{}", done.plan.failed, done.said);
                faults.push(format!("{fault:?}, {:?}: {wrong}", done.plan.failed));
            }
        }
    }
    eprintln!(
        "fault injection, {what}: {calls} system calls, {injected} failures injected, {refused} left to the next \
         mount, {} faults",
        faults.len()
    );
    assert!(faults.is_empty(), "{} faults: {}", faults.len(), faults.join("\n"));
    assert!(injected > 0, "nothing was injected");
}

fn mounts_survive(elsewhere: bool, every: u64, all: bool) {
    if !can_mount() || !is_root() {
        return;
    }
    let start = Start::killed(elsewhere);
    let what = if elsewhere { "mounting after a power cut" } else { "mounting after a kill" };
    every_call(what, setting("EFS_FAULT_EVERY", every), all, &|fault| start.mount(fault));
}

fn unmounts_survive(every: u64, all: bool) {
    if !can_mount() || !is_root() {
        return;
    }
    let trees = reference();
    let start = Start::in_order();
    let last = trees.last().expect("a tree for each step");
    every_call("unmounting", setting("EFS_FAULT_EVERY", every), all, &|fault| start.unmount(fault, last));
}

/// A mount that cannot bring the journal in says so and leaves it to the next one.
#[test]
fn a_call_that_fails_while_mounting_does_no_harm() {
    mounts_survive(false, 17, false);
}

/// The same where files may not have reached the disk.
#[test]
fn a_call_that_fails_while_mounting_elsewhere_does_no_harm() {
    mounts_survive(true, 29, false);
}

/// An unmount that cannot bring everything to its place leaves the journal to the next mount.
#[test]
fn a_call_that_fails_while_unmounting_does_no_harm() {
    unmounts_survive(11, false);
}

/// For every call and each error.
#[test]
#[ignore = "minutes: scripts/crash.sh runs it"]
fn a_call_that_fails_while_mounting_does_no_harm_in_full() {
    mounts_survive(false, 1, true);
}

/// For every call and each error.
#[test]
#[ignore = "minutes: scripts/crash.sh runs it"]
fn a_call_that_fails_while_mounting_elsewhere_does_no_harm_in_full() {
    mounts_survive(true, 1, true);
}

/// For every call and each error.
#[test]
#[ignore = "minutes: scripts/crash.sh runs it"]
fn a_call_that_fails_while_unmounting_does_no_harm_in_full() {
    unmounts_survive(1, true);
}
