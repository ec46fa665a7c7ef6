//! Another host may be changing a file while it is read here, without a lock: for a moment its map and its blocks do not
//! belong together, or what is kept of the map is of the time before.

use std::sync::Arc;
use std::time::Duration;

use super::inode::Inode;
use super::{Fs, FsError, Result};
use crate::content::ContentError;

/// Pauses before another look, in ms. A write of another host is over sooner, as a rule; damage is told a fifth of a second later.
const PAUSES: [u64; 6] = [0, 1, 5, 20, 50, 100];

impl Fs {
    /// Runs `read`; where what it finds does not authenticate and other hosts may change it, again after another look.
    pub(super) fn again<T>(&self, inode: &Arc<Inode>, mut read: impl FnMut() -> Result<T>) -> Result<T> {
        let mut done = read();
        for pause in PAUSES {
            if !self.options.shared || !matches!(done, Err(FsError::Content(ContentError::Damaged(_)))) {
                break;
            }
            std::thread::sleep(Duration::from_millis(pause));
            done = self.reread(inode).and_then(|()| read());
        }
        done
    }

    /// Reads anew what is kept of an open file.
    pub(super) fn reread(&self, inode: &Inode) -> Result<()> {
        let file = inode.open.lock().file().cloned();
        file.map_or(Ok(()), |file| file.look_again())
    }
}
