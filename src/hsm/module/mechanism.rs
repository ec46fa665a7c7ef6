//! CK_MECHANISM: the structure behind `pParameter`, read by the mechanism's type, with its length checked.
#![allow(unsafe_code)]

use cryptoki_sys::*;
use zeroize::Zeroizing;

use super::super::Ck;
use super::super::mechs::{CLOUDHSM_AES_GCM, hashed};
use super::super::wire::{Bytes, Mech, Params, Template};
use super::memory::{input, read, template, write};

/// A mechanism of the caller, and where a GCM IV that the HSM makes goes.
pub(super) struct Given {
    pub(super) mech: Mech,
    pub(super) iv_out: Option<(*mut u8, usize)>,
}

/// # Safety
/// `at` is null or a mechanism, whose parameter is null or as long as it says, and so what that points to.
pub(super) unsafe fn mechanism(at: *const CK_MECHANISM) -> Ck<Given> {
    // SAFETY: the caller's promise.
    let raw = unsafe { read(at)? };
    let empty = raw.pParameter.is_null() || raw.ulParameterLen == 0;
    if raw.pParameter.is_null() && raw.ulParameterLen > 0 {
        return Err(CKR_MECHANISM_PARAM_INVALID);
    }
    let mut iv_out = None;
    // SAFETY: the caller's promise; each structure is read only where the length is its own.
    let params = unsafe {
        match raw.mechanism {
            CKM_AES_GCM if !empty => gcm(&raw, &mut iv_out)?,
            CLOUDHSM_AES_GCM if !empty => gcm(&raw, &mut iv_out)?,
            CKM_AES_CTR => {
                let p: CK_AES_CTR_PARAMS = structure(&raw)?;
                Params::Ctr { bits: p.ulCounterBits, block: Zeroizing::new(p.cb.to_vec()) }
            }
            CKM_RSA_PKCS_OAEP => {
                let (hash, mgf, label) = oaep(structure(&raw)?)?;
                Params::Oaep { hash, mgf, label }
            }
            CKM_RSA_AES_KEY_WRAP => {
                let p: CK_RSA_AES_KEY_WRAP_PARAMS = structure(&raw)?;
                let (hash, mgf, label) = oaep(read(p.pOAEPParams.cast_const())?)?;
                Params::RsaAes { bits: p.ulAESKeyBits, hash, mgf, label }
            }
            CKM_RSA_PKCS_PSS => pss(&raw)?,
            kind if hashed(kind).is_some_and(|(s, _)| s == super::super::mechs::Scheme::Pss) => pss(&raw)?,
            kind if is_derivation(kind) => derivation(&raw)?,
            CKM_EDDSA if !empty => {
                let p: CK_EDDSA_PARAMS = structure(&raw)?;
                Params::Eddsa {
                    prehash: p.phFlag != CK_FALSE,
                    context: bytes(p.pContextData, p.ulContextDataLen)?,
                }
            }
            _ if empty => Params::None {},
            _ if raw.ulParameterLen <= 64 => {
                Params::Raw { bytes: bytes(raw.pParameter.cast(), raw.ulParameterLen)? }
            }
            _ => return Err(CKR_MECHANISM_PARAM_INVALID),
        }
    };
    Ok(Given { mech: Mech { kind: raw.mechanism, params }, iv_out })
}

/// Whether a mechanism derives and has parameters.
fn is_derivation(kind: u64) -> bool {
    matches!(
        kind,
        CKM_ECDH1_DERIVE
            | CKM_AES_CBC_ENCRYPT_DATA
            | CKM_AES_ECB_ENCRYPT_DATA
            | CKM_CONCATENATE_BASE_AND_DATA
            | CKM_CONCATENATE_DATA_AND_BASE
            | CKM_XOR_BASE_AND_DATA
            | CKM_CONCATENATE_BASE_AND_KEY
            | CKM_EXTRACT_KEY_FROM_KEY
            | CKM_SP800_108_COUNTER_KDF
            | CKM_SP800_108_FEEDBACK_KDF
    )
}

