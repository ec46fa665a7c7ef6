//! `crypto sign`: signatures for the command line, which may bring the approvals that a key asks for.

use cryptoki_sys::*;
use zeroize::Zeroizing;

use super::error::HsmError;
use super::manager::Manager;
use super::wire::{Bytes, Mech, Op, Params, Request};

/// Mechanisms of `crypto sign`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signature {
    /// RSASSA-PKCS1-v1_5.
    RsaPkcs,
    /// RSASSA-PSS, with a salt as long as the digest.
    RsaPss,
    /// ECDSA.
    Ecdsa,
}

/// Digests of `crypto sign`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hash {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Signature {
    fn mechanism(self, hash: Hash) -> (u64, Params) {
        let row = |pkcs, pss, ecdsa, md, mgf, salt| match self {
            Self::RsaPkcs => (pkcs, Params::None {}),
            Self::RsaPss => (pss, Params::Pss { hash: md, mgf, salt }),
            Self::Ecdsa => (ecdsa, Params::None {}),
        };
        match hash {
            Hash::Sha256 => {
                let (pkcs, pss) = (CKM_SHA256_RSA_PKCS, CKM_SHA256_RSA_PKCS_PSS);
                row(pkcs, pss, CKM_ECDSA_SHA256, CKM_SHA256, CKG_MGF1_SHA256, 32)
            }
            Hash::Sha384 => {
                let (pkcs, pss) = (CKM_SHA384_RSA_PKCS, CKM_SHA384_RSA_PKCS_PSS);
                row(pkcs, pss, CKM_ECDSA_SHA384, CKM_SHA384, CKG_MGF1_SHA384, 48)
            }
            Hash::Sha512 => {
                let (pkcs, pss) = (CKM_SHA512_RSA_PKCS, CKM_SHA512_RSA_PKCS_PSS);
                row(pkcs, pss, CKM_ECDSA_SHA512, CKM_SHA512, CKG_MGF1_SHA512, 64)
            }
        }
    }
}

impl Manager {
    /// `crypto sign`: a signature over data that the HSM digests.
    ///
    /// # Errors
    /// As for [`Manager::login`].
    pub fn sign(&self, key: u64, with: Signature, hash: Hash, data: &[u8]) -> Result<Vec<u8>, HsmError> {
        let (kind, params) = with.mechanism(hash);
        let mech = Mech { kind, params };
        let (data, aux) = (Zeroizing::new(data.to_vec()), Zeroizing::new(Vec::new()));
        let made: Bytes =
            self.session(|s| self.ask(&Request::Once { s, op: Op::Sign, mech, key, data, aux }))?;
        Ok(made.to_vec())
    }
}
