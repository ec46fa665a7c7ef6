//! A file of a snapshot as a lower file: read from the store as it is asked for, never changed.

use std::io::{self, IoSlice};
use std::sync::Arc;

use super::error::Result;
use super::repo::{ContentRef, Item, Reader};
use crate::vault::LowerFile;

/// See the module.
#[derive(Debug)]
pub struct StoredFile {
    reader: Arc<Reader>,
    content: ContentRef,
    /// Where each chunk begins, and where the last one ends.
    starts: Vec<u64>,
}

impl StoredFile {
    /// The content of a regular file.
    pub fn open(reader: &Arc<Reader>, item: &Item) -> Result<Self> {
        let mut starts = vec![0];
        let mut end = 0;
        for chunk in 0..item.content.chunks() {
            end += reader.chunk_len(&item.content, chunk)?;
            starts.push(end);
        }
        Ok(Self { reader: Arc::clone(reader), content: item.content.clone(), starts })
    }

    fn end(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }
}

fn refused<T>() -> io::Result<T> {
    Err(io::Error::from_raw_os_error(libc::EROFS))
}

impl LowerFile for StoredFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() && offset + (done as u64) < self.end() {
            let at = offset + done as u64;
            // The last chunk that begins at or before `at`; an empty one is never it.
            let chunk = self.starts.partition_point(|start| *start <= at) - 1;
            let bytes = self.reader.chunk(&self.content, chunk).map_err(io::Error::other)?;
            let from = usize::try_from(at - self.starts[chunk]).map_err(io::Error::other)?;
            let part = bytes.get(from..).unwrap_or_default();
            let len = part.len().min(buf.len() - done);
            if len == 0 {
                return Err(io::Error::other("a chunk is shorter than the index says"));
            }
            buf[done..done + len].copy_from_slice(&part[..len]);
            done += len;
        }
        Ok(done)
    }

    fn write_at(&self, _bufs: &[IoSlice<'_>], _offset: u64) -> io::Result<()> {
        refused()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.end())
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        refused()
    }

    fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        refused()
    }

    fn punch(&self, _offset: u64, _len: u64) -> io::Result<()> {
        refused()
    }

    fn sync(&self, _data_only: bool) -> io::Result<()> {
        Ok(())
    }
}
