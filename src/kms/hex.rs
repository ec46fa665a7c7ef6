//! Lower-case hexadecimal text.

/// Text of bytes.
pub(super) fn encode(bytes: &[u8]) -> String {
    hex::encode(bytes)
}

/// Bytes of lower-case text of even length.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}
