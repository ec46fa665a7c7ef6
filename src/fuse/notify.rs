//! What the kernel is told without having asked.

use std::io;
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::abi;
use super::channel::Channel;
use crate::fs::Ino;

/// A way to the kernel; usable from any thread while the mount lives.
#[derive(Clone, Debug)]
pub struct Notifier(Arc<Channel>);

impl Notifier {
    pub(super) fn new(channel: Arc<Channel>) -> Self {
        Self(channel)
    }

    /// Makes the kernel forget an inode's attributes and, from `offset` on for `len` bytes (0: all that follow), its
    /// pages; changed ones are written back first, and awaited. With a negative `offset` pages stay.
    pub fn inval_inode(&self, ino: Ino, offset: i64, len: i64) -> io::Result<()> {
        let what = abi::InvalInode { ino, off: offset, len };
        Ok(self.0.send_small(0, abi::NOTIFY_INVAL_INODE, what.as_bytes())?)
    }
}
