//! The encryption context, and its one canonical form as associated data.
//!
//! Pairs are sorted by key; each key and each value is preceded by its length. So `{"ab":"c"}` and `{"a":"bc"}`
//! differ, which joined strings do not show.

use std::collections::BTreeMap;

use super::error::KmsError;

/// Pairs that a wrapped key is bound to. Not secret: an auditor sees them.
pub type EncryptionContext = BTreeMap<String, String>;

/// The longest canonical context, as AWS bounds it.
const MAX_CONTEXT: usize = 8192;

/// For each pair in the order of the keys' bytes: length u32 LE, key, length u32 LE, value.
pub fn canonical(context: &EncryptionContext) -> Result<Vec<u8>, KmsError> {
    let mut out = Vec::with_capacity(192);
    for (key, value) in context {
        if key.is_empty() {
            return Err(KmsError::Validation("a key of the encryption context is empty".into()));
        }
        push(&mut out, key.as_bytes());
        push(&mut out, value.as_bytes());
    }
    if out.len() > MAX_CONTEXT {
        return Err(KmsError::Validation(format!(
            "the encryption context takes {} bytes, at most {MAX_CONTEXT} are allowed",
            out.len()
        )));
    }
    Ok(out)
}

/// Appends a length-prefixed field.
pub(super) fn push(out: &mut Vec<u8>, field: &[u8]) {
    let len = u32::try_from(field.len()).expect("fields of associated data are far below 4 GiB");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(field);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(pairs: &[(&str, &str)]) -> EncryptionContext {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    /// The bytes are those the format documents: a second implementation must make the same.
    #[test]
    fn canonical_bytes_are_sorted_and_length_prefixed() {
        let bytes = canonical(&context(&[("b", ""), ("a", "xy")])).unwrap();
        assert_eq!(bytes, b"\x01\0\0\0a\x02\0\0\0xy\x01\0\0\0b\0\0\0\0");
        assert_eq!(canonical(&context(&[])).unwrap(), b"");
    }

    /// Moving a letter from key to value, or a pair into a value, changes the bytes.
    #[test]
    fn different_contexts_have_different_bytes() {
        let all = [
            context(&[("ab", "c")]),
            context(&[("a", "bc")]),
            context(&[("a", "b"), ("c", "")]),
            context(&[("a", "b\u{1}\0\0\0c\0\0\0\0")]),
            context(&[]),
        ];
        let bytes: std::collections::BTreeSet<_> = all.iter().map(|c| canonical(c).unwrap()).collect();
        assert_eq!(bytes.len(), all.len());
    }

    /// A context has a bound, and no empty key.
    #[test]
    fn oversized_and_empty_keys_are_refused() {
        assert!(canonical(&context(&[("", "v")])).is_err());
        assert!(canonical(&context(&[("k", &"v".repeat(9000))])).is_err());
    }
}
