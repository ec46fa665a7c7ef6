//! Signatures: RSA PKCS#1 v1.5 and PSS, ECDSA, Ed25519, ML-DSA.

use aws_lc_rs::digest::{self, Digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, Ed25519KeyPair, ParsedPublicKey, PqdsaKeyPair, RsaEncoding, VerificationAlgorithm,
};

use super::{Refused, curve, ml_dsa};
use crate::kms::spec::KeySpec;

/// What is signed: the message, or its digest.
pub(in crate::kms) enum Digestible<'a> {
    /// The message itself.
    Raw(&'a [u8]),
    /// A digest that the caller made.
    Digest(&'a [u8]),
}

fn hash(algorithm: &str) -> Result<&'static digest::Algorithm, Refused> {
    match algorithm.rsplit('_').next() {
        Some("256") if algorithm != "ML_DSA_SHAKE_256" => Ok(&digest::SHA256),
        Some("384") => Ok(&digest::SHA384),
        Some("512") => Ok(&digest::SHA512),
        _ => Err(Refused),
    }
}

/// Bytes of the digest that an algorithm takes; `None` where it takes none.
pub(in crate::kms) fn digest_len(algorithm: &str) -> Option<usize> {
    hash(algorithm).ok().map(digest::Algorithm::output_len)
}

impl Digestible<'_> {
    fn digest(&self, algorithm: &str) -> Result<Digest, Refused> {
        let hash = hash(algorithm)?;
        match self {
            Self::Raw(message) => Ok(digest::digest(hash, message)),
            Self::Digest(bytes) => Ok(Digest::import_less_safe(bytes, hash)?),
        }
    }

    fn raw(&self) -> Result<&[u8], Refused> {
        match self {
            Self::Raw(message) => Ok(message),
            Self::Digest(_) => Err(Refused),
        }
    }
}

/// Signs with a private key. ECDSA signatures are DER.
pub(in crate::kms) fn sign(
    spec: KeySpec,
    private: &[u8],
    algorithm: &str,
    message: &Digestible<'_>,
) -> Result<Vec<u8>, Refused> {
    if let Some(encoding) = rsa_encoding(algorithm) {
        let key = RsaKeyPair::from_pkcs8(private)?;
        let mut out = vec![0; key.public_modulus_len()];
        key.sign_digest(encoding, &message.digest(algorithm)?, &mut out)?;
        return Ok(out);
    }
    if let Some(curve) = curve(spec) {
        let key = EcdsaKeyPair::from_pkcs8(curve, private)?;
        let signature = match message {
            Digestible::Raw(message) => key.sign(&SystemRandom::new(), message)?,
            Digestible::Digest(_) => key.sign_digest(&message.digest(algorithm)?)?,
        };
        return Ok(signature.as_ref().to_vec());
    }
    if let Some(lattice) = ml_dsa(spec) {
        let key = PqdsaKeyPair::from_pkcs8(lattice, private)?;
        let mut out = vec![0; lattice.signature_len()];
        let len = key.sign(message.raw()?, &mut out)?;
        out.truncate(len);
        return Ok(out);
    }
    match spec {
        KeySpec::Ed25519 => {
            let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(private)?;
            Ok(key.try_sign(message.raw()?)?.as_ref().to_vec())
        }
        _ => Err(Refused),
    }
}

/// Verifies with a public key (SubjectPublicKeyInfo).
pub(in crate::kms) fn verify(
    spec: KeySpec,
    public: &[u8],
    algorithm: &str,
    message: &Digestible<'_>,
    signature: &[u8],
) -> Result<(), Refused> {
    let key = ParsedPublicKey::new(verifier(spec, algorithm)?, public)?;
    match message {
        Digestible::Raw(message) => Ok(key.verify_sig(message, signature)?),
        Digestible::Digest(_) => Ok(key.verify_digest_sig(&message.digest(algorithm)?, signature)?),
    }
}

fn rsa_encoding(algorithm: &str) -> Option<&'static dyn RsaEncoding> {
    Some(match algorithm {
        "RSASSA_PKCS1_V1_5_SHA_256" => &signature::RSA_PKCS1_SHA256,
        "RSASSA_PKCS1_V1_5_SHA_384" => &signature::RSA_PKCS1_SHA384,
        "RSASSA_PKCS1_V1_5_SHA_512" => &signature::RSA_PKCS1_SHA512,
        "RSASSA_PSS_SHA_256" => &signature::RSA_PSS_SHA256,
        "RSASSA_PSS_SHA_384" => &signature::RSA_PSS_SHA384,
        "RSASSA_PSS_SHA_512" => &signature::RSA_PSS_SHA512,
        _ => return None,
    })
}

fn verifier(spec: KeySpec, algorithm: &str) -> Result<&'static dyn VerificationAlgorithm, Refused> {
    Ok(match (spec, algorithm) {
        (_, "RSASSA_PKCS1_V1_5_SHA_256") => &signature::RSA_PKCS1_2048_8192_SHA256,
        (_, "RSASSA_PKCS1_V1_5_SHA_384") => &signature::RSA_PKCS1_2048_8192_SHA384,
        (_, "RSASSA_PKCS1_V1_5_SHA_512") => &signature::RSA_PKCS1_2048_8192_SHA512,
        (_, "RSASSA_PSS_SHA_256") => &signature::RSA_PSS_2048_8192_SHA256,
        (_, "RSASSA_PSS_SHA_384") => &signature::RSA_PSS_2048_8192_SHA384,
        (_, "RSASSA_PSS_SHA_512") => &signature::RSA_PSS_2048_8192_SHA512,
        (KeySpec::P256, _) => &signature::ECDSA_P256_SHA256_ASN1,
        (KeySpec::P384, _) => &signature::ECDSA_P384_SHA384_ASN1,
        (KeySpec::P521, _) => &signature::ECDSA_P521_SHA512_ASN1,
        (KeySpec::Secp256k1, _) => &signature::ECDSA_P256K1_SHA256_ASN1,
        (KeySpec::Ed25519, _) => &signature::ED25519,
        (KeySpec::MlDsa44, _) => &signature::ML_DSA_44,
        (KeySpec::MlDsa65, _) => &signature::ML_DSA_65,
        (KeySpec::MlDsa87, _) => &signature::ML_DSA_87,
        _ => return Err(Refused),
    })
}
