//! Wrapping and unwrapping of keys.

use cryptoki_sys::*;
use zeroize::Zeroizing;

use super::Ck;
use super::appliance::{App, Appliance};
use super::attrs::Attrs;
use super::engine::{allowed_mechanism, begin, fresh_iv, oaep};
use super::lc::{kw_unwrap, kw_wrap};
use super::material::{self, Key};
use super::mechs::{
    self, CLOUDHSM_AES_GCM, CLOUDHSM_AES_KEY_WRAP_NO_PAD, CLOUDHSM_AES_KEY_WRAP_PKCS5_PAD,
    CLOUDHSM_AES_KEY_WRAP_ZERO_PAD,
};
use super::object::{Object, Origin, complete};
use super::quorum::{Guard, Terms};
use super::users::Permission;
use super::wire::{Bytes, Mech, Op, Params, Template};
use crate::crypto::random;

/// What a mechanism does around the bytes of a key.
enum Way {
    /// RFC 3394.
    Kw,
    /// RFC 5649.
    Kwp,
    /// RFC 3394 over PKCS#5 padding, as CloudHSM and the old CKM_AES_KEY_WRAP_PAD.
    Pkcs5,
    /// What C_Encrypt does with this mechanism.
    Cipher,
    /// A fresh AES key under OAEP, the key under it (RFC 5649).
    RsaAes,
}

fn way(kind: u64) -> Way {
    match kind {
        CKM_AES_KEY_WRAP | CLOUDHSM_AES_KEY_WRAP_NO_PAD => Way::Kw,
        CKM_AES_KEY_WRAP_KWP | CLOUDHSM_AES_KEY_WRAP_ZERO_PAD => Way::Kwp,
        CKM_AES_KEY_WRAP_PAD | CLOUDHSM_AES_KEY_WRAP_PKCS5_PAD => Way::Pkcs5,
        CKM_RSA_AES_KEY_WRAP => Way::RsaAes,
        _ => Way::Cipher,
    }
}

impl Appliance {
    fn wrap_mechanism(&self, mech: &Mech, flag: u64, by: &Object) -> Ck<()> {
        match mechs::find(mech.kind, self.config.legacy) {
            Some(row) if row.flags & flag != 0 => {}
            _ => return Err(CKR_MECHANISM_INVALID),
        }
        let none = matches!(mech.params, Params::None {});
        let iv_of_rfc = matches!(&mech.params, Params::Raw { bytes } if bytes.as_slice() == [0xa6; 8]);
        if matches!(way(mech.kind), Way::Kw | Way::Kwp | Way::Pkcs5) {
            // An IV of one's own would take the integrity check away.
            if !(none || iv_of_rfc && matches!(way(mech.kind), Way::Kw)) {
                return Err(CKR_MECHANISM_PARAM_INVALID);
            }
        }
        allowed_mechanism(mech.kind, &by.attrs).map_err(|rv| match rv {
            CKR_KEY_TYPE_INCONSISTENT => CKR_WRAPPING_KEY_TYPE_INCONSISTENT,
            other => other,
        })
    }

    pub(super) fn wrap(&self, app: &App, s: u64, mech: &mut Mech, by: u64, key: u64) -> Ck<(Bytes, Bytes)> {
        app.session(s)?;
        let by = self.key_object(app, by).map_err(|rv| match rv {
            CKR_KEY_HANDLE_INVALID => CKR_WRAPPING_KEY_HANDLE_INVALID,
            other => other,
        })?;
        let key = self.key_object(app, key)?;
        self.wrap_mechanism(mech, CKF_WRAP, &by)?;
        self.may_wrap(app, mech, &by.attrs, &key)?;
        self.with_approval(app, &Guard::management(&key), || {
            self.with_approval(app, &Guard::management(&by), || self.wrapped(mech, &by, &key))
        })
    }

    fn wrapped(&self, mech: &mut Mech, by: &Object, key: &Object) -> Ck<(Bytes, Bytes)> {
        let plain = key.key()?.exported()?;
        let iv = if self.makes_iv(Op::Encrypt, mech) { fresh_iv(mech)? } else { Zeroizing::new(Vec::new()) };
        let wrapping = by.key()?;
        let wrapped = match way(mech.kind) {
            Way::Kw if plain.len() % 8 != 0 || plain.len() < 16 => return Err(CKR_KEY_SIZE_RANGE),
            Way::Kw => kw(kw_wrap(wrapping.secret()?, &plain, false))?,
            Way::Kwp => kw(kw_wrap(wrapping.secret()?, &plain, true))?,
            Way::Pkcs5 => kw(kw_wrap(wrapping.secret()?, &pad(&plain), false))?,
            Way::Cipher => cipher(Op::Encrypt, mech, wrapping, &plain).map_err(|rv| match rv {
                CKR_DATA_LEN_RANGE => CKR_KEY_SIZE_RANGE,
                other => other,
            })?,
            Way::RsaAes => rsa_aes_wrap(mech, &wrapping, &plain)?,
        };
        Ok((wrapped, iv))
    }

