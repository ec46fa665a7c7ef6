//! The file header: the wrapped data key, in the xattr `user.efs.key` of the lower file.
//!
//! Compact form, exactly 64 bytes (the most that ext4 keeps inside a 256-byte inode under this name):
//! ```text
//!    0  kind (1)             1 byte
//!    1  wrapping key index   1 byte     row of the volume config's table
//!    2  key version          u16 LE     version of the wrapping key
//!    4  file id              12 bytes   also the nonce of the wrap
//!   16  wrapped data key     48 bytes   32 + tag
//! ```
//! Blob form, for providers whose ciphertext is opaque and for several recipients:
//! ```text
//!    0  kind (2)             1 byte
//!    1  recipients           1 byte, 1..=8
//!    2  zero                 2 bytes
//!    4  file id              12 bytes
//!   16  per recipient: wrapping key index (1), zero (1), length u16 LE, blob
//! ```

use super::ids::FileId;

/// Name of the xattr that holds the header.
pub const HEADER_XATTR: &str = "user.efs.key";
/// Name of the xattr that holds a directory's id (16 bytes).
pub const DIR_XATTR: &str = "user.efs.dir";
/// Bytes of the compact form.
pub const COMPACT_LEN: usize = 64;
/// The longest header that is read: keeps within what filesystems hold in an xattr.
pub const MAX_HEADER: usize = 4096;
/// The most recipients of one file.
pub const MAX_RECIPIENTS: usize = 8;

/// A data key as a provider wrapped it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wrapped {
    /// Wrapped by a provider that takes our nonce (the file id): version of the wrapping key, 32 + 16 bytes.
    Compact {
        /// Version of the wrapping key's material.
        version: u16,
        /// Ciphertext and tag.
        bytes: [u8; 48],
    },
    /// A provider's opaque ciphertext (an AWS CiphertextBlob).
    Blob(Vec<u8>),
}

/// One wrapped copy of the data key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recipient {
    /// Row of the volume config's table of wrapping keys.
    pub key_index: u8,
    /// The copy.
    pub wrapped: Wrapped,
}

/// A decoded file header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileHeader {
    /// Identity of the file.
    pub file_id: FileId,
    /// Wrapped copies of the data key; any one opens the file. Compact form: exactly one, `Wrapped::Compact`.
    pub recipients: Vec<Recipient>,
}

/// Why bytes are no header.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// The bytes end early.
    #[error("file header: {0} bytes, shorter than its form needs")]
    Short(usize),
    /// Bytes behind the end.
    #[error("file header: {0} bytes more than its form has")]
    Trailing(usize),
    /// A form this build does not know.
    #[error("file header: kind {0} at byte 0, this build reads 1 and 2")]
    Kind(u8),
    /// A byte that must be zero is not.
    #[error("file header: reserved byte {0} is not zero")]
    Reserved(usize),
    /// No recipient, or more than 8.
    #[error("file header: {0} recipients at byte 1, expected 1 to {MAX_RECIPIENTS}")]
    Recipients(u8),
}

impl FileHeader {
    /// The xattr's value. Compact where the header has one compact recipient, else blob form.
    pub fn encode(&self) -> Vec<u8> {
        todo!()
    }

    /// Decodes an xattr's value.
    pub fn decode(_bytes: &[u8]) -> Result<Self, HeaderError> {
        todo!()
    }
}
