//! Key pairs: RSA and elliptic curves.
#![allow(unsafe_code)]

use aws_lc_sys as lc;
use zeroize::Zeroizing;

use super::num::{Number, bytes, padded};
use super::{Failed, Lc, Md, ok, owner};

owner!(RsaPtr, lc::RSA, lc::RSA_free);
owner!(PkeyPtr, lc::EVP_PKEY, lc::EVP_PKEY_free);
owner!(PkeyCtx, lc::EVP_PKEY_CTX, lc::EVP_PKEY_CTX_free);

/// The numbers of an RSA key, big-endian. A public key has only the first two.
#[derive(Default)]
pub(in crate::hsm) struct RsaParts {
    pub(in crate::hsm) n: Vec<u8>,
    pub(in crate::hsm) e: Vec<u8>,
    /// d, p, q, d mod p-1, d mod q-1, q^-1 mod p.
    pub(in crate::hsm) secret: [Zeroizing<Vec<u8>>; 6],
}

/// An RSA key, public or private.
pub(in crate::hsm) struct Rsa(RsaPtr);

// SAFETY: the library locks what an operation changes inside a key (blinding, Montgomery forms).
unsafe impl Sync for Rsa {}

impl Rsa {
    /// A new pair.
    pub(in crate::hsm) fn generate(bits: usize, e: &[u8]) -> Lc<Self> {
        let e = Number::of(e)?;
        let bits = i32::try_from(bits).map_err(|_| Failed)?;
        // SAFETY: a fresh key, owned from here on; no callback.
        unsafe {
            let rsa = RsaPtr::new(lc::RSA_new())?;
            ok(lc::RSA_generate_key_ex(rsa.raw(), bits, e.raw(), std::ptr::null_mut()))?;
            Ok(Self(rsa))
        }
    }

    /// A key from its numbers; a private one is checked.
    pub(in crate::hsm) fn from_parts(parts: &RsaParts) -> Lc<Self> {
        let (n, e) = (Number::of(&parts.n)?, Number::of(&parts.e)?);
        let [d, p, q, dp, dq, qi] = &parts.secret;
        // SAFETY: the constructors copy the numbers they are given; what they return is owned from here on.
        unsafe {
            let raw = if d.is_empty() {
                lc::RSA_new_public_key(n.raw(), e.raw())
            } else if [p, q, dp, dq, qi].iter().any(|x| x.is_empty()) {
                lc::RSA_new_private_key_no_crt(n.raw(), e.raw(), Number::of(d)?.raw())
            } else {
                let [d, p, q, dp, dq, qi] = [d, p, q, dp, dq, qi].map(|x| Number::of(x));
                let (d, p, q, dp, dq, qi) = (d?, p?, q?, dp?, dq?, qi?);
                lc::RSA_new_private_key(
                    n.raw(),
                    e.raw(),
                    d.raw(),
                    p.raw(),
                    q.raw(),
                    dp.raw(),
                    dq.raw(),
                    qi.raw(),
                )
            };
            let rsa = RsaPtr::new(raw)?;
            ok(lc::RSA_check_key(rsa.raw()))?;
            Ok(Self(rsa))
        }
    }

    pub(in crate::hsm) fn parts(&self) -> RsaParts {
        let r = self.0.raw();
        // SAFETY: the getters give numbers that the key owns, or null.
        unsafe {
            RsaParts {
                n: bytes(lc::RSA_get0_n(r)).to_vec(),
                e: bytes(lc::RSA_get0_e(r)).to_vec(),
                secret: [
                    bytes(lc::RSA_get0_d(r)),
                    bytes(lc::RSA_get0_p(r)),
                    bytes(lc::RSA_get0_q(r)),
                    bytes(lc::RSA_get0_dmp1(r)),
                    bytes(lc::RSA_get0_dmq1(r)),
                    bytes(lc::RSA_get0_iqmp(r)),
                ],
            }
        }
    }

    /// Bytes of the modulus.
    pub(in crate::hsm) fn size(&self) -> usize {
        // SAFETY: a live key.
        unsafe { lc::RSA_size(self.0.raw()) as usize }
    }

