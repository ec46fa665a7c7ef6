//! A umask for one call: the lower kernel then applies it, or the directory's default ACL, exactly as it would
//! for the caller himself.
//!
//! The umask belongs to the process unless a thread leaves the shared filesystem state, which each thread does once. It
//! then keeps the mask that it set last: most creates bring the same one, and cost no call for it.

use std::cell::Cell;

use parking_lot::Mutex;
use rustix::fs::Mode;
use rustix::thread::UnshareFlags;

thread_local! {
    /// Whether this thread has a umask of its own; `None` before it tried.
    static PRIVATE: Cell<Option<bool>> = const { Cell::new(None) };
    /// The umask that this thread set for itself last.
    static LAST: Cell<Option<u32>> = const { Cell::new(None) };
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
    let mask = mask & 0o777;
    if is_private() {
        if LAST.replace(Some(mask)) != Some(mask) {
            rustix::process::umask(Mode::from_raw_mode(mask));
        }
        return make();
    }
    let _guard = SHARED.lock();
    let before = rustix::process::umask(Mode::from_raw_mode(mask));
    let made = make();
    rustix::process::umask(before);
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> u32 {
        let old = rustix::process::umask(Mode::from_raw_mode(0o022));
        rustix::process::umask(old);
        old.as_raw_mode()
    }

    /// A thread's umask does not show in another thread that creates at the same time, nor in one that never creates.
    #[test]
    fn umasks_of_threads_are_apart() {
        let before = here();
        let maker = std::thread::spawn(|| {
            for mask in [0o777, 0o777, 0o027] {
                with_umask(mask, || assert_eq!(here(), mask));
            }
            let other = std::thread::spawn(|| with_umask(0o013, here));
            assert_eq!(other.join().unwrap(), 0o013);
            with_umask(0o027, || assert_eq!(here(), 0o027));
        });
        maker.join().unwrap();
        assert_eq!(here(), before);
    }
}
