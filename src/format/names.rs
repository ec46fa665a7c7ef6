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
/// What has no place is kept here, below the vault's own directory.
pub const LOST_FOUND: &str = "lost+found";
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_fill_255_characters_and_no_more() {
        assert_eq!(short_name(&[0xff; MAX_SHORT_SEALED]).len(), NAME_MAX);
        assert_eq!(short_name(&[0xff; MAX_SHORT_SEALED + 1]).len(), NAME_MAX + 1);
        let xattr = |len: usize| XATTR_PREFIX.len() + b64(&vec![0; len]).len();
        assert_eq!((xattr(MAX_SHORT_XATTR_SEALED), xattr(MAX_SHORT_XATTR_SEALED + 1)), (255, 257));
        assert_eq!(long_name(&[0; 32]).len(), 44);
    }

    #[test]
    fn each_kind_of_lower_name_is_told_apart() {
        assert_eq!(parse(short_name(&[5; 17]).as_bytes()), LowerName::Short(vec![5; 17]));
        assert_eq!(parse(short_name(&[5; 191]).as_bytes()), LowerName::Short(vec![5; 191]));
        assert_eq!(parse(long_name(&[6; 32]).as_bytes()), LowerName::Long([6; 32]));
        assert_eq!(parse(sidecar_name(&[6; 32]).as_bytes()), LowerName::Sidecar([6; 32]));
        assert_eq!(parse(b".efs.tmp."), LowerName::Temporary);
        assert_eq!(parse(b".efs.tmp.0011"), LowerName::Temporary);
        assert_eq!(parse(b".envelopefs"), LowerName::Vault);
    }

    #[test]
    fn what_this_program_does_not_write_is_foreign() {
        let seventeen = short_name(&[5; 17]);
        let foreign = [
            String::new(),
            ".".into(),
            "..".into(),
            "lost+found".into(),
            "README".into(),
            ".envelopefs2".into(),
            ".efs.tmp".into(),
            short_name(&[5; 16]),
            short_name(&[5; 192]),
            format!("{seventeen}="),
            format!("{seventeen}\n"),
            // The last character of 17 bytes carries two zero bits; with one of them set it is another spelling.
            format!("{}V", &seventeen[..22]),
            "~".into(),
            "~.n".into(),
            format!("{}x", long_name(&[6; 32])),
            format!("{}.n", sidecar_name(&[6; 32])),
            format!("~{}", b64(&[6; 31])),
            long_name(&[6; 32]).replace('B', "+"),
        ];
        for name in foreign {
            assert_eq!(parse(name.as_bytes()), LowerName::Foreign, "{name:?}");
        }
        assert_eq!(parse(&[0xff; 23]), LowerName::Foreign);
    }

    proptest! {
        #[test]
        fn names_survive_encoding(sealed in proptest::collection::vec(any::<u8>(), 17..=191)) {
            prop_assert_eq!(parse(short_name(&sealed).as_bytes()), LowerName::Short(sealed));
        }

        #[test]
        fn bytes_have_one_spelling(text in "[A-Za-z0-9_-]{0,40}") {
            if let Some(bytes) = unb64(text.as_bytes()) {
                prop_assert_eq!(b64(&bytes), text);
            }
        }
    }
}
