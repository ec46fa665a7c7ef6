//! Listing a lower directory: entries in the lower order with the lower's own cookies, which stay valid.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{RawDir, SeekFrom};
use rustix::io::{Errno, Result};

/// Bytes asked of `getdents64` at once: some 400 encoded names.
const BUFFER: usize = 32 << 10;

/// One lower entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawEntry {
    /// Lower inode number.
    pub ino: u64,
    /// `S_IFMT` bits; 0 where the lower filesystem does not tell.
    pub kind: u32,
    /// Where to go on behind this entry.
    pub next: u64,
    /// Lower name.
    pub name: Vec<u8>,
}

/// An open lower directory and what was read ahead of it.
#[derive(Debug)]
pub struct Listing {
    fd: OwnedFd,
    ahead: VecDeque<RawEntry>,
    /// Cookie of the first entry in `ahead`, or of the next read where that is empty.
    at: u64,
}

impl Listing {
    /// Lists the directory behind `fd`, which was opened for reading and is used for nothing else.
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd, ahead: VecDeque::new(), at: 0 }
    }

    /// The directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Goes to a cookie; to 0 always reads anew.
    pub fn seek(&mut self, cookie: u64) -> Result<()> {
        if cookie == self.at && cookie != 0 {
            return Ok(());
        }
        self.ahead.clear();
        rustix::fs::seek(&self.fd, SeekFrom::Start(cookie))?;
        self.at = cookie;
        Ok(())
    }

    /// The next entry, not yet consumed; `None` at the end, also of a directory that was removed.
    pub fn peek(&mut self) -> Result<Option<&RawEntry>> {
        if self.ahead.is_empty() {
            self.fill()?;
        }
        Ok(self.ahead.front())
    }

    /// Consumes the entry that `peek` showed.
    pub fn advance(&mut self) {
        if let Some(entry) = self.ahead.pop_front() {
            self.at = entry.next;
        }
    }

    fn fill(&mut self) -> Result<()> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); BUFFER];
        let mut raw = RawDir::new(&self.fd, &mut buffer);
        loop {
            match raw.next() {
                None => return Ok(()),
                Some(Err(Errno::NOENT)) => return Ok(()),
                Some(Err(e)) => return Err(e),
                Some(Ok(entry)) => self.ahead.push_back(RawEntry {
                    ino: entry.ino(),
                    kind: kind_bits(entry.file_type()),
                    next: entry.next_entry_cookie(),
                    name: entry.file_name().to_bytes().to_vec(),
                }),
            }
            if raw.is_buffer_empty() {
                return Ok(());
            }
        }
    }
}

fn kind_bits(kind: rustix::fs::FileType) -> u32 {
    match kind {
        rustix::fs::FileType::Unknown => 0,
        known => known.as_raw_mode(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::entry;

    /// Every cookie leads to the entries behind it, again and again; the start reads anew.
    #[test]
    fn cookies_lead_back() {
        let base = tempfile::tempdir().unwrap();
        for n in 0..1000 {
            std::fs::write(base.path().join(format!("{n}")), b"").unwrap();
        }
        let dir = std::fs::File::open(base.path()).unwrap();
        let mut listing = Listing::new(entry::open_dir_read(&dir, false).unwrap());
        let mut all = Vec::new();
        while let Some(entry) = listing.peek().unwrap().cloned() {
            listing.advance();
            all.push(entry);
        }
        assert_eq!(all.len(), 1002);
        for at in [0, 1, 500, 1000] {
            listing.seek(all[at].next).unwrap();
            assert_eq!(listing.peek().unwrap(), all.get(at + 1));
        }
        listing.seek(0).unwrap();
        assert_eq!(listing.peek().unwrap(), all.first());
        std::fs::remove_dir_all(base.path()).unwrap();
        listing.seek(0).unwrap();
        assert_eq!(listing.peek().unwrap(), None);
    }
}
