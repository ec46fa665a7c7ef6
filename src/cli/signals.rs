//! Signals as messages: the ones that end a program are blocked everywhere and awaited by one thread, so that no
//! handler interrupts a request halfway.

use std::io;
use std::mem::MaybeUninit;

use crossbeam::channel::{Receiver, bounded};

/// The signals that ask a program to end.
const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Proof that the ending signals are blocked in this thread and in those it starts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocked(());

/// Blocks the ending signals. To be called before any thread is started.
#[allow(unsafe_code)]
pub(super) fn block() -> io::Result<Blocked> {
    let set = ending_set();
    // SAFETY: `set` is an initialised signal set; no old mask is asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(Blocked(())),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Starts the thread that awaits them; each signal is one message. Messages beyond a few are the same wish.
pub(super) fn listen(_proof: Blocked) -> io::Result<Receiver<i32>> {
    let (sender, receiver) = bounded(4);
    std::thread::Builder::new().name("efs-signals".to_owned()).spawn(move || {
        loop {
            match wait() {
                Ok(signal) => {
                    let _ = sender.try_send(signal);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    })?;
    Ok(receiver)
}

/// Ignores them instead: for the guardian, which the daemon ends.
#[allow(unsafe_code)]
pub(super) fn ignore() {
    for signal in ENDING {
        // SAFETY: SIG_IGN installs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

#[allow(unsafe_code)]
fn wait() -> io::Result<i32> {
    let set = ending_set();
    let mut signal = 0;
    // SAFETY: both point to live, initialised values of this frame.
    match unsafe { libc::sigwait(&raw const set, &raw mut signal) } {
        0 => Ok(signal),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

#[allow(unsafe_code)]
fn ending_set() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set before anything reads it; the signal numbers are valid.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in ENDING {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}
