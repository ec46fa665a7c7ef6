//! Every cipher kernel of this processor against the `aes-gcm-siv` crate: all lengths, any alignment, whole spans.
#![allow(missing_docs)]

use std::time::{Duration, Instant};

use envelopefs::crypto::Piece;
use envelopefs::crypto::kernel::{BlockKernel, Kernel, KernelError, Kind, PortableKernel, available};
use envelopefs::format::layout::BlockIndex;
use envelopefs::format::map::Entry;
use proptest::prelude::*;

/// A generator of bytes that need not be good, only the same each time.
struct Bytes(u64);

impl Bytes {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, bound: usize) -> usize {
        self.next() as usize % bound
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

fn fast() -> Vec<Kind> {
    available().into_iter().filter(|kind| *kind != Kind::Portable).collect()
}

/// All lengths from 0 to 8193, at alignments and with associated data of lengths that change from one to the next:
/// sealed in place and apart, opened, and refused for one changed bit, as the crate does it.
#[test]
fn every_length_is_sealed_as_the_crate_seals_it() {
    let mut bytes = Bytes(8452);
    let key: [u8; 32] = bytes.array();
    let portable = PortableKernel::new(&key);
    let kernels: Vec<_> = fast().into_iter().map(|kind| Kernel::new(kind, &key).unwrap()).collect();
    let (noise, mut buf, mut from) = (bytes.take(8193 + 1200), vec![0; 8193 + 64], vec![0; 8193 + 64]);
    for len in 0..=8193 {
        let nonce: [u8; 12] = bytes.array();
        let ad_len = if len % 8 == 0 { bytes.below(1200) } else { bytes.below(40) };
        let (ad, plain) = (&noise[..ad_len], &noise[noise.len() - len..]);
        let mut expected = plain.to_vec();
        let tag = portable.seal(&nonce, ad, &mut expected);
        for kernel in &kernels {
            let what = format!("{}: {len} bytes, {ad_len} beside", kernel.name());
            let (at, apart) = (bytes.below(64), bytes.below(64));
            let (buf, from) = (&mut buf[at..at + len], &mut from[apart..apart + len]);
            from.copy_from_slice(plain);
            assert_eq!(kernel.seal_into(&nonce, ad, from, buf), tag, "{what}");
            assert!(buf == expected, "{what}");
            assert_eq!(kernel.seal(&nonce, ad, from), tag, "{what}");
            assert!(from == expected, "{what}");
            assert!(kernel.open(&nonce, ad, buf, &tag), "{what}");
            assert!(buf == plain, "{what}");
            let mut wrong = tag;
            wrong[bytes.below(16)] ^= 1 << bytes.below(8);
            assert!(!kernel.open(&nonce, ad, from, &wrong), "{what}: a wrong tag");
            assert!(from.iter().all(|b| *b == 0), "{what}: what was refused is zeroed");
        }
    }
}

/// What a span is made of: length, whether it is sealed from elsewhere, whether its ciphertext is changed before opening.
type Part = (usize, bool, bool);

fn parts() -> impl Strategy<Value = Vec<Part>> {
    let length = prop_oneof![
        4 => Just(4096usize),
        2 => (0..=16usize).prop_map(|n| n * 256),
        2 => 0..=4096usize,
    ];
    prop::collection::vec((length, any::<bool>(), prop::bool::weighted(0.2)), 0..40)
}

/// Places for the parts one after the other, with gaps of odd lengths that must not be written to.
fn cut<'a>(mut place: &'a mut [u8], parts: &[Part], gap: usize) -> Vec<&'a mut [u8]> {
    let mut out = Vec::new();
    for (len, ..) in parts {
        let (one, rest) = std::mem::take(&mut place).split_at_mut(*len);
        out.push(one);
        place = rest.split_at_mut(gap).1;
    }
    out
}

