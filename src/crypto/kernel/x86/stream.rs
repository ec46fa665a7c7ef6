//! The two halves of the work on a text, a unit at a time, alone and beside each other: the key stream of counter mode, and
//! POLYVAL. Beside each other they keep the processor's AES and multiplication units busy at once.

use super::gf::Product;
use super::keys::{Keys, ROUNDS};
use super::lanes::{Block, Has, Lanes};
use super::text::{Source, Text, Unit};

/// Chains of AES side by side: two units of 4 cycles latency want 8.
const CHAINS: usize = 8;

/// Counter mode (RFC 8452, section 4): the counter is the first 32 bits, little-endian.
pub(super) struct Stream<L> {
    has: Has<L>,
    rounds: [L; ROUNDS],
    next: L,
    step: L,
}

impl<L: Lanes> Stream<L> {
    #[inline(always)]
    pub(super) fn new<const T: usize>(keys: &Keys<'_, L, T>, tag: &Block) -> Self {
        let has = keys.has();
        let mut start = *tag;
        start.0[15] |= 0x80;
        let lanes = [&COUNT[0], &COUNT[1], &COUNT[2], &COUNT[3]];
        let next = L::broadcast(has, &start).add32(L::gather(has, lanes));
        Self { has, rounds: keys.rounds(), next, step: L::broadcast(has, &COUNT[L::N]) }
    }

    #[inline(always)]
    fn start(&mut self) -> L {
        let block = self.next;
        self.next = block.add32(self.step);
        block.xor(self.rounds[0])
    }

    /// The key stream's next vector.
    #[inline(always)]
    fn vector(&mut self) -> L {
        let mut x = self.start();
        for key in &self.rounds[1..ROUNDS - 1] {
            x = x.enc(*key);
        }
        x.enc_last(self.rounds[ROUNDS - 1])
    }

    /// One unit of text.
    #[inline(always)]
    pub(super) fn unit(&mut self, unit: Unit<'_>) {
        for part in 0..L::V / CHAINS {
            let mut x = [self.next; CHAINS];
            for c in 0..CHAINS {
                x[c] = self.start();
            }
            for r in 1..ROUNDS - 1 {
                for c in 0..CHAINS {
                    x[c] = x[c].enc(self.rounds[r]);
                }
                L::pin(&mut x, &mut [self.next; 3]);
            }
            self.last_round(unit, part, x);
        }
    }

    #[inline(always)]
    fn last_round(&self, unit: Unit<'_>, part: usize, x: [L; CHAINS]) {
        for c in 0..CHAINS {
            let k = part * CHAINS + c;
            let text = unit.read(self.has, k).xor(self.rounds[ROUNDS - 1]);
            unit.write(k, x[c].enc_last(text));
        }
    }

    /// One unit of text, and one unit hashed.
    #[inline(always)]
    pub(super) fn unit_beside<const T: usize>(
        &mut self,
        unit: Unit<'_>,
        hash: &mut Hash<L>,
        keys: &Keys<'_, L, T>,
        hashed: Source<'_>,
    ) {
        let mut sum = hash.begin(keys);
        for part in 0..L::V / CHAINS {
            let mut x = [self.next; CHAINS];
            for c in 0..CHAINS {
                x[c] = self.start();
            }
            for r in 1..ROUNDS - 1 {
                for c in 0..CHAINS {
                    x[c] = x[c].enc(self.rounds[r]);
                }
                let k = part * CHAINS + r - 1;
                if r <= CHAINS && k + 1 < L::V {
                    sum = sum.plus(Hash::term(keys, hashed, k));
                }
                sum.pin(&mut x);
            }
            self.last_round(unit, part, x);
        }
        hash.end(keys, hashed, sum);
    }

    /// What is left of a text behind `at`.
    #[inline(always)]
    pub(super) fn rest(&mut self, text: &mut Text<'_>, mut at: usize) {
        while text.len() - at >= L::WIDTH {
            let vector = self.vector();
            text.add(self.has, at, vector);
            at += L::WIDTH;
        }
        if at < text.len() {
            let mut last = [Block::ZERO; 4];
            self.vector().store(&mut last);
            text.add_rest(at, &last);
            super::wipe(&mut last);
        }
    }
}

/// What is added to the counter of each lane, or to all lanes.
const COUNT: [Block; 5] = [count(0), count(1), count(2), count(3), count(4)];

const fn count(n: u8) -> Block {
    let mut block = Block::ZERO;
    block.0[0] = n;
    block
}

/// POLYVAL over whole units. Lane `l` sums up every `N`th block from block `l` on: with V the vectors of a unit, all lanes
/// a = a H^(N V) + v0 H^(N (V-1)) + ... + v(V-2) H^N + v(V-1), with one reduction.
#[derive(Clone, Copy)]
pub(super) struct Hash<L> {
    lanes: L,
}

impl<L: Lanes> Hash<L> {
    /// After `state`, the sum so far that is not multiplied by H yet: as if it were the block before the first.
    #[inline(always)]
    pub(super) fn after<const T: usize>(keys: &Keys<'_, L, T>, state: L::One) -> Self {
        Self { lanes: L::in_last(keys.has(), state) }
    }

    #[inline(always)]
    fn begin<const T: usize>(&self, keys: &Keys<'_, L, T>) -> Product<L> {
        keys.times(keys.has(), self.lanes, L::N * L::V)
    }

    #[inline(always)]
    fn term<const T: usize>(keys: &Keys<'_, L, T>, unit: Source<'_>, k: usize) -> Product<L> {
        keys.times(keys.has(), unit.read(keys.has(), k), L::N * (L::V - 1 - k))
    }

    #[inline(always)]
    fn end<const T: usize>(&mut self, keys: &Keys<'_, L, T>, unit: Source<'_>, sum: Product<L>) {
        self.lanes = sum.reduce(keys.has()).xor(unit.read(keys.has(), L::V - 1));
    }

    /// Hashes a unit.
    #[inline(always)]
    pub(super) fn unit<const T: usize>(&mut self, keys: &Keys<'_, L, T>, unit: Source<'_>) {
        let mut sum = self.begin(keys);
        for k in 0..L::V - 1 {
            sum = sum.plus(Self::term(keys, unit, k));
        }
        self.end(keys, unit, sum);
    }

    /// The sum over all lanes, not multiplied by H yet: what more blocks go on from.
    #[inline(always)]
    pub(super) fn state<const T: usize>(self, keys: &Keys<'_, L, T>) -> L::One {
        let one = L::one(keys.has());
        let all_but_last = keys.times_each(self.lanes, L::N - 1).fold().reduce(one);
        all_but_last.xor(self.lanes.last())
    }

    /// The hash, where the text ends with a unit: one more block, the lengths, and done.
    #[inline(always)]
    pub(super) fn finish<const T: usize>(self, keys: &Keys<'_, L, T>, lengths: &Block) -> L::One {
        let one = L::one(keys.has());
        let lengths = keys.times(one, L::One::broadcast(one, lengths), 1);
        keys.times_each(self.lanes, L::N + 1).fold().plus(lengths).reduce(one)
    }
}
