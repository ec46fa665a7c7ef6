//! RSA encryption (RSAES-OAEP) and the unwrapping of imported material.

use aws_lc_rs::key_wrap::{AES_256, KeyEncryptionKey, KeyWrapPadded as _};
use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPrivateDecryptingKey,
    OaepPublicEncryptingKey, PrivateDecryptingKey, PublicEncryptingKey,
};
use zeroize::Zeroizing;

use super::Refused;
use crate::kms::spec::KeySpec;

fn oaep(algorithm: &str) -> Result<&'static OaepAlgorithm, Refused> {
    match algorithm {
        "RSAES_OAEP_SHA_1" | "RSA_AES_KEY_WRAP_SHA_1" => Ok(&OAEP_SHA1_MGF1SHA1),
        "RSAES_OAEP_SHA_256" | "RSA_AES_KEY_WRAP_SHA_256" => Ok(&OAEP_SHA256_MGF1SHA256),
        _ => Err(Refused),
    }
}

/// The longest plaintext of an algorithm, in bytes (RFC 8017, 7.1.1).
pub(in crate::kms) fn max_plaintext(spec: KeySpec, algorithm: &str) -> usize {
    let modulus = match spec {
        KeySpec::Rsa2048 => 256,
        KeySpec::Rsa3072 => 384,
        _ => 512,
    };
    modulus - 2 - 2 * if algorithm == "RSAES_OAEP_SHA_1" { 20 } else { 32 }
}

/// Encrypts to a public key (SubjectPublicKeyInfo).
pub(in crate::kms) fn encrypt(public: &[u8], algorithm: &str, plain: &[u8]) -> Result<Vec<u8>, Refused> {
    let key = OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(public)?)?;
    let mut out = vec![0; key.ciphertext_size()];
    let len = key.encrypt(oaep(algorithm)?, plain, &mut out, None)?.len();
    out.truncate(len);
    Ok(out)
}

/// Decrypts with a private key (PKCS#8).
pub(in crate::kms) fn decrypt(
    private: &[u8],
    algorithm: &str,
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Refused> {
    let key = OaepPrivateDecryptingKey::new(PrivateDecryptingKey::from_pkcs8(private)?)?;
    let mut out = Zeroizing::new(vec![0; key.min_output_size()]);
    let len = key.decrypt(oaep(algorithm)?, sealed, &mut out, None)?.len();
    out.truncate(len);
    Ok(out)
}

/// Unwraps imported key material: OAEP alone, or OAEP of an AES-256 key and AES-KWP (RFC 5649) of the material.
pub(in crate::kms) fn unwrap_key(
    private: &[u8],
    algorithm: &str,
    wrapped: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Refused> {
    if !algorithm.starts_with("RSA_AES_KEY_WRAP") {
        return decrypt(private, algorithm, wrapped);
    }
    let modulus = PrivateDecryptingKey::from_pkcs8(private)?.key_size_bytes();
    let (sealed_key, material) = wrapped.split_at_checked(modulus).ok_or(Refused)?;
    let aes = decrypt(private, algorithm, sealed_key)?;
    let mut out = Zeroizing::new(vec![0; material.len()]);
    let len = KeyEncryptionKey::new(&AES_256, &aes)?.unwrap_with_padding(material, &mut out)?.len();
    out.truncate(len);
    Ok(out)
}
