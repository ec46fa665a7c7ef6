//! The kernel's FUSE protocol as bytes: `include/uapi/linux/fuse.h`, version 7.45, as much of it as is served here.
//!
//! All values are in host order. Requests are decoded from copies, so no alignment is asked of their buffers.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Major version of the protocol.
pub(super) const MAJOR: u32 = 7;
/// The minor version that is spoken; the kernel speaks the smaller one of both sides'.
pub(super) const MINOR: u32 = 45;
/// The oldest minor version that is served: the reply to INIT has its present length since (Linux 3.15).
pub(super) const OLDEST_MINOR: u32 = 23;
/// Number of the top directory.
pub(super) const ROOT: u64 = 1;

macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub(super) struct $name { $(pub(super) $field: $kind),* }
    )*};
}

wire! {
    /// `fuse_in_header`: begins each request.
    InHeader { len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, extensions: u16, padding: u16 }
    /// `fuse_out_header`: begins each reply; `error` is 0 or a negative errno, or a code where `unique` is 0.
    OutHeader { len: u32, error: i32, unique: u64 }

    /// `fuse_init_in`.
    InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11] }
    /// `fuse_init_out`.
    InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        request_timeout: u16, unused: [u16; 11],
    }

    /// `fuse_attr`.
    Attr {
        ino: u64, size: u64, blocks: u64, atime: i64, mtime: i64, ctime: i64, atimensec: u32, mtimensec: u32,
        ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    /// `fuse_entry_out`.
    EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32,
        attr_valid_nsec: u32, attr: Attr,
    }
    /// `fuse_attr_out`.
    AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    /// `fuse_sx_time`.
    SxTime { secs: i64, nanos: u32, reserved: i32 }
    /// `fuse_statx_out`, with `fuse_statx` from `mask` on.
    StatxOut {
        attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2],
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16, spare0: u16,
        ino: u64, size: u64, blocks: u64, attributes_mask: u64,
        atime: SxTime, btime: SxTime, ctime: SxTime, mtime: SxTime,
        rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }

    /// `fuse_forget_in`.
    ForgetIn { nlookup: u64 }
    /// `fuse_forget_one`.
    ForgetOne { nodeid: u64, nlookup: u64 }
    /// `fuse_batch_forget_in`.
    BatchForgetIn { count: u32, dummy: u32 }
    /// `fuse_setattr_in`.
    SetattrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: i64, mtime: i64, ctime: i64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    /// `fuse_mknod_in`.
    MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32 }
    /// `fuse_mkdir_in`.
    MkdirIn { mode: u32, umask: u32 }
    /// `fuse_rename_in`.
    RenameIn { newdir: u64 }
    /// `fuse_rename2_in`.
    Rename2In { newdir: u64, flags: u32, padding: u32 }
    /// `fuse_link_in`.
    LinkIn { oldnodeid: u64 }
    /// `fuse_open_in`.
    OpenIn { flags: i32, open_flags: u32 }
    /// `fuse_create_in`.
    CreateIn { flags: i32, mode: u32, umask: u32, open_flags: u32 }
    /// `fuse_open_out`.
    OpenOut { fh: u64, open_flags: u32, padding: u32 }
    /// `fuse_release_in`.
    ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    /// `fuse_flush_in`.
    FlushIn { fh: u64, unused: u32, padding: u32, lock_owner: u64 }
    /// `fuse_lk_in`, with its `fuse_file_lock` from `start` on.
    LkIn { fh: u64, owner: u64, start: u64, end: u64, kind: u32, pid: u32, lk_flags: u32, padding: u32 }
    /// `fuse_lk_out`, which is a `fuse_file_lock`.
    LkOut { start: u64, end: u64, kind: u32, pid: u32 }
    /// `fuse_interrupt_in`.
    InterruptIn { unique: u64 }
    /// `fuse_read_in`.
    ReadIn { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    /// `fuse_write_in`.
    WriteIn { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    /// `fuse_write_out`.
    WriteOut { size: u32, padding: u32 }
    /// `fuse_kstatfs`.
    StatfsOut {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare: [u32; 6],
    }
    /// `fuse_fsync_in`.
    FsyncIn { fh: u64, flags: u32, padding: u32 }
    /// `fuse_setxattr_in` up to what every kernel sends.
    SetxattrIn { size: u32, flags: i32 }
    /// The rest of `fuse_setxattr_in`, which follows with [`init::SETXATTR_EXT`].
    SetxattrExt { setxattr_flags: u32, padding: u32 }
    /// `fuse_getxattr_in`.
    GetxattrIn { size: u32, padding: u32 }
    /// `fuse_getxattr_out`.
    GetxattrOut { size: u32, padding: u32 }
    /// `fuse_fallocate_in`.
    FallocateIn { fh: u64, offset: u64, length: u64, mode: i32, padding: u32 }
    /// `fuse_lseek_in`.
    LseekIn { fh: u64, offset: i64, whence: i32, padding: u32 }
    /// `fuse_lseek_out`.
    LseekOut { offset: u64 }
    /// `fuse_copy_file_range_in`.
    CopyIn { fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64 }
    /// `fuse_copy_file_range_out`: the reply to COPY_FILE_RANGE_64.
    CopyOut { bytes: u64 }
    /// `fuse_dirent` without its name.
    Dirent { ino: u64, off: u64, namelen: u32, kind: u32 }

    /// `fuse_uring_ent_in_out`.
    UringEntry { flags: u64, commit_id: u64, payload_sz: u32, padding: u32, reserved: u64 }
    /// `fuse_uring_cmd_req`.
    UringCommand { flags: u64, commit_id: u64, qid: u16, padding: [u8; 6] }

    /// `fuse_notify_inval_inode_out`.
    InvalInode { ino: u64, off: i64, len: i64 }
}

/// `fuse_opcode`.
pub(super) mod opcode {
    macro_rules! opcodes {
        ($($name:ident = $value:literal),* $(,)?) => { $(pub(in crate::fuse) const $name: u32 = $value;)* };
    }
    opcodes! {
        LOOKUP = 1, FORGET = 2, GETATTR = 3, SETATTR = 4, READLINK = 5, SYMLINK = 6, MKNOD = 8, MKDIR = 9,
        UNLINK = 10, RMDIR = 11, RENAME = 12, LINK = 13, OPEN = 14, READ = 15, WRITE = 16, STATFS = 17,
        RELEASE = 18, FSYNC = 20, SETXATTR = 21, GETXATTR = 22, LISTXATTR = 23, REMOVEXATTR = 24, FLUSH = 25,
        INIT = 26, OPENDIR = 27, READDIR = 28, RELEASEDIR = 29, FSYNCDIR = 30, GETLK = 31, SETLK = 32, SETLKW = 33,
        ACCESS = 34, CREATE = 35,
        INTERRUPT = 36, DESTROY = 38, IOCTL = 39, BATCH_FORGET = 42, FALLOCATE = 43, READDIRPLUS = 44, RENAME2 = 45,
        LSEEK = 46, COPY_FILE_RANGE = 47, TMPFILE = 51, STATX = 52, COPY_FILE_RANGE_64 = 53,
    }
}

/// Flags of INIT; those from bit 32 on travel in `flags2`.
pub(super) mod init {
    macro_rules! flags {
        ($($name:ident = $bit:literal),* $(,)?) => { $(pub(in crate::fuse) const $name: u64 = 1 << $bit;)* };
    }
    flags! {
        ASYNC_READ = 0, POSIX_LOCKS = 1, BIG_WRITES = 5, DONT_MASK = 6, FLOCK_LOCKS = 10, AUTO_INVAL_DATA = 12, DO_READDIRPLUS = 13,
        READDIRPLUS_AUTO = 14, ASYNC_DIO = 15, WRITEBACK_CACHE = 16, PARALLEL_DIROPS = 18, POSIX_ACL = 20,
        MAX_PAGES = 22, CACHE_SYMLINKS = 23, HANDLE_KILLPRIV_V2 = 28, SETXATTR_EXT = 29, INIT_EXT = 30,
        OVER_IO_URING = 41,
    }
}

/// `fuse_setattr_in.valid`.
pub(super) mod fattr {
    macro_rules! flags {
        ($($name:ident = $bit:literal),* $(,)?) => { $(pub(in crate::fuse) const $name: u32 = 1 << $bit;)* };
    }
    flags! { MODE = 0, UID = 1, GID = 2, SIZE = 3, ATIME = 4, MTIME = 5, ATIME_NOW = 7, MTIME_NOW = 8 }
}

/// `fuse_lk_in.lk_flags`: of `flock`.
pub(super) const LK_FLOCK: u32 = 1 << 0;
/// `fuse_open_out.open_flags`: what the kernel had of the file's pages stays.
pub(super) const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// The kernel may keep the directory's listing.
pub(super) const FOPEN_CACHE_DIR: u32 = 1 << 3;
/// `fuse_write_in.write_flags`: written back from the page cache.
pub(super) const WRITE_CACHE: u32 = 1 << 0;
/// `fuse_write_in.write_flags`: drop set-id bits and capabilities.
pub(super) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `fuse_fsync_in.fsync_flags`: data only.
pub(super) const FSYNC_FDATASYNC: u32 = 1 << 0;
/// `fuse_setxattr_in.setxattr_flags`: the new ACL takes the set-gid bit away.
pub(super) const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// Code of a notification: drop what is cached of an inode.
pub(super) const NOTIFY_INVAL_INODE: i32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes are those of the kernel's header: a field too many would shift all behind it.
    #[test]
    fn structures_are_as_long_as_the_kernels() {
        let found = [
            size_of::<InHeader>(),
            size_of::<OutHeader>(),
            size_of::<InitIn>(),
            size_of::<InitOut>(),
            size_of::<Attr>(),
            size_of::<EntryOut>(),
            size_of::<AttrOut>(),
            size_of::<StatxOut>(),
            size_of::<SetattrIn>(),
            size_of::<WriteIn>(),
            size_of::<StatfsOut>(),
            size_of::<LkIn>(),
            size_of::<LkOut>(),
            size_of::<CopyIn>(),
            size_of::<Dirent>(),
            size_of::<UringEntry>(),
            size_of::<UringCommand>(),
        ];
        assert_eq!(found, [40, 16, 64, 64, 88, 128, 104, 288, 88, 40, 80, 48, 24, 56, 24, 32, 24]);
    }
}
