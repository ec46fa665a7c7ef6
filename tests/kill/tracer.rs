//! Makes system calls of a running daemon fail, one at a time: a debugger (ptrace) that counts the calls that reach the
//! vault's filesystem, whichever thread makes them, and gives one of them an error instead of running it.
//!
//! The daemon stays as it is, sandbox included. Needs root: the daemon lets no ordinary user look into it.
#![expect(unsafe_code, reason = "ptrace is a bare system call")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// Where a call names what it works on.
#[derive(Clone, Copy)]
enum At {
    /// A descriptor in this argument.
    Fd(usize),
    /// A descriptor in this argument and, if that is AT_FDCWD, a path in the next.
    FdPath(usize),
    /// A path in this argument.
    Path(usize),
}

/// A system call that can reach the lower filesystem: its name, whether it can run out of space.
type Call = (i64, &'static str, bool, At);

#[rustfmt::skip]
const CALLS: &[Call] = &[
    (libc::SYS_pread64, "pread64", false, At::Fd(0)), (libc::SYS_preadv, "preadv", false, At::Fd(0)),
    (libc::SYS_read, "read", false, At::Fd(0)), (libc::SYS_write, "write", true, At::Fd(0)),
    (libc::SYS_pwrite64, "pwrite64", true, At::Fd(0)), (libc::SYS_pwritev, "pwritev", true, At::Fd(0)),
    (libc::SYS_pwritev2, "pwritev2", true, At::Fd(0)), (libc::SYS_ftruncate, "ftruncate", true, At::Fd(0)),
    (libc::SYS_fallocate, "fallocate", true, At::Fd(0)), (libc::SYS_fsync, "fsync", true, At::Fd(0)),
    (libc::SYS_fdatasync, "fdatasync", true, At::Fd(0)), (libc::SYS_syncfs, "syncfs", true, At::Fd(0)),
    (libc::SYS_sync_file_range, "sync_file_range", true, At::Fd(0)), (libc::SYS_statx, "statx", false, At::FdPath(0)),
    (libc::SYS_fstat, "fstat", false, At::Fd(0)), (libc::SYS_newfstatat, "newfstatat", false, At::FdPath(0)),
    (libc::SYS_getdents64, "getdents64", false, At::Fd(0)), (libc::SYS_openat, "openat", true, At::FdPath(0)),
    (libc::SYS_open, "open", false, At::Path(0)),
    (libc::SYS_readlinkat, "readlinkat", false, At::FdPath(0)), (libc::SYS_mkdirat, "mkdirat", true, At::Fd(0)),
    (libc::SYS_mknodat, "mknodat", true, At::Fd(0)), (libc::SYS_symlinkat, "symlinkat", true, At::Fd(1)),
    (libc::SYS_linkat, "linkat", true, At::Fd(2)), (libc::SYS_unlinkat, "unlinkat", true, At::Fd(0)),
    (libc::SYS_renameat, "renameat", true, At::Fd(0)), (libc::SYS_renameat2, "renameat2", true, At::Fd(0)),
    (libc::SYS_fchmod, "fchmod", true, At::Fd(0)), (libc::SYS_fchmodat, "fchmodat", true, At::FdPath(0)),
    (libc::SYS_fchown, "fchown", true, At::Fd(0)), (libc::SYS_fchownat, "fchownat", true, At::FdPath(0)),
    (libc::SYS_utimensat, "utimensat", true, At::FdPath(0)), (libc::SYS_getxattr, "getxattr", false, At::Path(0)),
    (libc::SYS_fgetxattr, "fgetxattr", false, At::Fd(0)), (libc::SYS_setxattr, "setxattr", true, At::Path(0)),
    (libc::SYS_fsetxattr, "fsetxattr", true, At::Fd(0)), (libc::SYS_listxattr, "listxattr", false, At::Path(0)),
    (libc::SYS_flistxattr, "flistxattr", false, At::Fd(0)), (libc::SYS_removexattr, "removexattr", true, At::Path(0)),
    (libc::SYS_fremovexattr, "fremovexattr", true, At::Fd(0)), (libc::SYS_lseek, "lseek", false, At::Fd(0)),
    (libc::SYS_copy_file_range, "copy_file_range", true, At::Fd(2)),
];

/// What is to happen, and what has.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Calls that still succeed; the one after them fails. `None`: none fails.
    pub(crate) after: Option<u64>,
    /// What it fails with. One that cannot run out of space is passed over unless this is EIO.
    pub(crate) errno: i32,
    /// Whether every call behind it fails as well.
    pub(crate) for_good: bool,
    /// If given, only calls of this name are counted.
    pub(crate) only: Option<&'static str>,
    /// Calls that were counted since the plan was made.
    pub(crate) seen: u64,
    /// Those that failed.
    pub(crate) failed: Vec<String>,
    /// How often each call was made; those on the vault's own directory have `own` in front.
    pub(crate) calls: BTreeMap<String, u64>,
}

