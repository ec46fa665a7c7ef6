//! Registers in software, after the definitions of FIPS 197 and of carry-less multiplication: the algorithm at every width on
//! every processor. Slow, and not constant-time.

use super::keys::Schedule;
use super::lanes::{Block, Has, Lanes};
use super::text::Text;
use super::{Width, blocks, keys, message};
use crate::crypto::piece::Piece;

/// `N` lanes.
#[derive(Clone, Copy)]
pub(super) struct Model<const N: usize>([u128; N]);

fn product(a: u64, b: u64) -> u128 {
    (0..64).filter(|i| b >> i & 1 == 1).fold(0, |sum, i| sum ^ u128::from(a) << i)
}

/// Product in AES's field.
fn times(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        product ^= if b & 1 == 1 { a } else { 0 };
        a = a << 1 ^ if a & 0x80 == 0 { 0 } else { 0x1B };
        b >>= 1;
    }
    product
}

fn substitutions() -> &'static [u8; 256] {
    static TABLE: std::sync::OnceLock<[u8; 256]> = std::sync::OnceLock::new();
    TABLE.get_or_init(|| {
        std::array::from_fn(|x| {
            let x = u8::try_from(x).expect("a byte");
            let inverse = (0..=255).find(|y| times(x, *y) == 1).unwrap_or(0);
            let turned = (1..5).fold(inverse, |sum, by| sum ^ inverse.rotate_left(by));
            turned ^ 0x63
        })
    })
}

/// SubBytes and ShiftRows.
fn substituted(x: u128) -> [u8; 16] {
    let bytes = x.to_le_bytes();
    std::array::from_fn(|i| substitutions()[usize::from(bytes[(i + 4 * (i % 4)) % 16])])
}

fn mixed(x: [u8; 16]) -> [u8; 16] {
    std::array::from_fn(|i| {
        let at = |row: usize| x[i / 4 * 4 + (i + row) % 4];
        times(at(0), 2) ^ times(at(1), 3) ^ at(2) ^ at(3)
    })
}

impl<const N: usize> Model<N> {
    fn both(self, other: Self, f: impl Fn(u128, u128) -> u128) -> Self {
        Self(std::array::from_fn(|l| f(self.0[l], other.0[l])))
    }

    fn each(self, f: impl Fn(u128) -> u128) -> Self {
        Self(self.0.map(f))
    }
}

impl<const N: usize> Lanes for Model<N> {
    const N: usize = N;
    const V: usize = if N == 1 { 16 } else { 8 };
    type One = Model<1>;

