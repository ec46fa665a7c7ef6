//! Where a passphrase comes from: a file, a descriptor, the environment, or the terminal. Never an argument.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use zeroize::Zeroizing;

use super::embedded_hsm;
use super::error::CliError;
use crate::format::config::VolumeConfig;
use crate::keys::{self, RecoveryKey, Unlock, token};

/// The longest passphrase that is read.
const MAX_PASSPHRASE: u64 = 64 << 10;
/// What a key URI of the embedded KMS begins with.
const EMBEDDED: &str = "kms:embedded/";
/// Name of the environment variable.
pub(super) const ENV: &str = "ENVELOPEFS_PASSPHRASE";

/// How the key store is found and unlocked.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Keys")]
pub(super) struct KeyArgs {
    /// Directory of the embedded KMS [default: $XDG_DATA_HOME/envelopefs/kms].
    #[arg(long, value_name = "DIR", env = "ENVELOPEFS_KMS_DIR", hide_env_values = true)]
    pub(super) kms_dir: Option<PathBuf>,
    /// Read the passphrase of the KMS store from the first line of a file.
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_fd")]
    pub(super) passphrase_file: Option<PathBuf>,
    /// Read the passphrase from an open descriptor (also: environment ENVELOPEFS_PASSPHRASE).
    #[arg(long, value_name = "N")]
    pub(super) passphrase_fd: Option<u32>,
    /// Host an HSM for this command or mount, in a directory [default: $XDG_DATA_HOME/envelopefs/hsm]; `init` makes
    /// what is missing of it.
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true)]
    pub(super) embedded_hsm: Option<Option<PathBuf>>,
    /// Open the vault with the recovery key in the first line of a file.
    #[arg(long, value_name = "FILE")]
    pub(super) recovery_key_file: Option<PathBuf>,
    /// Open the vault with its recovery key, asked for at the terminal.
    #[arg(long, conflicts_with = "recovery_key_file")]
    pub(super) recovery_key: bool,
}

impl KeyArgs {
    /// The store's directory, given or by default.
    pub(super) fn store_dir(&self) -> Result<PathBuf, CliError> {
        self.kms_dir.clone().or_else(super::store::default_dir).ok_or_else(|| {
            CliError::Usage("neither XDG_DATA_HOME nor HOME is set: give the KMS store with --kms-dir".into())
        })
    }

    /// What opens a vault; asks at the terminal for the passphrase of the store, or for the PIN of the token that seals
    /// it, where it has one and none was given.
    pub(super) fn unlock(&self) -> Result<Unlock, CliError> {
        let recovery = self.recovery()?;
        let mut passphrase = self.given()?;
        let mut pin = None;
        if recovery.is_none() {
            let dir = self.store_dir()?;
            if passphrase.is_none() && super::store::needs_passphrase(&dir) {
                passphrase = prompt("Passphrase of the KMS store: ")?;
            }
            let sealed_by: Vec<_> = super::store::token_uri(&dir).into_iter().collect();
            pin = self.pin_for(&sealed_by)?;
        }
        Ok(Unlock { kms_dir: self.kms_dir.clone(), passphrase, recovery, pin, ..Unlock::default() })
    }

    /// As [`KeyArgs::unlock`], for one vault: asks for nothing where none of its keys is in the embedded KMS, and for
    /// the PIN of a token that one of its keys is in. A passphrase that was given is kept: a key of that KMS may be
    /// added.
    pub(super) fn unlock_vault(&self, vault: &Path) -> Result<Unlock, CliError> {
        self.unlock_vault_with(vault, None)
    }

    /// As [`KeyArgs::unlock_vault`], for work that adds a key to the vault.
    pub(super) fn unlock_vault_with(&self, vault: &Path, new: Option<&str>) -> Result<Unlock, CliError> {
        let unlock = self.asked(vault, new)?;
        Ok(Unlock { hsm: self.host()?, ..unlock })
    }

    /// As [`KeyArgs::unlock_vault`], for vaults whose volume configs lie elsewhere: in a backup.
    pub(super) fn unlock_configs<'a>(
        &self,
        configs: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Unlock, CliError> {
        let mut uses = Uses::default();
        for text in configs {
            uses.add(VolumeConfig::parse(text).ok().map(|signed| signed.config));
        }
        let unlock = self.ask_for(uses, None)?;
        Ok(Unlock { hsm: self.host()?, ..unlock })
    }

