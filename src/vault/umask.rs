//! A umask for one call: the lower kernel then applies it, or the directory's default ACL, exactly as it would
//! for the caller himself.
//!
//! The umask belongs to the process unless a thread leaves the shared filesystem state, which each thread does once.

use std::cell::Cell;

use parking_lot::Mutex;
use rustix::fs::Mode;
use rustix::thread::UnshareFlags;

thread_local! {
    /// Whether this thread has a umask of its own; `None` before it tried.
    static PRIVATE: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Serialises creation where threads cannot have umasks of their own (a sandbox that forbids `unshare`).
static SHARED: Mutex<()> = Mutex::new(());

#[allow(unsafe_code)]
fn leave_shared_state() -> bool {
    // SAFETY: only `FS` (umask, working directory, root) is unshared; descriptors stay common to all threads.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }.is_ok()
}

fn is_private() -> bool {
    PRIVATE.with(|p| match p.get() {
        Some(known) => known,
        None => {
            let ok = leave_shared_state();
            p.set(Some(ok));
            ok
        }
    })
}

/// Runs `make`, which creates one inode, under the umask `mask`.
pub fn with_umask<T>(mask: u32, make: impl FnOnce() -> T) -> T {
    let _guard = (!is_private()).then(|| SHARED.lock());
    let before = rustix::process::umask(Mode::from_raw_mode(mask & 0o777));
    let made = make();
    rustix::process::umask(before);
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread's umask does not show in another thread that creates at the same time.
    #[test]
    fn umasks_of_threads_are_apart() {
        let here = || {
            let old = rustix::process::umask(Mode::from_raw_mode(0o022));
            rustix::process::umask(old);
            old.as_raw_mode()
        };
        let before = here();
        with_umask(0o777, || {
            assert_eq!(here(), 0o777);
            let there = std::thread::spawn(move || with_umask(0o013, here)).join().unwrap();
            assert_eq!(there, 0o013);
            assert_eq!(here(), 0o777);
        });
        assert_eq!(here(), before);
    }
}
