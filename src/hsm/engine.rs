//! Operations with a key: one object for the time between C_*Init and its end.

use cryptoki_sys::*;
use zeroize::Zeroizing;

use std::sync::Arc;

use super::Ck;
use super::attrs::Attrs;
use super::budget::{Budget, Reserved};
use super::lc::{self, Block, Cipher, Cmac, EdMode, Hasher, Hmac, Md};
use super::material::Key;
use super::mechs::{self, CLOUDHSM_AES_GCM, Scheme};
use super::wire::{Bytes, Mech, Op, Params};
use crate::crypto::random;

/// The most that an operation without a streaming form collects (GCM, raw signatures): CloudHSM stops at 16 KiB.
const MAX_HELD: usize = 16 << 20;

/// A running operation.
pub(super) struct Running {
    work: Work,
    /// Data came in pieces already.
    pub(super) streamed: bool,
    /// What is held counts against its application's share.
    reserved: Option<Reserved>,
}

enum Work {
    /// A block cipher; `exact` modes take whole blocks only.
    Cipher {
        cipher: Cipher,
        exact: Option<usize>,
        seen: usize,
    },
    /// What needs the whole message: it is held until the end.
    Held {
        held: Bytes,
        how: Whole,
    },
    Digest(Hasher),
    Hmac(Hmac),
    Cmac(Cmac, usize),
    /// A signature over a digest.
    Hashed {
        hasher: Hasher,
        md: Md,
        scheme: Scheme,
        mgf: Md,
        salt: usize,
        key: Arc<Key>,
    },
}

/// Operations on a whole message.
enum Whole {
    Gcm { key: Arc<Key>, iv: Vec<u8>, aad: Vec<u8>, tag: usize, prepend: bool, encrypt: bool },
    RsaCrypt { key: Arc<Key>, raw: bool, encrypt: bool },
    Oaep { key: Arc<Key>, md: Md, mgf: Md, label: Vec<u8>, encrypt: bool },
    RsaSign { key: Arc<Key>, raw: bool },
    Pss { key: Arc<Key>, md: Md, mgf: Md, salt: usize },
    Ecdsa { key: Arc<Key> },
    Eddsa { key: Arc<Key>, mode: EdMode },
    AesMac { key: Arc<Key> },
}

fn refused(_: lc::Failed) -> CK_RV {
    CKR_FUNCTION_FAILED
}

fn bad_key(_: lc::Failed) -> CK_RV {
    CKR_KEY_TYPE_INCONSISTENT
}

/// Whether a key of these attributes may do this with this mechanism.
pub(super) fn permitted(op: Op, mech: &Mech, attrs: &Attrs) -> Ck<()> {
    let (needed, class) = match op {
        Op::Encrypt => (CKA_ENCRYPT, [CKO_SECRET_KEY, CKO_PUBLIC_KEY]),
        Op::Decrypt => (CKA_DECRYPT, [CKO_SECRET_KEY, CKO_PRIVATE_KEY]),
        Op::Sign => (CKA_SIGN, [CKO_SECRET_KEY, CKO_PRIVATE_KEY]),
        Op::Verify => (CKA_VERIFY, [CKO_SECRET_KEY, CKO_PUBLIC_KEY]),
        Op::Digest => return Ok(()),
    };
    if !attrs.is_key() {
        return Err(CKR_KEY_HANDLE_INVALID);
    }
    if !class.contains(&attrs.class()) {
        return Err(CKR_KEY_TYPE_INCONSISTENT);
    }
    if !attrs.flag(needed) {
        return Err(CKR_KEY_FUNCTION_NOT_PERMITTED);
    }
    allowed_mechanism(mech.kind, attrs)
}

