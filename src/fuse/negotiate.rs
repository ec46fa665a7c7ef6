//! What is agreed with the kernel when the mount begins.

use std::io;

use log::debug;
use zerocopy::IntoBytes;

use super::abi::{self, InitIn, InitOut, init};
use super::channel::Channel;
use super::request::{self, Op};

/// Bytes of the largest write: 256 pages, what `fs.fuse.max_pages_limit` allows by default.
pub(super) const MAX_WRITE: u32 = 1 << 20;
/// Bytes of the largest request where the kernel does not offer to agree on it: 32 pages.
const DEFAULT_WRITE: u32 = 32 << 12;
/// Bytes of a page.
const PAGE: u32 = 4096;
/// Readahead and writeback requests in flight: keeps every event loop busy without 1 MiB buffers by the hundred.
const MAX_BACKGROUND: u16 = 64;
/// From this many on the kernel calls the mount congested and slows writers down.
const CONGESTED: u16 = 48;
/// Bytes of the buffer for INIT; the kernel wants at least FUSE_MIN_READ_BUFFER.
const INIT_BUFFER: usize = (MAX_WRITE as usize) + (PAGE as usize);

/// Asked for on every mount, where the kernel offers it.
///
/// Not asked for: ATOMIC_O_TRUNC (a truncate of its own keeps the page cache right), NO_OPEN_SUPPORT (handles carry the keys),
/// NO_OPENDIR_SUPPORT (handles carry the listing), HANDLE_KILLPRIV (version 2 replaces it).
const ALWAYS: &[(u64, &str)] = &[
    (init::ASYNC_READ, "ASYNC_READ"),
    (init::BIG_WRITES, "BIG_WRITES"),
    (init::INIT_EXT, "INIT_EXT"),
    (init::ASYNC_DIO, "ASYNC_DIO"),
    (init::PARALLEL_DIROPS, "PARALLEL_DIROPS"),
    (init::DO_READDIRPLUS, "DO_READDIRPLUS"),
    (init::POSIX_ACL, "POSIX_ACL"),
    (init::DONT_MASK, "DONT_MASK"),
    (init::HANDLE_KILLPRIV_V2, "HANDLE_KILLPRIV_V2"),
    (init::SETXATTR_EXT, "SETXATTR_EXT"),
    (init::CACHE_SYMLINKS, "CACHE_SYMLINKS"),
    (init::MAX_PAGES, "MAX_PAGES"),
];

/// Asked for when this mount is the only way into the vault.
const EXCLUSIVE: &[(u64, &str)] =
    &[(init::WRITEBACK_CACHE, "WRITEBACK_CACHE"), (init::READDIRPLUS_AUTO, "READDIRPLUS_AUTO")];

/// Asked for when other hosts may change the vault.
const SHARED: &[(u64, &str)] = &[(init::AUTO_INVAL_DATA, "AUTO_INVAL_DATA")];

/// Asked for where the handler keeps locks. Else the kernel's own serve, at no cost: enough for a mount that is the only one.
const LOCKS: &[(u64, &str)] = &[(init::POSIX_LOCKS, "POSIX_LOCKS"), (init::FLOCK_LOCKS, "FLOCK_LOCKS")];

/// What this side wants of the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wanted {
    /// Other hosts may change the vault.
    pub(super) shared: bool,
    /// The handler keeps locks.
    pub(super) locks: bool,
    /// Rings are ready to be registered.
    pub(super) rings: bool,
}

/// What holds for the life of a mount.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agreed {
    /// Flags of both sides.
    pub(super) flags: u64,
    /// Bytes of the largest write, and of the largest read.
    pub(super) max_write: u32,
}

impl Agreed {
    /// Whether requests come by rings.
    pub(super) fn rings(&self) -> bool {
        self.flags & init::OVER_IO_URING != 0
    }

    /// Whether locks are asked for.
    pub(super) fn locks(&self) -> bool {
        self.flags & (init::POSIX_LOCKS | init::FLOCK_LOCKS) != 0
    }

    /// Whether SETXATTR comes with its flags.
    pub(super) fn setxattr_ext(&self) -> bool {
        self.flags & init::SETXATTR_EXT != 0
    }
}

