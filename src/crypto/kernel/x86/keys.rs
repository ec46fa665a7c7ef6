//! Keys of a few messages at once (RFC 8452, section 4): lane by lane and vector by vector, so that what is one long chain
//! for one message costs little more for all of them.

use super::gf::{Product, cross};
use super::lanes::{Block, Has, Lanes};
use super::wipe;

/// Round keys of AES-256.
pub(super) const ROUNDS: usize = 15;
/// Rows for the powers of the widest kind.
const POWERS: usize = 17;
/// Vectors that are worked on side by side.
pub(super) const SIDE: usize = 2;

/// An expanded AES-256 key.
pub(super) type Schedule = [Block; ROUNDS];

/// Keys of `T` messages. Rows are whole vectors across the messages. Wiped on drop.
#[repr(C, align(64))]
pub(super) struct Group<const T: usize> {
    /// Round keys of the encryption key.
    round: [[Block; T]; ROUNDS],
    /// Powers of H, at [`slot`].
    power: [[Block; T]; POWERS],
    /// [`cross`] of each.
    crossed: [[Block; T]; POWERS],
}

impl<const T: usize> Drop for Group<T> {
    fn drop(&mut self) {
        wipe(self);
    }
}

/// Row of H^p. Kept are the first `N` + 1 and 4, and every `N`th, up to the blocks of a unit.
#[inline(always)]
const fn slot<L: Lanes>(p: usize) -> usize {
    match p {
        p if p.is_multiple_of(L::N) => p / L::N + L::N - 1,
        5 => 3,
        3 => L::N / 2,
        p => p - 1,
    }
}

/// Which power is the product of which two, small ones first.
#[inline(always)]
const fn factors<L: Lanes>(p: usize) -> Option<(usize, usize)> {
    let kept = p <= L::N * L::V && (p <= L::N + 1 || p <= 4 || p.is_multiple_of(L::N));
    let top = 1 << p.ilog2();
    match p {
        _ if !kept => None,
        p if p == top => Some((p / 2, p / 2)),
        p => Some((top, p - top)),
    }
}

/// Keys of one message of a group.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a, L, const T: usize> {
    has: Has<L>,
    group: &'a Group<T>,
    message: usize,
}

impl<const T: usize> Group<T> {
    #[inline(always)]
    pub(super) fn empty() -> Self {
        Self {
            round: [[Block::ZERO; T]; ROUNDS],
            power: [[Block::ZERO; T]; POWERS],
            crossed: [[Block::ZERO; T]; POWERS],
        }
    }

    /// Derives keys under `master`; `nonces` have 4 zero bytes in front. Powers above the fourth are left out unless `long`.
    #[inline(always)]
    pub(super) fn derive<L: Lanes, const W: usize>(
        &mut self,
        has: Has<L>,
        master: &Schedule,
        nonces: &[Block; T],
        long: bool,
    ) {
        const { assert!(W * L::N == T) };
        let mut h = [L::zero(has); W];
        let mut first = h;
        let mut second = h;
        encrypt_counters(has, master, nonces, &mut h, &mut first, &mut second);
        self.expand(has, first, second);
        self.powers(has, h, long);
    }

    #[inline(always)]
    fn expand<L: Lanes, const W: usize>(&mut self, has: Has<L>, first: [L; W], second: [L; W]) {
        let (mut even, mut odd) = (first, second);
        for w in 0..W {
            even[w].store(&mut self.round[0][w * L::N..]);
            odd[w].store(&mut self.round[1][w * L::N..]);
        }
        let mut r = 2;
        while r < ROUNDS {
            for w in 0..W {
                even[w] = even_key(has, even[w], odd[w], r);
                even[w].store(&mut self.round[r][w * L::N..]);
            }
            if r + 1 < ROUNDS {
                for w in 0..W {
                    odd[w] = odd_key(has, odd[w], even[w]);
                    odd[w].store(&mut self.round[r + 1][w * L::N..]);
                }
            }
            r += 2;
        }
    }

    #[inline(always)]
    fn powers<L: Lanes, const W: usize>(&mut self, has: Has<L>, h: [L; W], long: bool) {
        for w in 0..W {
            self.keep(1, w, h[w]);
        }
        macro_rules! powers {
            ($($p:literal)*) => { $(self.power_of::<L, W, $p>(has);)* };
        }
        powers!(2 3 4);
        if long {
            powers!(5 6 7 8 9 10 11 12 13 14 15 16 20 24 28 32);
        }
    }

    /// H^P, if it is kept. `P` is a constant, so that nothing is looked up while the chain of products runs.
    #[inline(always)]
    fn power_of<L: Lanes, const W: usize, const P: usize>(&mut self, has: Has<L>) {
        if let Some((a, b)) = const { factors::<L>(P) } {
            for w in 0..W {
                let at = w * L::N;
                let left = L::load(has, &self.power[slot::<L>(a)][at..]);
                let right = L::load(has, &self.power[slot::<L>(b)][at..]);
                let crossed = L::load(has, &self.crossed[slot::<L>(b)][at..]);
                self.keep(P, w, Product::of(left, right, crossed).reduce(has));
            }
        }
    }

    #[inline(always)]
    fn keep<L: Lanes>(&mut self, p: usize, w: usize, power: L) {
        power.store(&mut self.power[slot::<L>(p)][w * L::N..]);
        cross(power).store(&mut self.crossed[slot::<L>(p)][w * L::N..]);
    }

