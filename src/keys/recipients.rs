//! Several wrapping keys for one vault: adding, retiring and removing rows of the volume config.
//!
//! Works on a mounted vault too: the mount reads the config again within a second of its next create, or when a header
//! names a row it does not know.

use std::sync::Arc;

use super::edit;
use super::keyring::{Keyring, Shared};
use super::open::OpenError;
use super::table::Row;
use super::{KeyError, WrapContext, envelope};
use crate::crypto::derive;
use crate::format::config::{
    CONFIG_FILE, MAX_CONFIG, MAX_ROWS, MAX_WRAPPING_KEYS, VolumeConfig, WrappingKey,
};
use crate::format::header::{MAX_RECIPIENTS, Wrapped};

/// Tries of a change that others keep overtaking.
const TRIES: usize = 8;

/// Why the wrapping keys of a vault were not changed.
#[derive(Debug, thiserror::Error)]
pub enum RecipientError {
    /// The vault or a key.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It is there.
    #[error("{0} is a wrapping key of this vault already")]
    Exists(String),
    /// It is not there.
    #[error("{0:?} is no wrapping key of this vault (neither a row nor a URI)")]
    Unknown(String),
    /// Nothing would wrap new files, or nothing would open the vault.
    #[error("{0} is the last wrapping key that new files are wrapped for; add another one first")]
    Last(String),
    /// A header or the config has no room.
    #[error("the vault has {0} wrapping keys for new files, the most that a file's header holds")]
    Full(usize),
    /// What was wrapped with it does not come back.
    #[error("{0} wraps keys but does not open what it wrapped: {1}")]
    OneWay(String, KeyError),
    /// All numbers that a header can name were given away.
    #[error("the vault has had {MAX_ROWS} wrapping keys, the most that one can have in its life")]
    Spent,
    /// Somebody else added or removed a key at the same time, from another host maybe.
    #[error("the wrapping keys of the vault were changed by somebody else at the same time; try again")]
    Overtaken,
    /// Rows that are no recipients.
    #[error("{0} is not a recipient: it stands for this vault's envelope mode")]
    Envelope(String),
}

impl From<KeyError> for RecipientError {
    fn from(error: KeyError) -> Self {
        Self::Open(error.into())
    }
}

impl Keyring {
    /// Adds a wrapping key: it opens the vault from now on, and new files are wrapped for it. Gives its row. With
    /// `alone`, new files are wrapped for it and recovery keys only.
    pub fn add_recipient(&self, uri: &str, alone: bool) -> Result<u8, RecipientError> {
        let shared = self.shared();
        let home = shared.home.as_ref().ok_or(KeyError::Foreign)?;
        let provider = home.providers.open(uri)?;
        let uri = provider.describe()?.uri;
        if provider.is_forgeable() && !self.is_enveloped() {
            return Err(KeyError::Uri { uri, why: super::init::FORGEABLE.into() }.into());
        }
        let context = WrapContext::of_vault(shared.vault);
        let wrapped = provider.wrap(&shared.vault_key.0, &context)?;
        if provider.can_unwrap() {
            let back = provider.unwrap(&wrapped, &context);
            let same = back.map(|key| key.expose() == shared.vault_key.0.expose());
            match same {
                Ok(true) => {}
                Ok(false) => return Err(RecipientError::OneWay(uri, KeyError::Foreign)),
                Err(error) => return Err(RecipientError::OneWay(uri, error)),
            }
        }
        let Wrapped::Blob(wrapped) = wrapped else { return Err(KeyError::Foreign.into()) };
        let (index, fresh) = self.free_row(&uri)?;
        if let Some(envelope) = self.envelope() {
            let row = Arc::new(Row::new(index, uri.clone(), true, Ok(Arc::clone(&provider))));
            if !fresh {
                envelope.share(&[row], |_| true)?;
            } else if !envelope.share_with_new(&row)? {
                return Err(RecipientError::Overtaken);
            }
        }
        let before = self.config();
        change(shared, |config| {
            let found = config.keys.iter().position(|key| key.uri == uri);
            if let Some(key) = found.and_then(|at| config.keys.get_mut(at)) {
                if key.active && !alone {
                    return Err(RecipientError::Exists(uri.clone()));
                }
                (key.active, key.wrapped_vault_key) = (true, wrapped.clone());
            } else {
                let key =
                    WrappingKey { index, uri: uri.clone(), wrapped_vault_key: wrapped.clone(), active: true };
                if config.keys.len() >= MAX_WRAPPING_KEYS {
                    return Err(RecipientError::Full(config.keys.len()));
                }
                if u16::from(index) < config.next_row {
                    return Err(RecipientError::Overtaken);
                }
                config.keys.push(key);
                config.keys.sort_by_key(|key| key.index);
            }
            if alone {
                for key in &mut config.keys {
                    key.active &= key.uri == uri || is_helper(&key.uri);
                }
            }
            let active = config.keys.iter().filter(|k| k.active && k.uri != envelope::URI).count();
            if active > MAX_RECIPIENTS { Err(RecipientError::Full(MAX_RECIPIENTS)) } else { Ok(()) }
        })?;
        let actives = |config: &VolumeConfig| {
            config.keys.iter().filter(|key| key.active).map(|key| key.index).collect::<Vec<_>>()
        };
        let moved = alone && actives(&before) != actives(&self.config());
        if moved && let Some(envelope) = self.envelope() {
            // Who had the old key can know the old KEK.
            envelope.renew_now()?;
        }
        Ok(index)
    }

