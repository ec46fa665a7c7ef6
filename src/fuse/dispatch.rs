//! A decoded request to the handler, and its answer into a buffer: the same for every way that requests come.

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::entries::Entries;
use super::handler::{Answer, Copying, Handler, Looked, NewMode, Opened};
use super::request::{Op, Request};
use super::{abi, convert};

/// The largest answer beside content and listings: an xattr of 64 KiB, or a list of their names.
pub(super) const SMALL_ANSWER: usize = 64 << 10;

/// What goes back to the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reply {
    /// Nothing: it does not wait.
    Silence,
    /// An error.
    Error(Errno),
    /// So many bytes of the buffer.
    Data(usize),
}

/// The buffer that an answer goes into. Bounded: what does not fit is an error.
struct Out<'a>(&'a mut [u8]);

impl Out<'_> {
    fn bytes(self, parts: &[&[u8]]) -> Answer<usize> {
        let mut at = 0;
        for part in parts {
            self.0.get_mut(at..at + part.len()).ok_or(Errno::RANGE)?.copy_from_slice(part);
            at += part.len();
        }
        Ok(at)
    }

    fn value(self, value: &(impl IntoBytes + Immutable)) -> Answer<usize> {
        self.bytes(&[value.as_bytes()])
    }

    /// The size protocol of xattrs: 0 asks for the length, too small is ERANGE.
    fn xattr(self, asked: u32, value: &[u8]) -> Answer<usize> {
        let size = u32::try_from(value.len()).map_err(|_| Errno::RANGE)?;
        match asked {
            0 => self.value(&abi::GetxattrOut { size, padding: 0 }),
            asked if size <= asked => self.bytes(&[value]),
            _ => Err(Errno::RANGE),
        }
    }
}

fn open_out(opened: &Opened) -> abi::OpenOut {
    abi::OpenOut { fh: opened.fh, open_flags: opened.flags(), padding: 0 }
}

/// Calls the handler. `out` is where content and listings are put at once, and every other answer.
pub(super) fn dispatch<H: Handler>(handler: &H, request: &Request<'_>, out: &mut [u8]) -> Reply {
    let ino = request.header.nodeid;
    match request.op {
        Op::Forget { count } => handler.forget(ino, count),
        Op::BatchForget { all } => forget_all(handler, all),
        _ => {
            return match answer(handler, request, Out(out)) {
                Ok(len) => Reply::Data(len),
                Err(errno) => Reply::Error(errno),
            };
        }
    }
    Reply::Silence
}

fn forget_all<H: Handler>(handler: &H, all: &[u8]) {
    for one in all.chunks_exact(size_of::<abi::ForgetOne>()) {
        if let Ok(one) = abi::ForgetOne::read_from_bytes(one) {
            handler.forget(one.nodeid, one.nlookup);
        }
    }
}

fn answer<H: Handler>(handler: &H, request: &Request<'_>, out: Out<'_>) -> Answer<usize> {
    let ino = request.header.nodeid;
    match request.op {
        Op::Lookup { name } => out.value(&match handler.lookup(ino, name)? {
            Looked::Found(entry) => convert::entry(&entry),
            Looked::Missing(valid) if valid.is_zero() => return Err(Errno::NOENT),
            Looked::Missing(valid) => convert::missing(valid),
        }),
        Op::Getattr => out.value(&convert::attributes(&handler.getattr(ino)?)),
        Op::Statx => out.value(&convert::statx(&handler.statx(ino)?)),
        Op::Setattr(set) => {
            out.value(&convert::attributes(&handler.setattr(&request.caller(0), ino, &set)?))
        }
        Op::Statfs => out.value(&convert::statfs(&handler.statfs()?)),
        Op::Setxattr { name, value, flags, kill_sgid } => {
            handler.setxattr(ino, name, value, flags, kill_sgid).map(|()| 0)
        }
        Op::Getxattr { name, size } => out.xattr(size, &handler.getxattr(ino, name)?),
        Op::Listxattr { size } => out.xattr(size, &handler.listxattr(ino)?),
        Op::Removexattr { name } => handler.removexattr(ino, name).map(|()| 0),
        Op::Refused(errno) => Err(errno),
        // Without locks no request waits long: ENOSYS, and the kernel tells of no signal again.
        Op::Interrupt { .. } | Op::Setlk { .. } => Err(Errno::NOSYS),
        Op::Getlk(ask) => out.value(&convert::lock(handler.find_lock(ino, &ask)?)),
        // Agreed on before.
        Op::Init(_) => Err(Errno::IO),
        // Answered before.
        Op::Destroy | Op::Forget { .. } | Op::BatchForget { .. } => Ok(0),
        Op::Readlink => out.bytes(&[&handler.readlink(ino)?]),
        Op::Symlink { .. }
        | Op::Mknod { .. }
        | Op::Mkdir { .. }
        | Op::Unlink { .. }
        | Op::Rmdir { .. }
        | Op::Rename { .. }
        | Op::Link { .. }
        | Op::Create { .. }
        | Op::Tmpfile { .. } => naming(handler, request, out),
        Op::Open { .. }
        | Op::Read { .. }
        | Op::Write { .. }
        | Op::Release { .. }
        | Op::Fsync { .. }
        | Op::Flush { .. }
        | Op::Opendir
        | Op::Readdir { .. }
        | Op::Releasedir { .. }
        | Op::Fsyncdir { .. }
        | Op::Fallocate { .. }
        | Op::Lseek { .. }
        | Op::CopyFileRange { .. } => handling(handler, request, out),
    }
}

