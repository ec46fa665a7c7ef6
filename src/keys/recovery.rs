//! A recovery key: kept on paper, opens the vault when the KMS is gone.
//!
//! X25519 (RFC 7748): the volume config holds the public half, which is all that wrapping needs; the secret half is
//! printed once. A wrap is 80 bytes: an ephemeral public key (32), then AES-256-GCM-SIV of the key under
//! `HKDF(shared secret, salt = ephemeral || public, "envelopefs/v1/recovery")`, nonce zero (such a key is used once),
//! associated data the canonical encryption context.

use std::sync::Arc;

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{KeyError, KeyInfo, Provider, WrapContext};
use crate::crypto::{DataKey, SealKey, Secret, derive};
use crate::format::header::Wrapped;
use crate::kms;

/// Begins the URI of a recovery key; then its public half, base64url.
pub(super) const PREFIX: &str = "recovery:";
/// Begins the text on paper.
const TEXT_PREFIX: &str = "EFS1";
/// Douglas Crockford's base 32: no I, L, O, U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Characters between dashes.
const GROUP: usize = 4;
/// Bytes of the checksum: a slip of the pen is noticed, but for one in 16 million.
const CHECK: usize = 3;
const NONCE: [u8; 12] = [0; 12];

/// The secret half.
#[derive(Debug)]
pub struct RecoveryKey(Secret<32>);

/// Why text is no recovery key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryTextError {
    /// Another length or beginning.
    #[error("a recovery key is EFS1 and 14 groups of 4 letters and digits")]
    Form,
    /// A letter that none has.
    #[error("character {0} of the recovery key is none that one has")]
    Character(usize),
    /// The checksum.
    #[error("the recovery key has a slip in it: its checksum does not fit")]
    Checksum,
}

impl RecoveryKey {
    /// A new one.
    pub fn random() -> Self {
        Self(Secret::random())
    }

    /// As it is written on paper.
    pub fn text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; 32 + CHECK]);
        bytes[..32].copy_from_slice(self.0.expose());
        bytes[32..].copy_from_slice(&checksum(self.0.expose()));
        let mut text = Zeroizing::new(String::with_capacity(96));
        text.push_str(TEXT_PREFIX);
        for (at, chunk) in bytes.chunks(5).enumerate() {
            let word = chunk.iter().fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
            for digit in 0..8 {
                if (at * 8 + digit).is_multiple_of(GROUP) {
                    text.push('-');
                }
                let value = word >> (35 - 5 * digit) & 31;
                text.push(char::from(ALPHABET[usize::try_from(value).expect("five bits")]));
            }
        }
        text
    }

    /// Reads what was written; in either case, with dashes, blanks or none, O for 0, I or L for 1.
    pub fn parse(text: &str) -> Result<Self, RecoveryTextError> {
        let mut digits = Zeroizing::new(Vec::with_capacity(64));
        for (at, c) in text.trim().char_indices().filter(|(_, c)| !matches!(c, '-' | ' ' | '\t')) {
            let c = match c.to_ascii_uppercase() {
                'O' => '0',
                'I' | 'L' => '1',
                other => other,
            };
            let value = ALPHABET.iter().position(|a| char::from(*a) == c);
            digits
                .push(value.and_then(|v| u8::try_from(v).ok()).ok_or(RecoveryTextError::Character(at + 1))?);
        }
        let prefix =
            TEXT_PREFIX.bytes().map(|b| ALPHABET.iter().position(|a| *a == b).expect("of the alphabet"));
        let mut rest = digits.iter();
        if !prefix.eq(rest.by_ref().take(TEXT_PREFIX.len()).map(|d| usize::from(*d))) || rest.len() != 56 {
            return Err(RecoveryTextError::Form);
        }
        let mut bytes = Zeroizing::new([0; 32 + CHECK]);
        for (chunk, digits) in bytes.chunks_mut(5).zip(rest.as_slice().chunks(8)) {
            let word = digits.iter().fold(0_u64, |word, digit| word << 5 | u64::from(*digit));
            chunk.copy_from_slice(&word.to_be_bytes()[3..]);
        }
        let secret = Secret::from_slice(&bytes[..32]).ok_or(RecoveryTextError::Form)?;
        if checksum(secret.expose()) == bytes[32..] {
            Ok(Self(secret))
        } else {
            Err(RecoveryTextError::Checksum)
        }
    }

    /// The URI of the wrapping key: `recovery:` and the public half.
    pub fn uri(&self) -> Result<String, KeyError> {
        Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(self.public()?)))
    }

    fn private(&self) -> Result<PrivateKey, KeyError> {
        PrivateKey::from_private_key(&X25519, self.0.expose()).map_err(|_| unusable())
    }

    fn public(&self) -> Result<[u8; 32], KeyError> {
        public(&self.private()?)
    }
}

