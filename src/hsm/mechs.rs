//! The mechanisms: which there are, for what, with keys of which sizes.

use cryptoki_sys::*;

use super::lc::Md;

/// One row of the table: mechanism, smallest and largest key, CKF flags, and whether it needs `--legacy`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// CK_MECHANISM_TYPE.
    pub(crate) kind: u64,
    /// Smallest key, in the mechanism's own unit.
    pub(crate) min: u64,
    /// Largest key.
    pub(crate) max: u64,
    /// CKF_ENCRYPT and so on; without CKF_HW.
    pub(crate) flags: u64,
    /// Weak or old.
    pub(crate) legacy: bool,
}

/// CloudHSM's AES-GCM: IV in front of the ciphertext, made by the HSM.
pub(crate) const CLOUDHSM_AES_GCM: u64 = CKM_VENDOR_DEFINED | CKM_AES_GCM;
/// CloudHSM's AES key wrap without padding (RFC 3394).
pub(crate) const CLOUDHSM_AES_KEY_WRAP_NO_PAD: u64 = CKM_VENDOR_DEFINED | 0x216d;
/// CloudHSM's AES key wrap with PKCS#5 padding.
pub(crate) const CLOUDHSM_AES_KEY_WRAP_PKCS5_PAD: u64 = CKM_VENDOR_DEFINED | 0x216e;
/// CloudHSM's AES key wrap with zero padding.
pub(crate) const CLOUDHSM_AES_KEY_WRAP_ZERO_PAD: u64 = CKM_VENDOR_DEFINED | 0x216f;

const ED: u64 = CKF_ENCRYPT | CKF_DECRYPT;
const SV: u64 = CKF_SIGN | CKF_VERIFY;
const WU: u64 = CKF_WRAP | CKF_UNWRAP;
const GEN: u64 = CKF_GENERATE;
const PAIR: u64 = CKF_GENERATE_KEY_PAIR;
const EC: u64 = CKF_EC_F_P | CKF_EC_NAMEDCURVE | CKF_EC_UNCOMPRESS;

const fn row(kind: u64, min: u64, max: u64, flags: u64) -> Row {
    Row { kind, min, max, flags, legacy: false }
}

const fn old(kind: u64, min: u64, max: u64, flags: u64) -> Row {
    Row { kind, min, max, flags, legacy: true }
}

