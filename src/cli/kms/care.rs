//! `kms backup`, `kms restore`, `kms check`.

use std::error::Error;
use std::io::{self, IsTerminal as _};
use std::path::Path;

use serde_json::json;
use zeroize::Zeroizing;

use super::args::read_passphrase;
use super::backend::Backend;
use super::{denied, print, show};
use crate::kms::{Engine, KmsError, Protection};

fn passphrase(file: Option<&Path>, twice: bool) -> Result<Zeroizing<String>, Box<dyn Error>> {
    if let Some(path) = file {
        return Ok(read_passphrase(path)?);
    }
    if !io::stdin().is_terminal() {
        return denied(
            "no terminal to ask for the backup's passphrase; give it with --backup-passphrase-file",
        );
    }
    let first = Zeroizing::new(rpassword::prompt_password("Passphrase of the backup: ")?);
    if twice && first != Zeroizing::new(rpassword::prompt_password("Again: ")?) {
        return denied("the two passphrases differ; nothing was written");
    }
    Ok(first)
}

/// Writes a backup; the server that holds the store does it where there is one.
pub(super) fn backup(to: &Path, file: Option<&Path>, backend: &mut Backend) -> Result<(), Box<dyn Error>> {
    let phrase = passphrase(file, true)?;
    let to = std::path::absolute(to)?;
    let done = backend.manage("WriteBackup", &json!({ "Path": to, "Passphrase": *phrase }))?;
    print(&format!("{}: {} records\n", to.display(), done["Records"]))
}

/// Makes a store from a backup.
pub(super) fn restore(
    from: &Path,
    file: Option<&Path>,
    dir: &Path,
    protection: &Protection,
) -> Result<(), Box<dyn Error>> {
    let phrase = passphrase(file, false)?;
    let (_, report) = Engine::restore(from, &phrase, dir, protection)?;
    print(&format!("{}: {} records\n", dir.display(), report.records))
}

/// Checks the store; faults end it with the code of a store that was changed.
pub(super) fn check(is_json: bool, backend: &mut Backend) -> Result<(), Box<dyn Error>> {
    let found = backend.manage("CheckStore", &json!({}))?;
    if is_json {
        show::json(&found)?;
    } else {
        print(&format!(
            "{} keys, {} key materials, {} aliases, {} grants, {} principals\n",
            found["Keys"], found["Materials"], found["Aliases"], found["Grants"], found["Principals"]
        ))?;
    }
    let faults: Vec<&str> =
        found["Faults"].as_array().into_iter().flatten().filter_map(|f| f.as_str()).collect();
    if faults.is_empty() {
        return Ok(());
    }
    let why = format!("{} faults:\n  {}", faults.len(), faults.join("\n  "));
    Err(KmsError::Damaged { path: "the KMS store".into(), why }.into())
}
