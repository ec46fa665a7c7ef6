//! Backup of the whole KMS as one file under a passphrase, and its restore into a new store.
//!
//! ```text
//!    0  magic              8 bytes       "EFSKMSBK"
//!    8  version (1)        1 byte
//!    9  memory, passes, lanes            3 x u32 LE, Argon2id
//!   21  salt               16 bytes
//!   37  chunks             each: length u32 LE, sealed bytes; AD = label, bytes 0..37, number u64 LE, last (0 or 1)
//! ```
//! A chunk's plaintext is records: table, key, value, each with its length (u32 LE) before it. The number and the mark of
//! the last chunk make a cut or reordered file fail.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use zeroize::Zeroizing;

use super::context::push;
use super::dir;
use super::engine::Engine;
use super::error::KmsError;
use super::labels;
use super::root::{Cost, Protection, passphrase_key};
use super::store::Fault;
use super::table::{ALL, INDEX, Reader, Table, View, Writer};
use crate::crypto::{SealKey, random};

const MAGIC: &[u8; 8] = b"EFSKMSBK";
const VERSION: u8 = 1;
const HEAD: usize = 37;
/// A chunk is sealed when it has this many bytes.
const CHUNK: usize = 256 << 10;
/// A sealed chunk that claims more than this is refused before it is read.
const MAX_CHUNK: u32 = 4 << 20;
/// Records that are read at a time.
const BATCH: usize = 1000;

/// What a backup or a restore moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BackupReport {
    /// Records of all tables.
    pub records: u64,
}

impl Engine {
    /// Writes a backup to a new file (mode 0600). It is one consistent view of the store, also while others write.
    pub fn backup(&self, to: &Path, passphrase: &str) -> Result<BackupReport, KmsError> {
        self.backup_with_cost(to, passphrase, Cost::default())
    }

    /// As [`Engine::backup`], with another price of a guess.
    #[doc(hidden)]
    pub fn backup_with_cost(
        &self,
        to: &Path,
        passphrase: &str,
        cost: Cost,
    ) -> Result<BackupReport, KmsError> {
        if passphrase.is_empty() {
            return Err(KmsError::Validation("the passphrase of the backup is empty".into()));
        }
        self.write_uses()?;
        let file = dir::new_private(to).map_err(KmsError::io(to))?;
        let written = self.store.read(|r| write_all(r, &file, to, passphrase, cost));
        if written.is_err() {
            // The error is the one to report; half a backup opens as damaged.
            let _ = std::fs::remove_file(to);
        }
        written
    }

    /// Makes a store in `dir` (which must not exist, or be empty) from a backup. The store has a root key of its own.
    pub fn restore(
        from: &Path,
        passphrase: &str,
        dir: &Path,
        protection: &Protection,
    ) -> Result<(Self, BackupReport), KmsError> {
        let mut source = Source::open(from, passphrase)?;
        // A wrong passphrase makes nothing.
        let mut chunk = source.next()?;
        let engine = Self::create(dir, protection)?;
        let restored = engine.store.write(|w| {
            let mut report = BackupReport::default();
            while let Some(records) = chunk.take() {
                report.records += put_records(w, from, &records)?;
                chunk = source.next()?;
            }
            Ok(report)
        });
        match restored {
            Ok(report) => Ok((engine, report)),
            Err(error) => {
                drop(engine);
                // What was made here is not whole.
                let _ = std::fs::remove_dir_all(dir);
                Err(error)
            }
        }
    }
}

fn damaged(path: &Path, why: &str) -> KmsError {
    KmsError::Damaged { path: path.into(), why: format!("the backup {why}") }
}

struct Sink<'a> {
    out: BufWriter<&'a File>,
    path: &'a Path,
    key: SealKey,
    head: Vec<u8>,
    number: u64,
    chunk: Zeroizing<Vec<u8>>,
}

fn write_all(
    r: &Reader<'_>,
    file: &File,
    path: &Path,
    passphrase: &str,
    cost: Cost,
) -> Result<BackupReport, Fault> {
    let salt = random::array::<16>();
    let mut head = MAGIC.to_vec();
    head.push(VERSION);
    for n in cost.numbers() {
        head.extend_from_slice(&n.to_le_bytes());
    }
    head.extend_from_slice(&salt);
    let key = passphrase_key(path, passphrase, &salt, cost)?;
    let out = BufWriter::new(file);
    let mut sink = Sink { out, path, key, head: head.clone(), number: 0, chunk: Zeroizing::new(Vec::new()) };
    sink.write(&head)?;
    let mut report = BackupReport::default();
    for table in ALL {
        let mut after = String::new();
        loop {
            let keys = r.keys(table, "", &after, BATCH)?;
            let Some(last) = keys.last() else { break };
            after.clone_from(last);
            for key in &keys {
                // Index entries have no content.
                let value = if table == INDEX { None } else { r.bytes(table, key)? };
                push(&mut sink.chunk, table.name().as_bytes());
                push(&mut sink.chunk, key.as_bytes());
                push(&mut sink.chunk, value.as_ref().map_or(&[], |v| v.as_slice()));
                report.records += 1;
                if sink.chunk.len() >= CHUNK {
                    sink.seal(false)?;
                }
            }
        }
    }
    sink.seal(true)?;
    sink.out.flush().and_then(|()| file.sync_all()).map_err(KmsError::io(path))?;
    Ok(report)
}

