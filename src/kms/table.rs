//! The tables of the store, as seen within one transaction. Every record is sealed under the store key with table,
//! key and version as associated data, so that no record can stand in for another.

use std::ops::Bound;

use redb::{ReadableTable, ReadableTableMetadata, TableDefinition, TableError};
use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::context::push;
use super::labels;
use super::store::{Fault, Store};

/// A table of the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Table(&'static str);

/// Key records by key id.
pub(super) const KEYS: Table = Table("keys");
/// Key material by KeyMaterialId. Written once, never changed.
pub(super) const MATERIALS: Table = Table("materials");
/// Alias records by alias.
pub(super) const ALIASES: Table = Table("aliases");
/// Grants by key slot and grant id.
pub(super) const GRANTS: Table = Table("grants");
/// Principals by name.
pub(super) const PRINCIPALS: Table = Table("principals");
/// Custom key stores by id.
pub(super) const STORES: Table = Table("stores");
/// Last use of keys, by key slot.
pub(super) const USES: Table = Table("uses");
/// What is found otherwise than by its own key: names only, no content (`index.rs`).
pub(super) const INDEX: Table = Table("index");
/// Every table.
pub(super) const ALL: [Table; 8] = [KEYS, MATERIALS, ALIASES, GRANTS, PRINCIPALS, STORES, USES, INDEX];

impl Table {
    pub(super) fn name(self) -> &'static str {
        self.0
    }

    pub(super) fn by_name(name: &str) -> Option<Self> {
        ALL.into_iter().find(|t| t.0 == name)
    }

    pub(super) fn definition(self) -> TableDefinition<'static, &'static str, &'static [u8]> {
        TableDefinition::new(self.0)
    }
}

impl Store {
    /// Version (u64 LE), then nonce, ciphertext, tag.
    fn seal(&self, table: Table, key: &str, version: u64, plain: &[u8]) -> Vec<u8> {
        let mut value = version.to_le_bytes().to_vec();
        value.extend_from_slice(&self.key.seal(&bound(table, key, version), plain));
        value
    }

    fn unseal(&self, table: Table, key: &str, value: &[u8]) -> Result<(u64, Zeroizing<Vec<u8>>), Fault> {
        let opened = value.split_first_chunk().and_then(|(version, sealed)| {
            let version = u64::from_le_bytes(*version);
            Some((version, self.key.open(&bound(table, key, version), sealed).ok()?))
        });
        let why = || format!("record {key} of table {} does not open under the root key", table.0);
        Ok(opened.ok_or_else(|| self.damaged(&why()))?)
    }

    fn parse<T: DeserializeOwned>(&self, key: &str, plain: &[u8]) -> Result<T, Fault> {
        Ok(serde_json::from_slice(plain).map_err(|e| self.damaged(&format_args!("record {key}: {e}")))?)
    }
}

/// Associated data of a record.
fn bound(table: Table, key: &str, version: u64) -> Vec<u8> {
    let mut ad = labels::RECORD_AD.to_vec();
    push(&mut ad, table.0.as_bytes());
    push(&mut ad, key.as_bytes());
    push(&mut ad, &version.to_le_bytes());
    ad
}

/// A view of the store: what reads are made of, in a transaction of either kind.
pub(super) trait View {
    /// The store behind it.
    fn store(&self) -> &Store;

    /// Runs `work` on a table; on none where a store of an earlier build has not got it.
    fn rows<T>(
        &self,
        table: Table,
        work: impl FnOnce(Option<&dyn Rows>) -> Result<T, Fault>,
    ) -> Result<T, Fault>;

    /// A record's bytes.
    fn bytes(&self, table: Table, key: &str) -> Result<Option<Zeroizing<Vec<u8>>>, Fault> {
        self.rows(table, |rows| {
            let Some(value) = rows.map(|r| r.value(key)).transpose()?.flatten() else { return Ok(None) };
            Ok(Some(self.store().unseal(table, key, &value)?.1))
        })
    }

    /// A record.
    fn get<T: DeserializeOwned>(&self, table: Table, key: &str) -> Result<Option<T>, Fault> {
        let Some(plain) = self.bytes(table, key)? else { return Ok(None) };
        Ok(Some(self.store().parse(key, &plain)?))
    }

    /// Keys that begin with `prefix` and stand behind `after`, in order, at most `limit`.
    fn keys(&self, table: Table, prefix: &str, after: &str, limit: usize) -> Result<Vec<String>, Fault> {
        self.rows(table, |rows| rows.map_or(Ok(Vec::new()), |r| r.keys(prefix, after, limit)))
    }

