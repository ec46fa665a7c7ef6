//! Opening a vault: nothing of the volume config is trusted before its authenticator was checked.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use parking_lot::{Mutex, RwLock};

use super::keyring::{Calls, Keyring, Tuning};
use super::providers::Providers;
use super::table::{Row, Table, keep_hopeful};
use super::{KeyError, Unlock, WrapContext, envelope};
use crate::crypto::{VaultKey, derive};
use crate::format::config::{CONFIG_FILE, ConfigError, MAX_CONFIG, VolumeConfig, WrappingKey};
use crate::format::header::Wrapped;
use crate::format::names::VAULT_DIR;

/// Why a vault cannot be opened or made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No `.envelopefs/vault.toml`.
    #[error("{0} is no vault: it has no .envelopefs/vault.toml")]
    NotAVault(String),
    /// There is one already.
    #[error("{0} is a vault already")]
    Exists(String),
    /// The directory for a new vault holds something.
    #[error("{0} is not empty")]
    NotEmpty(String),
    /// The lower filesystem keeps no user xattrs.
    #[error("{0}: this filesystem does not keep user extended attributes, which hold the wrapped keys")]
    NoXattrs(String),
    /// The config does not decode.
    #[error("{path}: {source}")]
    Config {
        /// The file.
        path: String,
        /// What is wrong.
        source: crate::format::config::ConfigError,
    },
    /// The config's authenticator does not match.
    #[error("{0}: the volume config was changed: its authenticator does not match")]
    Tampered(String),
    /// The provider.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The lower filesystem.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl OpenError {
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        |source| Self::Io { path, source }
    }
}

/// Reads and decodes the config without any key; not to be trusted.
pub fn read_config(dir: &Path) -> Result<VolumeConfig, OpenError> {
    let (path, text, _) = read_text(dir)?;
    let signed = VolumeConfig::parse(&text).map_err(|e| syntax(&path, e))?;
    Ok(signed.config)
}

/// Opens a vault: reads the config, unwraps the vault key, checks the config's authenticator.
pub fn open_vault(dir: &Path, unlock: &Unlock) -> Result<Keyring, OpenError> {
    open_vault_tuned(dir, unlock, &Tuning::default())
}

/// As [`open_vault`], with other bounds of cache and pool.
pub fn open_vault_tuned(dir: &Path, unlock: &Unlock, tuning: &Tuning) -> Result<Keyring, OpenError> {
    let (path, text, stamp) = read_text(dir)?;
    let signed = VolumeConfig::parse(&text).map_err(|e| syntax(&path, e))?;
    let config = &signed.config;
    if config.keys.is_empty() {
        return Err(syntax(&path, ConfigError::Syntax("it lists no wrapping key".into())));
    }
    let providers = Providers::new(unlock.clone(), dir);
    let rows: Vec<_> = config.keys.iter().map(|key| row(key, &providers)).collect();
    let vault_key = unwrap_any(config, &rows)?;
    if !derive::config_mac_matches(&vault_key, signed.body, &signed.mac) {
        return Err(OpenError::Tampered(path.display().to_string()));
    }
    let known = Known { taken: stamp, refused: None };
    let home = Home { dir: dir.to_owned(), known: Mutex::new(known), providers };
    let table = Table { config: signed.config, rows, generation: 0 };
    Ok(Keyring::new(table, vault_key, Some(home), tuning))
}

/// Where a volume config is read from, and how providers for its rows are had.
pub(super) struct Home {
    pub(super) dir: PathBuf,
    /// Held while a newer config is read: who asks meanwhile waits for its table.
    known: Mutex<Known>,
    pub(super) providers: Providers,
}

/// Config files that were read.
struct Known {
    /// The one that the table is of.
    taken: Option<Stamp>,
    /// One that was not taken: told once.
    refused: Option<Stamp>,
}

/// Tells one config file from the next: inode, length, time of change.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp(u64, u64, i64, i64);

impl Stamp {
    fn of(meta: &std::fs::Metadata) -> Self {
        Self(meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec())
    }
}

