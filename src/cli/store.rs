//! The embedded KMS's store as the commands see it: where it is, how it is protected, making it.

use std::path::{Path, PathBuf};

use super::args::InitArgs;
use super::error::CliError;
use super::exit::Exit;
use crate::keys::{self, KeyError, Unlock};
use crate::kms::{self, Engine, KmsError, Protection, ProtectionKind};

/// What a key URI of the embedded KMS begins with.
const EMBEDDED: &str = "kms:embedded/";

/// Where the store is when nobody says otherwise.
pub(super) fn default_dir() -> Option<PathBuf> {
    kms::default_dir()
}

/// Whether the store opens only with a passphrase. A store that cannot be read needs none: opening it tells why.
pub(super) fn needs_passphrase(dir: &Path) -> bool {
    matches!(kms::protection(dir), Ok(ProtectionKind::Passphrase))
}

/// The URI of the key in a token that the store is sealed by, where it is sealed so.
pub(super) fn token_uri(dir: &Path) -> Option<String> {
    kms::root_uri(dir).ok().flatten()
}

/// Makes what the key URI needs and does not find: the store, and for the default URI its key and alias. Another
/// alias must exist: a slip in it would make a key that nobody meant. Gives what opens the store.
pub(super) fn prepare(args: &InitArgs) -> Result<Unlock, CliError> {
    if !args.key_uri.starts_with(EMBEDDED) {
        let pin = args.key.pin_for(&[&args.key_uri])?;
        return Ok(Unlock {
            kms_dir: args.key.kms_dir.clone(),
            pin,
            hsm: args.key.host()?,
            ..Unlock::default()
        });
    }
    let dir = args.key.store_dir()?;
    match kms::protection(&dir) {
        Err(KmsError::NoStore(_)) => {
            let unlock = create(args, &dir)?;
            keys::ensure_embedded_key(&args.key_uri, &unlock)?;
            Ok(unlock)
        }
        Err(e) => Err(boxed(e)),
        Ok(kind) => {
            let unlock = args.key.unlock()?;
            keys::ensure_embedded_key(&args.key_uri, &unlock)?;
            say(&dir, kind, false);
            Ok(unlock)
        }
    }
}

fn create(args: &InitArgs, dir: &Path) -> Result<Unlock, CliError> {
    let (protection, kind, passphrase) = if args.kms_key_file {
        (Protection::KeyFile, ProtectionKind::KeyFile, None)
    } else {
        let Some(passphrase) = args.key.new_passphrase()? else {
            return Err(CliError::NoProtection(dir.to_owned()));
        };
        (Protection::Passphrase(passphrase.clone()), ProtectionKind::Passphrase, Some(passphrase))
    };
    Engine::create(dir, &protection).map_err(boxed)?;
    say(dir, kind, true);
    Ok(Unlock { kms_dir: args.key.kms_dir.clone(), passphrase, ..Unlock::default() })
}

fn say(dir: &Path, kind: ProtectionKind, new: bool) {
    let how = match kind {
        ProtectionKind::Passphrase => "by a passphrase",
        ProtectionKind::KeyFile => "by the key file root.key beside it (who reads both reads every key)",
        ProtectionKind::Token => "by a key in a PKCS#11 token",
    };
    let made = if new { "made" } else { "found" };
    println!("KMS store {made}: {}, protected {how}", dir.display());
}

fn boxed(e: KmsError) -> CliError {
    CliError::Kms(Box::new(e))
}

/// Exit code of a KMS error.
pub(super) fn exit_of(e: &(dyn std::error::Error + 'static)) -> Exit {
    if let Some(e) = e.downcast_ref::<KeyError>() {
        return super::error::key_exit(e);
    }
    let Some(e) = e.downcast_ref::<KmsError>() else { return Exit::Failure };
    match e {
        KmsError::Exception { code: "KeyUnavailableException", .. } => Exit::KeyUnavailable,
        KmsError::NotFound(_) | KmsError::NoStore(_) | KmsError::Busy { .. } => Exit::KeyUnavailable,
        KmsError::Disabled(_)
        | KmsError::InvalidState(_)
        | KmsError::InvalidCiphertext
        | KmsError::IncorrectKey
        | KmsError::Permissions { .. }
        | KmsError::Denied(_) => Exit::KeyDenied,
        KmsError::Newer { .. } => Exit::Format,
        KmsError::Damaged { .. } => Exit::Tampered,
        KmsError::InvalidAliasName(_) | KmsError::Validation(_) => Exit::Usage,
        KmsError::AlreadyExists(_)
        | KmsError::LimitExceeded(_)
        | KmsError::StoreExists(_)
        | KmsError::Exception { .. }
        | KmsError::Io { .. } => Exit::Failure,
    }
}
