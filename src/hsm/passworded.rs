//! Files under a password: magic, Argon2id's cost and salt, then one message sealed in the stretched password, so that a
//! cut or changed file does not open at all. Backups and exported keys are such files.

use zeroize::Zeroizing;

use super::root::Cost;
use crate::crypto::{SealKey, random};

/// Length of the header: magic, memory (KiB), passes, salt.
const HEADER: usize = 8 + 4 + 4 + 16;

/// What tells one kind of file from another. Never edit what one holds.
pub(super) struct Kind {
    /// What the file begins with.
    pub(super) magic: &'static [u8; 8],
    /// What its associated data begins with; the header follows.
    pub(super) label: &'static [u8],
}

impl Kind {
    /// The file's bytes. `None` where Argon2id refuses the cost.
    pub(super) fn seal(&self, password: &[u8], cost: Cost, plain: &[u8]) -> Option<Vec<u8>> {
        let mut header = [0; HEADER];
        let parts: [&[u8]; 4] =
            [self.magic, &cost.memory_kib.to_le_bytes(), &cost.passes.to_le_bytes(), &random::array::<16>()];
        header.copy_from_slice(&parts.concat());
        let sealed = self.key(&header, password)?.seal(&self.bound(&header), plain);
        Some([&header[..], &sealed].concat())
    }

    /// What was sealed. `None`: a wrong password, another kind of file, or one that was cut or changed. Also one of a higher
    /// cost than ours: whoever hands the file over would have this process pay it.
    pub(super) fn open(&self, password: &[u8], file: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (header, sealed) = file.split_first_chunk::<HEADER>()?;
        self.key(header, password)?.open(&self.bound(header), sealed).ok()
    }

    fn key(&self, header: &[u8; HEADER], password: &[u8]) -> Option<SealKey> {
        let number = |at: usize| Some(u32::from_le_bytes(*header.get(at..)?.first_chunk()?));
        let cost = Cost { memory_kib: number(8)?, passes: number(12)? };
        if header.get(..8)? != self.magic || !cost.is_sane() || !cost.is_within(Cost::SLOW) {
            return None;
        }
        Some(SealKey::new(cost.stretch(password, header.get(16..)?)?))
    }

    fn bound(&self, header: &[u8; HEADER]) -> Vec<u8> {
        [self.label, header].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind { magic: b"EFSTEST1", label: b"test" };

    /// A file that asks for more memory or passes than ours do is refused before they are spent.
    #[test]
    fn a_file_does_not_name_any_price() {
        for cost in [Cost { memory_kib: 64, passes: 4 }, Cost { memory_kib: 65 << 10, passes: 1 }] {
            // The very file, at a cost that is taken.
            let cheap = KIND.seal(b"password", Cost::TESTS, b"x").unwrap();
            assert!(KIND.open(b"password", &cheap).is_some());
            assert!(KIND.seal(b"password", cost, b"x").is_none());
            let mut dear = cheap;
            dear[8..12].copy_from_slice(&cost.memory_kib.to_le_bytes());
            dear[12..16].copy_from_slice(&cost.passes.to_le_bytes());
            let header = dear.first_chunk::<HEADER>().unwrap();
            assert!(KIND.key(header, b"password").is_none());
        }
    }
}