impl Home {
    /// Puts the table of a config that replaced the one of `table` there. What the new config says counts only when its
    /// authenticator matches. Opens providers, but calls none over a network.
    pub(super) fn reread(
        &self,
        table: &RwLock<Arc<Table>>,
        vault_key: &VaultKey,
        attach: impl FnOnce(&Table),
    ) -> Result<(), OpenError> {
        let path = self.dir.join(VAULT_DIR).join(CONFIG_FILE);
        let mut known = self.known.lock();
        let stamp =
            std::fs::symlink_metadata(&path).map(|meta| Stamp::of(&meta)).map_err(OpenError::io(&path))?;
        if known.taken == Some(stamp) {
            return Ok(());
        }
        let (path, text, stamp) = read_text(&self.dir)?;
        let before = table.read().clone();
        let new = self.table(&path, &text, &before, vault_key).inspect_err(|error| {
            if known.refused != stamp {
                log::error!("the volume config was replaced and is not taken: {error}");
            }
            known.refused = stamp;
        })?;
        known.taken = stamp;
        if let Some(new) = new {
            attach(&new);
            *table.write() = Arc::new(new);
            log::info!("the volume config was replaced: its wrapping keys were read again");
        }
        Ok(())
    }

    /// The table that a config's text gives; `None` where it says what the one before said.
    fn table(
        &self,
        path: &Path,
        text: &[u8],
        before: &Table,
        vault_key: &VaultKey,
    ) -> Result<Option<Table>, OpenError> {
        let signed = VolumeConfig::parse(text).map_err(|e| syntax(path, e))?;
        let genuine = derive::config_mac_matches(vault_key, signed.body, &signed.mac);
        if !genuine || signed.config.vault_id != before.config.vault_id {
            return Err(OpenError::Tampered(path.display().to_string()));
        }
        if signed.config == before.config {
            return Ok(None);
        }
        let same = |key: &WrappingKey| {
            before.rows.iter().find(|r| r.index == key.index && r.uri == key.uri && r.provider.is_ok())
        };
        let rows = signed.config.keys.iter().map(|key| match same(key) {
            Some(row) if row.envelope.is_none() => Arc::new(row.with_active(key.active)),
            Some(row) if row.active == key.active => row.clone(),
            _ => row(key, &self.providers),
        });
        let rows = rows.collect();
        Ok(Some(Table { config: signed.config, rows, generation: before.generation.wrapping_add(1) }))
    }
}

fn read_text(dir: &Path) -> Result<(PathBuf, Vec<u8>, Option<Stamp>), OpenError> {
    let path = dir.join(VAULT_DIR).join(CONFIG_FILE);
    // The attacker can put a FIFO here, which would keep the open waiting, or a link to somewhere else.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).expect("open flags fit an int");
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Err(OpenError::NotAVault(dir.display().to_string()));
        }
        Err(e) => return Err(OpenError::io(&path)(e)),
    };
    let meta = file.metadata().map_err(OpenError::io(&path))?;
    if !meta.is_file() {
        return Err(syntax(&path, ConfigError::Syntax("it is no regular file".into())));
    }
    let mut text = Vec::new();
    // One byte more than allowed, so that `parse` sees that it is too long.
    file.take(MAX_CONFIG as u64 + 1).read_to_end(&mut text).map_err(OpenError::io(&path))?;
    Ok((path, text, Some(Stamp::of(&meta))))
}

fn syntax(path: &Path, source: ConfigError) -> OpenError {
    OpenError::Config { path: path.display().to_string(), source }
}

/// A row whose provider cannot be had is kept with its error: another row may open the vault.
fn row(key: &WrappingKey, providers: &Providers) -> Arc<Row> {
    if key.uri == envelope::URI {
        return Arc::new(Row::of_envelope(key.index, key.active));
    }
    let provider = providers.open(&key.uri).map_err(Arc::new);
    Arc::new(Row::new(key.index, key.uri.clone(), key.active, provider))
}

fn unwrap_any(config: &VolumeConfig, rows: &[Arc<Row>]) -> Result<VaultKey, KeyError> {
    let context = WrapContext::of_vault(config.vault_id);
    let mut told = None;
    let mut locked = None;
    let mut each: Vec<_> = config.keys.iter().zip(rows).filter(|(_, row)| row.envelope.is_none()).collect();
    // Near ones first: a recovery key that is at hand needs no network.
    each.sort_by_key(|(_, row)| row.is_far());
    for (key, row) in each {
        if row.provider.is_ok() && !row.can_unwrap() {
            locked =
                Some(KeyError::NotFound("the vault opens with its recovery key, which was not given".into()));
            continue;
        }
        let wrapped = Wrapped::Blob(key.wrapped_vault_key.clone());
        match row.unwrap(&wrapped, &context, &Calls::default()) {
            Ok(key) => return Ok(VaultKey(key)),
            Err(error) => {
                log::debug!("wrapping key {} does not open the vault: {error}", key.index);
                keep_hopeful(&mut told, error);
            }
        }
    }
    Err(told.or(locked).unwrap_or(KeyError::Foreign))
}
