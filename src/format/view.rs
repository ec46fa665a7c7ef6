//! The ciphertext view: what a lower object has in its inode stands in front of its content, so that a tool that keeps
//! nothing but bytes keeps all of it.
//!
//! A file of the view is a *frame* and then the lower file's bytes. All integers little-endian.
//! ```text
//!    0  magic "EFSVIEW1"      8 bytes
//!    8  frame length          u32        a multiple of 4096, at most 128 KiB
//!   12  digest                16 bytes   SHA-256 of the frame with these bytes zero, its first half
//!   28  mode                  u32        st_mode: type and permissions
//!   32  owner, group          u32, u32
//!   40  modified              i64 seconds, u32 nanoseconds
//!   52  device number         u32        of a device node
//!   56  inode                 u64        the same in all files that are hard links of one; 0: it has one name
//!   64  content length        u64        bytes behind the frame
//!   72  xattrs                u16        their number, then for each:
//!       +0  name length       u16
//!       +2  value length      u32
//!       +6  name, value
//!  ...  zeros
//! ```
//! The content of a symlink is its target; of a directory (file `.efs.dir` in it), a FIFO, socket or device node nothing.

use sha2::{Digest, Sha256};

/// The file of the view that holds a directory's frame.
pub const DIR_FILE: &str = ".efs.dir";
/// Frames are so many bytes long, or a multiple: what lies behind keeps its alignment.
pub const FRAME: usize = 4096;
/// The longest frame: an inode's xattrs on Linux, and room.
pub const MAX_FRAME: usize = 128 << 10;
const MAGIC: &[u8; 8] = b"EFSVIEW1";
const DIGEST_AT: usize = 12;
const DIGEST: usize = 16;
const FIXED: usize = 74;

/// What a frame says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// `st_mode`.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Last change of content.
    pub modified: (i64, u32),
    /// Device number of a device node, else 0.
    pub rdev: u32,
    /// The lower inode of an object with several names, else 0.
    pub inode: u64,
    /// Bytes behind the frame.
    pub content: u64,
    /// Xattrs by name.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// Why bytes are no frame.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// Another file, or one that is cut.
    #[error("no frame of the ciphertext view at its beginning")]
    NoFrame,
    /// Changed on the way.
    #[error("frame: its digest is not that of its bytes: it was changed on the way")]
    Digest,
    /// A length that does not fit.
    #[error("frame: byte {0} does not fit")]
    Shape(usize),
    /// More than a frame holds.
    #[error("frame: {0} bytes of xattrs, more than fit")]
    Long(usize),
}

/// Length of the frame for these xattrs.
pub fn frame_len(xattrs: &[(String, Vec<u8>)]) -> usize {
    let all: usize = xattrs.iter().map(|(name, value)| 6 + name.len() + value.len()).sum();
    (FIXED + all).next_multiple_of(FRAME)
}

impl Frame {
    /// The frame's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let len = frame_len(&self.xattrs);
        let (Ok(stored), Ok(count)) = (u32::try_from(len), u16::try_from(self.xattrs.len())) else {
            return Err(FrameError::Long(len));
        };
        if len > MAX_FRAME {
            return Err(FrameError::Long(len));
        }
        let mut out = Vec::with_capacity(len);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&stored.to_le_bytes());
        out.extend_from_slice(&[0; DIGEST]);
        for part in [self.mode, self.owner.0, self.owner.1] {
            out.extend_from_slice(&part.to_le_bytes());
        }
        out.extend_from_slice(&self.modified.0.to_le_bytes());
        out.extend_from_slice(&self.modified.1.to_le_bytes());
        out.extend_from_slice(&self.rdev.to_le_bytes());
        out.extend_from_slice(&self.inode.to_le_bytes());
        out.extend_from_slice(&self.content.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        for (name, value) in &self.xattrs {
            let (Ok(names), Ok(values)) = (u16::try_from(name.len()), u32::try_from(value.len())) else {
                return Err(FrameError::Long(len));
            };
            out.extend_from_slice(&names.to_le_bytes());
            out.extend_from_slice(&values.to_le_bytes());
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(value);
        }
        out.resize(len, 0);
        let digest = digest(&out);
        if let Some(place) = out.get_mut(DIGEST_AT..DIGEST_AT + DIGEST) {
            place.copy_from_slice(&digest);
        }
        Ok(out)
    }

    /// Length of the frame that a file begins with, from its first bytes.
    pub fn len_of(start: &[u8]) -> Result<usize, FrameError> {
        let mut at = Cursor { bytes: start, at: 0 };
        if at.array::<8>().ok() != Some(*MAGIC) {
            return Err(FrameError::NoFrame);
        }
        let len = usize::try_from(u32::from_le_bytes(at.array()?)).unwrap_or(usize::MAX);
        let fits = (FRAME..=MAX_FRAME).contains(&len) && len.is_multiple_of(FRAME);
        if fits { Ok(len) } else { Err(FrameError::Shape(8)) }
    }

    /// Decodes a whole frame.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let len = Self::len_of(bytes)?;
        let bytes = bytes.get(..len).ok_or(FrameError::NoFrame)?;
        let mut at = Cursor { bytes, at: DIGEST_AT };
        let told: [u8; DIGEST] = at.array()?;
        if told != digest(bytes) {
            return Err(FrameError::Digest);
        }
        let mode = u32::from_le_bytes(at.array()?);
        let owner = (u32::from_le_bytes(at.array()?), u32::from_le_bytes(at.array()?));
        let modified = (i64::from_le_bytes(at.array()?), u32::from_le_bytes(at.array()?));
        let rdev = u32::from_le_bytes(at.array()?);
        let inode = u64::from_le_bytes(at.array()?);
        let content = u64::from_le_bytes(at.array()?);
        let count = u16::from_le_bytes(at.array()?);
        let mut xattrs = Vec::new();
        for _ in 0..count {
            let names = usize::from(u16::from_le_bytes(at.array()?));
            let values = usize::try_from(u32::from_le_bytes(at.array()?)).unwrap_or(usize::MAX);
            let here = at.at;
            let name = std::str::from_utf8(at.take(names)?).map_err(|_| FrameError::Shape(here))?;
            xattrs.push((name.to_owned(), at.take(values)?.to_vec()));
        }
        let rest = bytes.get(at.at..).unwrap_or_default();
        if rest.iter().any(|b| *b != 0) || frame_len(&xattrs) != len {
            return Err(FrameError::Shape(at.at));
        }
        Ok(Self { mode, owner, modified, rdev, inode, content, xattrs })
    }
}