    /// As [`View::keys`], with the records.
    fn page<T: DeserializeOwned>(
        &self,
        table: Table,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<(String, T)>, Fault> {
        let keys = self.keys(table, prefix, after, limit)?;
        let mut all = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some(record) = self.get(table, &key)? {
                all.push((key, record));
            }
        }
        Ok(all)
    }

    /// Every record of a table, in the order of their keys.
    fn list<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<(String, T)>, Fault> {
        self.page(table, "", "", usize::MAX)
    }
}

/// A table's rows, still sealed.
pub(super) trait Rows {
    fn value(&self, key: &str) -> Result<Option<Vec<u8>>, Fault>;
    fn keys(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<String>, Fault>;
}

impl<R: ReadableTable<&'static str, &'static [u8]>> Rows for R {
    fn value(&self, key: &str) -> Result<Option<Vec<u8>>, Fault> {
        Ok(self.get(key)?.map(|guard| guard.value().to_vec()))
    }

    fn keys(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<String>, Fault> {
        let start = if after >= prefix && !after.is_empty() {
            Bound::Excluded(after)
        } else {
            Bound::Included(prefix)
        };
        let mut found = Vec::new();
        for row in self.range::<&str>((start, Bound::Unbounded))? {
            let (key, _) = row?;
            if found.len() >= limit || !key.value().starts_with(prefix) {
                break;
            }
            found.push(key.value().to_owned());
        }
        Ok(found)
    }
}

/// One consistent view of the store.
pub(super) struct Reader<'a> {
    txn: redb::ReadTransaction,
    store: &'a Store,
}

impl<'a> Reader<'a> {
    pub(super) fn new(txn: redb::ReadTransaction, store: &'a Store) -> Self {
        Self { txn, store }
    }
}

impl View for Reader<'_> {
    fn store(&self) -> &Store {
        self.store
    }

    fn rows<T>(
        &self,
        table: Table,
        work: impl FnOnce(Option<&dyn Rows>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        match self.txn.open_table(table.definition()) {
            Ok(rows) => work(Some(&rows)),
            Err(TableError::TableDoesNotExist(_)) => work(None),
            Err(other) => Err(other.into()),
        }
    }
}

/// A transaction that is being made.
pub(super) struct Writer<'a> {
    txn: &'a redb::WriteTransaction,
    store: &'a Store,
}

impl View for Writer<'_> {
    fn store(&self) -> &Store {
        self.store
    }

    fn rows<T>(
        &self,
        table: Table,
        work: impl FnOnce(Option<&dyn Rows>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        work(Some(&self.txn.open_table(table.definition())?))
    }
}

impl<'a> Writer<'a> {
    pub(super) fn new(txn: &'a redb::WriteTransaction, store: &'a Store) -> Self {
        Self { txn, store }
    }

    /// How many records a table has.
    pub(super) fn len(&self, table: Table) -> Result<u64, Fault> {
        Ok(self.txn.open_table(table.definition())?.len()?)
    }

    /// Writes a record.
    pub(super) fn put<T: Serialize>(&self, table: Table, key: &str, record: &T) -> Result<(), Fault> {
        let plain = Zeroizing::new(serde_json::to_vec(record).map_err(|e| self.store.damaged(&e))?);
        self.put_bytes(table, key, &plain)
    }

    /// Writes a record's bytes.
    pub(super) fn put_bytes(&self, table: Table, key: &str, plain: &[u8]) -> Result<(), Fault> {
        let mut rows = self.txn.open_table(table.definition())?;
        let version = match rows.get(key)? {
            Some(old) => self.store.unseal(table, key, old.value())?.0 + 1,
            None => 1,
        };
        rows.insert(key, self.store.seal(table, key, version, plain).as_slice())?;
        Ok(())
    }

    /// Removes a record; says whether there was one.
    pub(super) fn remove(&self, table: Table, key: &str) -> Result<bool, Fault> {
        Ok(self.txn.open_table(table.definition())?.remove(key)?.is_some())
    }

    /// Adds a name to the index.
    pub(super) fn mark(&self, name: &str) -> Result<(), Fault> {
        self.txn.open_table(INDEX.definition())?.insert(name, &b""[..])?;
        Ok(())
    }

    /// Forgets everything but the principals.
    pub(super) fn clear(&self) -> Result<(), Fault> {
        for table in ALL {
            let mut rows = self.txn.open_table(table.definition())?;
            match table {
                PRINCIPALS => {}
                INDEX => rows.retain(|name, _| name.starts_with("p:"))?,
                _ => rows.retain(|_, _| false)?,
            }
        }
        Ok(())
    }
}