    /// Wraps no new file for a row any more; it still opens what was wrapped for it.
    pub fn retire_recipient(&self, index: u8) -> Result<(), RecipientError> {
        change(self.shared(), |config| {
            let left =
                config.keys.iter().filter(|k| k.active && k.index != index && k.uri != envelope::URI).count();
            let key = config.keys.iter_mut().find(|k| k.index == index);
            let key = key.ok_or_else(|| RecipientError::Unknown(index.to_string()))?;
            if key.uri == envelope::URI {
                return Err(RecipientError::Envelope(key.uri.clone()));
            }
            if key.active && left == 0 {
                return Err(RecipientError::Last(key.uri.clone()));
            }
            key.active = false;
            Ok(())
        })
    }

    /// Takes a row out of the config: it opens nothing any more. The caller has seen that no file needs it. In envelope
    /// mode those who stay are given every KEK first, so a failure on the way leaves a vault that opens with all it has.
    pub fn remove_recipient(&self, index: u8) -> Result<(), RecipientError> {
        self.retire_recipient(index)?;
        if let Some(envelope) = self.envelope() {
            envelope.renew_now()?;
            let staying: Vec<Arc<Row>> = self.shared().table().keeping().cloned().collect();
            envelope.share(&staying, |_| true)?;
        }
        change(self.shared(), |config| {
            config.keys.retain(|key| key.index != index);
            Ok(())
        })?;
        if let Some(envelope) = self.envelope() {
            // No other: somebody may be about to add a recipient, whose copies come before he does.
            envelope.share(&[], |row| row != index)?;
        }
        Ok(())
    }

    /// The row that a text names: a number or a URI.
    pub fn find_recipient(&self, text: &str) -> Result<u8, RecipientError> {
        let config = self.config();
        let fits = |key: &&WrappingKey| key.uri == text || text.parse() == Ok(key.index);
        config
            .keys
            .iter()
            .find(fits)
            .map(|key| key.index)
            .ok_or_else(|| RecipientError::Unknown(text.to_owned()))
    }

    /// The row of a key, or the number behind all that rows had and KEKs have copies for: headers and copies that were
    /// made for a removed key name its number for ever. Whether it is such a number.
    fn free_row(&self, uri: &str) -> Result<(u8, bool), RecipientError> {
        self.shared().refresh();
        let config = self.config();
        if let Some(key) = config.keys.iter().find(|key| key.uri == uri) {
            return Ok((key.index, false));
        }
        let copies = self.envelope().map_or(Ok(0), |envelope| envelope.next_row())?;
        let next = u8::try_from(config.next_row.max(copies)).map_err(|_| RecipientError::Spent)?;
        Ok((next, true))
    }
}

/// Rows that stay active beside any other: recovery keys, and what stands for the mode.
fn is_helper(uri: &str) -> bool {
    uri == envelope::URI || uri.starts_with(super::recovery::PREFIX)
}

/// Changes the volume config: read, authenticated, changed, replaced where nobody else did meanwhile.
fn change(
    shared: &Arc<Shared>,
    make: impl Fn(&mut VolumeConfig) -> Result<(), RecipientError>,
) -> Result<(), RecipientError> {
    let home = shared.home.as_ref().ok_or(KeyError::Foreign)?;
    let path = || home.dir.join(crate::format::names::VAULT_DIR).join(CONFIG_FILE).display().to_string();
    for _ in 0..TRIES {
        let text = edit::read(&home.dir, CONFIG_FILE, MAX_CONFIG)?
            .ok_or_else(|| OpenError::NotAVault(home.dir.display().to_string()))?;
        let signed =
            VolumeConfig::parse(&text).map_err(|source| OpenError::Config { path: path(), source })?;
        if !derive::config_mac_matches(&shared.vault_key, signed.body, &signed.mac) {
            return Err(OpenError::Tampered(path()).into());
        }
        let mut config = signed.config;
        make(&mut config)?;
        config.note_rows();
        let body = config.encode_body();
        let new = VolumeConfig::join(&body, &derive::config_mac(&shared.vault_key, body.as_bytes()));
        if edit::replace(&home.dir, CONFIG_FILE, Some(&text), new.as_bytes())? {
            shared.refresh();
            return Ok(());
        }
    }
    Err(KeyError::Unreachable(format!("{} is changed by others all the time", path())).into())
}