/// CKA_ALLOWED_MECHANISMS and the key's type.
pub(super) fn allowed_mechanism(kind: u64, attrs: &Attrs) -> Ck<()> {
    if let Some(list) = attrs.bytes(CKA_ALLOWED_MECHANISMS)
        && !list.is_empty()
        && !list.chunks_exact(8).any(|m| m == kind.to_le_bytes())
    {
        return Err(CKR_MECHANISM_INVALID);
    }
    let fits = match kind {
        CKM_AES_ECB..=CKM_AES_CTR
        | CKM_AES_GCM
        | CLOUDHSM_AES_GCM
        | CKM_AES_CMAC
        | CKM_AES_KEY_WRAP
        | CKM_AES_KEY_WRAP_PAD
        | CKM_AES_KEY_WRAP_KWP
        | CKM_AES_ECB_ENCRYPT_DATA
        | CKM_AES_CBC_ENCRYPT_DATA => attrs.key_type() == Some(CKK_AES),
        CKM_DES3_ECB | CKM_DES3_CBC | CKM_DES3_CBC_PAD => {
            matches!(attrs.key_type(), Some(CKK_DES2 | CKK_DES3))
        }
        _ => true,
    };
    if fits { Ok(()) } else { Err(CKR_KEY_TYPE_INCONSISTENT) }
}

/// Puts a fresh IV where the appliance makes every IV, as CloudHSM does: the caller's own is not used. Gives the IV.
pub(super) fn fresh_iv(mech: &mut Mech) -> Ck<Bytes> {
    match &mut mech.params {
        Params::Gcm { iv, .. } if iv.len() == 12 => {
            random::fill(iv);
            Ok(iv.clone())
        }
        _ => Err(CKR_MECHANISM_PARAM_INVALID),
    }
}

/// Begins an operation. `key` is `None` for digests alone.
pub(super) fn begin(op: Op, mech: &Mech, key: Option<Arc<Key>>) -> Ck<Running> {
    let work = match (op, key) {
        (Op::Digest, _) => {
            let md = mechs::digest(mech.kind).ok_or(CKR_MECHANISM_INVALID)?;
            Work::Digest(Hasher::new(md).map_err(refused)?)
        }
        (Op::Encrypt | Op::Decrypt, Some(key)) => crypt(op == Op::Encrypt, mech, key)?,
        (Op::Sign | Op::Verify, Some(key)) => sign(mech, key)?,
        (_, None) => return Err(CKR_KEY_HANDLE_INVALID),
    };
    Ok(Running { work, streamed: false, reserved: None })
}

fn held(how: Whole) -> Work {
    Work::Held { held: Zeroizing::new(Vec::new()), how }
}

/// IV of a block mode.
fn iv(params: &Params, len: usize) -> Ck<&[u8]> {
    match params {
        Params::Raw { bytes } if bytes.len() == len => Ok(bytes),
        Params::None {} if len == 0 => Ok(&[]),
        _ => Err(CKR_MECHANISM_PARAM_INVALID),
    }
}

fn crypt(encrypt: bool, mech: &Mech, key: Arc<Key>) -> Ck<Work> {
    let block = |mode, des: bool, pad, iv_len| {
        let cipher = Cipher::new(mode, des, key.secret()?, iv(&mech.params, iv_len)?, encrypt, pad)
            .map_err(bad_key)?;
        Ok(Work::Cipher { cipher, exact: (!pad).then_some(if des { 8 } else { 16 }), seen: 0 })
    };
    match mech.kind {
        CKM_AES_ECB => block(Block::Ecb, false, false, 0),
        CKM_AES_CBC => block(Block::Cbc, false, false, 16),
        CKM_AES_CBC_PAD => block(Block::Cbc, false, true, 16),
        CKM_DES3_ECB => block(Block::Ecb, true, false, 0),
        CKM_DES3_CBC => block(Block::Cbc, true, false, 8),
        CKM_DES3_CBC_PAD => block(Block::Cbc, true, true, 8),
        CKM_AES_CTR => {
            let Params::Ctr { bits, block } = &mech.params else { return Err(CKR_MECHANISM_PARAM_INVALID) };
            if !(1..=128).contains(bits) || block.len() != 16 {
                return Err(CKR_MECHANISM_PARAM_INVALID);
            }
            let cipher =
                Cipher::new(Block::Ctr, false, key.secret()?, block, encrypt, false).map_err(bad_key)?;
            Ok(Work::Cipher { cipher, exact: None, seen: 0 })
        }
        CKM_AES_GCM | CLOUDHSM_AES_GCM => gcm(encrypt, mech, key),
        CKM_RSA_PKCS | CKM_RSA_X_509 => {
            key.rsa()?;
            Ok(held(Whole::RsaCrypt { key, raw: mech.kind == CKM_RSA_X_509, encrypt }))
        }
        CKM_RSA_PKCS_OAEP => {
            key.rsa()?;
            let Params::Oaep { hash, mgf, label } = &mech.params else {
                return Err(CKR_MECHANISM_PARAM_INVALID);
            };
            let (md, mgf) = oaep(*hash, *mgf)?;
            Ok(held(Whole::Oaep { key, md, mgf, label: label.to_vec(), encrypt }))
        }
        _ => Err(CKR_MECHANISM_INVALID),
    }
}