/// A traced daemon. The trace ends with the daemon.
pub(crate) struct Tracer {
    plan: Arc<Mutex<Plan>>,
    thread: Option<JoinHandle<i32>>,
}

impl Tracer {
    /// Traces every thread of a process, of which the calls on `top` and below count.
    pub(crate) fn attach(pid: i32, top: &Path) -> io::Result<Self> {
        let plan = Arc::<Mutex<Plan>>::default();
        let (sender, ready) = std::sync::mpsc::channel();
        let mut trace = Trace { pid, top: top.to_owned(), plan: Arc::clone(&plan), pending: BTreeMap::new() };
        let thread = thread::spawn(move || match trace.seize() {
            Ok(()) => {
                let _ = sender.send(Ok(()));
                trace.run()
            }
            Err(e) => {
                let _ = sender.send(Err(e));
                -1
            }
        });
        ready.recv().map_err(io::Error::other)??;
        Ok(Self { plan, thread: Some(thread) })
    }

    /// From now on: `after` calls succeed, then one fails (or all do).
    pub(crate) fn arm(&self, after: u64, errno: i32, for_good: bool) {
        *self.plan.lock().unwrap() = Plan { after: Some(after), errno, for_good, ..Plan::default() };
    }

    /// From now on: `after` calls of a name succeed, then one fails with EIO.
    pub(crate) fn arm_only(&self, name: &'static str, after: u64) {
        let (after, only) = (Some(after), Some(name));
        *self.plan.lock().unwrap() = Plan { after, errno: libc::EIO, only, ..Plan::default() };
    }

    /// Nothing fails any more; tells what was.
    pub(crate) fn disarm(&self) -> Plan {
        std::mem::take(&mut self.plan.lock().unwrap())
    }

    /// Calls that were counted since the plan was made.
    pub(crate) fn seen(&self) -> u64 {
        self.plan.lock().unwrap().seen
    }

    /// Whether something has failed.
    pub(crate) fn has_fired(&self) -> bool {
        !self.plan.lock().unwrap().failed.is_empty()
    }

    /// The plan, to look at when the daemon has ended.
    pub(crate) fn shared(&self) -> Arc<Mutex<Plan>> {
        Arc::clone(&self.plan)
    }

    /// Whether the daemon has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the daemon's end; gives its wait status.
    pub(crate) fn ended(mut self) -> i32 {
        self.thread.take().map_or(-1, |t| t.join().unwrap_or(-1))
    }
}

struct Trace {
    pid: i32,
    top: PathBuf,
    plan: Arc<Mutex<Plan>>,
    /// Threads within a call that fails, and with what.
    pending: BTreeMap<i32, i32>,
}

