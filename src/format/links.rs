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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(plain: usize, fill: impl Fn(usize) -> u8) -> Vec<u8> {
        (0..plain + RECORD_HEAD).map(fill).collect()
    }

    /// The size of a symlink comes from the length of the lower target: no two lengths may share one.
    #[test]
    fn every_length_comes_back_from_the_lower_length_alone() {
        let mut last = 0;
        for plain in 1..=TARGET_MAX {
            let record = record(plain, |i| (i * i) as u8);
            let lower = encode(&record).unwrap();
            assert!(lower.len() > last && lower.len() <= LOWER_MAX && !lower.contains(&0));
            last = lower.len();
            assert_eq!(plain_len(lower.len()), Some(plain));
            assert_eq!(decode(&lower), Some(record));
        }
        assert_eq!((last, TARGET_MAX), (4095, 4024));
        assert_eq!(encode(&record(TARGET_MAX + 1, |_| 1)), None);
        assert_eq!(encode(&record(0, |_| 1)), None);
        assert_eq!(encode(&[]), None);
    }

    #[test]
    fn hostile_records_stay_free_of_nul() {
        // Each value but one or two in each chunk; all zero; all of one value.
        let fills: [fn(usize) -> u8; 4] = [|i| (i % 254) as u8, |i| (i % 254 + 2) as u8, |_| 0, |_| 1];
        for fill in fills {
            for plain in [101, 480, 2000, TARGET_MAX] {
                let record = record(plain, fill);
                let lower = encode(&record).unwrap();
                assert!(!lower.contains(&0));
                assert_eq!(decode(&lower), Some(record));
            }
        }
    }

    #[test]
    fn another_spelling_of_a_record_is_refused() {
        let lower = encode(&record(200, |i| i as u8 | 0x80)).unwrap();
        assert!(decode(&lower).is_some());
        for (at, value) in [(0, 2), (270, 2), (1, 3)] {
            let mut changed = lower.clone();
            assert_ne!(changed[at], value);
            changed[at] = value;
            assert_ne!(decode(&changed), decode(&lower), "byte {at}");
        }
        let with_key = |k: u8| {
            let chunk = lower[2..230].iter().map(|b| b ^ lower[1] ^ k);
            [1, k].into_iter().chain(chunk).chain(lower[230..].iter().copied()).collect::<Vec<_>>()
        };
        assert_eq!(with_key(lower[1]), lower);
        assert_eq!(decode(&with_key(lower[1] + 1)), None);
    }

    proptest! {
        #[test]
        fn any_lower_target_is_safe_to_decode(mut lower in proptest::collection::vec(1..=255u8, 0..4200), mark: bool) {
            if let Some(first) = lower.first_mut().filter(|_| mark) {
                *first = MARK;
            }
            if let Some(record) = decode(&lower) {
                prop_assert_eq!(encode(&record), Some(lower));
            }
        }
    }
}
