//! Gives the provider for a key URI. What providers share (an unlocked store, a client of a KMS, its threads) is
//! made once. No lock is held while a key is asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::embedded::Engines;
use super::recovery::Recovery;
use super::token::Tokens;
use super::uri::{KeyUri, RemoteKey};
use super::{KeyError, Provider, Unlock};

/// Opens providers for one vault.
pub(super) struct Providers {
    unlock: Unlock,
    /// The vault's directory: nothing that lies in it is taken for a program.
    vault: PathBuf,
    engines: Engines,
    tokens: Tokens,
    #[cfg(feature = "aws")]
    clients: super::remote::Clients,
}

impl Providers {
    pub(super) fn new(unlock: Unlock, vault: &Path) -> Self {
        Self {
            unlock,
            vault: vault.to_owned(),
            tokens: Tokens::default(),
            engines: Engines::default(),
            #[cfg(feature = "aws")]
            clients: super::remote::Clients::default(),
        }
    }

    /// The provider for a key. Remote ones are not asked anything yet.
    pub(super) fn open(&self, uri: &str) -> Result<Arc<dyn Provider>, KeyError> {
        match KeyUri::parse(uri)? {
            KeyUri::Embedded(name) => Ok(Arc::new(self.engines.provider(&name, &self.unlock)?)),
            KeyUri::Remote(key) => self.remote(&key),
            KeyUri::Token(uri) => Ok(Arc::new(self.tokens.provider(uri, &self.unlock, &self.vault)?)),
            KeyUri::Recovery => Ok(Arc::new(Recovery::open(uri, self.unlock.recovery.as_ref())?)),
            KeyUri::Envelope => Err(KeyError::Uri {
                uri: uri.to_owned(),
                why: "it stands for the vault's own envelope mode, which is chosen at init (--envelope)"
                    .into(),
            }),
        }
    }

    #[cfg(feature = "aws")]
    fn remote(&self, key: &RemoteKey) -> Result<Arc<dyn Provider>, KeyError> {
        Ok(Arc::new(self.clients.provider(key)?))
    }

    #[cfg(not(feature = "aws"))]
    #[expect(clippy::unused_self, reason = "as with the feature")]
    fn remote(&self, key: &RemoteKey) -> Result<Arc<dyn Provider>, KeyError> {
        Err(KeyError::Uri {
            uri: key.uri(),
            why: "this envelopefs was built without the feature `aws`, which the KMS client needs".into(),
        })
    }
}
