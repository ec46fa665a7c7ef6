//! That a run is going on, and what one that was cut off has left: packs without an index, and snapshots of the filesystem
//! below, which are not forgotten until they are removed.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::error::{BackupError, Result};
use super::hook::{Frozen, SnapshotHook};
use super::repo::Repo;
use super::run::access;

/// Bytes of paths of snapshots that are left: hundreds.
const LEFT: u64 = 1 << 20;

/// Says that a run is going on, and afterwards that one was cut off.
#[derive(Debug)]
pub(super) struct Running {
    path: PathBuf,
    file: File,
    /// The last run did not come to its end.
    pub(super) cut_off: bool,
    /// Vaults in snapshots of the filesystem below that earlier runs had made, and which nobody has removed.
    left: Vec<PathBuf>,
    /// Where those stand, a line each, until they are gone.
    list: PathBuf,
}

impl Running {
    pub(super) fn begin(repo: &Repo) -> Result<Self> {
        std::fs::create_dir_all(&repo.state).map_err(BackupError::io(&repo.state))?;
        let id = repo.repo.config().id.to_hex().to_string();
        let (path, list) = (repo.state.join(format!("{id}.running")), repo.state.join(format!("{id}.left")));
        let cut_off = path.exists();
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(BackupError::io(&path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let mut left = lines_of(&file).map_err(BackupError::io(&path))?;
                match File::open(&list) {
                    Ok(before) => left.extend(lines_of(&before).map_err(BackupError::io(&list))?),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                    Err(e) => return Err(BackupError::io(&list)(e)),
                }
                left.dedup();
                let running = Self { path, file, cut_off, left, list };
                running.keep_left()?;
                running.file.set_len(0).map_err(BackupError::io(&running.path))?;
                Ok(running)
            }
            Err(_) => Err(BackupError::Repository {
                location: repo.location().to_owned(),
                why: "another run of this machine is going on".into(),
            }),
        }
    }

    /// Makes a snapshot of the filesystem below, after whatever a daemon holds of the vault was brought to its place. Gives
    /// also whether the vault is mounted.
    pub(super) fn freeze<'h>(&mut self, hook: &'h SnapshotHook, vault: &Path) -> Result<(Frozen<'h>, bool)> {
        self.left.retain(|left| !hook.remove_left(left));
        self.keep_left()?;
        let access = access(vault)?;
        if let Some(daemon) = &access.daemon {
            daemon.checkpoint().map_err(BackupError::io(vault))?;
        }
        let frozen = hook.make(vault)?;
        let path = frozen.vault.as_os_str().as_bytes();
        self.file
            .set_len(0)
            .and_then(|()| self.file.write_all_at(path, 0))
            .map_err(BackupError::io(&self.path))?;
        Ok((frozen, access.daemon.is_some()))
    }

    /// Writes down what is left, before anything else forgets it.
    fn keep_left(&self) -> Result<()> {
        let done = if self.left.is_empty() {
            match std::fs::remove_file(&self.list) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            }
        } else {
            let lines = self.left.iter().flat_map(|left| [left.as_os_str().as_bytes(), b"\n"]);
            let new = self.list.with_extension("left.new");
            std::fs::write(&new, lines.collect::<Vec<_>>().concat())
                .and_then(|()| std::fs::rename(&new, &self.list))
        };
        done.map_err(BackupError::io(&self.list))
    }

    /// Removes the run's own snapshot, also where the run failed. Gives why snapshots are left, of this run or of others.
    pub(super) fn thaw(&mut self, frozen: Option<Frozen<'_>>) -> Option<String> {
        let mut told = Vec::new();
        if !self.left.is_empty() {
            let left: Vec<_> = self.left.iter().map(|left| left.display().to_string()).collect();
            told.push(format!(
                "of a run that was cut off, for --snapshot-hook to remove: {}",
                left.join(", ")
            ));
        }
        if let Some(frozen) = frozen {
            let path = frozen.vault.clone();
            if let Err(e) = frozen.remove() {
                told.push(e.to_string());
                self.left.push(path);
            }
        }
        let noted = self.keep_left().and_then(|()| self.file.set_len(0).map_err(BackupError::io(&self.path)));
        told.extend(noted.err().map(|e| e.to_string()));
        (!told.is_empty()).then(|| told.join("; "))
    }

    /// The run has come to its end.
    pub(super) fn end(self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The paths in a file, one in a line.
fn lines_of(file: &File) -> std::io::Result<Vec<PathBuf>> {
    let mut text = Vec::new();
    file.take(LEFT).read_to_end(&mut text)?;
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    Ok(lines.map(|line| OsString::from_vec(line.to_vec()).into()).collect())
}
