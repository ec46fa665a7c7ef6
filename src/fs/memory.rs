//! Memory of a great many inodes goes back to the system when the kernel has forgotten them.
//!
//! `unsafe`: `malloc_trim` is a bare function of libc. Without it the allocator keeps what it has once had: its pages
//! lie between others, and it gives back the end of its heap only.

use std::sync::atomic::{AtomicU64, Ordering};

/// Inodes between two looks. Their memory, some 20 MiB, is worth the milliseconds that a look takes.
const EVERY: u64 = 1 << 16;

static FORGOTTEN: AtomicU64 = AtomicU64::new(0);

/// Called for each inode that goes.
pub(super) fn forgotten() {
    if FORGOTTEN.fetch_add(1, Ordering::Relaxed) % EVERY == EVERY - 1 {
        trim();
    }
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "a bare function of libc")]
fn trim() {
    // SAFETY: it takes a number, and touches nothing but memory that the allocator holds free, under its own locks.
    let _ = unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}
