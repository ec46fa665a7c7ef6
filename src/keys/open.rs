//! Opening a vault: nothing of the volume config is trusted before its authenticator was checked.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::embedded::Engines;
use super::keyring::{Keyring, Row, Tuning, keep_hopeful};
use super::uri::KeyUri;
use super::{KeyError, Provider, Unlock, WrapContext};
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
    let (path, text) = read_text(dir)?;
    let signed = VolumeConfig::parse(&text).map_err(|e| syntax(&path, e))?;
    Ok(signed.config)
}

/// Opens a vault: reads the config, unwraps the vault key, checks the config's authenticator.
pub fn open_vault(dir: &Path, unlock: &Unlock) -> Result<Keyring, OpenError> {
    open_vault_tuned(dir, unlock, &Tuning::default())
}

/// As [`open_vault`], with other bounds of cache and pool.
pub fn open_vault_tuned(dir: &Path, unlock: &Unlock, tuning: &Tuning) -> Result<Keyring, OpenError> {
    let (path, text) = read_text(dir)?;
    let signed = VolumeConfig::parse(&text).map_err(|e| syntax(&path, e))?;
    let config = &signed.config;
    if config.keys.is_empty() {
        return Err(syntax(&path, ConfigError::Syntax("it lists no wrapping key".into())));
    }
    let mut engines = Engines::default();
    let rows: Vec<Row> = config.keys.iter().map(|key| row(key, &mut engines, unlock)).collect();
    let vault_key = unwrap_any(config, &rows)?;
    if !derive::config_mac_matches(&vault_key, signed.body, &signed.mac) {
        return Err(OpenError::Tampered(path.display().to_string()));
    }
    Ok(Keyring::new(signed.config, vault_key, rows, tuning))
}

fn read_text(dir: &Path) -> Result<(PathBuf, Vec<u8>), OpenError> {
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
    if !file.metadata().map_err(OpenError::io(&path))?.is_file() {
        return Err(syntax(&path, ConfigError::Syntax("it is no regular file".into())));
    }
    let mut text = Vec::new();
    // One byte more than allowed, so that `parse` sees that it is too long.
    file.take(MAX_CONFIG as u64 + 1).read_to_end(&mut text).map_err(OpenError::io(&path))?;
    Ok((path, text))
}

fn syntax(path: &Path, source: ConfigError) -> OpenError {
    OpenError::Config { path: path.display().to_string(), source }
}

/// A row whose provider cannot be had is kept with its error: another row may open the vault.
fn row(key: &WrappingKey, engines: &mut Engines, unlock: &Unlock) -> Row {
    let provider = KeyUri::parse(&key.uri).and_then(|KeyUri::Embedded(name)| engines.provider(&name, unlock));
    let provider = provider.map(|p| Arc::new(p) as Arc<dyn Provider>).map_err(Arc::new);
    Row { index: key.index, uri: key.uri.clone(), provider }
}

fn unwrap_any(config: &VolumeConfig, rows: &[Row]) -> Result<VaultKey, KeyError> {
    let context = WrapContext { vault: config.vault_id, file: None };
    let mut told = None;
    for (key, row) in config.keys.iter().zip(rows) {
        let wrapped = Wrapped::Blob(key.wrapped_vault_key.clone());
        match row.provider().and_then(|provider| provider.unwrap(&wrapped, &context)) {
            Ok(key) => return Ok(VaultKey(key)),
            Err(error) => {
                log::debug!("wrapping key {} does not open the vault: {error}", key.index);
                keep_hopeful(&mut told, error);
            }
        }
    }
    Err(told.unwrap_or(KeyError::Foreign))
}