    fn may_wrap(&self, app: &App, mech: &Mech, by: &Attrs, key: &Object) -> Ck<()> {
        if !matches!(by.class(), CKO_SECRET_KEY | CKO_PUBLIC_KEY) {
            return Err(CKR_WRAPPING_KEY_TYPE_INCONSISTENT);
        }
        if !by.flag(CKA_WRAP) {
            return Err(CKR_KEY_FUNCTION_NOT_PERMITTED);
        }
        let attrs = &key.attrs;
        if !attrs.is_secret() || Self::need_owner(app, key).is_err() {
            return Err(CKR_KEY_NOT_WRAPPABLE);
        }
        if !attrs.flag(CKA_EXTRACTABLE) {
            return Err(CKR_KEY_UNEXTRACTABLE);
        }
        if attrs.flag(CKA_WRAP_WITH_TRUSTED) && !by.flag(CKA_TRUSTED) {
            return Err(CKR_KEY_NOT_WRAPPABLE);
        }
        if attrs.flag(CKA_SENSITIVE) && by.class() == CKO_SECRET_KEY {
            // Wrap, then decrypt what came out: the plaintext of a sensitive key (Clulow 2003). RFC 3394 too is undone by
            // calls of C_Decrypt, block by block.
            if by.ever(CKA_DECRYPT) {
                return Err(CKR_KEY_FUNCTION_NOT_PERMITTED);
            }
            // Under an IV of the caller's choice GCM hides nothing: a second key of known value gives the key stream, and so
            // does C_Encrypt.
            if mech.kind == CKM_AES_GCM && !self.makes_iv(Op::Encrypt, mech) {
                return Err(CKR_MECHANISM_PARAM_INVALID);
            }
            if matches!(mech.kind, CKM_AES_GCM | CLOUDHSM_AES_GCM) && by.ever(CKA_ENCRYPT) {
                return Err(CKR_KEY_FUNCTION_NOT_PERMITTED);
            }
        }
        let template = by.nested(CKA_WRAP_TEMPLATE)?;
        if template.is_some_and(|t| t.0.iter().any(|(name, value)| attrs.0.get(name) != Some(value))) {
            return Err(CKR_KEY_HANDLE_INVALID);
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one request, and its terms")]
    pub(super) fn unwrap(
        &self,
        app: &App,
        s: u64,
        mech: &Mech,
        by: u64,
        wrapped: &[u8],
        attrs: Template,
        terms: &Terms,
    ) -> Ck<u64> {
        let session = app.session(s)?;
        Self::need(app, Permission::KeyManagement)?;
        let by = self.key_object(app, by).map_err(|rv| match rv {
            CKR_KEY_HANDLE_INVALID => CKR_UNWRAPPING_KEY_HANDLE_INVALID,
            other => other,
        })?;
        self.wrap_mechanism(mech, CKF_UNWRAP, &by).map_err(|rv| match rv {
            CKR_WRAPPING_KEY_TYPE_INCONSISTENT => CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT,
            other => other,
        })?;
        if !matches!(by.attrs.class(), CKO_SECRET_KEY | CKO_PRIVATE_KEY) {
            return Err(CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT);
        }
        if !by.attrs.flag(CKA_UNWRAP) {
            return Err(CKR_KEY_FUNCTION_NOT_PERMITTED);
        }
        Self::authenticated(&session, &by)?;
        let mut given = Attrs::of(attrs)?;
        given.join(by.attrs.nested(CKA_UNWRAP_TEMPLATE)?)?;
        if !given.is_secret() || given.has(CKA_VALUE) || given.has(CKA_PRIVATE_EXPONENT) {
            return Err(CKR_TEMPLATE_INCONSISTENT);
        }
        self.with_approval(app, &Guard::management(&by), || {
            let attrs = self.unwrapped(mech, &by, wrapped, &given)?;
            self.put_one(self.place(app, s, attrs)?, terms)
        })
    }

    /// The attributes of the key that is in what was wrapped.
    fn unwrapped(&self, mech: &Mech, by: &Object, wrapped: &[u8], given: &Attrs) -> Ck<Attrs> {
        let unwrapping = by.key()?;
        let bad = |_| CKR_WRAPPED_KEY_INVALID;
        let mut plain = match way(mech.kind) {
            Way::Kw => kw_unwrap(unwrapping.secret()?, wrapped, false).map_err(bad)?,
            Way::Kwp => kw_unwrap(unwrapping.secret()?, wrapped, true).map_err(bad)?,
            Way::Pkcs5 => unpad(kw_unwrap(unwrapping.secret()?, wrapped, false).map_err(bad)?)?,
            Way::Cipher => cipher(Op::Decrypt, mech, unwrapping, wrapped).map_err(|rv| match rv {
                CKR_ENCRYPTED_DATA_LEN_RANGE => CKR_WRAPPED_KEY_LEN_RANGE,
                CKR_ENCRYPTED_DATA_INVALID | CKR_FUNCTION_FAILED => CKR_WRAPPED_KEY_INVALID,
                other => other,
            })?,
            Way::RsaAes => rsa_aes_unwrap(mech, &unwrapping, wrapped)?,
        };
        // CBC without padding gives whole blocks; the template's length says how much of it is the key.
        if mech.kind == CKM_AES_CBC
            && let Some(len) = given.number(CKA_VALUE_LEN).and_then(|n| usize::try_from(n).ok())
            && len <= plain.len()
        {
            plain.truncate(len);
        }
        let mut attrs = given.clone();
        material::import(&mut attrs, &plain)?;
        let attrs = complete(attrs, given, Origin::Unwrapped).map_err(|rv| match rv {
            CKR_ATTRIBUTE_VALUE_INVALID => CKR_WRAPPED_KEY_INVALID,
            other => other,
        })?;
        self.not_weak(&attrs)?;
        Ok(attrs)
    }
}

fn kw(result: Result<Vec<u8>, super::lc::Failed>) -> Ck<Bytes> {
    result.map(Zeroizing::new).map_err(|_| CKR_KEY_SIZE_RANGE)
}

/// A whole operation.
pub(super) fn cipher(op: Op, mech: &Mech, key: std::sync::Arc<Key>, data: &[u8]) -> Ck<Bytes> {
    let mut running = begin(op, mech, Some(key))?;
    let mut out = running.update(data)?;
    let rest = running.finish(op)?;
    if out.is_empty() {
        return Ok(rest);
    }
    if !rest.is_empty() {
        let mut both = Zeroizing::new(Vec::with_capacity(out.len() + rest.len()));
        both.extend_from_slice(&out);
        both.extend_from_slice(&rest);
        out = both;
    }
    Ok(out)
}

/// PKCS#5 padding to eight bytes.
fn pad(plain: &[u8]) -> Bytes {
    let missing = 8 - plain.len() % 8;
    let mut out = Zeroizing::new(Vec::with_capacity(plain.len() + missing));
    out.extend_from_slice(plain);
    out.resize(plain.len() + missing, u8::try_from(missing).unwrap_or(8));
    out
}

fn unpad(mut plain: Bytes) -> Ck<Bytes> {
    let last = *plain.last().ok_or(CKR_WRAPPED_KEY_INVALID)?;
    let len = plain.len().checked_sub(usize::from(last)).ok_or(CKR_WRAPPED_KEY_INVALID)?;
    if !(1..=8).contains(&last) || plain[len..].iter().any(|b| *b != last) {
        return Err(CKR_WRAPPED_KEY_INVALID);
    }
    plain.truncate(len);
    Ok(plain)
}

fn rsa_aes(mech: &Mech) -> Ck<(usize, super::lc::Md, super::lc::Md, &[u8])> {
    let Params::RsaAes { bits, hash, mgf, label } = &mech.params else {
        return Err(CKR_MECHANISM_PARAM_INVALID);
    };
    let (md, mgf) = oaep(*hash, *mgf)?;
    match bits {
        128 | 192 | 256 => Ok((usize::try_from(bits / 8).unwrap_or(32), md, mgf, label)),
        _ => Err(CKR_MECHANISM_PARAM_INVALID),
    }
}

fn rsa_aes_wrap(mech: &Mech, by: &Key, plain: &[u8]) -> Ck<Bytes> {
    let (len, md, mgf, label) = rsa_aes(mech)?;
    let mut aes = Zeroizing::new(vec![0; len]);
    random::fill(&mut aes);
    let mut out = by.rsa()?.oaep(true, &aes, md, mgf, label).map_err(|_| CKR_KEY_SIZE_RANGE)?.to_vec();
    out.extend_from_slice(&kw(kw_wrap(&aes, plain, true))?);
    Ok(Zeroizing::new(out))
}

fn rsa_aes_unwrap(mech: &Mech, by: &Key, wrapped: &[u8]) -> Ck<Bytes> {
    let (_, md, mgf, label) = rsa_aes(mech)?;
    let rsa = by.rsa()?;
    let (head, rest) = wrapped.split_at_checked(rsa.size()).ok_or(CKR_WRAPPED_KEY_LEN_RANGE)?;
    let bad = |_| CKR_WRAPPED_KEY_INVALID;
    let aes = rsa.oaep(false, head, md, mgf, label).map_err(bad)?;
    kw_unwrap(&aes, rest, true).map_err(bad)
}
