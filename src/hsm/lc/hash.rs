//! Digests, HMAC and CMAC, whole or in pieces.
#![allow(unsafe_code)]

use aws_lc_sys as lc;

use super::{Lc, ok, owner};

/// A digest algorithm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::hsm) enum Md {
    Md5,
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

impl Md {
    pub(super) fn raw(self) -> *const lc::EVP_MD {
        // SAFETY: each returns a pointer to a constant of the library.
        unsafe {
            match self {
                Self::Md5 => lc::EVP_md5(),
                Self::Sha1 => lc::EVP_sha1(),
                Self::Sha224 => lc::EVP_sha224(),
                Self::Sha256 => lc::EVP_sha256(),
                Self::Sha384 => lc::EVP_sha384(),
                Self::Sha512 => lc::EVP_sha512(),
            }
        }
    }

    pub(super) fn nid(self) -> i32 {
        match self {
            Self::Md5 => lc::NID_md5,
            Self::Sha1 => lc::NID_sha1,
            Self::Sha224 => lc::NID_sha224,
            Self::Sha256 => lc::NID_sha256,
            Self::Sha384 => lc::NID_sha384,
            Self::Sha512 => lc::NID_sha512,
        }
    }

    /// Bytes of a digest.
    pub(in crate::hsm) fn len(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The digest of a whole message.
    pub(in crate::hsm) fn digest(self, data: &[u8]) -> Vec<u8> {
        let mut out = vec![0; self.len()];
        let mut len = 0;
        // SAFETY: `out` has the digest's length; `data` is a valid slice; no engine.
        let code = unsafe {
            lc::EVP_Digest(
                data.as_ptr().cast(),
                data.len(),
                out.as_mut_ptr(),
                &raw mut len,
                self.raw(),
                std::ptr::null_mut(),
            )
        };
        assert_eq!(code, 1, "digests of the library's own algorithms do not fail");
        out
    }
}

owner!(MdCtx, lc::EVP_MD_CTX, lc::EVP_MD_CTX_free);

/// A digest in pieces.
pub(in crate::hsm) struct Hasher {
    ctx: MdCtx,
    md: Md,
}

impl Hasher {
    pub(in crate::hsm) fn new(md: Md) -> Lc<Self> {
        // SAFETY: a fresh context, owned from here on.
        let ctx = MdCtx::new(unsafe { lc::EVP_MD_CTX_new() })?;
        // SAFETY: the context is fresh, the algorithm a constant.
        ok(unsafe { lc::EVP_DigestInit_ex(ctx.raw(), md.raw(), std::ptr::null_mut()) })?;
        Ok(Self { ctx, md })
    }

    pub(in crate::hsm) fn update(&mut self, data: &[u8]) -> Lc<()> {
        // SAFETY: an initialised context and a valid slice.
        ok(unsafe { lc::EVP_DigestUpdate(self.ctx.raw(), data.as_ptr().cast(), data.len()) })
    }

    pub(in crate::hsm) fn finish(self) -> Lc<Vec<u8>> {
        let mut out = vec![0; self.md.len()];
        let mut len = 0;
        // SAFETY: `out` has the digest's length.
        ok(unsafe { lc::EVP_DigestFinal_ex(self.ctx.raw(), out.as_mut_ptr(), &raw mut len) })?;
        Ok(out)
    }
}

/// 64 bytes of SHAKE256 (FIPS 202): the digest of Ed448ph.
pub(super) fn shake256(data: &[u8]) -> Lc<[u8; 64]> {
    let mut out = [0; 64];
    // SAFETY: a fresh context, owned from here on; `data` is a valid slice, `out` has the length that is named.
    unsafe {
        let ctx = MdCtx::new(lc::EVP_MD_CTX_new())?;
        ok(lc::EVP_DigestInit_ex(ctx.raw(), lc::EVP_shake256(), std::ptr::null_mut()))?;
        ok(lc::EVP_DigestUpdate(ctx.raw(), data.as_ptr().cast(), data.len()))?;
        ok(lc::EVP_DigestFinalXOF(ctx.raw(), out.as_mut_ptr(), out.len()))?;
    }
    Ok(out)
}

owner!(HmacCtx, lc::HMAC_CTX, lc::HMAC_CTX_free);

/// HMAC (FIPS 198-1) in pieces.
pub(in crate::hsm) struct Hmac {
    ctx: HmacCtx,
    md: Md,
}

impl Hmac {
    pub(in crate::hsm) fn new(md: Md, key: &[u8]) -> Lc<Self> {
        // SAFETY: a fresh context, owned from here on.
        let ctx = HmacCtx::new(unsafe { lc::HMAC_CTX_new() })?;
        // SAFETY: the context is fresh, `key` a valid slice (a dangling pointer of length 0 is never read).
        ok(unsafe {
            lc::HMAC_Init_ex(ctx.raw(), key.as_ptr().cast(), key.len(), md.raw(), std::ptr::null_mut())
        })?;
        Ok(Self { ctx, md })
    }

    pub(in crate::hsm) fn update(&mut self, data: &[u8]) -> Lc<()> {
        // SAFETY: an initialised context and a valid slice.
        ok(unsafe { lc::HMAC_Update(self.ctx.raw(), data.as_ptr(), data.len()) })
    }

    pub(in crate::hsm) fn finish(self) -> Lc<Vec<u8>> {
        let mut out = vec![0; self.md.len()];
        let mut len = 0;
        // SAFETY: `out` has the digest's length.
        ok(unsafe { lc::HMAC_Final(self.ctx.raw(), out.as_mut_ptr(), &raw mut len) })?;
        Ok(out)
    }

    /// The whole at once.
    pub(in crate::hsm) fn mac(md: Md, key: &[u8], data: &[u8]) -> Lc<Vec<u8>> {
        let mut mac = Self::new(md, key)?;
        mac.update(data)?;
        mac.finish()
    }
}

owner!(CmacCtx, lc::CMAC_CTX, lc::CMAC_CTX_free);

/// AES-CMAC (SP 800-38B) in pieces.
pub(in crate::hsm) struct Cmac(CmacCtx);

impl Cmac {
    pub(in crate::hsm) fn new(key: &[u8]) -> Lc<Self> {
        let cipher = super::cipher::Block::Cbc.raw(key.len(), false)?;
        // SAFETY: a fresh context, owned from here on.
        let ctx = CmacCtx::new(unsafe { lc::CMAC_CTX_new() })?;
        // SAFETY: the cipher takes keys of exactly this length.
        ok(unsafe {
            lc::CMAC_Init(ctx.raw(), key.as_ptr().cast(), key.len(), cipher, std::ptr::null_mut())
        })?;
        Ok(Self(ctx))
    }

    pub(in crate::hsm) fn update(&mut self, data: &[u8]) -> Lc<()> {
        // SAFETY: an initialised context and a valid slice.
        ok(unsafe { lc::CMAC_Update(self.0.raw(), data.as_ptr(), data.len()) })
    }

    pub(in crate::hsm) fn finish(self) -> Lc<Vec<u8>> {
        let (mut out, mut len) = (vec![0; 16], 16);
        // SAFETY: `out` holds one AES block, the length of the MAC.
        ok(unsafe { lc::CMAC_Final(self.0.raw(), out.as_mut_ptr(), &raw mut len) })?;
        Ok(out)
    }

    /// The whole at once.
    pub(in crate::hsm) fn mac(key: &[u8], data: &[u8]) -> Lc<Vec<u8>> {
        let mut mac = Self::new(key)?;
        mac.update(data)?;
        mac.finish()
    }
}
