//! The filesystems that are compared: what each of them is, and how it is made and served.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::fscrypt;
use super::lower::LowerKind;
use crate::bench::error::BenchError;
use crate::bench::keeper::Keeper;

/// For making a filesystem, whose passphrase is stretched on purpose.
const PATIENCE: Duration = Duration::from_secs(60);
/// The passphrase of everything that is made here, and removed again.
const PASSPHRASE: &str = "bench";

/// A filesystem to measure.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Peer {
    /// A bind mount of the lower directory.
    Plain,
    /// A FUSE filesystem that keeps nothing, on this program's own FUSE layer with its settings: the ceiling.
    Null,
    /// This program.
    Envelopefs,
    /// In Go.
    Gocryptfs,
    /// In C++.
    Securefs,
    /// In C++; hides sizes and structure too.
    Cryfs,
    /// In C++.
    Encfs,
    /// The kernel's own, on a directory of the ext4 image.
    Fscrypt,
    /// The user's own mount.
    Target,
}

/// Everything that differs between peers, in the order of a table.
const ABOUT: [(Peer, &str, &str); 9] = [
    (Peer::Plain, "plain", "the lower directory itself, bind-mounted"),
    (
        Peer::Null,
        "null",
        "envelopefs bench null-fs: no cipher, no lower filesystem, the same FUSE layer and settings",
    ),
    (Peer::Envelopefs, "envelopefs", "defaults: journal, sandbox; embedded KMS with a key file"),
    (Peer::Gocryptfs, "gocryptfs", "defaults (AES-256-GCM); scrypt cost 10 at init only"),
    (Peer::Securefs, "securefs", "defaults (AES-256-GCM, lite format); 1 round of PBKDF at create only"),
    (Peer::Cryfs, "cryfs", "defaults (XChaCha20-Poly1305, 16 KiB blocks)"),
    (Peer::Encfs, "encfs", "--standard (AES-192-CBC, no MAC), --public"),
    (Peer::Fscrypt, "fscrypt", "kernel, ext4: AES-256-XTS content, AES-256-CTS names; no integrity"),
    (Peer::Target, "target", "as it was mounted"),
];

impl Peer {
    /// Those that a run mounts itself.
    pub const ALL: [Self; 8] = [
        Self::Plain,
        Self::Null,
        Self::Envelopefs,
        Self::Gocryptfs,
        Self::Securefs,
        Self::Cryfs,
        Self::Encfs,
        Self::Fscrypt,
    ];

    /// Encrypting FUSE filesystems of others: the ones to beat.
    pub const RIVALS: [Self; 4] = [Self::Gocryptfs, Self::Securefs, Self::Cryfs, Self::Encfs];

