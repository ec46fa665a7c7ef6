//! A key of a token as what a KMS store's root key is sealed by.
//!
//! It is asked once, when the store is opened; its helper ends with what is dropped here.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Token, TokenUri, Tokens};
use crate::crypto::Secret;
use crate::format::header::Wrapped;
use crate::keys::{KeyError, Provider as _, Unlock};
use crate::kms::{KmsError, RootSealer, RootTokens};

/// The keys of tokens for one store.
pub struct RootKeys {
    unlock: Unlock,
    store: PathBuf,
    instead: Option<String>,
    tokens: Tokens,
}

struct RootKey {
    token: Token,
    uri: String,
}

impl RootKeys {
    /// For the store in a directory. `instead`: the URI of its key, instead of the one that it names.
    pub fn new(unlock: Unlock, store: impl Into<PathBuf>, instead: Option<String>) -> Self {
        Self { unlock, store: store.into(), instead, tokens: Tokens::default() }
    }

    /// A key that a store is to be sealed by.
    ///
    /// # Errors
    /// No such key, or one that others can wrap for.
    pub fn choose(&self, uri: &str) -> Result<Arc<dyn RootSealer>, KmsError> {
        let key = || {
            let token = self.token(uri)?;
            let uri = token.describe()?.uri;
            if token.is_forgeable() {
                let why = "who knows an RSA key's public half could make a store of his own for it: take an AES key";
                return Err(KeyError::Uri { uri, why: why.into() });
            }
            Ok(RootKey { token, uri })
        };
        Ok(Arc::new(key().map_err(kms_error)?))
    }

    fn token(&self, uri: &str) -> Result<Token, KeyError> {
        self.tokens.provider(TokenUri::parse(uri)?, &self.unlock, &self.store)
    }
}

impl RootTokens for RootKeys {
    fn find(&self, uri: &str) -> Result<Arc<dyn RootSealer>, KmsError> {
        let uri = self.instead.as_deref().unwrap_or(uri);
        let token = self.token(uri).map_err(kms_error)?;
        Ok(Arc::new(RootKey { token, uri: uri.to_owned() }))
    }
}

impl RootSealer for RootKey {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn wrap(&self, key: &Secret<32>, context: &[u8]) -> Result<Vec<u8>, KmsError> {
        match self.token.wrap_one(key, context.to_vec()).map_err(kms_error)? {
            Wrapped::Blob(blob) => Ok(blob),
            Wrapped::Compact { .. } => Err(kms_error(KeyError::Foreign)),
        }
    }

    fn unwrap(&self, wrapped: &[u8], context: &[u8]) -> Result<Secret<32>, KmsError> {
        self.token.unwrap_one(wrapped.to_vec(), context.to_vec()).map_err(|error| match error {
            KeyError::Foreign => KmsError::Denied(format!(
                "{}: this key did not wrap for the KMS store, or its root.toml was changed",
                self.uri
            )),
            other => kms_error(other),
        })
    }
}

/// A token that is away may come back: the store is not to be had, rather than refused.
fn kms_error(error: KeyError) -> KmsError {
    match error {
        KeyError::Unreachable(why) => KmsError::Exception { code: "KeyUnavailableException", text: why },
        other => KmsError::Denied(other.to_string()),
    }
}
