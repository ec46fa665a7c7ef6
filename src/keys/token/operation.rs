//! Wrapping and unwrapping by a token, one mechanism after the other, and finding out which of them it has.

use cryptoki::error::Error;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::vendor_defined::VendorDefinedMechanism;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use zeroize::{Zeroize as _, Zeroizing};

use super::device::{Key, Trouble};
use super::mechanism::{IV, Kind, open_payload, payload};
use crate::crypto::{Secret, random};

/// Bits of AES-GCM's tag.
const TAG_BITS: u64 = 128;
/// Mechanisms of vendors begin here.
const VENDOR: u64 = 0x8000_0000;
/// CloudHSM's key wraps: no padding, and zero padding (its user guide, "Supported mechanisms").
const CLOUD_NO_PAD: u64 = VENDOR | 0x216d;
const CLOUD_ZERO_PAD: u64 = VENDOR | 0x216f;

/// The best mechanism that works with a key: tried out, not looked up, since tokens list what they refuse.
pub(super) fn probe(session: &Session, key: &Key) -> Result<Kind, Trouble> {
    let mut reasons = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| kind.is_rsa() == key.is_rsa) {
        match try_out(session, key, kind) {
            Ok(()) => return Ok(kind),
            Err(Trouble::Lost(fault)) => return Err(Trouble::Lost(fault)),
            Err(Trouble::Final(fault) | Trouble::Vague(fault)) => {
                reasons.push(format!("{}: {}", kind.name(), fault.text));
            }
        }
    }
    Err(Trouble::denied(format!("no mechanism of this program works with the key: {}", reasons.join("; "))))
}

/// Wraps a random key and opens it again, in its context and in another one.
pub(super) fn try_out(session: &Session, key: &Key, kind: Kind) -> Result<(), Trouble> {
    let plain = Secret::<32>::random();
    let text = wrap(session, key, kind, &plain, b"context")?;
    let back = unwrap(session, key.handle, kind, &text, b"context")?;
    if back.is_none_or(|back| back.expose() != plain.expose()) {
        return Err(Trouble::denied("what it wraps does not come back"));
    }
    if matches!(unwrap(session, key.handle, kind, &text, b"other"), Ok(Some(_))) {
        return Err(Trouble::denied("it opens in another context"));
    }
    Ok(())
}

/// IV where there is one, and ciphertext.
pub(super) fn wrap(
    session: &Session,
    key: &Key,
    kind: Kind,
    plain: &Secret<32>,
    context: &[u8],
) -> Result<Vec<u8>, Trouble> {
    let text = match kind {
        Kind::Gcm | Kind::GcmTokenIv => {
            let given: [u8; IV] = if kind == Kind::Gcm { random::array() } else { [0; IV] };
            let mut iv = given;
            let params = GcmParams::new(&mut iv, context, TAG_BITS.into())?;
            let text = session.encrypt(&Mechanism::AesGcm(params), key.handle, plain.expose())?;
            match kind {
                Kind::Gcm if iv != given => {
                    return Err(Trouble::denied("the token takes no IV, it makes its own"));
                }
                // A token that took the zeros would use one IV for all.
                Kind::GcmTokenIv if iv == given => return Err(Trouble::denied("the token makes no IV")),
                _ => [&iv[..], &text].concat(),
            }
        }
        Kind::KeyWrap | Kind::KeyWrapPad | Kind::CloudNoPad | Kind::CloudZeroPad => {
            wrap_object(session, key.handle, &key_wrap(kind)?, payload(plain.expose(), context).expose())?
        }
        Kind::OaepSha256 | Kind::OaepSha1 => {
            let public = public_half(session, key)?;
            session.encrypt(&oaep(kind), public, payload(plain.expose(), context).expose())?
        }
    };
    if !kind.fits(text.len()) {
        return Err(Trouble::denied(format!(
            "it gives {} bytes, which {} does not",
            text.len(),
            kind.name()
        )));
    }
    Ok(text)
}

