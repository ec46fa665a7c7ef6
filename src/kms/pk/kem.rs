//! ML-KEM (FIPS 203).

use aws_lc_rs::kem::{self, DecapsulationKey, EncapsulationKey};
use zeroize::Zeroizing;

use super::{Refused, der};
use crate::kms::spec::KeySpec;

/// One parameter set.
struct Set {
    algorithm: &'static kem::Algorithm,
    /// Module rank k.
    rank: usize,
    /// id-alg-ml-kem-*, 2.16.840.1.101.3.4.4.n (RFC 9935).
    oid: [u8; 9],
}

fn set(spec: KeySpec) -> Result<Set, Refused> {
    let (algorithm, rank, last) = match spec {
        KeySpec::MlKem512 => (&kem::ML_KEM_512, 2, 1),
        KeySpec::MlKem768 => (&kem::ML_KEM_768, 3, 2),
        KeySpec::MlKem1024 => (&kem::ML_KEM_1024, 4, 3),
        _ => return Err(Refused),
    };
    Ok(Set { algorithm, rank, oid: [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x04, last] })
}

/// Makes a decapsulation key.
pub(super) fn generate(spec: KeySpec) -> Result<Zeroizing<Vec<u8>>, Refused> {
    let key = DecapsulationKey::generate(set(spec)?.algorithm)?;
    Ok(Zeroizing::new(key.key_bytes()?.as_ref().to_vec()))
}

/// The encapsulation key inside a decapsulation key: dk = dk_pke (384 k) || ek (384 k + 32) || H(ek) || z
/// (FIPS 203, algorithm 16).
fn inner_public(set: &Set, private: &[u8]) -> Result<Vec<u8>, Refused> {
    let start = 384 * set.rank;
    Ok(private.get(start..start * 2 + 32).ok_or(Refused)?.to_vec())
}

/// SubjectPublicKeyInfo of the public half.
pub(super) fn public(spec: KeySpec, private: &[u8]) -> Result<Vec<u8>, Refused> {
    let set = set(spec)?;
    // Checks the length.
    DecapsulationKey::new(set.algorithm, private)?;
    Ok(der::spki(&set.oid, &inner_public(&set, private)?))
}

/// PKCS#8 with the expanded key (RFC 9935, section 6); `None` for other specs.
pub(super) fn pkcs8(spec: KeySpec, private: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let set = set(spec).ok()?;
    let expanded = Zeroizing::new(der::element(0x04, private));
    let mut body = Zeroizing::new(vec![0x02, 0x01, 0x00]);
    body.extend(der::algorithm(&set.oid));
    body.extend(Zeroizing::new(der::element(0x04, &expanded)).iter());
    Some(Zeroizing::new(der::element(0x30, &body)))
}

/// A fresh shared secret, and its ciphertext under the public half.
pub(in crate::kms) fn encapsulate(
    spec: KeySpec,
    private: &[u8],
) -> Result<(Vec<u8>, Zeroizing<Vec<u8>>), Refused> {
    let set = set(spec)?;
    let key = EncapsulationKey::new(set.algorithm, &inner_public(&set, private)?)?;
    let (ciphertext, shared) = key.encapsulate()?;
    Ok((ciphertext.as_ref().to_vec(), Zeroizing::new(shared.as_ref().to_vec())))
}

/// The shared secret of a ciphertext. A changed ciphertext gives another secret, as FIPS 203 wants it.
pub(in crate::kms) fn decapsulate(
    spec: KeySpec,
    private: &[u8],
    ciphertext: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Refused> {
    let key = DecapsulationKey::new(set(spec)?.algorithm, private)?;
    Ok(Zeroizing::new(key.decapsulate(ciphertext.into())?.as_ref().to_vec()))
}
