//! POSIX: inodes, names, handles, permissions' residue. Knows nothing of the FUSE protocol and no `clap`.
//!
//! Every method of [`Fs`] may be called at once from any thread. Names are plaintext bytes, 1 to 255 long.
//! Permissions are the kernel's business: it has checked them when a request comes here. What is served and what
//! differs from a local filesystem stands in `docs/SEMANTICS.md`.
//!
//! Locks, outermost first: `births` (shared by who makes a file), `long_names`, `barrier` (shared by renames and removals), an
//! inode's `open`, the leases or a shard of the inode table, an inode's `ways`. None but `births` is held over a provider call:
//! who waits for it alone waits for the makers, who ask a provider where no key is ready, and who comes behind him waits, too.

mod again;
mod ahead;
mod attr;
mod dirs;
mod error;
mod handles;
mod inode;
mod io;
mod leases;
mod listing;
mod locks;
mod lookup;
mod make;
mod memory;
mod opened;
pub mod recover;
mod remove;
mod rename;
mod replay;
mod resolve;
mod types;
mod xattrs;

pub use crate::content::waits;
pub use error::{FsError, Result};
pub use leases::Leased;
pub use locks::{FoundLock, Granted, LAST, LockAsk, LockKind, Range};
pub use replay::{Recovered, replay};
pub use types::{Attr, Caller, DirEntry, Found, Ino, Options, SetAttr, SetTime, StatFs, Time};

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard, RwLock};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::content::Journal;
use crate::crypto::names::EncodedName;
use crate::crypto::{LinkKey, random};
use crate::format::ids::FileId;
use crate::format::names::{NAME_MAX, TMP_PREFIX};
use crate::keys::Keyring;
use crate::vault::{VaultLock, limits, sidecar, stat};

/// Inode number of the top directory.
const TOP: Ino = 1;

/// A mounted vault.
pub struct Fs {
    keyring: Keyring,
    options: Options,
    link_key: LinkKey,
    top: Arc<dirs::OpenDir>,
    top_inode: Arc<inode::Inode>,
    table: Arc<inode::Table>,
    dirs: dirs::Dirs,
    files: handles::Handles<opened::Held>,
    listings: handles::Handles<listing::OpenListing>,
    leases: leases::Leases,
    /// Of a mount that shares the vault.
    locks: locks::Locks,
    /// Of a vault that is changed by this mount alone.
    journal: Option<Arc<Journal>>,
    /// Held shared while an entry is renamed or removed and until the table knows; alone by who lost his way.
    barrier: RwLock<()>,
    /// Held while an entry with a long name comes or goes, so that its sidecar comes and goes with it.
    long_names: Mutex<()>,
    /// Held shared while a file is made, from its data key to its name (where it gets one); alone by who waits for those.
    births: RwLock<()>,
    lock: Mutex<Option<VaultLock>>,
}

