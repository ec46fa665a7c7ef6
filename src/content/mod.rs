//! One encrypted file as a byte array: read, write, truncate, punch, seek.
//!
//! Every change passes `commit`, the one place where a journal will stand. Never sees a provider or a name.

use std::sync::Arc;

use crate::crypto::FileKeys;
use crate::format::layout::{BlockIndex, GroupIndex};
use crate::vault::LowerFile;

/// Why an operation on a file's content failed.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The lower filesystem.
    #[error("lower file: {0}")]
    Io(#[from] std::io::Error),
    /// A damaged or forged place, named.
    #[error("{0}")]
    Damaged(Fault),
    /// Beyond 16 TiB (EFBIG).
    #[error("beyond the longest file, 16 TiB")]
    TooLong,
}

/// One place in a lower file that does not hold what was written there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Block whose ciphertext does not open.
    #[error("block {}: authentication failed", .0.0)]
    Block(BlockIndex),
    /// Map page that does not verify.
    #[error("map page of group {}: {why}", group.0)]
    Page {
        /// Which.
        group: GroupIndex,
        /// In words.
        why: String,
    },
    /// Inline record that does not open.
    #[error("inline record: {0}")]
    Inline(String),
    /// The lower file is shorter than its authenticated length needs.
    #[error("cut: lower file has {found} bytes, its authenticated length needs {expected}")]
    Cut {
        /// Bytes there are.
        found: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// The lower file is longer than its authenticated length: a crash; readable, `check --repair` mends it.
    #[error("overlong: lower file has {found} bytes, its authenticated length needs {expected}")]
    Overlong {
        /// Bytes there are.
        found: u64,
        /// Bytes there should be.
        expected: u64,
    },
}

/// How the blocks of a file lie, for `inspect`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapReport {
    /// Authenticated length.
    pub plain_len: u64,
    /// Whether the file is one inline record.
    pub inline: bool,
    /// Groups that exist, with their count of sealed blocks.
    pub groups: Vec<(GroupIndex, usize)>,
}

/// An open encrypted file. All handles of one inode share one `File`; every method may be called at once from
/// any thread.
pub struct File {
    _private: (),
}

impl File {
    /// Writes the record of an empty file into an empty lower file.
    pub fn create(_lower: Box<dyn LowerFile>, _keys: Arc<FileKeys>) -> Result<Self, ContentError> {
        todo!()
    }

    /// Opens an existing lower file: reads and verifies its first page.
    pub fn open(_lower: Box<dyn LowerFile>, _keys: Arc<FileKeys>) -> Result<Self, ContentError> {
        todo!()
    }

    /// Puts a writable lower file in the place of one opened read-only.
    pub fn replace_lower(&self, _lower: Box<dyn LowerFile>) {
        todo!()
    }

    /// Authenticated length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a file, not a collection")]
    pub fn len(&self) -> u64 {
        todo!()
    }

    /// Reads into `buf` from `offset`; short only at the end of the file.
    pub fn read(&self, _offset: u64, _buf: &mut [u8]) -> Result<usize, ContentError> {
        todo!()
    }

    /// Writes all of `data` at `offset`, growing the file as needed.
    pub fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), ContentError> {
        todo!()
    }

    /// Truncates or extends (with a hole).
    pub fn set_len(&self, _len: u64) -> Result<(), ContentError> {
        todo!()
    }

    /// `fallocate`: reserves space; grows the file unless `keep_size`.
    pub fn allocate(&self, _offset: u64, _len: u64, _keep_size: bool) -> Result<(), ContentError> {
        todo!()
    }

    /// `fallocate` with PUNCH_HOLE: the range reads as zeros, its space is freed; the length stays.
    pub fn punch_hole(&self, _offset: u64, _len: u64) -> Result<(), ContentError> {
        todo!()
    }

    /// `fallocate` with ZERO_RANGE: the range reads as zeros and stays reserved; grows unless `keep_size`.
    pub fn zero_range(&self, _offset: u64, _len: u64, _keep_size: bool) -> Result<(), ContentError> {
        todo!()
    }

    /// SEEK_DATA: first offset from `offset` on that holds data; `None` is ENXIO.
    pub fn seek_data(&self, _offset: u64) -> Result<Option<u64>, ContentError> {
        todo!()
    }

    /// SEEK_HOLE: first offset from `offset` on in a hole (the end counts as one); `None` is ENXIO.
    pub fn seek_hole(&self, _offset: u64) -> Result<Option<u64>, ContentError> {
        todo!()
    }

    /// Makes everything written durable.
    pub fn sync(&self, _data_only: bool) -> Result<(), ContentError> {
        todo!()
    }

    /// Opens every page and block; calls `fault` for each place that does not hold what was written, `progress`
    /// with bytes done now and then; `progress` returning false stops. Gives the bytes read.
    pub fn verify(
        &self,
        _fault: &mut dyn FnMut(Fault),
        _progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<u64, ContentError> {
        todo!()
    }

    /// How the blocks lie.
    pub fn map(&self) -> Result<MapReport, ContentError> {
        todo!()
    }
}
