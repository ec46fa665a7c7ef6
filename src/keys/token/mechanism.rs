//! The mechanisms that wrap a key, and what they give: a blob that says how it was made.
//!
//! ```text
//!   0  form (1)     1 byte
//!   1  mechanism    1 byte     `Kind`
//!   2  IV           12 bytes, AES-GCM only
//!   …  what the token gave
//! ```
//! AES-GCM takes the canonical context as associated data. The others wrap 64 bytes, the key and the SHA-256 of the
//! context behind it, so that a blob of another file does not open either.

use sha2::{Digest as _, Sha256};

use crate::crypto::Secret;

const FORM: u8 = 1;
/// Bytes of AES-GCM's IV.
pub(super) const IV: usize = 12;
/// Key and tag.
const GCM_TEXT: usize = 48;
/// A key and the digest of its context.
pub(super) const PAYLOAD: usize = 64;
/// RSA with 1,024 to 16,384 bits.
const RSA_TEXT: std::ops::RangeInclusive<usize> = 128..=2048;

/// How a token wraps. The numbers are on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// CKM_AES_GCM with an IV of ours.
    Gcm = 1,
    /// CKM_AES_GCM with an IV that the token makes, as CloudHSM does.
    GcmTokenIv = 2,
    /// CKM_AES_KEY_WRAP, RFC 3394.
    KeyWrap = 3,
    /// CKM_AES_KEY_WRAP_PAD where it is RFC 5649.
    KeyWrapPad = 4,
    /// CloudHSM's key wrap without padding, RFC 3394.
    CloudNoPad = 5,
    /// CloudHSM's key wrap with zero padding, RFC 5649.
    CloudZeroPad = 6,
    /// RSA-OAEP with SHA-256.
    OaepSha256 = 7,
    /// RSA-OAEP with SHA-1.
    OaepSha1 = 8,
}

impl Kind {
    /// All, those with associated data first.
    pub(super) const ALL: [Self; 8] = [
        Self::Gcm,
        Self::GcmTokenIv,
        Self::KeyWrap,
        Self::KeyWrapPad,
        Self::CloudNoPad,
        Self::CloudZeroPad,
        Self::OaepSha256,
        Self::OaepSha1,
    ];

    /// As a URI spells it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gcm => "aes-gcm",
            Self::GcmTokenIv => "aes-gcm-token-iv",
            Self::KeyWrap => "aes-key-wrap",
            Self::KeyWrapPad => "aes-key-wrap-pad",
            Self::CloudNoPad => "cloudhsm-aes-key-wrap-no-pad",
            Self::CloudZeroPad => "cloudhsm-aes-key-wrap-zero-pad",
            Self::OaepSha256 => "rsa-oaep-sha256",
            Self::OaepSha1 => "rsa-oaep-sha1",
        }
    }

    pub(super) fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    pub(super) fn by_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    pub(super) fn code(self) -> u8 {
        self as u8
    }

    /// Whether the key is an RSA key: then who knows its public half can wrap.
    pub(super) fn is_rsa(self) -> bool {
        matches!(self, Self::OaepSha256 | Self::OaepSha1)
    }

    #[cfg(test)]
    fn is_gcm(self) -> bool {
        matches!(self, Self::Gcm | Self::GcmTokenIv)
    }

    /// Whether a token's output has a length that this mechanism gives.
    pub(super) fn fits(self, len: usize) -> bool {
        match self {
            Self::Gcm | Self::GcmTokenIv => len == IV + GCM_TEXT,
            Self::KeyWrap | Self::KeyWrapPad | Self::CloudNoPad | Self::CloudZeroPad => len == PAYLOAD + 8,
            Self::OaepSha256 | Self::OaepSha1 => RSA_TEXT.contains(&len),
        }
    }
}

/// A blob of what a token gave.
pub(super) fn encode(kind: Kind, text: &[u8]) -> Vec<u8> {
    [&[FORM, kind.code()], text].concat()
}

/// What a token gave, with the IV of AES-GCM in front; `None` for bytes that no wrap of this kind gives, which a module
/// must never see. The kind is the key's own and not the blob's choice: who may wrap in a weaker way gains nothing.
pub(super) fn decode(kind: Kind, blob: &[u8]) -> Option<&[u8]> {
    let (&[form, code], text) = blob.split_first_chunk()?;
    (form == FORM && code == kind.code() && kind.fits(text.len())).then_some(text)
}

/// What is wrapped where the mechanism has no associated data.
pub(super) fn payload(key: &[u8], context: &[u8]) -> Secret<PAYLOAD> {
    let mut payload = Secret::zeroed();
    let (front, back) = payload.expose_mut().split_at_mut(32);
    front.copy_from_slice(key);
    back.copy_from_slice(&Sha256::digest(context));
    payload
}

/// The key of a payload; `None` where it belongs to another context.
pub(super) fn open_payload(payload: &[u8], context: &[u8]) -> Option<Secret<32>> {
    let (key, digest) = payload.split_at_checked(32)?;
    (digest == Sha256::digest(context).as_slice()).then(|| Secret::from_slice(key))?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blobs come back; what is cut, longer, of another form or kind is none.
    #[test]
    fn blobs_are_exact() {
        for kind in Kind::ALL {
            let len = if kind.is_gcm() {
                60
            } else if kind.is_rsa() {
                256
            } else {
                72
            };
            let text = vec![7; len];
            let blob = encode(kind, &text);
            for other in Kind::ALL {
                assert_eq!(decode(other, &blob), (other == kind).then_some(&text[..]), "{kind:?} {other:?}");
            }
            let mut bad = blob.clone();
            bad[0] = 2;
            assert_eq!(decode(kind, &bad), None);
            let shortest = if kind.is_rsa() { 130 } else { blob.len() };
            for end in 0..shortest {
                assert_eq!(decode(kind, &blob[..end]), None, "{kind:?} cut at {end}");
            }
            if !kind.is_rsa() {
                assert_eq!(decode(kind, &[&blob[..], &[0]].concat()), None);
            }
            assert_eq!(Kind::by_name(kind.name()), Some(kind));
        }
    }

    /// A payload opens in its own context only.
    #[test]
    fn payloads_are_bound() {
        let payload = payload(&[9; 32], b"file a");
        assert_eq!(open_payload(payload.expose(), b"file a").unwrap().expose(), &[9; 32]);
        assert!(open_payload(payload.expose(), b"file b").is_none());
        assert!(open_payload(&payload.expose()[..40], b"file a").is_none());
    }
}
