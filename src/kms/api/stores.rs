//! Custom key stores: CreateCustomKeyStore, DescribeCustomKeyStores, UpdateCustomKeyStore, ConnectCustomKeyStore,
//! DisconnectCustomKeyStore, DeleteCustomKeyStore. External key stores (XKS) are not supported.

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::call::{Call, missing};
use super::paging::{Page, of_list};
use crate::crypto::random;
use crate::kms::arn::new_key_id;
use crate::kms::engine::Engine;
use crate::kms::error::KmsError;
use crate::kms::hex;
use crate::kms::hsm::{ClusterError, HsmCluster, Password, StoreRecord};
use crate::kms::records::{KeyRecord, seconds};
use crate::kms::table::{KEYS, STORES, View};

/// Custom key stores of one account and Region (AWS resource quotas).
const MAX_STORES: usize = 10;
/// HSMs that a cluster must have for a new key store (AWS).
const HSMS_TO_CREATE: usize = 2;

pub(super) fn no_store(id: &str) -> KmsError {
    KmsError::exception("CustomKeyStoreNotFoundException", format!("Custom key store {id} does not exist."))
}

fn state_error(text: String) -> KmsError {
    KmsError::exception("CustomKeyStoreInvalidStateException", text)
}

impl StoreRecord {
    /// AWS's ConnectionState.
    fn state(&self) -> &'static str {
        match (self.connected, &self.failure) {
            (true, _) => "CONNECTED",
            (false, Some(_)) => "FAILED",
            (false, None) => "DISCONNECTED",
        }
    }
}

fn all(engine: &Engine, call: &Call<'_>) -> Result<Vec<StoreRecord>, KmsError> {
    let all = engine.store.read(|r| r.list::<StoreRecord>(STORES))?;
    Ok(all.into_iter().map(|(_, s)| s).filter(|s| s.scope == *call.scope()).collect())
}

fn find(engine: &Engine, call: &Call<'_>) -> Result<StoreRecord, KmsError> {
    let id = call.need("CustomKeyStoreId")?;
    all(engine, call)?.into_iter().find(|s| s.id == id).ok_or_else(|| no_store(id))
}

fn cluster_error(error: ClusterError, id: &str) -> KmsError {
    match error {
        ClusterError::NotFound => no_cluster(id),
        _ => KmsError::exception("CloudHsmClusterNotActiveException", format!("Cluster {id} is not active.")),
    }
}

fn no_cluster(id: &str) -> KmsError {
    KmsError::exception("CloudHsmClusterNotFoundException", format!("Cluster {id} was not found."))
}

/// A cluster that a key store can be made on.
fn good_cluster(engine: &Engine, id: &str, anchor: &str) -> Result<(), KmsError> {
    let cluster = engine.clusters.find(id).ok_or_else(|| no_cluster(id))?;
    let hsms = cluster.active_hsms().map_err(|e| cluster_error(e, id))?;
    if hsms < HSMS_TO_CREATE {
        let text = format!("Cluster {id} must contain at least two active HSMs; it has {hsms}.");
        return Err(KmsError::exception("CloudHsmClusterInvalidConfigurationException", text));
    }
    let squeeze = |pem: &str| pem.split_whitespace().collect::<String>();
    let real = cluster.trust_anchor().map_err(|e| cluster_error(e, id))?;
    if squeeze(&real) != squeeze(anchor) {
        let text =
            "The trust anchor certificate in the request is not the trust anchor certificate of the cluster.";
        return Err(KmsError::exception("IncorrectTrustAnchorException", text));
    }
    Ok(())
}

pub(super) fn create(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    engine.authorize(call, call.action, None)?;
    if call.text("CustomKeyStoreType") == Some("EXTERNAL_KEY_STORE") {
        return Err(KmsError::unsupported("External key stores are not supported."));
    }
    let name = call.need("CustomKeyStoreName")?;
    let need = |member| call.text(member).ok_or_else(|| missing(member));
    let (cluster, anchor) = (need("CloudHsmClusterId")?, need("TrustAnchorCertificate")?);
    let password = need("KeyStorePassword")?;
    let stores = all(engine, call)?;
    if stores.iter().any(|s| s.name == name) {
        let text = format!("A custom key store with the name {name} already exists.");
        return Err(KmsError::exception("CustomKeyStoreNameInUseException", text));
    }
    if stores.iter().any(|s| s.cluster == cluster) {
        let text = format!("Cluster {cluster} is in use by a custom key store already.");
        return Err(KmsError::exception("CloudHsmClusterInUseException", text));
    }
    if stores.len() >= MAX_STORES {
        return Err(KmsError::LimitExceeded(format!("There are {MAX_STORES} custom key stores already.")));
    }
    good_cluster(engine, cluster, anchor)?;
    let record = StoreRecord {
        id: format!("cks-{}", new_key_id().replace('-', "").get(..17).unwrap_or_default()),
        name: name.to_owned(),
        scope: call.scope().clone(),
        cluster: cluster.to_owned(),
        trust_anchor: anchor.to_owned(),
        password: Password(Zeroizing::new(password.to_owned())),
        next_password: None,
        created_ms: engine.now(),
        connected: false,
        failure: None,
    };
    engine.store.write(|w| w.put(STORES, &record.id, &record))?;
    Ok(json!({ "CustomKeyStoreId": record.id }))
}

