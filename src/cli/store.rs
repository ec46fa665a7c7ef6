//! The embedded KMS's store as the commands see it: where it is, how it is protected, making it.

use std::path::{Path, PathBuf};

use super::args::InitArgs;
use super::error::CliError;
use super::exit::Exit;
use crate::keys::{KeyError, Unlock};
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

/// Makes what the key URI needs and does not find: store, key, alias. Gives what opens it.
pub(super) fn prepare(args: &InitArgs) -> Result<Unlock, CliError> {
    let Some(key) = args.key_uri.strip_prefix(EMBEDDED) else {
        return args.key.unlock();
    };
    let dir = args.key.store_dir()?;
    let (engine, unlock) = match kms::protection(&dir) {
        Err(KmsError::NoStore(_)) => create(args, &dir)?,
        Err(e) => return Err(boxed(e)),
        Ok(kind) => {
            let unlock = args.key.unlock()?;
            let engine = Engine::open(&dir, unlock.passphrase.as_ref().map(|p| p.as_str())).map_err(boxed)?;
            say(&dir, kind, false);
            (engine, unlock)
        }
    };
    if key.starts_with("alias/") {
        engine.ensure_alias(key, "made by envelopefs init").map_err(boxed)?;
    }
    Ok(unlock)
}

fn create(args: &InitArgs, dir: &Path) -> Result<(Engine, Unlock), CliError> {
    let (protection, kind, passphrase) = if args.kms_key_file {
        (Protection::KeyFile, ProtectionKind::KeyFile, None)
    } else {
        let Some(passphrase) = args.key.new_passphrase()? else {
            return Err(CliError::NoProtection(dir.to_owned()));
        };
        (Protection::Passphrase(passphrase.clone()), ProtectionKind::Passphrase, Some(passphrase))
    };
    let engine = Engine::create(dir, &protection).map_err(boxed)?;
    say(dir, kind, true);
    Ok((engine, Unlock { kms_dir: args.key.kms_dir.clone(), passphrase }))
}

fn say(dir: &Path, kind: ProtectionKind, new: bool) {
    let how = match kind {
        ProtectionKind::Passphrase => "by a passphrase",
        ProtectionKind::KeyFile => "by the key file root.key beside it (who reads both reads every key)",
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
        | KmsError::Io { .. } => Exit::Failure,
    }
}
