//! A request of the kernel, decoded. Whatever the bytes are, decoding ends with a request or an error; it never panics
//! and never looks beyond them.

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::abi::{self, InHeader, fattr, opcode};
use crate::fs::{Caller, LAST, LockAsk, LockKind, Range, SetAttr, SetTime};

/// A request that is not as the protocol says. The kernel does not send any; answered EIO.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a request of operation {opcode} is cut or malformed")]
pub(super) struct Malformed {
    /// Its operation; 0 where not even the header is whole.
    pub(super) opcode: u32,
}

/// The bytes behind the header: in one piece, as the device gives them, or in two, as a ring does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body<'a> {
    head: &'a [u8],
    /// Everything but the operation's own structure, where that came apart.
    tail: Option<&'a [u8]>,
}

impl<'a> Body<'a> {
    /// Structure, names and data one behind the other.
    pub(super) fn joined(bytes: &'a [u8]) -> Self {
        Self { head: bytes, tail: None }
    }

    /// The structure in `head` (which may be longer), names and data in `tail`.
    pub(super) fn split(head: &'a [u8], tail: &'a [u8]) -> Self {
        Self { head, tail: Some(tail) }
    }

    fn fixed<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Option<T> {
        let (value, rest) = T::read_from_prefix(self.head).ok()?;
        self.head = rest;
        Some(value)
    }

    fn rest(&mut self) -> &mut &'a [u8] {
        self.tail.as_mut().unwrap_or(&mut self.head)
    }

    /// A name, which ends with a NUL.
    fn name(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest();
        let end = rest.iter().position(|b| *b == 0)?;
        let (name, behind) = rest.split_at_checked(end)?;
        *rest = behind.get(1..)?;
        Some(name)
    }

    fn bytes(&mut self, len: u32) -> Option<&'a [u8]> {
        self.rest().get(..usize::try_from(len).ok()?)
    }
}

