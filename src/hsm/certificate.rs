//! The HSM's certificate: a request for the customer's CA to sign, and the check of what comes back.

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, X509Certificate, parse_x509_pem};

use super::admin::Refusal;
use super::appliance::{Appliance, Life};
use super::client::SERVER_NAME;
use super::root::hex;
use crate::crypto::random;

impl Appliance {
    /// The certificate signing request; its key is made once and stays inside.
    pub(super) fn csr(&self) -> Result<Value, Refusal> {
        let failed = |e: &dyn std::fmt::Display| Refusal(format!("the request could not be made: {e}"));
        if !self.state.read().meta.certificate.is_empty() {
            return Err(Refusal("the HSM has its certificate already".into()));
        }
        if self.state.read().meta.tls_key.is_empty() {
            let pair = KeyPair::generate().map_err(|e| failed(&e))?;
            self.change_meta(|meta| {
                if meta.tls_key.is_empty() {
                    meta.tls_key = pair.serialize_pem();
                }
            })?;
        }
        let (key, serial) = {
            let state = self.state.read();
            (state.meta.tls_key.clone(), state.meta.serial.clone())
        };
        let pair = KeyPair::from_pem(&key).map_err(|e| failed(&e))?;
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()]).map_err(|e| failed(&e))?;
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "EnvelopeFS");
        name.push(DnType::CommonName, format!("HSM:{serial}"));
        params.distinguished_name = name;
        let request = params.serialize_request(&pair).and_then(|r| r.pem()).map_err(|e| failed(&e))?;
        Ok(json!({ "csr": request }))
    }

    /// Takes the signed certificate and the CA's own: the first must be for our key, by that CA.
    pub(super) fn initialize(&self, signed: &str, ca: &str) -> Result<Value, Refusal> {
        let (life, key) = {
            let state = self.state.read();
            if !state.meta.certificate.is_empty() {
                return Err(Refusal("the HSM is initialised already".into()));
            }
            (state.meta.life, state.meta.tls_key.clone())
        };
        if key.is_empty() {
            return Err(Refusal(
                "get the certificate signing request first: envelopefs hsm cluster csr".into(),
            ));
        }
        let anchor = self.state.read().meta.ca.clone();
        if !anchor.is_empty() && anchor.trim() != ca.trim() {
            return Err(Refusal(
                "the cluster that this HSM was restored from has another trust anchor: all members have certificates by \
                 one CA"
                    .into(),
            ));
        }
        let pair = KeyPair::from_pem(&key).map_err(|e| Refusal(e.to_string()))?;
        check(signed, ca, &pair)?;
        let mut late = false;
        self.change_meta(|meta| {
            late = !meta.certificate.is_empty() || meta.life != life;
            if late {
                return;
            }
            signed.clone_into(&mut meta.certificate);
            ca.clone_into(&mut meta.ca);
            if meta.cluster.is_empty() {
                meta.cluster = format!("cluster-{}", hex(&random::array::<6>()));
            }
            if life == Life::Uninitialized {
                meta.life = Life::Initialized;
            }
        })?;
        if late {
            return Err(Refusal("the HSM was initialised or activated meanwhile".into()));
        }
        Ok(json!({ "message": "Cluster initialized", "cluster": self.state.read().meta.cluster }))
    }
}

fn check(signed: &str, ca: &str, pair: &KeyPair) -> Result<(), Refusal> {
    let text_of_ca = ca;
    let pem = |text: &str, what: &str| {
        parse_x509_pem(text.as_bytes())
            .map(|(_, pem)| pem)
            .map_err(|e| Refusal(format!("{what}: no PEM certificate ({e})")))
    };
    let (signed, ca) = (pem(signed, "the signed certificate")?, pem(ca, "the CA certificate")?);
    let parse = |der: &'_ [u8], what: &str| -> Result<(), Refusal> {
        X509Certificate::from_der(der).map(|_| ()).map_err(|e| Refusal(format!("{what}: {e}")))
    };
    parse(&signed.contents, "the signed certificate")?;
    parse(&ca.contents, "the CA certificate")?;
    // All that stands there would be trusted, not the one that is checked here.
    if text_of_ca.matches("-----BEGIN ").count() != 1 {
        return Err(Refusal("the CA certificate: one certificate, and nothing beside it".into()));
    }
    let (Ok((_, certificate)), Ok((_, authority))) =
        (X509Certificate::from_der(&signed.contents), X509Certificate::from_der(&ca.contents))
    else {
        return Err(Refusal("the certificates do not decode".into()));
    };
    use rcgen::PublicKeyData as _;
    if certificate.public_key().raw != pair.subject_public_key_info() {
        return Err(Refusal(
            "the signed certificate is not for this HSM's key: sign the CSR of this HSM".into(),
        ));
    }
    if !authority.is_ca() {
        return Err(Refusal("the CA certificate is no certificate of a CA (basicConstraints)".into()));
    }
    certificate
        .verify_signature(Some(authority.public_key()))
        .map_err(|_| Refusal("the signed certificate is not by this CA".into()))?;
    if !certificate.validity().is_valid() {
        return Err(Refusal("the signed certificate is not valid at this time".into()));
    }
    let named = certificate.subject_alternative_name().ok().flatten().is_some_and(|san| {
        san.value
            .general_names
            .iter()
            .any(|n| matches!(n, x509_parser::extensions::GeneralName::DNSName(name) if *name == SERVER_NAME))
    });
    if !named {
        return Err(Refusal(format!(
            "the signed certificate lost the name {SERVER_NAME}: let your CA copy the request's extensions (openssl x509 \
             -req -copy_extensions copy)"
        )));
    }
    Ok(())
}
