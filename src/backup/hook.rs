//! A snapshot of the filesystem that a vault lies on, made and removed by a program of the operator's.
//!
//! `PROGRAM make VAULT` makes one and prints the path of the vault in it; `PROGRAM remove PATH` removes it. What such a snapshot
//! holds is of one moment: what a power cut would have left, with the journal that brings the rest in.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::{BackupError, Result};
use crate::format::config::{CONFIG_FILE, MAX_CONFIG};
use crate::format::names::VAULT_DIR;

/// The longest answer that is read: a path.
const ANSWER: u64 = 4096;

/// The operator's program.
#[derive(Clone, Debug)]
pub struct SnapshotHook {
    /// Path or name of the program. It is run as it is, by no shell.
    pub program: PathBuf,
}

/// A snapshot that is there; removed at the latest when this is dropped.
#[derive(Debug)]
pub(super) struct Frozen<'h> {
    hook: &'h SnapshotHook,
    /// The vault in it.
    pub(super) vault: PathBuf,
    removed: bool,
}

impl SnapshotHook {
    fn failed(&self, verb: &str, why: impl std::fmt::Display) -> BackupError {
        BackupError::Hook { program: self.program.clone(), verb: verb.to_owned(), why: why.to_string() }
    }

    /// What the program printed.
    fn call(&self, verb: &str, path: &Path) -> Result<Vec<u8>> {
        let mut child = Command::new(&self.program)
            .arg(verb)
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| self.failed(verb, e))?;
        let mut answer = Vec::new();
        let read = child.stdout.take().map(|out| out.take(ANSWER + 1).read_to_end(&mut answer));
        let status = child.wait().map_err(|e| self.failed(verb, e))?;
        if !status.success() {
            return Err(self.failed(verb, format!("it ended with {status}")));
        }
        read.transpose().map_err(|e| self.failed(verb, e))?;
        Ok(answer)
    }

    /// Makes a snapshot. Refuses a path that is not that of a copy of this vault.
    pub(super) fn make(&self, vault: &Path) -> Result<Frozen<'_>> {
        let mut answer = self.call("make", vault)?;
        while matches!(answer.last(), Some(b'\n' | b'\r')) {
            answer.pop();
        }
        let path = PathBuf::from(OsString::from_vec(answer));
        let wrong = |why: &str| {
            self.failed("make", format!("it printed {:?}, which is {why}", path.display().to_string()))
        };
        if !path.is_absolute()
            || path.as_os_str().as_bytes().contains(&b'\n')
            || path.as_os_str().len() as u64 > ANSWER
        {
            return Err(wrong("no absolute path in one line"));
        }
        let place =
            |at: &Path| std::fs::metadata(at).map(|m| (m.dev(), m.ino())).map_err(BackupError::io(at));
        if config_of(&path).ok().as_ref() != Some(&config_of(vault)?) {
            return Err(wrong("not the path of this vault in a snapshot"));
        }
        if place(&path)? == place(vault)? {
            return Err(wrong("the vault itself"));
        }
        Ok(Frozen { hook: self, vault: path, removed: false })
    }

    /// Removes the snapshot that a run which was cut off had left. Whether it is gone.
    pub(super) fn remove_left(&self, path: &Path) -> bool {
        let done = self.call("remove", path);
        if let Err(e) = &done {
            log::warn!("the snapshot of a run that was cut off, {}, is not removed: {e}", path.display());
        }
        done.is_ok() || !path.exists()
    }
}

impl Frozen<'_> {
    /// Removes the snapshot.
    pub(super) fn remove(mut self) -> Result<()> {
        self.removed = true;
        self.hook.call("remove", &self.vault).map(drop)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if !self.removed {
            self.hook.remove_left(&self.vault);
        }
    }
}

fn config_of(vault: &Path) -> Result<Vec<u8>> {
    let path = vault.join(VAULT_DIR).join(CONFIG_FILE);
    let mut config = Vec::new();
    let file = std::fs::File::open(&path).map_err(BackupError::io(&path))?;
    file.take(MAX_CONFIG as u64).read_to_end(&mut config).map_err(BackupError::io(&path))?;
    Ok(config)
}
