//! The helper: the process that has the PKCS#11 module in its memory. A few workers take requests from one socket, each
//! with a session of its own.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::net::{RecvFlags, SendFlags};
use rustix::process::Signal;
use zeroize::Zeroizing;

use super::device::{Device, Worker};
use super::wire::{MAX_MESSAGE, Request};

/// Requests that are done at once, and so sessions of a token that are open.
const WORKERS: usize = 8;

/// Runs the process until the daemon is gone: stdin is its end of the socket.
///
/// # Errors
/// Only of its beginning.
pub fn helper(module: &Path) -> io::Result<()> {
    // A worker that broke leaves nothing behind that could be trusted: the keeper starts anew.
    std::panic::set_hook(Box::new(|_| std::process::abort()));
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let socket = Arc::new(rustix::stdio::stdin().try_clone_to_owned()?);
    // A module must not find the socket where programs are asked for a PIN.
    let null = std::fs::OpenOptions::new().read(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    let device = Arc::new(Device::new(module));
    let mut workers = Vec::with_capacity(WORKERS);
    for n in 0..WORKERS {
        let (socket, device) = (Arc::clone(&socket), Arc::clone(&device));
        let thread = std::thread::Builder::new().name(format!("efs-token-{n}"));
        workers.push(thread.spawn(move || work(&socket, device))?);
    }
    for worker in workers {
        let _ = worker.join();
    }
    Ok(())
}

fn work(socket: &OwnedFd, device: Arc<Device>) {
    let mut worker = Worker::new(device);
    let mut buffer = Zeroizing::new(vec![0; MAX_MESSAGE + 1]);
    loop {
        let len = match rustix::net::recv(socket, buffer.as_mut_slice(), RecvFlags::empty()) {
            Ok((0, _)) => break,
            Ok((len, _)) => len,
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => break,
        };
        let request = buffer.get(..len).filter(|_| len <= MAX_MESSAGE).and_then(Request::decode);
        let Some((id, request)) = request else { continue };
        let answer = worker.answer(&request).encode(id);
        if rustix::net::send(socket, &answer, SendFlags::NOSIGNAL).is_err() {
            break;
        }
    }
    // The daemon is gone. Modules are known to crash when they are asked to end, and nobody needs them to.
    std::process::exit(0);
}
