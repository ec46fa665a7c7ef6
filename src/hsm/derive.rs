//! Derivations: ECDH, SP 800-108, and the simple ones of PKCS#11.

use cryptoki_sys::*;
use zeroize::Zeroizing;

use super::Ck;
use super::appliance::{App, Appliance};
use super::attrs::Attrs;
use super::engine::allowed_mechanism;
use super::lc::{Block, Cipher, Cmac, Hmac, Md};
use super::material::{Key, point};
use super::mechs;
use super::object::{Object, Origin, complete};
use super::quorum::{Guard, Terms};
use super::users::Permission;
use super::wire::{Bytes, Mech, Params, Template};

/// The longest key that a derivation makes, in bytes.
const MAX_DERIVED: usize = 4096;
/// The most additional keys of a derivation.
const MAX_MORE: usize = 32;

impl Appliance {
    /// The derived key, then the additional ones of an SP 800-108 derivation.
    pub(super) fn derive(&self, app: &App, s: u64, mech: &Mech, base: u64, attrs: Template) -> Ck<Vec<u64>> {
        let session = app.session(s)?;
        Self::need(app, Permission::KeyManagement)?;
        match mechs::find(mech.kind, self.config.legacy) {
            Some(row) if row.flags & CKF_DERIVE != 0 => {}
            _ => return Err(CKR_MECHANISM_INVALID),
        }
        let base = self.key_object(app, base)?;
        if !base.attrs.flag(CKA_DERIVE) {
            return Err(CKR_KEY_FUNCTION_NOT_PERMITTED);
        }
        allowed_mechanism(mech.kind, &base.attrs)?;
        if mech.kind == CKM_ECDH1_DERIVE && base.attrs.class() != CKO_PRIVATE_KEY {
            return Err(CKR_KEY_TYPE_INCONSISTENT);
        }
        Self::authenticated(&session, &base)?;
        let mut given = vec![Attrs::of(attrs)?];
        if let Params::Kdf { more, .. } = &mech.params {
            if more.len() > MAX_MORE {
                return Err(CKR_MECHANISM_PARAM_INVALID);
            }
            for template in more {
                given.push(Attrs::of(template.clone())?);
            }
        }
        // What the key's maker said of all that is derived from it.
        for given in &mut given {
            given.join(base.attrs.nested(CKA_DERIVE_TEMPLATE)?)?;
        }
        let lens = given.iter().map(|g| wanted_len(g, mech.kind)).collect::<Ck<Vec<_>>>()?;
        let key = base.key()?;
        let other = self.second_key(app, mech)?;
        // What is made of a key would be used without the approvals that the key itself needs.
        if [Some(&base), other.as_ref()].into_iter().flatten().any(|k| Guard::management(k).is_on()) {
            return Err(CKR_FUNCTION_REJECTED);
        }
        let pieces = match &mech.params {
            Params::Kdf { prf, data, iv, .. } => kdf(mech.kind, *prf, data, iv, key.secret()?, &lens)?,
            _ => {
                let hidden = |o: &Object| o.attrs.class() == CKO_SECRET_KEY && o.attrs.hides(CKA_VALUE);
                let hidden = hidden(&base) || other.as_deref().is_some_and(hidden);
                vec![simple(mech, &key, other.as_deref(), lens.first().copied().flatten(), hidden)?]
            }
        };
        let parents: Vec<&Object> = [Some(&*base), other.as_deref()].into_iter().flatten().collect();
        let made = given.iter().zip(pieces).map(|(g, piece)| self.derived(app, s, g, &parents, &piece));
        // All or none.
        self.put(made.collect::<Ck<Vec<_>>>()?, &Terms::default())
    }

