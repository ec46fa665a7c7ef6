//! What the algorithm asks of a vector register: `N` lanes of 128 bits, each an AES state or a field element.
//!
//! The algorithm is written once over this trait. Its functions are `#[inline(always)]`, also where they are large: only
//! inside an entry with `#[target_feature]` do they become single instructions. For the same reason
//! nothing in here or above it is a closure: the compiler compiles a closure without the features of its function.

use std::marker::PhantomData;

/// One 128-bit block in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(16))]
pub(in crate::crypto::kernel) struct Block(pub(super) [u8; 16]);

impl Block {
    pub(super) const ZERO: Self = Self([0; 16]);

    /// Bytes with zeros behind them; at most 16.
    #[inline(always)]
    pub(super) fn padded(bytes: &[u8]) -> Self {
        let mut block = Self::ZERO;
        block.0[..bytes.len()].copy_from_slice(bytes);
        block
    }
}

/// Proof that this processor has the instructions of `L`. Only a look at the processor makes one.
pub(in crate::crypto::kernel) struct Has<L>(PhantomData<fn() -> L>);

impl<L> Has<L> {
    /// # Safety
    /// The processor has every instruction that the methods of `L` use.
    #[allow(unsafe_code)]
    pub(super) const unsafe fn sworn() -> Self {
        Self(PhantomData)
    }
}

impl<L> Clone for Has<L> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<L> Copy for Has<L> {}

/// `N` lanes. All operations are lane by lane. A value is made with a [`Has`] only, so a value is itself the proof
/// that its instructions exist.
pub(in crate::crypto::kernel) trait Lanes: Copy {
    /// Lanes: 1, 2 or 4.
    const N: usize;
    /// Vectors in a unit, which is hashed with one reduction: 16 blocks or more, and a multiple of 8 vectors.
    const V: usize;
    /// Bytes of a vector.
    const WIDTH: usize = 16 * Self::N;
    /// Bytes of a unit.
    const UNIT: usize = Self::WIDTH * Self::V;
    /// A single lane of the same machine.
    type One: Lanes<One = Self::One>;

    /// The proof for a single lane.
    fn one(has: Has<Self>) -> Has<Self::One>;
    /// All bits zero.
    fn zero(has: Has<Self>) -> Self;
    /// The first `N` blocks. Panics on fewer.
    fn load(has: Has<Self>, from: &[Block]) -> Self;
    /// To the first `N` blocks. Panics on fewer.
    fn store(self, to: &mut [Block]);
    /// From any address.
    ///
    /// # Safety
    /// `from` is valid for reads of `WIDTH` bytes.
    #[allow(unsafe_code)]
    unsafe fn read(has: Has<Self>, from: *const u8) -> Self;
    /// To any address.
    ///
    /// # Safety
    /// `to` is valid for writes of `WIDTH` bytes.
    #[allow(unsafe_code)]
    unsafe fn write(self, to: *mut u8);
    /// The same block in every lane.
    fn broadcast(has: Has<Self>, block: &Block) -> Self;
    /// One block for each lane, of which the first `N` count.
    fn gather(has: Has<Self>, blocks: [&Block; 4]) -> Self;
    /// The last lane from `one`, zeros before it.
    fn in_last(has: Has<Self>, one: Self::One) -> Self;
    /// The last lane.
    fn last(self) -> Self::One;
    /// The sum of all lanes.
    fn fold(self) -> Self::One;

    /// Sum.
    fn xor(self, other: Self) -> Self;
    /// Bits that both have.
    fn and(self, other: Self) -> Self;
    /// Sums of 32-bit integers.
    fn add32(self, other: Self) -> Self;
    /// One round of AES encryption.
    fn enc(self, key: Self) -> Self;
    /// The last round.
    fn enc_last(self, key: Self) -> Self;
    /// Carry-less product of the low halves.
    fn low(self, other: Self) -> Self;
    /// Carry-less product of the high halves.
    fn high(self, other: Self) -> Self;
    /// Halves exchanged.
    fn swap(self) -> Self;
    /// Towards the high end by 4 bytes.
    fn up4(self) -> Self;
    /// Towards the high end by 8 bytes.
    fn up8(self) -> Self;
    /// Towards the low end by 8 bytes.
    fn down8(self) -> Self;
    /// Low half of `self`, then low half of `other`.
    fn low_halves(self, other: Self) -> Self;
    /// Does nothing, for all of them at once: what was written before it is computed before what is written after it. The
    /// compiler would else put one chain of AES behind the other to save registers, and leave the units idle.
    fn pin(chains: &mut [Self; 8], sum: &mut [Self; 3]);
    /// Bytes picked by the lane's own bytes in `by`, all below 16.
    fn shuffle(self, by: Self) -> Self;
}
