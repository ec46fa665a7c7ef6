//! Block ciphers in pieces, AES-GCM, and AES key wrap (RFC 3394, RFC 5649).
#![allow(unsafe_code)]

use aws_lc_sys as lc;
use zeroize::Zeroizing;

use super::{Failed, Lc, ok, owner};

/// A mode of operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::hsm) enum Block {
    Ecb,
    Cbc,
    Ctr,
}

impl Block {
    /// The cipher of this mode for a key of `len` bytes: AES, or (`des`) two- or three-key triple DES.
    pub(super) fn raw(self, len: usize, des: bool) -> Lc<*const lc::EVP_CIPHER> {
        // SAFETY: each returns a pointer to a constant of the library.
        unsafe {
            Ok(match (self, len, des) {
                (Self::Ecb, 16, false) => lc::EVP_aes_128_ecb(),
                (Self::Ecb, 24, false) => lc::EVP_aes_192_ecb(),
                (Self::Ecb, 32, false) => lc::EVP_aes_256_ecb(),
                (Self::Cbc, 16, false) => lc::EVP_aes_128_cbc(),
                (Self::Cbc, 24, false) => lc::EVP_aes_192_cbc(),
                (Self::Cbc, 32, false) => lc::EVP_aes_256_cbc(),
                (Self::Ctr, 16, false) => lc::EVP_aes_128_ctr(),
                (Self::Ctr, 24, false) => lc::EVP_aes_192_ctr(),
                (Self::Ctr, 32, false) => lc::EVP_aes_256_ctr(),
                (Self::Ecb, 16, true) => lc::EVP_des_ede(),
                (Self::Ecb, 24, true) => lc::EVP_des_ede3_ecb(),
                (Self::Cbc, 16, true) => lc::EVP_des_ede_cbc(),
                (Self::Cbc, 24, true) => lc::EVP_des_ede3_cbc(),
                _ => return Err(Failed),
            })
        }
    }
}

owner!(CipherCtx, lc::EVP_CIPHER_CTX, lc::EVP_CIPHER_CTX_free);

/// A cipher in pieces.
pub(in crate::hsm) struct Cipher {
    ctx: CipherCtx,
    block: usize,
}

impl Cipher {
    /// `iv` is empty for ECB, else one block long.
    pub(in crate::hsm) fn new(
        mode: Block,
        des: bool,
        key: &[u8],
        iv: &[u8],
        encrypt: bool,
        pad: bool,
    ) -> Lc<Self> {
        let cipher = mode.raw(key.len(), des)?;
        let block = if des { 8 } else { 16 };
        if iv.len() != if mode == Block::Ecb { 0 } else { block } {
            return Err(Failed);
        }
        // SAFETY: a fresh context, owned from here on.
        let ctx = CipherCtx::new(unsafe { lc::EVP_CIPHER_CTX_new() })?;
        // SAFETY: the cipher was chosen for the key's length; `iv` has one block where the mode reads it.
        ok(unsafe {
            lc::EVP_CipherInit_ex(
                ctx.raw(),
                cipher,
                std::ptr::null_mut(),
                key.as_ptr(),
                iv.as_ptr(),
                i32::from(encrypt),
            )
        })?;
        // SAFETY: an initialised context.
        ok(unsafe { lc::EVP_CIPHER_CTX_set_padding(ctx.raw(), i32::from(pad)) })?;
        Ok(Self { ctx, block })
    }

    pub(in crate::hsm) fn update(&mut self, data: &[u8]) -> Lc<Zeroizing<Vec<u8>>> {
        let mut out = Zeroizing::new(vec![0; data.len() + self.block]);
        let (mut len, given) = (0, i32::try_from(data.len()).map_err(|_| Failed)?);
        if given == 0 {
            return Ok(Zeroizing::new(Vec::new()));
        }
        // SAFETY: an update writes at most the input and one block.
        ok(unsafe {
            lc::EVP_CipherUpdate(self.ctx.raw(), out.as_mut_ptr(), &raw mut len, data.as_ptr(), given)
        })?;
        out.truncate(usize::try_from(len).map_err(|_| Failed)?);
        Ok(out)
    }

    pub(in crate::hsm) fn finish(self) -> Lc<Zeroizing<Vec<u8>>> {
        let mut out = Zeroizing::new(vec![0; self.block]);
        let mut len = 0;
        // SAFETY: the end writes at most one block.
        ok(unsafe { lc::EVP_CipherFinal_ex(self.ctx.raw(), out.as_mut_ptr(), &raw mut len) })?;
        out.truncate(usize::try_from(len).map_err(|_| Failed)?);
        Ok(out)
    }
}

owner!(Aead, lc::EVP_AEAD_CTX, lc::EVP_AEAD_CTX_free);

fn gcm(key: &[u8], tag: usize) -> Lc<Aead> {
    // SAFETY: the AEAD is a constant made for the key's length; the context is owned from here on.
    unsafe {
        let aead = match key.len() {
            16 => lc::EVP_aead_aes_128_gcm(),
            24 => lc::EVP_aead_aes_192_gcm(),
            32 => lc::EVP_aead_aes_256_gcm(),
            _ => return Err(Failed),
        };
        Aead::new(lc::EVP_AEAD_CTX_new(aead, key.as_ptr(), key.len(), tag))
    }
}

