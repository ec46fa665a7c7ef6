//! The widths in software against the crate: every length of every part, and spans.

use super::model::Model;
use super::*;
use crate::crypto::kernel::PortableKernel;

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