/// The key; `None` where it belongs to another context.
pub(super) fn unwrap(
    session: &Session,
    handle: ObjectHandle,
    kind: Kind,
    text: &[u8],
    context: &[u8],
) -> Result<Option<Secret<32>>, Trouble> {
    match kind {
        Kind::Gcm | Kind::GcmTokenIv => {
            let Some((iv, text)) = text.split_first_chunk::<IV>() else { return Ok(None) };
            let mut iv = *iv;
            let params = GcmParams::new(&mut iv, context, TAG_BITS.into())?;
            let plain = Zeroizing::new(session.decrypt(&Mechanism::AesGcm(params), handle, text)?);
            Ok(Secret::from_slice(&plain))
        }
        Kind::KeyWrap | Kind::KeyWrapPad | Kind::CloudNoPad | Kind::CloudZeroPad => {
            let plain = unwrap_object(session, handle, &key_wrap(kind)?, text)?;
            Ok(open_payload(&plain, context))
        }
        Kind::OaepSha256 | Kind::OaepSha1 => {
            let plain = Zeroizing::new(session.decrypt(&oaep(kind), handle, text)?);
            Ok(open_payload(&plain, context))
        }
    }
}

fn key_wrap(kind: Kind) -> Result<Mechanism<'static>, Error> {
    let vendor = |number| {
        let number = MechanismType::new_vendor_defined(number)?;
        Ok(Mechanism::VendorDefined(VendorDefinedMechanism::new::<()>(number, None)))
    };
    match kind {
        Kind::CloudNoPad => vendor(CLOUD_NO_PAD),
        Kind::CloudZeroPad => vendor(CLOUD_ZERO_PAD),
        Kind::KeyWrapPad => Ok(Mechanism::AesKeyWrapPad),
        _ => Ok(Mechanism::AesKeyWrap),
    }
}

fn oaep(kind: Kind) -> Mechanism<'static> {
    let (hash, mgf) = match kind {
        Kind::OaepSha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
        _ => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
    };
    Mechanism::RsaPkcsOaep(PkcsOaepParams::new(hash, mgf, PkcsOaepSource::empty()))
}

/// Wraps bytes as the value of a session object, which is destroyed at once.
fn wrap_object(
    session: &Session,
    key: ObjectHandle,
    mechanism: &Mechanism<'_>,
    plain: &[u8],
) -> Result<Vec<u8>, Trouble> {
    let mut template = open_secret();
    template.push(Attribute::Value(plain.to_vec()));
    let object = session.create_object(&template);
    wipe(&mut template);
    let object = object?;
    let wrapped = session.wrap_key(mechanism, key, object);
    session.destroy_object(object)?;
    Ok(wrapped?)
}

/// Unwraps into a session object, takes its value, and destroys it.
fn unwrap_object(
    session: &Session,
    key: ObjectHandle,
    mechanism: &Mechanism<'_>,
    text: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Trouble> {
    let object = session.unwrap_key(mechanism, key, text, &open_secret())?;
    let value = session.get_attributes(object, &[AttributeType::Value]);
    session.destroy_object(object)?;
    for attribute in value? {
        if let Attribute::Value(bytes) = attribute {
            return Ok(Zeroizing::new(bytes));
        }
    }
    Err(Trouble::denied("the token does not give the value of a key that it unwrapped to be extractable"))
}

/// A session object whose value can be read.
fn open_secret() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(false),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
}

fn wipe(template: &mut [Attribute]) {
    for attribute in template {
        if let Attribute::Value(bytes) = attribute {
            bytes.zeroize();
        }
    }
}

/// The public key that belongs to a private one: of the same id, else of the same modulus.
fn public_half(session: &Session, key: &Key) -> Result<ObjectHandle, Trouble> {
    let mut template = vec![Attribute::Class(ObjectClass::PUBLIC_KEY)];
    template.extend(session.get_attributes(key.handle, &[AttributeType::Modulus])?);
    let found = session.find_objects(&template)?;
    found.first().copied().ok_or_else(|| Trouble::denied("the token has no public key that belongs to it"))
}
