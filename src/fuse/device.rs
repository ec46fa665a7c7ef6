//! Getting a mounted `/dev/fuse` descriptor: by mount(2) where that is allowed, else through fusermount3.
//!
//! Both ways the mount shows as `fuse.envelopefs`, with the vault as its source.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::{Errno, FdFlags};
use rustix::mount::MountFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::channel::open_device;
use super::rings::NoRings;
use super::session::MountConfig;

/// Why nothing was mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No `/dev/fuse`, or no permission to open it.
    #[error("/dev/fuse: {0}")]
    NoDevice(io::Error),
    /// An ordinary user needs fusermount3, and it is not installed.
    #[error("fusermount3: {0}")]
    NoHelper(io::Error),
    /// fusermount3 refused `allow_other`.
    #[error("mounting with allow_other is not allowed for ordinary users")]
    AllowOther,
    /// fusermount3 refused, in its words.
    #[error("fusermount3: {0}")]
    Helper(String),
    /// mount(2) refused.
    #[error("mount: {0}")]
    Mount(io::Error),
    /// Rings were asked for, and there are none.
    #[error("{0}")]
    NoRings(#[from] NoRings),
    /// The kernel did not agree on a protocol, or a file of /proc could not be read.
    #[error("{0}")]
    Session(#[from] io::Error),
}

/// Mounts at `mount_point`; gives the device to serve.
pub(super) fn open(mount_point: &Path, config: &MountConfig) -> Result<OwnedFd, MountError> {
    // The helper too opens it as this user.
    let device = open_device().map_err(|e| MountError::NoDevice(e.into()))?;
    match direct(&device, mount_point, config) {
        Ok(()) => Ok(device),
        Err(Errno::PERM) => {
            drop(device);
            helper(mount_point, config)
        }
        Err(e) => Err(MountError::Mount(e.into())),
    }
}

fn direct(device: &OwnedFd, mount_point: &Path, config: &MountConfig) -> rustix::io::Result<()> {
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::NODEV, !config.dev);
    flags.set(MountFlags::NOSUID, !config.suid);
    flags.set(MountFlags::NOEXEC, config.no_exec);
    flags.set(MountFlags::RDONLY, config.read_only);
    flags.set(MountFlags::NOATIME, config.no_atime);
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions{}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
        if config.allow_other { ",allow_other" } else { "" }
    );
    let data = CString::new(data).expect("digits and words hold no NUL");
    rustix::mount::mount(&config.source, mount_point, "fuse.envelopefs", flags, data.as_c_str())
}

/// Lets the set-uid helper mount; it sends the device back over a socket.
fn helper(mount_point: &Path, config: &MountConfig) -> Result<OwnedFd, MountError> {
    let (ours, theirs) = UnixStream::pair()?;
    // Exactly one child is started between here and the drop below, so only it inherits the descriptor.
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).map_err(io::Error::from)?;
    let mut child = Command::new("fusermount3")
        .arg("-o")
        .arg(helper_options(config))
        .arg("--")
        .arg(mount_point)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(MountError::NoHelper)?;
    drop(theirs);
    let device = receive(&ours);
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut said);
    }
    let status = child.wait()?;
    match device {
        Ok(Some(fd)) if status.success() => Ok(fd),
        _ if said.contains("user_allow_other") => Err(MountError::AllowOther),
        _ => Err(MountError::Helper(said.trim().trim_start_matches("fusermount3: ").to_owned())),
    }
}

/// Options in the helper's syntax: commas and backslashes of the source are escaped.
fn helper_options(config: &MountConfig) -> OsString {
    let mut out = b"default_permissions,subtype=envelopefs".to_vec();
    let words = [
        (config.allow_other, ",allow_other"),
        (config.read_only, ",ro"),
        (config.no_atime, ",noatime"),
        (config.no_exec, ",noexec"),
        (config.suid, ",suid"),
        (config.dev, ",dev"),
    ];
    for (_, word) in words.iter().filter(|(on, _)| *on) {
        out.extend_from_slice(word.as_bytes());
    }
    out.extend_from_slice(b",fsname=");
    for byte in config.source.as_os_str().as_bytes() {
        if matches!(byte, b',' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    OsString::from_vec(out)
}

fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0_u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bufs = [IoSliceMut::new(&mut byte)];
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut bufs, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let first = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(first)
}

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountLine {
    /// `MAJOR:MINOR` of the filesystem.
    pub device: String,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// `fuse.envelopefs`, `ext4`, ...
    pub fstype: String,
    /// What is mounted: for ours, the vault.
    pub source: PathBuf,
}

/// Every mount that this process sees, in mount order. Asks no filesystem, so a dead mount does not hang it.
pub fn mountinfo() -> io::Result<Vec<MountLine>> {
    let mut text = Vec::new();
    File::open("/proc/self/mountinfo")?.read_to_end(&mut text)?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse_line).collect())
}

fn parse_line(line: &[u8]) -> Option<MountLine> {
    let mut fields = line.split(|b| *b == b' ');
    let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let mount_point = unescape(fields.nth(1)?);
    let mut behind = fields.skip_while(|f| *f != b"-").skip(1);
    let fstype = String::from_utf8(behind.next()?.to_vec()).ok()?;
    let source = unescape(behind.next()?);
    Some(MountLine { device, mount_point, fstype, source })
}

/// A path as `/proc/self/mountinfo` writes it: space, tab, newline and backslash as three octal digits.
fn unescape(text: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let digits = (*first == b'\\')
            .then(|| tail.get(..3).and_then(|d| std::str::from_utf8(d).ok()))
            .flatten()
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        match digits {
            Some(byte) => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mount line with escaped blanks and optional fields gives device, place, type and source.
    #[test]
    fn a_mountinfo_line_is_read_with_its_escapes() {
        let line =
            br"40 28 0:42 / /mnt/my\040dir rw,nosuid shared:5 - fuse.envelopefs /srv/a\134b rw,user_id=0";
        let parsed = parse_line(line).expect("a line");
        assert_eq!(parsed.device, "0:42");
        assert_eq!(parsed.mount_point, Path::new("/mnt/my dir"));
        assert_eq!(parsed.fstype, "fuse.envelopefs");
        assert_eq!(parsed.source, Path::new(r"/srv/a\b"));
        assert_eq!(parse_line(b"nonsense"), None);
    }

    /// A comma in the vault's path does not become an option of its own.
    #[test]
    fn the_helper_sees_commas_of_the_source_escaped() {
        let config = MountConfig { source: "/v,suid".into(), read_only: true, ..MountConfig::default() };
        let options = helper_options(&config);
        assert_eq!(options, r"default_permissions,subtype=envelopefs,ro,fsname=/v\,suid");
    }
}
