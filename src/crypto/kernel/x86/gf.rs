//! The field of POLYVAL (RFC 8452, section 3): products that are summed up before one reduction.

use super::lanes::{Block, Has, Lanes};

/// The field's polynomial without its ends, x^127 + x^126 + x^121, in the low half, divided by x^64.
const POLYNOMIAL: Block = Block(0xc200_0000_0000_0000_u128.to_le_bytes());

/// A sum of products of 256 bits, by Karatsuba: low, high, and the middle with low and high still in it.
#[derive(Clone, Copy)]
pub(super) struct Product<L> {
    low: L,
    cross: L,
    high: L,
}

/// Low half plus high half, in both halves: what the middle product is taken of.
#[inline(always)]
pub(super) fn cross<L: Lanes>(x: L) -> L {
    x.xor(x.swap())
}

impl<L: Lanes> Product<L> {
    /// `x` times a power; `power_cross` is [`cross`] of the power.
    #[inline(always)]
    pub(super) fn of(x: L, power: L, power_cross: L) -> Self {
        Self { low: x.low(power), cross: cross(x).low(power_cross), high: x.high(power) }
    }

    /// The sum.
    #[inline(always)]
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            low: self.low.xor(other.low),
            cross: self.cross.xor(other.cross),
            high: self.high.xor(other.high),
        }
    }

    /// [`Lanes::pin`].
    #[inline(always)]
    pub(super) fn pin(&mut self, chains: &mut [L; 8]) {
        let mut sum = [self.low, self.cross, self.high];
        L::pin(chains, &mut sum);
        [self.low, self.cross, self.high] = sum;
    }

    /// The sum over the lanes.
    #[inline(always)]
    pub(super) fn fold(self) -> Product<L::One> {
        Product { low: self.low.fold(), cross: self.cross.fold(), high: self.high.fold() }
    }

    /// The field element: the product divided by x^128, as POLYVAL's `dot` has it.
    #[inline(always)]
    pub(super) fn reduce(self, has: Has<L>) -> L {
        let polynomial = L::broadcast(has, &POLYNOMIAL);
        let middle = self.cross.xor(self.low).xor(self.high);
        let low = self.low.xor(middle.up8());
        let high = self.high.xor(middle.down8());
        let low = low.swap().xor(low.low(polynomial));
        high.xor(low.swap()).xor(low.low(polynomial))
    }
}
