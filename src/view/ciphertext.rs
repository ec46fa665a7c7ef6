//! The ciphertext view of a vault: every file carries in front of its content what the lower file has in its inode
//! (`format::view`), so that any tool which keeps bytes keeps all of it.
//!
//! A file's time is its lower *change* time, so that a tool which looks at size and time alone sees a changed header too;
//! the time of the content stands in the frame. What changes while it is read gives EIO, never a mixture.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use log::warn;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::nodes::{Handles, Nodes};
use crate::backup::{Daemon, Entry as Lower, Tree};
use crate::format::header::{FileHeader, HEADER_XATTR};
use crate::format::view::{DIR_FILE, Frame, frame_len};
use crate::fs::{Attr, Ino, StatFs};
use crate::fuse::{Answer, Attributes, Entries, Entry, Handler, Listed, Looked, Opened};
use crate::vault::stat::{S_IFDIR, S_IFLNK, S_IFREG, TICK, stat_fd};
use crate::vault::{LowerStat, proc_path};

/// How long the kernel believes an attribute of a vault that nobody has mounted.
const TTL: Duration = Duration::from_secs(60);
/// How often a file that changes in this moment is looked at again before it is busy.
const WAITS: usize = 4;

/// See the module.
#[derive(Debug)]
pub struct CiphertextView {
    tree: Tree,
    daemon: Option<Arc<dyn Daemon>>,
    nodes: Nodes,
    files: Handles<Open>,
    listings: Handles<Vec<(Vec<u8>, u32)>>,
    owner: (u32, u32),
}

/// An open file of the view.
#[derive(Debug)]
struct Open {
    path: PathBuf,
    frame: Vec<u8>,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Lower(File, LowerStat),
    Bytes(Vec<u8>),
}

/// What a path of the view is: a lower path, and whether its directory's own file is meant.
fn lower_of(path: &Path) -> (&Path, bool) {
    match path.file_name() {
        Some(name) if name == DIR_FILE => (path.parent().unwrap_or(Path::new("")), true),
        _ => (path, false),
    }
}

impl CiphertextView {
    /// The view of `vault`. `daemon`: of the mount that the vault has meanwhile.
    pub fn new(vault: &Path, daemon: Option<Arc<dyn Daemon>>) -> crate::backup::Result<Self> {
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let tree = Tree::open(vault)?;
        let (nodes, files, listings) = (Nodes::new(), Handles::new(), Handles::new());
        Ok(Self { tree, daemon, nodes, files, listings, owner })
    }

    fn ttl(&self) -> Duration {
        if self.daemon.is_some() { Duration::ZERO } else { TTL }
    }

    /// The lower entry of a path of the view, and whether the path is a directory of the view.
    fn entry(&self, path: &Path) -> Answer<(Lower, bool)> {
        let (lower, own_file) = lower_of(path);
        let entry = self.tree.entry(lower)?;
        let is_dir = entry.stat.kind() == S_IFDIR;
        match (is_dir, own_file) {
            (false, true) => Err(Errno::NOTDIR),
            _ => Ok((entry, is_dir && !own_file)),
        }
    }

    fn attr(&self, ino: Ino, (lower, is_dir): &(Lower, bool)) -> Attr {
        let stat = &lower.stat;
        let size = frame_len(&lower.xattrs) as u64 + content_len(lower);
        let (mode, size, nlink) =
            if *is_dir { (S_IFDIR | 0o500, 4096, 2) } else { (S_IFREG | 0o400, size, 1) };
        Attr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: stat.ctime,
            mtime: stat.ctime,
            ctime: stat.ctime,
            btime: None,
            mode,
            nlink,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: 4096,
        }
    }

    /// Opens the lower file behind an entry when all of it is in its place.
    fn content(&self, lower: &Lower) -> Answer<Content> {
        match lower.stat.kind() {
            S_IFREG => {
                let path = proc_path(&lower.fd);
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file: File = rustix::fs::open(path, flags, Mode::empty())?.into();
                self.settle(lower)?;
                // Later changes show in its time, but not those of this moment.
                for _ in 0..WAITS {
                    let now = stat_fd(&file)?;
                    if !now.is_hot() {
                        return Ok(Content::Lower(file, now));
                    }
                    std::thread::sleep(TICK);
                }
                Err(Errno::BUSY)
            }
            S_IFLNK => Ok(Content::Bytes(lower.target.clone().unwrap_or_default())),
            _ => Ok(Content::Bytes(Vec::new())),
        }
    }

    /// Where the vault is mounted: asks its daemon to bring the file to its place.
    fn settle(&self, lower: &Lower) -> Answer<()> {
        let Some(daemon) = &self.daemon else { return Ok(()) };
        let header = lower.xattrs.iter().find(|(name, _)| name == HEADER_XATTR);
        let Some(id) = header.and_then(|(_, value)| FileHeader::decode(value).ok()).map(|h| h.file_id) else {
            return Ok(());
        };
        let io = |e: std::io::Error| {
            warn!("the vault's daemon: {e}");
            Errno::IO
        };
        if daemon.is_pending(id).map_err(io)? {
            daemon.checkpoint().map_err(io)?;
            if daemon.is_pending(id).map_err(io)? {
                return Err(Errno::BUSY);
            }
        }
        Ok(())
    }

    fn open_file(&self, path: &Path) -> Answer<Open> {
        let (first, is_dir) = self.entry(path)?;
        if is_dir {
            return Err(Errno::ISDIR);
        }
        let content = if lower_of(path).1 { Content::Bytes(Vec::new()) } else { self.content(&first)? };
        // A header that changed since comes from the entry as it is now.
        let (lower, _) = self.entry(path)?;
        if let Content::Lower(_, stat) = &content
            && (!stat.same_inode(&lower.stat) || stat.ctime != lower.stat.ctime)
        {
            return Err(Errno::BUSY);
        }
        let stat = &lower.stat;
        let frame = Frame {
            mode: stat.mode,
            owner: (stat.uid, stat.gid),
            modified: stat.mtime,
            rdev: stat.rdev,
            inode: if stat.kind() != S_IFDIR && stat.nlink > 1 { stat.ino } else { 0 },
            content: content_len(&lower),
            xattrs: lower.xattrs,
        };
        let frame = frame.encode().map_err(|e| {
            warn!("{}: {e}", path.display());
            Errno::IO
        })?;
        if let Some(why) = &lower.fault {
            // The tool that copies it must not believe that it has a whole file.
            warn!("{}: {why}", path.display());
            return Err(Errno::IO);
        }
        Ok(Open { path: path.to_owned(), frame, content })
    }
}