pub(super) fn describe(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    engine.authorize(call, call.action, None)?;
    let page = Page::of(call, 100)?;
    let (id, name) = (call.text("CustomKeyStoreId"), call.text("CustomKeyStoreName"));
    let mut found = all(engine, call)?;
    found.retain(|s| id.is_none_or(|id| id == s.id) && name.is_none_or(|n| n == s.name));
    if let Some(wanted) = id.or(name).filter(|_| found.is_empty()) {
        return Err(no_store(wanted));
    }
    let entry = |s: &StoreRecord| {
        let mut out = json!({
            "CustomKeyStoreId": s.id,
            "CustomKeyStoreName": s.name,
            "CloudHsmClusterId": s.cluster,
            "TrustAnchorCertificate": s.trust_anchor,
            "ConnectionState": s.state(),
            "CreationDate": seconds(s.created_ms),
            "CustomKeyStoreType": "AWS_CLOUDHSM",
        });
        if let Some(code) = s.failure.as_ref().filter(|_| !s.connected) {
            out["ConnectionErrorCode"] = json!(code);
        }
        out
    };
    Ok(of_list(&page, "CustomKeyStores", found.iter().map(entry).collect()))
}

pub(super) fn connect(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    engine.authorize(call, call.action, None)?;
    let mut store = find(engine, call)?;
    if store.state() == "FAILED" {
        return Err(state_error(format!("Custom key store {} is FAILED; disconnect it first.", store.id)));
    }
    let cluster = engine.clusters.find(&store.cluster);
    let made = match cluster.as_deref().ok_or(ClusterError::NotFound) {
        Ok(cluster) => log_in(engine, &mut store, cluster),
        Err(error) => Err(error),
    };
    store.connected = made.is_ok();
    store.failure = made.err().map(|e| e.code().to_owned());
    engine.store.write(|w| w.put(STORES, &store.id, &store))?;
    Ok(json!({}))
}

/// Logs in as `kmsuser` and gives it a password that nobody knows. The new password is stored before it is set: a
/// crash between leaves two of which one is right.
fn log_in(engine: &Engine, store: &mut StoreRecord, cluster: &dyn HsmCluster) -> Result<(), ClusterError> {
    if cluster.active_hsms()? == 0 {
        return Err(ClusterError::TooFewHsms);
    }
    let session = store.log_in(cluster)?;
    let next = Zeroizing::new(hex::encode(&random::array::<16>()));
    store.next_password = Some(Password(next.clone()));
    let write = |store: &StoreRecord| engine.store.write(|w| w.put(STORES, &store.id, store));
    write(store).map_err(|_| ClusterError::Internal)?;
    session.set_password(&next)?;
    store.password = Password(next);
    store.next_password = None;
    engine.clusters.keep(&store.id, session);
    Ok(())
}

pub(super) fn disconnect(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    engine.authorize(call, call.action, None)?;
    let mut store = find(engine, call)?;
    engine.clusters.close(&store.id);
    (store.connected, store.failure) = (false, None);
    engine.store.write(|w| w.put(STORES, &store.id, &store))?;
    Ok(json!({}))
}

pub(super) fn update(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    engine.authorize(call, call.action, None)?;
    let mut store = find(engine, call)?;
    if store.connected {
        return Err(state_error(format!("Custom key store {} must be disconnected for a change.", store.id)));
    }
    if let Some(name) = call.text("NewCustomKeyStoreName") {
        if all(engine, call)?.iter().any(|s| s.name == name && s.id != store.id) {
            let text = format!("A custom key store with the name {name} already exists.");
            return Err(KmsError::exception("CustomKeyStoreNameInUseException", text));
        }
        name.clone_into(&mut store.name);
    }
    if let Some(cluster) = call.text("CloudHsmClusterId") {
        let known = engine.clusters.find(cluster).ok_or_else(|| no_cluster(cluster))?;
        // Related clusters come from one backup, so they have one trust anchor.
        let anchor = known.trust_anchor().map_err(|e| cluster_error(e, cluster))?;
        if anchor.split_whitespace().collect::<String>()
            != store.trust_anchor.split_whitespace().collect::<String>()
        {
            let text = format!("Cluster {cluster} is not related to cluster {}.", store.cluster);
            return Err(KmsError::exception("CloudHsmClusterNotRelatedException", text));
        }
        cluster.clone_into(&mut store.cluster);
    }
    if let Some(password) = call.text("KeyStorePassword") {
        store.password = Password(Zeroizing::new(password.to_owned()));
        store.next_password = None;
    }
    engine.store.write(|w| w.put(STORES, &store.id, &store))?;
    Ok(json!({}))
}

pub(super) fn delete(engine: &Engine, call: &Call<'_>) -> Result<Value, KmsError> {
    engine.authorize(call, call.action, None)?;
    let store = find(engine, call)?;
    if store.state() != "DISCONNECTED" {
        return Err(state_error(format!(
            "Custom key store {} must be DISCONNECTED to be deleted.",
            store.id
        )));
    }
    engine.store.write(|w| {
        let keys = w.list::<KeyRecord>(KEYS)?;
        if keys.iter().any(|(_, k)| k.key_store.as_deref() == Some(&store.id)) {
            let text = format!("Custom key store {} contains KMS keys.", store.id);
            return Err(KmsError::exception("CustomKeyStoreHasCMKsException", text).into());
        }
        w.remove(STORES, &store.id)
    })?;
    Ok(json!({}))
}