/// The two digests of OAEP.
pub(super) fn oaep(hash: u64, mgf: u64) -> Ck<(Md, Md)> {
    match (mechs::digest(hash), mechs::mgf(mgf)) {
        (Some(md), Some(mgf)) if md != Md::Md5 => Ok((md, mgf)),
        _ => Err(CKR_MECHANISM_PARAM_INVALID),
    }
}

fn gcm(encrypt: bool, mech: &Mech, key: Arc<Key>) -> Ck<Work> {
    key.secret()?;
    let (iv, aad, bits) = match &mech.params {
        Params::Gcm { iv, aad, tag_bits } => (iv.to_vec(), aad.to_vec(), *tag_bits),
        Params::None {} if mech.kind == CLOUDHSM_AES_GCM => (Vec::new(), Vec::new(), 128),
        _ => return Err(CKR_MECHANISM_PARAM_INVALID),
    };
    // SP 800-38D 5.2.1.2 allows shorter tags for few uses; an HSM cannot know them.
    if !(96..=128).contains(&bits) || bits % 8 != 0 || iv.len() > 256 {
        return Err(CKR_MECHANISM_PARAM_INVALID);
    }
    let tag = usize::try_from(bits / 8).map_err(|_| CKR_MECHANISM_PARAM_INVALID)?;
    let prepend = mech.kind == CLOUDHSM_AES_GCM;
    let iv = match (prepend, encrypt) {
        (true, true) => random::array::<12>().to_vec(),
        (true, false) => Vec::new(),
        (false, _) if iv.is_empty() => return Err(CKR_MECHANISM_PARAM_INVALID),
        (false, _) => iv,
    };
    Ok(held(Whole::Gcm { key, iv, aad, tag, prepend, encrypt }))
}

fn sign(mech: &Mech, key: Arc<Key>) -> Ck<Work> {
    if let Some(md) = mechs::hmac(mech.kind) {
        return Ok(Work::Hmac(Hmac::new(md, key.secret()?).map_err(refused)?));
    }
    if let Some((scheme, md)) = mechs::hashed(mech.kind) {
        let (mut mgf, mut salt) = (md, md.len());
        match scheme {
            Scheme::Ecdsa => drop(key.ec()?),
            Scheme::Pkcs1 => drop(key.rsa()?),
            Scheme::Pss => {
                let (hash, m, s) = pss(mech, key.rsa()?.size())?;
                if hash != md {
                    return Err(CKR_MECHANISM_PARAM_INVALID);
                }
                (mgf, salt) = (m, s);
            }
        }
        let hasher = Hasher::new(md).map_err(refused)?;
        return Ok(Work::Hashed { hasher, md, scheme, mgf, salt, key });
    }
    Ok(match mech.kind {
        CKM_AES_CMAC => Work::Cmac(Cmac::new(key.secret()?).map_err(bad_key)?, 16),
        CKM_AES_MAC => held(Whole::AesMac { key }),
        CKM_RSA_PKCS | CKM_RSA_X_509 => {
            key.rsa()?;
            held(Whole::RsaSign { key, raw: mech.kind == CKM_RSA_X_509 })
        }
        CKM_RSA_PKCS_PSS => {
            let (md, mgf, salt) = pss(mech, key.rsa()?.size())?;
            held(Whole::Pss { key, md, mgf, salt })
        }
        CKM_ECDSA => {
            key.ec()?;
            held(Whole::Ecdsa { key })
        }
        CKM_EDDSA => {
            key.edwards()?;
            let mode = match &mech.params {
                Params::None {} => EdMode::default(),
                Params::Eddsa { prehash, context } => EdMode { prehash: *prehash, context: context.to_vec() },
                _ => return Err(CKR_MECHANISM_PARAM_INVALID),
            };
            held(Whole::Eddsa { key, mode })
        }
        _ => return Err(CKR_MECHANISM_INVALID),
    })
}

