//! EdDSA (RFC 8032): Ed25519 by AWS-LC, Ed448 by RustCrypto's `ed448-goldilocks`, since AWS-LC has none.
#![allow(unsafe_code)]

use aws_lc_sys as lc;
use ed448_goldilocks::{PreHash, Signature, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use super::{Failed, Lc, ok, shake256};

/// The longest context (RFC 8032 5.1, 5.2).
const MAX_CONTEXT: usize = 255;

/// Which of the two curves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::hsm) enum EdCurve {
    Ed25519,
    Ed448,
}

impl EdCurve {
    /// Bytes of a seed, and of a public key.
    pub(in crate::hsm) fn len(self) -> usize {
        match self {
            Self::Ed25519 => 32,
            Self::Ed448 => 57,
        }
    }
}

/// How a message is signed: as it is, with a context, or (`prehash`) its digest.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(in crate::hsm) struct EdMode {
    pub(in crate::hsm) prehash: bool,
    pub(in crate::hsm) context: Vec<u8>,
}

/// A key: a seed, or only its public half.
pub(in crate::hsm) struct Edwards {
    curve: EdCurve,
    public: Vec<u8>,
    /// Ed25519: seed and public key; Ed448: the seed; empty for a public key.
    private: Zeroizing<Vec<u8>>,
}

/// SHAKE256 of a message that was computed before.
struct Hashed([u8; 64]);

impl PreHash for Hashed {
    fn fill_bytes(&mut self, out: &mut [u8]) {
        out.copy_from_slice(&self.0);
    }
}

impl Edwards {
    pub(in crate::hsm) fn from_seed(curve: EdCurve, seed: &[u8]) -> Lc<Self> {
        if seed.len() != curve.len() {
            return Err(Failed);
        }
        if curve == EdCurve::Ed448 {
            let key = SigningKey::try_from(seed).map_err(|_| Failed)?;
            let public = key.verifying_key().to_bytes().to_vec();
            return Ok(Self { curve, public, private: Zeroizing::new(seed.to_vec()) });
        }
        let mut public = vec![0; 32];
        let mut private = Zeroizing::new(vec![0; 64]);
        // SAFETY: the three buffers have the lengths that the function's own declaration names.
        unsafe { lc::ED25519_keypair_from_seed(public.as_mut_ptr(), private.as_mut_ptr(), seed.as_ptr()) };
        Ok(Self { curve, public, private })
    }

    pub(in crate::hsm) fn from_public(curve: EdCurve, public: &[u8]) -> Lc<Self> {
        if public.len() != curve.len() {
            return Err(Failed);
        }
        Ok(Self { curve, public: public.to_vec(), private: Zeroizing::new(Vec::new()) })
    }

    pub(in crate::hsm) fn public(&self) -> &[u8] {
        &self.public
    }

    /// Bytes of a signature.
    pub(in crate::hsm) fn signature_len(&self) -> usize {
        2 * self.curve.len()
    }

    pub(in crate::hsm) fn sign(&self, message: &[u8], mode: &EdMode) -> Lc<Vec<u8>> {
        let context = &mode.context;
        if self.private.is_empty() || context.len() > MAX_CONTEXT {
            return Err(Failed);
        }
        if self.curve == EdCurve::Ed448 {
            let key = SigningKey::try_from(self.private.as_slice()).map_err(|_| Failed)?;
            let signature = if mode.prehash {
                key.sign_prehashed(Some(context), Hashed(shake256(message)?))
            } else {
                key.sign_ctx(context, message)
            };
            return signature.map(|s| s.to_bytes().to_vec()).map_err(|_| Failed);
        }
        let (m, len, key, c) = (message.as_ptr(), message.len(), self.private.as_ptr(), context.as_ptr());
        let mut out = vec![0; 64];
        // SAFETY: a signature has 64 bytes, a private key too; message and context are valid slices.
        ok(unsafe {
            match (mode.prehash, context.is_empty()) {
                (true, _) => lc::ED25519ph_sign(out.as_mut_ptr(), m, len, key, c, context.len()),
                (false, true) => lc::ED25519_sign(out.as_mut_ptr(), m, len, key),
                (false, false) => lc::ED25519ctx_sign(out.as_mut_ptr(), m, len, key, c, context.len()),
            }
        })?;
        Ok(out)
    }

    pub(in crate::hsm) fn verify(&self, message: &[u8], mode: &EdMode, signature: &[u8]) -> Lc<()> {
        let context = &mode.context;
        if signature.len() != self.signature_len() || context.len() > MAX_CONTEXT {
            return Err(Failed);
        }
        if self.curve == EdCurve::Ed448 {
            let public = self.public.as_slice().try_into().map_err(|_| Failed)?;
            let key = VerifyingKey::from_bytes(public).map_err(|_| Failed)?;
            let signature = Signature::try_from(signature).map_err(|_| Failed)?;
            let verified = if mode.prehash {
                key.verify_prehashed(&signature, Some(context), Hashed(shake256(message)?))
            } else {
                key.verify_ctx(&signature, context, message)
            };
            return verified.map_err(|_| Failed);
        }
        let (m, len, c) = (message.as_ptr(), message.len(), context.as_ptr());
        let (s, key) = (signature.as_ptr(), self.public.as_ptr());
        // SAFETY: a signature has 64 bytes, a public key 32; message and context are valid slices.
        ok(unsafe {
            match (mode.prehash, context.is_empty()) {
                (true, _) => lc::ED25519ph_verify(m, len, s, key, c, context.len()),
                (false, true) => lc::ED25519_verify(m, len, s, key),
                (false, false) => lc::ED25519ctx_verify(m, len, s, key, c, context.len()),
            }
        })
    }
}
