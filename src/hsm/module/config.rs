//! Which appliances the module works with.

use std::path::PathBuf;

use serde::Deserialize;

use super::super::address::Address;
use super::super::error::HsmError;
use super::super::tls::ClientTls;

/// Names the appliance, or several members of a cluster with commas between.
pub(super) const ENV: &str = "ENVELOPEFS_HSM";
/// Names the configuration file.
const ENV_FILE: &str = "ENVELOPEFS_HSM_CONF";
/// Where the file is looked for without it.
const SYSTEM_FILE: &str = "/etc/envelopefs/hsm.json";

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Addresses.
    #[serde(default)]
    pub(super) members: Vec<String>,
    /// For TCP.
    #[serde(default)]
    pub(super) tls: Option<ClientTls>,
}

/// From the environment, else from the file.
pub(super) fn read() -> Result<(Vec<Address>, Option<ClientTls>), HsmError> {
    let file = std::env::var_os(ENV_FILE).map(PathBuf::from);
    let path = file.clone().unwrap_or_else(|| SYSTEM_FILE.into());
    let mut config = match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|e| HsmError::damaged(&path, e))?,
        Err(e) if file.is_some() => return Err(HsmError::io(&path)(e)),
        Err(_) => Config::default(),
    };
    if let Ok(text) = std::env::var(ENV) {
        config.members = text.split(',').map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect();
    }
    let members: Result<Vec<Address>, _> = config.members.iter().map(|m| m.parse()).collect();
    let members = members.map_err(HsmError::Refused)?;
    if members.is_empty() {
        return Err(HsmError::Refused(format!(
            "no HSM is named: set {ENV}=unix:PATH, or write {SYSTEM_FILE}"
        )));
    }
    Ok((members, config.tls))
}
