//! What the loads have in common.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// A load on files of its own, which knows what they may read as.
pub(crate) trait Worker: Send {
    /// Name for reports.
    fn name(&self) -> String;
    /// Opens its files for one life of the daemon; nobody is killed meanwhile.
    fn prepare(&mut self, dir: &Path) -> io::Result<()>;
    /// Works until something fails or `over` says that the end has come; gives the operations that were acknowledged.
    fn work(&mut self, dir: &Path, over: &Over) -> (u64, io::Result<()>);
    /// Reads everything after the next mount; takes what it finds for its new state.
    fn verify(&mut self, dir: &Path) -> Result<(), String>;
}

/// Set a moment before the daemon is killed: from then on errors are no fault.
#[derive(Debug, Default)]
pub(crate) struct Over(AtomicBool);

impl Over {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// A whole file; `None` where there is none. What does not open is named.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match std::fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(format!("cannot be read: {e}")),
    }
}
