//! What a KMS operation can fail with: AWS's exceptions by their names, and what only a local store knows.

use std::path::PathBuf;

/// Why a KMS operation failed. AWS's exceptions carry AWS's messages; the others say what to do.
#[derive(Debug, thiserror::Error)]
pub enum KmsError {
    /// No such key, alias or version.
    #[error("{0}")]
    NotFound(String),
    /// The key was disabled.
    #[error("{0} is disabled.")]
    Disabled(String),
    /// The key is in a state that does not allow the operation.
    #[error("{0}")]
    InvalidState(String),
    /// The blob was changed, cut, or made under another encryption context. AWS gives no text, on purpose:
    /// an attacker learns nothing from it.
    #[error(
        "the ciphertext does not open: it was changed, or the encryption context is not the one it was made with"
    )]
    InvalidCiphertext,
    /// The blob names another key than the caller.
    #[error("The key ID in the request does not identify a CMK that can perform this operation.")]
    IncorrectKey,
    /// The alias is taken.
    #[error("An alias with the name {0} already exists")]
    AlreadyExists(String),
    /// A character that no alias has, or a reserved name.
    #[error("{0}")]
    InvalidAliasName(String),
    /// A parameter is out of range.
    #[error("{0}")]
    Validation(String),
    /// A limit was reached.
    #[error("{0}")]
    LimitExceeded(String),
    /// Any other of AWS's exceptions. An empty text is one that AWS does not give.
    #[error("{}", if text.is_empty() { code } else { text.as_str() })]
    Exception {
        /// AWS's name.
        code: &'static str,
        /// AWS's message.
        text: String,
    },
    /// There is no store where one was looked for.
    #[error("{}: there is no KMS store here; make one with `envelopefs kms init`, or name another with --kms-dir", .0.display())]
    NoStore(PathBuf),
    /// A store (or something else) stands where one was to be made.
    #[error("{}: a KMS store, or something else, is here already; remove it, or name another place with --kms-dir", .0.display())]
    StoreExists(PathBuf),
    /// Others could read the store or its key file.
    #[error("{}: {why}; {cure}", path.display())]
    Permissions {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        why: String,
        /// What to do.
        cure: String,
    },
    /// Wrong or missing passphrase, missing or wrong key file.
    #[error("{0}")]
    Denied(String),
    /// Another process holds the store.
    #[error("{}: another process has held the KMS store for {seconds} s; end it, or try again", path.display())]
    Busy {
        /// The store.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// A file of the store does not decode, or a record was changed.
    #[error("{}: the KMS store is damaged: {why}; restore it from a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Written by a newer build.
    #[error("{}: KMS store of format {found}, this build reads up to {newest}; use a newer envelopefs", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// As stored.
        found: u32,
        /// What this build knows.
        newest: u32,
    },
    /// The disk below the store.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl KmsError {
    /// The name of the exception that AWS KMS gives in the same case.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "NotFoundException",
            Self::Disabled(_) => "DisabledException",
            Self::InvalidState(_) => "KMSInvalidStateException",
            Self::InvalidCiphertext => "InvalidCiphertextException",
            Self::IncorrectKey => "IncorrectKeyException",
            Self::AlreadyExists(_) => "AlreadyExistsException",
            Self::InvalidAliasName(_) => "InvalidAliasNameException",
            Self::Validation(_) => "ValidationException",
            Self::LimitExceeded(_) => "LimitExceededException",
            Self::Exception { code, .. } => code,
            Self::Permissions { .. } | Self::Denied(_) => "AccessDeniedException",
            Self::Busy { .. } => "DependencyTimeoutException",
            Self::NoStore(_)
            | Self::StoreExists(_)
            | Self::Damaged { .. }
            | Self::Newer { .. }
            | Self::Io { .. } => "KMSInternalException",
        }
    }

    /// The HTTP status that goes with it (the service model's, else 400).
    pub fn status(&self) -> u16 {
        match self.code() {
            "KMSInternalException" | "KeyUnavailableException" | "InternalFailure" => 500,
            "DependencyTimeoutException" => 503,
            "RequestEntityTooLargeException" => 413,
            _ => 400,
        }
    }

    /// What is told over the wire. `None` where AWS gives no text, and where ours would name files of this host.
    pub fn wire_text(&self) -> Option<String> {
        match self {
            Self::InvalidCiphertext => None,
            Self::Exception { text, .. } if text.is_empty() => None,
            Self::NoStore(_)
            | Self::StoreExists(_)
            | Self::Permissions { .. }
            | Self::Busy { .. }
            | Self::Damaged { .. }
            | Self::Newer { .. }
            | Self::Io { .. } => Some("The service failed; its log says why.".into()),
            other => Some(other.to_string()),
        }
    }

    /// An exception by its name.
    pub(super) fn exception(code: &'static str, text: impl Into<String>) -> Self {
        Self::Exception { code, text: text.into() }
    }

    /// `1 validation error detected: ...`.
    pub(super) fn constraint(member: &str, value: Option<&str>, rule: &str) -> Self {
        let value = value.map(|v| format!("'{v}' ")).unwrap_or_default();
        Self::Validation(format!(
            "1 validation error detected: Value {value}at '{member}' failed to satisfy constraint: {rule}"
        ))
    }

    /// UnsupportedOperationException.
    pub(super) fn unsupported(text: impl Into<String>) -> Self {
        Self::exception("UnsupportedOperationException", text)
    }

    /// Attaches the file to what the system said.
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        |source| Self::Io { path, source }
    }
}
