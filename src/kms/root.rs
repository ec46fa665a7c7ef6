//! The root key: 32 random bytes that seal the store, themselves sealed under a passphrase, a key file, or a key that a
//! PKCS#11 token wraps.
//!
//! `root.toml` says which, holds the sealed root key, and is bound to it as associated data, so no field of it can
//! be changed. `root.key` (mode 0600) is for unattended use: who reads it and the store reads every key. What a token is
//! is not known here: a [`RootTokens`] finds its keys.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::context::push;
use super::error::KmsError;
use super::seams::{RootSealer, RootTokens};
use super::{dir, hex, labels};
use crate::crypto::{SealKey, Secret, derive, random};

const ROOT_FILE: &str = "root.toml";
const KEY_FILE: &str = "root.key";
/// Format of the store that this build reads and writes.
const FORMAT: u32 = 1;

/// How the root key is kept from whoever finds the store.
pub enum Protection {
    /// Sealed under a passphrase, by Argon2id.
    Passphrase(Zeroizing<String>),
    /// Sealed under a random key in `root.key`, mode 0600, beside it.
    KeyFile,
    /// Sealed under a random key that a token wraps.
    Token(Arc<dyn RootSealer>),
}

/// What may open a root key; what its protection does not need is not used.
#[derive(Clone, Copy, Default)]
pub struct RootSecrets<'a> {
    /// The passphrase.
    pub passphrase: Option<&'a str>,
    /// Where the keys of tokens are found.
    pub tokens: Option<&'a dyn RootTokens>,
}

impl std::fmt::Debug for RootSecrets<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RootSecrets(..)")
    }
}

impl std::fmt::Debug for Protection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Passphrase(_) => "Passphrase(..)",
            Self::KeyFile => "KeyFile",
            Self::Token(_) => "Token(..)",
        })
    }
}

/// Which protection a store has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProtectionKind {
    /// A passphrase is needed.
    Passphrase,
    /// The key file beside it opens it.
    KeyFile,
    /// The key of a PKCS#11 token opens it.
    Token,
}

/// Price of one guess at the passphrase.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl Default for Cost {
    /// RFC 9106, second recommended choice, with one lane: 64 MiB and three passes, since one thread computes it.
    fn default() -> Self {
        Self { memory_kib: 64 << 10, passes: 3, lanes: 1 }
    }
}

impl Cost {
    /// As good as no protection; keeps tests fast.
    #[doc(hidden)]
    pub fn for_tests() -> Self {
        Self { memory_kib: 64, passes: 1, lanes: 1 }
    }

    /// Refuses what would take this process down: the file is read before it is authenticated.
    fn is_sane(self) -> bool {
        (8..=1 << 20).contains(&self.memory_kib)
            && (1..=64).contains(&self.passes)
            && (1..=64).contains(&self.lanes)
    }
}

impl Cost {
    /// Memory in KiB, passes, lanes.
    pub(super) fn numbers(self) -> [u32; 3] {
        [self.memory_kib, self.passes, self.lanes]
    }

    /// As [`Cost::numbers`] gave them, where they are in range.
    pub(super) fn from_numbers([memory_kib, passes, lanes]: [u32; 3]) -> Option<Self> {
        Some(Self { memory_kib, passes, lanes }).filter(|cost| cost.is_sane())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RootFile {
    format: u32,
    store: String,
    protection: ProtectionKind,
    sealed_root_key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    argon2id: Option<Argon2id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<TokenKey>,
}

/// A key of a token, and what it wrapped: the key that seals the root key.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenKey {
    uri: String,
    wrapped_key: String,
}

#[derive(Serialize, Deserialize)]
struct Argon2id {
    salt: String,
    #[serde(flatten)]
    cost: Cost,
}

/// Makes a root key and its files in a directory that is being made.
pub(super) fn create(at: &Path, protection: &Protection, cost: Cost) -> Result<SealKey, KmsError> {
    let root = Secret::random();
    let store = hex::encode(&random::array::<16>());
    write(at, &root, &store, protection, cost)?;
    Ok(store_key(&root, store.as_bytes()))
}

/// Which protection the store in `at` has. Asks for no secret.
pub fn protection(at: &Path) -> Result<ProtectionKind, KmsError> {
    Ok(read(at)?.protection)
}

/// The URI of the key that the store in `at` is sealed by, where that is one of a token. Not authenticated.
pub fn root_uri(at: &Path) -> Result<Option<String>, KmsError> {
    Ok(read(at)?.token.map(|token| token.uri))
}

/// Opens the root key; gives the key of the store's records.
pub(super) fn unlock(at: &Path, by: &RootSecrets<'_>) -> Result<SealKey, KmsError> {
    let file = read(at)?;
    let root = open(at, &file, by)?;
    Ok(store_key(&root, file.store.as_bytes()))
}

/// Seals the root key anew, under another protection. Keys and blobs stay as they are.
pub(super) fn reprotect(
    at: &Path,
    by: &RootSecrets<'_>,
    new: &Protection,
    cost: Cost,
) -> Result<(), KmsError> {
    // Two at once could leave the key file of one with the root file of the other.
    let lock = std::fs::File::open(at).map_err(KmsError::io(at))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|e| KmsError::io(at)(e.into()))?;
    let file = read(at)?;
    let root = open(at, &file, by)?;
    if file.protection == ProtectionKind::KeyFile && matches!(new, Protection::KeyFile) {
        return Ok(());
    }
    write(at, &root, &file.store, new, cost)?;
    if matches!(new, Protection::KeyFile) {
        return Ok(());
    }
    // Last, when nothing needs it any more. A crash may have left one behind a passphrase, too.
    let key_file = at.join(KEY_FILE);
    match std::fs::remove_file(&key_file) {
        Ok(()) => dir::sync(at),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(KmsError::io(&key_file)(e)),
    }
}

