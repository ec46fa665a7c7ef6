//! `kms audit verify`: every line in its place, none changed, none missing, up to the head.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::chain::{self, Link};
use super::error::AuditError;
use super::files;
use super::head::Head;
use super::lines::{Line, Lines};
use super::log::{Locked, follows};
use crate::crypto::MacKey;

/// Findings that a report lists; more are counted.
const MAX_FINDINGS: usize = 1000;

/// What is wrong with the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A line does not authenticate.
    Changed,
    /// A line is none, or too long.
    NoLine,
    /// Lines are missing before this one: numbers of the first and the last.
    Missing(u64, u64),
    /// The line stands after one with the same or a higher number: it was moved or repeated.
    Moved,
    /// The line has the right number, and another predecessor: part of the log is from another copy.
    Forked,
    /// The log ends early: numbers of the first and last missing line. They were on the disk: somebody removed them.
    Cut(u64, u64),
    /// The log ends early: lines that were not yet synced. A power cut does that, and so may somebody.
    Unsynced(u64, u64),
    /// The file ends within a line.
    Torn,
    /// A file is missing.
    NoFile,
    /// The head does not authenticate, or is missing beside files: nothing says where the log ends.
    NoHead,
}

/// A fault and its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The file.
    pub file: PathBuf,
    /// The line in it, counted from 1; 0 for the file as a whole.
    pub line: u64,
    /// What.
    pub fault: Fault,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Lines that authenticate.
    pub good: u64,
    /// Number of the first and the last line.
    pub range: Option<(u64, u64)>,
    /// Files read.
    pub files: u64,
    /// At most 1,000 findings.
    pub findings: Vec<Finding>,
    /// Findings beyond those.
    pub more: u64,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    fn add(&mut self, file: &Path, line: u64, fault: Fault) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding { file: file.to_owned(), line, fault });
        } else {
            self.more += 1;
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        f.write_str(": ")?;
        match &self.fault {
            Fault::Changed => f.write_str("the line was changed"),
            Fault::NoLine => f.write_str("this is no line of an audit log"),
            Fault::Missing(from, to) => write!(f, "events {from} to {to} were removed before this line"),
            Fault::Moved => f.write_str("the line stands in the wrong place, or twice"),
            Fault::Forked => f.write_str("the line continues another copy of the log"),
            Fault::Cut(from, to) => write!(f, "events {from} to {to} were removed at the end"),
            Fault::Unsynced(from, to) => {
                write!(
                    f,
                    "events {from} to {to} are missing at the end; they were not yet synced: a power cut, or removed"
                )
            }
            Fault::Torn => f.write_str("the file ends within a line: a crash, or it was cut"),
            Fault::NoFile => f.write_str("the file is missing"),
            Fault::NoHead => {
                f.write_str("the head is missing or was changed: nothing tells where the log ends")
            }
        }
    }
}

/// Reads the whole log in `dir`. A log that does not exist is clean.
pub fn verify(dir: &Path, key: &MacKey) -> Result<Report, AuditError> {
    let mut report = Report::default();
    let head_path = files::head_path(dir);
    let there = match files::numbers(dir) {
        Err(AuditError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(report);
        }
        other => other?,
    };
    let head = match File::open(&head_path) {
        Ok(file) => {
            // Not while a line is written and its head is not.
            let _locked = Locked::take(&file, dir)?;
            match Head::load(&file, &head_path, key) {
                Err(AuditError::Head(_)) => None,
                other => Some(other?),
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(AuditError::io(&head_path)(e)),
    };
    if head.is_none_or(|h| h == Head::NEW) && !there.is_empty() && has_lines(dir, &there)? {
        report.add(&head_path, 0, Fault::NoHead);
    }
    let (first, last) = match head {
        Some(head) => (head.first_file, head.file.max(there.last().copied().unwrap_or(0))),
        None => (there.first().copied().unwrap_or(1), there.last().copied().unwrap_or(0)),
    };
    let mut at = head.map(|h| h.before);
    for number in first..=last {
        let path = files::path(dir, number);
        match File::open(&path) {
            Ok(file) => read_file(file, &path, key, &mut at, &mut report)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                // A log in which nothing was written has no file yet.
                if head != Some(Head::NEW) {
                    report.add(&path, 0, Fault::NoFile);
                }
            }
            Err(e) => return Err(AuditError::io(&path)(e)),
        }
    }
    if let Some(head) = head {
        end(&head, &at.unwrap_or(Link::START), &files::path(dir, head.file), &mut report);
    }
    Ok(report)
}

fn has_lines(dir: &Path, numbers: &[u64]) -> Result<bool, AuditError> {
    for number in numbers {
        let path = files::path(dir, *number);
        if std::fs::metadata(&path).map_err(AuditError::io(&path))?.len() > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the log goes as far as its head says.
fn end(head: &Head, at: &Link, path: &Path, report: &mut Report) {
    if at.seq < head.synced {
        report.add(path, 0, Fault::Cut(at.seq + 1, head.last.seq));
    } else if at.seq < head.last.seq {
        report.add(path, 0, Fault::Unsynced(at.seq + 1, head.last.seq));
    }
}

fn read_file(
    file: File,
    path: &Path,
    key: &MacKey,
    at: &mut Option<Link>,
    report: &mut Report,
) -> Result<(), AuditError> {
    report.files += 1;
    let mut number = 0;
    for line in Lines::new(file) {
        number += 1;
        let line = match line.map_err(AuditError::io(path))? {
            Line::Whole(line) => line,
            Line::Torn => {
                report.add(path, number, Fault::Torn);
                continue;
            }
            Line::TooLong => {
                report.add(path, number, Fault::NoLine);
                continue;
            }
        };
        let Some((claim, authentic)) = chain::read(key, &line) else {
            report.add(path, number, Fault::NoLine);
            continue;
        };
        if !authentic {
            report.add(path, number, Fault::Changed);
            // What it claims to be is not believed; that the next line follows a line of this number is.
            if let Some(at) = at.as_mut().filter(|at| claim.link.seq == at.seq + 1) {
                *at = claim.link;
            }
            continue;
        }
        report.good += 1;
        let last = at.unwrap_or(Link { seq: claim.link.seq.saturating_sub(1), mac: claim.prev });
        if !follows(&last, &claim) {
            let seq = claim.link.seq;
            let fault = match () {
                () if seq > last.seq + 1 => Fault::Missing(last.seq + 1, seq - 1),
                () if seq == last.seq + 1 => Fault::Forked,
                () => Fault::Moved,
            };
            report.add(path, number, fault);
        }
        // A moved line does not take the chain back.
        if claim.link.seq > last.seq {
            *at = Some(claim.link);
        }
        let first = report.range.map_or(claim.link.seq, |(first, _)| first.min(claim.link.seq));
        let newest = report.range.map_or(claim.link.seq, |(_, newest)| newest.max(claim.link.seq));
        report.range = Some((first, newest));
    }
    Ok(())
}
