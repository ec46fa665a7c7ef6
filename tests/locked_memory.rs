//! What secrets do in a forked child, and where memory may not be locked. A process of its own, with one test,
//! since it forks.
#![allow(unsafe_code)]

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use envelopefs::crypto::{Secret, lock_status};

/// Runs `child` in a forked child, which ends with its result as exit code.
fn in_child(child: impl FnOnce() -> i32) -> ExitStatus {
    // SAFETY: the other threads of this process wait for this one and hold no lock; the child ends with `_exit`.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(99);
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(code) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: waits for the child made above; `status` is a live place.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            ExitStatus::from_raw(status)
        }
    }
}

#[test]
fn a_forked_child_has_none_of_the_secrets_and_may_make_its_own() {
    let secret = Secret::<32>::from_slice(&[0x5a; 32]).unwrap();

    let used = in_child(|| i32::from(secret.expose()[0]));
    assert_eq!(used.signal(), Some(libc::SIGABRT), "a child that uses its parent's key is stopped: {used}");

    let own = in_child(|| {
        let own = Secret::<32>::from_slice(&[0x33; 32]).unwrap();
        i32::from(own.expose()[0] ^ secret.expose()[0])
    });
    assert_eq!(own.signal(), Some(libc::SIGABRT), "also after it made secrets of its own: {own}");

    let own = in_child(|| {
        let own = Secret::<32>::from_slice(&[0x33; 32]).unwrap();
        i32::from(own.expose() != &[0x33; 32] || lock_status().locked + lock_status().unlocked == 0)
    });
    assert_eq!(own.code(), Some(0));

    let refused = in_child(|| {
        let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(rustix::process::Resource::Memlock, none).unwrap();
        // Root may lock memory beyond the limit; an ordinary user is one already.
        if rustix::process::geteuid().is_root() {
            // SAFETY: a plain system call.
            assert_eq!(unsafe { libc::setresuid(65534, 65534, 65534) }, 0);
        }
        let own = Secret::<32>::from_slice(&[0x33; 32]).unwrap();
        let status = lock_status();
        i32::from(own.expose() != &[0x33; 32] || status.locked != 0 || status.unlocked == 0)
    });
    assert_eq!(refused.code(), Some(0), "without locked memory secrets still work, and it is known");

    assert_eq!(secret.expose(), &[0x5a; 32]);
}