    fn padding(raw: bool) -> i32 {
        if raw { lc::RSA_NO_PADDING } else { lc::RSA_PKCS1_PADDING }
    }

    /// Signs bytes as they are: PKCS#1 v1.5 padding around them, or (`raw`) none.
    pub(in crate::hsm) fn sign_raw(&self, data: &[u8], raw: bool) -> Lc<Vec<u8>> {
        self.block(|r, len, out, max| unsafe {
            // SAFETY: `block` gives a buffer of the modulus's length; `data` is a valid slice.
            lc::RSA_sign_raw(r, len, out, max, data.as_ptr(), data.len(), Self::padding(raw))
        })
    }

    /// What was signed by [`Rsa::sign_raw`].
    pub(in crate::hsm) fn recover(&self, signature: &[u8], raw: bool) -> Lc<Vec<u8>> {
        self.block(|r, len, out, max| unsafe {
            // SAFETY: as for `sign_raw`.
            lc::RSA_verify_raw(r, len, out, max, signature.as_ptr(), signature.len(), Self::padding(raw))
        })
    }

    /// PKCS#1 v1.5 signature of a digest.
    pub(in crate::hsm) fn sign(&self, md: Md, digest: &[u8]) -> Lc<Vec<u8>> {
        let (mut out, mut len) = (vec![0; self.size()], 0);
        // SAFETY: `out` has the modulus's length.
        ok(unsafe {
            lc::RSA_sign(
                md.nid(),
                digest.as_ptr(),
                digest.len(),
                out.as_mut_ptr(),
                &raw mut len,
                self.0.raw(),
            )
        })?;
        Ok(out)
    }

    pub(in crate::hsm) fn verify(&self, md: Md, digest: &[u8], signature: &[u8]) -> Lc<()> {
        // SAFETY: valid slices and a live key.
        ok(unsafe {
            lc::RSA_verify(
                md.nid(),
                digest.as_ptr(),
                digest.len(),
                signature.as_ptr(),
                signature.len(),
                self.0.raw(),
            )
        })
    }

    /// PSS (RFC 8017 8.1); `mgf` is the digest of MGF1.
    pub(in crate::hsm) fn sign_pss(&self, digest: &[u8], md: Md, mgf: Md, salt: usize) -> Lc<Vec<u8>> {
        let salt = i32::try_from(salt).map_err(|_| Failed)?;
        self.block(|r, len, out, max| unsafe {
            // SAFETY: as for `sign_raw`; the algorithms are constants.
            lc::RSA_sign_pss_mgf1(r, len, out, max, digest.as_ptr(), digest.len(), md.raw(), mgf.raw(), salt)
        })
    }

    pub(in crate::hsm) fn verify_pss(
        &self,
        digest: &[u8],
        md: Md,
        mgf: Md,
        salt: usize,
        signature: &[u8],
    ) -> Lc<()> {
        let salt = i32::try_from(salt).map_err(|_| Failed)?;
        // SAFETY: valid slices, constants, a live key.
        ok(unsafe {
            lc::RSA_verify_pss_mgf1(
                self.0.raw(),
                digest.as_ptr(),
                digest.len(),
                md.raw(),
                mgf.raw(),
                salt,
                signature.as_ptr(),
                signature.len(),
            )
        })
    }

    /// PKCS#1 v1.5 encryption, or (`raw`) the bare function.
    pub(in crate::hsm) fn encrypt(&self, plain: &[u8], raw: bool) -> Lc<Vec<u8>> {
        self.block(|r, len, out, max| unsafe {
            // SAFETY: as for `sign_raw`.
            lc::RSA_encrypt(r, len, out, max, plain.as_ptr(), plain.len(), Self::padding(raw))
        })
    }

    pub(in crate::hsm) fn decrypt(&self, sealed: &[u8], raw: bool) -> Lc<Zeroizing<Vec<u8>>> {
        self.block(|r, len, out, max| unsafe {
            // SAFETY: as for `sign_raw`.
            lc::RSA_decrypt(r, len, out, max, sealed.as_ptr(), sealed.len(), Self::padding(raw))
        })
        .map(Zeroizing::new)
    }

