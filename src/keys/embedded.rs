//! The provider of the embedded KMS: a thin adapter from its operations and errors to ours.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::token::RootKeys;
use super::uri::KeyUri;
use super::{KeyError, KeyInfo, Provider, Unlock, WrapContext};
use crate::crypto::{DataKey, Secret};
use crate::format::header::Wrapped;
use crate::kms::{self, Compact, Engine, KmsError, RootSecrets};

/// Wraps under one key of an embedded KMS.
pub(super) struct Embedded {
    engine: Arc<Engine>,
    key_id: String,
    uri: String,
}

/// What [`ensure_embedded_key`] found or made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EnsuredKey {
    /// The key.
    pub info: KeyInfo,
    /// Whether it was made just now.
    pub created: bool,
}

/// Opens the embedded KMS once for all wrapping keys of a vault: unlocking takes a tenth of a second by design.
#[derive(Default)]
pub(super) struct Engines {
    open: Mutex<BTreeMap<PathBuf, Slot>>,
}

/// The engine of one store. Locked while that store is being opened: its other keys wait for it.
type Slot = Arc<Mutex<Option<Arc<Engine>>>>;

impl Engines {
    /// The provider for a key of the embedded KMS, by any of its names.
    pub(super) fn provider(&self, key: &str, unlock: &Unlock) -> Result<Embedded, KeyError> {
        let engine = self.engine(unlock)?;
        let key_id = engine.describe_key(key).map_err(|e| key_error(&KeyUri::embedded(key), e))?.key_id;
        let uri = KeyUri::embedded(&key_id);
        Ok(Embedded { engine, key_id, uri })
    }

    fn engine(&self, unlock: &Unlock) -> Result<Arc<Engine>, KeyError> {
        let dir = kms_dir(unlock)?;
        let slot = self.open.lock().entry(dir.clone()).or_default().clone();
        let mut slot = slot.lock();
        if let Some(engine) = &*slot {
            return Ok(engine.clone());
        }
        let engine = Arc::new(open_engine(&dir, unlock)?);
        *slot = Some(engine.clone());
        Ok(engine)
    }
}

/// Makes alias and key of the default URI where they do not exist yet. Any other URI must name a key that exists.
pub fn ensure_embedded_key(uri: &str, unlock: &Unlock) -> Result<EnsuredKey, KeyError> {
    let KeyUri::Embedded(key) = KeyUri::parse(uri)? else {
        return Err(KeyError::Uri { uri: uri.to_owned(), why: "it is no key of the embedded KMS".into() });
    };
    let engine = open_engine(&kms_dir(unlock)?, unlock)?;
    let found = engine.describe_key(&key);
    let created = matches!(found, Err(KmsError::NotFound(_))) && uri == super::DEFAULT_URI;
    let key = if created { engine.ensure_alias(&key, "EnvelopeFS vaults") } else { found };
    let key = key.map_err(|e| key_error(uri, e))?;
    let info = KeyInfo { uri: KeyUri::embedded(&key.key_id), version: Some(key.version), key_id: key.arn };
    Ok(EnsuredKey { info, created })
}

fn open_engine(dir: &Path, unlock: &Unlock) -> Result<Engine, KeyError> {
    let tokens = RootKeys::new(unlock.clone(), dir, None);
    let by =
        RootSecrets { passphrase: unlock.passphrase.as_ref().map(|p| p.as_str()), tokens: Some(&tokens) };
    Engine::open_by(dir, &by).and_then(Engine::watched).map_err(|e| key_error("kms:embedded", e))
}

fn kms_dir(unlock: &Unlock) -> Result<PathBuf, KeyError> {
    unlock.kms_dir.clone().or_else(kms::default_dir).ok_or_else(|| {
        KeyError::Unreachable(
            "neither XDG_DATA_HOME nor HOME tells where the embedded KMS is; name its directory with --kms-dir".into(),
        )
    })
}