    /// The key that a mechanism's parameter names.
    fn second_key(&self, app: &App, mech: &Mech) -> Ck<Option<std::sync::Arc<Object>>> {
        match (mech.kind, &mech.params) {
            (CKM_CONCATENATE_BASE_AND_KEY, Params::Number { value }) => {
                self.key_object(app, *value).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn derived(&self, app: &App, s: u64, given: &Attrs, parents: &[&Object], value: &[u8]) -> Ck<Object> {
        let mut attrs = given.clone();
        attrs.default(CKA_CLASS, &CKO_SECRET_KEY.to_le_bytes());
        attrs.default(CKA_KEY_TYPE, &CKK_GENERIC_SECRET.to_le_bytes());
        if attrs.class() != CKO_SECRET_KEY || given.has(CKA_VALUE) {
            return Err(CKR_TEMPLATE_INCONSISTENT);
        }
        // A key made of a sensitive one by joining, cutting or mixing is as sensitive (PKCS#11 2.40 2.31).
        let inherits = parents.iter().any(|p| p.attrs.class() == CKO_SECRET_KEY);
        let any = |name, value| parents.iter().any(|p| p.attrs.flag(name) == value);
        if inherits && any(CKA_SENSITIVE, true) {
            match given.bytes(CKA_SENSITIVE) {
                Some([0]) => return Err(CKR_TEMPLATE_INCONSISTENT),
                _ => attrs.set_flag(CKA_SENSITIVE, true),
            }
        }
        if inherits && any(CKA_EXTRACTABLE, false) {
            match given.bytes(CKA_EXTRACTABLE) {
                Some([1]) => return Err(CKR_TEMPLATE_INCONSISTENT),
                _ => attrs.set_flag(CKA_EXTRACTABLE, false),
            }
        }
        if inherits && any(CKA_WRAP_WITH_TRUSTED, true) {
            match given.bytes(CKA_WRAP_WITH_TRUSTED) {
                Some([0]) => return Err(CKR_TEMPLATE_INCONSISTENT),
                _ => attrs.set_flag(CKA_WRAP_WITH_TRUSTED, true),
            }
        }
        attrs.set(CKA_VALUE, value);
        let all = |name| parents.iter().all(|p| p.attrs.flag(name));
        let origin = Origin::Derived {
            sensitive: all(CKA_ALWAYS_SENSITIVE),
            unextractable: all(CKA_NEVER_EXTRACTABLE),
        };
        let attrs = complete(attrs, given, origin)?;
        self.place(app, s, attrs)
    }
}

/// The length that a template asks for; `None` leaves it to the mechanism.
fn wanted_len(given: &Attrs, kind: u64) -> Ck<Option<usize>> {
    let len = match (given.number(CKA_VALUE_LEN), given.key_type()) {
        (Some(len), _) => Some(usize::try_from(len).map_err(|_| CKR_KEY_SIZE_RANGE)?),
        (None, Some(CKK_DES2)) => Some(16),
        (None, Some(CKK_DES3)) => Some(24),
        (None, Some(CKK_AES)) if kind == CKM_ECDH1_DERIVE => Some(32),
        (None, _) => None,
    };
    match len {
        Some(0 | MAX_DERIVED..) => Err(CKR_KEY_SIZE_RANGE),
        len => Ok(len),
    }
}

fn cut(mut value: Bytes, len: Option<usize>) -> Ck<Bytes> {
    let len = len.unwrap_or(value.len());
    if len > value.len() {
        return Err(CKR_KEY_SIZE_RANGE);
    }
    value.truncate(len);
    Ok(value)
}

/// The shortest key that is derived from a hidden one by these mechanisms: one that is found by trying is none.
const MIN_OF_HIDDEN: usize = 14;

/// `hidden`: a parent may not be seen. Then no piece of it is made a key, whose check value or MAC would tell it piece by
/// piece, and no short ciphertext.
fn simple(mech: &Mech, key: &Key, other: Option<&Object>, len: Option<usize>, hidden: bool) -> Ck<Bytes> {
    let joined = |a: &[u8], b: &[u8]| Zeroizing::new([a, b].concat());
    let whole = match (mech.kind, &mech.params) {
        (CKM_ECDH1_DERIVE, Params::Ecdh { kdf, shared, public }) => {
            return ecdh(key, *kdf, shared, public, len);
        }
        (CKM_AES_ECB_ENCRYPT_DATA, Params::Data { data, .. }) => encrypted(Block::Ecb, key, &[], data)?,
        (CKM_AES_CBC_ENCRYPT_DATA, Params::Data { iv, data }) => encrypted(Block::Cbc, key, iv, data)?,
        (CKM_CONCATENATE_BASE_AND_DATA, Params::Data { data, .. }) => joined(key.secret()?, data),
        (CKM_CONCATENATE_DATA_AND_BASE, Params::Data { data, .. }) => joined(data, key.secret()?),
        (CKM_XOR_BASE_AND_DATA, Params::Data { data, .. }) => {
            Zeroizing::new(key.secret()?.iter().zip(data.iter()).map(|(a, b)| a ^ b).collect())
        }
        (CKM_CONCATENATE_BASE_AND_KEY, Params::Number { .. }) => {
            let other = other.ok_or(CKR_MECHANISM_PARAM_INVALID)?.key()?;
            joined(key.secret()?, other.secret()?)
        }
        (CKM_EXTRACT_KEY_FROM_KEY, _) if hidden => return Err(CKR_KEY_FUNCTION_NOT_PERMITTED),
        (CKM_EXTRACT_KEY_FROM_KEY, Params::Number { value }) => extract(key.secret()?, *value, len)?,
        _ => return Err(CKR_MECHANISM_PARAM_INVALID),
    };
    // These two say that their data, a parameter, is too short for the key.
    let by_cipher = matches!(mech.kind, CKM_AES_ECB_ENCRYPT_DATA | CKM_AES_CBC_ENCRYPT_DATA);
    if hidden {
        let made = len.unwrap_or(whole.len());
        let cut = !by_cipher && (made < whole.len() || whole.len() < key.secret()?.len());
        if cut || made < MIN_OF_HIDDEN {
            return Err(CKR_KEY_SIZE_RANGE);
        }
    }
    cut(whole, len).map_err(|rv| if by_cipher { CKR_MECHANISM_PARAM_INVALID } else { rv })
}

fn encrypted(mode: Block, key: &Key, iv: &[u8], data: &[u8]) -> Ck<Bytes> {
    if data.is_empty() || !data.len().is_multiple_of(16) {
        return Err(CKR_MECHANISM_PARAM_INVALID);
    }
    let bad = |_| CKR_MECHANISM_PARAM_INVALID;
    Cipher::new(mode, false, key.secret()?, iv, true, false).and_then(|mut c| c.update(data)).map_err(bad)
}

/// Bits from bit `at` on, bit 0 the first one, from the beginning again behind the end (PKCS#11 2.40 2.31.9).
fn extract(key: &[u8], at: u64, len: Option<usize>) -> Ck<Bytes> {
    let bits = key.len() * 8;
    let at = usize::try_from(at).ok().filter(|at| *at < bits).ok_or(CKR_MECHANISM_PARAM_INVALID)?;
    let len = len.ok_or(CKR_TEMPLATE_INCOMPLETE)?;
    if len > key.len() {
        return Err(CKR_KEY_SIZE_RANGE);
    }
    let bit = |n: usize| key[n % bits / 8] >> (7 - n % 8) & 1;
    Ok(Zeroizing::new((0..len).map(|byte| (0..8).fold(0, |b, i| b << 1 | bit(at + byte * 8 + i))).collect()))
}

fn ecdh(key: &Key, kdf: u64, shared: &[u8], public: &[u8], len: Option<usize>) -> Ck<Bytes> {
    let secret = key.ec()?.agree(point(public)).map_err(|_| CKR_MECHANISM_PARAM_INVALID)?;
    let md = match kdf {
        CKD_NULL if shared.is_empty() => return cut(secret, len),
        CKD_SHA1_KDF => Md::Sha1,
        CKD_SHA224_KDF => Md::Sha224,
        CKD_SHA256_KDF => Md::Sha256,
        CKD_SHA384_KDF => Md::Sha384,
        CKD_SHA512_KDF => Md::Sha512,
        _ => return Err(CKR_MECHANISM_PARAM_INVALID),
    };
    // ANSI X9.63: digests of secret, counter from 1, shared information.
    let len = len.unwrap_or(md.len());
    let mut out = Zeroizing::new(Vec::with_capacity(len + md.len()));
    for counter in 1u32.. {
        if out.len() >= len {
            break;
        }
        let block = Zeroizing::new([&secret[..], &counter.to_be_bytes(), shared].concat());
        out.extend_from_slice(&Zeroizing::new(md.digest(&block)));
    }
    out.truncate(len);
    Ok(out)
}

/// One field of the input of SP 800-108's function.
enum Field<'a> {
    /// The counter of this many bits, big-endian or little-endian.
    Counter {
        bytes: usize,
        little: bool,
    },
    /// The previous block (feedback).
    Chain,
    /// The total length in bits.
    Length {
        method: u64,
        bytes: usize,
        little: bool,
    },
    Bytes(&'a [u8]),
}

fn fields<'a>(kind: u64, data: &'a [(u64, Bytes)]) -> Ck<Vec<Field<'a>>> {
    let format = |value: &[u8]| -> Ck<(usize, bool)> {
        // CK_SP800_108_COUNTER_FORMAT: a CK_BBOOL in 8 bytes, then the width in bits.
        let (little, width) = value.split_first_chunk::<8>().ok_or(CKR_MECHANISM_PARAM_INVALID)?;
        let width = u64::from_le_bytes(width.try_into().map_err(|_| CKR_MECHANISM_PARAM_INVALID)?);
        match width {
            8 | 16 | 24 | 32 => Ok((usize::try_from(width / 8).unwrap_or(4), little[0] != 0)),
            _ => Err(CKR_MECHANISM_PARAM_INVALID),
        }
    };
    let counter_mode = kind == CKM_SP800_108_COUNTER_KDF;
    let mut out = Vec::with_capacity(data.len());
    let (mut iterations, mut counters, mut lengths) = (0, 0, 0);
    for (what, value) in data {
        out.push(match *what {
            CK_SP800_108_ITERATION_VARIABLE if counter_mode => {
                iterations += 1;
                let (bytes, little) = format(value)?;
                Field::Counter { bytes, little }
            }
            CK_SP800_108_ITERATION_VARIABLE if value.is_empty() => {
                iterations += 1;
                Field::Chain
            }
            CK_SP800_108_COUNTER if !counter_mode => {
                counters += 1;
                let (bytes, little) = format(value)?;
                Field::Counter { bytes, little }
            }
            CK_SP800_108_DKM_LENGTH => {
                lengths += 1;
                let (method, rest) = value.split_first_chunk::<8>().ok_or(CKR_MECHANISM_PARAM_INVALID)?;
                let method = u64::from_le_bytes(*method);
                if !matches!(
                    method,
                    CK_SP800_108_DKM_LENGTH_SUM_OF_KEYS | CK_SP800_108_DKM_LENGTH_SUM_OF_SEGMENTS
                ) {
                    return Err(CKR_MECHANISM_PARAM_INVALID);
                }
                let (little, width) = rest.split_first_chunk::<8>().ok_or(CKR_MECHANISM_PARAM_INVALID)?;
                let width = u64::from_le_bytes(width.try_into().map_err(|_| CKR_MECHANISM_PARAM_INVALID)?);
                if !matches!(width, 8 | 16 | 24 | 32 | 40 | 48 | 56 | 64) {
                    return Err(CKR_MECHANISM_PARAM_INVALID);
                }
                Field::Length {
                    method,
                    bytes: usize::try_from(width / 8).unwrap_or(8),
                    little: little[0] != 0,
                }
            }
            CK_SP800_108_BYTE_ARRAY if !value.is_empty() => Field::Bytes(value),
            _ => return Err(CKR_MECHANISM_PARAM_INVALID),
        });
    }
    if iterations != 1 || counters > 1 || lengths > 1 {
        return Err(CKR_MECHANISM_PARAM_INVALID);
    }
    Ok(out)
}

/// SP 800-108 in counter or feedback mode: one piece for each length.
fn kdf(
    kind: u64,
    prf: u64,
    data: &[(u64, Bytes)],
    iv: &[u8],
    key: &[u8],
    lens: &[Option<usize>],
) -> Ck<Vec<Bytes>> {
    let fields = fields(kind, data)?;
    let md = mechs::hmac(prf);
    let block = match (md, prf) {
        (Some(md), _) => md.len(),
        (None, CKM_AES_CMAC) => 16,
        _ => return Err(CKR_MECHANISM_PARAM_INVALID),
    };
    let lens = lens.iter().map(|l| l.ok_or(CKR_TEMPLATE_INCOMPLETE)).collect::<Ck<Vec<_>>>()?;
    let total: usize = lens.iter().sum();
    // A counter that begins again would repeat keys (SP 800-108, 4: n <= 2^r - 1).
    let blocks = total.div_ceil(block) as u64;
    if fields.iter().any(|f| matches!(f, Field::Counter { bytes, .. } if blocks >= 1 << (8 * bytes))) {
        return Err(CKR_KEY_SIZE_RANGE);
    }
    let segments: usize = lens.iter().map(|l| l.next_multiple_of(block)).sum();
    let mut chain = Zeroizing::new(iv.to_vec());
    let mut out = Zeroizing::new(Vec::with_capacity(total + block));
    let number = |n: u64, bytes: usize, little: bool| {
        let mut all = n.to_be_bytes()[8 - bytes..].to_vec();
        if little {
            all.reverse();
        }
        all
    };
    for counter in 1u64.. {
        if out.len() >= total {
            break;
        }
        let mut input = Zeroizing::new(Vec::new());
        for field in &fields {
            match field {
                Field::Counter { bytes, little } => input.extend(number(counter, *bytes, *little)),
                Field::Chain => input.extend_from_slice(&chain),
                Field::Length { method, bytes, little } => {
                    let sum = if *method == CK_SP800_108_DKM_LENGTH_SUM_OF_KEYS { total } else { segments };
                    input.extend(number(sum as u64 * 8, *bytes, *little));
                }
                Field::Bytes(bytes) => input.extend_from_slice(bytes),
            }
        }
        let next = match md {
            Some(md) => Hmac::mac(md, key, &input),
            None => Cmac::mac(key, &input),
        };
        chain = Zeroizing::new(next.map_err(|_| CKR_KEY_TYPE_INCONSISTENT)?);
        out.extend_from_slice(&chain);
    }
    let mut rest = &out[..total];
    let pieces = lens.iter().map(|len| {
        let (piece, behind) = rest.split_at(*len);
        rest = behind;
        Zeroizing::new(piece.to_vec())
    });
    Ok(pieces.collect())
}
