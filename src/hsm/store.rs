//! What the appliance keeps: one redb file, every value sealed under the root key with its table and key as associated
//! data. The process holds the file alone for as long as it lives; everything is in memory too.

use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use zeroize::Zeroizing;

use super::error::HsmError;
use super::wire::Bytes;
use crate::crypto::SealKey;

const STORE_FILE: &str = "hsm.redb";
/// Bytes of redb's page cache. What is hot lives in our own memory.
const CACHE_BYTES: usize = 4 << 20;
const RECORD_AD: &[u8] = b"envelopefs/hsm/v1/record";

/// A table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Table {
    Meta,
    Users,
    Objects,
    /// When what was deleted was deleted.
    Gone,
}

impl Table {
    const ALL: [Self; 4] = [Self::Meta, Self::Users, Self::Objects, Self::Gone];
}

impl Table {
    fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Users => "users",
            Self::Objects => "objects",
            Self::Gone => "gone",
        }
    }

    fn definition(self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(self.name())
    }
}

/// One change: a value, or its removal.
pub(super) type Change<'a> = (Table, Vec<u8>, Option<&'a [u8]>);

/// Key and sealed value.
type Raw = (Vec<u8>, Vec<u8>);

pub(super) struct Store {
    path: PathBuf,
    db: Database,
    key: SealKey,
    /// Writes fail, as on a full disk.
    #[cfg(test)]
    pub(super) broken: std::sync::atomic::AtomicBool,
}

impl Store {
    /// Opens the store of `dir`; makes it where it is new.
    pub(super) fn open(dir: &Path, key: SealKey, new: bool) -> Result<Self, HsmError> {
        let path = dir.join(STORE_FILE);
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let opened = if new { builder.create(&path) } else { builder.open(&path) };
        let db = match opened {
            Ok(db) => db,
            Err(DatabaseError::DatabaseAlreadyOpen) => return Err(HsmError::Busy(dir.into())),
            Err(e) => return Err(HsmError::damaged(&path, e)),
        };
        let store = Self {
            path,
            db,
            key,
            #[cfg(test)]
            broken: false.into(),
        };
        store.try_tables().map_err(|e| HsmError::damaged(&store.path, e))?;
        Ok(store)
    }

    fn try_tables(&self) -> Result<(), redb::Error> {
        let txn = self.db.begin_write()?;
        for table in Table::ALL {
            txn.open_table(table.definition())?;
        }
        Ok(txn.commit()?)
    }

    /// Every record of a table: key and opened value.
    pub(super) fn all(&self, table: Table) -> Result<Vec<(Vec<u8>, Bytes)>, HsmError> {
        let raw = self.try_all(table).map_err(|e| HsmError::damaged(&self.path, e))?;
        raw.into_iter()
            .map(|(key, sealed)| {
                let value = self.key.open(&bound(table, &key), &sealed);
                let value = value.map_err(|_| HsmError::damaged(&self.path, "a record was changed"))?;
                Ok((key, value))
            })
            .collect()
    }

    fn try_all(&self, table: Table) -> Result<Vec<Raw>, redb::Error> {
        let txn = self.db.begin_read()?;
        let mut all = Vec::new();
        for entry in txn.open_table(table.definition())?.iter()? {
            let (key, value) = entry?;
            all.push((key.value().to_vec(), value.value().to_vec()));
        }
        Ok(all)
    }

    /// All of the changes become durable, or none.
    pub(super) fn write(&self, changes: &[Change<'_>]) -> Result<(), HsmError> {
        self.try_write(&[], changes).map_err(|e| HsmError::damaged(&self.path, e))
    }

    /// Users, objects and what is remembered of deleted ones become these, or nothing changes.
    pub(super) fn replace(&self, changes: &[Change<'_>]) -> Result<(), HsmError> {
        let all = [Table::Users, Table::Objects, Table::Gone];
        self.try_write(&all, changes).map_err(|e| HsmError::damaged(&self.path, e))
    }

    fn try_write(&self, emptied: &[Table], changes: &[Change<'_>]) -> Result<(), redb::Error> {
        #[cfg(test)]
        if self.broken.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(redb::Error::Io(std::io::ErrorKind::StorageFull.into()));
        }
        let txn = self.db.begin_write()?;
        for table in emptied {
            txn.delete_table(table.definition())?;
            txn.open_table(table.definition())?;
        }
        for (table, key, value) in changes {
            let mut open = txn.open_table(table.definition())?;
            match value {
                Some(value) => {
                    let sealed = self.key.seal(&bound(*table, key), value);
                    open.insert(key.as_slice(), sealed.as_slice())?;
                }
                None => drop(open.remove(key.as_slice())?),
            }
        }
        Ok(txn.commit()?)
    }
}

/// Table and key, so that no record stands in for another.
fn bound(table: Table, key: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut ad = Zeroizing::new(RECORD_AD.to_vec());
    ad.extend_from_slice(table.name().as_bytes());
    ad.push(0);
    ad.extend_from_slice(key);
    ad
}