    /// Its name, which is also its program's.
    pub fn name(self) -> &'static str {
        ABOUT.iter().find(|a| a.0 == self).map_or("", |a| a.1)
    }

    /// How it is set.
    pub fn settings(self) -> &'static str {
        ABOUT.iter().find(|a| a.0 == self).map_or("", |a| a.2)
    }

    /// Why it cannot take part on this lower filesystem.
    pub fn hindrance(self, lower: LowerKind) -> Option<String> {
        match self {
            Self::Fscrypt if lower != LowerKind::Ext4 => {
                Some(format!("{} has no encryption of its own", lower.name()))
            }
            peer if Self::RIVALS.contains(&peer) && !on_path(peer.name()) => {
                Some(format!("{} is not installed", peer.name()))
            }
            _ => None,
        }
    }

    /// What its program calls its version.
    pub(super) fn version(self, keeper: &Keeper) -> String {
        let (program, argument) = match self {
            Self::Plain | Self::Fscrypt => return "kernel".to_owned(),
            Self::Null | Self::Envelopefs | Self::Target => return env!("CARGO_PKG_VERSION").to_owned(),
            Self::Gocryptfs => ("gocryptfs", "-version"),
            // Its own `version` knows no number in Debian's build.
            Self::Securefs => ("dpkg-query", "-Wf${Version}"),
            Self::Cryfs => ("cryfs", "--version"),
            Self::Encfs => ("encfs", "--version"),
        };
        let mut command = Command::new(program);
        command.arg(argument).stdin(Stdio::null()).env("CRYFS_NO_UPDATE_CHECK", "true");
        if self == Self::Securefs {
            command.arg("securefs");
        }
        // encfs tells it on stderr, and some end with a status of their own.
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let said = keeper.check().ok().and_then(|()| command.output().ok());
        said.and_then(|o| {
            let text = if o.stdout.is_empty() { o.stderr } else { o.stdout };
            let text = String::from_utf8_lossy(&text).into_owned();
            text.lines().find(|l| l.contains(|c: char| c.is_ascii_digit())).map(|l| l.trim().to_owned())
        })
        .unwrap_or_else(|| "unknown".to_owned())
    }

    /// Makes what it keeps in `lower`, then gives the command that serves it at `mnt` in the foreground, and what that
    /// command reads on its standard input. None where the kernel serves it.
    pub(super) fn prepare(
        self,
        lower: &Path,
        mnt: &Path,
        secrets: &Path,
        keeper: &Keeper,
    ) -> Result<Option<(Command, &'static str)>, BenchError> {
        let serve = match self {
            Self::Plain | Self::Target => {
                bind(lower, mnt)?;
                return Ok(None);
            }
            Self::Fscrypt => {
                fscrypt::encrypt(lower)?;
                bind(lower, mnt)?;
                return Ok(None);
            }
            Self::Null => {
                let mut serve = Command::new(own_program()?);
                serve.args(["bench", "null-fs"]).arg(mnt);
                (serve, "")
            }
            Self::Envelopefs => (envelopefs(lower, mnt, secrets, keeper)?, ""),
            Self::Gocryptfs => (gocryptfs(lower, mnt, secrets, keeper)?, ""),
            Self::Securefs => {
                let mut create = Command::new("securefs");
                create
                    .args(["create", "--pass", PASSPHRASE, "--rounds", "1"])
                    .arg(lower)
                    .stdin(Stdio::null());
                keeper.output(&mut create, PATIENCE)?;
                let mut serve = Command::new("securefs");
                serve.args(["mount", "--pass", PASSPHRASE]).arg(lower).arg(mnt);
                (serve, "")
            }
            Self::Cryfs => {
                let mut serve = Command::new("cryfs");
                // Its memory of other filesystems stays out of the home directory.
                serve.env("CRYFS_FRONTEND", "noninteractive").env("CRYFS_NO_UPDATE_CHECK", "true");
                serve.env("CRYFS_LOCAL_STATE_DIR", secrets).arg("-f").arg(lower).arg(mnt);
                (serve, PASSPHRASE)
            }
            Self::Encfs => {
                let mut serve = Command::new("encfs");
                serve.args(["-f", "-S", "--standard", "--public"]).arg(lower).arg(mnt);
                (serve, PASSPHRASE)
            }
        };
        Ok(Some(serve))
    }
}

fn envelopefs(lower: &Path, mnt: &Path, secrets: &Path, keeper: &Keeper) -> Result<Command, BenchError> {
    let exe = own_program()?;
    let kms = secrets.join("kms");
    let mut init = Command::new(&exe);
    init.arg("init").arg(lower).arg("--kms-key-file").arg("--kms-dir").arg(&kms).stdin(Stdio::null());
    keeper.output(&mut init, PATIENCE)?;
    let mut serve = Command::new(exe);
    serve.arg("mount").arg(lower).arg(mnt).arg("--foreground").arg("--kms-dir").arg(kms);
    Ok(serve)
}

fn gocryptfs(lower: &Path, mnt: &Path, secrets: &Path, keeper: &Keeper) -> Result<Command, BenchError> {
    let passfile = secrets.join("passphrase");
    let mut file = fs::File::create(&passfile).map_err(BenchError::io(&passfile))?;
    file.write_all(PASSPHRASE.as_bytes()).map_err(BenchError::io(&passfile))?;
    let gocryptfs = || {
        let mut command = Command::new("gocryptfs");
        command.args(["-q", "-passfile"]).arg(&passfile).stdin(Stdio::null());
        command
    };
    keeper.output(gocryptfs().args(["-init", "-scryptn", "10"]).arg(lower), PATIENCE)?;
    let mut serve = gocryptfs();
    serve.args(["-fg", "-nosyslog"]).arg(lower).arg(mnt);
    Ok(serve)
}

fn bind(lower: &Path, mnt: &Path) -> Result<(), BenchError> {
    rustix::mount::mount_bind(lower, mnt).map_err(BenchError::io(mnt))
}

fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

/// This program's file.
pub(super) fn own_program() -> Result<PathBuf, BenchError> {
    std::env::current_exe().map_err(BenchError::io(Path::new("/proc/self/exe")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every peer has a name of its own and says how it is set; fscrypt stays where there is none.
    #[test]
    fn every_peer_is_told_about() {
        let mut names: Vec<_> = Peer::ALL.iter().map(|p| p.name()).collect();
        assert!(Peer::ALL.iter().all(|p| !p.settings().is_empty() && !p.name().is_empty()));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Peer::ALL.len());
        assert!(Peer::Fscrypt.hindrance(LowerKind::Tmpfs).is_some());
        assert!(Peer::Plain.hindrance(LowerKind::Tmpfs).is_none());
    }
}
