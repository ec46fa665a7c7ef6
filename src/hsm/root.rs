//! The appliance's root key: it seals everything at rest, and is itself sealed under a passphrase or a key file.
//!
//! An officer's reset of a user's password therefore does not lose that user's keys: no key is sealed under a password.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::error::HsmError;
use crate::crypto::{SealKey, Secret, derive, random};

const ROOT_FILE: &str = "root.json";
const KEY_FILE: &str = "root.key";
const FORMAT: u32 = 1;
/// Longest file that is read here.
const MAX_FILE: u64 = 64 << 10;

/// Labels keep keys of different purposes apart. Never reuse one, never edit one.
const STORE_KEY: &[u8] = b"envelopefs/hsm/v1/store";
const AUDIT_KEY: &[u8] = b"envelopefs/hsm/v1/audit";
const ROOT_AD: &[u8] = b"envelopefs/hsm/v1/root";

/// How the root key is kept from whoever finds the directory.
#[derive(Debug)]
pub enum Protection {
    /// Sealed under a passphrase, by Argon2id.
    Passphrase(Zeroizing<String>),
    /// Sealed under a random key in `root.key`, mode 0600: starts unattended.
    KeyFile,
}

/// Price of one guess at a passphrase or password (Argon2id, RFC 9106).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cost {
    /// KiB of memory.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
}

impl Cost {
    /// For passphrases and backups: 64 MiB, three passes.
    pub const SLOW: Self = Self { memory_kib: 64 << 10, passes: 3 };
    /// For passwords at each login: 19 MiB, two passes (about 20 ms; OWASP's first choice).
    pub const LOGIN: Self = Self { memory_kib: 19 << 10, passes: 2 };
    /// As good as no protection; keeps tests fast.
    #[doc(hidden)]
    pub const TESTS: Self = Self { memory_kib: 64, passes: 1 };

    /// Refuses what would take this process down: the file is read before it is authenticated.
    pub(super) fn is_sane(self) -> bool {
        (8..=1 << 20).contains(&self.memory_kib) && (1..=64).contains(&self.passes)
    }

    /// Whether it asks for no more than another one, of memory and of passes.
    pub(super) fn is_within(self, most: Self) -> bool {
        self.memory_kib <= most.memory_kib && self.passes <= most.passes
    }

