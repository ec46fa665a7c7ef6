//! The two commands of a ring (`fuse_uring_cmd` of linux/fuse.h): register a slot; answer and take the next request.

#![expect(unsafe_code, reason = "a field of the submission entry that the library does not set")]

use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::opcode::UringCmd80;
use io_uring::squeue::Entry128;
use io_uring::types::Fd;
use zerocopy::IntoBytes;

use crate::fuse::abi::UringCommand;

/// FUSE_IO_URING_CMD_REGISTER.
const REGISTER: u32 = 1;
/// FUSE_IO_URING_CMD_COMMIT_AND_FETCH.
const COMMIT_AND_FETCH: u32 = 2;
/// Where `len` stands in `struct io_uring_sqe`.
const LEN_AT: usize = 24;

/// Registers a slot, named by two vectors that must live until the command is submitted.
pub(super) fn register(
    device: BorrowedFd<'_>,
    queue: u16,
    vectors: &[libc::iovec; 2],
    slot: u64,
) -> Entry128 {
    const { assert!(size_of::<Entry128>() == 128 && align_of::<Entry128>() >= 4) };
    let command = UringCmd80::new(Fd(device.as_raw_fd()), REGISTER)
        .cmd(arguments(queue, 0))
        .addr(Some(vectors.as_ptr() as u64));
    let mut entry = command.build().user_data(slot);
    // SAFETY: an `Entry128` is a `struct io_uring_sqe` of 128 bytes (asserted), valid for every bit pattern of its
    // integers; `len` is its `u32` at offset 24, aligned to 4 since the structure is.
    unsafe { (&raw mut entry).cast::<u8>().add(LEN_AT).cast::<u32>().write(2) };
    entry
}

/// Answers request `commit_id` of a slot and asks for the next one.
pub(super) fn commit_and_fetch(device: BorrowedFd<'_>, queue: u16, commit_id: u64, slot: u64) -> Entry128 {
    let command = UringCmd80::new(Fd(device.as_raw_fd()), COMMIT_AND_FETCH).cmd(arguments(queue, commit_id));
    command.build().user_data(slot)
}

fn arguments(queue: u16, commit_id: u64) -> [u8; 80] {
    let mut bytes = [0; 80];
    let command = UringCommand { commit_id, qid: queue, ..UringCommand::default() };
    for (to, from) in bytes.iter_mut().zip(command.as_bytes()) {
        *to = *from;
    }
    bytes
}
