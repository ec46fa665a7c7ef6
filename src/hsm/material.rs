//! Key material: from attributes to a key that works, and from a new key to attributes.

use cryptoki_sys::*;
use zeroize::Zeroizing;

use super::Ck;
use super::attrs::Attrs;
use super::lc::{Block, Cipher, Curve, Ec, EdCurve, Edwards, Md, Rsa, RsaParts};
use super::wire::Bytes;

/// A key made ready.
pub(super) enum Key {
    /// AES, triple DES or generic: bytes.
    Secret(Bytes),
    Rsa(Rsa),
    Ec(Ec),
    Edwards(Edwards),
}

/// Smallest RSA modulus in bits, and the smallest with `--legacy`.
pub(super) const RSA_BITS: (u64, u64) = (2048, 1024);
/// Largest RSA modulus in bits.
pub(super) const MAX_RSA_BITS: u64 = 4096;
/// Public RSA keys that are taken in, in bits.
const PUBLIC_RSA_BITS: std::ops::RangeInclusive<u64> = 512..=16_384;
/// Longest generic secret in bytes (CloudHSM: 800).
pub(super) const MAX_GENERIC: u64 = 800;
/// Longest imported generic secret: a derivation may concatenate some.
const MAX_IMPORTED: usize = 4096;
/// Shortest secret that has a check value.
const MIN_CHECKED: usize = 8;

impl Key {
    pub(super) fn of(attrs: &Attrs) -> Ck<Self> {
        let bad = |_| CKR_ATTRIBUTE_VALUE_INVALID;
        let need = |name| attrs.bytes(name).ok_or(CKR_TEMPLATE_INCOMPLETE);
        let private = attrs.class() == CKO_PRIVATE_KEY;
        Ok(match attrs.key_type() {
            Some(CKK_RSA) => {
                let mut parts = RsaParts { n: need(CKA_MODULUS)?.to_vec(), ..RsaParts::default() };
                parts.e = attrs.bytes(CKA_PUBLIC_EXPONENT).unwrap_or(&[1, 0, 1]).to_vec();
                if private {
                    need(CKA_PRIVATE_EXPONENT)?;
                    for (part, name) in parts.secret.iter_mut().zip(RSA_SECRET) {
                        *part = Zeroizing::new(attrs.bytes(name).unwrap_or_default().to_vec());
                    }
                }
                Self::Rsa(Rsa::from_parts(&parts).map_err(bad)?)
            }
            Some(CKK_EC) => {
                let curve = curve(need(CKA_EC_PARAMS)?)?;
                Self::Ec(if private {
                    Ec::private(curve, need(CKA_VALUE)?).map_err(bad)?
                } else {
                    Ec::public(curve, point(need(CKA_EC_POINT)?)).map_err(bad)?
                })
            }
            Some(CKK_EC_EDWARDS) => {
                let curve = edwards_curve(need(CKA_EC_PARAMS)?)?;
                let key = if private {
                    Edwards::from_seed(curve, need(CKA_VALUE)?)
                } else {
                    Edwards::from_public(curve, point(need(CKA_EC_POINT)?))
                };
                Self::Edwards(key.map_err(bad)?)
            }
            _ => Self::Secret(Zeroizing::new(need(CKA_VALUE)?.to_vec())),
        })
    }

    pub(super) fn secret(&self) -> Ck<&[u8]> {
        if let Self::Secret(bytes) = self { Ok(bytes) } else { Err(CKR_KEY_TYPE_INCONSISTENT) }
    }

    pub(super) fn rsa(&self) -> Ck<&Rsa> {
        if let Self::Rsa(key) = self { Ok(key) } else { Err(CKR_KEY_TYPE_INCONSISTENT) }
    }

    pub(super) fn ec(&self) -> Ck<&Ec> {
        if let Self::Ec(key) = self { Ok(key) } else { Err(CKR_KEY_TYPE_INCONSISTENT) }
    }

    pub(super) fn edwards(&self) -> Ck<&Edwards> {
        if let Self::Edwards(key) = self { Ok(key) } else { Err(CKR_KEY_TYPE_INCONSISTENT) }
    }

    /// What C_WrapKey wraps: the value of a secret key, PKCS#8 of a private one.
    pub(super) fn exported(&self) -> Ck<Bytes> {
        match self {
            Self::Secret(bytes) => Ok(bytes.clone()),
            Self::Rsa(key) => key.pkcs8().map_err(|_| CKR_KEY_NOT_WRAPPABLE),
            Self::Ec(key) => key.pkcs8().map_err(|_| CKR_KEY_NOT_WRAPPABLE),
            Self::Edwards(_) => Err(CKR_KEY_NOT_WRAPPABLE),
        }
    }
}