    /// OAEP (RFC 8017 7.1), either way.
    pub(in crate::hsm) fn oaep(
        &self,
        encrypt: bool,
        data: &[u8],
        md: Md,
        mgf: Md,
        label: &[u8],
    ) -> Lc<Zeroizing<Vec<u8>>> {
        let mut out = Zeroizing::new(vec![0; self.size()]);
        let mut len = out.len();
        // SAFETY: key and context are owned here for as long as they are used; the label is a copy that the
        // context frees once it was set; `out` has the modulus's length.
        unsafe {
            let pkey = PkeyPtr::new(lc::EVP_PKEY_new())?;
            ok(lc::EVP_PKEY_set1_RSA(pkey.raw(), self.0.raw()))?;
            let ctx = PkeyCtx::new(lc::EVP_PKEY_CTX_new(pkey.raw(), std::ptr::null_mut()))?;
            ok(if encrypt {
                lc::EVP_PKEY_encrypt_init(ctx.raw())
            } else {
                lc::EVP_PKEY_decrypt_init(ctx.raw())
            })?;
            ok(lc::EVP_PKEY_CTX_set_rsa_padding(ctx.raw(), lc::RSA_PKCS1_OAEP_PADDING))?;
            ok(lc::EVP_PKEY_CTX_set_rsa_oaep_md(ctx.raw(), md.raw()))?;
            ok(lc::EVP_PKEY_CTX_set_rsa_mgf1_md(ctx.raw(), mgf.raw()))?;
            if !label.is_empty() {
                let copy = lc::OPENSSL_malloc(label.len()).cast::<u8>();
                if copy.is_null() {
                    return Err(Failed);
                }
                copy.copy_from_nonoverlapping(label.as_ptr(), label.len());
                if let Err(failed) = ok(lc::EVP_PKEY_CTX_set0_rsa_oaep_label(ctx.raw(), copy, label.len())) {
                    lc::OPENSSL_free(copy.cast());
                    return Err(failed);
                }
            }
            ok(if encrypt {
                lc::EVP_PKEY_encrypt(ctx.raw(), out.as_mut_ptr(), &raw mut len, data.as_ptr(), data.len())
            } else {
                lc::EVP_PKEY_decrypt(ctx.raw(), out.as_mut_ptr(), &raw mut len, data.as_ptr(), data.len())
            })?;
        }
        out.truncate(len);
        Ok(out)
    }

    /// Runs a function that fills at most one block of the modulus's length.
    fn block(&self, run: impl FnOnce(*mut lc::RSA, *mut usize, *mut u8, usize) -> i32) -> Lc<Vec<u8>> {
        let (mut out, mut len) = (vec![0; self.size()], 0);
        let max = out.len();
        ok(run(self.0.raw(), &raw mut len, out.as_mut_ptr(), max))?;
        out.truncate(len);
        Ok(out)
    }

    /// PKCS#8 of a private key.
    pub(in crate::hsm) fn pkcs8(&self) -> Lc<Zeroizing<Vec<u8>>> {
        // SAFETY: a fresh key object that shares ours.
        unsafe {
            let pkey = PkeyPtr::new(lc::EVP_PKEY_new())?;
            ok(lc::EVP_PKEY_set1_RSA(pkey.raw(), self.0.raw()))?;
            marshal(&pkey)
        }
    }

    /// A private key from PKCS#8.
    pub(in crate::hsm) fn from_pkcs8(der: &[u8]) -> Lc<Self> {
        let pkey = parse(der)?;
        // SAFETY: the getter gives the key that `pkey` owns, or null; one more reference makes it ours.
        unsafe {
            let raw = lc::EVP_PKEY_get0_RSA(pkey.raw());
            if raw.is_null() {
                super::clear_errors();
                return Err(Failed);
            }
            lc::RSA_up_ref(raw);
            Ok(Self(RsaPtr::new(raw)?))
        }
    }
}

