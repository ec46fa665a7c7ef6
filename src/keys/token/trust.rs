//! Whether a module's file may be loaded.
//!
//! What a vault's config says is not authenticated yet when its module is loaded, so who can write the vault must not be
//! able to put a module of his own in the way: neither the file nor a directory above it may be others' to change.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Write permission of group and others.
const OTHERS: u32 = 0o022;
/// In such a directory nobody renames or removes what is another's.
const STICKY: u32 = 0o1000;

/// The module's real path, which is what is loaded: links on the way to it do not count.
pub(super) fn trusted(path: &Path, vault: &Path) -> Result<PathBuf, String> {
    let real = path.canonicalize().map_err(|e| e.to_string())?;
    let meta = real.metadata().map_err(|e| e.to_string())?;
    if !meta.is_file() {
        return Err("it is no file".into());
    }
    if !is_ours(&meta) || meta.mode() & OTHERS != 0 {
        return Err(refusal("it", &meta));
    }
    for dir in real.ancestors().skip(1) {
        let meta = dir.metadata().map_err(|e| format!("{}: {e}", dir.display()))?;
        // The entry on our way is ours or root's, as the step before has shown.
        let open = meta.mode() & OTHERS != 0 && meta.mode() & STICKY == 0;
        if !is_ours(&meta) || open {
            return Err(refusal(&format!("the directory {} above it", dir.display()), &meta));
        }
    }
    if vault.canonicalize().is_ok_and(|vault| real.starts_with(vault)) {
        return Err("it is not loaded: it lies in the vault, which an attacker may have written".into());
    }
    Ok(real)
}

fn is_ours(meta: &Metadata) -> bool {
    meta.uid() == 0 || meta.uid() == rustix::process::geteuid().as_raw()
}

fn refusal(what: &str, meta: &Metadata) -> String {
    format!(
        "it is not loaded: others can change {what} (owner {}, mode {:04o})",
        meta.uid(),
        meta.mode() & 0o7777
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// A module counts as ours when nobody else can write it, or put another one in its place from any directory above.
    #[test]
    fn the_way_to_a_module_is_looked_at() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        let (vault, dir) = (top.join("vault"), top.join("a/b"));
        fs::create_dir_all(&dir).unwrap();
        fs::create_dir(&vault).unwrap();
        let module = dir.join("module.so");
        fs::write(&module, "").unwrap();
        let look = |path: &Path| trusted(path, &vault);
        for path in [&module, &dir, &top.join("a")] {
            set(path, 0o755);
        }
        assert_eq!(look(&module).as_deref(), Ok(module.as_path()));
        for (path, mode) in [(&module, 0o757), (&module, 0o775), (&dir, 0o757), (&top.join("a"), 0o775)] {
            set(path, mode);
            let why = look(&module).unwrap_err();
            assert!(why.contains("others can change") && why.contains(&format!("{mode:04o}")), "{why}");
            set(path, 0o755);
        }
        // As /tmp is.
        set(&dir, 0o1777);
        look(&module).unwrap();
        set(&dir, 0o755);
        let link = vault.join("link.so");
        symlink(&module, &link).unwrap();
        assert_eq!(look(&link).as_deref(), Ok(module.as_path()));
        let inside = vault.join("module.so");
        fs::copy(&module, &inside).unwrap();
        assert!(look(&inside).unwrap_err().contains("lies in the vault"));
        assert!(look(&dir).unwrap_err().contains("no file"));
        if rustix::process::geteuid().is_root() {
            chown(&dir, Some(12_345), None).unwrap();
            assert!(look(&module).unwrap_err().contains("owner 12345"));
        }
    }
}