fn public(key: &PrivateKey) -> Result<[u8; 32], KeyError> {
    let public = key.compute_public_key().map_err(|_| unusable())?;
    public.as_ref().try_into().map_err(|_| unusable())
}

fn unusable() -> KeyError {
    KeyError::Denied("the cryptographic library refuses the recovery key".into())
}

fn checksum(secret: &[u8; 32]) -> [u8; CHECK] {
    let hash = Sha256::new().chain_update("envelopefs recovery key").chain_update(secret).finalize();
    std::array::from_fn(|i| hash[i])
}

/// Wraps for a recovery key; unwraps where its secret half was given.
pub(super) struct Recovery {
    public: [u8; 32],
    secret: Option<Arc<RecoveryKey>>,
    uri: String,
}

impl Recovery {
    /// The provider for a URI. A secret half of another key is none for this one.
    pub(super) fn open(uri: &str, secret: Option<&Arc<RecoveryKey>>) -> Result<Self, KeyError> {
        let refuse =
            || KeyError::Uri { uri: uri.to_owned(), why: "it holds no public key of 32 bytes".into() };
        let text = uri.strip_prefix(PREFIX).ok_or_else(refuse)?;
        let public = URL_SAFE_NO_PAD.decode(text).ok().and_then(|b| b.try_into().ok()).ok_or_else(refuse)?;
        let fitting = match secret {
            Some(key) if key.public()? == public => Some(key.clone()),
            _ => None,
        };
        Ok(Self { public, secret: fitting, uri: uri.to_owned() })
    }
}

impl Provider for Recovery {
    fn describe(&self) -> Result<KeyInfo, KeyError> {
        Ok(KeyInfo { uri: self.uri.clone(), key_id: self.uri.clone(), version: None })
    }

    fn generate(&self, contexts: &[WrapContext]) -> Result<Vec<(DataKey, Wrapped)>, KeyError> {
        let make = |context: &WrapContext| {
            let key = Secret::random();
            let wrapped = self.wrap(&key, context)?;
            Ok((DataKey(key), wrapped))
        };
        contexts.iter().map(make).collect()
    }

    fn wrap(&self, key: &Secret<32>, context: &WrapContext) -> Result<Wrapped, KeyError> {
        let ephemeral =
            PrivateKey::from_private_key(&X25519, Secret::<32>::random().expose()).map_err(|_| unusable())?;
        let head = public(&ephemeral)?;
        let seal = shared(&ephemeral, &self.public, &head, &self.public)?;
        let mut text = Zeroizing::new(*key.expose());
        let tag = seal.seal_with(&NONCE, &canonical(context)?, &mut *text);
        Ok(Wrapped::Blob([&head[..], &*text, &tag].concat()))
    }

    fn unwrap(&self, wrapped: &Wrapped, context: &WrapContext) -> Result<Secret<32>, KeyError> {
        let secret = self.secret.as_ref().ok_or_else(|| {
            KeyError::NotFound(format!("{}: the secret half is not here (--recovery-key-file)", self.uri))
        })?;
        let Wrapped::Blob(blob) = wrapped else { return Err(KeyError::Foreign) };
        let (head, rest) = blob.split_first_chunk::<32>().ok_or(KeyError::Foreign)?;
        let (text, tag) = rest.split_last_chunk::<16>().ok_or(KeyError::Foreign)?;
        let seal = shared(&secret.private()?, head, head, &self.public)?;
        let mut key = Secret::from_slice(text).ok_or(KeyError::Foreign)?;
        seal.open_with(&NONCE, &canonical(context)?, key.expose_mut(), tag).map_err(|_| KeyError::Foreign)?;
        Ok(key)
    }