const RSA_SECRET: [u64; 6] =
    [CKA_PRIVATE_EXPONENT, CKA_PRIME_1, CKA_PRIME_2, CKA_EXPONENT_1, CKA_EXPONENT_2, CKA_COEFFICIENT];

/// The curve of CKA_EC_PARAMS: an object identifier, or its name as a PrintableString.
pub(super) fn curve(params: &[u8]) -> Ck<Curve> {
    let named = |c: Curve| -> &[&str] {
        match c {
            Curve::P192 => &["secp192r1", "prime192v1", "P-192"],
            Curve::P224 => &["secp224r1", "P-224"],
            Curve::P256 => &["secp256r1", "prime256v1", "P-256"],
            Curve::P384 => &["secp384r1", "P-384"],
            Curve::P521 => &["secp521r1", "P-521"],
            Curve::K256 => &["secp256k1"],
        }
    };
    let name = match params {
        [0x13, len, name @ ..] if usize::from(*len) == name.len() => name,
        _ => &[],
    };
    Curve::ALL
        .into_iter()
        .find(|c| c.oid() == params || named(*c).iter().any(|n| n.as_bytes() == name))
        .ok_or(CKR_CURVE_NOT_SUPPORTED)
}

/// The curve of CKA_EC_PARAMS of an EdDSA key: an object identifier (RFC 8410), or its name as a PrintableString.
fn edwards_curve(params: &[u8]) -> Ck<EdCurve> {
    match params {
        [6, 3, 0x2b, 0x65, 0x70] | b"\x13\x0cedwards25519" => Ok(EdCurve::Ed25519),
        [6, 3, 0x2b, 0x65, 0x71] | b"\x13\x0aedwards448" => Ok(EdCurve::Ed448),
        _ => Err(CKR_CURVE_NOT_SUPPORTED),
    }
}

/// The point in CKA_EC_POINT: in an OCTET STRING, as the standard has it, or bare, as some callers write it.
pub(super) fn point(value: &[u8]) -> &[u8] {
    match value {
        [4, len, point @ ..] if usize::from(*len) == point.len() && *len < 0x80 => point,
        [4, 0x81, len, point @ ..] if usize::from(*len) == point.len() => point,
        _ => value,
    }
}

fn octet_string(point: &[u8]) -> Vec<u8> {
    let len = u8::try_from(point.len()).expect("points have at most 133 bytes");
    let mut out = if len < 0x80 { vec![4, len] } else { vec![4, 0x81, len] };
    out.extend_from_slice(point);
    out
}

/// Checks a key's material and states what follows from it: lengths, public values, the check value.
pub(super) fn finish(attrs: &mut Attrs) -> Ck<()> {
    let key_type = attrs.key_type().ok_or(CKR_TEMPLATE_INCOMPLETE)?;
    let class = attrs.class();
    let secret = matches!(key_type, CKK_AES | CKK_GENERIC_SECRET | CKK_DES2 | CKK_DES3)
        || (CKK_SHA_1_HMAC..=CKK_SHA512_HMAC).contains(&key_type)
        || key_type == CKK_SHA224_HMAC;
    let known = match class {
        CKO_SECRET_KEY => secret,
        _ => matches!(key_type, CKK_RSA | CKK_EC | CKK_EC_EDWARDS),
    };
    if !known {
        return Err(CKR_ATTRIBUTE_VALUE_INVALID);
    }
    if class == CKO_PUBLIC_KEY && key_type == CKK_RSA {
        return finish_rsa_public(attrs);
    }
    let key = Key::of(attrs)?;
    match &key {
        Key::Secret(bytes) => {
            let fits = match key_type {
                CKK_AES => matches!(bytes.len(), 16 | 24 | 32),
                CKK_DES2 => bytes.len() == 16,
                CKK_DES3 => bytes.len() == 24,
                _ => (1..=MAX_IMPORTED).contains(&bytes.len()),
            };
            if !fits || attrs.number(CKA_VALUE_LEN).is_some_and(|n| n != bytes.len() as u64) {
                return Err(CKR_ATTRIBUTE_VALUE_INVALID);
            }
            attrs.set_number(CKA_VALUE_LEN, bytes.len() as u64);
            // Of a short secret three bytes of a digest are no check, but the secret.
            let check = if bytes.len() < MIN_CHECKED { Vec::new() } else { check_value(key_type, bytes)? };
            attrs.set(CKA_CHECK_VALUE, &check);
        }
        Key::Rsa(rsa) => {
            let parts = rsa.parts();
            let bits = 8 * parts.n.len() as u64 - u64::from(parts.n.first().map_or(0, |b| b.leading_zeros()));
            if !(RSA_BITS.1..=MAX_RSA_BITS).contains(&bits) {
                return Err(CKR_KEY_SIZE_RANGE);
            }
            attrs.default(CKA_PUBLIC_EXPONENT, &[1, 0, 1]);
        }
        Key::Ec(ec) if class == CKO_PUBLIC_KEY => {
            let point = ec.point().map_err(|_| CKR_ATTRIBUTE_VALUE_INVALID)?;
            attrs.set(CKA_EC_POINT, &octet_string(&point));
        }
        Key::Edwards(ed) if class == CKO_PUBLIC_KEY => {
            attrs.set(CKA_EC_POINT, &octet_string(ed.public()));
        }
        // A private key has no public point here.
        Key::Ec(_) | Key::Edwards(_) => {
            attrs.0.remove(&CKA_EC_POINT);
        }
    }
    if !matches!(key, Key::Secret(_)) {
        attrs.set(CKA_CHECK_VALUE, &public_check(&key)?);
    }
    Ok(())
}