/// The first half of the SHA-256 of a frame whose digest counts as zeros.
fn digest(frame: &[u8]) -> [u8; DIGEST] {
    let mut hash = Sha256::new();
    hash.update(frame.get(..DIGEST_AT).unwrap_or_default());
    hash.update([0; DIGEST]);
    hash.update(frame.get(DIGEST_AT + DIGEST..).unwrap_or_default());
    let mut out = [0; DIGEST];
    out.iter_mut().zip(hash.finalize()).for_each(|(to, from)| *to = from);
    out
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], FrameError> {
        let end = self.at.checked_add(len).ok_or(FrameError::Shape(self.at))?;
        let part = self.bytes.get(self.at..end).ok_or(FrameError::Shape(self.at))?;
        self.at = end;
        Ok(part)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let at = self.at;
        self.take(N)?.try_into().map_err(|_| FrameError::Shape(at))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(xattrs: Vec<(String, Vec<u8>)>) -> Frame {
        Frame {
            mode: 0o100_644,
            owner: (1000, 100),
            modified: (-5, 999_999_999),
            rdev: 0x801,
            inode: 77,
            content: 528_384,
            xattrs,
        }
    }

    #[test]
    fn a_frame_is_where_the_format_says() {
        let bytes = frame(vec![("user.efs.key".into(), vec![9; 64])]).encode().unwrap();
        assert_eq!(bytes.len(), FRAME);
        assert_eq!(&bytes[..12], b"EFSVIEW1\0\x10\0\0");
        assert_eq!(bytes[28..32], 0o100_644_u32.to_le_bytes());
        assert_eq!(bytes[64..72], 528_384_u64.to_le_bytes());
        assert_eq!(&bytes[72..92], b"\x01\0\x0c\0\x40\0\0\0user.efs.key");
        assert_eq!(bytes[92..156], [9; 64]);
    }

    /// Whatever byte is changed on the way, the frame is refused.
    #[test]
    fn a_changed_frame_is_refused() {
        let bytes = frame(vec![("user.efs.key".into(), vec![9; 64])]).encode().unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(Frame::decode(&changed).is_err(), "byte {at}");
        }
        for len in [0, 7, 11, 100, FRAME - 1] {
            assert!(Frame::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn many_xattrs_make_a_longer_frame_up_to_a_bound() {
        let many = |n: usize| frame(vec![("user.efs.x.a".into(), vec![1; n])]);
        assert_eq!(many(4100).encode().unwrap().len(), 2 * FRAME);
        assert_eq!(Frame::decode(&many(4100).encode().unwrap()), Ok(many(4100)));
        assert!(matches!(many(MAX_FRAME).encode(), Err(FrameError::Long(_))));
    }

    proptest! {
        #[test]
        fn frames_survive_encoding(
            xattrs in proptest::collection::vec(("[a-z.]{1,40}", proptest::collection::vec(any::<u8>(), 0..200)), 0..30),
        ) {
            let frame = frame(xattrs);
            prop_assert_eq!(Frame::decode(&frame.encode().unwrap()), Ok(frame));
        }

        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let _ = Frame::decode(&bytes);
            if let Some(start) = bytes.get_mut(..12) {
                start.copy_from_slice(b"EFSVIEW1\0\x10\0\0");
            }
            let _ = Frame::decode(&bytes);
        }
    }
}