    /// Argon2id to 32 bytes.
    pub(super) fn stretch(self, secret: &[u8], salt: &[u8]) -> Option<Secret<32>> {
        let params = argon2::Params::new(self.memory_kib, self.passes, 1, Some(32)).ok()?;
        let mut key = Secret::zeroed();
        argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
            .hash_password_into(secret, salt, key.expose_mut())
            .ok()?;
        Some(key)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RootFile {
    format: u32,
    /// Hexadecimal; empty with a key file.
    salt: String,
    cost: Cost,
    sealed: String,
}

impl RootFile {
    fn bound(&self) -> Vec<u8> {
        let numbers = [self.format, self.cost.memory_kib, self.cost.passes];
        let mut ad = ROOT_AD.to_vec();
        numbers.iter().for_each(|n| ad.extend_from_slice(&n.to_le_bytes()));
        ad.extend_from_slice(self.salt.as_bytes());
        ad
    }
}

/// The keys that the root key gives.
pub(super) struct Keys {
    /// Seals the records of the store.
    pub(super) store: SealKey,
    /// Chains the audit log.
    pub(super) audit: Secret<32>,
}

fn keys(root: &Secret<32>) -> Keys {
    let [store, audit] = derive::hkdf_each(root.expose(), b"", [STORE_KEY, AUDIT_KEY]);
    Keys { store: SealKey::new(store), audit }
}

/// Makes the directory and its root key.
pub(super) fn create(dir: &Path, protection: &Protection, cost: Cost) -> Result<Keys, HsmError> {
    if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(HsmError::Exists(dir.into()));
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(HsmError::io(dir))?;
    check_private(dir, &fs::metadata(dir).map_err(HsmError::io(dir))?)?;
    let root = Secret::<32>::random();
    let (salt, kek) = match protection {
        Protection::Passphrase(phrase) if phrase.is_empty() => {
            return Err(HsmError::Denied("the passphrase is empty; give one of some length".into()));
        }
        Protection::Passphrase(phrase) => {
            let salt = random::array::<16>();
            let kek = cost.stretch(phrase.as_bytes(), &salt);
            (hex(&salt), kek.ok_or_else(|| HsmError::Refused("Argon2id refuses its cost".into()))?)
        }
        Protection::KeyFile => {
            let key = Secret::<32>::random();
            replace(dir, KEY_FILE, Zeroizing::new(hex(key.expose())).as_bytes())?;
            (String::new(), key)
        }
    };
    let mut file = RootFile { format: FORMAT, salt, cost, sealed: String::new() };
    file.sealed = hex(&SealKey::new(kek).seal(&file.bound(), root.expose()));
    let text = serde_json::to_string_pretty(&file).map_err(|e| HsmError::damaged(dir, e))?;
    replace(dir, ROOT_FILE, text.as_bytes())?;
    Ok(keys(&root))
}

/// Whether the appliance in `dir` starts only with a passphrase.
///
/// # Errors
/// No appliance there, or a file that does not decode.
pub fn needs_passphrase(dir: &Path) -> Result<bool, HsmError> {
    Ok(!read(dir)?.salt.is_empty())
}

/// Opens the root key.
pub(super) fn open(dir: &Path, passphrase: Option<&str>) -> Result<Keys, HsmError> {
    let file = read(dir)?;
    let path = dir.join(ROOT_FILE);
    let broken = || HsmError::damaged(&path, "not hexadecimal where it must be");
    let (kek, refusal) = if file.salt.is_empty() {
        let path = dir.join(KEY_FILE);
        let text = read_private(&path)?;
        let bytes = std::str::from_utf8(&text).ok().and_then(|t| unhex(t.trim_end())).map(Zeroizing::new);
        let key = bytes.and_then(|b| Secret::from_slice(&b));
        let key = key.ok_or_else(|| HsmError::damaged(&path, "not 64 hexadecimal digits"))?;
        (key, "root.key does not open root.json: one of them was changed; restore both")
    } else {
        let phrase = passphrase.ok_or_else(|| {
            HsmError::Denied(format!(
                "{}: the HSM's root key is sealed under a passphrase; give it at the prompt, with --passphrase-file or in \
                 ENVELOPEFS_PASSPHRASE",
                dir.display()
            ))
        })?;
        let salt = unhex(&file.salt).ok_or_else(broken)?;
        let key = file.cost.stretch(phrase.as_bytes(), &salt);
        (key.ok_or_else(broken)?, "wrong passphrase, or root.json was changed; try again")
    };
    let sealed = unhex(&file.sealed).ok_or_else(broken)?;
    let root = SealKey::new(kek)
        .open(&file.bound(), &sealed)
        .map_err(|_| HsmError::Denied(format!("{}: {refusal}", dir.display())))?;
    Ok(keys(&Secret::from_slice(&root).ok_or_else(broken)?))
}

fn read(dir: &Path) -> Result<RootFile, HsmError> {
    let path = dir.join(ROOT_FILE);
    match fs::metadata(dir) {
        Ok(meta) if meta.is_dir() && path.exists() => check_private(dir, &meta)?,
        _ => return Err(HsmError::NoHsm(dir.into())),
    }
    let file: RootFile =
        serde_json::from_slice(&read_private(&path)?).map_err(|e| HsmError::damaged(&path, e))?;
    if file.format != FORMAT {
        return Err(HsmError::damaged(&path, format!("format {}, this build reads {FORMAT}", file.format)));
    }
    if file.cost.is_sane() { Ok(file) } else { Err(HsmError::damaged(&path, "Argon2id cost out of range")) }
}

/// Reads a small file that nobody else may read.
pub(super) fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, HsmError> {
    let file = File::open(path).map_err(HsmError::io(path))?;
    let meta = file.metadata().map_err(HsmError::io(path))?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Err(HsmError::damaged(path, "not a small regular file"));
    }
    check_private(path, &meta)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0) + 32));
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(HsmError::io(path))?;
    Ok(bytes)
}

/// Replaces a file of mode 0600 at one stroke, durably.
pub(super) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), HsmError> {
    let tmp = dir.join(format!(".{name}.{}", hex(&random::array::<8>())));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&tmp)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&tmp, dir.join(name)))
        .and_then(|()| File::open(dir)?.sync_all());
    if let Err(e) = written {
        let _ = fs::remove_file(&tmp);
        return Err(HsmError::io(dir.join(name))(e));
    }
    Ok(())
}

fn check_private(path: &Path, meta: &fs::Metadata) -> Result<(), HsmError> {
    let me = rustix::process::geteuid().as_raw();
    let why = if meta.uid() != me {
        format!("it belongs to user {}, this process runs as {me}; run as its owner", meta.uid())
    } else if meta.mode() & 0o077 != 0 {
        let mode = meta.mode() & 0o7777;
        format!("mode {mode:04o} gives access to group or others; run: chmod go= {}", path.display())
    } else {
        return Ok(());
    };
    Err(HsmError::Permissions { path: path.into(), why })
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    hex::encode(bytes)
}

/// The bytes of hexadecimal digits; `None` for anything else.
pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    digits
        .len()
        .is_multiple_of(2)
        .then(|| digits.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect())?
}