/// Operations that make, move and remove names.
fn naming<H: Handler>(handler: &H, request: &Request<'_>, out: Out<'_>) -> Answer<usize> {
    let ino = request.header.nodeid;
    let entry = match request.op {
        Op::Symlink { name, target } => handler.symlink(&request.caller(0), ino, name, target)?,
        Op::Mknod { name, mode, rdev, umask } => {
            handler.mknod(&request.caller(umask), ino, name, NewMode { mode, rdev })?
        }
        Op::Mkdir { name, mode, umask } => handler.mkdir(&request.caller(umask), ino, name, mode)?,
        Op::Link { ino: linked, name } => handler.link(linked, ino, name)?,
        Op::Unlink { name } => return handler.unlink(ino, name).map(|()| 0),
        Op::Rmdir { name } => return handler.rmdir(ino, name).map(|()| 0),
        Op::Rename { name, to, new_name, flags } => {
            return handler.rename((ino, name), (to, new_name), flags).map(|()| 0);
        }
        Op::Create { name, mode, umask, flags } => {
            let (entry, opened) = handler.create(&request.caller(umask), ino, name, mode, flags)?;
            return out.bytes(&[convert::entry(&entry).as_bytes(), open_out(&opened).as_bytes()]);
        }
        Op::Tmpfile { mode, umask, flags } => {
            let (entry, opened) = handler.tmpfile(&request.caller(umask), ino, mode, flags)?;
            return out.bytes(&[convert::entry(&entry).as_bytes(), open_out(&opened).as_bytes()]);
        }
        _ => return Err(Errno::NOSYS),
    };
    out.value(&convert::entry(&entry))
}

/// Operations on open files and directories.
fn handling<H: Handler>(handler: &H, request: &Request<'_>, out: Out<'_>) -> Answer<usize> {
    let ino = request.header.nodeid;
    let done = match request.op {
        Op::Open { flags } => return out.value(&open_out(&handler.open(ino, flags)?)),
        Op::Opendir => return out.value(&open_out(&handler.opendir(ino)?)),
        Op::Read { fh, offset, size } => {
            let len = out.0.len().min(size as usize);
            let buf = out.0.get_mut(..len).unwrap_or_default();
            return handler.read(ino, fh, offset, buf).map(|n| n.min(len));
        }
        Op::Readdir { fh, offset, size, plus } => {
            let len = out.0.len().min(size as usize);
            let mut entries = Entries::new(out.0.get_mut(..len).unwrap_or_default(), plus);
            handler.readdir(ino, fh, offset, &mut entries)?;
            return Ok(entries.used());
        }
        Op::Write { fh, offset, kill_priv, append, data, .. } => {
            match append {
                true => handler.append(ino, fh, offset, data, kill_priv)?,
                false => handler.write(ino, fh, offset, data, kill_priv)?,
            }
            let size = u32::try_from(data.len()).map_err(|_| Errno::INVAL)?;
            return out.value(&abi::WriteOut { size, padding: 0 });
        }
        Op::Lseek { fh, offset, whence } => {
            let Ok(offset) = u64::try_from(offset) else { return Err(Errno::NXIO) };
            let offset = handler.lseek(ino, fh, offset, whence)?;
            // A file offset is signed.
            i64::try_from(offset).map_err(|_| Errno::OVERFLOW)?;
            return out.value(&abi::LseekOut { offset });
        }
        Op::CopyFileRange { fh, offset, to, to_fh, to_offset, len, wide } => {
            let copying = Copying { from: (fh, offset), to: (to_fh, to_offset), to_ino: to, len };
            let bytes = handler.copy_file_range(ino, &copying)?;
            if wide {
                return out.value(&abi::CopyOut { bytes });
            }
            let size = u32::try_from(bytes).unwrap_or(u32::MAX);
            return out.value(&abi::WriteOut { size, padding: 0 });
        }
        Op::Release { fh } => {
            handler.release(ino, fh);
            Ok(())
        }
        Op::Releasedir { fh } => {
            handler.releasedir(ino, fh);
            Ok(())
        }
        Op::Flush { fh, owner } => handler.flush(ino, fh, owner),
        Op::Fsync { fh, data_only } => handler.fsync(ino, fh, data_only),
        Op::Fsyncdir { fh } => handler.fsyncdir(ino, fh),
        Op::Fallocate { fh, offset, len, mode } => handler.fallocate(ino, fh, offset, len, mode),
        _ => Err(Errno::NOSYS),
    };
    done.map(|()| 0)
}
