//! Memory that the kernel and a ring's thread take turns on: one request and its answer.
//!
//! A page for the headers (`fuse_uring_req_header`), and the payload from the next page on. Whose turn it is stands in
//! `ours`; without a turn no reference to the memory can be had.

#![expect(unsafe_code, reason = "memory that is shared with the kernel")]

use std::io;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use zerocopy::FromBytes;

use crate::fuse::abi::{InHeader, OutHeader, UringEntry};

/// Bytes of the headers, in a page of their own.
const HEADERS: usize = 4096;
/// Where the operation's own structure stands (`FUSE_URING_IN_OUT_HEADER_SZ`).
const OPERATION_AT: usize = 128;
/// Where [`UringEntry`] stands.
const ENTRY_AT: usize = 256;
/// Bytes of `fuse_uring_req_header`.
const HEADER_LEN: usize = ENTRY_AT + size_of::<UringEntry>();

/// One request's memory.
#[derive(Debug)]
pub(super) struct Slot {
    base: NonNull<u8>,
    payload: usize,
    ours: bool,
}

// SAFETY: the memory belongs to the slot alone (and, in its turns, to the kernel), wherever the slot is.
unsafe impl Send for Slot {}

impl Slot {
    /// A slot for payloads of so many bytes. Touched only as far as it is used.
    pub(super) fn new(payload: usize) -> io::Result<Self> {
        let (read_write, private) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new private mapping at an address of the kernel's choice touches no other memory.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), HEADERS + payload, read_write, private) }?;
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("a mapping at address 0"))?;
        Ok(Self { base, payload, ours: true })
    }

    /// What the kernel is told: the headers and the payload. Until it gives the slot back, it may write to them.
    pub(super) fn give(&mut self) -> [libc::iovec; 2] {
        self.ours = false;
        let payload = self.base.as_ptr().wrapping_add(HEADERS);
        [
            libc::iovec { iov_base: self.base.as_ptr().cast(), iov_len: HEADER_LEN },
            libc::iovec { iov_base: payload.cast(), iov_len: self.payload },
        ]
    }

    /// The kernel gave the slot back: it completed the command that had it.
    pub(super) fn take(&mut self) {
        self.ours = true;
    }

    /// Headers and payload, in our turn.
    pub(super) fn parts(&mut self) -> Option<(Headers<'_>, &mut [u8])> {
        if !self.ours {
            return None;
        }
        let payload = self.base.as_ptr().wrapping_add(HEADERS);
        // SAFETY: the mapping is HEADERS + payload bytes long, lives as long as the slot, and is initialised (zeros, or
        // what was written since). Both ranges lie in it and do not overlap. Nobody else has them: the kernel gave
        // them back, and `self` is borrowed mutably for as long as the references live.
        let (headers, payload) = unsafe {
            (
                std::slice::from_raw_parts_mut(self.base.as_ptr(), HEADER_LEN),
                std::slice::from_raw_parts_mut(payload, self.payload),
            )
        };
        Some((Headers(headers), payload))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // What the kernel may still write to stays mapped until the process ends.
        if self.ours {
            // SAFETY: the mapping was made in `new` with this length, and no reference into it outlives the slot.
            let _ = unsafe { munmap(self.base.as_ptr().cast(), HEADERS + self.payload) };
        }
    }
}

/// `fuse_uring_req_header`.
pub(super) struct Headers<'a>(&'a mut [u8]);

impl Headers<'_> {
    /// The request's header.
    pub(super) fn request(&self) -> InHeader {
        InHeader::read_from_prefix(self.0).map(|(h, _)| h).unwrap_or_default()
    }

    /// The operation's own structure, and zeros or older bytes behind it.
    pub(super) fn operation(&self) -> &[u8] {
        self.0.get(OPERATION_AT..ENTRY_AT).unwrap_or_default()
    }

    /// Which request it is for the kernel, and the length of its payload.
    pub(super) fn entry(&self) -> UringEntry {
        self.0.get(ENTRY_AT..).and_then(|e| UringEntry::read_from_bytes(e).ok()).unwrap_or_default()
    }

    /// Puts the answer's header and the length of its payload.
    pub(super) fn answer(&mut self, error: i32, payload: u32) {
        use zerocopy::IntoBytes;
        let unique = self.request().unique;
        let len = u32::try_from(size_of::<OutHeader>()).unwrap_or(0).saturating_add(payload);
        let header = OutHeader { len, error, unique };
        let entry = UringEntry { payload_sz: payload, ..self.entry() };
        for (at, bytes) in [(0, header.as_bytes()), (ENTRY_AT, entry.as_bytes())] {
            if let Some(place) = self.0.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// While the kernel has a slot nothing of it can be seen; an answer keeps the request's numbers.
    #[test]
    fn a_slot_is_seen_in_our_turn_only() {
        let mut slot = Slot::new(8192).expect("memory");
        let vectors = slot.give();
        assert_eq!((vectors[0].iov_len, vectors[1].iov_len), (288, 8192));
        assert!(slot.parts().is_none());
        slot.take();
        let (mut headers, payload) = slot.parts().expect("our turn");
        assert_eq!((payload.len(), payload.as_ptr().align_offset(4096)), (8192, 0));
        headers.0[8] = 77;
        headers.answer(-5, 12);
        assert_eq!(headers.entry().payload_sz, 12);
        assert_eq!(headers.0[..16], [28, 0, 0, 0, 0xfb, 0xff, 0xff, 0xff, 77, 0, 0, 0, 0, 0, 0, 0]);
    }
}
