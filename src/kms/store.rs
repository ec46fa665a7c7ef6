//! The durable store: one redb file. What its records are is told in `table`.
//!
//! redb locks its file for as long as it is open, so each operation opens it, works, and closes it: `kms rotate-key`
//! works while a daemon has the vault mounted. A server holds it instead ([`Store::hold`]): nobody else writes then, and
//! an operation costs no opening. A crash leaves the last commit.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use redb::{Database, DatabaseError, ReadableDatabase, StorageError};

use super::dir;
use super::error::KmsError;
use super::table::{ALL, Reader, Writer};
use crate::crypto::{SealKey, random};

const STORE_FILE: &str = "store.redb";
/// How long an operation waits for another process to close the store. An operation holds it for milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_millis(40);
/// Bytes of redb's page cache: it lives for one operation. redb's own default is 1 GiB.
const CACHE_BYTES: usize = 1 << 20;
/// Bytes of redb's page cache while a server holds the store.
const HELD_CACHE_BYTES: usize = 64 << 20;
/// A change this recent may share its time stamp with the next one: the kernel's clock ticks every 1 to 10 ms.
const RACY: Duration = Duration::from_millis(100);

/// Tells whether the store changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stamp {
    /// Of a shared file: costs one `stat`.
    File { modified: SystemTime, len: u64, inode: u64 },
    /// Of a held one: changes that were committed.
    Held(u64),
}

impl Stamp {
    /// Whether a later change is certain to give another stamp.
    pub(super) fn is_settled(&self) -> bool {
        match self {
            Self::File { modified, .. } => modified.elapsed().is_ok_and(|age| age > RACY),
            Self::Held(_) => true,
        }
    }
}

/// The store file and the key of its records.
pub(super) struct Store {
    path: PathBuf,
    pub(super) key: SealKey,
    held: Option<Database>,
    changes: AtomicU64,
}

impl Store {
    /// Makes an empty store in a directory that is being made.
    pub(super) fn create(at: &Path, key: SealKey) -> Result<Self, KmsError> {
        let store = Self::at(at, key);
        dir::new_private(&store.path).map_err(KmsError::io(&store.path))?;
        store.guard(|| {
            let db = Database::builder().set_cache_size(CACHE_BYTES).create(&store.path)?;
            let txn = db.begin_write()?;
            for table in ALL {
                txn.open_table(table.definition())?;
            }
            txn.commit()?;
            Ok(db.close()?)
        })?;
        Ok(store)
    }

    /// The store in a directory that was checked.
    pub(super) fn at(dir: &Path, key: SealKey) -> Self {
        Self { path: dir.join(STORE_FILE), key, held: None, changes: AtomicU64::new(0) }
    }

    /// Opens the file for as long as this value lives: no other process opens it meanwhile.
    pub(super) fn hold(&mut self) -> Result<(), KmsError> {
        let held = self.guard(|| {
            let mut builder = Database::builder();
            builder.set_cache_size(HELD_CACHE_BYTES).set_check_integrity_on_open(true);
            let db = self.patiently(|| builder.open(&self.path))?;
            // Tables that a store of an earlier build has not got.
            let txn = db.begin_write()?;
            for table in ALL {
                txn.open_table(table.definition())?;
            }
            txn.commit()?;
            Ok(db)
        })?;
        self.held = Some(held);
        Ok(())
    }

    /// Gives the key back: the directory is about to be renamed.
    pub(super) fn into_key(self) -> SealKey {
        self.key
    }

    /// The file's stamp.
    pub(super) fn stamp(&self) -> Result<Stamp, KmsError> {
        use std::os::unix::fs::MetadataExt as _;
        if self.held.is_some() {
            return Ok(Stamp::Held(self.changes.load(Ordering::Acquire)));
        }
        let meta = std::fs::metadata(&self.path).map_err(|e| self.io(e))?;
        let modified = meta.modified().map_err(|e| self.io(e))?;
        Ok(Stamp::File { modified, len: meta.len(), inode: meta.ino() })
    }

