//! Custom key stores on our own HSM: its cluster as [`HsmCluster`], the crypto user `kmsuser` as [`HsmSession`].

use std::sync::Arc;

use zeroize::Zeroizing;

use super::hsm::{ClusterError, HsmCluster, HsmSession};
use crate::hsm::{KeyStore, KeyStoreError, KeyUser};

/// The crypto user that AWS has an administrator make for the KMS.
const KMS_USER: &str = "kmsuser";

impl From<KeyStoreError> for ClusterError {
    fn from(error: KeyStoreError) -> Self {
        match error {
            KeyStoreError::Credentials => Self::InvalidCredentials,
            KeyStoreError::LockedOut => Self::LockedOut,
            KeyStoreError::Unreachable => Self::Network,
            KeyStoreError::Tampered => Self::Tampered,
            KeyStoreError::Failed(rv) => {
                log::warn!("the HSM cluster answered with CK_RV {rv:#x}");
                Self::Internal
            }
        }
    }
}

impl HsmCluster for KeyStore {
    fn active_hsms(&self) -> Result<usize, ClusterError> {
        Ok(self.active())
    }

    fn trust_anchor(&self) -> Result<String, ClusterError> {
        self.anchor().map(str::to_owned).ok_or(ClusterError::Internal)
    }

    fn login(&self, password: &str) -> Result<Arc<dyn HsmSession>, ClusterError> {
        Ok(Arc::new(KeyStore::login(self, KMS_USER, password)?))
    }
}

impl HsmSession for KeyUser {
    fn set_password(&self, new: &str) -> Result<(), ClusterError> {
        Ok(KeyUser::set_password(self, new)?)
    }

    fn generate(&self, label: &str) -> Result<(), ClusterError> {
        Ok(KeyUser::generate(self, label)?)
    }

    fn encrypt(&self, label: &str, ad: &[u8], plain: &[u8]) -> Result<Vec<u8>, ClusterError> {
        Ok(KeyUser::encrypt(self, label, ad, plain)?)
    }

    fn decrypt(&self, label: &str, ad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, ClusterError> {
        Ok(KeyUser::decrypt(self, label, ad, sealed)?)
    }

    fn random(&self, len: usize) -> Result<Zeroizing<Vec<u8>>, ClusterError> {
        Ok(KeyUser::random(self, len)?)
    }

    fn destroy(&self, label: &str) -> Result<(), ClusterError> {
        Ok(KeyUser::destroy(self, label)?)
    }
}
