//! Who is measured. Each seals and opens a batch in place, and proves before that it does what its specification says.

use aes_gcm_siv::aead::{AeadInOut, KeyInit};
use aes_gcm_siv::{Aes256GcmSiv, Nonce, Tag};
use aws_lc_rs::aead::{self, AES_256_GCM, AES_256_GCM_SIV, Aad, LessSafeKey, UnboundKey};

use super::batch::{Batch, Block};
use crate::bench::error::BenchError;

/// The yardstick that others' tables know.
pub(super) const CRATE: &str = "aes-gcm-siv";

/// One cipher.
pub(super) trait Contender {
    /// For a table.
    fn name(&self) -> &'static str;
    /// Whether it is one of this program's own kernels.
    fn is_ours(&self) -> bool {
        false
    }
    /// Whether it gives the bytes of RFC 8452.
    fn is_siv(&self) -> bool {
        true
    }
    /// Seals one message in place; gives the tag.
    fn seal(&self, block: &mut Block<'_>);
    /// Opens one message in place; whether it was authentic.
    fn open(&self, block: &mut Block<'_>) -> bool;
    /// Seals a batch, in one call where it can.
    fn seal_span(&self, batch: &mut Batch) {
        batch.blocks().for_each(|mut block| self.seal(&mut block));
    }
    /// Opens a batch, in one call where it can; whether all of it was authentic.
    fn open_span(&self, batch: &mut Batch) -> bool {
        open_each(self, batch)
    }
}

/// Opens every block of a batch, also behind one that does not open; whether all of it was authentic.
pub(super) fn open_each<C: Contender + ?Sized>(contender: &C, batch: &mut Batch) -> bool {
    let mut all = true;
    for mut block in batch.blocks() {
        all &= contender.open(&mut block);
    }
    all
}

/// Makes one with a key.
pub(super) type Maker = Box<dyn Fn(&[u8; 32]) -> Result<Box<dyn Contender>, BenchError>>;

/// Those of others.
pub(super) fn others() -> Vec<Maker> {
    vec![
        Box::new(|key| Ok(Box::new(Crate(Aes256GcmSiv::new(key.into()))))),
        Box::new(|key| AwsLc::boxed("aws-lc gcm-siv", &AES_256_GCM_SIV, true, key)),
        Box::new(|key| AwsLc::boxed("aws-lc gcm", &AES_256_GCM, false, key)),
    ]
}

/// The `aes-gcm-siv` crate.
struct Crate(Aes256GcmSiv);

impl Contender for Crate {
    fn name(&self) -> &'static str {
        CRATE
    }

    fn seal(&self, block: &mut Block<'_>) {
        let sealed =
            self.0.encrypt_inout_detached(&Nonce::from(*block.nonce), block.ad, (&mut *block.buf).into());
        *block.tag = sealed.expect("a block is far below 64 GiB").into();
    }

    fn open(&self, block: &mut Block<'_>) -> bool {
        let tag = Tag::from(*block.tag);
        self.0
            .decrypt_inout_detached(&Nonce::from(*block.nonce), block.ad, (&mut *block.buf).into(), &tag)
            .is_ok()
    }
}

/// AWS-LC, by its Rust bindings.
struct AwsLc {
    name: &'static str,
    siv: bool,
    key: LessSafeKey,
}

impl AwsLc {
    fn boxed(
        name: &'static str,
        algorithm: &'static aead::Algorithm,
        siv: bool,
        key: &[u8; 32],
    ) -> Result<Box<dyn Contender>, BenchError> {
        let unbound = UnboundKey::new(algorithm, key);
        let unbound = unbound.map_err(|_| wrong(name, "it takes no key of 32 bytes"))?;
        Ok(Box::new(Self { name, siv, key: LessSafeKey::new(unbound) }))
    }
}

impl Contender for AwsLc {
    fn name(&self) -> &'static str {
        self.name
    }

    fn is_siv(&self) -> bool {
        self.siv
    }

    fn seal(&self, block: &mut Block<'_>) {
        let nonce = aead::Nonce::assume_unique_for_key(*block.nonce);
        // A failure leaves the tag as it is, which the proof before the measurement would notice.
        if let Ok(tag) = self.key.seal_in_place_separate_tag(nonce, Aad::from(block.ad), block.buf) {
            block.tag.copy_from_slice(tag.as_ref());
        }
    }

    fn open(&self, block: &mut Block<'_>) -> bool {
        let nonce = aead::Nonce::assume_unique_for_key(*block.nonce);
        self.key.open_in_place_separate_tag(nonce, Aad::from(block.ad), &block.tag[..], block.buf).is_ok()
    }
}