    #[inline(always)]
    pub(super) fn of<L: Lanes>(&self, has: Has<L>, message: usize) -> Keys<'_, L, T> {
        assert!(message < T);
        Keys { has, group: self, message }
    }
}

impl<L: Lanes, const T: usize> Keys<'_, L, T> {
    #[inline(always)]
    pub(super) fn has(&self) -> Has<L> {
        self.has
    }

    /// A round key in every lane.
    #[inline(always)]
    pub(super) fn round<M: Lanes>(&self, has: Has<M>, r: usize) -> M {
        M::broadcast(has, &self.group.round[r][self.message])
    }

    /// All round keys in every lane.
    #[inline(always)]
    pub(super) fn rounds(&self) -> [L; ROUNDS] {
        let mut rounds = [L::zero(self.has); ROUNDS];
        for r in 0..ROUNDS {
            rounds[r] = self.round(self.has, r);
        }
        rounds
    }

    /// `x` times H^p.
    #[inline(always)]
    pub(super) fn times<M: Lanes>(&self, has: Has<M>, x: M, p: usize) -> Product<M> {
        let row = slot::<L>(p);
        let power = M::broadcast(has, &self.group.power[row][self.message]);
        let crossed = M::broadcast(has, &self.group.crossed[row][self.message]);
        Product::of(x, power, crossed)
    }

    /// Lane `l` of `x` times H^(first - l); the power 0 gives zero.
    #[inline(always)]
    pub(super) fn times_each(&self, x: L, first: usize) -> Product<L> {
        let (mut power, mut crossed) = ([&Block::ZERO; 4], [&Block::ZERO; 4]);
        for l in 0..L::N {
            if first > l {
                let row = slot::<L>(first - l);
                power[l] = &self.group.power[row][self.message];
                crossed[l] = &self.group.crossed[row][self.message];
            }
        }
        Product::of(x, L::gather(self.has, power), L::gather(self.has, crossed))
    }
}

/// The six blocks of each message: their low halves are H and the encryption key.
#[inline(always)]
fn encrypt_counters<L: Lanes, const W: usize, const T: usize>(
    has: Has<L>,
    master: &Schedule,
    nonces: &[Block; T],
    h: &mut [L; W],
    first: &mut [L; W],
    second: &mut [L; W],
) {
    let key = L::broadcast(has, &master[0]);
    let mut x = [[L::zero(has); W]; 6];
    for c in 0..6u8 {
        let start = key.xor(L::broadcast(has, &Block::padded(&[c])));
        for w in 0..W {
            x[usize::from(c)][w] = L::load(has, &nonces[w * L::N..]).xor(start);
        }
    }
    for key in &master[1..ROUNDS - 1] {
        let key = L::broadcast(has, key);
        for c in 0..6 {
            for w in 0..W {
                x[c][w] = x[c][w].enc(key);
            }
        }
    }
    let key = L::broadcast(has, &master[ROUNDS - 1]);
    for w in 0..W {
        h[w] = x[0][w].enc_last(key).low_halves(x[1][w].enc_last(key));
        first[w] = x[2][w].enc_last(key).low_halves(x[3][w].enc_last(key));
        second[w] = x[4][w].enc_last(key).low_halves(x[5][w].enc_last(key));
    }
}

/// Sums of the words up to each.
#[inline(always)]
fn running<L: Lanes>(x: L) -> L {
    let x = x.xor(x.up4());
    x.xor(x.up8())
}

/// The last word of each lane in all four places; with it, AES's last round is SubWord (FIPS 197, 5.2).
const LAST_WORD: Block = Block([12, 13, 14, 15, 12, 13, 14, 15, 12, 13, 14, 15, 12, 13, 14, 15]);
/// The same, rotated by RotWord.
const LAST_WORD_TURNED: Block = Block([13, 14, 15, 12, 13, 14, 15, 12, 13, 14, 15, 12, 13, 14, 15, 12]);

/// Round key `r`, which is even, from the two before.
#[inline(always)]
fn even_key<L: Lanes>(has: Has<L>, even: L, odd: L, r: usize) -> L {
    let constant = 1u8 << (r / 2 - 1);
    let word = [constant, 0, 0, 0];
    let mut rcon = Block::ZERO;
    for chunk in rcon.0.chunks_exact_mut(4) {
        chunk.copy_from_slice(&word);
    }
    let word = odd.shuffle(L::broadcast(has, &LAST_WORD_TURNED));
    running(even).xor(word.enc_last(L::broadcast(has, &rcon)))
}

/// An odd round key from the two before.
#[inline(always)]
fn odd_key<L: Lanes>(has: Has<L>, odd: L, even: L) -> L {
    let word = even.shuffle(L::broadcast(has, &LAST_WORD));
    running(odd).xor(word.enc_last(L::zero(has)))
}

/// Expands a key.
#[inline(always)]
pub(super) fn schedule<L: Lanes>(has: Has<L>, key: &[u8; 32], out: &mut Schedule) {
    let mut group = Group::<4>::empty();
    let (low, high) = key.split_at(16);
    let first = L::broadcast(has, &Block::padded(low));
    let second = L::broadcast(has, &Block::padded(high));
    group.expand(has, [first], [second]);
    for (out, row) in out.iter_mut().zip(&group.round) {
        *out = row[0];
    }
}
