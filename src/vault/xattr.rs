//! Extended attributes of lower inodes, through `O_PATH` descriptors too. Values are whatever bytes they are.

use std::os::fd::AsFd;

use rustix::fs::XattrFlags;
use rustix::io::{Errno, Result};

use super::{access, proc_path};

/// What nearly all values fit: a header, an encrypted short value, an ACL.
const FIRST_TRY: usize = 512;
/// The most that Linux keeps in a value or a list of names (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const MOST: usize = 65536;

fn grow(read: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut buf = vec![0; FIRST_TRY];
    let len = match read(&mut buf) {
        Err(Errno::RANGE) => {
            buf.resize(MOST, 0);
            read(&mut buf)?
        }
        other => other?,
    };
    buf.truncate(len);
    Ok(buf)
}

/// Value of an xattr; ENODATA where there is none.
pub fn get(fd: impl AsFd, name: &str) -> Result<Vec<u8>> {
    let path = proc_path(&fd);
    access::lent(&fd, 0o400, || grow(|buf| rustix::fs::getxattr(&path, name, buf)))
}

/// Sets an xattr (`flags`: XATTR_CREATE, XATTR_REPLACE).
pub fn set(fd: impl AsFd, name: &str, value: &[u8], flags: u32) -> Result<()> {
    let path = proc_path(&fd);
    let flags = XattrFlags::from_bits_retain(flags);
    access::lent(&fd, 0o600, || rustix::fs::setxattr(&path, name, value, flags))
}

/// Removes an xattr; ENODATA where there is none.
pub fn remove(fd: impl AsFd, name: &str) -> Result<()> {
    let path = proc_path(&fd);
    access::lent(&fd, 0o600, || rustix::fs::removexattr(&path, name))
}

/// Names of the xattrs. Needs no permission on the inode. Names that are no UTF-8 are left out: none of ours is.
pub fn list(fd: impl AsFd) -> Result<Vec<String>> {
    let path = proc_path(&fd);
    let names = match grow(|buf| rustix::fs::listxattr(&path, buf)) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        other => other?,
    };
    let names = names.split(|b| *b == 0).filter(|n| !n.is_empty());
    Ok(names.filter_map(|n| std::str::from_utf8(n).ok()).map(str::to_owned).collect())
}
