//! The registers: one, two and four lanes.

use std::arch::asm;
use std::arch::x86_64::*;

use super::lanes::{Block, Has, Lanes};

/// AES-NI and PCLMULQDQ.
#[derive(Clone, Copy)]
pub(in crate::crypto::kernel) struct V128(__m128i);
/// VAES and VPCLMULQDQ on 256 bits.
#[derive(Clone, Copy)]
pub(in crate::crypto::kernel) struct V256(__m256i);
/// VAES and VPCLMULQDQ on 512 bits.
#[derive(Clone, Copy)]
pub(in crate::crypto::kernel) struct V512(__m512i);

impl V128 {
    /// Looks at the processor.
    pub(in crate::crypto::kernel) fn detect() -> Option<Has<Self>> {
        let all = is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("pclmulqdq")
            && is_x86_feature_detected!("avx");
        // SAFETY: seen just now; `avx` includes SSE up to 4.2.
        #[allow(unsafe_code)]
        all.then(|| unsafe { Has::sworn() })
    }
}

impl V256 {
    /// Looks at the processor.
    pub(in crate::crypto::kernel) fn detect() -> Option<Has<Self>> {
        let all = V128::detect().is_some()
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq");
        // SAFETY: seen just now.
        #[allow(unsafe_code)]
        all.then(|| unsafe { Has::sworn() })
    }
}

impl V512 {
    /// Looks at the processor.
    pub(in crate::crypto::kernel) fn detect() -> Option<Has<Self>> {
        let all = V256::detect().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq");
        // SAFETY: seen just now.
        #[allow(unsafe_code)]
        all.then(|| unsafe { Has::sworn() })
    }
}

/// An intrinsic on values of a type that exists only where its instructions do.
macro_rules! run {
    ($call:expr) => {{
        // SAFETY: a `Has` or a value made with one is at hand, so the processor has the instruction.
        #[allow(unsafe_code)]
        unsafe {
            $call
        }
    }};
}