fn pss(mech: &Mech, size: usize) -> Ck<(Md, Md, usize)> {
    let Params::Pss { hash, mgf, salt } = &mech.params else { return Err(CKR_MECHANISM_PARAM_INVALID) };
    let (md, mgf) = oaep(*hash, *mgf)?;
    let salt = usize::try_from(*salt).map_err(|_| CKR_MECHANISM_PARAM_INVALID)?;
    if salt > size.saturating_sub(md.len() + 2) {
        return Err(CKR_MECHANISM_PARAM_INVALID);
    }
    Ok((md, mgf, salt))
}

impl Running {
    /// [`Running::update`] with a piece of a longer message: what must be held until the end comes out of a budget.
    pub(super) fn feed(&mut self, data: &[u8], budget: &Arc<Budget>) -> Ck<Bytes> {
        if matches!(self.work, Work::Held { .. }) {
            match &mut self.reserved {
                Some(reserved) => reserved.grow(data.len())?,
                None => self.reserved = Some(budget.take(data.len())?),
            }
        }
        self.update(data)
    }

    /// More data; what comes out so far.
    pub(super) fn update(&mut self, data: &[u8]) -> Ck<Bytes> {
        self.streamed = true;
        let none = Zeroizing::new(Vec::new());
        match &mut self.work {
            Work::Cipher { cipher, seen, .. } => {
                *seen += data.len();
                cipher.update(data).map_err(refused)
            }
            Work::Held { held, .. } => {
                if held.len() + data.len() > MAX_HELD {
                    return Err(CKR_DATA_LEN_RANGE);
                }
                // A copy with room, so that no reallocation leaves the old one behind.
                let mut longer = Zeroizing::new(Vec::with_capacity(held.len() + data.len()));
                longer.extend_from_slice(held);
                longer.extend_from_slice(data);
                *held = longer;
                Ok(none)
            }
            Work::Digest(hasher) | Work::Hashed { hasher, .. } => {
                hasher.update(data).map(|()| none).map_err(refused)
            }
            Work::Hmac(mac) => mac.update(data).map(|()| none).map_err(refused),
            Work::Cmac(mac, _) => mac.update(data).map(|()| none).map_err(refused),
        }
    }

    /// The end of an encryption, decryption, digest or signature.
    pub(super) fn finish(self, op: Op) -> Ck<Bytes> {
        let fit = move |_| length_error(op);
        match self.work {
            Work::Cipher { cipher, exact, seen } => {
                if let Some(block) = exact
                    && seen % block != 0
                {
                    return Err(length_error(op));
                }
                cipher.finish().map_err(fit)
            }
            Work::Held { held, how } => whole(op, how, &held),
            Work::Digest(hasher) => hasher.finish().map(Zeroizing::new).map_err(refused),
            Work::Hmac(mac) => mac.finish().map(Zeroizing::new).map_err(refused),
            Work::Cmac(mac, len) => {
                let mut out = mac.finish().map_err(refused)?;
                out.truncate(len);
                Ok(Zeroizing::new(out))
            }
            Work::Hashed { hasher, md, scheme, mgf, salt, key } => {
                let digest = hasher.finish().map_err(refused)?;
                let out = match scheme {
                    Scheme::Ecdsa => key.ec()?.sign(&digest),
                    Scheme::Pkcs1 => key.rsa()?.sign(md, &digest),
                    Scheme::Pss => key.rsa()?.sign_pss(&digest, md, mgf, salt),
                };
                out.map(Zeroizing::new).map_err(refused)
            }
        }
    }

