//! How encrypted names, symlink targets and xattr names look on the lower filesystem. Text only: no keys here.
//!
//! - A file name: base64url (no padding) of tag and ciphertext. Up to 175 plaintext bytes fit 255 characters.
//! - A longer one: `~` and base64url of the SHA-256 of tag and ciphertext (44 characters), beside it the
//!   *sidecar* file `~HASH.n` whose content is tag and ciphertext.
//! - `.efs.tmp.` begins the names of files and directories that are still being made.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The directory of the vault that holds what is not user data. Does not show in the mount.
pub const VAULT_DIR: &str = ".envelopefs";
/// Begins temporary lower names.
pub const TMP_PREFIX: &str = ".efs.tmp.";
/// Ends a sidecar's name.
pub const SIDECAR_SUFFIX: &str = ".n";
/// Begins a long name.
pub const LONG_MARK: char = '~';
/// The shortest sealed name: a tag and one byte.
pub const MIN_SEALED: usize = 17;
/// The longest sealed name (tag and ciphertext) that is written as base64url itself.
pub const MAX_SHORT_SEALED: usize = 191;
/// The longest plaintext name, as everywhere on Linux.
pub const NAME_MAX: usize = 255;
/// Begins the lower xattr that holds an encrypted user xattr; then base64url of the sealed name.
pub const XATTR_PREFIX: &str = "user.efs.x.";
/// The longest sealed xattr name that is written as base64url itself: 255 characters with its prefix.
pub const MAX_SHORT_XATTR_SEALED: usize = 183;
/// Begins the lower xattr of an encrypted xattr whose name is too long; then base64url of the sealed name's SHA-256.
pub const LONG_XATTR_PREFIX: &str = "user.efs.y.";

/// What a lower directory entry is, judged by its name alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LowerName {
    /// An encoded name: tag and ciphertext.
    Short(Vec<u8>),
    /// A long name: its sealed bytes stand in the sidecar; here their SHA-256.
    Long([u8; 32]),
    /// The sidecar of a long name with this SHA-256.
    Sidecar([u8; 32]),
    /// A file or directory that is still being made, or that a crash left.
    Temporary,
    /// `.envelopefs`: internal at the vault's top.
    Vault,
    /// None of these: nothing that this program wrote.
    Foreign,
}

/// Text of a lower name for sealed bytes (tag and ciphertext) of at most [`MAX_SHORT_SEALED`].
pub fn short_name(sealed: &[u8]) -> String {
    b64(sealed)
}

/// Text of a long lower name for the SHA-256 of sealed bytes.
pub fn long_name(hash: &[u8; 32]) -> String {
    format!("{LONG_MARK}{}", b64(hash))
}

/// Text of the sidecar's name for the SHA-256 of sealed bytes.
pub fn sidecar_name(hash: &[u8; 32]) -> String {
    format!("{LONG_MARK}{}{SIDECAR_SUFFIX}", b64(hash))
}

/// What a lower name is.
pub fn parse(lower: &[u8]) -> LowerName {
    if lower == VAULT_DIR.as_bytes() {
        return LowerName::Vault;
    }
    if lower.starts_with(TMP_PREFIX.as_bytes()) {
        return LowerName::Temporary;
    }
    if let Some(rest) = lower.strip_prefix(&[LONG_MARK as u8]) {
        return match rest.strip_suffix(SIDECAR_SUFFIX.as_bytes()) {
            Some(hash) => parse_hash(hash).map_or(LowerName::Foreign, LowerName::Sidecar),
            None => parse_hash(rest).map_or(LowerName::Foreign, LowerName::Long),
        };
    }
    match unb64(lower) {
        Some(sealed) if (MIN_SEALED..=MAX_SHORT_SEALED).contains(&sealed.len()) => LowerName::Short(sealed),
        _ => LowerName::Foreign,
    }
}

fn parse_hash(text: &[u8]) -> Option<[u8; 32]> {
    unb64(text)?.try_into().ok()
}

/// base64url without padding.
pub fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Decodes base64url without padding, refusing any other spelling of the same bytes.
pub fn unb64(text: &[u8]) -> Option<Vec<u8>> {
    // The engine refuses padding, other alphabets, and trailing bits that are not zero.
    URL_SAFE_NO_PAD.decode(text).ok()
}
