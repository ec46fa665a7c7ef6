//! The filesystems that hold the ciphertext: fresh ones of a known kind, so that runs compare.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::mount::UnmountFlags;

use crate::bench::error::BenchError;
use crate::bench::keeper::Keeper;

/// For mkfs and mount.
const PATIENCE: Duration = Duration::from_secs(60);

/// A kind of lower filesystem.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LowerKind {
    /// In memory: shows the filesystem's own cost.
    Tmpfs,
    /// In an image file of the working directory: shows its I/O.
    Ext4,
    /// Whatever the user's own mount stands on.
    Own,
}

impl LowerKind {
    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tmpfs => "tmpfs",
            Self::Ext4 => "ext4",
            Self::Own => "own",
        }
    }
}

/// A mounted lower filesystem; unmounted when dropped.
#[derive(Debug)]
pub(super) struct Lower {
    pub(super) dir: PathBuf,
    /// The image of an ext4, removed with it.
    pub(super) image: Option<PathBuf>,
    /// Its block device, as /sys/block names it.
    pub(super) device: Option<String>,
    /// Why the image's own pages may be in the page cache.
    pub(super) caveat: Option<String>,
}

impl Lower {
    /// Makes and mounts one of `bytes` below `work`.
    pub(super) fn mount(
        kind: LowerKind,
        work: &Path,
        bytes: u64,
        keeper: &Keeper,
    ) -> Result<Self, BenchError> {
        let dir = work.join(kind.name());
        fs::create_dir_all(&dir).map_err(BenchError::io(&dir))?;
        let mut lower = Self { dir, image: None, device: None, caveat: None };
        if kind == LowerKind::Tmpfs {
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", &format!("size={bytes},mode=755"), "tmpfs"]).arg(&lower.dir);
            keeper.output(mount.stdin(Stdio::null()), PATIENCE)?;
            return Ok(lower);
        }
        let image = work.join("ext4.image");
        File::create(&image).and_then(|f| f.set_len(bytes)).map_err(BenchError::io(&image))?;
        lower.image = Some(image.clone());
        let mut mkfs = Command::new("mkfs.ext4");
        // `encrypt` for fscrypt's directory; it changes nothing for the others.
        mkfs.args(["-q", "-O", "encrypt", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(&image);
        keeper.output(mkfs.stdin(Stdio::null()), PATIENCE)?;
        let device = lower.attach(&image, keeper)?;
        lower.device = device.strip_prefix("/dev/").map(str::to_owned);
        let mut mount = Command::new("mount");
        mount.args(["-t", "ext4", "-o", "noatime"]).arg(&device).arg(&lower.dir).stdin(Stdio::null());
        let mounted = keeper.output(&mut mount, PATIENCE);
        // From now on it goes with the mount, also when this run is killed.
        let detached =
            keeper.output(Command::new("losetup").arg("-d").arg(&device).stdin(Stdio::null()), PATIENCE);
        mounted?;
        detached?;
        Ok(lower)
    }

    /// A loop device without a cache of its own below the filesystem's, where the disk allows that.
    fn attach(&mut self, image: &Path, keeper: &Keeper) -> Result<String, BenchError> {
        let losetup = |direct: bool| {
            let mut command = Command::new("losetup");
            command.args(["--find", "--show", if direct { "--direct-io=on" } else { "--direct-io=off" }]);
            command.arg(image).stdin(Stdio::null());
            command
        };
        let device = match keeper.output(&mut losetup(true), PATIENCE) {
            Err(e @ BenchError::Failed { .. }) => {
                self.caveat = Some(format!("the image is cached twice, its disk takes no O_DIRECT ({e})"));
                keeper.output(&mut losetup(false), PATIENCE)?
            }
            other => other?,
        };
        Ok(device.trim().to_owned())
    }
}

/// Flushes of a disk's cache since it was attached (Documentation/block/stat.rst, field 16).
pub(super) fn flushes(device: &str) -> Result<u64, BenchError> {
    let path = Path::new("/sys/block").join(device).join("stat");
    let text = fs::read_to_string(&path).map_err(BenchError::io(&path))?;
    text.split_whitespace()
        .nth(15)
        .and_then(|n| n.parse().ok())
        .ok_or(BenchError::Figure("count of the disk's flushes"))
}

impl Drop for Lower {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.dir, UnmountFlags::DETACH);
        let _ = fs::remove_dir(&self.dir);
        if let Some(image) = &self.image {
            let _ = fs::remove_file(image);
        }
    }
}
