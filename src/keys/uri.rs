//! Key URIs: which provider, and which of its keys.

use super::KeyError;

/// The key that `init` makes and uses where none is named.
pub const DEFAULT_URI: &str = "kms:embedded/alias/envelopefs";

const EMBEDDED: &str = "kms:embedded/";
/// Providers that have a name and no code in this build.
const LATER: [(&str, &str); 4] = [
    ("kms:https://", "KMS servers"),
    ("kms:http://", "KMS servers"),
    ("kms:aws/", "AWS KMS"),
    ("pkcs11:", "PKCS#11 tokens"),
];

/// A key URI that this build can serve.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeyUri {
    /// `kms:embedded/KEY`: a key of the embedded KMS, by id, ARN, `alias/NAME` or alias ARN.
    Embedded(String),
}

impl KeyUri {
    /// Reads a URI.
    pub fn parse(uri: &str) -> Result<Self, KeyError> {
        let refuse = |why: String| KeyError::Uri { uri: uri.to_owned(), why };
        if let Some(key) = uri.strip_prefix(EMBEDDED) {
            if key.is_empty() {
                return Err(refuse(format!("it names no key; use {EMBEDDED}alias/NAME or {EMBEDDED}KEY-ID")));
            }
            return Ok(Self::Embedded(key.to_owned()));
        }
        if let Some((_, what)) = LATER.iter().find(|(prefix, _)| uri.starts_with(prefix)) {
            return Err(refuse(format!(
                "support for {what} arrives with a later version; this one has {EMBEDDED}…"
            )));
        }
        Err(refuse(format!("unknown provider; use {DEFAULT_URI} or {EMBEDDED}KEY-ID")))
    }

    /// The URI of a key of the embedded KMS.
    pub(super) fn embedded(key: &str) -> String {
        format!("{EMBEDDED}{key}")
    }
}
