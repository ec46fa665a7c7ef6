//! Exit codes: a script can tell what went wrong without reading the message. Documented in `docs/CLI.md`.

use std::process::ExitCode;

/// How a command ended. The numbers are an interface: never reuse one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Exit {
    /// Done.
    Ok = 0,
    /// Failed in a way that has no code of its own: an I/O error of the disk below.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The directory is no vault.
    NotAVault = 3,
    /// The volume config, or a header, is of a newer format or does not decode.
    Format = 4,
    /// The volume config was changed.
    Tampered = 5,
    /// A key was refused: wrong passphrase, disabled or foreign key, store that others can read.
    KeyDenied = 6,
    /// A key cannot be had: no store, no such key, provider unreachable.
    KeyUnavailable = 7,
    /// The mount point cannot be used: missing, not a directory, not empty, busy.
    MountPoint = 8,
    /// FUSE cannot be used here: no device, no helper, no permission.
    Fuse = 9,
    /// Another mount holds the vault.
    InUse = 10,
    /// `check` found faults.
    Faults = 11,
    /// `init` refuses the directory: it holds something, is a vault already, or its filesystem keeps no xattrs.
    Unsuitable = 12,
    /// Interrupted before the end.
    Interrupted = 130,
}

impl Exit {
    /// The number.
    pub(super) fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