/// One request to ptrace; these take numbers only, or an address within this frame.
fn ptrace(request: libc::c_uint, tid: i32, address: usize, data: usize) -> io::Result<i64> {
    // SAFETY: with the requests used here the kernel writes only where `data` points in `syscall`, to a live value of
    // the size in `address`; all others take plain numbers.
    let done = unsafe { libc::ptrace(request, tid, address, data) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

impl Trace {
    fn seize(&self) -> io::Result<()> {
        let mut seized = BTreeSet::new();
        loop {
            let tasks = fs::read_dir(format!("/proc/{}/task", self.pid))?;
            let tids: Vec<i32> = tasks.filter_map(|t| t.ok()?.file_name().to_str()?.parse().ok()).collect();
            let new: Vec<_> = tids.into_iter().filter(|tid| seized.insert(*tid)).collect();
            if new.is_empty() {
                return Ok(());
            }
            for tid in new {
                let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE;
                // One that its sibling's clone event has brought along, or that has just ended.
                if ptrace(libc::PTRACE_SEIZE, tid, 0, options as usize).is_ok() {
                    let _ = ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0);
                }
            }
        }
    }

    fn run(&mut self) -> i32 {
        loop {
            let mut status = 0;
            // SAFETY: `status` is alive.
            let tid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
            if tid < 0 {
                return -1;
            }
            if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
                if tid == self.pid {
                    return status;
                }
                continue;
            }
            let signal = libc::WSTOPSIG(status);
            let mut deliver = 0;
            if signal == libc::SIGTRAP | 0x80 {
                self.at_call(tid);
            } else if status >> 16 == 0 {
                deliver = signal;
            }
            let _ = ptrace(libc::PTRACE_SYSCALL, tid, 0, deliver as usize);
        }
    }

    fn at_call(&mut self, tid: i32) {
        // SAFETY: all of it is numbers.
        let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
        let size = size_of_val(&info);
        if ptrace(libc::PTRACE_GET_SYSCALL_INFO, tid, size, (&raw mut info).addr()).is_err() {
            return;
        }
        if info.op == libc::PTRACE_SYSCALL_INFO_EXIT {
            if let Some(errno) = self.pending.remove(&tid) {
                let _ =
                    ptrace(libc::PTRACE_POKEUSER, tid, 8 * libc::RAX as usize, -i64::from(errno) as usize);
            }
        } else if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
            // SAFETY: the kernel filled this variant, as `op` says.
            let entry = unsafe { info.u.entry };
            if let Some(errno) = self.verdict(tid, entry.nr as i64, &entry.args) {
                // No such call: the kernel runs nothing.
                let _ = ptrace(libc::PTRACE_POKEUSER, tid, 8 * libc::ORIG_RAX as usize, usize::MAX);
                self.pending.insert(tid, errno);
            }
        }
    }

    /// The error that a call gets, if any.
    fn verdict(&self, tid: i32, number: i64, args: &[u64; 6]) -> Option<i32> {
        let (_, name, changes, at) = *CALLS.iter().find(|call| call.0 == number)?;
        let target = self.target(tid, at, args).filter(|path| path.starts_with(&self.top))?;
        let makes = libc::O_CREAT | libc::O_TMPFILE & !libc::O_DIRECTORY;
        let changes = changes && (name != "openat" || args[2] as i32 & makes != 0);
        let mut plan = self.plan.lock().unwrap();
        if plan.only.is_some_and(|only| only != name) {
            return None;
        }
        let place = plan.seen;
        plan.seen += 1;
        let own = target.strip_prefix(&self.top).is_ok_and(|path| path.starts_with(".envelopefs"));
        *plan.calls.entry(format!("{}{name}", if own { "own " } else { "" })).or_default() += 1;
        let due = plan.after.is_some_and(|after| if plan.for_good { place >= after } else { place == after });
        if !due || (!changes && plan.errno != libc::EIO) {
            return None;
        }
        plan.failed.push(format!("{name} {}", target.file_name().unwrap_or_default().to_string_lossy()));
        Some(plan.errno)
    }

    fn target(&self, tid: i32, at: At, args: &[u64; 6]) -> Option<PathBuf> {
        match at {
            At::Fd(i) => self.descriptor(args[i] as i32),
            At::FdPath(i) if args[i] as i32 == libc::AT_FDCWD => self.path(tid, args[i + 1]),
            At::FdPath(i) => self.descriptor(args[i] as i32),
            At::Path(i) => self.path(tid, args[i]),
        }
    }

    fn descriptor(&self, fd: i32) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/fd/{fd}", self.pid)).ok()
    }

    /// A path in the daemon's memory; its own descriptors are followed.
    fn path(&self, tid: i32, address: u64) -> Option<PathBuf> {
        let mut bytes = [0; 256];
        let n = fs::File::open(format!("/proc/{tid}/mem")).ok()?.read_at(&mut bytes, address).ok()?;
        let path = std::str::from_utf8(bytes[..n].split(|b| *b == 0).next()?).ok()?;
        match path.strip_prefix("/proc/self/fd/") {
            Some(fd) => self.descriptor(fd.parse().ok()?),
            None => Some(path.into()),
        }
    }
}