impl Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), KmsError> {
        self.out.write_all(bytes).map_err(KmsError::io(self.path))
    }

    fn seal(&mut self, last: bool) -> Result<(), KmsError> {
        let sealed = self.key.seal(&bound(&self.head, self.number, last), &self.chunk);
        let len = u32::try_from(sealed.len()).map_err(|_| damaged(self.path, "has a record of 4 GiB"))?;
        self.write(&len.to_le_bytes())?;
        self.write(&sealed)?;
        self.chunk.clear();
        self.number += 1;
        Ok(())
    }
}

fn bound(head: &[u8], number: u64, last: bool) -> Vec<u8> {
    let mut ad = labels::BACKUP_AD.to_vec();
    push(&mut ad, head);
    push(&mut ad, &number.to_le_bytes());
    push(&mut ad, &[u8::from(last)]);
    ad
}

/// A backup that is being read.
struct Source<'a> {
    from: BufReader<File>,
    path: &'a Path,
    key: SealKey,
    head: Vec<u8>,
    number: u64,
    is_over: bool,
}

impl<'a> Source<'a> {
    fn open(path: &'a Path, passphrase: &str) -> Result<Self, KmsError> {
        let mut from = BufReader::new(File::open(path).map_err(KmsError::io(path))?);
        let mut head = vec![0; HEAD];
        from.read_exact(&mut head).map_err(|_| damaged(path, "is too short"))?;
        let rest = head.strip_prefix(MAGIC).ok_or_else(|| damaged(path, "is no backup of a KMS"))?;
        let (version, rest) = rest.split_first().ok_or_else(|| damaged(path, "is too short"))?;
        if *version != VERSION {
            let (found, newest) = (u32::from(*version), u32::from(VERSION));
            return Err(KmsError::Newer { path: path.into(), found, newest });
        }
        let (numbers, salt) = rest.split_at_checked(12).ok_or_else(|| damaged(path, "is too short"))?;
        let mut numbers = numbers.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]));
        let mut next = || numbers.next().unwrap_or(0);
        let cost = Cost::from_numbers([next(), next(), next()])
            .ok_or_else(|| damaged(path, "has Argon2id parameters out of range"))?;
        let key = passphrase_key(path, passphrase, salt, cost)?;
        Ok(Self { from, path, key, head, number: 0, is_over: false })
    }

    /// The next chunk's records; nothing behind the last one.
    fn next(&mut self) -> Result<Option<Zeroizing<Vec<u8>>>, KmsError> {
        let mut len = [0; 4];
        if self.is_over {
            return match self.from.read(&mut len) {
                Ok(0) => Ok(None),
                _ => Err(damaged(self.path, "goes on behind its end")),
            };
        }
        self.from.read_exact(&mut len).map_err(|_| damaged(self.path, "is cut"))?;
        let len = u32::from_le_bytes(len);
        if len > MAX_CHUNK {
            return Err(damaged(self.path, "has a chunk that is too long"));
        }
        let mut sealed = vec![0; len as usize];
        self.from.read_exact(&mut sealed).map_err(|_| damaged(self.path, "is cut"))?;
        for last in [false, true] {
            if let Ok(records) = self.key.open(&bound(&self.head, self.number, last), &sealed) {
                self.number += 1;
                self.is_over = last;
                return Ok(Some(records));
            }
        }
        if self.number > 0 {
            return Err(damaged(self.path, "was changed"));
        }
        let path = self.path.display();
        Err(KmsError::Denied(format!("{path}: wrong passphrase, or the backup was changed; try again")))
    }
}

/// Puts the records of a chunk where they belong; gives how many there were.
fn put_records(w: &Writer<'_>, path: &Path, records: &[u8]) -> Result<u64, Fault> {
    let mut rest = records;
    let mut count = 0;
    while !rest.is_empty() {
        let mut field = || {
            let (len, tail) = rest.split_first_chunk::<4>()?;
            let (field, tail) = tail.split_at_checked(u32::from_le_bytes(*len) as usize)?;
            rest = tail;
            Some(field)
        };
        let (Some(table), Some(key), Some(value)) = (field(), field(), field()) else {
            return Err(damaged(path, "has a record that ends early").into());
        };
        let table = std::str::from_utf8(table).ok().and_then(Table::by_name);
        let (Some(table), Ok(key)) = (table, std::str::from_utf8(key)) else {
            return Err(damaged(path, "has a record of an unknown table").into());
        };
        if table == INDEX {
            w.mark(key)?
        } else {
            w.put_bytes(table, key, value)?
        }
        count += 1;
    }
    Ok(count)
}
