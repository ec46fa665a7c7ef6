//! `kms check`: reads everything, and tells what does not fit together.

use std::collections::HashSet;

use super::engine::Engine;
use super::error::KmsError;
use super::grants::GrantRecord;
use super::hsm::StoreRecord;
use super::principals::Principal;
use super::records::{AliasRecord, KeyRecord};
use super::store::Fault;
use super::table::{ALIASES, GRANTS, INDEX, KEYS, MATERIALS, PRINCIPALS, Reader, STORES, USES, View};
use super::uses::Use;

/// Faults beyond this are not listed.
const MAX_FAULTS: usize = 100;

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CheckReport {
    /// Keys.
    pub keys: u64,
    /// Key materials.
    pub materials: u64,
    /// Aliases.
    pub aliases: u64,
    /// Grants.
    pub grants: u64,
    /// Principals.
    pub principals: u64,
    /// What is wrong, at most a hundred.
    pub faults: Vec<String>,
}

impl CheckReport {
    fn add(&mut self, fault: String) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault);
        }
    }
}

impl Engine {
    /// Opens every record, and follows every reference of one record to another.
    pub fn check(&self) -> Result<CheckReport, KmsError> {
        self.index()?;
        self.store.read(|r| {
            let mut report = CheckReport::default();
            let index: HashSet<String> = r.keys(INDEX, "", "", usize::MAX)?.into_iter().collect();
            check_keys(r, &index, &mut report)?;
            check_names(r, &index, &mut report)?;
            for table in [STORES, USES] {
                for key in r.keys(table, "", "", usize::MAX)? {
                    let opened = if table == STORES {
                        r.get::<StoreRecord>(table, &key).map(|_| ())
                    } else {
                        r.get::<Use>(table, &key).map(|_| ())
                    };
                    note(&mut report, opened)?;
                }
            }
            Ok(report)
        })
    }
}

/// A record that does not open is a fault of the store, and no reason to stop.
fn note<T>(report: &mut CheckReport, opened: Result<T, Fault>) -> Result<Option<T>, Fault> {
    match opened {
        Ok(value) => Ok(Some(value)),
        Err(Fault::Kms(KmsError::Damaged { why, .. })) => {
            report.add(why);
            Ok(None)
        }
        Err(other) => Err(other),
    }
}

fn check_keys(r: &Reader<'_>, index: &HashSet<String>, report: &mut CheckReport) -> Result<(), Fault> {
    let mut wanted = HashSet::new();
    for slot in r.keys(KEYS, "", "", usize::MAX)? {
        report.keys += 1;
        let Some(Some(key)) = note(report, r.get::<KeyRecord>(KEYS, &slot))? else { continue };
        if key.slot() != slot {
            report.add(format!("key {slot} calls itself {}", key.slot()));
        }
        if !index.contains(&super::index::key(&key.scope, &key.id)) {
            report.add(format!("key {slot} is not in the index"));
        }
        if key.key_store.is_none() {
            let all = key.materials.iter().chain(&key.pending);
            wanted.extend(all.filter(|m| m.is_present()).map(|m| m.id.clone()));
        }
    }
    let there: HashSet<String> = r.keys(MATERIALS, "", "", usize::MAX)?.into_iter().collect();
    for id in &there {
        report.materials += 1;
        note(report, r.bytes(MATERIALS, id))?;
    }
    wanted.difference(&there).for_each(|id| report.add(format!("key material {id} is missing")));
    there.difference(&wanted).for_each(|id| report.add(format!("key material {id} belongs to no key")));
    Ok(())
}

fn check_names(r: &Reader<'_>, index: &HashSet<String>, report: &mut CheckReport) -> Result<(), Fault> {
    for name in r.keys(ALIASES, "", "", usize::MAX)? {
        report.aliases += 1;
        let Some(Some(alias)) = note(report, r.get::<AliasRecord>(ALIASES, &name))? else { continue };
        if r.bytes(KEYS, &alias.target)?.is_none() {
            report.add(format!("alias {name} stands for key {}, which does not exist", alias.target));
        }
        let bare = name.split_once("alias/").map_or("", |(_, rest)| rest);
        if !index.contains(&super::index::alias_of(&alias.target, &format!("alias/{bare}"))) {
            report.add(format!("alias {name} is not in the index"));
        }
    }
    for place in r.keys(GRANTS, "", "", usize::MAX)? {
        report.grants += 1;
        let Some(Some(grant)) = note(report, r.get::<GrantRecord>(GRANTS, &place))? else { continue };
        if !index.contains(&super::index::grantee(&grant.slot, &grant.grantee, &grant.id)) {
            report.add(format!("grant {} is not in the index", grant.id));
        }
    }
    for place in r.keys(PRINCIPALS, "", "", usize::MAX)? {
        report.principals += 1;
        let Some(Some(principal)) = note(report, r.get::<Principal>(PRINCIPALS, &place))? else { continue };
        if !index.contains(&super::index::access_key(&principal.access_key, &place)) {
            report.add(format!("principal {place} is not in the index"));
        }
    }
    Ok(())
}
