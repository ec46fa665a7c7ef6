//! A descriptor of `/dev/fuse` that belongs to a mount: requests are read from it, replies written to it.

#![expect(unsafe_code, reason = "the ioctl that makes a second descriptor of one mount")]

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};
use zerocopy::IntoBytes;

use super::abi::OutHeader;

/// `FUSE_DEV_IOC_CLONE` of linux/fuse.h: the descriptor joins the mount of another one.
const CLONE: Opcode = opcode::read::<u32>(229, 0);

/// An open device.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Opens the device, which belongs to no mount yet.
pub(super) fn open_device() -> rustix::io::Result<OwnedFd> {
    rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

impl Channel {
    /// Of a mounted device.
    pub(super) fn new(device: OwnedFd) -> Self {
        Self(device)
    }

    /// Another descriptor of the same mount: its reader takes its own lock and its replies find their requests in a
    /// shorter list.
    pub(super) fn another(&self) -> io::Result<Self> {
        let device = open_device()?;
        let ours = u32::try_from(self.0.as_raw_fd()).map_err(io::Error::other)?;
        // SAFETY: FUSE_DEV_IOC_CLONE reads one u32, a descriptor number, from the address it is given, which `Setter`
        // makes the address of a value that lives through the call; it writes nothing.
        unsafe { ioctl(&device, Setter::<CLONE, u32>::new(ours)) }?;
        Ok(Self(device))
    }

    /// The next request; its length in `buf`. `None`: the mount is gone.
    pub(super) fn receive(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match rustix::io::read(&self.0, &mut *buf) {
                Ok(len) => return Ok(Some(len)),
                // Interrupted: this call, or the caller before his request was taken.
                Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => {}
                // Unmounted, or the connection was aborted.
                Err(Errno::NODEV | Errno::CONNABORTED | Errno::NOTCONN) => return Ok(None),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Sends a reply that stands in one piece, header first.
    pub(super) fn send(&self, reply: &[u8]) -> rustix::io::Result<()> {
        rustix::io::write(&self.0, reply).map(drop)
    }

    /// Sends a reply (or, with `unique` 0, a notification) of a few bytes.
    pub(super) fn send_small(&self, unique: u64, error: i32, data: &[u8]) -> rustix::io::Result<()> {
        let len = u32::try_from(size_of::<OutHeader>() + data.len()).map_err(|_| Errno::MSGSIZE)?;
        let header = OutHeader { len, error, unique };
        rustix::io::writev(&self.0, &[IoSlice::new(header.as_bytes()), IoSlice::new(data)]).map(drop)
    }
}