/// AES-GCM (SP 800-38D): ciphertext and tag. An empty nonce is refused.
pub(in crate::hsm) fn gcm_seal(key: &[u8], nonce: &[u8], ad: &[u8], plain: &[u8], tag: usize) -> Lc<Vec<u8>> {
    let ctx = gcm(key, tag)?;
    let (mut out, mut len) = (vec![0; plain.len() + 16], 0);
    // SAFETY: `out` has room for the ciphertext and the longest tag; the others are valid slices.
    ok(unsafe {
        lc::EVP_AEAD_CTX_seal(
            ctx.raw(),
            out.as_mut_ptr(),
            &raw mut len,
            out.len(),
            nonce.as_ptr(),
            nonce.len(),
            plain.as_ptr(),
            plain.len(),
            ad.as_ptr(),
            ad.len(),
        )
    })?;
    out.truncate(len);
    Ok(out)
}

/// Opens what [`gcm_seal`] gave.
pub(in crate::hsm) fn gcm_open(
    key: &[u8],
    nonce: &[u8],
    ad: &[u8],
    sealed: &[u8],
    tag: usize,
) -> Lc<Zeroizing<Vec<u8>>> {
    let ctx = gcm(key, tag)?;
    let (mut out, mut len) = (Zeroizing::new(vec![0; sealed.len()]), 0);
    // SAFETY: the plaintext is shorter than what is opened; the others are valid slices.
    ok(unsafe {
        lc::EVP_AEAD_CTX_open(
            ctx.raw(),
            out.as_mut_ptr(),
            &raw mut len,
            out.len(),
            nonce.as_ptr(),
            nonce.len(),
            sealed.as_ptr(),
            sealed.len(),
            ad.as_ptr(),
            ad.len(),
        )
    })?;
    out.truncate(len);
    Ok(out)
}

/// An expanded AES key, wiped when dropped.
struct Schedule(lc::AES_KEY);

impl Schedule {
    fn new(key: &[u8], encrypt: bool) -> Lc<Self> {
        let bits = u32::try_from(key.len() * 8).map_err(|_| Failed)?;
        if !matches!(bits, 128 | 192 | 256) {
            return Err(Failed);
        }
        // SAFETY: plain numbers, of which all zeros is a value.
        let mut out = Self(unsafe { std::mem::zeroed() });
        // SAFETY: `key` has as many bits as said. These two return 0 for success.
        let code = unsafe {
            if encrypt {
                lc::AES_set_encrypt_key(key.as_ptr(), bits, &raw mut out.0)
            } else {
                lc::AES_set_decrypt_key(key.as_ptr(), bits, &raw mut out.0)
            }
        };
        if code == 0 { Ok(out) } else { Err(Failed) }
    }
}

impl Drop for Schedule {
    fn drop(&mut self) {
        // SAFETY: the whole of a value of plain numbers is overwritten, in a way the library keeps.
        unsafe { lc::OPENSSL_cleanse((&raw mut self.0).cast(), size_of::<lc::AES_KEY>()) };
    }
}

/// AES key wrap: RFC 3394, or with `padded` RFC 5649.
pub(in crate::hsm) fn kw_wrap(key: &[u8], plain: &[u8], padded: bool) -> Lc<Vec<u8>> {
    let schedule = Schedule::new(key, true)?;
    let mut out = vec![0; plain.len() + 15];
    if padded {
        let mut len = 0;
        // SAFETY: RFC 5649 adds eight bytes to the input rounded up to eight.
        ok(unsafe {
            lc::AES_wrap_key_padded(
                &raw const schedule.0,
                out.as_mut_ptr(),
                &raw mut len,
                out.len(),
                plain.as_ptr(),
                plain.len(),
            )
        })?;
        out.truncate(len);
        return Ok(out);
    }
    // SAFETY: RFC 3394 adds eight bytes; a null IV is the default one.
    let len = unsafe {
        lc::AES_wrap_key(
            &raw const schedule.0,
            std::ptr::null(),
            out.as_mut_ptr(),
            plain.as_ptr(),
            plain.len(),
        )
    };
    out.truncate(usize::try_from(len).map_err(|_| Failed)?);
    Ok(out)
}

/// Opens what [`kw_wrap`] gave.
pub(in crate::hsm) fn kw_unwrap(key: &[u8], wrapped: &[u8], padded: bool) -> Lc<Zeroizing<Vec<u8>>> {
    let schedule = Schedule::new(key, false)?;
    let mut out = Zeroizing::new(vec![0; wrapped.len()]);
    if padded {
        let mut len = 0;
        // SAFETY: the plaintext is shorter than what is unwrapped.
        ok(unsafe {
            lc::AES_unwrap_key_padded(
                &raw const schedule.0,
                out.as_mut_ptr(),
                &raw mut len,
                out.len(),
                wrapped.as_ptr(),
                wrapped.len(),
            )
        })?;
        out.truncate(len);
        return Ok(out);
    }
    // SAFETY: the plaintext is eight bytes shorter than what is unwrapped.
    let len = unsafe {
        lc::AES_unwrap_key(
            &raw const schedule.0,
            std::ptr::null(),
            out.as_mut_ptr(),
            wrapped.as_ptr(),
            wrapped.len(),
        )
    };
    if len < 0 {
        super::clear_errors();
    }
    out.truncate(usize::try_from(len).map_err(|_| Failed)?);
    Ok(out)
}
