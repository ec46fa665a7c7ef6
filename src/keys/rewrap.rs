//! Bringing a file's header to the newest version of the vault's wrapping keys, or to other keys.
//!
//! Knows headers only; the walk over a vault is `upkeep`'s.

use std::sync::Arc;

use super::keyring::Keyring;
use super::table::{Row, Table};
use super::{KeyError, WrapContext};
use crate::crypto::{Secret, derive};
use crate::format::header::{FileHeader, Recipient, Wrapped};

/// What headers shall become: one recipient for each active row, each of its newest version.
pub struct Target {
    table: Arc<Table>,
    /// Rows, with the version that they wrap with where they tell one.
    rows: Vec<(Arc<Row>, Option<u16>)>,
    run: [u8; 16],
    only: Option<u16>,
}

/// What became of a header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rewrapped {
    /// It is as it shall be.
    Good,
    /// It shall become this.
    New(FileHeader),
}

impl Target {
    /// Names this run among all others of this vault: its targets and versions. A run that was interrupted goes on
    /// only where this is still the same.
    pub fn describe(&self) -> String {
        let row = |(row, version): &(Arc<Row>, Option<u16>)| match version {
            Some(version) => format!("{} {} version {version}", row.index, row.uri),
            None => format!("{} {}", row.index, row.uri),
        };
        self.rows.iter().map(row).collect::<Vec<_>>().join("; ")
    }

    /// Goes on with an earlier run.
    pub fn resume(&mut self, run: [u8; 16]) {
        self.run = run;
    }

    /// Names the run in [`Keyring::mark`].
    pub fn run(&self) -> [u8; 16] {
        self.run
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Target").field(&self.describe()).finish()
    }
}

impl Keyring {
    /// What headers of this vault shall become now. With `only`, headers that hold a key of that version alone.
    pub fn rewrap_target(&self, only: Option<u16>) -> Result<Target, KeyError> {
        // What others changed before the caller had the vault's wrapping keys for himself.
        self.shared().refresh();
        let table = self.shared().table();
        let mut rows = Vec::new();
        for row in table.wrapping()? {
            rows.push(((*row).clone(), row.describe()?.version));
        }
        Ok(Target { table, rows, run: crate::crypto::random::array(), only })
    }

    /// Whether a header holds something that only the target's run can tell to be new: opaque bytes of a provider.
    pub fn is_opaque(&self, header: &FileHeader, target: &Target) -> bool {
        let opaque = |r: &Recipient| {
            let row = target.rows.iter().find(|(row, _)| row.index == r.key_index);
            matches!(r.wrapped, Wrapped::Blob(_)) && row.is_some_and(|(row, _)| !is_fixed(row))
        };
        header.recipients.iter().any(opaque)
    }

    /// Marks a header that a run wrote, so that the run knows it again; nobody else can make such a mark.
    pub fn mark(&self, target: &Target, header: &[u8]) -> [u8; 16] {
        derive::rewrap_mark(&self.shared().vault_key, &target.run, header)
    }

    /// The header that a file shall have. `done`: this run wrote it.
    pub fn rewrap(&self, header: &FileHeader, target: &Target, done: bool) -> Result<Rewrapped, KeyError> {
        if !target.concerns(header)
            || (header.recipients.len() == target.rows.len() && target.is_good(header, done))
        {
            return Ok(Rewrapped::Good);
        }
        let shared = self.shared();
        let context = WrapContext::of_file(shared.vault, header.file_id);
        let mut plain: Option<Secret<32>> = None;
        let mut recipients = Vec::with_capacity(target.rows.len());
        for (row, version) in &target.rows {
            let old = header.recipients.iter().find(|r| r.key_index == row.index);
            let kept = old.filter(|old| is_current(row, &old.wrapped, *version, done));
            let wrapped = match kept {
                Some(old) => old.wrapped.clone(),
                None => match inside(&target.table, header, row, &context) {
                    Some(moved) => moved?,
                    None => {
                        if plain.is_none() {
                            plain = Some(shared.unwrap(header)?.0);
                        }
                        let key = plain.as_ref().ok_or(KeyError::Foreign)?;
                        row.call(|provider| provider.wrap(key, &context))?
                    }
                },
            };
            recipients.push(Recipient { key_index: row.index, wrapped });
        }
        Ok(Rewrapped::New(FileHeader { file_id: header.file_id, recipients }))
    }
}

impl Target {
    fn concerns(&self, header: &FileHeader) -> bool {
        let version = |r: &Recipient| match r.wrapped {
            Wrapped::Compact { version, .. } => Some(version),
            Wrapped::Blob(_) => None,
        };
        self.only.is_none() || header.recipients.iter().any(|r| version(r) == self.only)
    }

    fn is_good(&self, header: &FileHeader, done: bool) -> bool {
        self.rows.iter().all(|(row, version)| {
            let found = header.recipients.iter().find(|r| r.key_index == row.index);
            found.is_some_and(|r| is_current(row, &r.wrapped, *version, done))
        })
    }
}

/// Whether a copy is of the newest version. Opaque bytes do not tell: then only the run that made them knows.
fn is_current(row: &Row, wrapped: &Wrapped, newest: Option<u16>, done: bool) -> bool {
    match wrapped {
        Wrapped::Compact { version, .. } => newest.is_none_or(|newest| newest == *version),
        Wrapped::Blob(_) => done || is_fixed(row),
    }
}

/// A key that never changes.
fn is_fixed(row: &Row) -> bool {
    row.uri.starts_with(super::recovery::PREFIX)
}

/// A copy for `row` made inside the service that holds both keys, where there is such.
fn inside(
    table: &Table,
    header: &FileHeader,
    row: &Row,
    context: &WrapContext,
) -> Option<Result<Wrapped, KeyError>> {
    let to = row.provider().ok()?;
    let service = to.service()?;
    for old in &header.recipients {
        let Ok(from) = table.row(old.key_index) else { continue };
        let same = from.provider().is_ok_and(|p| p.service() == Some(service));
        if same && matches!(old.wrapped, Wrapped::Blob(_)) {
            let key = super::uri::arn(&from.uri)?;
            return Some(row.call(|provider| provider.re_encrypt(&key, &old.wrapped, context)));
        }
    }
    None
}
