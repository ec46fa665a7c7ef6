//! Locks of mounts that share a vault: two mounts stand for two hosts, programs of their own for their programs.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use envelopefs::fuse::{Answer, Attributes, Entry, Handler, Looked, MountConfig, Opened, Session, Transport};
use rustix::io::Errno;

use crate::harness::{Mount, Vault, can_mount, eventually, is_root, run, sh, text};

/// Evaluates lines of stdin; prints the value, or the name of the errno.
const PROGRAM: &str = r"
import errno, fcntl, os, signal, struct, sys
R, W, U = fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN
def op(name, flags=os.O_RDWR | os.O_CREAT): return os.open(name, flags)
def lk(fd, kind, start=0, length=0): return fcntl.lockf(fd, kind if kind == U else kind | fcntl.LOCK_NB, length, start)
def lkw(fd, kind, start=0, length=0): return fcntl.lockf(fd, kind, length, start)
def get(fd, kind, start=0, length=0):
    asked = struct.pack('hhqqi4x', {R: fcntl.F_RDLCK, W: fcntl.F_WRLCK}[kind], 0, start, length, 0)
    kind, _, start, length, pid = struct.unpack('hhqqi4x', fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return 'free' if kind == fcntl.F_UNLCK else ({fcntl.F_RDLCK: 'R', fcntl.F_WRLCK: 'W'}[kind], start, length, pid)
def fl(fd, kind): return fcntl.flock(fd, kind | fcntl.LOCK_NB)
def flw(fd, kind): return fcntl.flock(fd, kind)
def ofd(fd, kind, start=0, length=0):
    kind = {R: fcntl.F_RDLCK, W: fcntl.F_WRLCK, U: fcntl.F_UNLCK}[kind]
    fcntl.fcntl(fd, 37, struct.pack('hhqqi4x', kind, 0, start, length, 0))
def rung(*_): raise InterruptedError(errno.EINTR, 'rung')
def alarm(seconds): signal.signal(signal.SIGALRM, rung); signal.setitimer(signal.ITIMER_REAL, seconds)
def count(name, times):
    fd = op(name)
    for _ in range(times):
        lkw(fd, W)
        value = int(os.pread(fd, 20, 0) or b'0')
        os.pwrite(fd, b'%020d' % (value + 1), 0)
        lk(fd, U)
    os.close(fd)
def append(name, who, times):
    fd = op(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    for n in range(times):
        flw(fd, W)
        os.write(fd, b'%s %d\n' % (who, n))
        fl(fd, U)
    os.close(fd)
def hammer(name, times):
    fd = op(name)
    for n in range(times):
        os.pwrite(fd, bytes([n % 251]) * 16384, 0)
        __import__('time').sleep(0.005)
    os.close(fd)
def look(name, times):
    for n in range(times):
        fd = op(name, os.O_RDONLY)
        os.pread(fd, 16384, 0)
        os.pread(f, 100, n % 16000)
        os.close(fd)
def read(name):
    fd = op(name)
    lkw(fd, R)
    return os.read(fd, 1 << 20).decode(), os.close(fd)
for line in sys.stdin:
    try: value = repr(eval(line))
    except OSError as e: value = errno.errorcode[e.errno]
    print(value, flush=True)
";

/// A program that works in one directory, as it is told.
struct Program {
    child: Child,
    tell: ChildStdin,
    said: BufReader<ChildStdout>,
}

impl Program {
    fn start(dir: &Path) -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "python3", "-I", "-c", PROGRAM]).current_dir(dir);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (tell, said) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, tell, said }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.tell, "{line}").unwrap();
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.answer()
    }

    /// What is granted, or not.
    fn gets(&mut self, line: &str) {
        assert_eq!(self.ask(line), "None", "{line}");
    }

    fn refused(&mut self, line: &str) {
        assert_eq!(self.ask(line), "EAGAIN", "{line}");
    }

    fn open(&mut self, name: &str) {
        assert_ne!(self.ask(&format!("globals().update(f=op('{name}'))")), "");
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One vault for two mounts.
fn two_hosts() -> (Vault, Vault) {
    let one = Vault::new();
    let other = beside(&one);
    (one, other)
}

/// Another mount of the same vault.
fn beside(one: &Vault) -> Vault {
    let mut other = Vault::unmade();
    other.dir.clone_from(&one.dir);
    other.kms.clone_from(&one.kms);
    other
}

/// Two programs with a file open on one mount, one on another.
fn programs(here: &Mount<'_>, there: &Mount<'_>) -> [Program; 3] {
    fs::write(here.path("f"), vec![1; 100]).unwrap();
    [here, here, there].map(|mount| {
        let mut program = Program::start(mount.top());
        program.open("f");
        program
    })
}

/// Ranges keep programs of one mount and of two apart, are split, upgraded and downgraded, and GETLK names what is in the way.
#[test]
fn ranges_are_kept_across_mounts() {
    if !can_mount() {
        return;
    }
    let (one, other) = two_hosts();
    let (here, there) = (one.mount_with("shared"), other.mount_with("shared"));
    let [mut a, mut b, mut far] = programs(&here, &there);
    a.gets("lk(f, W, 10, 20)");
    for other in [&mut b, &mut far] {
        other.refused("lk(f, R, 29, 1)");
        other.gets("lk(f, W, 30, 5)");
        other.gets("lk(f, U, 30, 5)");
    }
    assert_eq!(b.ask("get(f, R)"), format!("('W', 10, 20, {})", a.pid()));
    assert_eq!(far.ask("get(f, R)"), "('W', 10, 20, 0)");
    assert_eq!(a.ask("get(f, W)"), "'free'");
    // A hole in the middle, one half for reading.
    a.gets("lk(f, U, 15, 5)");
    a.gets("lk(f, R, 20, 10)");
    far.gets("lk(f, W, 15, 5)");
    assert_eq!(a.ask("get(f, R, 0, 18)"), "('W', 15, 5, 0)");
    assert_eq!(b.ask("get(f, W, 18)"), format!("('R', 20, 10, {})", a.pid()));
    b.gets("lk(f, R, 20, 10)");
    far.gets("lk(f, R, 25, 0)");
    a.refused("lk(f, W, 20, 10)");
    assert_eq!(a.ask("get(f, W, 25)"), format!("('R', 20, 10, {})", b.pid()));
    b.gets("lk(f, U)");
    far.gets("lk(f, U, 25, 0)");
    a.gets("lk(f, W, 20, 10)");
    // Without an end.
    a.gets("lk(f, W, 1000, 0)");
    assert_eq!(far.ask("get(f, R, 10**12, 1)"), "('W', 1000, 0, 0)");
    far.refused("lk(f, R, 2**62, 1)");
    a.gets("lk(f, U)");
    far.gets("lk(f, W)");
    b.refused("lk(f, R)");
    drop((a, b, far));
    here.unmount();
    there.unmount();
    one.assert_sound();
}

/// A process's locks end when it closes any descriptor of the file, and when it dies; those of a handle with the handle, also
/// where it was inherited. A file without a name keeps its locks.
#[test]
fn locks_end_with_whoever_has_them() {
    if !can_mount() {
        return;
    }
    let (one, other) = two_hosts();
    let (here, there) = (one.mount_with("shared"), other.mount_with("shared"));
    let [mut a, mut b, mut far] = programs(&here, &there);
    a.gets("lk(f, W)");
    far.refused("lk(f, R)");
    a.gets("os.close(op('f'))");
    far.gets("lk(f, W)");
    far.gets("lk(f, U)");
    b.gets("lk(f, W)");
    far.refused("lk(f, R)");
    b.kill();
    far.gets("lk(f, R)");
    far.gets("lk(f, U)");
    // Of the handle: another close changes nothing, the last one frees. RELEASE is told behind the close.
    a.gets("ofd(f, W, 5, 5)");
    a.gets("os.close(op('f'))");
    far.refused("lk(f, R, 5, 1)");
    a.gets("os.close(f)");
    eventually("the end of a lock", || far.ask("lk(f, R, 5, 1)") == "None");
    far.gets("lk(f, U)");
    a.open("f");
    a.gets("fl(f, W)");
    assert_eq!(a.ask("globals().update(child=os.fork()) or child == 0 and signal.pause()"), "False");
    a.gets("os.close(f)");
    far.refused("fl(f, R)");
    a.gets("os.kill(child, signal.SIGKILL)");
    eventually("the end of a lock", || far.ask("fl(f, R)") == "None");
    far.gets("fl(f, U)");
    // No name on either side.
    a.open("f");
    a.gets("lk(f, W)");
    a.gets("os.unlink('f')");
    far.refused("lk(f, R)");
    a.gets("lk(f, U)");
    far.gets("lk(f, W)");
    drop((a, far));
    here.unmount();
    there.unmount();
}

/// `flock` keeps programs of one mount and of two apart, is converted both ways, and has nothing to do with ranges.
#[test]
fn whole_files_are_locked_across_mounts() {
    if !can_mount() {
        return;
    }
    let (one, other) = two_hosts();
    let (here, there) = (one.mount_with("shared"), other.mount_with("shared"));
    let [mut a, mut b, mut far] = programs(&here, &there);
    a.gets("fl(f, W)");
    b.refused("fl(f, R)");
    far.refused("fl(f, W)");
    far.gets("lk(f, W)");
    far.gets("lk(f, U)");
    a.gets("fl(f, R)");
    b.gets("fl(f, R)");
    far.gets("fl(f, R)");
    b.gets("fl(f, U)");
    far.gets("fl(f, U)");
    a.gets("fl(f, W)");
    far.tell("flw(f, W)");
    a.gets("fl(f, U)");
    assert_eq!(far.answer(), "None");
    a.refused("fl(f, R)");
    // Through a descriptor for reading, too.
    assert_eq!(far.ask("fl(f, U) or globals().update(g=op('f', os.O_RDONLY))"), "None");
    far.gets("fl(g, W)");
    far.refused("fl(f, R)");
    a.refused("fl(f, R)");
    assert_eq!(far.ask("lk(g, W)"), "EBADF");
    drop((a, b, far));
    here.unmount();
    there.unmount();
}

/// Who waits gets the lock when it is let go, on his mount and on another; a signal ends the wait, as does a kill. Many who wait
/// hold up nobody else.
#[test]
fn waiting_ends_with_the_lock_or_a_signal() {
    if !can_mount() {
        return;
    }
    let (one, other) = two_hosts();
    let (here, there) = (one.mount_with("shared"), other.mount_with("shared"));
    let [mut a, mut b, mut far] = programs(&here, &there);
    a.gets("lk(f, W)");
    b.tell("lkw(f, R)");
    far.tell("lkw(f, R)");
    let mut crowd: Vec<Program> = (0..20).map(|_| Program::start(here.top())).collect();
    for program in &mut crowd {
        program.open("f");
        program.tell("lkw(f, R, 7, 1)");
    }
    std::thread::sleep(Duration::from_millis(300));
    // More wait than there are threads; all else is served.
    fs::write(here.path("beside"), "served").unwrap();
    assert_eq!(fs::read_to_string(there.path("beside")).unwrap(), "served");
    let began = Instant::now();
    a.gets("lk(f, U)");
    for program in crowd.iter_mut().chain([&mut b, &mut far]) {
        assert_eq!(program.answer(), "None");
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    for program in crowd.iter_mut().chain([&mut b]) {
        program.gets("lk(f, U)");
    }
    // `far` still has it.
    assert_eq!(a.ask("alarm(0.3) or lkw(f, W)"), "EINTR");
    b.tell("flw(f, R) or lkw(f, W)");
    std::thread::sleep(Duration::from_millis(200));
    b.kill();
    far.gets("lk(f, U)");
    a.gets("lkw(f, W)");
    // A signal that comes a little before, at, or a little after the wait begins.
    for n in 0..60 {
        let line = format!("alarm({}) or lkw(f, W)", 0.0005 * f64::from(n % 20 + 1));
        assert_eq!(far.ask(&line), "EINTR", "signal {n}");
    }
    drop((a, b, far, crowd));
    here.unmount();
    there.unmount();
}

/// A mount that is taken away by force ends those who wait, and itself.
#[test]
fn waiting_ends_with_the_mount() {
    if !can_mount() || !is_root() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount_with("shared");
    let [mut a, mut b, _] = programs(&mount, &mount);
    a.gets("lk(f, W)");
    b.tell("lkw(f, W)");
    std::thread::sleep(Duration::from_millis(100));
    let number = fs::metadata(mount.top()).unwrap().dev();
    let abort = format!("/sys/fs/fuse/connections/{}/abort", libc::minor(number));
    if !Path::new(&abort).exists() {
        sh(Path::new("/"), "mount -t fusectl none /sys/fs/fuse/connections");
    }
    fs::write(&abort, "1").unwrap();
    let told = b.answer();
    assert!(["ECONNABORTED", "ENOTCONN"].contains(&told.as_str()), "{told}");
    // The daemon may have been faster.
    let _ = Command::new("umount").arg("-l").arg(mount.top()).stderr(Stdio::null()).status();
    mount.wait();
}

/// A number that two hosts count up under a lock loses nothing; neither do lines that they append.
#[test]
fn what_is_changed_under_a_lock_is_not_lost() {
    if !can_mount() {
        return;
    }
    let (one, other) = two_hosts();
    let (here, there) = (one.mount_with("shared"), other.mount_with("shared"));
    let mut programs = [&here, &there].map(|mount| Program::start(mount.top()));
    for program in &mut programs {
        program.tell("count('counter', 500)");
    }
    for program in &mut programs {
        assert_eq!(program.answer(), "None");
    }
    for program in &mut programs {
        assert_eq!(program.ask("read('counter')[0]"), format!("'{:020}'", 1000));
    }
    for (program, who) in programs.iter_mut().zip(["one", "two"]) {
        program.tell(&format!("append('log', b'{who}', 300)"));
    }
    for program in &mut programs {
        assert_eq!(program.answer(), "None");
    }
    let log = programs[0].ask("read('log')[0]").trim_matches('\'').replace("\\n", "\n");
    for who in ["one", "two"] {
        let of: Vec<_> = log.lines().filter_map(|line| line.strip_prefix(who)).collect();
        let all: Vec<_> = (0..300).map(|n| format!(" {n}")).collect();
        assert_eq!(of, all, "{who}");
    }
    assert_eq!(log.lines().count(), 600);
    drop(programs);
    here.unmount();
    there.unmount();
    one.assert_sound();
}

/// Who reads without a lock while another host writes finds what was or what is, and no error: SQLite looks so at what kind
/// of file it opens.
#[test]
fn reads_without_a_lock_are_no_errors() {
    if !can_mount() {
        return;
    }
    let (one, other) = two_hosts();
    let (here, there) = (one.mount_with("shared"), other.mount_with("shared"));
    fs::write(here.path("f"), vec![1; 16384]).unwrap();
    let mut reader = Program::start(there.top());
    reader.open("f");
    let mut writer = Program::start(here.top());
    writer.tell("hammer('f', 200)");
    reader.gets("look('f', 400)");
    assert_eq!(writer.answer(), "None");
    drop((reader, writer));
    here.unmount();
    there.unmount();
    one.assert_sound();
}

/// What was written through a mapping under a lock is there for the next one who has it.
#[test]
fn mappings_are_seen_under_the_next_lock() {
    if !can_mount() {
        return;
    }
    let (one, other) = two_hosts();
    let (here, there) = (one.mount_with("shared"), other.mount_with("shared"));
    let [a, _, far] = programs(&here, &there);
    let mut pair = [a, far];
    for program in &mut pair {
        program.gets("globals().update(m=__import__('mmap').mmap(f, 100))");
    }
    for turn in 0..10 {
        let (writer, reader) = (turn % 2, (turn + 1) % 2);
        pair[writer].gets("lkw(f, W)");
        pair[writer].gets(&format!("m.__setitem__(slice(40, 42), b'{turn:02}')"));
        pair[writer].gets("lk(f, U)");
        pair[reader].gets("lkw(f, R)");
        assert_eq!(pair[reader].ask("m[40:42]"), format!("b'{turn:02}'"));
        assert_eq!(pair[reader].ask("os.pread(f, 2, 40)"), format!("b'{turn:02}'"));
        pair[reader].gets("lk(f, U)");
    }
    drop(pair);
    here.unmount();
    there.unmount();
}

/// SQLite on both mounts at once, each waiting for the other's locks: every row arrives, and the database is whole.
#[test]
fn sqlite_works_on_two_mounts_at_once() {
    if !can_mount() {
        return;
    }
    let (one, other) = two_hosts();
    let (here, there) = (one.mount_with("shared"), other.mount_with("shared"));
    sh(
        here.top(),
        "sqlite3 db 'PRAGMA journal_mode=DELETE; CREATE TABLE t(who, n, x); CREATE INDEX i ON t(x);'",
    );
    let work = |mount: &Mount<'_>, who: &str| {
        let line = format!(
            "for n in $(seq 40); do echo \"INSERT INTO t VALUES('{who}', $n, hex(randomblob(400)));\"; done |
             sqlite3 -bail -cmd '.timeout 120000' db"
        );
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", &line]).current_dir(mount.top()).stdin(Stdio::null());
        command.spawn().unwrap()
    };
    let mut workers = [work(&here, "one"), work(&there, "two"), work(&there, "three")];
    for worker in &mut workers {
        assert!(worker.wait().unwrap().success());
    }
    for mount in [&here, &there] {
        let found =
            sh(mount.top(), "sqlite3 db 'PRAGMA integrity_check; SELECT who, count(*) FROM t GROUP BY who'");
        assert_eq!(found, "ok\none|40\nthree|40\ntwo|40\n");
    }
    here.unmount();
    there.unmount();
    one.assert_sound();
}

/// A vault inside a shared mount of another one, mounted from two sides: locks pass through both down to the disk, as through the
/// client of any distributed filesystem.
#[test]
fn locks_pass_through_a_filesystem_of_two_clients() {
    if !can_mount() {
        return;
    }
    let (disk_one, disk_other) = two_hosts();
    let (left, right) = (disk_one.mount_with("shared"), disk_other.mount_with("shared"));
    let one = Vault::below(left.top());
    let mut other = beside(&one);
    other.dir = right.path("vault");
    let (here, there) = (one.mount_with("shared"), other.mount_with("shared"));
    let [mut a, mut b, mut far] = programs(&here, &there);
    a.gets("lk(f, W, 10, 20)");
    far.refused("lk(f, R, 29, 1)");
    assert_eq!(b.ask("get(f, R)"), format!("('W', 10, 20, {})", a.pid()));
    assert_eq!(far.ask("get(f, R)"), "('W', 10, 20, 0)");
    far.gets("fl(f, W)");
    a.refused("fl(f, R)");
    far.tell("lkw(f, R)");
    b.kill();
    a.gets("os.close(f)");
    assert_eq!(far.answer(), "None");
    a.open("f");
    a.refused("fl(f, R)");
    a.refused("lk(f, W)");
    far.kill();
    a.gets("lkw(f, W)");
    a.gets("flw(f, W)");
    drop((a, b, far));
    let mut programs = [&here, &there].map(|mount| Program::start(mount.top()));
    for program in &mut programs {
        program.tell("count('counter', 60)");
    }
    for program in &mut programs {
        assert_eq!(program.answer(), "None");
    }
    for program in &mut programs {
        assert_eq!(program.ask("read('counter')[0]"), format!("'{:020}'", 120));
    }
    drop(programs);
    here.unmount();
    there.unmount();
    left.unmount();
    right.unmount();
}

/// Who has locks costs a descriptor: with few of them the rest is told ENOLCK, and can lock when others have let go.
#[test]
fn owners_of_locks_are_bounded() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount_as(&["prlimit", "--nofile=160"], "shared");
    fs::write(mount.path("f"), "x").unwrap();
    let mut program = Program::start(mount.top());
    assert_eq!(program.ask("globals().update(fds=[op('f') for _ in range(21)])"), "None");
    program.gets("[ofd(fd, R) for fd in fds[:20]] and None");
    assert_eq!(program.ask("ofd(fds[20], R)"), "ENOLCK");
    program.gets("ofd(fds[3], U)");
    program.gets("ofd(fds[20], R)");
    drop(program);
    mount.unmount();
}