    fn one(_: Has<Self>) -> Has<Model<1>> {
        // SAFETY: software runs everywhere.
        #[allow(unsafe_code)]
        unsafe {
            Has::sworn()
        }
    }
    fn zero(_: Has<Self>) -> Self {
        Self([0; N])
    }
    fn load(_: Has<Self>, from: &[Block]) -> Self {
        Self(std::array::from_fn(|l| u128::from_le_bytes(from[l].0)))
    }
    fn store(self, to: &mut [Block]) {
        for l in 0..N {
            to[l].0 = self.0[l].to_le_bytes();
        }
    }
    #[allow(unsafe_code)]
    unsafe fn read(_: Has<Self>, from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        Self(std::array::from_fn(|l| unsafe { from.cast::<u128>().add(l).read_unaligned() }))
    }
    #[allow(unsafe_code)]
    unsafe fn write(self, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u128; N]>().write_unaligned(self.0) }
    }
    fn broadcast(_: Has<Self>, block: &Block) -> Self {
        Self([u128::from_le_bytes(block.0); N])
    }
    fn gather(_: Has<Self>, blocks: [&Block; 4]) -> Self {
        Self(std::array::from_fn(|l| u128::from_le_bytes(blocks[l].0)))
    }
    fn in_last(_: Has<Self>, one: Model<1>) -> Self {
        Self(std::array::from_fn(|l| if l == N - 1 { one.0[0] } else { 0 }))
    }
    fn last(self) -> Model<1> {
        Model([self.0[N - 1]])
    }
    fn fold(self) -> Model<1> {
        Model([self.0.iter().fold(0, |sum, x| sum ^ x)])
    }
    fn xor(self, other: Self) -> Self {
        self.both(other, |a, b| a ^ b)
    }
    fn and(self, other: Self) -> Self {
        self.both(other, |a, b| a & b)
    }
    fn add32(self, other: Self) -> Self {
        let words = |x: u128| -> [u32; 4] { std::array::from_fn(|i| (x >> (32 * i)) as u32) };
        self.both(other, |a, b| {
            let (a, b) = (words(a), words(b));
            (0..4).fold(0, |sum, i| sum | u128::from(a[i].wrapping_add(b[i])) << (32 * i))
        })
    }
    fn enc(self, key: Self) -> Self {
        self.both(key, |x, key| u128::from_le_bytes(mixed(substituted(x))) ^ key)
    }
    fn enc_last(self, key: Self) -> Self {
        self.both(key, |x, key| u128::from_le_bytes(substituted(x)) ^ key)
    }
    fn low(self, other: Self) -> Self {
        self.both(other, |a, b| product(a as u64, b as u64))
    }
    fn high(self, other: Self) -> Self {
        self.both(other, |a, b| product((a >> 64) as u64, (b >> 64) as u64))
    }
    fn swap(self) -> Self {
        self.each(|x| x.rotate_left(64))
    }
    fn up4(self) -> Self {
        self.each(|x| x << 32)
    }
    fn up8(self) -> Self {
        self.each(|x| x << 64)
    }
    fn down8(self) -> Self {
        self.each(|x| x >> 64)
    }
    fn low_halves(self, other: Self) -> Self {
        self.both(other, |a, b| u128::from(a as u64) | b << 64)
    }
    fn pin(_: &mut [Self; 8], _: &mut [Self; 3]) {}
    fn shuffle(self, by: Self) -> Self {
        self.both(by, |x, by| {
            let (x, by) = (x.to_le_bytes(), by.to_le_bytes());
            u128::from_le_bytes(std::array::from_fn(|i| x[usize::from(by[i] & 15)]))
        })
    }
}

/// `$one` and `$span` as for the real widths.
macro_rules! model {
    ($n:literal, $name:literal, $span:literal) => {
        impl Width for Model<$n> {
            const NAME: &'static str = $name;

            fn detect() -> Option<Has<Self>> {
                // SAFETY: software runs everywhere.
                #[allow(unsafe_code)]
                unsafe {
                    Some(Has::sworn())
                }
            }
            fn schedule(has: Has<Self>, key: &[u8; 32], out: &mut Schedule) {
                keys::schedule(has, key, out);
            }
            fn seal(has: Has<Self>, m: &Schedule, nonce: &[u8; 12], ad: &[u8], text: Text<'_>) -> [u8; 16] {
                message::seal_alone::<Self, $n>(has, m, nonce, ad, text)
            }
            fn open(
                has: Has<Self>,
                master: &Schedule,
                nonce: &[u8; 12],
                ad: &[u8],
                buf: &mut [u8],
                tag: &[u8; 16],
            ) -> bool {
                message::open_alone::<Self, $n>(has, master, nonce, ad, buf, tag)
            }
            fn seal_blocks(has: Has<Self>, master: &Schedule, pieces: &mut [Piece<'_>]) {
                blocks::seal::<Self, 2, $span>(has, master, pieces);
            }
            fn open_blocks(has: Has<Self>, master: &Schedule, pieces: &mut [Piece<'_>]) {
                blocks::open::<Self, 2, $span>(has, master, pieces);
            }
            fn scrub_one(_: Has<Self>) {}
            fn scrub_span(_: Has<Self>) {}
        }
    };
}

model!(1, "model128", 2);
model!(2, "model256", 4);
model!(4, "model512", 8);