fn marshal(pkey: &PkeyPtr) -> Lc<Zeroizing<Vec<u8>>> {
    // SAFETY: the builder is initialised before use and cleaned up or finished once; what it gives is copied,
    // wiped and freed.
    unsafe {
        let mut cbb: lc::CBB = std::mem::zeroed();
        ok(lc::CBB_init(&raw mut cbb, 2048))?;
        if lc::EVP_marshal_private_key(&raw mut cbb, pkey.raw()) != 1 {
            lc::CBB_cleanup(&raw mut cbb);
            super::clear_errors();
            return Err(Failed);
        }
        let (mut data, mut len) = (std::ptr::null_mut(), 0);
        ok(lc::CBB_finish(&raw mut cbb, &raw mut data, &raw mut len))?;
        let out = Zeroizing::new(std::slice::from_raw_parts(data, len).to_vec());
        lc::OPENSSL_cleanse(data.cast(), len);
        lc::OPENSSL_free(data.cast());
        Ok(out)
    }
}

fn parse(der: &[u8]) -> Lc<PkeyPtr> {
    // SAFETY: the reader borrows `der` for the one call.
    unsafe {
        let mut cbs: lc::CBS = std::mem::zeroed();
        lc::CBS_init(&raw mut cbs, der.as_ptr(), der.len());
        PkeyPtr::new(lc::EVP_parse_private_key(&raw mut cbs))
    }
}

/// A named curve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::hsm) enum Curve {
    P192,
    P224,
    P256,
    P384,
    P521,
    K256,
}

impl Curve {
    /// Every curve.
    pub(in crate::hsm) const ALL: [Self; 6] =
        [Self::P192, Self::P224, Self::P256, Self::P384, Self::P521, Self::K256];

    fn nid(self) -> i32 {
        match self {
            Self::P192 => lc::NID_X9_62_prime192v1,
            Self::P224 => lc::NID_secp224r1,
            Self::P256 => lc::NID_X9_62_prime256v1,
            Self::P384 => lc::NID_secp384r1,
            Self::P521 => lc::NID_secp521r1,
            Self::K256 => lc::NID_secp256k1,
        }
    }

    /// Bytes of a coordinate, and of half a signature.
    pub(in crate::hsm) fn len(self) -> usize {
        match self {
            Self::P192 => 24,
            Self::P224 => 28,
            Self::P256 | Self::K256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    /// The DER of its object identifier: CKA_EC_PARAMS.
    pub(in crate::hsm) fn oid(self) -> &'static [u8] {
        match self {
            Self::P192 => &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 1],
            Self::P224 => &[6, 5, 0x2b, 0x81, 4, 0, 0x21],
            Self::P256 => &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7],
            Self::P384 => &[6, 5, 0x2b, 0x81, 4, 0, 0x22],
            Self::P521 => &[6, 5, 0x2b, 0x81, 4, 0, 0x23],
            Self::K256 => &[6, 5, 0x2b, 0x81, 4, 0, 0x0a],
        }
    }
}

owner!(EcPtr, lc::EC_KEY, lc::EC_KEY_free);
owner!(Point, lc::EC_POINT, lc::EC_POINT_free);
owner!(EcSig, lc::ECDSA_SIG, lc::ECDSA_SIG_free);

owner!(Group, lc::EC_GROUP, lc::EC_GROUP_free);

/// An empty key on P-192 (FIPS 186-4 D.1.2.1), which the library does not name any more: for software of old.
fn p192() -> Lc<EcPtr> {
    const P: [u8; 24] =
        *b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff\xff\xff\xff\xff\xff";
    const A: [u8; 24] =
        *b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff\xff\xff\xff\xff\xfc";
    const B: [u8; 24] =
        *b"\x64\x21\x05\x19\xe5\x9c\x80\xe7\x0f\xa7\xe9\xab\x72\x24\x30\x49\xfe\xb8\xde\xec\xc1\x46\xb9\xb1";
    const G: [u8; 49] = *b"\x04\x18\x8d\xa8\x0e\xb0\x30\x90\xf6\x7c\xbf\x20\xeb\x43\xa1\x88\x00\xf4\xff\x0a\xfd\x82\xff\x10\x12\
        \x07\x19\x2b\x95\xff\xc8\xda\x78\x63\x10\x11\xed\x6b\x24\xcd\xd5\x73\xf9\x77\xa1\x1e\x79\x48\x11";
    const N: [u8; 24] =
        *b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x99\xde\xf8\x36\x14\x6b\xc9\xb1\xb4\xd2\x28\x31";
    let [p, a, b, n, one] = [&P[..], &A, &B, &N, &[1]].map(Number::of);
    // SAFETY: group and point are owned here; the numbers are only read, the key copies the group.
    unsafe {
        let group =
            Group::new(lc::EC_GROUP_new_curve_GFp(p?.raw(), a?.raw(), b?.raw(), std::ptr::null_mut()))?;
        let at = Point::new(lc::EC_POINT_new(group.raw()))?;
        ok(lc::EC_POINT_oct2point(group.raw(), at.raw(), G.as_ptr(), G.len(), std::ptr::null_mut()))?;
        ok(lc::EC_GROUP_set_generator(group.raw(), at.raw(), n?.raw(), one?.raw()))?;
        let key = EcPtr::new(lc::EC_KEY_new())?;
        ok(lc::EC_KEY_set_group(key.raw(), group.raw()))?;
        Ok(key)
    }
}

