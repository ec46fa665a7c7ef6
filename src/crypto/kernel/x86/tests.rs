//! The widths in software against the crate: every length of every part, and spans.

use super::model::Model;
use super::*;
use crate::crypto::kernel::PortableKernel;
use crate::format::layout::BlockIndex;
use crate::format::map::Entry;

fn models(key: &[u8; 32]) -> [Box<dyn BlockKernel>; 3] {
    [
        Box::new(Wide::<Model<1>>::new(key).unwrap()),
        Box::new(Wide::<Model<2>>::new(key).unwrap()),
        Box::new(Wide::<Model<4>>::new(key).unwrap()),
    ]
}

/// The algorithm at each width gives the crate's bytes, around every bound between its parts.
#[test]
fn the_models_agree_with_the_crate() {
    let key = std::array::from_fn(|i| i as u8);
    let portable = PortableKernel::new(&key);
    let bytes: Vec<u8> = (0..2000u32).map(|i| (i * 7 % 251) as u8).collect();
    let lengths = [0, 1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 511, 512, 513, 768, 1024, 1040, 1537];
    for model in models(&key) {
        for len in lengths {
            for ad in [0, 9, 16, 70, 512, 600] {
                let mut expected = bytes[..len].to_vec();
                let tag = portable.seal(&[5; 12], &bytes[..ad], &mut expected);
                let mut buf = bytes[..len].to_vec();
                let what = format!("{} at {len} bytes with {ad} beside", model.name());
                assert_eq!((model.seal(&[5; 12], &bytes[..ad], &mut buf), &buf), (tag, &expected), "{what}");
                assert!(model.open(&[5; 12], &bytes[..ad], &mut buf, &tag), "{what}");
                assert_eq!(buf, bytes[..len], "{what}");
            }
        }
    }
}

/// Spans at each width: whole blocks beside each other and other lengths among them, in place and from elsewhere, one changed.
#[test]
fn the_models_seal_spans_as_the_crate_does() {
    let key = std::array::from_fn(|i| 255 - i as u8);
    let portable = PortableKernel::new(&key);
    let lengths = [512, 1024, 512, 0, 17, 1536, 1024, 768, 512, 512, 256, 1024, 700, 1024];
    let bytes: Vec<u8> = (0..2000u32).map(|i| (i * 11 % 253) as u8).collect();
    let entry = |i: usize| Entry { nonce: [i as u8; 12], tag: [0; 16] };
    for model in models(&key) {
        let mut expected: Vec<_> = lengths.iter().map(|len| bytes[..*len].to_vec()).collect();
        let mut place: Vec<_> = lengths.iter().map(|len| bytes[..*len].to_vec()).collect();
        let span = |place: &mut [Vec<u8>], kernel: &dyn BlockKernel| -> Vec<Entry> {
            let each = place.iter_mut().enumerate();
            let mut pieces: Vec<_> = each
                .map(|(i, buf)| match i % 3 {
                    0 => Piece::new(BlockIndex(i as u64), entry(i), buf),
                    _ => Piece::of(BlockIndex(i as u64), entry(i), &bytes[..buf.len()], buf),
                })
                .collect();
            kernel.seal_blocks(&mut pieces);
            pieces.iter().map(|piece| piece.entry).collect()
        };
        let entries = span(&mut expected, &portable);
        assert_eq!(span(&mut place, &*model), entries, "{}", model.name());
        assert_eq!(place, expected, "{}", model.name());
        place[5][800] ^= 1;
        let each = place.iter_mut().zip(&entries).enumerate();
        let mut pieces: Vec<_> =
            each.map(|(i, (buf, entry))| Piece::new(BlockIndex(i as u64), *entry, buf)).collect();
        model.open_blocks(&mut pieces);
        for (i, piece) in pieces.iter().enumerate() {
            assert_eq!(piece.failed, i == 5, "{} piece {i}", model.name());
            let right =
                if i == 5 { piece.buf.iter().all(|b| *b == 0) } else { *piece.buf == bytes[..lengths[i]] };
            assert!(right, "{} piece {i}", model.name());
        }
    }
}

/// What a group of keys was in memory is zeros when it is gone.
#[test]
fn derived_keys_are_wiped() {
    let has = <Model<4> as Width>::detect().unwrap();
    let mut group = std::mem::ManuallyDrop::new(keys::Group::<4>::empty());
    let master = Wide::<Model<4>>::new(&[3; 32]).unwrap().master;
    group.derive::<Model<4>, 1>(has, &master, &[Block::ZERO; 4], true);
    let at: *const keys::Group<4> = &raw const *group;
    let bytes = || -> Vec<u8> {
        // SAFETY: a group is nothing but blocks, without padding, and its place lives to the end of the test.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(at.cast::<u8>(), size_of::<keys::Group<4>>()).to_vec()
        }
    };
    assert!(bytes().iter().filter(|b| **b != 0).count() > 1000);
    // SAFETY: not used as a group afterwards.
    #[allow(unsafe_code)]
    unsafe {
        std::mem::ManuallyDrop::drop(&mut group);
    }
    assert!(bytes().iter().all(|b| *b == 0));
}
