//! The audit log: management commands, numbered without gaps, each line chained to the one before by an HMAC.
//!
//! Uses of keys are not logged, as CloudHSM does not log them. The head of the chain is kept in the sealed store, so
//! lines that are cut off the end are noticed too. Lines reach the disk within [`SETTLE`]; a power cut can lose the
//! last ones, and the head with them.
//!
//! The log is [`AUDIT_FILE`] and the files that were full or broken before, each beginning with the `mac` of the line before
//! it. What a power cut or a full disk left of a line is cut off. Where something else is wrong a new file begins, so
//! that one fault does not take the evidence of what is written later.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::HsmError;
use super::lc::{Hmac, Md};
use super::root::{hex, unhex};
use crate::crypto::Secret;

/// Name of the log in the appliance's directory.
pub(super) const AUDIT_FILE: &str = "audit.log";
/// What the names of the files before it begin with; the number of the next line follows.
const PREFIX: &str = "audit.";
/// A file that is about to be the log.
const NEXT_FILE: &str = "audit-next";
/// Bytes of a file, with which it is full.
const FULL: u64 = if cfg!(test) { 64 << 10 } else { 64 << 20 };
/// The longest line that is read: names and what a line is about are bounded.
const MAX_LINE: u64 = 4096;
/// Faults that are named.
const SHOWN: usize = 16;
/// Characters of a fault that a new file names.
const MAX_FAULT: usize = 256;
/// The opcode of a file's first line, and of one that says what was cut off.
const BEGINS: &str = "CN_LOG_BEGINS";
const CUT: &str = "CN_LOG_CUT";
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
    /// In a file's first line, but the log's very first: `mac` of the line before.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) before: String,
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
    dir: PathBuf,
    pub(super) file: File,
    /// Bytes of whole lines in the file; `torn`: there may be more behind them.
    len: u64,
    torn: bool,
    key: Secret<32>,
    pub(super) head: Head,
    pub(super) reboot: u32,
    /// Something was written since the last [`Audit::settle`].
    pub(super) dirty: bool,
}

impl Audit {
    /// Opens the log and follows the chain of its last file to the end.
    pub(super) fn open(dir: &Path, key: Secret<32>, stored: &Head, reboot: u32) -> Result<Self, HsmError> {
        let path = dir.join(AUDIT_FILE);
        let file = append_to(&path).map_err(HsmError::io(&path))?;
        let mut found = Chain::new(&key, stored);
        found.follow(AUDIT_FILE, &file).map_err(HsmError::io(&path))?;
        found.ends();
        let (head, len, rest, faults) = (found.head, found.len, found.rest, found.faults);
        let mut audit = Self { dir: dir.into(), file, len, torn: rest > 0, key, head, reboot, dirty: false };
        audit.forget_twin().map_err(HsmError::io(dir))?;
        let done = match faults.first() {
            None if rest == 0 => Ok(()),
            // Half a line, of which nobody was told that it was written.
            None => audit.append(Entry {
                opcode: CUT.into(),
                object: format!("{rest} bytes"),
                ..Entry::default()
            }),
            // A broken log is no reason to refuse keys: `audit verify` names the fault.
            Some(fault) => {
                log::error!("{fault}");
                if audit.head.lines < stored.lines {
                    audit.head = stored.clone();
                }
                audit.begin(fault)
            }
        };
        done.map_err(HsmError::io(&path))?;
        Ok(audit)
    }

    /// Appends a line.
    pub(super) fn append(&mut self, entry: Entry) -> std::io::Result<()> {
        if self.len >= FULL {
            self.begin("")?;
        }
        let (line, head) = self.line(entry)?;
        if self.torn {
            self.file.set_len(self.len)?;
        }
        self.torn = true;
        self.file.write_all(&line)?;
        self.torn = false;
        self.len += line.len() as u64;
        self.head = head;
        self.dirty = true;
        Ok(())
    }

