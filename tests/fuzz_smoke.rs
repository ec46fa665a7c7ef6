//! The fuzz targets' checks on a fixed stream of random and mutated bytes, for builds without a fuzzer.

#[path = "../fuzz/checks.rs"]
mod checks;

use envelopefs::crypto::{DirKey, LinkKey, Secret, VaultKey, XattrKey};
use envelopefs::format::config::{VolumeConfig, WrappingKey};
use envelopefs::format::header::{FileHeader, Recipient, Wrapped};
use envelopefs::format::ids::{DirId, FileId, VaultId};
use envelopefs::format::inline::InlineHead;
use envelopefs::format::layout::{GroupIndex, LEADER_SPAN};
use envelopefs::format::map::MapPage;

/// Inputs a target is fed with.
const ROUNDS: usize = 40_000;

/// SplitMix64: the same stream each time, so a failure can be repeated.
struct Stream(u64);

impl Stream {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).expect("below a usize")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// Changes a few bytes, cuts, repeats or lengthens.
    fn mutate(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        for _ in 0..self.below(4) {
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.byte()),
                2 => bytes.extend_from_within(at..),
                _ if at < bytes.len() && self.below(2) == 0 => bytes[at] ^= 1 << self.below(8),
                _ if at < bytes.len() => bytes[at] = self.byte(),
                _ => {}
            }
        }
        bytes
    }
}

fn feed(target: fn(&[u8]), seeds: &[Vec<u8>], longest: usize) {
    let mut stream = Stream(seeds.len() as u64);
    seeds.iter().for_each(|seed| target(seed));
    for round in 0..ROUNDS {
        let bytes = if round % 8 == 0 {
            let len = stream.below(longest);
            (0..len).map(|_| stream.byte()).collect()
        } else {
            let seed = seeds[stream.below(seeds.len())].clone();
            stream.mutate(seed)
        };
        target(&bytes);
    }
}

fn vault_key() -> VaultKey {
    VaultKey(Secret::from_slice(&[8; 32]).expect("32 bytes"))
}

#[test]
fn any_header_is_safe() {
    let compact = || Recipient { key_index: 1, wrapped: Wrapped::Compact { version: 1, bytes: [2; 48] } };
    let blob = |len| Recipient { key_index: 0, wrapped: Wrapped::Blob(vec![3; len]) };
    let seeds =
        [vec![compact()], vec![blob(9)], vec![blob(0), compact(), blob(200)], vec![compact(), compact()]]
            .map(|recipients| FileHeader { file_id: FileId([4; 12]), recipients }.encode().unwrap());
    feed(checks::header, &seeds, 300);
}

#[test]
fn any_map_page_is_safe() {
    let seeds = [0, 1, LEADER_SPAN].map(|g| MapPage::new(GroupIndex(g), 1 << 20).encode().to_vec());
    feed(checks::map_page, &seeds, 4200);
}

#[test]
fn any_config_is_safe() {
    let key = |index| WrappingKey {
        index,
        uri: "kms:embedded/alias/main".into(),
        wrapped_vault_key: vec![index; 40],
        active: index == 0,
    };
    let seeds = [vec![], vec![key(0)], vec![key(0), key(7)]].map(|keys| {
        let config = VolumeConfig { format: 1, vault_id: VaultId([5; 16]), created: 12, keys, next_row: 9 };
        VolumeConfig::join(&config.encode_body(), &[6; 32]).into_bytes()
    });
    feed(checks::config, &seeds, 300);
}

#[test]
fn any_name_is_safe() {
    let (dir, link) = (DirKey::derive(&vault_key(), &DirId([1; 16])), LinkKey::derive(&vault_key()));
    let xattr = XattrKey::derive(&vault_key(), &[1; 12]);
    let mut seeds = vec![b".envelopefs".to_vec(), b".efs.tmp.1".to_vec()];
    for len in [1, 30, 175, 176, 255] {
        let name = dir.encode(&vec![b'n'; len]);
        seeds.push(name.lower.into_bytes());
        seeds.extend(name.sidecar.into_iter().flat_map(|(name, content)| [name.into_bytes(), content]));
        seeds.push(link.encode(&vec![b'l'; len * 3]).unwrap());
        seeds.push(xattr.encode_name(&vec![b'x'; len]).into_bytes());
        seeds.push(xattr.encode_value(&vec![b'x'; len], b"value"));
    }
    feed(checks::names, &seeds, 300);
}

#[test]
fn any_inline_file_is_safe() {
    let seeds = [0, 5, 4064].map(|plain_len| {
        let head = InlineHead { plain_len, nonce: [1; 12], tag: [2; 16] };
        [&head.encode()[..], &vec![3; usize::from(plain_len)]].concat()
    });
    feed(checks::inline, &seeds, 4200);
}
