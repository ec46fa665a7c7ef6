//! Attributes: one `statx` to read them, no key; changes go to the lower inode as they come.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::inode::Inode;
use super::{Attr, Caller, Fs, Ino, Result, SetAttr, SetTime, TOP};
use crate::crypto::LinkKey;
use crate::format::layout::{self, BLOCK_U64, GROUP_DISK, INLINE_HEAD};
use crate::vault::entry::{self, NewTime};
use crate::vault::stat::{S_IFLNK, S_IFREG};
use crate::vault::{LowerStat, access, fresh, stat};

/// Preferred I/O size: one block.
const BLKSIZE: u32 = 4096;

/// Plaintext length of a lower file. A length that no whole file has (damage, or a crash) gives the nearest one;
/// opening the file tells which it is.
pub(super) fn plain_len(disk_len: u64) -> u64 {
    let nearest = || match disk_len {
        n if n <= BLOCK_U64 => n.saturating_sub(INLINE_HEAD as u64),
        n => n.saturating_sub(n.div_ceil(GROUP_DISK) * BLOCK_U64),
    };
    layout::plain_len(disk_len).unwrap_or_else(nearest)
}

impl Fs {
    /// Attributes.
    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        let inode = self.inode(ino)?;
        let stat = self.stat(&inode)?;
        Ok(self.attr(&inode, &stat))
    }

    /// Attributes in plaintext terms.
    pub(super) fn attr(&self, inode: &Inode, stat: &LowerStat) -> Attr {
        let size = match stat.kind() {
            S_IFREG => {
                let open = inode.open.lock().file().cloned();
                open.map_or_else(|| plain_len(stat.size), |file| self.len_of(&file, stat.size))
            }
            S_IFLNK => LinkKey::plain_len(stat.size),
            _ => stat.size,
        };
        // `.envelopefs` does not show, so it does not count.
        let hidden = u32::from(inode.ino == TOP);
        Attr {
            ino: inode.ino,
            size,
            blocks: stat.blocks,
            atime: stat.atime,
            mtime: stat.mtime,
            ctime: stat.ctime,
            btime: stat.btime,
            mode: stat.mode,
            nlink: stat.nlink.saturating_sub(hidden).max(hidden),
            uid: stat.uid,
            gid: stat.gid,
            rdev: stat.rdev,
            blksize: BLKSIZE,
        }
    }

    /// Changes attributes.
    pub fn setattr(&self, caller: &Caller, ino: Ino, set: &SetAttr) -> Result<Attr> {
        self.changeable()?;
        let inode = self.inode(ino)?;
        let anchor = self.anchor(&inode)?;
        // Once the file has its new length the kernel must hear of it, also where looking fails then: it would go on
        // with the old one.
        let before = if set.size.is_some() { Some(stat::stat_fd(&anchor)?) } else { None };
        if set.uid.is_some() || set.gid.is_some() {
            // The lower kernel drops set-id bits here; capabilities it does not know.
            entry::chown(&anchor, set.uid, set.gid)?;
            inode.attributes_changed();
            self.drop_capabilities(&inode, &anchor)?;
        }
        if let Some(mode) = set.mode {
            access::chmod(&anchor, mode)?;
            if let Some(file) = inode.open.lock().file() {
                file.unprivileged.store(false, Ordering::Release);
                file.content.mark_attributes();
            }
        }
        if let Some(len) = set.size {
            self.resize(caller, &inode, len, set.mtime.is_none())?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let file = inode.open.lock().file().cloned();
            let _still = file.as_ref().map(|f| f.content.hold_times());
            let done = entry::set_times(&anchor, new_time(set.atime), new_time(set.mtime));
            match done {
                // The file has its new length, whatever happens; its time is the lower filesystem's then.
                Err(e) if set.size.is_some() => log::warn!("inode {ino}: its times were not set: {e}"),
                other => other?,
            }
            if set.atime.is_some() {
                inode.attributes_changed();
            }
            if set.mtime.is_some() {
                inode.modified();
            }
        }
        match (stat::stat_fd(&anchor), before, set.size) {
            (Err(e), Some(before), Some(size)) => {
                log::warn!("inode {ino}: looking at it after its length was set: {e}");
                Ok(Attr { size, ..self.attr(&inode, &before) })
            }
            (stat, ..) => Ok(self.attr(&inode, &stat?)),
        }
    }

    fn resize(&self, caller: &Caller, inode: &Arc<Inode>, len: u64, touch: bool) -> Result<()> {
        let held = self.hold(inode, true)?;
        let lower = held.file.lower();
        if caller.uid != 0 {
            self.drop_privileges(inode, &lower.0)?;
        }
        let same = held.file.content.len() == len;
        held.file.content.set_len(len)?;
        if same && touch {
            // Nothing was written below, but a truncate marks the time whatever it did.
            let _still = held.file.content.hold_times();
            entry::set_times(&lower.0, NewTime::Keep, NewTime::Now)?;
            held.file.content.mark_modified();
        }
        Ok(())
    }

    /// Drops the set-gid bit, as a new ACL does when it is set by someone outside the file's group.
    pub fn drop_set_gid(&self, ino: Ino) -> Result<()> {
        self.changeable()?;
        let inode = self.inode(ino)?;
        let anchor = self.anchor(&inode)?;
        let mode = stat::stat_fd(&anchor)?.permissions();
        if mode & libc::S_ISGID != 0 {
            access::chmod(&anchor, mode & !libc::S_ISGID)?;
            inode.attributes_changed();
        }
        Ok(())
    }

    /// Drops set-id bits and capabilities, as a change of content by an ordinary user does.
    pub(super) fn drop_privileges(&self, inode: &Inode, fd: impl AsFd) -> Result<()> {
        fresh::drop_set_id(&fd)?;
        inode.attributes_changed();
        self.drop_capabilities(inode, fd)
    }
}

fn new_time(set: Option<SetTime>) -> NewTime {
    match set {
        None => NewTime::Keep,
        Some(SetTime::Now) => NewTime::Now,
        Some(SetTime::At((seconds, nanos))) => NewTime::At(seconds, nanos),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever length the lower file has, `stat` gives a length, and the right one for every whole file.
    #[test]
    fn every_lower_length_has_a_plain_one() {
        for plain in [0, 1, 4064, 4065, 8192, 524_288, 524_289, 1 << 30, 5 << 30] {
            assert_eq!(plain_len(layout::disk_len(plain)), plain);
        }
        for odd in [0, 31, 4097, 8000, GROUP_DISK + 1, GROUP_DISK + BLOCK_U64] {
            assert!(plain_len(odd) <= odd);
        }
    }
}