/// A public RSA key may be one that is only shown or verifies old signatures: what the library takes of it is seen when
/// it is used.
fn finish_rsa_public(attrs: &mut Attrs) -> Ck<()> {
    let modulus = attrs.bytes(CKA_MODULUS).ok_or(CKR_TEMPLATE_INCOMPLETE)?;
    let significant = &modulus[modulus.iter().take_while(|b| **b == 0).count()..];
    let bits = 8 * significant.len() as u64 - u64::from(significant.first().map_or(0, |b| b.leading_zeros()));
    if !PUBLIC_RSA_BITS.contains(&bits) {
        return Err(CKR_KEY_SIZE_RANGE);
    }
    let check = Md::Sha1.digest(significant);
    attrs.set_number(CKA_MODULUS_BITS, bits);
    attrs.default(CKA_PUBLIC_EXPONENT, &[1, 0, 1]);
    attrs.set(CKA_CHECK_VALUE, check.get(..3).unwrap_or_default());
    Ok(())
}

/// Three bytes: a zero block enciphered, or of a generic secret its SHA-1 (PKCS#11 4.10.2).
fn check_value(key_type: u64, key: &[u8]) -> Ck<Vec<u8>> {
    let block = |des: bool| {
        let mut cipher = Cipher::new(Block::Ecb, des, key, &[], true, false)?;
        cipher.update(if des { &[0; 8] } else { &[0; 16] })
    };
    let full = match key_type {
        CKK_AES => block(false),
        CKK_DES2 | CKK_DES3 => block(true),
        _ => Ok(Zeroizing::new(Md::Sha1.digest(key))),
    };
    Ok(full.map_err(|_| CKR_ATTRIBUTE_VALUE_INVALID)?.get(..3).unwrap_or_default().to_vec())
}

/// Three bytes of the SHA-1 of the public key.
fn public_check(key: &Key) -> Ck<Vec<u8>> {
    let public = match key {
        Key::Secret(_) => Vec::new(),
        Key::Rsa(rsa) => rsa.parts().n,
        Key::Ec(ec) => ec.point().map_err(|_| CKR_ATTRIBUTE_VALUE_INVALID)?,
        Key::Edwards(ed) => ed.public().to_vec(),
    };
    Ok(Md::Sha1.digest(&public).get(..3).unwrap_or_default().to_vec())
}

/// A new RSA pair into the two sets of attributes.
pub(super) fn rsa_pair(public: &mut Attrs, private: &mut Attrs, legacy: bool) -> Ck<()> {
    let bits = public.number(CKA_MODULUS_BITS).ok_or(CKR_TEMPLATE_INCOMPLETE)?;
    let least = if legacy { RSA_BITS.1 } else { RSA_BITS.0 };
    if !(least..=MAX_RSA_BITS).contains(&bits) || !bits.is_multiple_of(256) {
        return Err(CKR_KEY_SIZE_RANGE);
    }
    let exponent = public.bytes(CKA_PUBLIC_EXPONENT).unwrap_or(&[1, 0, 1]);
    let significant = &exponent[exponent.iter().take_while(|b| **b == 0).count()..];
    // FIPS 186-5: an odd exponent above 65,536; the library takes up to 33 bits.
    if significant.len() > 5 || significant.len() < 3 || significant.last().is_none_or(|b| b % 2 == 0) {
        return Err(CKR_ATTRIBUTE_VALUE_INVALID);
    }
    let bits = usize::try_from(bits).map_err(|_| CKR_KEY_SIZE_RANGE)?;
    let parts = Rsa::generate(bits, significant).map_err(|_| CKR_FUNCTION_FAILED)?.parts();
    for attrs in [public, &mut *private] {
        attrs.set(CKA_MODULUS, &parts.n);
        attrs.set(CKA_PUBLIC_EXPONENT, &parts.e);
    }
    for (name, part) in RSA_SECRET.into_iter().zip(&parts.secret) {
        private.set(name, part);
    }
    Ok(())
}