/// Mounts that share take their requests by `/dev/fuse`; to insist on rings is refused in words.
#[test]
fn a_mount_that_shares_has_no_rings() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount_with("shared,transport=auto");
    eventually("the log line", || vault.log().contains("transport device"));
    mount.unmount();
    let args = ["mount", text(&vault.dir), text(&vault.mnt), "--foreground", "-o", "shared,transport=uring"];
    let refused = vault.command(&args).output().unwrap();
    assert!(!refused.status.success());
    let said = crate::harness::said(&refused);
    assert!(said.contains("they may wait for locks"), "{said}");
}

/// Programs are told what a filesystem below that has no locks says.
#[test]
fn a_filesystem_without_locks_says_so() {
    if !can_mount() || !is_root() {
        return;
    }
    for (errno, name) in
        [(Errno::NOSYS, "ENOSYS"), (Errno::OPNOTSUPP, "EOPNOTSUPP"), (Errno::NOLCK, "ENOLCK")]
    {
        let home = tempfile::tempdir().unwrap();
        let _unmounted = Unmounted(home.path().to_owned());
        let (source, transport) = ("lockless".into(), Transport::Device);
        let config = MountConfig { source, shared: true, transport, ..MountConfig::default() };
        let session = Session::mount(Lockless(errno), home.path(), &config).unwrap();
        let served = std::thread::spawn(move || session.run());
        let mut program = Program::start(home.path());
        program.open("f");
        for line in ["lk(f, W)", "lkw(f, R)", "lk(f, U)", "get(f, R)", "fl(f, R)", "flw(f, W)"] {
            let told = program.ask(line).replace("ENOTSUP", "EOPNOTSUPP");
            assert_eq!(told, name, "{line}");
        }
        drop(program);
        run(Command::new("umount").arg(home.path()));
        served.join().unwrap().unwrap();
    }
}