    /// The next line, and the head behind it.
    fn line(&self, mut entry: Entry) -> std::io::Result<(Vec<u8>, Head)> {
        entry.seq = self.head.lines;
        entry.reboot = self.reboot;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        entry.time_us = now.map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX));
        entry.mac = entry.chained(&self.key, &self.head.mac);
        let mut line = serde_json::to_vec(&entry).map_err(std::io::Error::other)?;
        line.push(b'\n');
        Ok((line, Head { lines: entry.seq + 1, mac: entry.mac }))
    }

    /// Begins a new file; `fault` where something is wrong with the one before.
    fn begin(&mut self, fault: &str) -> std::io::Result<()> {
        let (path, next) = (self.dir.join(AUDIT_FILE), self.dir.join(NEXT_FILE));
        let (line, head) = self.line(Entry {
            opcode: BEGINS.into(),
            object: fault.chars().take(MAX_FAULT).collect(),
            before: self.head.mac.clone(),
            ..Entry::default()
        })?;
        self.file.sync_data()?;
        let _ = std::fs::remove_file(&next);
        let mut file = append_to(&next)?;
        file.write_all(&line)?;
        file.sync_data()?;
        // Under its new name first: at no time is there no log. Two broken files may end at the same line.
        let mut names = (0..SHOWN).map(|n| self.dir.join(named(self.head.lines, n)));
        let old = names.find(|name| !name.exists()).ok_or(std::io::ErrorKind::AlreadyExists)?;
        std::fs::hard_link(&path, &old)?;
        if let Err(e) = std::fs::rename(&next, &path) {
            std::fs::remove_file(&old)?;
            return Err(e);
        }
        File::open(&self.dir)?.sync_all()?;
        (self.file, self.len, self.torn) = (file, line.len() as u64, false);
        self.head = head;
        self.dirty = true;
        Ok(())
    }

    /// The second name that a file has where a crash came while a new one began.
    fn forget_twin(&self) -> std::io::Result<()> {
        let mine = self.file.metadata()?.ino();
        for n in 0..SHOWN {
            let twin = self.dir.join(named(self.head.lines, n));
            if std::fs::metadata(&twin).is_ok_and(|found| found.ino() == mine) {
                std::fs::remove_file(twin)?;
            }
        }
        Ok(())
    }

    /// The file for syncing, and the head to store once that is done.
    pub(super) fn unsettled(&mut self) -> Option<(File, Head)> {
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        Some((self.file.try_clone().ok()?, self.head.clone()))
    }

    /// The whole log as it is now.
    pub(super) fn written(&self) -> Result<Written, HsmError> {
        let all = std::fs::read_dir(&self.dir).map_err(HsmError::io(&self.dir))?;
        let name = |entry: std::fs::DirEntry| entry.file_name().into_string().ok();
        let mut names: Vec<String> = all.flatten().filter_map(name).collect();
        names.retain(|name| name.starts_with(PREFIX) && name != AUDIT_FILE);
        names.sort();
        names.push(AUDIT_FILE.into());
        let open = |name: String| {
            let path = self.dir.join(&name);
            File::open(&path).map(|file| (name, file)).map_err(HsmError::io(&path))
        };
        let files = names.into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let key = Secret::from_slice(self.key.expose()).expect("a key has 32 bytes");
        Ok(Written { files, key, head: self.head.clone() })
    }
}

/// A log up to its head of some time: it is read while lines are added.
pub(super) struct Written {
    files: Vec<(String, File)>,
    key: Secret<32>,
    head: Head,
}

/// What is found in a log.
pub(super) struct Found {
    /// Number of the first line that is there: whoever puts old files away leaves a later one.
    pub(super) first: u64,
    pub(super) lines: u64,
    /// What is wrong with which line, of the first of them.
    pub(super) faults: Vec<String>,
}

impl Written {
    /// Checks it all.
    pub(super) fn verify(&self) -> Result<Found, HsmError> {
        let mut chain = Chain::new(&self.key, &self.head);
        (chain.until, chain.declared) = (self.head.lines, true);
        for (name, file) in &self.files {
            chain.follow(name, file).map_err(HsmError::io(Path::new(name)))?;
            if chain.rest > 0 {
                chain.fault(format!("{name}: its last line does not decode"));
            }
        }
        chain.ends();
        Ok(Found { first: chain.first.unwrap_or(0), lines: chain.head.lines, faults: chain.faults })
    }
}

/// Name of a file that is no more written to, by the number of the line after its last one.
fn named(lines: u64, n: usize) -> String {
    format!("{PREFIX}{lines:016}.{n:02}")
}