fn store_key(root: &Secret<32>, store: &[u8]) -> SealKey {
    SealKey::new(derive::hkdf(root.expose(), store, labels::STORE_KEY))
}

fn write(
    at: &Path,
    root: &Secret<32>,
    store: &str,
    protection: &Protection,
    cost: Cost,
) -> Result<(), KmsError> {
    let (kind, argon2id, token, kek) = match protection {
        Protection::Passphrase(phrase) if phrase.is_empty() => {
            return Err(KmsError::Validation("the passphrase is empty; give one of some length".into()));
        }
        Protection::Passphrase(phrase) => {
            let argon2id = Argon2id { salt: hex::encode(&random::array::<16>()), cost };
            let kek = stretch(at, phrase, &argon2id)?;
            (ProtectionKind::Passphrase, Some(argon2id), None, kek)
        }
        Protection::KeyFile => {
            let key = Secret::random();
            // Room for the line end, so that the string does not grow and leave a copy behind.
            let mut text = Zeroizing::new(String::with_capacity(65));
            text.push_str(&Zeroizing::new(hex::encode(key.expose())));
            text.push('\n');
            // First the key, then the file that needs it: a crash between leaves the old protection in force.
            dir::replace_private(at, KEY_FILE, text.as_bytes())?;
            (ProtectionKind::KeyFile, None, None, SealKey::new(key))
        }
        Protection::Token(sealer) => {
            let key = Secret::random();
            let context = token_context(store);
            let wrapped = sealer.wrap(&key, &context)?;
            // What does not come back would be missed when it is too late.
            if sealer.unwrap(&wrapped, &context)?.expose() != key.expose() {
                return Err(KmsError::Denied(format!(
                    "{}: it opens another key than it wrapped",
                    sealer.uri()
                )));
            }
            let token = TokenKey { uri: sealer.uri().to_owned(), wrapped_key: hex::encode(&wrapped) };
            (ProtectionKind::Token, None, Some(token), SealKey::new(key))
        }
    };
    let mut file = RootFile {
        format: FORMAT,
        store: store.to_owned(),
        protection: kind,
        sealed_root_key: String::new(),
        argon2id,
        token,
    };
    file.sealed_root_key = hex::encode(&kek.seal(&file.bound(), root.expose()));
    let text = toml::to_string(&file).map_err(|e| damaged(at, &e))?;
    dir::replace_private(at, ROOT_FILE, text.as_bytes())
}

fn read(at: &Path) -> Result<RootFile, KmsError> {
    dir::check(at)?;
    let path = at.join(ROOT_FILE);
    let bytes = dir::read_private(&path).map_err(|e| match e {
        KmsError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            KmsError::NoStore(at.into())
        }
        other => other,
    })?;
    let text = std::str::from_utf8(&bytes).map_err(|e| damaged(at, &e))?;
    let probe: toml::Table = toml::from_str(text).map_err(|e| damaged(at, &e.message()))?;
    match probe.get("format").and_then(toml::Value::as_integer).and_then(|n| u32::try_from(n).ok()) {
        Some(found) if found > FORMAT => return Err(KmsError::Newer { path, found, newest: FORMAT }),
        Some(FORMAT) => {}
        _ => return Err(damaged(at, &"its format is missing or unknown")),
    }
    let file: RootFile = toml::from_str(text).map_err(|e| damaged(at, &e.message()))?;
    let fits = match (file.protection, &file.argon2id, &file.token) {
        (ProtectionKind::Passphrase, Some(argon2id), None) => argon2id.cost.is_sane(),
        (ProtectionKind::KeyFile, None, None) | (ProtectionKind::Token, None, Some(_)) => true,
        _ => false,
    };
    if fits { Ok(file) } else { Err(damaged(at, &"what its protection needs is missing or out of range")) }
}