/// Bytes behind the frame.
fn content_len(lower: &Lower) -> u64 {
    match lower.stat.kind() {
        S_IFREG => lower.stat.size,
        S_IFLNK => lower.target.as_ref().map_or(0, |target| target.len() as u64),
        _ => 0,
    }
}

impl Open {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Answer<usize> {
        let mut done = 0;
        if let Some(rest) = usize::try_from(offset).ok().and_then(|at| self.frame.get(at..)) {
            done = rest.len().min(buf.len());
            buf[..done].copy_from_slice(&rest[..done]);
        }
        let at = (offset + done as u64).saturating_sub(self.frame.len() as u64);
        match &self.content {
            Content::Bytes(bytes) => {
                let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
                let len = rest.len().min(buf.len() - done);
                buf[done..done + len].copy_from_slice(&rest[..len]);
                Ok(done + len)
            }
            Content::Lower(file, opened) => {
                while done < buf.len() {
                    let at = offset + done as u64 - self.frame.len() as u64;
                    match file.read_at(&mut buf[done..], at) {
                        Ok(0) => break,
                        Ok(len) => done += len,
                        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(e) => return Err(e.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)),
                    }
                }
                let now = stat_fd(file)?;
                if now.ctime != opened.ctime || now.size != opened.size {
                    warn!("{}: it changed while it was read; copy it again", self.path.display());
                    return Err(Errno::IO);
                }
                Ok(done)
            }
        }
    }
}

impl Handler for CiphertextView {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Answer<Looked> {
        let path = self.nodes.path(parent)?.join(OsStr::from_bytes(name));
        let found = self.entry(&path)?;
        let attr = self.attr(self.nodes.known(&path), &found);
        Ok(Looked::Found(Entry { attr, generation: 0, name_for: self.ttl(), attr_for: self.ttl() }))
    }

    fn forget(&self, ino: Ino, count: u64) {
        self.nodes.forget(ino, count);
    }

    fn getattr(&self, ino: Ino) -> Answer<Attributes> {
        let path = self.nodes.path(ino)?;
        Ok(Attributes { attr: self.attr(ino, &self.entry(&path)?), valid: self.ttl() })
    }

    fn statx(&self, ino: Ino) -> Answer<Attributes> {
        self.getattr(ino)
    }

    fn open(&self, ino: Ino, flags: i32) -> Answer<Opened> {
        if flags & libc::O_ACCMODE != libc::O_RDONLY {
            return Err(Errno::ROFS);
        }
        let open = self.open_file(&self.nodes.path(ino)?)?;
        Ok(Opened { fh: self.files.open(open), keep_cache: false, cache_dir: false })
    }

    fn read(&self, _ino: Ino, fh: u64, offset: u64, buf: &mut [u8]) -> Answer<usize> {
        self.files.get(fh)?.read(offset, buf)
    }

    fn release(&self, _ino: Ino, fh: u64) {
        self.files.close(fh);
    }

    fn opendir(&self, ino: Ino) -> Answer<Opened> {
        let path = self.nodes.path(ino)?;
        let mut names = vec![
            (b".".to_vec(), S_IFDIR),
            (b"..".to_vec(), S_IFDIR),
            (DIR_FILE.as_bytes().to_vec(), S_IFREG),
        ];
        names.extend(self.tree.names(&path)?);
        Ok(Opened { fh: self.listings.open(names), keep_cache: false, cache_dir: false })
    }

    fn readdir(&self, ino: Ino, fh: u64, offset: u64, into: &mut Entries<'_>) -> Answer<()> {
        list(&self.listings.get(fh)?[..], ino, offset, into);
        Ok(())
    }

    fn releasedir(&self, _ino: Ino, fh: u64) {
        self.listings.close(fh);
    }

    fn statfs(&self) -> Answer<StatFs> {
        lower_statfs(self.tree.top())
    }
}

/// Gives names from a cookie on, until the kernel's buffer is full. A number is only given with a lookup: the listing
/// shows that of the directory.
pub(super) fn list(names: &[(Vec<u8>, u32)], ino: Ino, offset: u64, into: &mut Entries<'_>) {
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    for (at, (name, kind)) in names.iter().enumerate().skip(from) {
        if !into.add(&Listed { ino, next: at as u64 + 1, kind: *kind, name }) {
            return;
        }
    }
}

/// Figures of the filesystem below.
pub(super) fn lower_statfs(fd: impl std::os::fd::AsFd) -> Answer<StatFs> {
    let lower = rustix::fs::fstatvfs(fd)?;
    let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Ok(StatFs {
        blocks: lower.f_blocks,
        bfree: 0,
        bavail: 0,
        files: lower.f_files,
        ffree: 0,
        bsize: small(lower.f_bsize),
        namelen: 255,
        frsize: small(lower.f_frsize),
    })
}
