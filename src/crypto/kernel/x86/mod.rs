//! AES-256-GCM-SIV with the AES and carry-less multiplication instructions of x86, one, two or four lanes at a time.
//! An island of `unsafe`: loads and stores through pointers whose bounds are checked once a unit, instructions that
//! the processor was seen to have.
//!
//! `lanes` says what is asked of a vector register, `vectors` gives it for three widths; all else is written once over
//! them. No branch and no address depends on keys or text. Derived keys are wiped, as is the stack that the compiler may
//! have spilled them to.

mod blocks;
mod gf;
mod keys;
mod lanes;
mod message;
#[cfg(test)]
mod model;
mod stream;
#[cfg(test)]
mod tests;
mod text;
mod vectors;

use std::mem::MaybeUninit;

use super::BlockKernel;
use crate::crypto::piece::Piece;
use keys::Schedule;
use lanes::{Block, Has, Lanes};
use text::Text;
pub(super) use vectors::{V128, V256, V512};

/// One key on one width of registers. Wiped on drop.
pub(super) struct Wide<L> {
    has: Has<L>,
    master: Schedule,
}

impl<L> Drop for Wide<L> {
    fn drop(&mut self) {
        wipe(&mut self.master);
    }
}

/// The way into the code that is compiled for a width's instructions. Single messages and spans.
pub(super) trait Width: Lanes {
    /// For `--kernel` and the log.
    const NAME: &'static str;
    /// Looks at the processor.
    fn detect() -> Option<Has<Self>>;
    /// Expands a key.
    fn schedule(has: Has<Self>, key: &[u8; 32], out: &mut Schedule);
    /// Seals one message.
    fn seal(has: Has<Self>, master: &Schedule, nonce: &[u8; 12], ad: &[u8], text: Text<'_>) -> [u8; 16];
    /// Opens one message.
    fn open(
        has: Has<Self>,
        master: &Schedule,
        nonce: &[u8; 12],
        ad: &[u8],
        buf: &mut [u8],
        tag: &[u8; 16],
    ) -> bool;
    /// Seals a span.
    fn seal_blocks(has: Has<Self>, master: &Schedule, pieces: &mut [Piece<'_>]);
    /// Opens a span.
    fn open_blocks(has: Has<Self>, master: &Schedule, pieces: &mut [Piece<'_>]);
    /// Overwrites the stack that a call for one message used.
    fn scrub_one(has: Has<Self>);
    /// Overwrites the stack that a call for a span used.
    fn scrub_span(has: Has<Self>);
}

/// `$one` messages are as many as a vector has lanes, `$span` as many as two vectors have. `$stack_one` and `$stack_span` are bytes of stack
/// that calls use in a release build, spilled registers included, rounded up (largest: 2.1, 3.3, 5.8 KiB; 3.5, 5.7, 10.3 KiB).
macro_rules! width {
    ($v:ty, $name:literal, $features:literal, $one:literal, $span:literal, $stack_one:literal, $stack_span:literal) => {
        #[allow(unsafe_code)]
        impl Width for $v {
            const NAME: &'static str = $name;

            fn detect() -> Option<Has<Self>> {
                Self::detect()
            }

            fn schedule(has: Has<Self>, key: &[u8; 32], out: &mut Schedule) {
                #[target_feature(enable = $features)]
                fn run(has: Has<$v>, key: &[u8; 32], out: &mut Schedule) {
                    keys::schedule(has, key, out);
                }
                // SAFETY: `has` proves the features.
                unsafe { run(has, key, out) }
            }

            fn seal(
                has: Has<Self>,
                master: &Schedule,
                nonce: &[u8; 12],
                ad: &[u8],
                text: Text<'_>,
            ) -> [u8; 16] {
                #[target_feature(enable = $features)]
                fn run(has: Has<$v>, m: &Schedule, nonce: &[u8; 12], ad: &[u8], text: Text<'_>) -> [u8; 16] {
                    message::seal_alone::<$v, $one>(has, m, nonce, ad, text)
                }
                // SAFETY: `has` proves the features.
                unsafe { run(has, master, nonce, ad, text) }
            }

            fn open(
                has: Has<Self>,
                master: &Schedule,
                nonce: &[u8; 12],
                ad: &[u8],
                buf: &mut [u8],
                tag: &[u8; 16],
            ) -> bool {
                #[target_feature(enable = $features)]
                fn run(
                    has: Has<$v>,
                    master: &Schedule,
                    nonce: &[u8; 12],
                    ad: &[u8],
                    buf: &mut [u8],
                    tag: &[u8; 16],
                ) -> bool {
                    message::open_alone::<$v, $one>(has, master, nonce, ad, buf, tag)
                }
                // SAFETY: `has` proves the features.
                unsafe { run(has, master, nonce, ad, buf, tag) }
            }

            fn seal_blocks(has: Has<Self>, master: &Schedule, pieces: &mut [Piece<'_>]) {
                #[target_feature(enable = $features)]
                fn run(has: Has<$v>, master: &Schedule, pieces: &mut [Piece<'_>]) {
                    blocks::seal::<$v, { keys::SIDE }, $span>(has, master, pieces);
                }
                // SAFETY: `has` proves the features.
                unsafe { run(has, master, pieces) }
            }

            fn open_blocks(has: Has<Self>, master: &Schedule, pieces: &mut [Piece<'_>]) {
                #[target_feature(enable = $features)]
                fn run(has: Has<$v>, master: &Schedule, pieces: &mut [Piece<'_>]) {
                    blocks::open::<$v, { keys::SIDE }, $span>(has, master, pieces);
                }
                // SAFETY: `has` proves the features.
                unsafe { run(has, master, pieces) }
            }

            fn scrub_one(has: Has<Self>) {
                #[target_feature(enable = $features)]
                #[inline(never)]
                fn run(has: Has<$v>) {
                    scrub::<$v, $stack_one>(has);
                }
                // SAFETY: `has` proves the features.
                unsafe { run(has) }
            }

            fn scrub_span(has: Has<Self>) {
                #[target_feature(enable = $features)]
                #[inline(never)]
                fn run(has: Has<$v>) {
                    scrub::<$v, $stack_span>(has);
                }
                // SAFETY: `has` proves the features.
                unsafe { run(has) }
            }
        }
    };
}

width!(V128, "aesni", "aes,pclmulqdq,avx", 1, 2, 3072, 5120);
width!(V256, "vaes256", "aes,pclmulqdq,avx2,vaes,vpclmulqdq", 2, 4, 4096, 7168);
width!(
    V512,
    "vaes512",
    "aes,pclmulqdq,avx2,vaes,vpclmulqdq,avx512f,avx512bw,avx512vl,avx512dq",
    4,
    8,
    7168,
    12288
);

impl<L: Width> Wide<L> {
    /// Expands a key; `None` where the processor lacks the instructions.
    pub(super) fn new(key: &[u8; 32]) -> Option<Self> {
        let has = L::detect()?;
        let mut wide = Self { has, master: [Block::ZERO; keys::ROUNDS] };
        L::schedule(has, key, &mut wide.master);
        L::scrub_one(has);
        Some(wide)
    }
}

impl<L: Width> BlockKernel for Wide<L> {
    fn name(&self) -> &'static str {
        L::NAME
    }

    fn seal(&self, nonce: &[u8; 12], ad: &[u8], buf: &mut [u8]) -> [u8; 16] {
        let tag = L::seal(self.has, &self.master, nonce, ad, Text::in_place(buf));
        L::scrub_one(self.has);
        tag
    }

    fn seal_into(&self, nonce: &[u8; 12], ad: &[u8], plain: &[u8], sealed: &mut [u8]) -> [u8; 16] {
        let tag = L::seal(self.has, &self.master, nonce, ad, Text::between(plain, sealed));
        L::scrub_one(self.has);
        tag
    }

    fn open(&self, nonce: &[u8; 12], ad: &[u8], buf: &mut [u8], tag: &[u8; 16]) -> bool {
        let opened = L::open(self.has, &self.master, nonce, ad, buf, tag);
        L::scrub_one(self.has);
        opened
    }

    fn seal_blocks(&self, pieces: &mut [Piece<'_>]) {
        L::seal_blocks(self.has, &self.master, pieces);
        L::scrub_span(self.has);
    }

    fn open_blocks(&self, pieces: &mut [Piece<'_>]) {
        L::open_blocks(self.has, &self.master, pieces);
        L::scrub_span(self.has);
    }
}

/// Overwrites plain bytes with zeros, in a way that the compiler keeps.
#[inline(always)]
fn wipe<T>(value: &mut T) {
    let at: *mut T = value;
    // SAFETY: only arrays of blocks and structures of such come here, for which zeros are a value. The empty assembly may
    // read all memory that `at` leads to, so the zeros must be there.
    #[allow(unsafe_code)]
    unsafe {
        std::ptr::write_bytes(at, 0, 1);
        #[cfg(not(miri))]
        std::arch::asm!("/* {0} */", in(reg) at, options(nostack, preserves_flags));
    }
}

/// Overwrites the stack that a call made just before from the same function has used: with the width's own stores, since
/// `memset` takes longer than a small message. Inlined into an entry of its own, whose frame is nothing but these bytes.
#[inline(always)]
fn scrub<L: Lanes, const BYTES: usize>(has: Has<L>) {
    let mut stack = MaybeUninit::<[u8; BYTES]>::uninit();
    let at = stack.as_mut_ptr().cast::<u8>();
    for i in 0..BYTES / L::WIDTH {
        // SAFETY: `(i + 1) * WIDTH <= BYTES`. The assembly is empty, and may read what was written.
        #[allow(unsafe_code)]
        unsafe {
            let to = at.add(i * L::WIDTH);
            L::zero(has).write(to);
            #[cfg(not(miri))]
            std::arch::asm!("/* {0} */", in(reg) to, options(nostack, preserves_flags));
        }
    }
}
