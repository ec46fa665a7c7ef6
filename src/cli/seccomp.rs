//! The system calls that the daemon makes after mounting; everything else fails with EPERM.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Files of the vault and of the key store, and the FUSE device.
#[rustfmt::skip]
const FILES: &[i64] = &[
    libc::SYS_read, libc::SYS_readv, libc::SYS_pread64, libc::SYS_preadv, libc::SYS_preadv2,
    libc::SYS_write, libc::SYS_writev, libc::SYS_pwrite64, libc::SYS_pwritev, libc::SYS_pwritev2,
    libc::SYS_openat, libc::SYS_openat2, libc::SYS_close, libc::SYS_close_range, libc::SYS_dup, libc::SYS_dup3,
    libc::SYS_fcntl, libc::SYS_flock, libc::SYS_lseek, libc::SYS_fsync, libc::SYS_fdatasync,
    libc::SYS_sync_file_range, libc::SYS_syncfs, libc::SYS_ftruncate, libc::SYS_truncate, libc::SYS_fallocate,
    libc::SYS_fadvise64, libc::SYS_copy_file_range, libc::SYS_statx, libc::SYS_fstat, libc::SYS_newfstatat,
    libc::SYS_fstatfs, libc::SYS_statfs, libc::SYS_getdents64, libc::SYS_readlinkat, libc::SYS_faccessat,
    libc::SYS_faccessat2, libc::SYS_name_to_handle_at, libc::SYS_open_by_handle_at, libc::SYS_pipe2,
];

/// Names and attributes.
#[rustfmt::skip]
const NAMES: &[i64] = &[
    libc::SYS_mkdirat, libc::SYS_mknodat, libc::SYS_symlinkat, libc::SYS_linkat, libc::SYS_unlinkat,
    libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_fchmod, libc::SYS_fchmodat, libc::SYS_fchmodat2,
    libc::SYS_fchown, libc::SYS_fchownat, libc::SYS_utimensat, libc::SYS_getxattr, libc::SYS_lgetxattr,
    libc::SYS_fgetxattr, libc::SYS_setxattr, libc::SYS_lsetxattr, libc::SYS_fsetxattr, libc::SYS_listxattr,
    libc::SYS_llistxattr, libc::SYS_flistxattr, libc::SYS_removexattr, libc::SYS_lremovexattr,
    libc::SYS_fremovexattr, libc::SYS_umask, libc::SYS_getcwd,
];

/// Memory, threads, time, the process itself. Giving a new inode to its caller needs the filesystem ids.
#[rustfmt::skip]
const PROCESS: &[i64] = &[
    libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_mprotect, libc::SYS_madvise, libc::SYS_brk,
    libc::SYS_mlock, libc::SYS_mlock2, libc::SYS_munlock, libc::SYS_clone3, libc::SYS_set_robust_list,
    libc::SYS_rseq, libc::SYS_futex, libc::SYS_set_tid_address, libc::SYS_gettid, libc::SYS_getpid,
    libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid, libc::SYS_getgroups,
    libc::SYS_setfsuid, libc::SYS_setfsgid, libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_getcpu,
    libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_clock_gettime, libc::SYS_clock_getres,
    libc::SYS_gettimeofday, libc::SYS_getrandom, libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn, libc::SYS_rt_sigtimedwait, libc::SYS_sigaltstack, libc::SYS_restart_syscall,
    libc::SYS_ppoll, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_getrusage, libc::SYS_sysinfo,
    libc::SYS_uname, libc::SYS_membarrier, libc::SYS_prlimit64, libc::SYS_tgkill, libc::SYS_capget,
    // The guardian is a child, and is waited for.
    libc::SYS_wait4, libc::SYS_waitid,
];

/// The log daemon's socket.
const SYSLOG: &[i64] = &[libc::SYS_connect, libc::SYS_sendto, libc::SYS_getsockopt];