    /// The directory of the embedded HSM, where one was asked for.
    pub(super) fn hsm_dir(&self) -> Result<Option<PathBuf>, CliError> {
        match &self.embedded_hsm {
            None => Ok(None),
            Some(Some(dir)) => Ok(Some(dir.clone())),
            Some(None) => embedded_hsm::default_dir().map(Some).ok_or_else(|| {
                CliError::Usage(
                    "neither XDG_DATA_HOME nor HOME is set: give the HSM's directory, --embedded-hsm=DIR"
                        .into(),
                )
            }),
        }
    }

    /// Hosts the embedded HSM, where one was asked for; gives its address.
    pub(super) fn host(&self) -> Result<Option<String>, CliError> {
        let address = self.host_unheard()?;
        embedded_hsm::listen().map_err(CliError::io(Path::new("the embedded HSM")))?;
        Ok(address)
    }

    /// As [`KeyArgs::host`], but without a thread: what it says is listened to later.
    pub(super) fn host_unheard(&self) -> Result<Option<String>, CliError> {
        self.hsm_dir()?.map(|dir| embedded_hsm::host(&dir)).transpose()
    }

    /// What opens a vault, without hosting anything.
    pub(super) fn asked(&self, vault: &Path, new: Option<&str>) -> Result<Unlock, CliError> {
        self.ask_for(Uses::of(vault), new)
    }

    fn ask_for(&self, uses: Uses, new: Option<&str>) -> Result<Unlock, CliError> {
        let mut unlock = if uses.store || new.is_some_and(|uri| uri.starts_with(EMBEDDED)) {
            self.unlock()?
        } else {
            if self.passphrase_file.is_some() || self.passphrase_fd.is_some() {
                eprintln!(
                    "note: no key of this vault is in the embedded KMS: the passphrase does not open it, and serves \
                     only a key of that KMS that is added"
                );
            }
            let recovery = self.recovery()?;
            Unlock { kms_dir: self.kms_dir.clone(), passphrase: self.given()?, recovery, ..Unlock::default() }
        };
        let mut uris = uses.uris;
        if unlock.recovery.is_some() {
            // Who comes with the paper need not have the token.
            unlock.pin = given_pin()?;
            uris.clear();
        }
        uris.extend(new.map(str::to_owned));
        if unlock.pin.is_none() {
            unlock.pin = self.pin_for(&uris)?;
        }
        Ok(unlock)
    }

    /// The PIN for those of the keys that are in tokens and name no file for it: from the environment, else asked for.
    pub(super) fn pin_for(&self, uris: &[impl AsRef<str>]) -> Result<Option<Zeroizing<String>>, CliError> {
        let Some(uri) = uris.iter().map(AsRef::as_ref).find(|uri| token::needs_pin(uri)) else {
            return Ok(None);
        };
        let (from, pin) = match given_pin()? {
            Some(pin) => (format!("{} for {uri}", token::PIN_ENV), Some(pin)),
            None => (uri.to_owned(), prompt(&format!("PIN for {uri}: "))?),
        };
        if let Some(pin) = &pin {
            token::check_pin(pin).map_err(|why| CliError::Secret(format!("{from}: {why}")))?;
        }
        Ok(pin)
    }

    /// What opens a vault without asking; `None` when that would need a passphrase that was not given.
    pub(super) fn unlock_quietly(&self, vault: &Path) -> Result<Option<Unlock>, CliError> {
        let passphrase = self.given()?;
        let recovery = self.recovery()?;
        let uses = Uses::of(vault);
        if passphrase.is_none()
            && recovery.is_none()
            && uses.store
            && super::store::needs_passphrase(&self.store_dir()?)
        {
            return Ok(None);
        }
        let pin = given_pin()?;
        let mut uris = uses.uris;
        if uses.store {
            uris.extend(super::store::token_uri(&self.store_dir()?));
        }
        if pin.is_none() && recovery.is_none() && uris.iter().any(|uri| token::needs_pin(uri)) {
            return Ok(None);
        }
        Ok(Some(Unlock { kms_dir: self.kms_dir.clone(), passphrase, recovery, pin, hsm: self.host()? }))
    }

    /// The passphrase as given, else asked for; `None` without a terminal.
    pub(super) fn any_passphrase(&self) -> Result<Option<Zeroizing<String>>, CliError> {
        match self.given()? {
            Some(given) => Ok(Some(given)),
            None => prompt("Passphrase of the KMS store: "),
        }
    }