/// Takes a mount away also when a test fails.
struct Unmounted(PathBuf);

impl Drop for Unmounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).stderr(Stdio::null()).status();
    }
}

/// One file, and no locks.
struct Lockless(Errno);

impl Lockless {
    fn attr(ino: u64) -> envelopefs::fs::Attr {
        let mode = if ino == 1 { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o666 };
        envelopefs::fs::Attr { ino, mode, nlink: 1, blksize: 4096, ..envelopefs::fs::Attr::default() }
    }
}

impl Handler for Lockless {
    fn keeps_locks(&self) -> bool {
        true
    }

    fn lookup(&self, _: u64, _: &[u8]) -> Answer<Looked> {
        let attr = Self::attr(2);
        Ok(Looked::Found(Entry { attr, generation: 0, name_for: Duration::ZERO, attr_for: Duration::ZERO }))
    }

    fn getattr(&self, ino: u64) -> Answer<Attributes> {
        Ok(Attributes { attr: Self::attr(ino), valid: Duration::ZERO })
    }

    fn open(&self, ino: u64, _: i32) -> Answer<Opened> {
        Ok(Opened { fh: ino, keep_cache: false, cache_dir: false })
    }

    fn set_lock(&self, _: u64, _: &envelopefs::fs::LockAsk) -> Answer<envelopefs::fs::Granted> {
        Err(self.0)
    }

    fn find_lock(&self, _: u64, _: &envelopefs::fs::LockAsk) -> Answer<Option<envelopefs::fs::FoundLock>> {
        Err(self.0)
    }
}
