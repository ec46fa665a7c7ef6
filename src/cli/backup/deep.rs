//! `verify --deep`: every file of a snapshot is fetched, its key unwrapped, every block opened. Nothing is written.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::super::error::CliError;
use super::args::VerifyArgs;
use super::connect;
use crate::backup::{BackupError, Item, Journal, Reader, Repo, StoredFile, journal};
use crate::content::{self, ContentError};
use crate::format::header::{FileHeader, HEADER_XATTR};
use crate::format::names::{LowerName, parse};
use crate::keys::{KeyError, Keyring};

/// What was found.
#[derive(Debug, Default, Serialize)]
pub(super) struct DeepReport {
    pub(super) snapshot: String,
    pub(super) files: u64,
    /// Bytes of plaintext.
    pub(super) bytes: u64,
    pub(super) faults: Vec<(PathBuf, String)>,
    /// The snapshot has changes in a journal, which are not brought in here: they may explain the faults.
    pub(super) journal: bool,
}

pub(super) fn verify(args: &VerifyArgs, repo: &Repo) -> Result<DeepReport, CliError> {
    let snapshot = repo.snapshot(&args.snapshot, args.vault_id.as_deref())?;
    let reader = Arc::new(repo.reader()?);
    let keyring = connect::keyring_of_snapshot(&reader, &snapshot, &args.open.key)?;
    reader.read_whole_packs();
    let journal = journal(&reader, &snapshot)? == Journal::Changes;
    let mut report = DeepReport { snapshot: snapshot.id.clone(), journal, ..DeepReport::default() };
    let mut denied = None;
    reader.walk(&snapshot, Path::new(""), &mut |item| {
        if is_file_of_vault(&item) && denied.is_none() {
            report.files += 1;
            match open_all(&reader, &keyring, &item) {
                Ok((bytes, faults)) => {
                    report.bytes += bytes;
                    report.faults.extend(faults.into_iter().map(|why| (item.path.clone(), why)));
                }
                Err(Wrong::File(why)) => report.faults.push((item.path, why)),
                Err(Wrong::Store(e)) => return Err(e),
                Err(Wrong::Key(e)) => denied = Some(e),
            }
        }
        Ok(())
    })?;
    denied.map_or(Ok(report), |e| Err(e.into()))
}

fn is_file_of_vault(item: &Item) -> bool {
    let name = item.path.file_name().map(std::os::unix::ffi::OsStrExt::as_bytes).unwrap_or_default();
    item.kind == libc::S_IFREG
        && !item.path.starts_with(crate::format::names::VAULT_DIR)
        && matches!(parse(name), LowerName::Short(_) | LowerName::Long(_))
}

/// Why a file was not looked at to its end.
enum Wrong {
    /// It is damaged.
    File(String),
    /// The store does not answer, which says nothing about the file.
    Store(BackupError),
    /// Nor does the vault's key.
    Key(KeyError),
}

impl From<BackupError> for Wrong {
    fn from(e: BackupError) -> Self {
        if e.is_outage() { Self::Store(e) } else { Self::File(e.to_string()) }
    }
}

impl From<KeyError> for Wrong {
    fn from(e: KeyError) -> Self {
        match e {
            KeyError::Foreign | KeyError::Header(_) | KeyError::Uri { .. } => Self::File(e.to_string()),
            other => Self::Key(other),
        }
    }
}

impl From<ContentError> for Wrong {
    fn from(e: ContentError) -> Self {
        let told = e.to_string();
        let ContentError::Io(e) = e else { return Self::File(told) };
        match e.into_inner().map(|e| e.downcast::<BackupError>()) {
            Some(Ok(e)) => (*e).into(),
            _ => Self::File(told),
        }
    }
}

/// Bytes of plaintext, and what does not open.
fn open_all(reader: &Arc<Reader>, keyring: &Keyring, item: &Item) -> Result<(u64, Vec<String>), Wrong> {
    let file = |e: &dyn std::fmt::Display| Wrong::File(e.to_string());
    let header = item.xattrs.iter().find(|(name, _)| name == HEADER_XATTR);
    let (_, header) = header.ok_or_else(|| file(&"no header"))?;
    let header = FileHeader::decode(header).map_err(|e| file(&e))?;
    let keys = keyring.open_file(&header)?;
    let stored = StoredFile::open(reader, item)?;
    let file = content::File::open(Box::new(stored), keys)?;
    let mut faults = Vec::new();
    let mut note = |fault: content::Fault| {
        // Longer than its content is what a crash, or a mount at work, leaves; everything in it opened.
        if !matches!(fault, content::Fault::Overlong { .. }) {
            faults.push(fault.to_string());
        }
    };
    let bytes = file.verify(&mut note, &mut |_| true)?;
    Ok((bytes, faults))
}