/// What is asked for, with its arguments.
#[derive(Clone, Copy, Debug)]
#[rustfmt::skip]
pub(super) enum Op<'a> {
    Lookup { name: &'a [u8] },
    Forget { count: u64 },
    /// `fuse_forget_one`s.
    BatchForget { all: &'a [u8] },
    Getattr,
    Statx,
    Setattr(SetAttr),
    Readlink,
    Symlink { name: &'a [u8], target: &'a [u8] },
    Mknod { name: &'a [u8], mode: u32, rdev: u32, umask: u32 },
    Mkdir { name: &'a [u8], mode: u32, umask: u32 },
    Unlink { name: &'a [u8] },
    Rmdir { name: &'a [u8] },
    Rename { name: &'a [u8], to: u64, new_name: &'a [u8], flags: u32 },
    Link { ino: u64, name: &'a [u8] },
    Open { flags: i32 },
    Read { fh: u64, offset: u64, size: u32 },
    /// `cached`: written back from the page cache. `append`: through a descriptor that appends.
    Write { fh: u64, offset: u64, kill_priv: bool, cached: bool, append: bool, data: &'a [u8] },
    Statfs,
    Release { fh: u64 },
    Fsync { fh: u64, data_only: bool },
    Setxattr { name: &'a [u8], value: &'a [u8], flags: i32, kill_sgid: bool },
    Getxattr { name: &'a [u8], size: u32 },
    Listxattr { size: u32 },
    Removexattr { name: &'a [u8] },
    /// `owner`: of locks.
    Flush { fh: u64, owner: u64 },
    Getlk(LockAsk),
    /// `wait`: until the lock can be had.
    Setlk { ask: LockAsk, wait: bool },
    /// Whoever waits for that request got a signal.
    Interrupt { unique: u64 },
    Init(abi::InitIn),
    Opendir,
    Readdir { fh: u64, offset: u64, size: u32, plus: bool },
    Releasedir { fh: u64 },
    Fsyncdir { fh: u64 },
    Create { name: &'a [u8], mode: u32, umask: u32, flags: i32 },
    Tmpfile { mode: u32, umask: u32, flags: i32 },
    Destroy,
    Fallocate { fh: u64, offset: u64, len: u64, mode: i32 },
    Lseek { fh: u64, offset: i64, whence: i32 },
    /// `wide`: the reply has 64 bits.
    CopyFileRange { fh: u64, offset: u64, to: u64, to_fh: u64, to_offset: u64, len: u64, wide: bool },
    /// What is answered with the same error always.
    Refused(Errno),
}

/// A whole request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) header: InHeader,
    pub(super) op: Op<'a>,
}

impl Request<'_> {
    /// Who asks.
    pub(super) fn caller(&self, umask: u32) -> Caller {
        Caller { uid: self.header.uid, gid: self.header.gid, umask }
    }
}

/// Decodes a request that came in one piece.
pub(super) fn parse(bytes: &[u8], setxattr_ext: bool) -> Result<Request<'_>, Malformed> {
    let (header, body) = InHeader::read_from_prefix(bytes).map_err(|_| Malformed { opcode: 0 })?;
    if header.len as usize != bytes.len() {
        return Err(Malformed { opcode: header.opcode });
    }
    decode(header, Body::joined(body), setxattr_ext)
}

/// Decodes what stands behind a header.
pub(super) fn decode(header: InHeader, body: Body<'_>, setxattr_ext: bool) -> Result<Request<'_>, Malformed> {
    let op = operation(header.opcode, body, setxattr_ext).ok_or(Malformed { opcode: header.opcode })?;
    Ok(Request { header, op })
}

fn operation(code: u32, mut body: Body<'_>, setxattr_ext: bool) -> Option<Op<'_>> {
    Some(match code {
        opcode::LOOKUP => Op::Lookup { name: body.name()? },
        opcode::FORGET => Op::Forget { count: body.fixed::<abi::ForgetIn>()?.nlookup },
        opcode::BATCH_FORGET => {
            let count = body.fixed::<abi::BatchForgetIn>()?.count;
            let len = count.checked_mul(u32::try_from(size_of::<abi::ForgetOne>()).ok()?)?;
            Op::BatchForget { all: body.bytes(len)? }
        }
        opcode::GETATTR => Op::Getattr,
        opcode::STATX => Op::Statx,
        opcode::SETATTR => Op::Setattr(set_attr(&body.fixed()?)),
        opcode::STATFS => Op::Statfs,
        opcode::SETXATTR => setxattr(body, setxattr_ext)?,
        opcode::GETXATTR => {
            let size = body.fixed::<abi::GetxattrIn>()?.size;
            Op::Getxattr { name: body.name()?, size }
        }
        opcode::LISTXATTR => Op::Listxattr { size: body.fixed::<abi::GetxattrIn>()?.size },
        opcode::REMOVEXATTR => Op::Removexattr { name: body.name()? },
        opcode::INIT => Op::Init(init(body)?),
        opcode::DESTROY => Op::Destroy,
        // The kernel checks permissions itself (default_permissions) and does not ask again after ENOSYS.
        opcode::ACCESS => Op::Refused(Errno::NOSYS),
        opcode::INTERRUPT => Op::Interrupt { unique: body.fixed::<abi::InterruptIn>()?.unique },
        opcode::IOCTL => Op::Refused(Errno::NOTTY),
        _ => return naming(code, body).or_else(|| handling(code, body)),
    })
}

/// Operations that make, move and remove names. `None` also where `code` is none of them.
fn naming(code: u32, mut body: Body<'_>) -> Option<Op<'_>> {
    Some(match code {
        opcode::READLINK => Op::Readlink,
        opcode::SYMLINK => Op::Symlink { name: body.name()?, target: body.name()? },
        opcode::MKNOD => {
            let given: abi::MknodIn = body.fixed()?;
            Op::Mknod { name: body.name()?, mode: given.mode, rdev: given.rdev, umask: given.umask }
        }
        opcode::MKDIR => {
            let given: abi::MkdirIn = body.fixed()?;
            Op::Mkdir { name: body.name()?, mode: given.mode, umask: given.umask }
        }
        opcode::UNLINK => Op::Unlink { name: body.name()? },
        opcode::RMDIR => Op::Rmdir { name: body.name()? },
        opcode::RENAME => {
            let to = body.fixed::<abi::RenameIn>()?.newdir;
            Op::Rename { name: body.name()?, to, new_name: body.name()?, flags: 0 }
        }
        opcode::RENAME2 => {
            let given: abi::Rename2In = body.fixed()?;
            Op::Rename { name: body.name()?, to: given.newdir, new_name: body.name()?, flags: given.flags }
        }
        opcode::LINK => {
            let ino = body.fixed::<abi::LinkIn>()?.oldnodeid;
            Op::Link { ino, name: body.name()? }
        }
        opcode::CREATE => {
            let given: abi::CreateIn = body.fixed()?;
            Op::Create { name: body.name()?, mode: given.mode, umask: given.umask, flags: given.flags }
        }
        opcode::TMPFILE => {
            let given: abi::CreateIn = body.fixed()?;
            Op::Tmpfile { mode: given.mode, umask: given.umask, flags: given.flags }
        }
        _ => return None,
    })
}

/// Operations on open files and directories; what is unknown is refused.
fn handling(code: u32, mut body: Body<'_>) -> Option<Op<'_>> {
    Some(match code {
        opcode::OPEN => Op::Open { flags: body.fixed::<abi::OpenIn>()?.flags },
        opcode::READ => {
            let given: abi::ReadIn = body.fixed()?;
            Op::Read { fh: given.fh, offset: given.offset, size: given.size }
        }
        opcode::WRITE => {
            let given: abi::WriteIn = body.fixed()?;
            let kill_priv = given.write_flags & abi::WRITE_KILL_SUIDGID != 0;
            let cached = given.write_flags & abi::WRITE_CACHE != 0;
            let append = given.flags & libc::O_APPEND.unsigned_abs() != 0 && !cached;
            let data = body.bytes(given.size)?;
            Op::Write { fh: given.fh, offset: given.offset, kill_priv, cached, append, data }
        }
        opcode::RELEASE => Op::Release { fh: body.fixed::<abi::ReleaseIn>()?.fh },
        opcode::FLUSH => {
            let given: abi::FlushIn = body.fixed()?;
            Op::Flush { fh: given.fh, owner: given.lock_owner }
        }
        opcode::GETLK => lock(&body.fixed()?).map_or(Op::Refused(Errno::INVAL), Op::Getlk),
        opcode::SETLK | opcode::SETLKW => {
            let wait = code == opcode::SETLKW;
            lock(&body.fixed()?).map_or(Op::Refused(Errno::INVAL), |ask| Op::Setlk { ask, wait })
        }
        opcode::FSYNC => {
            let given: abi::FsyncIn = body.fixed()?;
            Op::Fsync { fh: given.fh, data_only: given.flags & abi::FSYNC_FDATASYNC != 0 }
        }
        opcode::OPENDIR => Op::Opendir,
        opcode::READDIR | opcode::READDIRPLUS => {
            let given: abi::ReadIn = body.fixed()?;
            let plus = code == opcode::READDIRPLUS;
            Op::Readdir { fh: given.fh, offset: given.offset, size: given.size, plus }
        }
        opcode::RELEASEDIR => Op::Releasedir { fh: body.fixed::<abi::ReleaseIn>()?.fh },
        opcode::FSYNCDIR => Op::Fsyncdir { fh: body.fixed::<abi::FsyncIn>()?.fh },
        opcode::FALLOCATE => {
            let given: abi::FallocateIn = body.fixed()?;
            Op::Fallocate { fh: given.fh, offset: given.offset, len: given.length, mode: given.mode }
        }
        opcode::LSEEK => {
            let given: abi::LseekIn = body.fixed()?;
            Op::Lseek { fh: given.fh, offset: given.offset, whence: given.whence }
        }
        opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => {
            let given: abi::CopyIn = body.fixed()?;
            Op::CopyFileRange {
                fh: given.fh_in,
                offset: given.off_in,
                to: given.nodeid_out,
                to_fh: given.fh_out,
                to_offset: given.off_out,
                len: given.len,
                wide: code == opcode::COPY_FILE_RANGE_64,
            }
        }
        // Known, so it was cut.
        opcode::SYMLINK..=opcode::LINK | opcode::RENAME2 | opcode::CREATE | opcode::TMPFILE => return None,
        _ => Op::Refused(Errno::NOSYS),
    })
}

/// A lock as `fs` takes it; `None`: of a kind or a range that there is not.
fn lock(given: &abi::LkIn) -> Option<LockAsk> {
    let kind = match i32::try_from(given.kind).ok()? {
        libc::F_RDLCK => Some(LockKind::Read),
        libc::F_WRLCK => Some(LockKind::Write),
        libc::F_UNLCK => None,
        _ => return None,
    };
    let range = Range { first: given.start, last: given.end };
    let whole = given.lk_flags & abi::LK_FLOCK != 0;
    let (fh, owner, pid) = (given.fh, given.owner, given.pid);
    (range.first <= range.last && range.last <= LAST).then_some(LockAsk {
        fh,
        owner,
        range,
        kind,
        pid,
        whole,
    })
}

fn setxattr(mut body: Body<'_>, ext: bool) -> Option<Op<'_>> {
    let given: abi::SetxattrIn = body.fixed()?;
    let more = if ext { body.fixed()? } else { abi::SetxattrExt::default() };
    let name = body.name()?;
    let kill_sgid = more.setxattr_flags & abi::SETXATTR_ACL_KILL_SGID != 0;
    Some(Op::Setxattr { name, value: body.bytes(given.size)?, flags: given.flags, kill_sgid })
}

/// Kernels before 7.36 send 16 bytes.
fn init(mut body: Body<'_>) -> Option<abi::InitIn> {
    if let Some(whole) = body.fixed() {
        return Some(whole);
    }
    let [major, minor, max_readahead, flags] = body.fixed::<[u32; 4]>()?;
    Some(abi::InitIn { major, minor, max_readahead, flags, ..abi::InitIn::default() })
}

fn set_attr(given: &abi::SetattrIn) -> SetAttr {
    let has = |flag: u32| given.valid & flag != 0;
    let time = |set: u32, now: u32, at: (i64, u32)| {
        has(set).then(|| if has(now) { SetTime::Now } else { SetTime::At(at) })
    };
    SetAttr {
        mode: has(fattr::MODE).then_some(given.mode),
        uid: has(fattr::UID).then_some(given.uid),
        gid: has(fattr::GID).then_some(given.gid),
        size: has(fattr::SIZE).then_some(given.size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, (given.atime, given.atimensec)),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, (given.mtime, given.mtimensec)),
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(size_of::<InHeader>() + body.len()).expect("small");
        let header = InHeader { len, opcode, nodeid: 7, uid: 1000, ..InHeader::default() };
        [header.as_bytes(), body].concat()
    }

    fn write(size: u32, data: &[u8]) -> Vec<u8> {
        let given = abi::WriteIn { fh: 3, offset: 4096, size, ..abi::WriteIn::default() };
        request(opcode::WRITE, &[given.as_bytes(), data].concat())
    }

    /// A write carries the bytes that it says it does, and one that is shorter than it says is refused.
    #[test]
    fn a_write_is_as_long_as_it_says() {
        let whole = write(5, b"hello");
        let parsed = parse(&whole, false).expect("whole");
        assert!(matches!(parsed.op, Op::Write { fh: 3, offset: 4096, data: b"hello", .. }));
        assert!(parse(&write(6, b"hello"), false).is_err());
        assert!(parse(&write(u32::MAX, b"hello"), false).is_err());
    }

    /// A ring brings structure and names apart: the same request comes out.
    #[test]
    fn a_request_in_two_pieces_is_the_same() {
        let mut head = [0; 128];
        head[..8].copy_from_slice(abi::MkdirIn { mode: 0o755, umask: 0o22 }.as_bytes());
        let header = InHeader { opcode: opcode::MKDIR, ..InHeader::default() };
        let parsed = decode(header, Body::split(&head, b"dir\0"), false).expect("whole");
        assert!(matches!(parsed.op, Op::Mkdir { name: b"dir", mode: 0o755, umask: 0o22 }));
        let lookup = InHeader { opcode: opcode::LOOKUP, ..InHeader::default() };
        let parsed = decode(lookup, Body::split(&head, b"n\0"), false).expect("whole");
        assert!(matches!(parsed.op, Op::Lookup { name: b"n" }));
    }

    /// A time before 1970 comes out as the kernel sent it.
    #[test]
    fn a_time_before_the_epoch_is_what_the_kernel_sent() {
        let valid = fattr::MTIME | fattr::ATIME | fattr::ATIME_NOW;
        let given = abi::SetattrIn { valid, mtime: -2, mtimensec: 800_000_000, ..abi::SetattrIn::default() };
        let set = set_attr(&given);
        assert!(matches!(set.mtime, Some(SetTime::At((-2, 800_000_000)))));
        assert!(matches!(set.atime, Some(SetTime::Now)) && set.size.is_none());
    }

    /// Every operation, cut at every length or with random bytes behind it, decodes or is refused, and nothing panics.
    #[test]
    fn no_bytes_make_it_panic() {
        let mut word = 0x9e37_79b9_7f4a_7c15_u64;
        let mut noise = || {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            word.to_le_bytes()[0]
        };
        for opcode in 0..60 {
            for len in 0..160 {
                let body: Vec<u8> = (0..len).map(|_| noise()).collect();
                let _ = parse(&request(opcode, &body), len % 2 == 0);
                let (head, tail) = body.split_at(len / 2);
                let header = InHeader { opcode, ..InHeader::default() };
                let _ = decode(header, Body::split(head, tail), true);
            }
        }
        for len in 0..size_of::<InHeader>() {
            assert!(parse(&vec![1; len], false).is_err());
        }
    }

    /// A lock comes out as the kernel sent it; a kind or a range that there is not is refused.
    #[test]
    fn a_lock_is_what_the_kernel_sent() {
        let kind = libc::F_WRLCK.unsigned_abs();
        let given = abi::LkIn { fh: 3, owner: 9, start: 5, end: LAST, kind, pid: 77, ..abi::LkIn::default() };
        let sent = |given: &abi::LkIn| request(opcode::SETLKW, given.as_bytes());
        let bytes = sent(&given);
        let Op::Setlk { ask, wait: true } = parse(&bytes, false).expect("whole").op else {
            panic!("no lock that may wait")
        };
        assert_eq!((ask.fh, ask.owner, ask.pid, ask.whole), (3, 9, 77, false));
        assert_eq!((ask.range, ask.kind), (Range { first: 5, last: LAST }, Some(LockKind::Write)));
        let flock = abi::LkIn { lk_flags: abi::LK_FLOCK, kind: libc::F_UNLCK.unsigned_abs(), ..given };
        let bytes = request(opcode::SETLK, flock.as_bytes());
        let op = parse(&bytes, false).expect("whole").op;
        assert!(matches!(op, Op::Setlk { ask: LockAsk { kind: None, whole: true, .. }, wait: false }));
        let beyond = abi::LkIn { end: LAST + 1, ..given };
        for wrong in [abi::LkIn { end: 4, ..given }, beyond, abi::LkIn { kind: 3, ..given }] {
            let bytes = sent(&wrong);
            assert!(matches!(parse(&bytes, false).expect("whole").op, Op::Refused(Errno::INVAL)));
        }
    }

    /// A known operation that was cut is malformed; an unknown one is refused as such, which the kernel remembers.
    #[test]
    fn a_cut_request_is_told_from_an_unknown_one() {
        assert!(parse(&request(opcode::MKDIR, &[0; 4]), false).is_err());
        assert!(parse(&request(opcode::RENAME2, &[0; 16]), false).is_err());
        let unknown = request(999, &[]);
        assert!(matches!(parse(&unknown, false).expect("whole").op, Op::Refused(Errno::NOSYS)));
    }
}
