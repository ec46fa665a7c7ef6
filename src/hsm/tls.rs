//! TLS on TCP: both sides show a certificate of the customer's own CA.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::error::HsmError;

/// Files of a client's identity (PEM).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientTls {
    /// The customer's CA certificate: what the appliance is checked against.
    pub ca: PathBuf,
    /// The client's certificate, by that CA.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

fn bad(what: &str) -> impl Fn(rustls::pki_types::pem::Error) -> HsmError + '_ {
    move |e| HsmError::Refused(format!("{what}: {e}"))
}

fn roots(pem: &[u8], what: &str) -> Result<RootCertStore, HsmError> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(bad(what))?;
        store.add(certificate).map_err(|e| HsmError::Refused(format!("{what}: {e}")))?;
    }
    if store.is_empty() { Err(HsmError::Refused(format!("{what}: no certificate in it"))) } else { Ok(store) }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The appliance's side: its certificate, and the CA that its clients' must be by.
pub(super) fn server(certificate: &[u8], key: &[u8], ca: &[u8]) -> Result<Arc<ServerConfig>, HsmError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain.map_err(bad("the HSM's certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(bad("the HSM's key"))?;
    let roots = Arc::new(roots(ca, "the customer's CA certificate")?);
    let refused = |e: &dyn std::fmt::Display| HsmError::Refused(format!("TLS: {e}"));
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots, provider()).build().map_err(|e| refused(&e))?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .and_then(|b| b.with_client_cert_verifier(verifier).with_single_cert(chain, key))
        .map_err(|e| refused(&e))?;
    Ok(Arc::new(config))
}

/// An appliance as another one's client: it shows its own certificate.
pub(super) fn member(certificate: &[u8], key: &[u8], ca: &[u8]) -> Result<Arc<ClientConfig>, HsmError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain.map_err(bad("the HSM's certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(bad("the HSM's key"))?;
    configured(roots(ca, "the customer's CA certificate")?, chain, key)
}

fn configured(
    roots: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ClientConfig>, HsmError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .and_then(|b| b.with_root_certificates(roots).with_client_auth_cert(chain, key))
        .map_err(|e| HsmError::Refused(format!("TLS: {e}")))?;
    Ok(Arc::new(config))
}

/// The client's side.
pub(super) fn client(files: &ClientTls) -> Result<Arc<ClientConfig>, HsmError> {
    let read = |path: &Path| std::fs::read(path).map_err(HsmError::io(path));
    let name = |path: &Path| path.display().to_string();
    let cert = read(&files.cert)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&cert).collect();
    let chain = chain.map_err(bad(&name(&files.cert)))?;
    let key = zeroize::Zeroizing::new(read(&files.key)?);
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(bad(&name(&files.key)))?;
    configured(roots(&read(&files.ca)?, &name(&files.ca))?, chain, key)
}
