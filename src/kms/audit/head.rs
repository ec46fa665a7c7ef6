//! The head: which line is the last one. It stands in a file of its own, so that lines removed at the end show.
//!
//! 152 bytes, little-endian: the last line (number, authenticator), its file and that file's length, the last line
//! that is known to be on the disk, the first line that is kept and its predecessor, and an authenticator over all.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::chain::Link;
use super::error::AuditError;
use crate::crypto::MacKey;

const PURPOSE: &[u8] = b"envelopefs/kms/v1/audit-head\0";
const LINK: usize = 8 + 32;
const BODY: usize = LINK + 8 + 8 + 8 + LINK + 8;
const SIZE: usize = BODY + 32;

/// How far the log goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    /// The last line.
    pub(super) last: Link,
    /// Number of the file that it stands in.
    pub(super) file: u64,
    /// Length of that file.
    pub(super) len: u64,
    /// Number of the last line that was synced: a power cut takes none up to it.
    pub(super) synced: u64,
    /// The line before the first one that is kept.
    pub(super) before: Link,
    /// Number of the first file that is kept.
    pub(super) first_file: u64,
}

impl Head {
    /// Of an empty log.
    pub(super) const NEW: Self =
        Self { last: Link::START, file: 1, len: 0, synced: 0, before: Link::START, first_file: 1 };

    fn encode(&self, key: &MacKey) -> [u8; SIZE] {
        let mut bytes = Vec::with_capacity(SIZE);
        put(&mut bytes, &self.last);
        for number in [self.file, self.len, self.synced] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        put(&mut bytes, &self.before);
        bytes.extend_from_slice(&self.first_file.to_le_bytes());
        let mac = key.sign(&[PURPOSE, &bytes]);
        bytes.extend_from_slice(&mac);
        bytes.try_into().expect("SIZE is the sum of the fields")
    }

    fn decode(key: &MacKey, bytes: &[u8; SIZE]) -> Option<Self> {
        let (body, mac) = bytes.split_last_chunk::<32>()?;
        if !key.verify(&[PURPOSE, body], mac) {
            return None;
        }
        let mut rest = body;
        let last = take(&mut rest)?;
        let [file, len, synced] = [number(&mut rest)?, number(&mut rest)?, number(&mut rest)?];
        let before = take(&mut rest)?;
        Some(Self { last, file, len, synced, before, first_file: number(&mut rest)? })
    }

    /// Reads the head; that of an empty log where the file is empty.
    pub(super) fn load(file: &File, path: &Path, key: &MacKey) -> Result<Self, AuditError> {
        let mut bytes = [0; SIZE];
        let mut have = 0;
        while have < SIZE {
            match file.read_at(&mut bytes[have..], have as u64).map_err(AuditError::io(path))? {
                0 => break,
                n => have += n,
            }
        }
        match have {
            0 => Ok(Self::NEW),
            SIZE => Self::decode(key, &bytes).ok_or_else(|| AuditError::Head(path.to_owned())),
            _ => Err(AuditError::Head(path.to_owned())),
        }
    }

    /// Writes the head: one write within one sector.
    pub(super) fn store(&self, file: &File, path: &Path, key: &MacKey) -> Result<(), AuditError> {
        file.write_all_at(&self.encode(key), 0).map_err(AuditError::io(path))
    }
}

fn put(bytes: &mut Vec<u8>, link: &Link) {
    bytes.extend_from_slice(&link.seq.to_le_bytes());
    bytes.extend_from_slice(&link.mac);
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    let (first, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(u64::from_le_bytes(*first))
}

fn take(rest: &mut &[u8]) -> Option<Link> {
    let seq = number(rest)?;
    let (mac, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(Link { seq, mac: *mac })
}