    /// Runs `work` on one consistent view.
    pub(super) fn read<T>(&self, work: impl FnOnce(&Reader<'_>) -> Result<T, Fault>) -> Result<T, KmsError> {
        self.guard(|| {
            if let Some(db) = &self.held {
                return work(&Reader::new(db.begin_read()?, self));
            }
            let mut builder = Database::builder();
            builder.set_cache_size(CACHE_BYTES);
            match self.patiently(|| builder.open_read_only(&self.path)) {
                Ok(db) => work(&Reader::new(db.begin_read()?, self)),
                // A process was killed while it wrote: the next one to open the store for writing mends it.
                Err(Fault::Redb(redb::Error::RepairAborted)) => {
                    let db = self.open()?;
                    let result = work(&Reader::new(db.begin_read()?, self))?;
                    db.close()?;
                    Ok(result)
                }
                Err(other) => Err(other),
            }
        })
    }

    /// Runs `work` in one transaction: all of it becomes durable, or, where it fails, nothing.
    pub(super) fn write<T>(&self, work: impl FnOnce(&Writer<'_>) -> Result<T, Fault>) -> Result<T, KmsError> {
        self.guard(|| {
            if let Some(db) = &self.held {
                let txn = db.begin_write()?;
                let result = work(&Writer::new(&txn, self))?;
                txn.commit()?;
                self.changes.fetch_add(1, Ordering::AcqRel);
                return Ok(result);
            }
            let db = self.open()?;
            let txn = db.begin_write()?;
            let result = work(&Writer::new(&txn, self))?;
            txn.commit()?;
            db.close()?;
            Ok(result)
        })
    }

    fn open(&self) -> Result<Database, Fault> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
        self.patiently(|| builder.open(&self.path))
    }

    /// Tries again, at growing intervals, while another process has the store.
    fn patiently<D>(&self, mut open: impl FnMut() -> Result<D, DatabaseError>) -> Result<D, Fault> {
        let start = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            match open() {
                Err(DatabaseError::DatabaseAlreadyOpen) if start.elapsed() < PATIENCE => {}
                Err(DatabaseError::DatabaseAlreadyOpen) => {
                    return Err(Fault::Kms(KmsError::Busy {
                        path: self.path.clone(),
                        seconds: PATIENCE.as_secs(),
                    }));
                }
                other => return Ok(other?),
            }
            // A random share, so that waiting processes do not meet again.
            let share = u32::from(random::array::<1>()[0]) + 1;
            std::thread::sleep(pause * share / 256);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Turns redb's failures into ours. redb trusts a file that was closed cleanly and may panic where its bytes were
    /// changed since (its documentation of `Database::open`); that is a damaged store, and no reason to end the daemon.
    fn guard<T>(&self, work: impl FnOnce() -> Result<T, Fault>) -> Result<T, KmsError> {
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(Fault::Kms(error))) => Err(error),
            Ok(Err(Fault::Redb(error))) => Err(match error {
                redb::Error::Io(e) if e.kind() == std::io::ErrorKind::InvalidData => self.damaged(&e),
                redb::Error::Io(e) => self.io(e),
                other => self.damaged(&other),
            }),
            Err(_) => Err(self.damaged(&"its pages contradict each other")),
        }
    }

    fn io(&self, e: std::io::Error) -> KmsError {
        match (e.kind(), self.path.parent()) {
            (std::io::ErrorKind::NotFound, Some(dir)) => KmsError::NoStore(dir.into()),
            _ => KmsError::io(&self.path)(e),
        }
    }

    pub(super) fn damaged(&self, why: &dyn std::fmt::Display) -> KmsError {
        KmsError::Damaged { path: self.path.clone(), why: why.to_string() }
    }
}

/// What ends an operation inside the store.
pub(super) enum Fault {
    /// For the caller.
    Kms(KmsError),
    /// redb's.
    Redb(redb::Error),
}

impl From<KmsError> for Fault {
    fn from(error: KmsError) -> Self {
        Self::Kms(error)
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for Fault {
            fn from(error: $error) -> Self {
                Self::Redb(error.into())
            }
        }
    )*};
}
from_redb!(DatabaseError, StorageError, redb::TransactionError, redb::TableError, redb::CommitError);
