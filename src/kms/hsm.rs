//! The seam to HSM clusters: what a custom key store needs of one, and which of AWS's errors each failure is.
//!
//! A KMS key in a custom key store is a non-extractable AES-256 key of the cluster; every use of it is a call there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::arn::Scope;
use super::engine::Engine;
use super::error::KmsError;
use super::records::KeyRecord;
use super::state::{self, State};
use super::table::{STORES, View};

/// How long a cluster that did not answer is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// Why a cluster did not serve: AWS's connection error codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClusterError {
    /// INVALID_CREDENTIALS
    InvalidCredentials,
    /// CLUSTER_NOT_FOUND
    NotFound,
    /// NETWORK_ERRORS
    Network,
    /// INTERNAL_ERROR
    Internal,
    /// INSUFFICIENT_CLOUDHSM_HSMS
    TooFewHsms,
    /// USER_LOCKED_OUT
    LockedOut,
    /// USER_NOT_FOUND
    UserNotFound,
    /// The ciphertext does not open. No connection error.
    Tampered,
}

impl ClusterError {
    /// Whether the next attempt would fail as this one, and each one is a step to a lockout.
    fn lasts(self) -> bool {
        matches!(self, Self::InvalidCredentials | Self::LockedOut | Self::UserNotFound)
    }

    /// AWS's ConnectionErrorCode.
    pub fn code(self) -> &'static str {
        match self {
            Self::InvalidCredentials => "INVALID_CREDENTIALS",
            Self::NotFound => "CLUSTER_NOT_FOUND",
            Self::Network => "NETWORK_ERRORS",
            Self::Internal | Self::Tampered => "INTERNAL_ERROR",
            Self::TooFewHsms => "INSUFFICIENT_CLOUDHSM_HSMS",
            Self::LockedOut => "USER_LOCKED_OUT",
            Self::UserNotFound => "USER_NOT_FOUND",
        }
    }
}

/// An HSM cluster.
pub trait HsmCluster: Send + Sync {
    /// HSMs that answer now.
    fn active_hsms(&self) -> Result<usize, ClusterError>;
    /// Certificate of the cluster's own authority, as PEM.
    fn trust_anchor(&self) -> Result<String, ClusterError>;
    /// Logs in as the crypto user `kmsuser`.
    fn login(&self, password: &str) -> Result<Arc<dyn HsmSession>, ClusterError>;
}

/// A login of `kmsuser`.
pub trait HsmSession: Send + Sync {
    /// Changes the password of `kmsuser`.
    fn set_password(&self, new: &str) -> Result<(), ClusterError>;
    /// Makes a non-extractable AES-256 key under a label.
    fn generate(&self, label: &str) -> Result<(), ClusterError>;
    /// AES-256-GCM under the key of a label: IV, ciphertext, tag.
    fn encrypt(&self, label: &str, ad: &[u8], plain: &[u8]) -> Result<Vec<u8>, ClusterError>;
    /// Opens what `encrypt` gave.
    fn decrypt(&self, label: &str, ad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, ClusterError>;
    /// Random bytes of the HSM.
    fn random(&self, len: usize) -> Result<Zeroizing<Vec<u8>>, ClusterError>;
    /// Destroys the key of a label.
    fn destroy(&self, label: &str) -> Result<(), ClusterError>;
}

/// A custom key store as the store keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct StoreRecord {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) scope: Scope,
    pub(super) cluster: String,
    pub(super) trust_anchor: String,
    /// Password of `kmsuser`. Sealed with the record, as all of it.
    pub(super) password: Password,
    /// Password that is being set; both are tried until one of them is known to be right.
    #[serde(default)]
    pub(super) next_password: Option<Password>,
    pub(super) created_ms: u64,
    /// Whether it is to be connected.
    pub(super) connected: bool,
    /// Why the last attempt to connect failed.
    pub(super) failure: Option<String>,
}

impl StoreRecord {
    /// Logs in with the password, or with the one that was being set when something stopped.
    pub(super) fn log_in(&self, cluster: &dyn HsmCluster) -> Result<Arc<dyn HsmSession>, ClusterError> {
        let first = cluster.login(&self.password.0);
        match (&first, &self.next_password) {
            (Err(ClusterError::InvalidCredentials), Some(next)) => cluster.login(&next.0),
            _ => first,
        }
    }
}

/// A password; `Debug` does not show it.
#[derive(Clone)]
pub(super) struct Password(pub(super) Zeroizing<String>);

impl Serialize for Password {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Password {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(..)")
    }
}

/// The clusters that this process can reach, and its logins.
#[derive(Default)]
pub(super) struct Clusters {
    known: Mutex<HashMap<String, Arc<dyn HsmCluster>>>,
    /// By custom key store.
    logins: Mutex<HashMap<String, Login>>,
    /// Held over the attempt to log in, by custom key store: those who come meanwhile take what it gives.
    attempts: Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

enum Login {
    Open(Arc<dyn HsmSession>),
    Failed(ClusterError, Instant),
}

impl Clusters {
    pub(super) fn find(&self, cluster: &str) -> Option<Arc<dyn HsmCluster>> {
        self.known.lock().get(cluster).cloned()
    }