/// Reads INIT and answers it.
pub(super) fn agree(channel: &Channel, wanted: Wanted) -> io::Result<Agreed> {
    let mut buf = vec![0; INIT_BUFFER];
    loop {
        let gone =
            || io::Error::new(io::ErrorKind::NotConnected, "the mount went away while it was agreed on");
        let len = channel.receive(&mut buf)?.ok_or_else(gone)?;
        let asked = request::parse(buf.get(..len).unwrap_or_default(), false).map_err(io::Error::other)?;
        let unique = asked.header.unique;
        let Op::Init(kernel) = asked.op else {
            return Err(io::Error::other(format!("the kernel began with operation {}", asked.header.opcode)));
        };
        if kernel.major > abi::MAJOR {
            // The kernel asks again in the version that it is told.
            let ours = InitOut { major: abi::MAJOR, minor: abi::MINOR, ..InitOut::default() };
            channel.send_small(unique, 0, ours.as_bytes())?;
            continue;
        }
        if kernel.major < abi::MAJOR || kernel.minor < abi::OLDEST_MINOR {
            channel.send_small(unique, -libc::EPROTO, &[])?;
            let (major, minor) = (kernel.major, kernel.minor);
            let text = format!(
                "the kernel speaks FUSE {major}.{minor}; needed is 7.{} (Linux 3.15)",
                abi::OLDEST_MINOR
            );
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let (agreed, reply) = settle(&kernel, wanted);
        channel.send_small(unique, 0, reply.as_bytes())?;
        return Ok(agreed);
    }
}

/// The answer to a kernel.
fn settle(kernel: &InitIn, wanted: Wanted) -> (Agreed, InitOut) {
    let more = if kernel.flags_have(init::INIT_EXT) { u64::from(kernel.flags2) << 32 } else { 0 };
    let offered = u64::from(kernel.flags) | more;
    let by_sharing = if wanted.shared { SHARED } else { EXCLUSIVE };
    let locks = if wanted.locks { LOCKS } else { &[] };
    let mut flags = 0;
    for (flag, name) in ALWAYS.iter().chain(by_sharing).chain(locks) {
        if offered & flag == 0 {
            debug!("this kernel does not offer {name}");
        }
        flags |= offered & flag;
    }
    if wanted.rings {
        flags |= offered & init::OVER_IO_URING;
    }
    let max_write = if flags & init::MAX_PAGES == 0 { DEFAULT_WRITE } else { MAX_WRITE };
    let reply = InitOut {
        major: abi::MAJOR,
        minor: abi::MINOR.min(kernel.minor),
        max_readahead: kernel.max_readahead.min(MAX_WRITE),
        flags: low(flags),
        flags2: low(flags >> 32),
        max_background: MAX_BACKGROUND,
        congestion_threshold: CONGESTED,
        max_write,
        time_gran: 1,
        max_pages: u16::try_from(max_write / PAGE).unwrap_or(u16::MAX),
        ..InitOut::default()
    };
    (Agreed { flags, max_write }, reply)
}

/// The low half.
fn low(flags: u64) -> u32 {
    u32::try_from(flags & u64::from(u32::MAX)).unwrap_or(0)
}

impl InitIn {
    fn flags_have(&self, flag: u64) -> bool {
        u64::from(self.flags) & flag != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing is asked for that the kernel does not offer, and its readahead is the most that is agreed.
    #[test]
    fn only_what_is_offered_is_agreed() {
        let flags = low(init::POSIX_ACL | init::WRITEBACK_CACHE);
        let old = InitIn { major: 7, minor: 31, max_readahead: 131_072, flags, ..InitIn::default() };
        let rings = Wanted { rings: true, ..Wanted::default() };
        let (agreed, reply) = settle(&old, rings);
        assert_eq!((agreed.flags, reply.flags), (u64::from(flags), flags));
        assert_eq!((reply.minor, reply.max_readahead, reply.max_write), (31, 131_072, DEFAULT_WRITE));
        let (agreed, _) = settle(&old, Wanted { shared: true, ..rings });
        assert_eq!(agreed.flags, init::POSIX_ACL);
    }

    /// `flags2` counts only where the kernel says that it is there.
    #[test]
    fn the_second_half_of_the_flags_needs_its_mark() {
        let bare = InitIn { flags2: u32::MAX, ..InitIn::default() };
        assert_eq!(settle(&bare, Wanted { rings: true, ..Wanted::default() }).0.flags, 0);
        let all = InitIn { flags: u32::MAX, flags2: u32::MAX, minor: abi::MINOR, ..InitIn::default() };
        let (agreed, reply) = settle(&all, Wanted::default());
        assert_eq!((agreed.max_write, reply.max_pages), (MAX_WRITE, 256));
        assert!(!agreed.rings() && settle(&all, Wanted { rings: true, ..Wanted::default() }).0.rings());
        assert!(agreed.setxattr_ext() && agreed.flags & init::AUTO_INVAL_DATA == 0);
    }

    /// A mount that is the only one leaves locks to the kernel; one that shares takes them, and writes nothing back later:
    /// what was written under a lock is below before the lock goes.
    #[test]
    fn locks_are_asked_for_by_mounts_that_share() {
        let all = InitIn { flags: u32::MAX, flags2: u32::MAX, minor: abi::MINOR, ..InitIn::default() };
        assert!(!settle(&all, Wanted::default()).0.locks());
        let (agreed, reply) = settle(&all, Wanted { shared: true, locks: true, rings: false });
        assert!(
            agreed.locks() && reply.flags & low(init::POSIX_LOCKS | init::FLOCK_LOCKS) == (1 << 1 | 1 << 10)
        );
        assert!(agreed.flags & init::WRITEBACK_CACHE == 0);
    }
}