/// The empty assembly behind [`Lanes::pin`], for one class of registers.
macro_rules! pin {
    ($name:ident, $raw:ty, $class:ident, $feature:literal) => {
        #[inline]
        #[target_feature(enable = $feature)]
        fn $name(x: &mut [$raw; 8], s: &mut [$raw; 3]) {
            let ([a, b, c, d, e, f, g, h], [i, j, k]) = (x, s);
            // SAFETY: there is no instruction in it.
            #[allow(unsafe_code)]
            unsafe {
                asm!(
                    "/* {0} {1} {2} {3} {4} {5} {6} {7} {8} {9} {10} */",
                    inout($class) * a,
                    inout($class) * b,
                    inout($class) * c,
                    inout($class) * d,
                    inout($class) * e,
                    inout($class) * f,
                    inout($class) * g,
                    inout($class) * h,
                    inout($class) * i,
                    inout($class) * j,
                    inout($class) * k,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
        }
    };
}

pin!(pin128, __m128i, xmm_reg, "sse2");
pin!(pin256, __m256i, ymm_reg, "avx");
pin!(pin512, __m512i, zmm_reg, "avx512f");

/// The operations that are called alike on every width.
macro_rules! alike {
    ($v:ident: $raw:ty, $zero:ident, $read:ident, $write:ident, $xor:ident, $and:ident, $add:ident, $enc:ident, $enc_last:ident,
     $mul:ident, $shuffle32:ident, $up:ident, $down:ident, $unpack:ident, $shuffle8:ident, $pin:ident) => {
        #[inline(always)]
        fn zero(_: Has<Self>) -> Self {
            $v(run!($zero()))
        }
        #[inline(always)]
        fn load(has: Has<Self>, from: &[Block]) -> Self {
            let from = &from[..Self::N];
            // SAFETY: `N` blocks are `WIDTH` bytes.
            #[allow(unsafe_code)]
            unsafe {
                Self::read(has, from.as_ptr().cast())
            }
        }
        #[inline(always)]
        fn store(self, to: &mut [Block]) {
            let to = &mut to[..Self::N];
            // SAFETY: `N` blocks are `WIDTH` bytes.
            #[allow(unsafe_code)]
            unsafe {
                self.write(to.as_mut_ptr().cast());
            }
        }
        #[inline(always)]
        #[allow(unsafe_code)]
        unsafe fn read(_: Has<Self>, from: *const u8) -> Self {
            // SAFETY: the caller's promise; the instruction takes any alignment.
            unsafe { $v($read(from.cast::<$raw>())) }
        }
        #[inline(always)]
        #[allow(unsafe_code)]
        unsafe fn write(self, to: *mut u8) {
            // SAFETY: the caller's promise; the instruction takes any alignment.
            unsafe { $write(to.cast::<$raw>(), self.0) }
        }
        #[inline(always)]
        fn xor(self, other: Self) -> Self {
            $v(run!($xor(self.0, other.0)))
        }
        #[inline(always)]
        fn and(self, other: Self) -> Self {
            $v(run!($and(self.0, other.0)))
        }
        #[inline(always)]
        fn add32(self, other: Self) -> Self {
            $v(run!($add(self.0, other.0)))
        }
        #[inline(always)]
        fn enc(self, key: Self) -> Self {
            $v(run!($enc(self.0, key.0)))
        }
        #[inline(always)]
        fn enc_last(self, key: Self) -> Self {
            $v(run!($enc_last(self.0, key.0)))
        }
        #[inline(always)]
        fn low(self, other: Self) -> Self {
            $v(run!($mul::<0x00>(self.0, other.0)))
        }
        #[inline(always)]
        fn high(self, other: Self) -> Self {
            $v(run!($mul::<0x11>(self.0, other.0)))
        }
        #[inline(always)]
        fn swap(self) -> Self {
            $v(run!($shuffle32::<0x4E>(self.0)))
        }
        #[inline(always)]
        fn up4(self) -> Self {
            $v(run!($up::<4>(self.0)))
        }
        #[inline(always)]
        fn up8(self) -> Self {
            $v(run!($up::<8>(self.0)))
        }
        #[inline(always)]
        fn down8(self) -> Self {
            $v(run!($down::<8>(self.0)))
        }
        #[inline(always)]
        fn low_halves(self, other: Self) -> Self {
            $v(run!($unpack(self.0, other.0)))
        }
        #[inline(always)]
        fn shuffle(self, by: Self) -> Self {
            $v(run!($shuffle8(self.0, by.0)))
        }
        #[inline(always)]
        fn pin(chains: &mut [Self; 8], sum: &mut [Self; 3]) {
            let (mut x, mut s) = ([chains[0].0; 8], [sum[0].0; 3]);
            for i in 0..8 {
                x[i] = chains[i].0;
            }
            for i in 0..3 {
                s[i] = sum[i].0;
            }
            run!($pin(&mut x, &mut s));
            for i in 0..8 {
                chains[i] = $v(x[i]);
            }
            for i in 0..3 {
                sum[i] = $v(s[i]);
            }
        }
    };
}

impl Lanes for V128 {
    const N: usize = 1;
    const V: usize = 16;
    type One = Self;

    alike!(V128: __m128i, _mm_setzero_si128, _mm_loadu_si128, _mm_storeu_si128, _mm_xor_si128, _mm_and_si128, _mm_add_epi32,
        _mm_aesenc_si128, _mm_aesenclast_si128, _mm_clmulepi64_si128, _mm_shuffle_epi32, _mm_bslli_si128, _mm_bsrli_si128,
        _mm_unpacklo_epi64, _mm_shuffle_epi8, pin128);

    #[inline(always)]
    fn one(has: Has<Self>) -> Has<Self> {
        has
    }
    #[inline(always)]
    fn broadcast(has: Has<Self>, block: &Block) -> Self {
        Self::load(has, std::slice::from_ref(block))
    }
    #[inline(always)]
    fn gather(has: Has<Self>, [block, ..]: [&Block; 4]) -> Self {
        Self::broadcast(has, block)
    }
    #[inline(always)]
    fn in_last(_: Has<Self>, one: Self) -> Self {
        one
    }
    #[inline(always)]
    fn last(self) -> Self {
        self
    }
    #[inline(always)]
    fn fold(self) -> Self {
        self
    }
}

impl Lanes for V256 {
    const N: usize = 2;
    const V: usize = 8;
    type One = V128;

    alike!(V256: __m256i, _mm256_setzero_si256, _mm256_loadu_si256, _mm256_storeu_si256, _mm256_xor_si256, _mm256_and_si256,
        _mm256_add_epi32, _mm256_aesenc_epi128, _mm256_aesenclast_epi128, _mm256_clmulepi64_epi128,
        _mm256_shuffle_epi32, _mm256_bslli_epi128, _mm256_bsrli_epi128, _mm256_unpacklo_epi64, _mm256_shuffle_epi8, pin256);

    #[inline(always)]
    fn one(_: Has<Self>) -> Has<V128> {
        // SAFETY: `V256::detect` asks for all that `V128` needs.
        #[allow(unsafe_code)]
        unsafe {
            Has::sworn()
        }
    }
    #[inline(always)]
    fn broadcast(has: Has<Self>, block: &Block) -> Self {
        let one = V128::broadcast(Self::one(has), block);
        Self(run!(_mm256_broadcastsi128_si256(one.0)))
    }
    #[inline(always)]
    fn gather(has: Has<Self>, [a, b, ..]: [&Block; 4]) -> Self {
        let one = Self::one(has);
        let (a, b) = (V128::broadcast(one, a), V128::broadcast(one, b));
        Self(run!(_mm256_set_m128i(b.0, a.0)))
    }
    #[inline(always)]
    fn in_last(has: Has<Self>, one: V128) -> Self {
        let zero = V128::zero(Self::one(has));
        Self(run!(_mm256_set_m128i(one.0, zero.0)))
    }
    #[inline(always)]
    fn last(self) -> V128 {
        V128(run!(_mm256_extracti128_si256::<1>(self.0)))
    }
    #[inline(always)]
    fn fold(self) -> V128 {
        V128(run!(_mm256_castsi256_si128(self.0))).xor(self.last())
    }
}

impl Lanes for V512 {
    const N: usize = 4;
    const V: usize = 8;
    type One = V128;

    alike!(V512: __m512i, _mm512_setzero_si512, _mm512_loadu_si512, _mm512_storeu_si512, _mm512_xor_si512, _mm512_and_si512,
        _mm512_add_epi32, _mm512_aesenc_epi128, _mm512_aesenclast_epi128, _mm512_clmulepi64_epi128,
        _mm512_shuffle_epi32, _mm512_bslli_epi128, _mm512_bsrli_epi128, _mm512_unpacklo_epi64, _mm512_shuffle_epi8, pin512);

    #[inline(always)]
    fn one(_: Has<Self>) -> Has<V128> {
        // SAFETY: `V512::detect` asks for all that `V128` needs.
        #[allow(unsafe_code)]
        unsafe {
            Has::sworn()
        }
    }
    #[inline(always)]
    fn broadcast(has: Has<Self>, block: &Block) -> Self {
        let one = V128::broadcast(Self::one(has), block);
        Self(run!(_mm512_broadcast_i64x2(one.0)))
    }
    #[inline(always)]
    fn gather(has: Has<Self>, [a, b, c, d]: [&Block; 4]) -> Self {
        let one = Self::one(has);
        let (a, b) = (V128::broadcast(one, a), V128::broadcast(one, b));
        let (c, d) = (V128::broadcast(one, c), V128::broadcast(one, d));
        let low = run!(_mm256_set_m128i(b.0, a.0));
        let high = run!(_mm256_set_m128i(d.0, c.0));
        Self(run!(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)))
    }
    #[inline(always)]
    fn in_last(has: Has<Self>, one: V128) -> Self {
        let zero = Self::zero(has);
        Self(run!(_mm512_inserti64x2::<3>(zero.0, one.0)))
    }
    #[inline(always)]
    fn last(self) -> V128 {
        V128(run!(_mm512_extracti64x2_epi64::<3>(self.0)))
    }
    #[inline(always)]
    fn fold(self) -> V128 {
        let low = run!(_mm512_castsi512_si256(self.0));
        let high = run!(_mm512_extracti64x4_epi64::<1>(self.0));
        V256(run!(_mm256_xor_si256(low, high))).fold()
    }
}
