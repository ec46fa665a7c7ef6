//! One message: its hash, its tag, sealing and opening it.

use super::keys::{Group, Keys, ROUNDS, Schedule};
use super::lanes::{Block, Has, Lanes};
use super::stream::{Hash, Stream};
use super::text::{Source, Text};

/// Blocks hashed with one reduction where no unit is left.
const FEW: usize = 4;

/// A nonce as the derivation takes it: behind the place of a counter.
#[inline(always)]
pub(super) fn nonce_block(nonce: &[u8; 12]) -> Block {
    let mut block = Block::ZERO;
    block.0[4..].copy_from_slice(nonce);
    block
}

/// The last block that is hashed: lengths in bits.
#[inline(always)]
pub(super) fn lengths(ad: usize, text: usize) -> Block {
    let mut block = Block::ZERO;
    block.0[..8].copy_from_slice(&(ad as u64 * 8).to_le_bytes());
    block.0[8..].copy_from_slice(&(text as u64 * 8).to_le_bytes());
    block
}

/// Whether powers for whole units are needed.
#[inline(always)]
pub(super) fn is_long<L: Lanes>(ad: usize, text: usize) -> bool {
    ad >= L::UNIT || text >= L::UNIT
}

/// The tag for a hash: nonce added, top bit cleared, encrypted.
#[inline(always)]
pub(super) fn tag<L: Lanes, const T: usize>(keys: &Keys<'_, L, T>, hash: L::One, nonce: &[u8; 12]) -> Block {
    let one = L::one(keys.has());
    let mut mask = Block([0xFF; 16]);
    mask.0[15] = 0x7F;
    let x = hash.xor(L::One::broadcast(one, &Block::padded(nonce))).and(L::One::broadcast(one, &mask));
    let mut x = x.xor(keys.round(one, 0));
    for r in 1..ROUNDS - 1 {
        x = x.enc(keys.round(one, r));
    }
    let mut tag = [Block::ZERO];
    x.enc_last(keys.round(one, ROUNDS - 1)).store(&mut tag);
    tag[0]
}

/// Hashes bytes, the last block filled up with zeros, after `state`; the result too is not multiplied by H yet.
#[inline(always)]
pub(super) fn absorb<L: Lanes, const T: usize>(
    keys: &Keys<'_, L, T>,
    mut state: L::One,
    bytes: &[u8],
) -> L::One {
    let one = L::one(keys.has());
    let units = bytes.len() / L::UNIT;
    if units > 0 {
        let mut hash = Hash::after(keys, state);
        for u in 0..units {
            hash.unit(keys, Source::of::<L>(bytes, u));
        }
        state = hash.state(keys);
    }
    let mut rest = &bytes[units * L::UNIT..];
    while !rest.is_empty() {
        let few = rest.len().min(16 * FEW);
        let blocks = few.div_ceil(16);
        let mut sum = keys.times(one, state, blocks);
        let mut last = Block::ZERO;
        for i in 0..blocks {
            let block = Block::padded(&rest[16 * i..few.min(16 * (i + 1))]);
            if i + 1 < blocks {
                sum = sum.plus(keys.times(one, L::One::broadcast(one, &block), blocks - 1 - i));
            } else {
                last = block;
            }
        }
        state = sum.reduce(one).xor(L::One::broadcast(one, &last));
        rest = &rest[few..];
    }
    state
}

/// Hashes whole messages: associated data, text, lengths.
#[inline(always)]
fn hash<L: Lanes, const T: usize>(keys: &Keys<'_, L, T>, ad: &[u8], text: &[u8]) -> L::One {
    let one = L::one(keys.has());
    let mut state = L::One::zero(one);
    for part in [ad, text] {
        state = absorb(keys, state, part);
    }
    end(keys, state, ad.len(), text.len())
}

/// The hash, from the sum up to the text's last block.
#[inline(always)]
pub(super) fn end<L: Lanes, const T: usize>(
    keys: &Keys<'_, L, T>,
    state: L::One,
    ad: usize,
    text: usize,
) -> L::One {
    let one = L::one(keys.has());
    let lengths = keys.times(one, L::One::broadcast(one, &lengths(ad, text)), 1);
    keys.times(one, state, 2).plus(lengths).reduce(one)
}