/// Every mechanism.
pub(crate) const TABLE: &[Row] = &[
    row(CKM_RSA_PKCS_KEY_PAIR_GEN, 2048, 4096, PAIR),
    row(CKM_RSA_X9_31_KEY_PAIR_GEN, 2048, 4096, PAIR),
    row(CKM_RSA_PKCS, 2048, 4096, ED | SV | WU),
    row(CKM_RSA_PKCS_OAEP, 2048, 4096, ED | WU),
    row(CKM_RSA_X_509, 2048, 4096, ED | SV),
    row(CKM_RSA_AES_KEY_WRAP, 2048, 4096, WU),
    old(CKM_MD5_RSA_PKCS, 1024, 4096, SV),
    row(CKM_SHA1_RSA_PKCS, 2048, 4096, SV),
    row(CKM_SHA224_RSA_PKCS, 2048, 4096, SV),
    row(CKM_SHA256_RSA_PKCS, 2048, 4096, SV),
    row(CKM_SHA384_RSA_PKCS, 2048, 4096, SV),
    row(CKM_SHA512_RSA_PKCS, 2048, 4096, SV),
    row(CKM_RSA_PKCS_PSS, 2048, 4096, SV),
    row(CKM_SHA1_RSA_PKCS_PSS, 2048, 4096, SV),
    row(CKM_SHA224_RSA_PKCS_PSS, 2048, 4096, SV),
    row(CKM_SHA256_RSA_PKCS_PSS, 2048, 4096, SV),
    row(CKM_SHA384_RSA_PKCS_PSS, 2048, 4096, SV),
    row(CKM_SHA512_RSA_PKCS_PSS, 2048, 4096, SV),
    row(CKM_EC_KEY_PAIR_GEN, 224, 521, PAIR | EC),
    row(CKM_ECDSA, 224, 521, SV | EC),
    row(CKM_ECDSA_SHA1, 224, 521, SV | EC),
    row(CKM_ECDSA_SHA224, 224, 521, SV | EC),
    row(CKM_ECDSA_SHA256, 224, 521, SV | EC),
    row(CKM_ECDSA_SHA384, 224, 521, SV | EC),
    row(CKM_ECDSA_SHA512, 224, 521, SV | EC),
    row(CKM_ECDH1_DERIVE, 224, 521, CKF_DERIVE | EC),
    row(CKM_EC_EDWARDS_KEY_PAIR_GEN, 255, 448, PAIR | EC),
    row(CKM_EDDSA, 255, 448, SV | EC),
    row(CKM_GENERIC_SECRET_KEY_GEN, 1, 800, GEN),
    row(CKM_SHA_1_HMAC, 1, 4096, SV),
    row(CKM_SHA224_HMAC, 1, 4096, SV),
    row(CKM_SHA256_HMAC, 1, 4096, SV),
    row(CKM_SHA384_HMAC, 1, 4096, SV),
    row(CKM_SHA512_HMAC, 1, 4096, SV),
    row(CKM_AES_KEY_GEN, 16, 32, GEN),
    row(CKM_AES_ECB, 16, 32, ED),
    row(CKM_AES_CBC, 16, 32, ED | WU),
    row(CKM_AES_CBC_PAD, 16, 32, ED | WU),
    row(CKM_AES_CTR, 16, 32, ED),
    row(CKM_AES_GCM, 16, 32, ED | WU),
    row(CLOUDHSM_AES_GCM, 16, 32, ED | WU),
    row(CKM_AES_KEY_WRAP, 16, 32, WU),
    row(CKM_AES_KEY_WRAP_PAD, 16, 32, WU),
    row(CKM_AES_KEY_WRAP_KWP, 16, 32, WU),
    row(CLOUDHSM_AES_KEY_WRAP_NO_PAD, 16, 32, WU),
    row(CLOUDHSM_AES_KEY_WRAP_PKCS5_PAD, 16, 32, WU),
    row(CLOUDHSM_AES_KEY_WRAP_ZERO_PAD, 16, 32, WU),
    row(CKM_AES_CMAC, 16, 32, SV),
    old(CKM_AES_MAC, 16, 32, SV),
    old(CKM_AES_ECB_ENCRYPT_DATA, 16, 32, CKF_DERIVE),
    old(CKM_AES_CBC_ENCRYPT_DATA, 16, 32, CKF_DERIVE),
    row(CKM_SP800_108_COUNTER_KDF, 1, 4096, CKF_DERIVE),
    row(CKM_SP800_108_FEEDBACK_KDF, 1, 4096, CKF_DERIVE),
    old(CKM_CONCATENATE_BASE_AND_KEY, 1, 4096, CKF_DERIVE),
    old(CKM_CONCATENATE_BASE_AND_DATA, 1, 4096, CKF_DERIVE),
    old(CKM_CONCATENATE_DATA_AND_BASE, 1, 4096, CKF_DERIVE),
    old(CKM_XOR_BASE_AND_DATA, 1, 4096, CKF_DERIVE),
    old(CKM_EXTRACT_KEY_FROM_KEY, 1, 4096, CKF_DERIVE),
    old(CKM_DES2_KEY_GEN, 16, 16, GEN),
    old(CKM_DES3_KEY_GEN, 24, 24, GEN),
    old(CKM_DES3_ECB, 16, 24, ED),
    old(CKM_DES3_CBC, 16, 24, ED | WU),
    old(CKM_DES3_CBC_PAD, 16, 24, ED | WU),
    row(CKM_SHA_1, 0, 0, CKF_DIGEST),
    row(CKM_SHA224, 0, 0, CKF_DIGEST),
    row(CKM_SHA256, 0, 0, CKF_DIGEST),
    row(CKM_SHA384, 0, 0, CKF_DIGEST),
    row(CKM_SHA512, 0, 0, CKF_DIGEST),
    old(CKM_MD5, 0, 0, CKF_DIGEST),
];

