//! From the command line to an open repository.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::super::error::CliError;
use super::super::secrets::{KeyArgs, first_line};
use super::args::{OpenArgs, StoreArgs};
use crate::backup::{BackupError, Meter, Objects, Reader, Repo, Snapshot, StoredFile, new_password};
use crate::crypto::{VaultKey, derive, random};
use crate::format::config::CONFIG_FILE;
use crate::format::keks::KEKS_FILE;
use crate::format::names::{VAULT_DIR, b64};
use crate::keys::{self, Keyring};
use crate::vault::LowerFile;

/// More than any of a vault's own files holds.
const MAX_FILE: u64 = 16 << 20;
/// Whoever else could read a key file.
const OTHERS: u32 = 0o077;

pub(super) fn objects(store: &StoreArgs, meter: &Arc<Meter>) -> Result<Arc<Objects>, CliError> {
    Ok(Arc::new(Objects::open(&store.place, &store.options(), Arc::clone(meter))?))
}

/// Opens the repository with the key file, or with the vault's key where that is asked for.
pub(super) fn repo(store: &StoreArgs, open: Option<&OpenArgs>, meter: &Arc<Meter>) -> Result<Repo, CliError> {
    let by_vault_key = open.filter(|open| open.vault_key);
    let password = match by_vault_key {
        None => Some(read_key_file(&store.key_file()?)?),
        Some(_) => None,
    };
    let objects = objects(store, meter)?;
    let password = match (password, by_vault_key) {
        (Some(password), _) => password,
        (None, open) => {
            let keyring = keyring_from_bucket(&objects, &open.expect("asked for").key)?;
            derived_password(keyring.vault_key())
        }
    };
    Ok(Repo::open(objects, &store.options(), &store.cache_dir()?, &password, Arc::clone(meter))?)
}

/// The password that the vault's key opens a repository with.
pub(super) fn derived_password(key: &VaultKey) -> Zeroizing<String> {
    Zeroizing::new(b64(derive::backup_key(key).expose()))
}

/// Opens the vault by a copy of its config that lies in the bucket, wrapped.
pub(super) fn keyring_from_bucket(objects: &Objects, key: &KeyArgs) -> Result<Keyring, CliError> {
    let configs = Repo::configs(objects)?;
    let unlock = key.unlock_configs(configs.iter().map(Vec::as_slice))?;
    let mut told = None;
    for config in configs {
        match open_files(&[(CONFIG_FILE, config)], &unlock)? {
            Ok(keyring) => return Ok(keyring),
            Err(e) => told = Some(e),
        }
    }
    Err(match told {
        Some(e) => e.into(),
        None => BackupError::NoRepository(objects.location().to_owned()).into(),
    })
}

/// Opens the vault by the config, and what belongs to it, that a snapshot holds.
pub(super) fn keyring_of_snapshot(
    reader: &Arc<Reader>,
    snapshot: &Snapshot,
    key: &KeyArgs,
) -> Result<Keyring, CliError> {
    let mut files = Vec::new();
    for name in [CONFIG_FILE, KEKS_FILE] {
        let item = match reader.item(snapshot, &Path::new(VAULT_DIR).join(name)) {
            Err(BackupError::NoPath(..)) if name != CONFIG_FILE => continue,
            other => other?,
        };
        let stored = StoredFile::open(reader, &item)?;
        let mut bytes = vec![0; usize::try_from(item.size.min(MAX_FILE)).unwrap_or(0)];
        stored.read_at(&mut bytes, 0).map_err(CliError::io(&item.path))?;
        files.push((name, bytes));
    }
    let configs = files.iter().filter(|(name, _)| *name == CONFIG_FILE);
    let unlock = key.unlock_configs(configs.map(|(_, bytes)| bytes.as_slice()))?;
    Ok(open_files(&files, &unlock)??)
}

/// As a vault of its own that has nothing but files beside its config.
fn open_files(
    files: &[(&str, Vec<u8>)],
    unlock: &keys::Unlock,
) -> Result<Result<Keyring, keys::OpenError>, CliError> {
    let scratch = Scratch::make()?;
    let own = scratch.0.join(VAULT_DIR);
    std::fs::create_dir(&own).map_err(CliError::io(&own))?;
    for (name, bytes) in files {
        let file = own.join(name);
        std::fs::write(&file, bytes).map_err(CliError::io(&file))?;
    }
    Ok(keys::open_vault(&scratch.0, unlock))
}

/// A directory that goes when it is dropped.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn make() -> Result<Self, CliError> {
        let name = format!("envelopefs-{:016x}", u64::from_le_bytes(random::array()));
        let path = std::env::temp_dir().join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(CliError::io(&path))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0.join(VAULT_DIR));
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn key_file_error(path: &Path, why: impl Into<String>) -> CliError {
    BackupError::KeyFile { path: path.to_owned(), why: why.into() }.into()
}

fn read_key_file(path: &Path) -> Result<Zeroizing<String>, CliError> {
    let file = match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(key_file_error(path, "no such key file: give it with --key-file FILE"));
        }
        other => other.map_err(CliError::io(path))?,
    };
    let mode = file.metadata().map_err(CliError::io(path))?.mode();
    if mode & OTHERS != 0 {
        return Err(key_file_error(
            path,
            format!("others can read the key file (mode {:o}): chmod 600 it", mode & 0o777),
        ));
    }
    first_line(file).map_err(|e| key_file_error(path, format!("key file: {e}")))
}

/// The password in a key file, which is made where it is missing.
pub(super) fn make_key_file(path: &Path) -> Result<Zeroizing<String>, CliError> {
    if path.exists() {
        return read_key_file(path);
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(CliError::io(dir))?;
    }
    let password = new_password().map_err(CliError::io(path))?;
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(CliError::io(path))?;
    file.write_all(password.as_bytes())
        .and_then(|()| file.write_all(b"\n"))
        .and_then(|()| file.sync_all())
        .map_err(CliError::io(path))?;
    Ok(password)
}
