//! Why a request failed, and the one place where that becomes an errno.

use rustix::io::Errno;

use crate::content::ContentError;
use crate::keys::KeyError;

/// Why a request failed. One place turns it into an errno: [`FsError::errno`].
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// A plain errno of POSIX semantics (ENOENT, EEXIST, ...): not worth a log line.
    #[error("{0}")]
    Errno(#[from] Errno),
    /// Content that cannot be read or written.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// A key that cannot be had.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A regular file without its header: a tool dropped the xattr.
    #[error("the file has no header (xattr user.efs.key): a tool dropped it; restore it from a backup")]
    NoHeader,
    /// A name, symlink target, xattr or directory id that does not decode.
    #[error("{0}")]
    Undecodable(&'static str),
    /// What a crash left in the journal cannot be brought in.
    #[error("the journal that a crash left cannot be brought in: {0}; it stays for the next mount")]
    Replay(std::io::Error),
    /// Another mount holds the vault's lock.
    #[error("the vault is mounted already; unmount it first, or mount it everywhere with --shared")]
    Busy,
}

impl FsError {
    /// The errno for the caller.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Errno(e) => e.raw_os_error(),
            Self::Content(e) => content_errno(e),
            Self::Key(e) => key_errno(e),
            // ENOKEY sends an operator to the keys; EIO would send him to the disk.
            Self::NoHeader => libc::ENOKEY,
            Self::Undecodable(_) => libc::EIO,
            Self::Replay(e) => e.raw_os_error().unwrap_or(libc::EIO),
            Self::Busy => libc::EBUSY,
        }
    }

    /// Whether the operator should see a log line: damage and key trouble, not ENOENT or a full disk.
    pub fn is_noteworthy(&self) -> bool {
        match self {
            Self::Errno(_) | Self::Busy | Self::Content(ContentError::TooLong) => false,
            Self::Content(ContentError::Io(e)) => {
                !matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG))
            }
            // `keys` has one line for the provider's whole outage.
            Self::Key(e) => !e.is_outage(),
            Self::Content(ContentError::Damaged(_))
            | Self::NoHeader
            | Self::Replay(_)
            | Self::Undecodable(_) => true,
        }
    }
}

fn content_errno(e: &ContentError) -> i32 {
    match e {
        ContentError::Io(e) => e.raw_os_error().unwrap_or(libc::EIO),
        ContentError::Damaged(_) => libc::EIO,
        ContentError::TooLong => libc::EFBIG,
    }
}

fn key_errno(e: &KeyError) -> i32 {
    match e {
        KeyError::Uri { .. } | KeyError::NotFound(_) | KeyError::Unreachable(_) | KeyError::NoSuchRow(_) => {
            libc::ENOKEY
        }
        KeyError::Denied(_) | KeyError::Disabled(_) => libc::EACCES,
        KeyError::Foreign => libc::EKEYREJECTED,
        KeyError::Header(_) => libc::EIO,
    }
}

/// Result of a filesystem operation.
pub type Result<T> = std::result::Result<T, FsError>;

#[cfg(test)]
mod tests {
    use super::*;

    /// A missing key, a refused one and a foreign one are told apart, and none of them looks like a broken disk.
    #[test]
    fn key_trouble_has_its_own_errnos() {
        let of = |e: KeyError| FsError::from(e).errno();
        assert_eq!(of(KeyError::Unreachable(String::new())), libc::ENOKEY);
        assert_eq!(of(KeyError::Denied(String::new())), libc::EACCES);
        assert_eq!(of(KeyError::Disabled(String::new())), libc::EACCES);
        assert_eq!(of(KeyError::Foreign), libc::EKEYREJECTED);
        assert_eq!(FsError::NoHeader.errno(), libc::ENOKEY);
    }

    /// A full disk reaches the writer as ENOSPC and does not fill the log as well.
    #[test]
    fn a_full_disk_is_enospc_and_not_logged() {
        let full = std::io::Error::from_raw_os_error(libc::ENOSPC);
        let e = FsError::from(ContentError::Io(full));
        assert_eq!(e.errno(), libc::ENOSPC);
        assert!(!e.is_noteworthy());
    }
}
