//! `kms audit query`: who used which key, for which file, when.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;

use super::error::AuditError;
use super::files;
use super::lines::{Line, Lines};

/// Bytes at the end of a file that [`tail`] looks at.
const TAIL: u64 = 1 << 20;

/// Which events are asked for. What is `None` is not asked.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// A key's id or ARN.
    pub key: Option<String>,
    /// A value of the encryption context, or `name=value`: a file's id, for example.
    pub context: Option<String>,
    /// A part of the principal's ARN.
    pub principal: Option<String>,
    /// An action's name.
    pub action: Option<String>,
    /// Not before this time, as `2026-11-26T12:00:00Z` or a beginning of it.
    pub since: Option<String>,
    /// Before this time.
    pub until: Option<String>,
    /// Failed calls only.
    pub errors: bool,
}

/// An event that was asked for: its JSON, and its line as it stands.
#[derive(Clone, Debug)]
pub struct Found {
    /// The event.
    pub event: Value,
    /// The line.
    pub line: String,
}

impl Filter {
    /// Whether an event is asked for.
    pub fn takes(&self, event: &Value) -> bool {
        let is = |member: &str, wanted: &Option<String>| {
            wanted.as_ref().is_none_or(|w| event[member].as_str() == Some(w.as_str()))
        };
        let time = event["eventTime"].as_str().unwrap_or("");
        let arn = event["userIdentity"]["arn"].as_str().unwrap_or("");
        is("eventName", &self.action)
            && self.since.as_ref().is_none_or(|t| time >= t.as_str())
            && self.until.as_ref().is_none_or(|t| time < t.as_str())
            && self.principal.as_ref().is_none_or(|p| arn.contains(p.as_str()))
            && self.key.as_ref().is_none_or(|key| uses_key(event, key))
            && self.context.as_ref().is_none_or(|wanted| has_pair(event, wanted))
            && (!self.errors || event.get("errorCode").is_some())
    }

    /// Whether a line can be asked for: without reading it as JSON, which takes far longer.
    fn may_take(&self, line: &[u8]) -> bool {
        let has = |text: &Option<String>| text.as_ref().is_none_or(|t| contains(line, t));
        let value =
            self.context.as_ref().map(|c| c.split_once('=').map_or(c.as_str(), |(_, v)| v).to_owned());
        has(&self.key) && has(&value) && has(&self.principal) && has(&self.action)
    }
}

/// Whether a line holds a text; one with characters that JSON writes otherwise always may.
fn contains(line: &[u8], text: &str) -> bool {
    let plain = text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'"' && b != b'\\');
    !plain || text.is_empty() || line.windows(text.len()).any(|w| w == text.as_bytes())
}

fn uses_key(event: &Value, key: &str) -> bool {
    let resources = event["resources"].as_array().into_iter().flatten();
    let named = event["requestParameters"]["keyId"].as_str() == Some(key);
    named
        || resources
            .filter_map(|r| r["ARN"].as_str())
            .any(|arn| arn == key || arn.rsplit('/').next() == Some(key))
}

fn has_pair(event: &Value, wanted: &str) -> bool {
    let members = ["encryptionContext", "sourceEncryptionContext", "destinationEncryptionContext"];
    let pairs = members.iter().filter_map(|m| event["requestParameters"][m].as_object()).flatten();
    let mut pairs = pairs.filter_map(|(name, value)| Some((name, value.as_str()?)));
    match wanted.split_once('=') {
        Some((name, value)) => pairs.any(|(n, v)| n == name && v == value),
        None => pairs.any(|(_, v)| v == wanted),
    }
}

/// Gives every event that is asked for to `each`, oldest first, until it says enough. Lines that are no JSON are
/// passed over: [`super::verify`] tells of them.
pub fn query(
    dir: &Path,
    filter: &Filter,
    mut each: impl FnMut(Found) -> ControlFlow<()>,
) -> Result<(), AuditError> {
    let numbers = match files::numbers(dir) {
        Err(AuditError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for number in numbers {
        let path = files::path(dir, number);
        let file = File::open(&path).map_err(AuditError::io(&path))?;
        for line in Lines::new(file) {
            let Line::Whole(line) = line.map_err(AuditError::io(&path))? else { continue };
            if let Some(found) = read(filter, line)
                && each(found).is_break()
            {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The last events that are asked for, at most `count`, newest first; of the last MiB of the log.
pub fn tail(dir: &Path, filter: &Filter, count: usize) -> Result<Vec<Found>, AuditError> {
    let numbers = match files::numbers(dir) {
        Err(AuditError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    let mut found = Vec::new();
    let mut left = TAIL;
    for number in numbers.into_iter().rev() {
        let path = files::path(dir, number);
        let file = File::open(&path).map_err(AuditError::io(&path))?;
        let len = file.metadata().map_err(AuditError::io(&path))?.len();
        let take = usize::try_from(len.min(left)).unwrap_or(0);
        let mut bytes = vec![0; take];
        file.read_exact_at(&mut bytes, len - take as u64).map_err(AuditError::io(&path))?;
        let whole = bytes.split(|b| *b == b'\n').rev();
        found.extend(whole.filter_map(|line| read(filter, line.to_vec())).take(count - found.len()));
        left -= take as u64;
        if found.len() >= count || left == 0 {
            break;
        }
    }
    Ok(found)
}

fn read(filter: &Filter, line: Vec<u8>) -> Option<Found> {
    if !filter.may_take(&line) {
        return None;
    }
    let line = String::from_utf8(line).ok()?;
    let event: Value = serde_json::from_str(&line).ok()?;
    filter.takes(&event).then_some(Found { event, line })
}