impl Fs {
    /// Opens the vault's top directory. Takes the vault's lock (one mount at a time unless `shared`).
    pub fn open(vault_dir: &Path, keyring: Keyring, options: Options) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = Arc::new(rustix::fs::open(vault_dir, flags, Mode::empty())?);
        let lock = VaultLock::take(&*fd, options.shared).map_err(|e| match e {
            Errno::WOULDBLOCK => FsError::Busy,
            other => other.into(),
        })?;
        let top_stat = stat::stat_fd(&*fd)?;
        let top = Arc::new(dirs::OpenDir::new(fd));
        // A vault whose top has no id must not mount and then fail each request.
        top.id(keyring.vault_key())?;
        if !options.read_only {
            recover::forget_state(&*top);
        }
        let journal = replay::start(&top, &keyring, &options)?;
        let descriptors = limits::raise_descriptor_limit();
        Ok(Self {
            journal,
            link_key: LinkKey::derive(keyring.vault_key()),
            keyring,
            options,
            top,
            top_inode: Arc::new(inode::Inode::new(TOP, top_stat)),
            table: Arc::new(inode::Table::new()),
            dirs: dirs::Dirs::new(descriptors),
            files: handles::Handles::new(),
            listings: handles::Handles::new(),
            leases: leases::Leases::default(),
            locks: locks::Locks::new(descriptors),
            barrier: RwLock::default(),
            long_names: Mutex::default(),
            births: RwLock::default(),
            lock: Mutex::new(Some(lock)),
        })
    }

    /// Calls of the provider so far: (unwraps, generates).
    pub fn provider_calls(&self) -> (u64, u64) {
        self.keyring.provider_calls()
    }

    /// The vault's keys.
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Wraps new files for the keys of the volume config as it is now. When it returns, no file that is being made has
    /// another wrapping: those that were begun before have their names, or failed. All but nameless ones (O_TMPFILE), which keep
    /// the wrapping they have, and may get a name later.
    pub fn follow_keys(&self) -> std::result::Result<(), crate::keys::OpenError> {
        self.keyring.follow()?;
        drop(self.births.write());
        Ok(())
    }

    /// Brings everything that was changed so far to its place in the lower files, for whoever copies them.
    pub fn checkpoint(&self) -> Result<()> {
        self.journal
            .as_ref()
            .map_or(Ok(()), |journal| journal.checkpoint())
            .map_err(|e| e.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error).into())
    }

    /// Whether something of a file is not in its place in the lower file.
    pub fn is_pending(&self, file: FileId) -> bool {
        self.journal.as_ref().is_some_and(|journal| journal.holds(file))
    }

    /// Figures of the lower filesystem.
    pub fn statfs(&self) -> Result<StatFs> {
        let lower = rustix::fs::fstatvfs(self.top.as_fd())?;
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(StatFs {
            blocks: lower.f_blocks,
            bfree: lower.f_bfree,
            bavail: lower.f_bavail,
            files: lower.f_files,
            ffree: lower.f_ffree,
            bsize: small(lower.f_bsize),
            namelen: u32::try_from(NAME_MAX).unwrap_or(255),
            frsize: small(lower.f_frsize),
        })
    }

    /// Flushes everything and lets go of the vault; called once, after the last request.
    pub fn close(&self) {
        for inode in self.table.all() {
            let file = inode.open.lock().file().cloned();
            if let Some(Err(e)) = file.map(|f| f.content.sync(false)) {
                log::error!("inode {}: not synced at unmount: {e}", inode.ino);
            }
        }
        self.locks.clear();
        self.files.clear();
        self.listings.clear();
        if let Some(Err(e)) = self.journal.as_ref().map(|journal| journal.close()) {
            log::error!("the journal stays, for the next mount to bring in: {e}");
        }
        self.dirs.clear();
        self.lock.lock().take();
    }

    /// Refuses changes of a read-only mount.
    fn changeable(&self) -> Result<()> {
        if self.options.read_only { Err(Errno::ROFS.into()) } else { Ok(()) }
    }

    /// The lower name of a plaintext one.
    fn encode(&self, dir: &dirs::OpenDir, name: &[u8]) -> Result<EncodedName> {
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        if matches!(name, b"" | b"." | b"..") || name.iter().any(|b| matches!(b, b'/' | 0)) {
            return Err(Errno::INVAL.into());
        }
        Ok(dir.names(self.keyring.vault_key())?.encode(name))
    }

    /// Keeps other long names from coming or going where one of `names` is long.
    fn long_guard(&self, names: &[&EncodedName]) -> Option<MutexGuard<'_, ()>> {
        names.iter().any(|n| n.sidecar.is_some()).then(|| self.long_names.lock())
    }

    /// Writes the sidecar of a long name, before its entry.
    fn put_sidecar(&self, dir: &dirs::OpenDir, name: &EncodedName) -> Result<()> {
        if let Some((file, content)) = &name.sidecar {
            sidecar::write(dir.as_fd(), file, content, temporary_name)?;
        }
        Ok(())
    }

    /// Removes the sidecar of a long name that has no entry (any more).
    fn drop_sidecar(&self, dir: &dirs::OpenDir, name: &EncodedName) {
        let Some((file, _)) = &name.sidecar else { return };
        // Another host may be about to make the entry; there the sidecar goes with its directory.
        if !self.options.shared && stat::stat_at(dir.as_fd(), &name.lower) == Err(Errno::NOENT) {
            sidecar::remove(dir.as_fd(), file);
        }
    }
}

/// A name for something that is still being made.
fn temporary_name() -> String {
    format!("{TMP_PREFIX}{:016x}", u64::from_le_bytes(random::array()))
}