/// A key on a named curve, public or private.
pub(in crate::hsm) struct Ec {
    key: EcPtr,
    curve: Curve,
}

// SAFETY: a finished key is only read.
unsafe impl Sync for Ec {}

impl Ec {
    fn empty(curve: Curve) -> Lc<EcPtr> {
        if curve == Curve::P192 {
            return p192();
        }
        // SAFETY: a fresh key, owned from here on.
        EcPtr::new(unsafe { lc::EC_KEY_new_by_curve_name(curve.nid()) })
    }

    pub(in crate::hsm) fn generate(curve: Curve) -> Lc<Self> {
        let key = Self::empty(curve)?;
        // SAFETY: a live key with a group.
        ok(unsafe { lc::EC_KEY_generate_key(key.raw()) })?;
        Ok(Self { key, curve })
    }

    /// A public key from its point (X9.62); the point is checked to be on the curve.
    pub(in crate::hsm) fn public(curve: Curve, point: &[u8]) -> Lc<Self> {
        let key = Self::empty(curve)?;
        // SAFETY: the group belongs to the live key; the point is owned here and copied by the key.
        unsafe {
            let group = lc::EC_KEY_get0_group(key.raw());
            let at = Point::new(lc::EC_POINT_new(group))?;
            ok(lc::EC_POINT_oct2point(group, at.raw(), point.as_ptr(), point.len(), std::ptr::null_mut()))?;
            ok(lc::EC_KEY_set_public_key(key.raw(), at.raw()))?;
            ok(lc::EC_KEY_check_key(key.raw()))?;
        }
        Ok(Self { key, curve })
    }

    /// A private key from its number; the point is computed.
    pub(in crate::hsm) fn private(curve: Curve, scalar: &[u8]) -> Lc<Self> {
        let key = Self::empty(curve)?;
        let scalar = Number::of(scalar)?;
        // SAFETY: as for `public`; the number is copied by the key.
        unsafe {
            let group = lc::EC_KEY_get0_group(key.raw());
            ok(lc::EC_KEY_set_private_key(key.raw(), scalar.raw()))?;
            let at = Point::new(lc::EC_POINT_new(group))?;
            let null = std::ptr::null();
            ok(lc::EC_POINT_mul(group, at.raw(), scalar.raw(), null, null.cast(), std::ptr::null_mut()))?;
            ok(lc::EC_KEY_set_public_key(key.raw(), at.raw()))?;
            ok(lc::EC_KEY_check_key(key.raw()))?;
        }
        Ok(Self { key, curve })
    }

    pub(in crate::hsm) fn curve(&self) -> Curve {
        self.curve
    }

    /// The uncompressed point.
    pub(in crate::hsm) fn point(&self) -> Lc<Vec<u8>> {
        let mut out = vec![0; 1 + 2 * self.curve.len()];
        // SAFETY: group and point belong to the live key; the buffer has the length of the uncompressed form.
        let len = unsafe {
            lc::EC_POINT_point2oct(
                lc::EC_KEY_get0_group(self.key.raw()),
                lc::EC_KEY_get0_public_key(self.key.raw()),
                lc::point_conversion_form_t::POINT_CONVERSION_UNCOMPRESSED,
                out.as_mut_ptr(),
                out.len(),
                std::ptr::null_mut(),
            )
        };
        if len == out.len() { Ok(out) } else { Err(Failed) }
    }

