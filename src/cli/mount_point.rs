//! Whether a directory can be a mount point, told before anything is unlocked.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::error::CliError;
use crate::fuse::mountinfo;

/// Why a directory cannot be mounted on.
#[derive(Debug)]
pub(super) enum MountPointFault {
    Missing,
    NotADirectory,
    NotEmpty,
    /// Something is mounted there already, of this type.
    Busy(String),
    /// A mount whose daemon is gone.
    Dead,
    /// It lies inside the vault.
    InsideVault,
    /// The vault lies inside it.
    AroundVault,
}

impl fmt::Display for MountPointFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("the mount point does not exist"),
            Self::NotADirectory => f.write_str("the mount point is not a directory"),
            Self::NotEmpty => f.write_str("the mount point is not empty"),
            Self::Busy(fstype) => write!(f, "the mount point is busy: {fstype} is mounted there"),
            Self::Dead => f.write_str("the mount point is busy: the daemon of the mount there is gone"),
            Self::InsideVault => f.write_str("the mount point lies inside the vault"),
            Self::AroundVault => f.write_str("the vault lies inside the mount point"),
        }
    }
}

impl MountPointFault {
    /// What to do.
    pub(super) fn advice(&self, path: &Path) -> Option<String> {
        let path = path.display();
        match self {
            Self::Missing => Some(format!("Make it with: mkdir {path}")),
            Self::NotADirectory => None,
            Self::NotEmpty => Some("Give an empty directory, or hide what is in it with --nonempty.".into()),
            Self::Busy(_) | Self::Dead => Some(format!("Unmount it first: envelopefs umount {path}")),
            Self::InsideVault | Self::AroundVault => Some("Give two directories beside each other.".into()),
        }
    }
}

/// Canonical path of a mount point that may be used for `vault` (canonical too).
pub(super) fn check(mount_point: &Path, vault: &Path, nonempty: bool) -> Result<PathBuf, CliError> {
    let fault = |fault| CliError::MountPoint(mount_point.to_owned(), fault);
    let path = resolve(mount_point).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => fault(MountPointFault::Missing),
        io::ErrorKind::NotADirectory => fault(MountPointFault::NotADirectory),
        _ => CliError::Io(mount_point.to_owned(), e),
    })?;
    let mounts = mountinfo().map_err(CliError::io(Path::new("/proc/self/mountinfo")))?;
    let busy = mounts.into_iter().rev().find(|m| m.mount_point == path);
    match std::fs::metadata(&path) {
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => return Err(fault(MountPointFault::Dead)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(fault(MountPointFault::Missing)),
        Err(e) => return Err(CliError::Io(mount_point.to_owned(), e)),
        Ok(meta) if !meta.is_dir() => return Err(fault(MountPointFault::NotADirectory)),
        Ok(_) => {}
    }
    if let Some(there) = busy.filter(|m| m.fstype.starts_with("fuse")) {
        return Err(fault(MountPointFault::Busy(there.fstype)));
    }
    if path.starts_with(vault) {
        return Err(fault(MountPointFault::InsideVault));
    }
    if vault.starts_with(&path) {
        return Err(fault(MountPointFault::AroundVault));
    }
    if !nonempty && std::fs::read_dir(&path).map_err(CliError::io(mount_point))?.next().is_some() {
        return Err(fault(MountPointFault::NotEmpty));
    }
    Ok(path)
}

/// An absolute path without symlinks. The last component is not asked: behind it may be a mount without a daemon.
pub(super) fn resolve(path: &Path) -> io::Result<PathBuf> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            let whole = parent.canonicalize()?.join(name);
            match whole.symlink_metadata() {
                Ok(meta) if meta.is_symlink() => whole.canonicalize(),
                _ => Ok(whole),
            }
        }
        _ => path.canonicalize(),
    }
}