/// # Safety
/// As for [`mechanism`].
unsafe fn derivation(raw: &CK_MECHANISM) -> Ck<Params> {
    // SAFETY: the caller's promise; each structure is read only where the length is its own.
    Ok(unsafe {
        match raw.mechanism {
            CKM_ECDH1_DERIVE => {
                let p: CK_ECDH1_DERIVE_PARAMS = structure(raw)?;
                Params::Ecdh {
                    kdf: p.kdf,
                    shared: bytes(p.pSharedData, p.ulSharedDataLen)?,
                    public: bytes(p.pPublicData, p.ulPublicDataLen)?,
                }
            }
            CKM_AES_CBC_ENCRYPT_DATA => {
                let p: CK_AES_CBC_ENCRYPT_DATA_PARAMS = structure(raw)?;
                Params::Data { iv: Zeroizing::new(p.iv.to_vec()), data: bytes(p.pData, p.length)? }
            }
            CKM_AES_ECB_ENCRYPT_DATA
            | CKM_CONCATENATE_BASE_AND_DATA
            | CKM_CONCATENATE_DATA_AND_BASE
            | CKM_XOR_BASE_AND_DATA => {
                let p: CK_KEY_DERIVATION_STRING_DATA = structure(raw)?;
                Params::Data { iv: Zeroizing::new(Vec::new()), data: bytes(p.pData, p.ulLen)? }
            }
            CKM_CONCATENATE_BASE_AND_KEY | CKM_EXTRACT_KEY_FROM_KEY => {
                Params::Number { value: structure::<CK_ULONG>(raw)? }
            }
            CKM_SP800_108_COUNTER_KDF => {
                let p: CK_SP800_108_KDF_PARAMS = structure(raw)?;
                let data = kdf_data(p.pDataParams, p.ulNumberOfDataParams)?;
                let more = derived_keys(p.pAdditionalDerivedKeys, p.ulAdditionalDerivedKeys)?;
                Params::Kdf { prf: p.prfType, data, iv: Zeroizing::new(Vec::new()), more }
            }
            CKM_SP800_108_FEEDBACK_KDF => {
                let p: CK_SP800_108_FEEDBACK_KDF_PARAMS = structure(raw)?;
                let data = kdf_data(p.pDataParams, p.ulNumberOfDataParams)?;
                let more = derived_keys(p.pAdditionalDerivedKeys, p.ulAdditionalDerivedKeys)?;
                Params::Kdf { prf: p.prfType, data, iv: bytes(p.pIV, p.ulIVLen)?, more }
            }
            _ => return Err(CKR_MECHANISM_INVALID),
        }
    })
}

/// The parameter as a structure of exactly its length.
///
/// # Safety
/// The parameter is as long as it says; any bytes are a `T`.
unsafe fn structure<T: Copy>(raw: &CK_MECHANISM) -> Ck<T> {
    if raw.pParameter.is_null() || raw.ulParameterLen != size_of::<T>() as CK_ULONG {
        return Err(CKR_MECHANISM_PARAM_INVALID);
    }
    // SAFETY: the caller's promise, for the length that was just checked.
    unsafe { read(raw.pParameter.cast()) }
}

/// # Safety
/// As for [`input`].
unsafe fn bytes(at: *const u8, len: CK_ULONG) -> Ck<Bytes> {
    // SAFETY: the caller's promise.
    let slice = unsafe { input(at, len) }.map_err(|_| CKR_MECHANISM_PARAM_INVALID)?;
    // No parameter is long: what is, is a length by mistake.
    if slice.len() > 1 << 20 { Err(CKR_MECHANISM_PARAM_INVALID) } else { Ok(Zeroizing::new(slice.to_vec())) }
}

/// # Safety
/// As for [`mechanism`].
unsafe fn gcm(raw: &CK_MECHANISM, iv_out: &mut Option<(*mut u8, usize)>) -> Ck<Params> {
    // SAFETY: the caller's promise.
    unsafe {
        let p: CK_GCM_PARAMS = structure(raw)?;
        let iv = bytes(p.pIv, p.ulIvLen)?;
        if !iv.is_empty() {
            *iv_out = Some((p.pIv, iv.len()));
        }
        Ok(Params::Gcm { iv, aad: bytes(p.pAAD, p.ulAADLen)?, tag_bits: p.ulTagBits })
    }
}

/// Writes the IV that the HSM made where the caller's parameter has its own.
///
/// # Safety
/// `place` comes from [`mechanism`] in the same call of the caller.
pub(super) unsafe fn give_iv(place: Option<(*mut u8, usize)>, iv: &[u8]) {
    if let Some((at, len)) = place
        && len == iv.len()
    {
        // SAFETY: the caller's buffer has `len` bytes, which were read in this same call.
        unsafe { at.copy_from_nonoverlapping(iv.as_ptr(), len) };
    }
}

/// # Safety
/// The label is as long as it says.
unsafe fn oaep(p: CK_RSA_PKCS_OAEP_PARAMS) -> Ck<(u64, u64, Bytes)> {
    if p.source != CKZ_DATA_SPECIFIED && !(p.source == 0 && p.ulSourceDataLen == 0) {
        return Err(CKR_MECHANISM_PARAM_INVALID);
    }
    // SAFETY: the caller's promise.
    Ok((p.hashAlg, p.mgf, unsafe { bytes(p.pSourceData.cast(), p.ulSourceDataLen)? }))
}

