//! Handles of regular files: open, read, write, space, seek, sync.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::attr::plain_len;
use super::make::writes;
use super::opened::Held;
use super::{Fs, Ino, Result};

/// Bytes copied at once by `copy_file_range`.
const COPY_CHUNK: u64 = 1 << 20;
/// Bytes that one `copy_file_range` copies at most: the caller asks again, and can be interrupted between.
const COPY_MOST: u64 = 16 << 20;

impl Fs {
    /// Opens a regular file; gives its handle.
    pub fn open_file(&self, ino: Ino, flags: i32) -> Result<u64> {
        let flags = OFlags::from_bits_retain(flags.cast_unsigned());
        let write = writes(flags);
        if write {
            self.changeable()?;
        }
        let held = self.hold(&self.inode(ino)?, write)?;
        if write && flags.contains(OFlags::TRUNC) {
            held.file.content.set_len(0)?;
        }
        Ok(self.files.put(held))
    }

    /// The open file of a handle. What is known of its content is no older than a second, where others may change it.
    fn opened(&self, fh: u64) -> Result<Arc<Held>> {
        let held = self.files.get(fh)?;
        if self.options.shared {
            self.again(&held.inode, || held.file.look_at_times())?;
        }
        Ok(held)
    }

    /// Reads; short only at the end.
    pub fn read(&self, fh: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let held = self.opened(fh)?;
        self.again(&held.inode, || Ok(held.file.content.read(offset, buf)?))
    }

    /// Writes all of `data`. `kill_priv`: drop set-id bits and capabilities (FUSE_WRITE_KILL_SUIDGID).
    pub fn write(&self, fh: u64, offset: u64, data: &[u8], kill_priv: bool) -> Result<()> {
        let held = self.opened(fh)?;
        let file = held.writable()?;
        if kill_priv && !file.unprivileged.swap(true, Ordering::AcqRel) {
            self.drop_privileges(&held.inode, &file.lower().0).inspect_err(|_| {
                file.unprivileged.store(false, Ordering::Release);
            })?;
        }
        Ok(file.content.write(offset, data)?)
    }

    /// Writes all of `data` behind the end, wherever that is by now.
    pub fn append(&self, fh: u64, data: &[u8], kill_priv: bool) -> Result<()> {
        let end = self.opened(fh)?.file.content.len();
        self.write(fh, end, data, kill_priv)
    }

    /// The last descriptor of a handle was closed.
    pub fn release(&self, fh: u64) {
        if self.options.shared
            && let Ok(held) = self.files.get(fh)
        {
            self.release_locks(held.inode.ino, fh);
        }
        self.files.remove(fh);
    }

    /// Makes a file durable.
    pub fn fsync(&self, fh: u64, data_only: bool) -> Result<()> {
        Ok(self.files.get(fh)?.file.content.sync(data_only)?)
    }

    /// Where the lower file was longer than its authenticated length when it was opened (a crash, or an attack): the
    /// length that `getattr` and `lookup` gave before, and the true one.
    pub fn misled(&self, fh: u64) -> Option<(u64, u64)> {
        let held = self.files.get(fh).ok()?;
        let found = held.file.content.found_overlong()?;
        Some((plain_len(found), held.file.content.len()))
    }

    /// Whether some handle of the inode is open for writing (the kernel may hold dirty pages of it).
    pub fn has_writers(&self, ino: Ino) -> bool {
        self.table.get(ino).is_some_and(|i| i.writers.load(Ordering::Acquire) > 0)
    }

    /// `fallocate` with its flags; those not served give EOPNOTSUPP.
    pub fn fallocate(&self, fh: u64, offset: u64, len: u64, mode: i32) -> Result<()> {
        let held = self.opened(fh)?;
        let content = &held.writable()?.content;
        let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        let keep_size = mode.contains(FallocateFlags::KEEP_SIZE);
        if len == 0 {
            return Err(Errno::INVAL.into());
        }
        match mode - FallocateFlags::KEEP_SIZE {
            m if m.is_empty() => content.allocate(offset, len, keep_size)?,
            FallocateFlags::PUNCH_HOLE if keep_size => content.punch_hole(offset, len)?,
            FallocateFlags::ZERO_RANGE => content.zero_range(offset, len, keep_size)?,
            _ => return Err(Errno::OPNOTSUPP.into()),
        }
        Ok(())
    }

    /// SEEK_DATA or SEEK_HOLE.
    pub fn lseek(&self, fh: u64, offset: u64, whence: i32) -> Result<u64> {
        let held = self.opened(fh)?;
        let content = &held.file.content;
        let found = match whence {
            libc::SEEK_DATA => content.seek_data(offset)?,
            libc::SEEK_HOLE => content.seek_hole(offset)?,
            _ => return Err(Errno::INVAL.into()),
        };
        Ok(found.ok_or(Errno::NXIO)?)
    }

    /// Copies within the vault; gives the bytes copied, which may be fewer than asked for.
    pub fn copy_file_range(&self, from: u64, from_off: u64, to: u64, to_off: u64, len: u64) -> Result<u64> {
        let (source, target) = (self.opened(from)?, self.opened(to)?);
        let ends = (from_off.checked_add(len), to_off.checked_add(len));
        let (Some(from_end), Some(to_end)) = ends else { return Err(Errno::OVERFLOW.into()) };
        if Arc::ptr_eq(&source.inode, &target.inode) && from_off < to_end && to_off < from_end {
            return Err(Errno::INVAL.into());
        }
        let len = len.min(COPY_MOST);
        let mut buf = vec![0; usize::try_from(len.min(COPY_CHUNK)).unwrap_or(0)];
        let mut done = 0;
        while done < len {
            let most = usize::try_from(len - done).unwrap_or(usize::MAX).min(buf.len());
            match copy_chunk((&source, from_off + done), (&target, to_off + done), &mut buf[..most]) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
        }
        Ok(done)
    }
}

fn copy_chunk(from: (&Held, u64), to: (&Held, u64), buf: &mut [u8]) -> Result<u64> {
    let n = from.0.file.content.read(from.1, buf)?;
    let target = &to.0.writable()?.content;
    if let Some(data) = buf.get(..n).filter(|d| !d.is_empty()) {
        target.write(to.1, data)?;
    }
    Ok(n as u64)
}
