//! Text that holds secrets, in memory that is wiped.

use serde::Serialize;
use zeroize::Zeroizing;

/// A structure as JSON, in a buffer that has its final length from the start: one that grew would leave copies of what
/// it held behind.
///
/// # Errors
/// What `serde_json` gives for a structure that is no JSON (a map with keys that are no text).
pub fn json(value: &impl Serialize) -> serde_json::Result<Zeroizing<Vec<u8>>> {
    let mut length = Length(0);
    serde_json::to_writer(&mut length, value)?;
    let mut text = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *text, value)?;
    Ok(text)
}

/// Counts what is written.
struct Length(usize);

impl std::io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    /// The buffer is as long as the text, so it never grew.
    #[test]
    fn the_buffer_has_the_final_length() {
        let value = serde_json::json!({ "Plaintext": "x".repeat(5000), "KeyId": ["a", 1, null] });
        let text = super::json(&value).unwrap();
        assert_eq!(text.capacity(), text.len());
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&text).unwrap(), value);
    }
}
