//! Why a measurement failed.

use std::io;
use std::process::Command;

/// Why a measurement failed.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Mounting and dropping caches need root.
    #[error("the mounts of a measurement need root")]
    NotRoot,
    /// A program that is needed is not installed.
    #[error("{0} is not installed")]
    Missing(String),
    /// A program failed.
    #[error("{command}: {said}")]
    Failed {
        /// As it was called.
        command: String,
        /// What it said.
        said: String,
    },
    /// A daemon ended, or did not mount in time.
    #[error("{peer} does not mount: {why}")]
    NoMount {
        /// Which.
        peer: &'static str,
        /// Its end, or that it took too long.
        why: String,
    },
    /// fio's report lacks a figure.
    #[error("fio's report has no {0}")]
    Figure(&'static str),
    /// A file or directory.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

impl BenchError {
    /// For `map_err` on a path.
    pub(super) fn io(path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io { path, source }
    }
}

/// Runs a program; gives its standard output.
pub(super) fn output(command: &mut Command) -> Result<String, BenchError> {
    let shown = format!("{command:?}");
    let output = command.output().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => BenchError::Missing(command.get_program().to_string_lossy().into_owned()),
        _ => BenchError::Failed { command: shown.clone(), said: e.to_string() },
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(BenchError::Failed { command: shown, said: format!("{}: {said}", output.status) });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
