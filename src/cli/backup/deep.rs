//! `verify --deep`: every file of a snapshot is fetched, its key unwrapped, every block opened. Nothing is written.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::super::error::CliError;
use super::args::VerifyArgs;
use super::connect;
use crate::backup::{Item, Reader, Repo, StoredFile};
use crate::content;
use crate::format::header::{FileHeader, HEADER_XATTR};
use crate::format::names::{LowerName, parse};
use crate::keys::Keyring;

/// What was found.
#[derive(Debug, Default, Serialize)]
pub(super) struct DeepReport {
    pub(super) snapshot: String,
    pub(super) files: u64,
    /// Bytes of plaintext.
    pub(super) bytes: u64,
    pub(super) faults: Vec<(PathBuf, String)>,
}

pub(super) fn verify(args: &VerifyArgs, repo: &Repo) -> Result<DeepReport, CliError> {
    let snapshot = repo.snapshot(&args.snapshot, args.vault_id.as_deref())?;
    let reader = Arc::new(repo.reader()?);
    let keyring = connect::keyring_of_snapshot(&reader, &snapshot, &args.open.key)?;
    reader.read_whole_packs();
    let mut report = DeepReport { snapshot: snapshot.id.clone(), ..DeepReport::default() };
    reader.walk(&snapshot, Path::new(""), &mut |item| {
        if is_file_of_vault(&item) {
            report.files += 1;
            match open_all(&reader, &keyring, &item) {
                Ok((bytes, faults)) => {
                    report.bytes += bytes;
                    report.faults.extend(faults.into_iter().map(|why| (item.path.clone(), why)));
                }
                Err(why) => report.faults.push((item.path, why)),
            }
        }
        Ok(())
    })?;
    Ok(report)
}

fn is_file_of_vault(item: &Item) -> bool {
    let name = item.path.file_name().map(std::os::unix::ffi::OsStrExt::as_bytes).unwrap_or_default();
    item.kind == libc::S_IFREG
        && !item.path.starts_with(crate::format::names::VAULT_DIR)
        && matches!(parse(name), LowerName::Short(_) | LowerName::Long(_))
}

/// Bytes of plaintext, and what does not open.
fn open_all(reader: &Arc<Reader>, keyring: &Keyring, item: &Item) -> Result<(u64, Vec<String>), String> {
    let said = |e: &dyn std::fmt::Display| e.to_string();
    let header = item.xattrs.iter().find(|(name, _)| name == HEADER_XATTR);
    let (_, header) = header.ok_or("no header")?;
    let header = FileHeader::decode(header).map_err(|e| said(&e))?;
    let keys = keyring.open_file(&header).map_err(|e| said(&e))?;
    let stored = StoredFile::open(reader, item).map_err(|e| said(&e))?;
    let file = content::File::open(Box::new(stored), keys).map_err(|e| said(&e))?;
    let mut faults = Vec::new();
    let mut note = |fault: content::Fault| {
        // Longer than its content is what a crash, or a mount at work, leaves; everything in it opened.
        if !matches!(fault, content::Fault::Overlong { .. }) {
            faults.push(fault.to_string());
        }
    };
    let bytes = file.verify(&mut note, &mut |_| true).map_err(|e| said(&e))?;
    Ok((bytes, faults))
}
