//! What is agreed with the kernel when the mount begins.

use fuser::{InitFlags, KernelConfig};
use log::debug;

/// Bytes of the largest write: 256 pages, what `fs.fuse.max_pages_limit` allows by default.
const MAX_WRITE: u32 = 1 << 20;
/// Readahead and writeback requests in flight: keeps every event loop busy without 1 MiB buffers by the hundred.
const MAX_BACKGROUND: u16 = 64;
/// From this many on the kernel calls the mount congested and slows writers down.
const CONGESTED: u16 = 48;

/// Asked for on every mount, where the kernel offers it.
///
/// Not asked for: POSIX_LOCKS and FLOCK_LOCKS (the kernel's own locks serve a mount of one host),
/// ATOMIC_O_TRUNC (a truncate of its own keeps the page cache right), NO_OPEN_SUPPORT (handles carry the keys),
/// SETXATTR_EXT (`fuser` does not decode it), HANDLE_KILLPRIV (version 2 replaces it).
const ALWAYS: [InitFlags; 8] = [
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_MAX_PAGES,
];

/// Asked for when this mount is the only way into the vault.
const EXCLUSIVE: [InitFlags; 2] = [InitFlags::FUSE_WRITEBACK_CACHE, InitFlags::FUSE_READDIRPLUS_AUTO];

/// Asked for when other hosts may change the vault.
const SHARED: [InitFlags; 1] = [InitFlags::FUSE_AUTO_INVAL_DATA];

/// Fills in the reply to FUSE_INIT.
pub(super) fn negotiate(config: &mut KernelConfig, shared: bool) {
    let by_sharing: &[InitFlags] = if shared { &SHARED } else { &EXCLUSIVE };
    for flag in ALWAYS.iter().chain(by_sharing) {
        if let Err(missing) = config.add_capabilities(*flag) {
            debug!("this kernel does not offer {missing:?}");
        }
    }
    // Each of these values is in range; a refusal would only keep the default.
    let _ = config.set_max_write(MAX_WRITE);
    let _ = config.set_max_background(MAX_BACKGROUND);
    let _ = config.set_congestion_threshold(CONGESTED);
    if let Err(most) = config.set_max_readahead(MAX_WRITE) {
        let _ = config.set_max_readahead(most);
    }
}
