//! The filesystems that hold the ciphertext: fresh ones of a known kind, so that runs compare.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::{BenchError, output};

/// A kind of lower filesystem.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LowerKind {
    /// In memory: shows the filesystem's own cost.
    Tmpfs,
    /// In an image file of the working directory: shows its I/O.
    Ext4,
}

impl LowerKind {
    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tmpfs => "tmpfs",
            Self::Ext4 => "ext4",
        }
    }
}

/// A mounted lower filesystem; unmounted when dropped.
#[derive(Debug)]
pub(super) struct Lower {
    pub(super) dir: PathBuf,
    image: Option<PathBuf>,
}

impl Lower {
    /// Makes and mounts one of `bytes` below `work`.
    pub(super) fn mount(kind: LowerKind, work: &Path, bytes: u64) -> Result<Self, BenchError> {
        let dir = work.join(kind.name());
        fs::create_dir_all(&dir).map_err(BenchError::io(&dir))?;
        let mut lower = Self { dir, image: None };
        let mut mount = Command::new("mount");
        match kind {
            LowerKind::Tmpfs => mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]),
            LowerKind::Ext4 => {
                let image = work.join("ext4.image");
                File::create(&image).and_then(|f| f.set_len(bytes)).map_err(BenchError::io(&image))?;
                lower.image = Some(image.clone());
                output(Command::new("mkfs.ext4").args(["-q", "-E", "lazy_itable_init=0"]).arg(&image))?;
                mount.args(["-o", "loop"]).arg(image)
            }
        };
        output(mount.arg(&lower.dir))?;
        Ok(lower)
    }
}

impl Drop for Lower {
    fn drop(&mut self) {
        let _ = output(Command::new("umount").arg("-l").arg(&self.dir));
        let _ = fs::remove_dir(&self.dir);
        if let Some(image) = &self.image {
            let _ = fs::remove_file(image);
        }
    }
}