    pub(super) fn is_connected(&self, store: &StoreRecord) -> bool {
        store.connected && self.session(store).is_ok()
    }

    /// The login of a custom key store: kept, else made, at most once a second; with a password that was refused not again
    /// until the key store is connected anew.
    pub(super) fn session(&self, store: &StoreRecord) -> Result<Arc<dyn HsmSession>, ClusterError> {
        let known = || match self.logins.lock().get(&store.id) {
            Some(Login::Open(session)) => Some(Ok(session.clone())),
            Some(Login::Failed(error, when)) if error.lasts() || when.elapsed() < PAUSE => Some(Err(*error)),
            _ => None,
        };
        if let Some(known) = known() {
            return known;
        }
        let attempt = self.attempts.lock().entry(store.id.clone()).or_default().clone();
        let _one = attempt.lock();
        if let Some(known) = known() {
            return known;
        }
        let made = self
            .find(&store.cluster)
            .ok_or(ClusterError::NotFound)
            .and_then(|cluster| store.log_in(&*cluster));
        let login = match &made {
            Ok(session) => Login::Open(session.clone()),
            Err(error) => Login::Failed(*error, Instant::now()),
        };
        self.logins.lock().insert(store.id.clone(), login);
        made
    }

    /// Notes that a login broke: the next call makes it anew, where its password may be right.
    fn broke(&self, store: &str, error: ClusterError) {
        if error.lasts() {
            self.logins.lock().insert(store.to_owned(), Login::Failed(error, Instant::now()));
        } else {
            self.close(store);
        }
    }

    /// Keeps a login that was just made.
    pub(super) fn keep(&self, store: &str, session: Arc<dyn HsmSession>) {
        self.logins.lock().insert(store.to_owned(), Login::Open(session));
    }

    /// Ends a login.
    pub(super) fn close(&self, store: &str) {
        self.logins.lock().remove(store);
    }
}

impl Engine {
    /// Makes a cluster known, under the id that CreateCustomKeyStore names it by.
    pub fn add_cluster(&self, id: &str, cluster: Arc<dyn HsmCluster>) {
        self.clusters.known.lock().insert(id.to_owned(), cluster);
    }

    /// Runs `work` in the cluster of a custom key store. A login that broke is made anew by the next call.
    pub(super) fn in_cluster<T>(
        &self,
        store: &str,
        record: &KeyRecord,
        work: impl FnOnce(&dyn HsmSession) -> Result<T, ClusterError>,
    ) -> Result<T, KmsError> {
        let unavailable = || state::wrong(record, State::Unavailable);
        let found: Option<StoreRecord> = self.store.read(|r| r.get(STORES, store))?;
        let found = found.filter(|s| s.connected).ok_or_else(unavailable)?;
        let session = self.clusters.session(&found).map_err(|_| unavailable())?;
        work(&*session).map_err(|error| match error {
            ClusterError::Tampered => KmsError::InvalidCiphertext,
            other => {
                log::warn!("custom key store {}: the HSM cluster failed: {}", found.name, other.code());
                self.clusters.broke(store, other);
                unavailable()
            }
        })
    }

    /// Destroys the materials of a deleted key in its cluster. As with AWS an effort only: a cluster that does not answer
    /// now keeps them. The log says so, and so does what is given: CloudTrail's details of the key's `DeleteKey` event.
    pub(super) fn destroy_in_cluster(&self, store: &str, materials: &[String]) -> Value {
        let found: Result<Option<StoreRecord>, KmsError> = self.store.read(|r| r.get(STORES, store));
        let found = found.ok().flatten();
        let open = found.as_ref().filter(|s| s.connected);
        let mut status = Vec::with_capacity(materials.len());
        for material in materials {
            let done = open.ok_or(ClusterError::NotFound).and_then(|s| self.destroy(s, material));
            if let Err(error) = done {
                log::warn!(
                    "custom key store {store}: the key {material} of a deleted KMS key stays in the HSM cluster ({})",
                    error.code()
                );
            }
            let word = if done.is_ok() { "SUCCESS" } else { "FAILURE" };
            status.push(json!({ "backingKeyId": material, "deletionStatus": word }));
        }
        // A text that holds JSON, as CloudTrail has it.
        json!({
            "customKeyStoreId": store,
            "clusterId": found.map(|s| s.cluster),
            "backingKeysDeletionStatus": Value::Array(status).to_string(),
        })
    }

    /// Destroys a key in a cluster. The kept login may be one that the cluster knows no more: after a failure it is made
    /// anew, once. Nobody comes back to this key later.
    fn destroy(&self, store: &StoreRecord, material: &str) -> Result<(), ClusterError> {
        let close = |_: &ClusterError| self.clusters.close(&store.id);
        let kept = self.clusters.session(store)?;
        if kept.destroy(material).inspect_err(close).is_ok() {
            return Ok(());
        }
        self.clusters.session(store)?.destroy(material).inspect_err(close)
    }
}