/// # Safety
/// As for [`structure`].
unsafe fn pss(raw: &CK_MECHANISM) -> Ck<Params> {
    // SAFETY: the caller's promise.
    let p: CK_RSA_PKCS_PSS_PARAMS = unsafe { structure(raw)? };
    Ok(Params::Pss { hash: p.hashAlg, mgf: p.mgf, salt: p.sLen })
}

/// # Safety
/// `at` has `count` fields, each as long as it says.
unsafe fn kdf_data(at: *const CK_PRF_DATA_PARAM, count: CK_ULONG) -> Ck<Vec<(u64, Bytes)>> {
    if count > 32 {
        return Err(CKR_MECHANISM_PARAM_INVALID);
    }
    let mut all = Vec::new();
    for n in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: `n` is below the number of fields that the caller promised.
        let field = unsafe { read(at.wrapping_add(n)) }.map_err(|_| CKR_MECHANISM_PARAM_INVALID)?;
        let number = |value: u64| value.to_le_bytes();
        // SAFETY: the caller's promise about the field's length, which is the structure's own.
        let value = unsafe {
            match field.type_ {
                CK_SP800_108_ITERATION_VARIABLE | CK_SP800_108_COUNTER if !field.pValue.is_null() => {
                    if field.ulValueLen != size_of::<CK_SP800_108_COUNTER_FORMAT>() as CK_ULONG {
                        return Err(CKR_MECHANISM_PARAM_INVALID);
                    }
                    let f: CK_SP800_108_COUNTER_FORMAT = read(field.pValue.cast())?;
                    let both = [number(u64::from(f.bLittleEndian)), number(f.ulWidthInBits)];
                    Zeroizing::new(both.concat())
                }
                CK_SP800_108_DKM_LENGTH => {
                    if field.ulValueLen != size_of::<CK_SP800_108_DKM_LENGTH_FORMAT>() as CK_ULONG {
                        return Err(CKR_MECHANISM_PARAM_INVALID);
                    }
                    let f: CK_SP800_108_DKM_LENGTH_FORMAT =
                        read(field.pValue.cast()).map_err(|_| CKR_MECHANISM_PARAM_INVALID)?;
                    let three = [f.dkmLengthMethod, u64::from(f.bLittleEndian), f.ulWidthInBits].map(number);
                    Zeroizing::new(three.concat())
                }
                _ => bytes(field.pValue.cast(), field.ulValueLen)?,
            }
        };
        all.push((field.type_, value));
    }
    Ok(all)
}

/// # Safety
/// `at` has `count` descriptions, each with a template as long as it says.
unsafe fn derived_keys(at: *const CK_DERIVED_KEY, count: CK_ULONG) -> Ck<Vec<Template>> {
    if count > 32 {
        return Err(CKR_MECHANISM_PARAM_INVALID);
    }
    // SAFETY: the caller's promise.
    let one = |n| unsafe {
        let key = read(at.wrapping_add(n)).map_err(|_| CKR_MECHANISM_PARAM_INVALID)?;
        if key.phKey.is_null() {
            return Err(CKR_MECHANISM_PARAM_INVALID);
        }
        template(key.pTemplate, key.ulAttributeCount)
    };
    (0..usize::try_from(count).unwrap_or(0)).map(one).collect()
}

/// Gives the handles of additional derived keys, or CK_INVALID_HANDLE for each after a failure.
///
/// # Safety
/// As for [`mechanism`], in the same call of the caller.
pub(super) unsafe fn give_derived(at: *const CK_MECHANISM, handles: &[u64]) -> Ck<()> {
    // SAFETY: the caller's promise; `mechanism` has read the same structures before.
    unsafe {
        let raw = read(at)?;
        let (keys, count) = match raw.mechanism {
            CKM_SP800_108_COUNTER_KDF => {
                let p: CK_SP800_108_KDF_PARAMS = structure(&raw)?;
                (p.pAdditionalDerivedKeys, p.ulAdditionalDerivedKeys)
            }
            CKM_SP800_108_FEEDBACK_KDF => {
                let p: CK_SP800_108_FEEDBACK_KDF_PARAMS = structure(&raw)?;
                (p.pAdditionalDerivedKeys, p.ulAdditionalDerivedKeys)
            }
            _ => return Ok(()),
        };
        for n in 0..usize::try_from(count.min(32)).unwrap_or(0) {
            let key = read(keys.wrapping_add(n).cast_const())?;
            write(key.phKey, handles.get(n).copied().unwrap_or(CK_INVALID_HANDLE))?;
        }
    }
    Ok(())
}
