//! The audit log: management commands, numbered without gaps, each line chained to the one before by an HMAC.
//!
//! Uses of keys are not logged, as CloudHSM does not log them. The head of the chain is kept in the sealed store, so
//! lines that are cut off the end are noticed too. Lines reach the disk within [`SETTLE`]; a power cut can lose the
//! last ones, and the head with them.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::HsmError;
use super::lc::{Hmac, Md};
use super::root::{hex, unhex};
use crate::crypto::Secret;

/// Name of the log in the appliance's directory.
pub(super) const AUDIT_FILE: &str = "audit.log";
/// How long a line may wait for the disk. A sync holds up what is appended meanwhile, so it does not come often.
pub(super) const SETTLE: Duration = Duration::from_secs(5);

/// One line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// Sequence number, from 0, without gaps.
    pub(super) seq: u64,
    /// How many times the appliance had started.
    pub(super) reboot: u32,
    /// Microseconds since 1970.
    pub(super) time_us: u64,
    /// CloudHSM's name of the command, as CN_LOGIN.
    pub(super) opcode: String,
    /// Session handle; 0 outside of sessions.
    pub(super) session: u64,
    /// `SUCCESS`, or the CK_RV in hexadecimal.
    pub(super) result: String,
    /// User who asked; empty for nobody.
    pub(super) user: String,
    /// That user's role.
    pub(super) role: String,
    /// Whom or what it is about: a user, or a key's handle.
    pub(super) object: String,
    /// HMAC-SHA256 over the line before's `mac` and all fields above, hexadecimal.
    pub(super) mac: String,
}

impl Entry {
    fn chained(&self, key: &Secret<32>, before: &str) -> String {
        let bare = Self { mac: String::new(), ..self.clone() };
        let text = serde_json::to_vec(&(before, bare)).expect("plain fields encode");
        hex(&Hmac::mac(Md::Sha256, key.expose(), &text).expect("HMAC takes any input"))
    }
}

/// Where the chain ends.
#[derive(Clone, Default, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// Lines written.
    pub(super) lines: u64,
    /// `mac` of the last one.
    pub(super) mac: String,
}

pub(super) struct Audit {
    pub(super) file: File,
    key: Secret<32>,
    pub(super) head: Head,
    pub(super) reboot: u32,
    /// Something was written since the last [`Audit::settle`].
    pub(super) dirty: bool,
}

impl Audit {
    /// Opens the log and follows the chain to its end.
    pub(super) fn open(dir: &Path, key: Secret<32>, stored: &Head, reboot: u32) -> Result<Self, HsmError> {
        let path = dir.join(AUDIT_FILE);
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let file = file.map_err(HsmError::io(&path))?;
        // A broken log is no reason to refuse keys; `audit verify` names the line, and the new lines go on from the
        // last one that holds.
        let (head, fault) = follow(&path, &key, stored)?;
        if let Some(fault) = fault {
            log::error!("{}: {fault}", path.display());
        }
        Ok(Self { file, key, head, reboot, dirty: false })
    }

    /// Appends a line.
    pub(super) fn append(&mut self, mut entry: Entry) -> std::io::Result<()> {
        entry.seq = self.head.lines;
        entry.reboot = self.reboot;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        entry.time_us = now.map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX));
        entry.mac = entry.chained(&self.key, &self.head.mac);
        let mut line = serde_json::to_vec(&entry).map_err(std::io::Error::other)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.head = Head { lines: entry.seq + 1, mac: entry.mac };
        self.dirty = true;
        Ok(())
    }

    /// The file for syncing, and the head to store once that is done.
    pub(super) fn unsettled(&mut self) -> Option<(File, Head)> {
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        Some((self.file.try_clone().ok()?, self.head.clone()))
    }

    /// Checks the whole log; says what is wrong with which line.
    pub(super) fn verify(&self, dir: &Path) -> Result<(u64, Option<String>), HsmError> {
        let (head, fault) = follow(&dir.join(AUDIT_FILE), &self.key, &self.head)?;
        Ok((head.lines, fault))
    }
}

/// Follows the chain; where it ends, and what broke it.
fn follow(path: &PathBuf, key: &Secret<32>, stored: &Head) -> Result<(Head, Option<String>), HsmError> {
    let mut head = Head::default();
    let mut last = Head::default();
    let mut fault = None;
    let file = File::open(path).map_err(HsmError::io(path))?;
    for (number, line) in BufReader::new(file).split(b'\n').enumerate() {
        let line = line.map_err(HsmError::io(path))?;
        let number = number as u64 + 1;
        let why = match serde_json::from_slice::<Entry>(&line) {
            Err(_) => Some("does not decode".to_owned()),
            Ok(entry) if entry.seq != head.lines => {
                Some(format!("has sequence number {}, expected {}: lines are missing", entry.seq, head.lines))
            }
            Ok(entry) if !same(&entry.chained(key, &head.mac), &entry.mac) => {
                Some("was changed, or one before it".to_owned())
            }
            Ok(entry) => {
                head = Head { lines: entry.seq + 1, mac: entry.mac };
                if head.lines == stored.lines {
                    last = head.clone();
                }
                None
            }
        };
        if let Some(why) = why {
            fault = Some(format!("line {number} {why}"));
            break;
        }
    }
    if fault.is_none() && (head.lines < stored.lines || (stored.lines > 0 && last != *stored)) {
        fault = Some(format!(
            "ends after {} lines, {} were written: the end was cut off",
            head.lines, stored.lines
        ));
    }
    // New lines go on from the stored head where the log itself is broken.
    Ok((if fault.is_some() { stored.clone() } else { head }, fault))
}

fn same(a: &str, b: &str) -> bool {
    match (unhex(a), unhex(b)) {
        (Some(a), Some(b)) => aws_lc_rs::constant_time::verify_slices_are_equal(&a, &b).is_ok(),
        _ => false,
    }
}
