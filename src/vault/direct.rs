//! A lower file read and written past the lower page cache (`O_DIRECT`) wherever memory, offset and length are whole
//! pages, which blocks in an aligned buffer are. Everything else (map pages, inline records, a last block that is
//! shorter) goes through the cache; Linux keeps the two views of a file together.

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::file::{DiskFile, LowerFile};
use super::proc_path;

/// What every disk takes: the logical block size is 512 or 4,096 bytes.
const ALIGN: usize = 4096;

/// A lower file with a second descriptor for whole pages.
#[derive(Debug)]
pub struct DirectFile {
    cached: Arc<DiskFile>,
    direct: DiskFile,
}

impl DirectFile {
    /// Opens `file` once more. EINVAL where the lower filesystem has no `O_DIRECT`.
    pub fn over(file: &Arc<DiskFile>) -> rustix::io::Result<Self> {
        let mode = rustix::fs::fcntl_getfl(&file.0)? & OFlags::RWMODE;
        let flags = mode | OFlags::DIRECT | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let direct = rustix::fs::open(proc_path(&file.0), flags, Mode::empty())?;
        Ok(Self { cached: Arc::clone(file), direct: DiskFile(File::from(direct)) })
    }

    fn pick(&self, whole: bool) -> &DiskFile {
        if whole { &self.direct } else { &self.cached }
    }
}

/// Whether a piece of memory and its offset are whole pages.
fn is_whole(bytes: &[u8], offset: u64) -> bool {
    let aligned = |n: usize| n.is_multiple_of(ALIGN);
    !bytes.is_empty()
        && aligned(bytes.as_ptr().addr())
        && aligned(bytes.len())
        && offset.is_multiple_of(ALIGN as u64)
}

impl LowerFile for DirectFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.pick(is_whole(buf, offset)).read_at(buf, offset)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.pick(bufs.iter().all(|bytes| is_whole(bytes, offset))).write_at(bufs, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.cached.as_ref().len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.cached.as_ref().set_len(len)
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        self.cached.as_ref().reserve(offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.cached.as_ref().punch(offset, len)
    }

    fn sync(&self, data_only: bool) -> io::Result<()> {
        self.cached.as_ref().sync(data_only)
    }

    fn modified(&self) -> io::Result<Option<(i64, u32)>> {
        self.cached.as_ref().modified()
    }

    fn set_modified(&self, time: (i64, u32)) -> io::Result<()> {
        self.cached.as_ref().set_modified(time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What goes past the cache and what goes through it are one file, and whole pages leave nothing in the cache.
    #[test]
    fn both_views_are_one_file() {
        let temp = tempfile::tempfile().unwrap();
        let cached = Arc::new(DiskFile(temp));
        let file = match DirectFile::over(&cached) {
            Ok(file) => file,
            Err(e) => return eprintln!("skipped: no O_DIRECT below the temporary directory: {e}"),
        };
        let mut room = vec![7; 5 * ALIGN];
        let skip = room.as_ptr().align_offset(ALIGN);
        let pages = &mut room[skip..skip + 4 * ALIGN];
        assert!(
            is_whole(pages, 0)
                && !is_whole(pages, 512)
                && !is_whole(&pages[1..], 0)
                && !is_whole(&pages[..9], 0)
        );
        file.write_at(&[IoSlice::new(pages)], ALIGN as u64).unwrap();
        file.write_at(&[IoSlice::new(b"short")], 2 * ALIGN as u64 + 5).unwrap();
        assert_eq!(file.len().unwrap(), 5 * ALIGN as u64);
        pages.fill(0);
        assert_eq!(file.read_at(pages, ALIGN as u64).unwrap(), 4 * ALIGN);
        assert_eq!(&pages[ALIGN..ALIGN + 12], b"\x07\x07\x07\x07\x07short\x07\x07");
        assert!(pages[..ALIGN].iter().all(|b| *b == 7));
        let mut odd = [0; 3];
        assert_eq!(file.read_at(&mut odd, 2 * ALIGN as u64 + 5).unwrap(), 3);
        assert_eq!(&odd, b"sho");
    }
}