    /// The private number.
    pub(in crate::hsm) fn scalar(&self) -> Lc<Zeroizing<Vec<u8>>> {
        // SAFETY: the number belongs to the live key, or is null.
        unsafe {
            let raw = lc::EC_KEY_get0_private_key(self.key.raw());
            if raw.is_null() { Err(Failed) } else { padded(raw, self.curve.len()) }
        }
    }

    /// ECDSA over a digest: r and s.
    pub(in crate::hsm) fn sign(&self, digest: &[u8]) -> Lc<Vec<u8>> {
        let (mut r, mut s) = (std::ptr::null(), std::ptr::null());
        // SAFETY: the signature is owned here while its numbers are read.
        unsafe {
            let sig = EcSig::new(lc::ECDSA_do_sign(digest.as_ptr(), digest.len(), self.key.raw()))?;
            lc::ECDSA_SIG_get0(sig.raw(), &raw mut r, &raw mut s);
            let mut out = padded(r, self.curve.len())?.to_vec();
            out.extend_from_slice(&padded(s, self.curve.len())?);
            Ok(out)
        }
    }

    pub(in crate::hsm) fn verify(&self, digest: &[u8], signature: &[u8]) -> Lc<()> {
        if signature.len() != 2 * self.curve.len() {
            return Err(Failed);
        }
        let (r, s) = signature.split_at(self.curve.len());
        let (r, s) = (Number::of(r)?, Number::of(s)?);
        // SAFETY: the signature takes over both numbers where the call succeeds, which it does for non-null ones.
        unsafe {
            let sig = EcSig::new(lc::ECDSA_SIG_new())?;
            ok(lc::ECDSA_SIG_set0(sig.raw(), r.give(), s.give()))?;
            ok(lc::ECDSA_do_verify(digest.as_ptr(), digest.len(), sig.raw(), self.key.raw()))
        }
    }

    /// The x coordinate of the shared point.
    pub(in crate::hsm) fn agree(&self, peer: &[u8]) -> Lc<Zeroizing<Vec<u8>>> {
        let peer = Self::public(self.curve, peer)?;
        let mut out = Zeroizing::new(vec![0; self.curve.len()]);
        // SAFETY: the point belongs to the live peer key; the buffer has a coordinate's length.
        let len = unsafe {
            lc::ECDH_compute_key(
                out.as_mut_ptr().cast(),
                out.len(),
                lc::EC_KEY_get0_public_key(peer.key.raw()),
                self.key.raw(),
                None,
            )
        };
        if usize::try_from(len) == Ok(out.len()) { Ok(out) } else { Err(Failed) }
    }

    /// PKCS#8 of a private key.
    pub(in crate::hsm) fn pkcs8(&self) -> Lc<Zeroizing<Vec<u8>>> {
        // SAFETY: a fresh key object that shares ours.
        unsafe {
            let pkey = PkeyPtr::new(lc::EVP_PKEY_new())?;
            ok(lc::EVP_PKEY_set1_EC_KEY(pkey.raw(), self.key.raw()))?;
            marshal(&pkey)
        }
    }

    /// A private key from PKCS#8.
    pub(in crate::hsm) fn from_pkcs8(der: &[u8]) -> Lc<Self> {
        let pkey = parse(der)?;
        // SAFETY: the getter gives the key that `pkey` owns, or null; its numbers are copied.
        unsafe {
            let raw = lc::EVP_PKEY_get0_EC_KEY(pkey.raw());
            if raw.is_null() {
                super::clear_errors();
                return Err(Failed);
            }
            let nid = lc::EC_GROUP_get_curve_name(lc::EC_KEY_get0_group(raw));
            let curve = Curve::ALL.into_iter().find(|c| c.nid() == nid).ok_or(Failed)?;
            let scalar = padded(lc::EC_KEY_get0_private_key(raw), curve.len())?;
            Self::private(curve, &scalar)
        }
    }
}
