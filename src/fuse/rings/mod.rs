//! Requests by io_uring (Linux 6.14, `FUSE_OVER_IO_URING`): each processor has a queue, and the request of a caller is
//! answered on the caller's own processor, with one system call a request instead of two and no thread to be woken.
//!
//! What has no answer (FORGET) still comes by `/dev/fuse`. The rings can do one thing: they are restricted to the
//! commands of FUSE when they are made.

mod command;
mod patience;
mod place;
mod slot;
mod worker;

use std::io;

use io_uring::register::Restriction;
use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue, opcode};
use log::debug;

use crate::fs::waits::LongWaits;
use slot::Slot;
pub(super) use worker::Ring;

/// Whether the kernel's module offers rings to new mounts: Y or N.
const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";
/// The processors that there may ever be: each of them has a queue.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
/// The processors that run.
const ONLINE: &str = "/sys/devices/system/cpu/online";
/// Threads of a queue, each with a ring and one slot: one may wait for the disk while others go on; large requests of one
/// caller come to one queue. As many as event loops of the device on two cores, for the same reason.
const THREADS: usize = 3;
/// The most processors whose queues get threads: each slot has room for the largest request. Beyond it `/dev/fuse` serves.
const MOST: usize = 64;
/// IORING_REGISTER_ENABLE_RINGS.
const ENABLE_RINGS: u8 = 12;

/// Why there are no rings.
#[derive(Debug, thiserror::Error)]
pub enum NoRings {
    /// The kernel is older than 6.14, or was built without them.
    #[error("this kernel does not serve FUSE over io_uring (Linux 6.14 and later do)")]
    NotInKernel,
    /// The module's parameter says no.
    #[error("the kernel's fuse module does not offer io_uring ({PARAMETER} is N)")]
    SwitchedOff,
    /// The mount's requests may wait for locks.
    #[error("a mount that shares a vault takes its requests by /dev/fuse: they may wait for locks")]
    Locks,
    /// Too many processors.
    #[error("this machine may have {0} processors; rings are made for {MOST} at most")]
    TooMany(usize),
    /// A ring could not be made.
    #[error("io_uring: {0}")]
    Setup(io::Error),
}

/// Whether new mounts may use rings, asking the kernel for it where `insist` says so and this user may.
pub(super) fn offered(insist: bool) -> Result<(), NoRings> {
    let set = || std::fs::read_to_string(PARAMETER).map(|text| text.trim() == "Y");
    match set() {
        Err(_) => return Err(NoRings::NotInKernel),
        Ok(true) => return Ok(()),
        Ok(false) if insist => {
            if let Err(e) = std::fs::write(PARAMETER, "Y") {
                debug!("{PARAMETER}: {e}");
            }
        }
        Ok(false) => {}
    }
    if set().unwrap_or(false) { Ok(()) } else { Err(NoRings::SwitchedOff) }
}

/// Rings for every queue, not yet at work. `payload`: bytes of the largest request.
pub(super) fn make(payload: usize) -> Result<Vec<Ring>, NoRings> {
    const { assert!(THREADS > LongWaits::MOST, "a thread of a queue is left while others wait") };
    let possible = cpus(POSSIBLE).map_err(NoRings::Setup)?;
    let online = cpus(ONLINE).map_err(NoRings::Setup)?;
    // Queues have the numbers of processors, 0 to the last one.
    let queues = possible.last().map_or(1, |last| last + 1);
    if queues > MOST {
        return Err(NoRings::TooMany(queues));
    }
    let (mut rings, mut rest) = (Vec::new(), Vec::new());
    for cpu in 0..queues {
        if online.contains(&cpu) {
            for _ in 0..THREADS {
                rings.push(ring(&[cpu], payload, Some(cpu)).map_err(NoRings::Setup)?);
            }
        } else {
            rest.push(cpu);
        }
    }
    // No queue may be without a slot. A processor that is switched on later is served from anywhere, and by as many
    // threads: those that wait may hold `LongWaits::MOST` of them.
    if !rest.is_empty() {
        for _ in 0..THREADS {
            rings.push(ring(&rest, payload, None).map_err(NoRings::Setup)?);
        }
    }
    Ok(rings)
}

fn ring(queues: &[usize], payload: usize, cpu: Option<usize>) -> io::Result<Ring> {
    let slots: io::Result<Vec<_>> = queues
        .iter()
        .map(|queue| Ok((Slot::new(payload)?, u16::try_from(*queue).map_err(io::Error::other)?)))
        .collect();
    let entries = u32::try_from(queues.len().next_power_of_two()).map_err(io::Error::other)?;
    let uring: IoUring<Entry128, cqueue::Entry> = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_r_disabled()
        .build(entries)?;
    uring.submitter().register_restrictions(&mut [
        Restriction::register_op(ENABLE_RINGS),
        Restriction::sqe_op(opcode::UringCmd80::CODE),
    ])?;
    Ok(Ring::new(uring, slots?, cpu))
}

/// The processors of a list such as `0-3,8`.
fn cpus(path: &str) -> io::Result<Vec<usize>> {
    let text = std::fs::read_to_string(path)?;
    parse(text.trim())
        .ok_or_else(|| io::Error::other(format!("{path}: {:?} is no list of processors", text.trim())))
}

fn parse(list: &str) -> Option<Vec<usize>> {
    let mut found = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        // A bound for what stands in a file of the kernel: no kernel has more.
        if last > 1 << 16 {
            return None;
        }
        found.extend(first..=last);
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::parse;

    /// Lists of processors are read as the kernel writes them; anything else is none.
    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(parse("0"), Some(vec![0]));
        assert_eq!(parse("0-2,5,8-9"), Some(vec![0, 1, 2, 5, 8, 9]));
        assert_eq!(parse(""), None);
        assert_eq!(parse("0-99999999"), None);
    }
}