    /// A passphrase for a new store; asked for twice at a terminal.
    pub(super) fn new_passphrase(&self) -> Result<Option<Zeroizing<String>>, CliError> {
        if let Some(given) = self.given()? {
            return Ok(Some(given));
        }
        let Some(first) = prompt("New passphrase for the KMS store: ")? else { return Ok(None) };
        match prompt("Again: ")? {
            Some(second) if second == first => Ok(Some(first)),
            _ => Err(CliError::Secret("the two passphrases differ; nothing was made".into())),
        }
    }

    /// The recovery key, from its file or the terminal.
    fn recovery(&self) -> Result<Option<Arc<RecoveryKey>>, CliError> {
        let text = match &self.recovery_key_file {
            Some(path) => File::open(path).and_then(first_line).map_err(CliError::io(path))?,
            None if self.recovery_key => prompt("Recovery key: ")?
                .ok_or_else(|| CliError::Secret("no terminal to ask for the recovery key at".into()))?,
            None => return Ok(None),
        };
        let key = RecoveryKey::parse(&text).map_err(|e| CliError::Secret(e.to_string()))?;
        Ok(Some(Arc::new(key)))
    }

    /// From the file, the descriptor or the environment, in this order.
    pub(super) fn given(&self) -> Result<Option<Zeroizing<String>>, CliError> {
        if let Some(path) = &self.passphrase_file {
            return File::open(path).and_then(first_line).map(Some).map_err(CliError::io(path));
        }
        if let Some(fd) = self.passphrase_fd {
            let path = PathBuf::from(format!("/dev/fd/{fd}"));
            return File::open(&path).and_then(first_line).map(Some).map_err(CliError::io(&path));
        }
        match std::env::var(ENV) {
            Ok(value) => Ok(Some(Zeroizing::new(value))),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err(CliError::Secret(format!("{ENV} is not UTF-8"))),
        }
    }
}

/// From the environment, else asked for; `None` without a terminal.
pub(super) fn environment_or_prompt(text: &str) -> Result<Option<Zeroizing<String>>, CliError> {
    match KeyArgs::default().given()? {
        Some(given) => Ok(Some(given)),
        None => prompt(text),
    }
}

/// The PIN that the environment holds.
fn given_pin() -> Result<Option<Zeroizing<String>>, CliError> {
    match std::env::var(token::PIN_ENV) {
        Ok(pin) => Ok(Some(Zeroizing::new(pin))),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(CliError::Secret(format!("{} is not UTF-8", token::PIN_ENV)))
        }
    }
}

/// What the wrapping keys of a vault need.
#[derive(Default)]
struct Uses {
    uris: Vec<String>,
    /// Whether one of them is in the embedded KMS.
    store: bool,
}

impl Uses {
    fn of(vault: &Path) -> Self {
        let mut uses = Self::default();
        uses.add(keys::read_config(vault).ok());
        uses
    }

    /// A config that cannot be read counts as of the embedded KMS: opening it tells why it is none.
    fn add(&mut self, config: Option<VolumeConfig>) {
        self.store |= config.as_ref().is_none_or(|c| c.keys.iter().any(|key| key.uri.starts_with(EMBEDDED)));
        self.uris.extend(config.into_iter().flat_map(|config| config.keys).map(|key| key.uri));
    }
}

/// The first line without its end.
pub(super) fn first_line(from: impl Read) -> io::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
    from.take(MAX_PASSPHRASE).read_to_end(&mut bytes)?;
    let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let text = std::str::from_utf8(line).map_err(|_| io::Error::other("the passphrase is not UTF-8"))?;
    if text.is_empty() {
        return Err(io::Error::other("its first line, the passphrase, is empty"));
    }
    Ok(Zeroizing::new(text.to_owned()))
}

/// Asks at the controlling terminal; `None` when there is none.
pub(super) fn prompt(text: &str) -> Result<Option<Zeroizing<String>>, CliError> {
    if !io::stdin().is_terminal() || !Path::new("/dev/tty").exists() {
        return Ok(None);
    }
    let answer = rpassword::prompt_password(text).map_err(CliError::io(Path::new("/dev/tty")))?;
    Ok(Some(Zeroizing::new(answer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A passphrase ends at the first line's end, whatever wrote the file, and may hold blanks.
    #[test]
    fn a_passphrase_is_the_first_line() {
        for text in ["two words", "two words\n", "two words\r\nsecond line\n"] {
            assert_eq!(first_line(text.as_bytes()).expect("a line").as_str(), "two words");
        }
    }

    /// An empty file is refused rather than taken for an empty passphrase.
    #[test]
    fn an_empty_passphrase_is_refused() {
        assert!(first_line(&b""[..]).is_err());
        assert!(first_line(&b"\nsecond"[..]).is_err());
    }
}