    /// The end of a verification.
    pub(super) fn verify(self, signature: &[u8]) -> Ck<()> {
        let wrong = |_| CKR_SIGNATURE_INVALID;
        match self.work {
            Work::Hashed { hasher, md, scheme, mgf, salt, key } => {
                let digest = hasher.finish().map_err(refused)?;
                match scheme {
                    Scheme::Ecdsa => {
                        long(signature, 2 * key.ec()?.curve().len())?;
                        key.ec()?.verify(&digest, signature).map_err(wrong)
                    }
                    Scheme::Pkcs1 => {
                        long(signature, key.rsa()?.size())?;
                        key.rsa()?.verify(md, &digest, signature).map_err(wrong)
                    }
                    Scheme::Pss => {
                        long(signature, key.rsa()?.size())?;
                        key.rsa()?.verify_pss(&digest, md, mgf, salt, signature).map_err(wrong)
                    }
                }
            }
            Work::Held { held, how } => verify_whole(&how, &held, signature),
            Work::Hmac(_) | Work::Cmac(..) => {
                let mac = self.finish(Op::Sign)?;
                long(signature, mac.len())?;
                constant_time_eq(&mac, signature)
            }
            Work::Cipher { .. } | Work::Digest(_) => Err(CKR_FUNCTION_FAILED),
        }
    }
}

fn constant_time_eq(a: &[u8], b: &[u8]) -> Ck<()> {
    match aws_lc_rs::constant_time::verify_slices_are_equal(a, b) {
        Ok(()) => Ok(()),
        Err(_) => Err(CKR_SIGNATURE_INVALID),
    }
}

fn long(signature: &[u8], len: usize) -> Ck<()> {
    if signature.len() == len { Ok(()) } else { Err(CKR_SIGNATURE_LEN_RANGE) }
}

/// Data that a mechanism cannot take, or ciphertext that does not open.
fn length_error(op: Op) -> CK_RV {
    match op {
        Op::Decrypt => CKR_ENCRYPTED_DATA_LEN_RANGE,
        _ => CKR_DATA_LEN_RANGE,
    }
}

fn whole(op: Op, how: Whole, data: &[u8]) -> Ck<Bytes> {
    let len = |_| CKR_DATA_LEN_RANGE;
    match how {
        Whole::Gcm { key, iv, aad, tag, prepend, encrypt: true } => {
            let sealed = lc::gcm_seal(key.secret()?, &iv, &aad, data, tag).map_err(bad_key)?;
            Ok(Zeroizing::new(if prepend { [iv, sealed].concat() } else { sealed }))
        }
        Whole::Gcm { key, iv, aad, tag, prepend, encrypt: false } => {
            let (iv, sealed) = if prepend {
                let (iv, rest) = data.split_first_chunk::<12>().ok_or(CKR_ENCRYPTED_DATA_LEN_RANGE)?;
                (iv.to_vec(), rest)
            } else {
                (iv, data)
            };
            if sealed.len() < tag {
                return Err(CKR_ENCRYPTED_DATA_LEN_RANGE);
            }
            lc::gcm_open(key.secret()?, &iv, &aad, sealed, tag).map_err(|_| CKR_ENCRYPTED_DATA_INVALID)
        }
        Whole::RsaCrypt { key, raw, encrypt: true } => {
            let rsa = key.rsa()?;
            let block = if raw { left_padded(data, rsa.size())? } else { Zeroizing::new(data.to_vec()) };
            rsa.encrypt(&block, raw).map(Zeroizing::new).map_err(len)
        }
        Whole::RsaCrypt { key, raw, encrypt: false } => {
            let rsa = key.rsa()?;
            if data.len() != rsa.size() {
                return Err(CKR_ENCRYPTED_DATA_LEN_RANGE);
            }
            rsa.decrypt(data, raw).map_err(|_| CKR_ENCRYPTED_DATA_INVALID)
        }
        Whole::Oaep { key, md, mgf, label, encrypt } => {
            let rsa = key.rsa()?;
            if !encrypt && data.len() != rsa.size() {
                return Err(CKR_ENCRYPTED_DATA_LEN_RANGE);
            }
            let failed = if encrypt { CKR_DATA_LEN_RANGE } else { CKR_ENCRYPTED_DATA_INVALID };
            rsa.oaep(encrypt, data, md, mgf, &label).map_err(|_| failed)
        }
        Whole::RsaSign { key, raw } => {
            let rsa = key.rsa()?;
            let block = if raw { left_padded(data, rsa.size())? } else { Zeroizing::new(data.to_vec()) };
            rsa.sign_raw(&block, raw).map(Zeroizing::new).map_err(len)
        }
        Whole::Pss { key, md, mgf, salt } => {
            if data.len() != md.len() {
                return Err(length_error(op));
            }
            key.rsa()?.sign_pss(data, md, mgf, salt).map(Zeroizing::new).map_err(len)
        }
        Whole::Ecdsa { key } => key.ec()?.sign(data).map(Zeroizing::new).map_err(len),
        Whole::Eddsa { key, mode } => key.edwards()?.sign(data, &mode).map(Zeroizing::new).map_err(len),
        Whole::AesMac { key } => aes_mac(key.secret()?, data),
    }
}

