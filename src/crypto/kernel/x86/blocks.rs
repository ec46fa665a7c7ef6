//! Spans of blocks: keys are derived for a few neighbours at once, and while one block is encrypted the next one is hashed.

use super::keys::{Group, Keys, Schedule};
use super::lanes::{Block, Has, Lanes};
use super::message::{self, is_long, nonce_block};
use super::stream::{Hash, Stream};
use super::text::{Source, Text};
use crate::crypto::piece::Piece;

/// Units of a block whose encryption waits until the next block's tag is on its way: the tag is one long chain, and these
/// units and the first ones of the hash after it fill the time.
const HELD_BACK: usize = 1;

/// A block with its tag, not encrypted yet.
struct Pending<'a, L> {
    stream: Stream<L>,
    text: Text<'a>,
}

/// Nonces of a group's pieces; where there are fewer pieces, zeros.
#[inline(always)]
fn nonces<const T: usize>(pieces: &[Piece<'_>]) -> [Block; T] {
    let mut nonces = [Block::ZERO; T];
    for (nonce, piece) in nonces.iter_mut().zip(pieces) {
        *nonce = nonce_block(&piece.entry.nonce);
    }
    nonces
}

/// Whether any of a group's pieces has a whole unit.
#[inline(always)]
fn any_long<L: Lanes>(pieces: &[Piece<'_>]) -> bool {
    let mut long = false;
    for piece in pieces {
        long |= is_long::<L>(0, piece.buf.len());
    }
    long
}

/// Seals every piece.
#[inline(always)]
pub(super) fn seal<L: Lanes, const W: usize, const T: usize>(
    has: Has<L>,
    master: &Schedule,
    pieces: &mut [Piece<'_>],
) {
    let mut group = Group::<T>::empty();
    let mut pending: Option<Pending<'_, L>> = None;
    for pieces in pieces.chunks_mut(T) {
        group.derive::<L, W>(has, master, &nonces(pieces), any_long::<L>(pieces));
        for (i, piece) in pieces.iter_mut().enumerate() {
            let keys = group.of(has, i);
            let (ad, nonce, len) = (piece.ad(), piece.entry.nonce, piece.buf.len());
            let mut text = match piece.source {
                Some(source) => Text::between(source, piece.buf),
                None => Text::in_place(piece.buf),
            };
            if len == 0 || !len.is_multiple_of(L::UNIT) {
                piece.entry.tag = message::seal(&keys, &nonce, &ad, &mut text).0;
                continue;
            }
            let tag = beside(&keys, &nonce, &ad, text.source(), &mut pending);
            piece.entry.tag = tag.0;
            pending = Some(Pending { stream: Stream::new(&keys, &tag), text });
        }
    }
    if let Some(mut last) = pending {
        let units = last.text.units::<L>();
        for u in 0..units.count() {
            last.stream.unit(units.at::<L>(u));
        }
    }
}

/// Hashes a text of whole units while the pending one is encrypted; gives the tag.
#[inline(always)]
fn beside<L: Lanes, const T: usize>(
    keys: &Keys<'_, L, T>,
    nonce: &[u8; 12],
    ad: &[u8; 9],
    source: &[u8],
    pending: &mut Option<Pending<'_, L>>,
) -> Block {
    let count = source.len() / L::UNIT;
    let state = L::One::broadcast(L::one(keys.has()), &Block::padded(ad));
    let mut hash = Hash::after(keys, state);
    let lengths = message::lengths(ad.len(), source.len());
    let Some(before) = pending else {
        for u in 0..count {
            hash.unit(keys, Source::of::<L>(source, u));
        }
        return message::tag(keys, hash.finish(keys, &lengths), nonce);
    };
    let units = before.text.units::<L>();
    let ahead = HELD_BACK.min(count);
    for u in 0..ahead {
        hash.unit(keys, Source::of::<L>(source, u));
    }
    let both = units.count().min(count - ahead);
    for u in 0..both {
        let hashed = Source::of::<L>(source, ahead + u);
        before.stream.unit_beside(units.at::<L>(u), &mut hash, keys, hashed);
    }
    for u in ahead + both..count {
        hash.unit(keys, Source::of::<L>(source, u));
    }
    let tag = message::tag(keys, hash.finish(keys, &lengths), nonce);
    for u in both..units.count() {
        before.stream.unit(units.at::<L>(u));
    }
    tag
}

/// Opens every piece; those whose tag is wrong have `failed` set and are zeroed.
#[inline(always)]
pub(super) fn open<L: Lanes, const W: usize, const T: usize>(
    has: Has<L>,
    master: &Schedule,
    pieces: &mut [Piece<'_>],
) {
    let mut group = Group::<T>::empty();
    for pieces in pieces.chunks_mut(T) {
        group.derive::<L, W>(has, master, &nonces(pieces), any_long::<L>(pieces));
        for (i, piece) in pieces.iter_mut().enumerate() {
            let keys = group.of(has, i);
            let (ad, entry) = (piece.ad(), piece.entry);
            let mut text = Text::in_place(piece.buf);
            piece.failed = !message::open(&keys, &entry.nonce, &ad, &mut text, &Block(entry.tag));
        }
    }
}