fn append_to(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(path)
}

/// The chain as it is followed from line to line.
struct Chain<'a> {
    key: &'a Secret<32>,
    stored: &'a Head,
    /// The line of this number and later ones are not looked at.
    until: u64,
    /// Whether faults count that a file names itself.
    declared: bool,
    head: Head,
    first: Option<u64>,
    /// Whether the stored head is one of this chain; not known of one that is in an earlier file.
    holds: Option<bool>,
    /// Bytes of the file to the end of its last good line, and behind that.
    len: u64,
    rest: u64,
    faults: Vec<String>,
}

impl<'a> Chain<'a> {
    fn new(key: &'a Secret<32>, stored: &'a Head) -> Self {
        Self {
            key,
            stored,
            until: u64::MAX,
            declared: false,
            head: Head::default(),
            first: None,
            holds: None,
            len: 0,
            rest: 0,
            faults: Vec::new(),
        }
    }

    fn fault(&mut self, why: String) {
        if self.faults.len() < SHOWN {
            self.faults.push(why);
        }
    }

    /// Follows it through a file. Behind a fault it goes on with what the next line says of itself.
    fn follow(&mut self, name: &str, mut file: &File) -> std::io::Result<()> {
        file.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::new(file);
        (self.len, self.rest) = (0, 0);
        let (mut number, mut line) = (0, Vec::new());
        while self.head.lines < self.until || self.first.is_none() {
            line.clear();
            let read = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line)? as u64;
            if read == 0 {
                break;
            }
            number += 1;
            if self.rest > 0 {
                // Another line follows: that was no mere cut. The next one is held against nothing.
                self.fault(format!("{name}: line {} does not decode", number - 1));
                self.len += std::mem::take(&mut self.rest);
                self.head.mac.clear();
            }
            let entry = line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice::<Entry>(line).ok());
            match entry {
                Some(entry) if entry.seq >= self.until => break,
                Some(entry) => {
                    self.len += read;
                    self.step(name, number, entry);
                }
                None => self.rest = read,
            }
        }
        Ok(())
    }

    fn step(&mut self, name: &str, number: u64, entry: Entry) {
        let begins = number == 1 && entry.opcode == BEGINS;
        if self.first.is_none() {
            self.first = Some(entry.seq);
            if begins {
                // What was before is elsewhere.
                self.head = Head { lines: entry.seq, mac: entry.before.clone() };
                self.pass();
            }
        }
        let before = if begins { entry.before.clone() } else { self.head.mac.clone() };
        let in_order = entry.seq == self.head.lines;
        if !in_order {
            let (found, expected) = (entry.seq, self.head.lines);
            self.fault(format!(
                "{name}: line {number} has sequence number {found}, expected {expected}: lines are missing"
            ));
        }
        // Behind a fault there may be nothing to hold a line against.
        let known = begins || in_order && (!before.is_empty() || entry.seq == 0);
        if known && !same(&entry.chained(self.key, &before), &entry.mac) {
            self.fault(format!("{name}: line {number} was changed, or one before it"));
        } else if begins && before != self.head.mac {
            self.fault(format!("{name}: does not go on from the file before it"));
        } else if begins && self.declared && !entry.object.is_empty() {
            self.fault(format!("before line {}: {}", entry.seq, entry.object));
        }
        self.head = Head { lines: entry.seq + 1, mac: entry.mac };
        self.pass();
    }

    /// Compares with the stored head on the way.
    fn pass(&mut self) {
        if self.head.lines == self.stored.lines {
            self.holds = Some(self.head == *self.stored);
        }
    }

    /// Holds its end against the stored head.
    fn ends(&mut self) {
        let (found, written) = (self.head.lines, self.stored.lines);
        if found < written {
            self.fault(format!("ends after {found} lines, {written} were written: the end was cut off"));
        } else if self.holds == Some(false) {
            self.fault(format!("line {written} of all is not the one that was written"));
        }
    }
}

fn same(a: &str, b: &str) -> bool {
    match (unhex(a), unhex(b)) {
        (Some(a), Some(b)) => aws_lc_rs::constant_time::verify_slices_are_equal(&a, &b).is_ok(),
        _ => false,
    }
}