fn verify_whole(how: &Whole, data: &[u8], signature: &[u8]) -> Ck<()> {
    let wrong = |_| CKR_SIGNATURE_INVALID;
    match how {
        Whole::RsaSign { key, raw } => {
            let rsa = key.rsa()?;
            long(signature, rsa.size())?;
            let signed = rsa.recover(signature, *raw).map_err(wrong)?;
            let expected = if *raw { left_padded(data, rsa.size())? } else { Zeroizing::new(data.to_vec()) };
            if signed == *expected { Ok(()) } else { Err(CKR_SIGNATURE_INVALID) }
        }
        Whole::Pss { key, md, mgf, salt } => {
            long(signature, key.rsa()?.size())?;
            if data.len() != md.len() {
                return Err(CKR_DATA_LEN_RANGE);
            }
            key.rsa()?.verify_pss(data, *md, *mgf, *salt, signature).map_err(wrong)
        }
        Whole::Ecdsa { key } => {
            long(signature, 2 * key.ec()?.curve().len())?;
            key.ec()?.verify(data, signature).map_err(wrong)
        }
        Whole::Eddsa { key, mode } => {
            let key = key.edwards()?;
            long(signature, key.signature_len())?;
            key.verify(data, mode, signature).map_err(wrong)
        }
        Whole::AesMac { key } => {
            long(signature, 8)?;
            constant_time_eq(&aes_mac(key.secret()?, data)?, signature)
        }
        Whole::Gcm { .. } | Whole::RsaCrypt { .. } | Whole::Oaep { .. } => Err(CKR_FUNCTION_FAILED),
    }
}

/// Data as a number of the modulus's length.
fn left_padded(data: &[u8], len: usize) -> Ck<Bytes> {
    if data.len() > len {
        return Err(CKR_DATA_LEN_RANGE);
    }
    let mut out = Zeroizing::new(vec![0; len - data.len()]);
    out.extend_from_slice(data);
    Ok(out)
}

/// CKM_AES_MAC: half of the last CBC block over the zero-padded message (PKCS#11 2.40 2.14).
fn aes_mac(key: &[u8], data: &[u8]) -> Ck<Bytes> {
    let mut cipher = Cipher::new(Block::Cbc, false, key, &[0; 16], true, false).map_err(bad_key)?;
    let mut padded = Zeroizing::new(data.to_vec());
    padded.resize(data.len().next_multiple_of(16).max(16), 0);
    let out = cipher.update(&padded).map_err(refused)?;
    let at = out.len() - 16;
    Ok(Zeroizing::new(out[at..at + 8].to_vec()))
}
