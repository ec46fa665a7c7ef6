//! The embedded KMS's store as the commands see it: where it is, how it is protected.

use std::path::{Path, PathBuf};

use super::exit::Exit;

/// Where the store is when nobody says otherwise.
pub(super) fn default_dir() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")))?;
    Some(data.join("envelopefs/kms"))
}

/// Whether the store opens only with a passphrase. A store that cannot be read needs none: opening it tells why.
pub(super) fn needs_passphrase(_dir: &Path) -> bool {
    false
}

/// Exit code of a KMS error.
pub(super) fn exit_of(_e: &(dyn std::error::Error + 'static)) -> Exit {
    Exit::Failure
}
