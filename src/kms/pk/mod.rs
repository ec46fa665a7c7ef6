//! Asymmetric key material: RSA, elliptic curves, Ed25519, ML-DSA, ML-KEM, by aws-lc-rs.
//!
//! A private key is PKCS#8 DER; ML-KEM's is its raw decapsulation key (FIPS 203), which has the public half inside.
//! Public keys are SubjectPublicKeyInfo DER, as AWS gives them.

mod der;
mod kem;
mod rsa;
mod sign;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, PqdsaKeyPair,
    PqdsaSigningAlgorithm,
};
use zeroize::Zeroizing;

use super::spec::KeySpec;

pub(super) use kem::{decapsulate, encapsulate};
pub(super) use rsa::{decrypt, encrypt, max_plaintext, unwrap_key};
pub(super) use sign::{Digestible, digest_len, sign, verify};

/// The crypto library refused: wrong key, wrong length, wrong curve. It does not say more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused;

impl From<aws_lc_rs::error::Unspecified> for Refused {
    fn from(_: aws_lc_rs::error::Unspecified) -> Self {
        Self
    }
}

impl From<aws_lc_rs::error::KeyRejected> for Refused {
    fn from(_: aws_lc_rs::error::KeyRejected) -> Self {
        Self
    }
}

/// Makes a private key.
pub(super) fn generate(spec: KeySpec) -> Result<Zeroizing<Vec<u8>>, Refused> {
    let owned = |bytes: &[u8]| Zeroizing::new(bytes.to_vec());
    if let Some(size) = rsa_size(spec) {
        let der: Pkcs8V1Der<'_> = RsaKeyPair::generate(size)?.as_der()?;
        return Ok(owned(der.as_ref()));
    }
    if let Some(curve) = curve(spec) {
        return Ok(owned(EcdsaKeyPair::generate(curve)?.to_pkcs8v1()?.as_ref()));
    }
    if let Some(lattice) = ml_dsa(spec) {
        return Ok(owned(PqdsaKeyPair::generate(lattice)?.to_pkcs8v1()?.as_ref()));
    }
    match spec {
        KeySpec::Ed25519 => Ok(owned(Ed25519KeyPair::generate()?.to_pkcs8v1()?.as_ref())),
        _ => kem::generate(spec),
    }
}

/// The public half, as SubjectPublicKeyInfo. Also tells whether the private key is one of its spec.
pub(super) fn public(spec: KeySpec, private: &[u8]) -> Result<Vec<u8>, Refused> {
    let spki = |der: PublicKeyX509Der<'_>| der.as_ref().to_vec();
    if let Some(size) = rsa_size(spec) {
        let pair = RsaKeyPair::from_pkcs8(private)?;
        if pair.public_modulus_len() != size.len() {
            return Err(Refused);
        }
        return Ok(spki(pair.public_key().as_der()?));
    }
    if let Some(curve) = curve(spec) {
        return Ok(spki(EcdsaKeyPair::from_pkcs8(curve, private)?.public_key().as_der()?));
    }
    if let Some(lattice) = ml_dsa(spec) {
        return Ok(spki(PqdsaKeyPair::from_pkcs8(lattice, private)?.public_key().as_der()?));
    }
    match spec {
        KeySpec::Ed25519 => {
            Ok(spki(Ed25519KeyPair::from_pkcs8_maybe_unchecked(private)?.public_key().as_der()?))
        }
        _ => kem::public(spec, private),
    }
}

/// The private key as PKCS#8, for a data key pair that leaves the service.
pub(super) fn pkcs8(spec: KeySpec, private: &[u8]) -> Zeroizing<Vec<u8>> {
    kem::pkcs8(spec, private).unwrap_or_else(|| Zeroizing::new(private.to_vec()))
}

/// ECDH: the x coordinate of the shared point. `peer` is SubjectPublicKeyInfo on the same curve.
pub(super) fn agree(spec: KeySpec, private: &[u8], peer: &[u8]) -> Result<Zeroizing<Vec<u8>>, Refused> {
    use aws_lc_rs::agreement::{self, ParsedPublicKeyFormat};
    let algorithm = match spec {
        KeySpec::P256 => &agreement::ECDH_P256,
        KeySpec::P384 => &agreement::ECDH_P384,
        KeySpec::P521 => &agreement::ECDH_P521,
        _ => return Err(Refused),
    };
    let mine = agreement::PrivateKey::from_private_key_der(algorithm, private)?;
    let peer = agreement::ParsedPublicKey::try_from(&agreement::UnparsedPublicKey::new(algorithm, peer))?;
    if peer.format() != ParsedPublicKeyFormat::X509 {
        return Err(Refused);
    }
    agreement::agree(&mine, peer, Refused, |shared| Ok(Zeroizing::new(shared.to_vec())))
}

fn rsa_size(spec: KeySpec) -> Option<KeySize> {
    match spec {
        KeySpec::Rsa2048 => Some(KeySize::Rsa2048),
        KeySpec::Rsa3072 => Some(KeySize::Rsa3072),
        KeySpec::Rsa4096 => Some(KeySize::Rsa4096),
        _ => None,
    }
}

fn curve(spec: KeySpec) -> Option<&'static EcdsaSigningAlgorithm> {
    match spec {
        KeySpec::P256 => Some(&signature::ECDSA_P256_SHA256_ASN1_SIGNING),
        KeySpec::P384 => Some(&signature::ECDSA_P384_SHA384_ASN1_SIGNING),
        KeySpec::P521 => Some(&signature::ECDSA_P521_SHA512_ASN1_SIGNING),
        KeySpec::Secp256k1 => Some(&signature::ECDSA_P256K1_SHA256_ASN1_SIGNING),
        _ => None,
    }
}

fn ml_dsa(spec: KeySpec) -> Option<&'static PqdsaSigningAlgorithm> {
    match spec {
        KeySpec::MlDsa44 => Some(&signature::ML_DSA_44_SIGNING),
        KeySpec::MlDsa65 => Some(&signature::ML_DSA_65_SIGNING),
        KeySpec::MlDsa87 => Some(&signature::ML_DSA_87_SIGNING),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
