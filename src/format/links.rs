//! How an encrypted symlink target looks as the target of the lower symlink. Bytes only: no keys here.
//!
//! The *record* is nonce (12), tag (16) and ciphertext, as long as the target of `n` bytes. A lower target holds no
//! NUL and at most 4095 bytes, and its length alone gives `n`, because `stat` shows `n` as the symlink's size:
//! - `n` up to 100: base64url of the record; at most 171 bytes long.
//! - `n` from 101 to 4024: exactly `n + 71` bytes: `0x01`, then the record in chunks of 254 bytes (the last one
//!   shorter), each behind one byte `k`, the smallest in `1..=255` that does not occur in the chunk, and XORed with
//!   it, so that no byte becomes zero; then `0x01` up to the length.
//! - Longer targets have no lower form.

use super::names::{b64, unb64};

/// Nonce and tag of a record.
pub const RECORD_HEAD: usize = 28;
/// The longest target written as base64url. Longer ones are denser but not text.
pub const SHORT_MAX: usize = 100;
/// The longest target at all: what fits the lower filesystem's 4095 bytes.
pub const TARGET_MAX: usize = LOWER_MAX - DENSE_EXTRA;
/// The longest lower target, as everywhere on Linux.
const LOWER_MAX: usize = 4095;
/// The longest lower target in base64url: 128 bytes of record.
const SHORT_LOWER_MAX: usize = 171;
/// Added to a dense target: record head, mark, chunk bytes and padding; puts all dense ones behind the short ones.
const DENSE_EXTRA: usize = SHORT_LOWER_MAX - SHORT_MAX;
/// Begins and pads the dense form; in no base64url text.
const MARK: u8 = 1;
/// One fewer than there are values for `k`, so that one is always free.
const CHUNK: usize = 254;

/// The lower target for a record, or `None` where the target is empty or too long.
pub fn encode(record: &[u8]) -> Option<Vec<u8>> {
    let plain = record.len().checked_sub(RECORD_HEAD).filter(|n| (1..=TARGET_MAX).contains(n))?;
    if plain <= SHORT_MAX {
        return Some(b64(record).into_bytes());
    }
    let mut out = Vec::with_capacity(plain + DENSE_EXTRA);
    out.push(MARK);
    for chunk in record.chunks(CHUNK) {
        let k = (1..=u8::MAX).find(|k| !chunk.contains(k))?;
        out.push(k);
        out.extend(chunk.iter().map(|b| b ^ k));
    }
    out.resize(plain + DENSE_EXTRA, MARK);
    Some(out)
}

/// The record of a lower target, or `None` where [`encode`] gives no such target.
pub fn decode(lower: &[u8]) -> Option<Vec<u8>> {
    let plain = plain_len(lower.len())?;
    if plain <= SHORT_MAX {
        return unb64(lower);
    }
    let mut record = Vec::with_capacity(plain + RECORD_HEAD);
    let (_, mut rest) = lower.split_first()?;
    while record.len() < plain + RECORD_HEAD {
        let (k, behind) = rest.split_first()?;
        let (chunk, behind) = behind.split_at_checked(CHUNK.min(plain + RECORD_HEAD - record.len()))?;
        record.extend(chunk.iter().map(|b| b ^ k));
        rest = behind;
    }
    // One record has one spelling: mark, choice of `k` and padding are compared all at once.
    (encode(&record)? == lower).then_some(record)
}

/// Length of the target whose lower form is `lower_len` bytes long.
pub const fn plain_len(lower_len: usize) -> Option<usize> {
    if lower_len > LOWER_MAX || lower_len <= SHORT_LOWER_MAX && lower_len % 4 == 1 {
        return None;
    }
    let plain = if lower_len > SHORT_LOWER_MAX {
        lower_len - DENSE_EXTRA
    } else {
        (lower_len * 3 / 4).saturating_sub(RECORD_HEAD)
    };
    if plain == 0 { None } else { Some(plain) }
}
