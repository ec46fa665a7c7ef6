//! Extended attributes. `user.`, `trusted.` and `security.` ones are encrypted, names and values; POSIX ACLs pass
//! through to the lower filesystem, whose kernel keeps them in step with the mode. Others are not served.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::inode::Inode;
use super::{Fs, FsError, Ino, Result};
use crate::crypto::XattrKey;
use crate::format::names::{LONG_XATTR_PREFIX, XATTR_PREFIX};
use crate::vault::stat::S_IFREG;
use crate::vault::{fresh, xattr};

/// File capabilities, which go when content or owner change.
const CAPABILITY: &[u8] = b"security.capability";
/// Both POSIX ACLs begin so.
const ACL_PREFIX: &str = "system.posix_acl_";
/// The longest name (XATTR_NAME_MAX).
const MAX_NAME: usize = 255;
/// The longest value (XATTR_SIZE_MAX).
const MAX_VALUE: usize = 65536;

/// How an xattr is kept, judged by its name.
enum Kept<'a> {
    /// As it is.
    Plain(&'a str),
    /// Encrypted.
    Sealed,
}

fn kept(name: &[u8]) -> Result<Kept<'_>> {
    if name.len() > MAX_NAME {
        return Err(Errno::RANGE.into());
    }
    if let b"system.posix_acl_access" | b"system.posix_acl_default" = name {
        let text = std::str::from_utf8(name).map_err(|_| Errno::OPNOTSUPP)?;
        return Ok(Kept::Plain(text));
    }
    let spaces: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    match spaces.iter().find_map(|s| name.strip_prefix(*s)) {
        Some([]) => Err(Errno::INVAL.into()),
        Some(_) => Ok(Kept::Sealed),
        None => Err(Errno::OPNOTSUPP.into()),
    }
}

fn is_ours(lower: &str) -> bool {
    lower.starts_with(XATTR_PREFIX) || lower.starts_with(LONG_XATTR_PREFIX)
}

fn undecodable<E>(_: E) -> FsError {
    FsError::Undecodable("an extended attribute does not decode: it was changed, or belongs to another file")
}

impl Inode {
    /// Linux keeps `user.` xattrs, in which all encrypted ones are stored, on files and directories only.
    fn keeps_xattrs(&self) -> bool {
        self.is_dir() || self.first.kind() == S_IFREG
    }
}

impl Fs {
    /// Sets an xattr (`flags`: XATTR_CREATE, XATTR_REPLACE).
    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        self.changeable()?;
        let inode = self.inode(ino)?;
        let kind = kept(name)?;
        if value.len() > MAX_VALUE {
            return Err(Errno::TOOBIG.into());
        }
        let flags = flags.cast_unsigned();
        if let Kept::Plain(name) = kind {
            xattr::set(self.anchor(&inode)?, name, value, flags)?;
            inode.attributes_changed();
            return Ok(());
        }
        if !inode.keeps_xattrs() {
            return Err(if name.starts_with(b"user.") { Errno::PERM } else { Errno::OPNOTSUPP }.into());
        }
        let anchor = self.anchor(&inode)?;
        let key = self.xattr_key(&inode, &anchor)?;
        inode.bare.store(false, Ordering::Release);
        xattr::set(&anchor, &key.encode_name(name), &key.encode_value(name, value), flags)?;
        inode.attributes_changed();
        if let Some(file) = inode.open.lock().file().filter(|_| name == CAPABILITY) {
            file.unprivileged.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Value of an xattr.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let inode = self.inode(ino)?;
        if let Kept::Plain(name) = kept(name)? {
            return Ok(xattr::get(self.anchor(&inode)?, name)?);
        }
        if !inode.keeps_xattrs() || inode.bare.load(Ordering::Acquire) {
            return Err(Errno::NODATA.into());
        }
        let anchor = self.anchor(&inode)?;
        // The kernel asks for what hardly any file has: one call answers that, without a key.
        if !fresh::has_xattr(&anchor, is_ours)? {
            return Err(Errno::NODATA.into());
        }
        let key = self.xattr_key(&inode, &anchor)?;
        let value = xattr::get(&anchor, &key.encode_name(name))?;
        key.decode_value(name, &value).map_err(undecodable)
    }

    /// Names of the xattrs, each ended by NUL.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<u8>> {
        let inode = self.inode(ino)?;
        let anchor = self.anchor(&inode)?;
        let lower = xattr::list(&anchor)?;
        let mut names = Vec::new();
        let mut add = |name: &[u8]| {
            names.extend_from_slice(name);
            names.push(0);
        };
        lower.iter().filter(|n| n.starts_with(ACL_PREFIX)).for_each(|n| add(n.as_bytes()));
        if inode.keeps_xattrs() && lower.iter().any(|n| is_ours(n)) {
            let key = self.xattr_key(&inode, &anchor)?;
            for name in lower.iter().filter(|n| is_ours(n)) {
                add(&key.decode_name(name, || xattr::get(&anchor, name).ok()).map_err(undecodable)?);
            }
        }
        Ok(names)
    }

    /// Removes an xattr.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.changeable()?;
        let inode = self.inode(ino)?;
        if let Kept::Plain(name) = kept(name)? {
            xattr::remove(self.anchor(&inode)?, name)?;
            inode.attributes_changed();
            return Ok(());
        }
        if !inode.keeps_xattrs() {
            return Err(if name.starts_with(b"user.") { Errno::PERM } else { Errno::NODATA }.into());
        }
        let anchor = self.anchor(&inode)?;
        if !fresh::has_xattr(&anchor, is_ours)? {
            return Err(Errno::NODATA.into());
        }
        let key = self.xattr_key(&inode, &anchor)?;
        xattr::remove(&anchor, &key.encode_name(name))?;
        inode.attributes_changed();
        Ok(())
    }

    /// Drops file capabilities.
    pub(super) fn drop_capabilities(&self, inode: &Inode, fd: impl AsFd) -> Result<()> {
        if inode.first.kind() != S_IFREG
            || inode.bare.load(Ordering::Acquire)
            || !fresh::has_xattr(&fd, is_ours)?
        {
            return Ok(());
        }
        let key = XattrKey::derive(self.keyring.vault_key(), &self.header(&fd)?.file_id.0);
        match xattr::remove(&fd, &key.encode_name(CAPABILITY)) {
            Ok(()) => {
                inode.attributes_changed();
                Ok(())
            }
            Err(Errno::NODATA) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn xattr_key(&self, inode: &Arc<Inode>, fd: impl AsFd) -> Result<XattrKey> {
        let vault_key = self.keyring.vault_key();
        if inode.is_dir() {
            let id = self.dir(inode.ino)?.id(vault_key)?;
            return Ok(XattrKey::derive(vault_key, &id.0));
        }
        Ok(XattrKey::derive(vault_key, &self.header(fd)?.file_id.0))
    }
}
