//! How much of a file the page cache holds: proof that a cold read is one. An island of `unsafe`: two system calls
//! without a safe wrapper.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::bench::error::BenchError;

/// Number of cachestat(2), the same on every architecture that this program is built for; `libc` names it for few.
const CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range` of linux/mman.h.
#[repr(C)]
struct Range {
    off: u64,
    len: u64,
}

/// `struct cachestat` of linux/mman.h, in pages.
#[repr(C)]
#[derive(Default)]
struct Stat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Pages of `path` in the page cache. Neither way reads the file or fills the cache.
pub(super) fn pages(path: &Path) -> Result<u64, BenchError> {
    let file = File::open(path).map_err(BenchError::io(path))?;
    match by_cachestat(&file) {
        // Before Linux 6.5 there is no such call; some filesystems refuse it.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM)) => {
            by_mincore(&file)
        }
        other => other,
    }
    .map_err(BenchError::io(path))
}

/// cachestat(2) over the whole file.
#[allow(unsafe_code)]
fn by_cachestat(file: &File) -> io::Result<u64> {
    // A length of 0 means up to the end.
    let range = Range { off: 0, len: 0 };
    let mut stat = Stat::default();
    // SAFETY: the descriptor is open; both structures are live, initialised, and laid out as the kernel's.
    let done = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut stat, 0_u32) };
    if done == 0 { Ok(stat.cached) } else { Err(io::Error::last_os_error()) }
}

/// mincore(2) over a mapping of the whole file.
#[allow(unsafe_code)]
fn by_mincore(file: &File) -> io::Result<u64> {
    let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    if len == 0 {
        return Ok(0);
    }
    // SAFETY: sysconf reads a constant of this process.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).map_err(io::Error::other)?;
    let mut present = vec![0_u8; len.div_ceil(page.max(1))];
    // SAFETY: a new mapping at an address of the kernel's choice; nothing dereferences it, so that a file that
    // shrinks meanwhile raises no signal.
    let address = unsafe { mmap(ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, 0) }?;
    // SAFETY: `address` and `len` are the mapping just made; `present` has a byte for each page of it.
    let looked = match unsafe { libc::mincore(address, len, present.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: the mapping just made; no reference into it exists.
    unsafe { munmap(address, len) }?;
    looked?;
    Ok(present.iter().filter(|p| **p & 1 != 0).count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// What was just written is in the cache, by both ways of looking; an empty file has no pages.
    #[test]
    fn written_pages_are_resident() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(pages(file.path()).unwrap(), 0);
        file.write_all(&[1; 5 * 4096 + 1]).unwrap();
        let readable = File::open(file.path()).unwrap();
        assert_eq!(by_mincore(&readable).unwrap(), 6);
        match by_cachestat(&readable) {
            Ok(pages) => assert_eq!(pages, 6),
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ENOSYS)),
        }
    }

    /// Both ways see that dropped pages are gone: a check that always says "cold" would be worthless, and so would one
    /// that never does.
    #[test]
    fn dropped_pages_are_not_resident() {
        // Not on tmpfs, whose pages are the file.
        let Ok(dir) = tempfile::tempdir_in("/var/tmp") else { return };
        let path = dir.path().join("file");
        std::fs::write(&path, vec![1; 64 * 4096]).unwrap();
        let file = File::open(&path).unwrap();
        if super::super::cold::is_memory(&path).unwrap() {
            return;
        }
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        assert_eq!((pages(&path).unwrap(), by_mincore(&file).unwrap()), (0, 0));
    }
}