fn open(at: &Path, file: &RootFile, by: &RootSecrets<'_>) -> Result<Secret<32>, KmsError> {
    let (kek, refusal) = match (&file.argon2id, &file.token) {
        (Some(argon2id), _) => {
            let phrase = by.passphrase.ok_or_else(|| {
                KmsError::Denied(format!(
                    "{}: the KMS store is protected by a passphrase; give it at the prompt or with --passphrase-file",
                    at.display()
                ))
            })?;
            (
                stretch(at, phrase, argon2id)?,
                format!("wrong passphrase, or {ROOT_FILE} was changed; try again"),
            )
        }
        (None, Some(token)) => (
            token_key(at, file, token, by)?,
            format!("the token's key does not open {ROOT_FILE}: it was changed; restore it from a backup"),
        ),
        (None, None) => (
            key_file(at)?,
            format!(
                "{KEY_FILE} does not open {ROOT_FILE}: one of them was changed; restore both from a backup"
            ),
        ),
    };
    let sealed =
        hex::decode(&file.sealed_root_key).ok_or_else(|| damaged(at, &"sealed_root_key is not hex"))?;
    let root = kek
        .open(&file.bound(), &sealed)
        .map_err(|_| KmsError::Denied(format!("{}: {refusal}", at.display())))?;
    Secret::from_slice(&root).ok_or_else(|| damaged(at, &"the root key has not 32 bytes"))
}

fn key_file(at: &Path) -> Result<SealKey, KmsError> {
    let path = at.join(KEY_FILE);
    let text = dir::read_private(&path).map_err(|e| match e {
        KmsError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            KmsError::Denied(format!(
                "{}: the key file of the KMS store is missing; put it back from a backup",
                path.display()
            ))
        }
        other => other,
    })?;
    let bytes = std::str::from_utf8(&text).ok().and_then(|t| hex::decode(t.trim_end())).map(Zeroizing::new);
    bytes
        .and_then(|b| Secret::from_slice(&b))
        .map(SealKey::new)
        .ok_or_else(|| KmsError::Damaged { path, why: "not 64 hexadecimal digits".into() })
}

/// The key that a token unwraps.
fn token_key(
    at: &Path,
    file: &RootFile,
    token: &TokenKey,
    by: &RootSecrets<'_>,
) -> Result<SealKey, KmsError> {
    let tokens = by.tokens.ok_or_else(|| {
        KmsError::Denied(format!(
            "{}: the KMS store is sealed by {}, which nothing here opens",
            at.display(),
            token.uri
        ))
    })?;
    let wrapped = hex::decode(&token.wrapped_key).ok_or_else(|| damaged(at, &"wrapped_key is not hex"))?;
    let key = tokens.find(&token.uri)?.unwrap(&wrapped, &token_context(&file.store))?;
    Ok(SealKey::new(key))
}

/// What a token binds its wrap to.
fn token_context(store: &str) -> Vec<u8> {
    let mut context = labels::ROOT_TOKEN.to_vec();
    push(&mut context, store.as_bytes());
    context
}

fn stretch(at: &Path, phrase: &str, with: &Argon2id) -> Result<SealKey, KmsError> {
    let salt = hex::decode(&with.salt).ok_or_else(|| damaged(at, &"the salt is not hex"))?;
    passphrase_key(at, phrase, &salt, with.cost)
}

/// The key of a passphrase, by Argon2id.
pub(super) fn passphrase_key(at: &Path, phrase: &str, salt: &[u8], cost: Cost) -> Result<SealKey, KmsError> {
    let Cost { memory_kib, passes, lanes } = cost;
    let params = argon2::Params::new(memory_kib, passes, lanes, Some(32)).map_err(|e| damaged(at, &e))?;
    let mut key = Secret::zeroed();
    argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
        .hash_password_into(phrase.as_bytes(), salt, key.expose_mut())
        .map_err(|e| damaged(at, &e))?;
    Ok(SealKey::new(key))
}

fn damaged(at: &Path, why: &dyn std::fmt::Display) -> KmsError {
    KmsError::Damaged { path: at.join(ROOT_FILE), why: why.to_string() }
}

impl RootFile {
    /// Every field but the sealed key, as associated data of that key.
    fn bound(&self) -> Vec<u8> {
        let mut ad = labels::ROOT_AD.to_vec();
        push(&mut ad, &self.format.to_le_bytes());
        push(&mut ad, self.store.as_bytes());
        match (&self.argon2id, &self.token) {
            (None, None) => push(&mut ad, b"key-file"),
            (None, Some(TokenKey { uri, wrapped_key })) => {
                push(&mut ad, b"token");
                push(&mut ad, uri.as_bytes());
                push(&mut ad, wrapped_key.as_bytes());
            }
            (Some(Argon2id { salt, cost }), _) => {
                push(&mut ad, b"passphrase");
                push(&mut ad, salt.as_bytes());
                for n in [cost.memory_kib, cost.passes, cost.lanes] {
                    push(&mut ad, &n.to_le_bytes());
                }
            }
        }
        ad
    }
}
