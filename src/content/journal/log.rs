//! One log: a header, records one behind the other.

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::crypto::journal::HEADER_SEQUENCE;
use crate::crypto::{JournalKey, JournalRoot, random};
use crate::format::journal::{
    Draft, HEADER, HEADER_TAG_AT, Header, Home, RECORD_HEAD, RECORD_TAG_AT, RecordHead, Time, close_record,
    put_tag,
};
use crate::vault::LowerFile;

/// A log and its key.
pub(in crate::content) struct Log {
    file: Box<dyn LowerFile>,
    /// Number of its file.
    pub(in crate::content) slot: u32,
    /// Its header.
    pub(in crate::content) header: Header,
    key: JournalKey,
    /// Length of the file: what lies within can be made durable without a change of the file's metadata.
    len: AtomicU64,
}

/// Zeros written behind a record that lengthens the file, so that the next ones do not.
const AHEAD: usize = 1 << 20;
/// From so many bytes on, a record does not care.
const LONG: usize = 64 << 10;

/// Where the next record goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tail {
    pub(super) end: u64,
    pub(super) sequence: u64,
}

impl Tail {
    /// Behind the header.
    pub(super) const START: Self = Self { end: HEADER as u64, sequence: 1 };
}

impl Log {
    /// Begins a log: writes its header over whatever the file held.
    pub(super) fn begin(
        (slot, file): (u32, Box<dyn LowerFile>),
        root: &JournalRoot,
        (generation, oldest): (u64, u64),
        born_since: Time,
        home: Home,
    ) -> io::Result<Self> {
        let header = Header { generation, oldest, salt: random::array(), born_since, home };
        let key = root.key(&header.salt);
        let mut bytes = header.encode();
        let tag = key.sign(HEADER_SEQUENCE, &bytes);
        put_tag(&mut bytes, HEADER_TAG_AT, &tag);
        file.write_at(&[IoSlice::new(&bytes)], 0)?;
        let len = AtomicU64::new(file.len()?);
        Ok(Self { file, slot, header, key, len })
    }

    /// A log that is there; `None` where its header is missing, torn or another vault's.
    pub(super) fn open(
        (slot, file): (u32, Box<dyn LowerFile>),
        root: &JournalRoot,
    ) -> io::Result<Option<Self>> {
        let mut bytes = [0; HEADER];
        if file.read_at(&mut bytes, 0)? < HEADER {
            return Ok(None);
        }
        let Some(header) = Header::decode(&bytes) else { return Ok(None) };
        let mut tag = [0; 16];
        tag.copy_from_slice(&bytes[HEADER_TAG_AT..HEADER_TAG_AT + 16]);
        put_tag(&mut bytes, HEADER_TAG_AT, &[0; 16]);
        let key = root.key(&header.salt);
        let authentic = key.verify(HEADER_SEQUENCE, &bytes, &tag);
        let len = AtomicU64::new(file.len()?);
        Ok(authentic.then_some(Self { file, slot, header, key, len }))
    }

    /// Appends a record; gives where it begins. After an error the tail stays, and the next record takes its place.
    pub(super) fn append(&self, tail: &mut Tail, mut draft: Draft) -> io::Result<u64> {
        close_record(&mut draft.bytes, draft.kind, tail.sequence);
        let tag = self.key.sign(tail.sequence, &draft.bytes);
        put_tag(&mut draft.bytes, RECORD_TAG_AT, &tag);
        self.write(&draft.bytes, tail.end)?;
        let at = tail.end;
        *tail = Tail { end: at + draft.bytes.len() as u64, sequence: tail.sequence + 1 };
        Ok(at)
    }

    fn write(&self, record: &[u8], at: u64) -> io::Result<()> {
        let end = at + record.len() as u64;
        if end > self.len.load(Ordering::Relaxed) && record.len() < LONG {
            let zeros = vec![0; AHEAD];
            match self.file.write_at(&[IoSlice::new(record), IoSlice::new(&zeros)], at) {
                Ok(()) => {
                    self.len.store(end + AHEAD as u64, Ordering::Relaxed);
                    return Ok(());
                }
                // There may be room for the record.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {}
                Err(e) => return Err(e),
            }
        }
        self.file.write_at(&[IoSlice::new(record)], at)?;
        self.len.fetch_max(end, Ordering::Relaxed);
        Ok(())
    }

    /// The record at the tail; `None` where the log ends.
    pub(super) fn next(&self, tail: &mut Tail) -> io::Result<Option<(u64, u8, Vec<u8>)>> {
        let mut head = [0; RECORD_HEAD];
        if self.file.read_at(&mut head, tail.end)? < RECORD_HEAD {
            return Ok(None);
        }
        let Some(head) = RecordHead::decode(&head).filter(|h| h.sequence == tail.sequence) else {
            return Ok(None);
        };
        let mut bytes = vec![0; head.len];
        if self.file.read_at(&mut bytes, tail.end)? < head.len {
            return Ok(None);
        }
        put_tag(&mut bytes, RECORD_TAG_AT, &[0; 16]);
        if !self.key.verify(head.sequence, &bytes, &head.tag) {
            return Ok(None);
        }
        let at = tail.end;
        *tail = Tail { end: at + head.len as u64, sequence: tail.sequence + 1 };
        Ok(Some((at, head.kind, bytes)))
    }

    /// Reads a part of a record.
    pub(in crate::content) fn read(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        if self.file.read_at(buf, at)? < buf.len() {
            return Err(io::Error::other("the journal ends within a record that was written"));
        }
        Ok(())
    }

    /// Makes everything appended durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync(true)
    }

    /// The file, to be used again.
    pub(super) fn into_file(self) -> (u32, Box<dyn LowerFile>) {
        (self.slot, self.file)
    }
}
