//! One lower file as positioned reads and writes.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;

use super::entry::{self, NewTime};

/// What `content` needs of a lower file. `DiskFile` is the real one; tests bring stores that fail or forget.
#[expect(clippy::len_without_is_empty, reason = "a file, not a collection")]
pub trait LowerFile: Send + Sync {
    /// Reads until `buf` is full or the file ends; gives the bytes read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bufs` one behind the other, in one call where the system takes them.
    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Length of the lower file.
    fn len(&self) -> io::Result<u64>;
    /// Cuts or extends (with a hole) the lower file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Reserves space without changing the length.
    fn reserve(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Frees the space of a range without changing the length.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes content (and, unless `data_only`, all attributes) durable.
    fn sync(&self, data_only: bool) -> io::Result<()>;
    /// When the content changed last, to be put back after a write that is not the user's. `None`: not kept.
    fn modified(&self) -> io::Result<Option<(i64, u32)>> {
        Ok(None)
    }
    /// Sets the time of the last change.
    fn set_modified(&self, _time: (i64, u32)) -> io::Result<()> {
        Ok(())
    }
}

/// A lower file on a real filesystem.
#[derive(Debug)]
pub struct DiskFile(pub File);

impl LowerFile for DiskFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|r| !r.is_empty()) {
            match self.0.read_at(rest, offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut bufs = bufs.to_vec();
        let mut left = &mut bufs[..];
        let mut at = offset;
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match rustix::io::pwritev(&self.0, left, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    at += n as u64;
                    IoSlice::advance_slices(&mut left, n);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.0, FallocateFlags::KEEP_SIZE, offset, len)?)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.0, flags, offset, len)?)
    }

    fn sync(&self, data_only: bool) -> io::Result<()> {
        if data_only { self.0.sync_data() } else { self.0.sync_all() }
    }

    fn modified(&self) -> io::Result<Option<(i64, u32)>> {
        Ok(Some(super::stat::stat_fd(&self.0)?.mtime))
    }

    fn set_modified(&self, (seconds, nanos): (i64, u32)) -> io::Result<()> {
        Ok(entry::set_times(&self.0, NewTime::Keep, NewTime::At(seconds, nanos))?)
    }
}