    fn can_unwrap(&self) -> bool {
        self.secret.is_some()
    }
}

/// The key that both halves of an agreement come to.
fn shared(mine: &PrivateKey, theirs: &[u8; 32], head: &[u8; 32], to: &[u8; 32]) -> Result<SealKey, KeyError> {
    let peer = UnparsedPublicKey::new(&X25519, theirs);
    agree(mine, peer, KeyError::Foreign, |secret| {
        let secret = Secret::<32>::from_slice(secret).ok_or(KeyError::Foreign)?;
        Ok(SealKey::new(derive::hkdf(secret.expose(), &[&head[..], to].concat(), derive::RECOVERY_KEY)))
    })
}

fn canonical(context: &WrapContext) -> Result<Vec<u8>, KeyError> {
    kms::canonical(&context.encryption_context()).map_err(|e| KeyError::Denied(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::{FileId, VaultId};

    fn context(n: u8) -> WrapContext {
        WrapContext::of_file(VaultId([1; 16]), FileId([n; 12]))
    }

    /// What paper holds is read again, however it was typed, and a slip is noticed.
    #[test]
    fn the_text_is_read_as_it_was_written() {
        for _ in 0..50 {
            let key = RecoveryKey::random();
            let text = key.text();
            assert_eq!((text.len(), text.matches('-').count()), (4 + 14 * 5, 14));
            let typed = text.to_lowercase().replace('-', " ").replace('0', "o").replace('1', "l");
            assert_eq!(RecoveryKey::parse(&typed).unwrap().0.expose(), key.0.expose());
            let mut slips = text.as_bytes().to_vec();
            let at = 5 + 5 * 7;
            slips[at] = if slips[at] == b'7' { b'8' } else { b'7' };
            let slip = RecoveryKey::parse(std::str::from_utf8(&slips).unwrap());
            assert_eq!(slip.unwrap_err(), RecoveryTextError::Checksum);
        }
        assert_eq!(RecoveryKey::parse("EFS1-0000").unwrap_err(), RecoveryTextError::Form);
        assert_eq!(RecoveryKey::parse("").unwrap_err(), RecoveryTextError::Form);
        assert_eq!(RecoveryKey::parse("EFS1-00U0").unwrap_err(), RecoveryTextError::Character(8));
    }

    /// Without the secret half keys can be wrapped and not opened; with it they open in their own context alone.
    #[test]
    fn the_secret_half_opens() {
        let key = Arc::new(RecoveryKey::random());
        let uri = key.uri().unwrap();
        let half = Recovery::open(&uri, None).unwrap();
        let data = Secret::random();
        let wrapped = half.wrap(&data, &context(1)).unwrap();
        assert!(matches!(&wrapped, Wrapped::Blob(b) if b.len() == 80));
        assert!(
            !half.can_unwrap() && matches!(half.unwrap(&wrapped, &context(1)), Err(KeyError::NotFound(_)))
        );
        let other = Arc::new(RecoveryKey::random());
        assert!(!Recovery::open(&uri, Some(&other)).unwrap().can_unwrap());
        let whole = Recovery::open(&uri, Some(&key)).unwrap();
        assert_eq!(whole.unwrap(&wrapped, &context(1)).unwrap().expose(), data.expose());
        assert!(matches!(whole.unwrap(&wrapped, &context(2)), Err(KeyError::Foreign)));
        let Wrapped::Blob(blob) = wrapped else { unreachable!() };
        for at in 0..blob.len() {
            let mut changed = blob.clone();
            changed[at] ^= 1;
            assert!(whole.unwrap(&Wrapped::Blob(changed), &context(1)).is_err(), "byte {at}");
        }
        let made = whole.generate(&[context(3)]).unwrap();
        assert_eq!(whole.unwrap(&made[0].1, &context(3)).unwrap().expose(), made[0].0.0.expose());
    }

    /// The secret shows in no debug line.
    #[test]
    fn it_does_not_print() {
        let key = RecoveryKey::random();
        assert_eq!(format!("{key:?}"), "RecoveryKey(Secret(..))");
    }
}