impl Provider for Embedded {
    fn describe(&self) -> Result<KeyInfo, KeyError> {
        let key = self.engine.describe_key(&self.key_id).map_err(|e| self.error(e))?;
        Ok(KeyInfo { uri: self.uri.clone(), version: Some(key.version), key_id: key.arn })
    }

    fn generate(&self, contexts: &[WrapContext]) -> Result<Vec<(DataKey, Wrapped)>, KeyError> {
        let mut files = Vec::with_capacity(contexts.len());
        for context in contexts {
            let file =
                context.file().ok_or_else(|| KeyError::Denied("data keys are made for files only".into()))?;
            files.push((file.0, context.encryption_context()));
        }
        let made =
            self.engine.generate_compact(&self.key_id, files.iter().map(|(id, context)| (id, context)));
        let made = made.map_err(|e| self.error(e))?;
        Ok(made.into_iter().map(|(key, wrapped)| (DataKey(key), compact(wrapped))).collect())
    }

    fn wrap(&self, key: &Secret<32>, context: &WrapContext) -> Result<Wrapped, KeyError> {
        let pairs = context.encryption_context();
        match context.file() {
            Some(file) => self.engine.wrap_compact(&self.key_id, &file.0, key, &pairs).map(compact),
            None => self.engine.encrypt(&self.key_id, key.expose(), &pairs).map(|e| Wrapped::Blob(e.blob)),
        }
        .map_err(|e| self.error(e))
    }

    fn unwrap(&self, wrapped: &Wrapped, context: &WrapContext) -> Result<Secret<32>, KeyError> {
        let pairs = context.encryption_context();
        match (wrapped, context.file()) {
            (Wrapped::Compact { version, bytes }, Some(file)) => {
                let wrapped = Compact { version: *version, bytes: *bytes };
                self.engine.unwrap_compact(&self.key_id, &file.0, &wrapped, &pairs).map_err(|e| self.error(e))
            }
            (Wrapped::Compact { .. }, None) => Err(KeyError::Foreign),
            (Wrapped::Blob(blob), _) => {
                let opened =
                    self.engine.decrypt(blob, &pairs, Some(&self.key_id)).map_err(|e| self.error(e))?;
                Secret::from_slice(&opened.plaintext).ok_or(KeyError::Foreign)
            }
        }
    }

    fn settle(&self) {
        self.engine.end_threads();
    }

    fn wrapping_version(&self) -> Option<u16> {
        self.engine.describe_key(&self.key_id).ok().map(|key| key.version)
    }
}

impl Embedded {
    fn error(&self, error: KmsError) -> KeyError {
        key_error(&self.uri, error)
    }
}

fn compact(wrapped: Compact) -> Wrapped {
    Wrapped::Compact { version: wrapped.version, bytes: wrapped.bytes }
}

/// Denied, unreachable and foreign stay apart: each sends an operator elsewhere.
fn key_error(uri: &str, error: KmsError) -> KeyError {
    match error {
        // The KMS is at fault, not the caller: another try may succeed.
        _ if error.status() >= 500 => KeyError::Unreachable(error.to_string()),
        KmsError::NotFound(why) => KeyError::NotFound(format!("{uri}: {why}")),
        KmsError::Disabled(_) => KeyError::Disabled(uri.to_owned()),
        KmsError::InvalidCiphertext | KmsError::IncorrectKey => KeyError::Foreign,
        KmsError::InvalidState(_)
        | KmsError::AlreadyExists(_)
        | KmsError::InvalidAliasName(_)
        | KmsError::Validation(_)
        | KmsError::LimitExceeded(_)
        | KmsError::Exception { .. }
        | KmsError::Permissions { .. }
        | KmsError::Denied(_) => KeyError::Denied(error.to_string()),
        KmsError::NoStore(_)
        | KmsError::StoreExists(_)
        | KmsError::Busy { .. }
        | KmsError::Damaged { .. }
        | KmsError::Newer { .. }
        | KmsError::Io { .. } => KeyError::Unreachable(error.to_string()),
    }
}
