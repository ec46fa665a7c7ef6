//! Making a vault. The config is written last, by a rename: a crash leaves no vault or a whole one, and `init` can
//! be run again.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::open::OpenError;
use super::providers::Providers;
use super::{KeyError, Provider, Unlock, WrapContext};
use crate::crypto::{Secret, VaultKey, derive, random};
use crate::format::config::{CONFIG_FILE, FORMAT_VERSION, VolumeConfig, WrappingKey};
use crate::format::header::{DIR_XATTR, Wrapped};
use crate::format::ids::{DirId, VaultId};
use crate::format::names::{TMP_PREFIX, VAULT_DIR};

/// Set, read back and removed to see whether the lower filesystem keeps user xattrs.
const PROBE_XATTR: &str = "user.efs.probe";

/// Why some keys wrap no file's data key.
pub(super) const FORGEABLE: &str = "an RSA key wraps with its public half, so who knows that could make files of \
                                    his own: it is for vaults in envelope mode (init --envelope)";

/// How the data keys of a vault's files are wrapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// Each by the provider: one call a file.
    #[default]
    EachFile,
    /// By key-encryption keys of the vault, which the provider wraps.
    Envelope,
}

/// Makes a vault in an empty (or new) directory: vault key, config, root directory id. Durable when it returns.
pub fn init_vault(dir: &Path, key_uri: &str, unlock: &Unlock) -> Result<VolumeConfig, OpenError> {
    init_vault_as(dir, key_uri, unlock, Mode::EachFile)
}

/// As [`init_vault`], in a mode of choice.
pub fn init_vault_as(
    dir: &Path,
    key_uri: &str,
    unlock: &Unlock,
    mode: Mode,
) -> Result<VolumeConfig, OpenError> {
    check_vacant(dir)?;
    let provider = Providers::new(unlock.clone(), dir).open(key_uri)?;
    let (config, text) = new_config(&*provider, mode)?;
    make_dir(dir)?;
    remove_leftovers(dir)?;
    probe_xattrs(dir)?;

    let root = File::open(dir).map_err(OpenError::io(dir))?;
    let root_id = DirId(random::array());
    rustix::fs::fsetxattr(&root, DIR_XATTR, &root_id.0, XattrFlags::empty())
        .and_then(|()| rustix::fs::fsync(&root))
        .map_err(|e| OpenError::io(dir)(e.into()))?;

    let tmp = dir.join(temporary());
    let text_path = tmp.join(CONFIG_FILE);
    DirBuilder::new().mode(0o700).create(&tmp).map_err(OpenError::io(&tmp))?;
    write_durable(&text_path, text.as_bytes()).map_err(OpenError::io(&text_path))?;
    sync(&tmp)?;
    fs::rename(&tmp, dir.join(VAULT_DIR)).map_err(OpenError::io(&tmp))?;
    sync(dir)?;
    Ok(config)
}

/// Refuses a directory that holds something. What a crash of an earlier `init` left does not count.
fn check_vacant(dir: &Path) -> Result<(), OpenError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(OpenError::io(dir)(e)),
    };
    let mut empty = true;
    for entry in entries {
        let name = entry.map_err(OpenError::io(dir))?.file_name();
        if name == VAULT_DIR && dir.join(VAULT_DIR).join(CONFIG_FILE).exists() {
            return Err(OpenError::Exists(dir.display().to_string()));
        }
        empty &= name.to_string_lossy().starts_with(TMP_PREFIX);
    }
    if empty { Ok(()) } else { Err(OpenError::NotEmpty(dir.display().to_string())) }
}

fn new_config(provider: &dyn Provider, mode: Mode) -> Result<(VolumeConfig, String), KeyError> {
    // Looked at first: how a key wraps is found out, and what is kept of it.
    let uri = provider.describe()?.uri;
    if provider.is_forgeable() && mode == Mode::EachFile {
        return Err(KeyError::Uri { uri, why: FORGEABLE.into() });
    }
    let vault_id = VaultId(random::array());
    let vault_key = VaultKey(Secret::random());
    let wrapped = match provider.wrap(&vault_key.0, &WrapContext::of_vault(vault_id))? {
        Wrapped::Blob(blob) => blob,
        Wrapped::Compact { .. } => return Err(KeyError::Foreign),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let key = WrappingKey { index: 0, uri, wrapped_vault_key: wrapped, active: true };
    let mut keys = vec![key];
    if mode == Mode::Envelope {
        let uri = super::envelope::URI.to_owned();
        keys.push(WrappingKey { index: 1, uri, wrapped_vault_key: Vec::new(), active: true });
    }
    let mut config =
        VolumeConfig { format: FORMAT_VERSION, vault_id, created: now.as_secs(), keys, next_row: 0 };
    config.note_rows();
    let body = config.encode_body();
    let text = VolumeConfig::join(&body, &derive::config_mac(&vault_key, body.as_bytes()));
    Ok((config, text))
}

fn make_dir(dir: &Path) -> Result<(), OpenError> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {}
        // An `init` that was killed may have made it a moment ago.
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        Err(e) => return Err(OpenError::io(dir)(e)),
    }
    sync_entry(dir).map_err(OpenError::io(dir))
}

/// Makes a directory's own entry durable. A parent that may not be read is synced with its whole filesystem.
fn sync_entry(dir: &Path) -> std::io::Result<()> {
    let real = dir.canonicalize()?;
    let Some(parent) = real.parent() else { return Ok(()) };
    match File::open(parent).and_then(|p| p.sync_all()) {
        Ok(()) => Ok(()),
        Err(_) => Ok(rustix::fs::syncfs(File::open(&real)?)?),
    }
}

fn remove_leftovers(dir: &Path) -> Result<(), OpenError> {
    for entry in fs::read_dir(dir).map_err(OpenError::io(dir))? {
        let path = entry.map_err(OpenError::io(dir))?.path();
        let removed = if path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.map_err(OpenError::io(&path))?;
    }
    Ok(())
}

fn probe_xattrs(dir: &Path) -> Result<(), OpenError> {
    let path = dir.join(temporary());
    let file = new_file(&path).map_err(OpenError::io(&path))?;
    let probed = probe(&file);
    fs::remove_file(&path).map_err(OpenError::io(&path))?;
    match probed {
        Ok(true) => Ok(()),
        Ok(false) | Err(Errno::NOTSUP | Errno::NOSYS | Errno::PERM) => {
            Err(OpenError::NoXattrs(dir.display().to_string()))
        }
        Err(e) => Err(OpenError::io(&path)(e.into())),
    }
}

/// Whether an xattr comes back as it was set.
fn probe(file: &File) -> Result<bool, Errno> {
    let value: [u8; 64] = random::array();
    let mut back = [0; 65];
    rustix::fs::fsetxattr(file, PROBE_XATTR, &value, XattrFlags::empty())?;
    let len = rustix::fs::fgetxattr(file, PROBE_XATTR, &mut back)?;
    rustix::fs::fremovexattr(file, PROBE_XATTR)?;
    Ok(back.get(..len) == Some(&value))
}

pub(super) fn write_durable(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = new_file(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn new_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

pub(super) fn sync(dir: &Path) -> Result<(), OpenError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(OpenError::io(dir))
}

pub(super) fn temporary() -> String {
    format!("{TMP_PREFIX}{}", hex::encode(random::array::<8>()))
}