/// The row of a mechanism, where the appliance offers it.
pub(crate) fn find(kind: u64, legacy: bool) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.kind == kind && (legacy || !row.legacy))
}

/// The digest that is a mechanism.
pub(super) fn digest(kind: u64) -> Option<Md> {
    Some(match kind {
        CKM_MD5 => Md::Md5,
        CKM_SHA_1 => Md::Sha1,
        CKM_SHA224 => Md::Sha224,
        CKM_SHA256 => Md::Sha256,
        CKM_SHA384 => Md::Sha384,
        CKM_SHA512 => Md::Sha512,
        _ => return None,
    })
}

/// The digest behind MGF1.
pub(super) fn mgf(kind: u64) -> Option<Md> {
    Some(match kind {
        CKG_MGF1_SHA1 => Md::Sha1,
        CKG_MGF1_SHA224 => Md::Sha224,
        CKG_MGF1_SHA256 => Md::Sha256,
        CKG_MGF1_SHA384 => Md::Sha384,
        CKG_MGF1_SHA512 => Md::Sha512,
        _ => return None,
    })
}

/// HMAC mechanisms: the digest.
pub(super) fn hmac(kind: u64) -> Option<Md> {
    Some(match kind {
        CKM_SHA_1_HMAC => Md::Sha1,
        CKM_SHA224_HMAC => Md::Sha224,
        CKM_SHA256_HMAC => Md::Sha256,
        CKM_SHA384_HMAC => Md::Sha384,
        CKM_SHA512_HMAC => Md::Sha512,
        _ => return None,
    })
}

/// A signature scheme over a digest that it makes itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scheme {
    Pkcs1,
    Pss,
    Ecdsa,
}

/// Signature mechanisms with a digest inside.
pub(super) fn hashed(kind: u64) -> Option<(Scheme, Md)> {
    use Scheme::{Ecdsa, Pkcs1, Pss};
    Some(match kind {
        CKM_MD5_RSA_PKCS => (Pkcs1, Md::Md5),
        CKM_SHA1_RSA_PKCS => (Pkcs1, Md::Sha1),
        CKM_SHA224_RSA_PKCS => (Pkcs1, Md::Sha224),
        CKM_SHA256_RSA_PKCS => (Pkcs1, Md::Sha256),
        CKM_SHA384_RSA_PKCS => (Pkcs1, Md::Sha384),
        CKM_SHA512_RSA_PKCS => (Pkcs1, Md::Sha512),
        CKM_SHA1_RSA_PKCS_PSS => (Pss, Md::Sha1),
        CKM_SHA224_RSA_PKCS_PSS => (Pss, Md::Sha224),
        CKM_SHA256_RSA_PKCS_PSS => (Pss, Md::Sha256),
        CKM_SHA384_RSA_PKCS_PSS => (Pss, Md::Sha384),
        CKM_SHA512_RSA_PKCS_PSS => (Pss, Md::Sha512),
        CKM_ECDSA_SHA1 => (Ecdsa, Md::Sha1),
        CKM_ECDSA_SHA224 => (Ecdsa, Md::Sha224),
        CKM_ECDSA_SHA256 => (Ecdsa, Md::Sha256),
        CKM_ECDSA_SHA384 => (Ecdsa, Md::Sha384),
        CKM_ECDSA_SHA512 => (Ecdsa, Md::Sha512),
        _ => return None,
    })
}