fn check_span(kind: Kind, parts: &[Part], gap: usize, seed: u64) {
    let mut bytes = Bytes(seed);
    let key: [u8; 32] = bytes.array();
    let (kernel, portable) = (Kernel::new(kind, &key).expect("available"), PortableKernel::new(&key));
    let total = parts.iter().map(|(len, ..)| len + gap).sum();
    let plain = bytes.take(total);
    let mut copy = plain.clone();
    let sources = cut(&mut copy, parts, gap);
    let mut place: Vec<u8> = plain.clone();
    let mut expected = plain.clone();
    let entries: Vec<_> = parts.iter().map(|_| Entry { nonce: bytes.array(), tag: [0; 16] }).collect();
    let tags: Vec<_> = cut(&mut expected, parts, gap)
        .into_iter()
        .zip(0..)
        .zip(&entries)
        .map(|((buf, i), entry)| {
            portable.seal(&entry.nonce, &Piece::new(BlockIndex(i), *entry, &mut []).ad(), buf)
        })
        .collect();
    let mut pieces: Vec<_> = cut(&mut place, parts, gap)
        .into_iter()
        .zip(&sources)
        .zip(parts.iter().zip(&entries))
        .zip(0..)
        .map(|(((buf, source), (part, entry)), i)| {
            if part.1 {
                buf.fill(0xEE);
                Piece::of(BlockIndex(i), *entry, source, buf)
            } else {
                Piece::new(BlockIndex(i), *entry, buf)
            }
        })
        .collect();
    kernel.seal_blocks(&mut pieces);
    let sealed: Vec<_> = pieces.iter().map(|piece| piece.entry).collect();
    assert_eq!(sealed.iter().map(|entry| entry.tag).collect::<Vec<_>>(), tags, "{kind}");
    assert!(place == expected, "{kind}: ciphertext, and nothing between the pieces, as the crate has it");
    let mut pieces: Vec<_> = cut(&mut place, parts, gap)
        .into_iter()
        .zip(&sealed)
        .zip(0..)
        .map(|((buf, entry), i)| Piece::new(BlockIndex(i), *entry, buf))
        .collect();
    for (piece, (len, _, changed)) in pieces.iter_mut().zip(parts).filter(|(_, part)| part.2) {
        match (len, changed) {
            (0, _) => piece.entry.tag[3] ^= 4,
            _ => piece.buf[len / 2] ^= 0x10,
        }
    }
    kernel.open_blocks(&mut pieces);
    for ((piece, part), source) in pieces.iter().zip(parts).zip(&sources) {
        assert_eq!(piece.failed, part.2, "{kind}: what was changed fails, alone");
        let right = if part.2 { piece.buf.iter().all(|b| *b == 0) } else { *piece.buf == **source };
        assert!(right, "{kind}: opened to what was sealed, or zeroed");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Spans of any lengths, some in place and some from elsewhere, some changed in between: each piece fares as if alone.
    #[test]
    fn a_span_is_sealed_and_opened_like_its_pieces(parts in parts(), gap in 0..65usize, seed in any::<u64>()) {
        for kind in available() {
            check_span(kind, &parts, gap, seed);
        }
    }
}

/// The least time of many rounds, in nanoseconds for each block.
fn least(rounds: usize, blocks: usize, mut round: impl FnMut() -> Duration) -> f64 {
    let best = (0..rounds).map(|_| round()).min().unwrap_or_default();
    best.as_secs_f64() * 1e9 / blocks as f64
}

/// Prints what each kernel takes for a block, and how many times faster than the crate that is (`docs/BENCHMARKS.md`).
/// Says something in a release build only.
#[test]
#[ignore = "a measurement"]
fn measure() {
    const BLOCKS: usize = 32;
    let plain = vec![7u8; BLOCKS * 4096];
    let mut place = vec![0u8; BLOCKS * 4096];
    let mut crate_takes = [0.0; 4];
    for kind in available() {
        let kernel = Kernel::new(kind, &[9; 32]).expect("available");
        let entry = |i: usize| Entry { nonce: [i as u8 + 1; 12], tag: [0; 16] };
        let mut entries = Vec::new();
        let seal = least(1500, BLOCKS, || {
            let both = plain.chunks(4096).zip(place.chunks_mut(4096)).enumerate();
            let mut pieces: Vec<_> =
                both.map(|(i, (from, to))| Piece::of(BlockIndex(i as u64), entry(i), from, to)).collect();
            let start = Instant::now();
            kernel.seal_blocks(&mut pieces);
            let took = start.elapsed();
            entries = pieces.iter().map(|piece| piece.entry).collect();
            took
        });
        let sealed = place.clone();
        let open = least(1500, BLOCKS, || {
            place.copy_from_slice(&sealed);
            let each = place.chunks_mut(4096).zip(&entries).enumerate();
            let mut pieces: Vec<_> =
                each.map(|(i, (buf, entry))| Piece::new(BlockIndex(i as u64), *entry, buf)).collect();
            let start = Instant::now();
            kernel.open_blocks(&mut pieces);
            let took = start.elapsed();
            assert!(pieces.iter().all(|piece| !piece.failed));
            took
        });
        let alone = least(5000, 1, || {
            let start = Instant::now();
            kernel.seal(&[1; 12], b"B........", &mut place[..4096]);
            start.elapsed()
        });
        let hash = least(5000, 1, || {
            let start = Instant::now();
            kernel.seal(&[1; 12], &plain[..4096], &mut []);
            start.elapsed()
        });
        let all = [seal, open, alone, hash];
        if kind == Kind::Portable {
            crate_takes = all;
        }
        print!("{:9}", kind.name());
        for (what, (took, by)) in ["seal", "open", "alone", "hash"].iter().zip(all.iter().zip(crate_takes)) {
            print!("  {what} {took:6.0} ns, {:.2} x", by / took);
        }
        println!();
    }
}

/// A kernel that this processor lacks, or that nobody has, is refused with the names of those that can be had.
#[test]
fn a_kernel_that_cannot_be_had_is_refused() {
    let unknown = "neon".parse::<Kind>().unwrap_err();
    assert_eq!(unknown, KernelError::Unknown("neon".to_owned()));
    assert!(unknown.to_string().contains("portable, aesni, vaes256, vaes512"), "{unknown}");
    let lacking = KernelError::Unavailable(Kind::Vaes512).to_string();
    assert!(lacking.contains("avx512f") && lacking.contains("portable"), "{lacking}");
    for kind in Kind::ALL {
        assert_eq!(kind.name().parse(), Ok(kind));
        assert_eq!(
            Kernel::new(kind, &[1; 32]).map(|k| k.name().to_owned()).ok(),
            kind.is_available().then(|| kind.name().to_owned())
        );
    }
}
