//! Is a repository whole? Needs no key of the vault: every pack is there, every tree leads somewhere, every file has a
//! header that parses; where asked for, all data or a part of it is read.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rustic_core::CheckOptions;
use serde::Serialize;

use super::error::{BackupError, Result};
use super::repo::{Repo, store_error};
use super::walk::{has_header, judge};

/// Faults that are named.
const NAMED: usize = 1000;

/// How to verify.
#[derive(Clone, Debug, Default)]
pub struct Verify {
    /// Read data: `all`, a part in percent (`5%`), or the n-th of m parts (`3/7`).
    pub read: Option<String>,
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verified {
    /// Snapshots looked at.
    pub snapshots: u64,
    /// Files looked at, those that several snapshots share in the same state of the vault once.
    pub files: u64,
    /// What is wrong with the repository.
    pub repository: Vec<String>,
    /// Snapshot, lower path and fault of files without a good header; the first thousand.
    pub files_at_fault: Vec<(String, PathBuf, String)>,
    /// Snapshots that lacked something when they were made.
    pub incomplete: Vec<String>,
}

impl Verified {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.repository.is_empty() && self.files_at_fault.is_empty()
    }
}

impl Repo {
    /// Verifies the repository and all its snapshots.
    pub fn verify(&self, options: &Verify) -> Result<Verified> {
        let mut check = CheckOptions::default();
        if let Some(part) = &options.read {
            check.read_data = true;
            check.read_data_subset = part.parse().map_err(|_| {
                BackupError::Location(part.clone(), "give all, a part as 5%, or one of several as 3/7".into())
            })?;
        }
        let results = self.repo.check(check).map_err(self.failed())?;
        let mut found = Verified::default();
        for (level, error) in &results.0 {
            // A store that does not answer says nothing about what is in it.
            if let Some(answer) = store_error(error).filter(BackupError::is_outage) {
                return Err(answer);
            }
            // The types have no public names.
            if format!("{level:?}") == "Error" {
                found.repository.push(error.to_string());
            }
        }
        self.headers(&mut found)?;
        Ok(found)
    }

    /// Looks at every file's header in every state of the vault.
    fn headers(&self, found: &mut Verified) -> Result<()> {
        let looked = self.snapshots().and_then(|all| {
            let reader = self.reader()?;
            let mut trees = BTreeSet::new();
            for snapshot in all {
                found.snapshots += 1;
                if !snapshot.complete {
                    found.incomplete.push(snapshot.id.clone());
                }
                if !trees.insert(snapshot.tree().to_owned()) {
                    continue;
                }
                let done = reader.walk(&snapshot, Path::new(""), &mut |item| {
                    if item.kind == libc::S_IFREG {
                        found.files += 1;
                    }
                    if (has_header(&item.path) || item.path.as_os_str().is_empty())
                        && let Some(why) = judge(item.kind, &item.xattrs)
                        && found.files_at_fault.len() < NAMED
                    {
                        found.files_at_fault.push((snapshot.id.clone(), item.path, why));
                    }
                    Ok(())
                });
                match done {
                    Err(e) if e.is_outage() => return Err(e),
                    Err(e) => found.repository.push(format!("snapshot {}: {e}", snapshot.id)),
                    Ok(()) => {}
                }
            }
            Ok(())
        });
        match looked {
            Err(e) if !e.is_outage() => found.repository.push(e.to_string()),
            other => other?,
        }
        Ok(())
    }
}
