//! The file beside an entry with a long name that holds the encoded name. What it holds is for others to judge.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};

use super::file::LowerFile;
use super::{DiskFile, FreshFile, access, entry};

/// The longest sidecar that is read: a tag and 255 bytes of name fit well.
const MAX_SIDECAR: usize = 512;

/// Content of a sidecar.
pub fn read(dir: impl AsFd, name: &str) -> Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = DiskFile(rustix::fs::openat(dir, name, flags, Mode::empty())?.into());
    let mut content = vec![0; MAX_SIDECAR];
    let len = file.read_at(&mut content, 0).map_err(errno)?;
    content.truncate(len);
    Ok(content)
}

/// Writes a sidecar, durably: the entry that needs it comes next, and a name must never be lost to a power cut.
/// One that is there already with the same content stays. Gives whether it was written.
///
/// Its content is durable before it has its name. Its name comes before that of the entry, which is enough where the
/// lower filesystem brings names to disk in the order in which they were made; elsewhere the directory is synced.
pub fn write(
    dir: BorrowedFd<'_>,
    name: &str,
    content: &[u8],
    temporary: impl Fn() -> String,
) -> Result<bool> {
    let written = put(dir, name, content, temporary)?;
    if !keeps_order(dir)? {
        // Also for one that is there: who made it may have been killed in front of this line.
        rustix::fs::fsync(entry::open_dir_read(dir, false)?)?;
    }
    Ok(written)
}

/// Whether a crash leaves the changes of names up to some instant, and none behind it: the journals of ext4 and XFS,
/// and memory, which leaves nothing.
fn keeps_order(fs: impl AsFd) -> Result<bool> {
    const EXT4: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const TMPFS: u64 = 0x0102_1994;
    #[expect(clippy::cast_sign_loss, reason = "magic numbers; their type differs between architectures")]
    let kind = rustix::fs::fstatfs(fs)?.f_type as u64;
    Ok(matches!(kind, EXT4 | XFS | TMPFS))
}

fn put(dir: BorrowedFd<'_>, name: &str, content: &[u8], temporary: impl Fn() -> String) -> Result<bool> {
    match read(dir, name) {
        Ok(there) if there == content => return Ok(false),
        Ok(_) | Err(Errno::NOENT | Errno::LOOP) => {}
        Err(e) => return Err(e),
    }
    // Encrypted already, and needed by whoever lists the directory: everyone may read it.
    let fresh = FreshFile::make(dir, (0o644, 0), &temporary)?;
    access::chmod(&fresh.file().0, 0o644)?;
    fresh.file().write_at(&[IoSlice::new(content)], 0).map_err(errno)?;
    fresh.file().sync(true).map_err(errno)?;
    fresh.replace(name, temporary())?;
    Ok(true)
}

/// Removes a sidecar whose entry is gone.
pub fn remove(dir: impl AsFd, name: &str) {
    // A sidecar that stays is a leftover: it does not show, and goes with its directory.
    let _ = entry::unlink(dir, name);
}

/// The errno in an error of positioned I/O.
pub fn errno(e: std::io::Error) -> Errno {
    e.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sidecar is written once; a damaged one is mended by whoever makes the entry again.
    #[test]
    fn sidecars_are_written_and_mended() {
        let base = tempfile::tempdir().unwrap();
        let dir = std::fs::File::open(base.path()).unwrap();
        let temporary = || ".efs.tmp.s".to_owned();
        let put = |content: &[u8]| write(dir.as_fd(), "~x.n", content, temporary).unwrap();
        assert!(put(b"sealed"));
        assert!(!put(b"sealed"));
        std::fs::write(base.path().join("~x.n"), b"torn").unwrap();
        assert!(put(b"sealed"));
        assert_eq!(read(&dir, "~x.n").unwrap(), b"sealed");
        assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 1);
        remove(&dir, "~x.n");
        assert_eq!(read(&dir, "~x.n"), Err(Errno::NOENT));
    }
}