/// A KMS over the network: connections, name resolution, an event loop.
#[rustfmt::skip]
const NETWORK: &[i64] = &[
    libc::SYS_bind, libc::SYS_getsockname, libc::SYS_getpeername, libc::SYS_setsockopt, libc::SYS_recvfrom,
    libc::SYS_recvmsg, libc::SYS_sendmsg, libc::SYS_sendmmsg, libc::SYS_shutdown, libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_eventfd2, libc::SYS_socketpair,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
];
/// Families of the sockets for it; the last tells the resolver which addresses this machine has.
const FAMILIES: [libc::c_int; 3] = [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// Whoever asks the daemon to bring files to their places (`cli/control`).
const CONTROL: &[i64] = &[libc::SYS_accept4, libc::SYS_recvfrom];

/// Older spellings of the calls above, which libraries still use on x86-64.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ARCH: &[i64] = &[
    libc::SYS_open, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink, libc::SYS_mkdir,
    libc::SYS_rmdir, libc::SYS_unlink, libc::SYS_rename, libc::SYS_link, libc::SYS_symlink, libc::SYS_mknod,
    libc::SYS_chmod, libc::SYS_dup2, libc::SYS_poll, libc::SYS_time, libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const ARCH: &[i64] = &[];

/// `FUSE_DEV_IOC_CLONE`: an event loop's own descriptor.
const FUSE_DEV_IOC_CLONE: u64 = 0x8004_e500;
/// Sets a ring to work in the thread that serves it.
const IORING_REGISTER_ENABLE_RINGS: u64 = 12;
/// How much there is to read: the resolver asks before it makes room for an answer.
const FIONREAD: u64 = 0x541b;
/// Shares extents between lower files.
const FICLONERANGE: u64 = 0x4020_940d;

/// The filters as the kernel takes them, in the order of their installation.
/// `rings`: with what serving by io_uring needs. `network`: with what a KMS behind a network needs.
pub(super) fn filters(rings: bool, network: bool) -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    Ok([no_clone3()?, allowed(rings, network)?])
}

/// `clone3` hides its flags behind a pointer, so no filter can tell a thread from a process: it answers as on a kernel
/// without it, and glibc takes `clone`.
fn no_clone3() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, vec![])]);
    let errno = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, errno, arch)?.try_into()
}

fn allowed(rings: bool, network: bool) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules = BTreeMap::new();
    for call in [FILES, NAMES, PROCESS, SYSLOG, CONTROL, ARCH].concat() {
        rules.insert(call, vec![]);
    }
    if rings {
        // No new ring can be made, and those there are do nothing but FUSE.
        rules.insert(libc::SYS_io_uring_enter, vec![]);
        rules.insert(libc::SYS_io_uring_register, vec![argument_is(1, IORING_REGISTER_ENABLE_RINGS)?]);
        rules.insert(libc::SYS_sched_setaffinity, vec![]);
    }
    let mut ioctls = vec![argument_is(1, FUSE_DEV_IOC_CLONE)?, argument_is(1, FICLONERANGE)?];
    let mut sockets = vec![argument_is(0, libc::AF_UNIX.unsigned_abs().into())?];
    if network {
        rules.extend(NETWORK.iter().map(|call| (*call, vec![])));
        ioctls.push(argument_is(1, FIONREAD)?);
        for family in FAMILIES {
            sockets.push(argument_is(0, family.unsigned_abs().into())?);
        }
    }
    rules.insert(libc::SYS_ioctl, ioctls);
    rules.insert(libc::SYS_socket, sockets);
    // A umask of its own for each event loop.
    rules.insert(libc::SYS_unshare, vec![argument_is(0, libc::CLONE_FS.unsigned_abs().into())?]);
    // Threads only.
    let thread = libc::CLONE_THREAD.unsigned_abs().into();
    let is_thread =
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(thread), thread)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![is_thread])?]);
    // Thread names; nothing else of prctl but what locked memory uses.
    let prctls = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA];
    let allowed = prctls.iter().map(|p| argument_is(0, p.unsigned_abs().into())).collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_prctl, allowed);
    let errno = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, errno, SeccompAction::Allow, arch)?.try_into()
}

fn argument_is(index: u8, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)?;
    SeccompRule::new(vec![condition])
}