fn wrong(contender: &str, what: &str) -> BenchError {
    BenchError::Wrong { contender: contender.to_owned(), what: what.to_owned() }
}

/// A known answer without associated data.
struct Known {
    key: [u8; 32],
    nonce: [u8; 12],
    plain: [u8; 16],
    cipher: u128,
    tag: u128,
}

/// RFC 8452, appendix C.2, the first one with 16 bytes.
const SIV: Known = Known {
    key: first(1),
    nonce: first(3),
    plain: first(1),
    cipher: 0x85a0_1b63_025b_a19b_7fd3_ddfc_033b_3e76,
    tag: 0xc9ea_c6fa_7009_4270_2e90_8623_83c6_c366,
};
/// "The Galois/Counter Mode of Operation" (McGrew, Viega), test case 14.
const GCM: Known = Known {
    key: [0; 32],
    nonce: [0; 12],
    plain: [0; 16],
    cipher: 0xcea7_403d_4d60_6b6e_074e_c5d3_baf3_9d18,
    tag: 0xd0d1_c8a7_9999_6bf0_265b_98b5_d48a_b919,
};

/// Zeros behind one byte.
const fn first<const N: usize>(byte: u8) -> [u8; N] {
    let mut bytes = [0; N];
    bytes[0] = byte;
    bytes
}

/// Proves a contender: against published vectors of its cipher, against the crate in every length that is measured and
/// some odd ones, and that it refuses what was changed.
pub(super) fn prove(maker: &Maker) -> Result<(), BenchError> {
    prove_known(maker)?;
    let key: [u8; 32] = crate::crypto::random::array();
    let contender = maker(&key)?;
    let reference = Crate(Aes256GcmSiv::new(&key.into()));
    let fail = |what: &str| Err(wrong(contender.name(), what));
    for block in [1, 15, 16, 17, 512, 1000, 4095, 4096, 65_536] {
        let plain = Batch::new(block);
        let (mut single, mut span) = (plain.clone(), plain.clone());
        single.blocks().for_each(|mut b| contender.seal(&mut b));
        contender.seal_span(&mut span);
        if single.data != span.data || single.tags != span.tags {
            return fail("a span of blocks is not sealed like its blocks");
        }
        if contender.is_siv() {
            let mut known = plain.clone();
            reference.seal_span(&mut known);
            if span.data != known.data || span.tags != known.tags {
                return fail("it does not seal as the aes-gcm-siv crate does");
            }
        }
        let mut changed = span.clone();
        changed.data[block / 2] ^= 1;
        if contender.open_span(&mut changed) || single.data == plain.data {
            return fail("it opens what was changed, or does not encrypt");
        }
        let opens = open_each(contender.as_ref(), &mut single);
        if !opens || !contender.open_span(&mut span) || span.data != plain.data || single.data != plain.data {
            return fail("it does not open what it sealed");
        }
    }
    Ok(())
}

fn prove_known(maker: &Maker) -> Result<(), BenchError> {
    let vector = if maker(&[0; 32])?.is_siv() { SIV } else { GCM };
    let contender = maker(&vector.key)?;
    let (mut buf, mut tag) = (vector.plain, [0; 16]);
    contender.seal(&mut Block { nonce: &vector.nonce, ad: &[], tag: &mut tag, buf: &mut buf });
    if buf != vector.cipher.to_be_bytes() || tag != vector.tag.to_be_bytes() {
        return Err(wrong(contender.name(), "it does not give the published ciphertext and tag"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everyone who is measured does what its specification says.
    #[test]
    fn everyone_is_proved() {
        others().iter().try_for_each(prove).unwrap();
    }

    /// One that seals with another key than it was given, or opens everything, is found out.
    #[test]
    fn an_impostor_is_found_out() {
        struct Lazy(Crate);
        impl Contender for Lazy {
            fn name(&self) -> &'static str {
                "lazy"
            }
            fn seal(&self, block: &mut Block<'_>) {
                self.0.seal(block);
            }
            fn open(&self, block: &mut Block<'_>) -> bool {
                self.0.open(block);
                true
            }
        }
        let lazy: Maker = Box::new(|key| Ok(Box::new(Lazy(Crate(Aes256GcmSiv::new(key.into()))))));
        assert!(prove(&lazy).unwrap_err().to_string().contains("changed"));
        let other: Maker = Box::new(|_| Ok(Box::new(Crate(Aes256GcmSiv::new(&[7; 32].into())))));
        assert!(prove(&other).unwrap_err().to_string().contains("published"));
    }
}