/// A new pair on the curve that the public template names.
pub(super) fn ec_pair(public: &mut Attrs, private: &mut Attrs) -> Ck<()> {
    let params = public.bytes(CKA_EC_PARAMS).ok_or(CKR_TEMPLATE_INCOMPLETE)?.to_vec();
    let failed = |_| CKR_FUNCTION_FAILED;
    let key = Ec::generate(curve(&params)?).map_err(failed)?;
    public.set(CKA_EC_POINT, &octet_string(&key.point().map_err(failed)?));
    private.set(CKA_EC_PARAMS, &params);
    private.set(CKA_VALUE, &key.scalar().map_err(failed)?);
    Ok(())
}

/// A new EdDSA pair on the curve that the public template names.
pub(super) fn edwards_pair(public: &mut Attrs, private: &mut Attrs) -> Ck<()> {
    let params = public.bytes(CKA_EC_PARAMS).ok_or(CKR_TEMPLATE_INCOMPLETE)?.to_vec();
    let curve = edwards_curve(&params)?;
    let mut seed = Zeroizing::new(vec![0; curve.len()]);
    crate::crypto::random::fill(&mut seed);
    let key = Edwards::from_seed(curve, &seed).map_err(|_| CKR_FUNCTION_FAILED)?;
    public.set(CKA_EC_POINT, &octet_string(key.public()));
    private.set(CKA_EC_PARAMS, &params);
    private.set(CKA_VALUE, &seed);
    Ok(())
}

/// A new secret of the length that the template or the key type says.
pub(super) fn secret(attrs: &mut Attrs, key_type: u64) -> Ck<()> {
    let asked = attrs.number(CKA_VALUE_LEN);
    let len = match key_type {
        CKK_AES => match asked.ok_or(CKR_TEMPLATE_INCOMPLETE)? {
            len @ (16 | 24 | 32) => len,
            _ => return Err(CKR_KEY_SIZE_RANGE),
        },
        CKK_DES2 => 16,
        CKK_DES3 => 24,
        _ => match asked.ok_or(CKR_TEMPLATE_INCOMPLETE)? {
            len @ 1..=MAX_GENERIC => len,
            _ => return Err(CKR_KEY_SIZE_RANGE),
        },
    };
    let mut value = Zeroizing::new(vec![0; usize::try_from(len).map_err(|_| CKR_KEY_SIZE_RANGE)?]);
    crate::crypto::random::fill(&mut value);
    attrs.set(CKA_VALUE, &value);
    Ok(())
}

/// Puts unwrapped bytes into a template: the value of a secret key, or the numbers of a PKCS#8 private key.
pub(super) fn import(attrs: &mut Attrs, bytes: &[u8]) -> Ck<()> {
    if attrs.class() != CKO_PRIVATE_KEY {
        let asked = attrs.number(CKA_VALUE_LEN);
        if asked.is_some_and(|len| len != bytes.len() as u64) {
            return Err(CKR_WRAPPED_KEY_LEN_RANGE);
        }
        attrs.set(CKA_VALUE, bytes);
        return Ok(());
    }
    let bad = |_| CKR_WRAPPED_KEY_INVALID;
    match attrs.key_type() {
        Some(CKK_RSA) => {
            let parts = Rsa::from_pkcs8(bytes).map_err(bad)?.parts();
            attrs.set(CKA_MODULUS, &parts.n);
            attrs.set(CKA_PUBLIC_EXPONENT, &parts.e);
            for (name, part) in RSA_SECRET.into_iter().zip(&parts.secret) {
                attrs.set(name, part);
            }
        }
        Some(CKK_EC) => {
            let key = Ec::from_pkcs8(bytes).map_err(bad)?;
            attrs.set(CKA_EC_PARAMS, key.curve().oid());
            attrs.set(CKA_VALUE, &key.scalar().map_err(bad)?);
        }
        _ => return Err(CKR_ATTRIBUTE_VALUE_INVALID),
    }
    Ok(())
}
