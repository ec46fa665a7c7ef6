//! A lower file whose reads and syncs are watched on their way.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::{self, IoSlice};

use envelopefs::vault::LowerFile;

/// What goes on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    /// A read, from this offset on.
    Read(u64),
    /// A sync.
    Sync,
}

/// Another lower file, behind someone who sees each call first, and may delay or refuse it.
pub(crate) struct Watched<L, W>(pub(crate) L, pub(crate) W);

impl<L: LowerFile, W: Fn(Call) -> io::Result<()> + Send + Sync> LowerFile for Watched<L, W> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        (self.1)(Call::Read(offset))?;
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.0.write_at(bufs, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.reserve(offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.punch(offset, len)
    }

    fn sync(&self, data_only: bool) -> io::Result<()> {
        (self.1)(Call::Sync)?;
        self.0.sync(data_only)
    }
}
