//! Sealing and opening the content of one file: blocks, inline records, map pages.

use super::DataKey;
use crate::format::ids::FileId;
use crate::format::inline::InlineHead;
use crate::format::layout::{BlockIndex, GroupIndex, MAP_PAGE};
use crate::format::map::{Entry, MapError, MapPage};

/// Ciphertext that its key did not make, or not for this place.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
#[error("authentication failed: the ciphertext was changed, moved, or belongs to another file")]
pub struct Tampered;

/// Why a map page is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PageError {
    /// The authenticator does not match.
    #[error(transparent)]
    Tampered(#[from] Tampered),
    /// Authentic, yet not a page of this place: a bug or another version's page.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// The keys of one file, derived from its data key with the file id as salt.
pub struct FileKeys {
    _private: (),
}

impl std::fmt::Debug for FileKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FileKeys(..)")
    }
}

impl FileKeys {
    /// Derives block key and map key.
    pub fn derive(_data_key: &DataKey, _file_id: &FileId) -> Self {
        todo!()
    }

    /// Seals a block in place. `nonce` must be fresh and random. AD binds the block's index; the tag its length.
    pub fn seal_block(&self, _index: BlockIndex, _nonce: [u8; 12], _buf: &mut [u8]) -> Entry {
        todo!()
    }

    /// Opens a block in place. On failure `buf` is zeroed. `entry` must not be a hole.
    pub fn open_block(&self, _index: BlockIndex, _entry: &Entry, _buf: &mut [u8]) -> Result<(), Tampered> {
        todo!()
    }

    /// Seals an inline file: the whole lower file, head and ciphertext. `plain` has at most 4064 bytes.
    pub fn seal_inline(&self, _plain: &[u8]) -> Vec<u8> {
        todo!()
    }

    /// Opens the ciphertext behind a decoded head in place (`buf.len()` must be `head.plain_len`).
    pub fn open_inline(&self, _head: &InlineHead, _buf: &mut [u8]) -> Result<(), Tampered> {
        todo!()
    }

    /// Encodes a map page and signs it with a fresh nonce.
    pub fn seal_page(&self, _page: &MapPage) -> Box<[u8; MAP_PAGE]> {
        todo!()
    }

    /// Verifies and decodes a map page read at `group`.
    pub fn open_page(&self, _bytes: &[u8; MAP_PAGE], _group: GroupIndex) -> Result<MapPage, PageError> {
        todo!()
    }
}