/// Seals with derived keys; gives the tag.
#[inline(always)]
pub(super) fn seal<L: Lanes, const T: usize>(
    keys: &Keys<'_, L, T>,
    nonce: &[u8; 12],
    ad: &[u8],
    text: &mut Text<'_>,
) -> Block {
    let hash = hash(keys, ad, text.source());
    let tag = tag(keys, hash, nonce);
    if text.len() > 0 {
        let mut stream = Stream::new(keys, &tag);
        let units = text.units::<L>();
        let count = units.count();
        for u in 0..count {
            stream.unit(units.at::<L>(u));
        }
        stream.rest(text, count * L::UNIT);
    }
    tag
}

/// Opens with derived keys: each unit is hashed while the next one is decrypted. Where the tag is wrong, the text is zeroed.
#[inline(always)]
pub(super) fn open<L: Lanes, const T: usize>(
    keys: &Keys<'_, L, T>,
    nonce: &[u8; 12],
    ad: &[u8],
    text: &mut Text<'_>,
    sealed: &Block,
) -> bool {
    let hash = if text.len() == 0 { hash(keys, ad, &[]) } else { decrypt(keys, ad, text, sealed) };
    let good = same(&tag(keys, hash, nonce), sealed);
    if !good {
        text.written().fill(0);
    }
    good
}

#[inline(always)]
fn decrypt<L: Lanes, const T: usize>(
    keys: &Keys<'_, L, T>,
    ad: &[u8],
    text: &mut Text<'_>,
    sealed: &Block,
) -> L::One {
    let one = L::one(keys.has());
    let len = text.len();
    let mut state = L::One::zero(one);
    state = absorb(keys, state, ad);
    let mut stream = Stream::new(keys, sealed);
    let units = text.units::<L>();
    let count = units.count();
    if count > 0 {
        let mut hash = Hash::after(keys, state);
        stream.unit(units.at::<L>(0));
        for u in 1..count {
            let before = units.at::<L>(u - 1).written();
            stream.unit_beside(units.at::<L>(u), &mut hash, keys, before);
        }
        hash.unit(keys, units.at::<L>(count - 1).written());
        if count * L::UNIT == len {
            return hash.finish(keys, &lengths(ad.len(), len));
        }
        state = hash.state(keys);
    }
    stream.rest(text, count * L::UNIT);
    state = absorb(keys, state, &text.written()[count * L::UNIT..]);
    end(keys, state, ad.len(), len)
}

/// Compares two tags without telling by its time where they differ.
#[inline(always)]
fn same(a: &Block, b: &Block) -> bool {
    let differ = u128::from_le_bytes(a.0) ^ u128::from_le_bytes(b.0);
    std::hint::black_box(differ) == 0
}

/// Seals one message.
#[inline(always)]
pub(super) fn seal_alone<L: Lanes, const T: usize>(
    has: Has<L>,
    master: &Schedule,
    nonce: &[u8; 12],
    ad: &[u8],
    mut text: Text<'_>,
) -> [u8; 16] {
    let mut group = Group::<T>::empty();
    group.derive::<L, 1>(has, master, &[nonce_block(nonce); T], is_long::<L>(ad.len(), text.len()));
    seal(&group.of(has, 0), nonce, ad, &mut text).0
}

/// Opens one message in place.
#[inline(always)]
pub(super) fn open_alone<L: Lanes, const T: usize>(
    has: Has<L>,
    master: &Schedule,
    nonce: &[u8; 12],
    ad: &[u8],
    buf: &mut [u8],
    tag: &[u8; 16],
) -> bool {
    let mut group = Group::<T>::empty();
    group.derive::<L, 1>(has, master, &[nonce_block(nonce); T], is_long::<L>(ad.len(), buf.len()));
    open(&group.of(has, 0), nonce, ad, &mut Text::in_place(buf), &Block(*tag))
}
