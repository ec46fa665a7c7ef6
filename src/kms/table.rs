//! The tables of the store, as seen within one transaction. Every record is sealed under the store key with table,
//! key and version as associated data, so that no record can stand in for another.

use redb::{ReadableTable, ReadableTableMetadata, TableDefinition};
use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::context::push;
use super::labels;
use super::store::{Fault, Store};

/// A table of the store.
#[derive(Clone, Copy)]
pub(super) struct Table(&'static str);

/// Key records by key id.
pub(super) const KEYS: Table = Table("keys");
/// Key material by KeyMaterialId. Written once, never changed.
pub(super) const MATERIALS: Table = Table("materials");
/// Alias records by alias.
pub(super) const ALIASES: Table = Table("aliases");

impl Table {
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

    fn decode<T: DeserializeOwned>(&self, table: Table, key: &str, value: &[u8]) -> Result<T, Fault> {
        let (_, plain) = self.unseal(table, key, value)?;
        Ok(serde_json::from_slice(&plain).map_err(|e| self.damaged(&format_args!("record {key}: {e}")))?)
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

/// One consistent view of the store.
pub(super) struct Reader<'a> {
    txn: redb::ReadTransaction,
    store: &'a Store,
}

impl<'a> Reader<'a> {
    pub(super) fn new(txn: redb::ReadTransaction, store: &'a Store) -> Self {
        Self { txn, store }
    }

    /// A record.
    pub(super) fn get<T: DeserializeOwned>(&self, table: Table, key: &str) -> Result<Option<T>, Fault> {
        let rows = self.txn.open_table(table.definition())?;
        rows.get(key)?.map(|value| self.store.decode(table, key, value.value())).transpose()
    }

    /// A record's bytes.
    pub(super) fn bytes(&self, table: Table, key: &str) -> Result<Option<Zeroizing<Vec<u8>>>, Fault> {
        let rows = self.txn.open_table(table.definition())?;
        rows.get(key)?.map(|value| Ok(self.store.unseal(table, key, value.value())?.1)).transpose()
    }

    /// Every record of a table, in the order of their keys.
    pub(super) fn list<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<(String, T)>, Fault> {
        list(self.store, table, &self.txn.open_table(table.definition())?)
    }
}

/// A transaction that is being made.
pub(super) struct Writer<'a> {
    txn: &'a redb::WriteTransaction,
    store: &'a Store,
}

impl<'a> Writer<'a> {
    pub(super) fn new(txn: &'a redb::WriteTransaction, store: &'a Store) -> Self {
        Self { txn, store }
    }

    /// A record.
    pub(super) fn get<T: DeserializeOwned>(&self, table: Table, key: &str) -> Result<Option<T>, Fault> {
        let rows = self.txn.open_table(table.definition())?;
        rows.get(key)?.map(|value| self.store.decode(table, key, value.value())).transpose()
    }

    /// Every record of a table.
    pub(super) fn list<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<(String, T)>, Fault> {
        list(self.store, table, &self.txn.open_table(table.definition())?)
    }

    /// How many records a table has.
    pub(super) fn len(&self, table: Table) -> Result<u64, Fault> {
        Ok(self.txn.open_table(table.definition())?.len()?)
    }

    /// Writes a record.
    pub(super) fn put<T: Serialize>(&self, table: Table, key: &str, record: &T) -> Result<(), Fault> {
        let plain = serde_json::to_vec(record).map_err(|e| self.store.damaged(&e))?;
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
}

fn list<T: DeserializeOwned>(
    store: &Store,
    table: Table,
    rows: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Vec<(String, T)>, Fault> {
    let mut all = Vec::new();
    for row in rows.iter()? {
        let (key, value) = row?;
        all.push((key.value().to_owned(), store.decode(table, key.value(), value.value())?));
    }
    Ok(all)
}
