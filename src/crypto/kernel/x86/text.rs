//! A message's text: where it is read, and where the other side of it is written. The same place, or two.

use std::marker::PhantomData;

use super::lanes::{Block, Has, Lanes};

/// Invariant: `from` is valid for reads and `to` for reads and writes of `len` bytes while `'a` lasts; both are one place, or
/// they do not overlap.
pub(in crate::crypto::kernel) struct Text<'a> {
    from: *const u8,
    to: *mut u8,
    len: usize,
    borrow: PhantomData<&'a mut [u8]>,
}

/// The whole units of a text; the same invariant. While it lives, the text is not used otherwise.
#[derive(Clone, Copy)]
pub(super) struct Units<'a> {
    from: *const u8,
    to: *mut u8,
    count: usize,
    borrow: PhantomData<&'a [u8]>,
}

/// One unit, whose place was checked once: both pointers are valid for `L::UNIT` bytes.
#[derive(Clone, Copy)]
pub(super) struct Unit<'a> {
    from: *const u8,
    to: *mut u8,
    borrow: PhantomData<&'a [u8]>,
}

/// A unit that is only read, likewise.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    from: *const u8,
    borrow: PhantomData<&'a [u8]>,
}

#[allow(unsafe_code)]
impl<'a> Text<'a> {
    /// Changed in place.
    #[inline(always)]
    pub(super) fn in_place(buf: &'a mut [u8]) -> Self {
        let to = buf.as_mut_ptr();
        Self { from: to.cast_const(), to, len: buf.len(), borrow: PhantomData }
    }

    /// Read in one place, written in another that is as long.
    #[inline(always)]
    pub(super) fn between(from: &'a [u8], to: &'a mut [u8]) -> Self {
        assert_eq!(from.len(), to.len(), "both sides of a text are as long as each other");
        Self { from: from.as_ptr(), to: to.as_mut_ptr(), len: to.len(), borrow: PhantomData }
    }

    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The whole units.
    #[inline(always)]
    pub(super) fn units<L: Lanes>(&mut self) -> Units<'_> {
        Units { from: self.from, to: self.to, count: self.len / L::UNIT, borrow: PhantomData }
    }

    /// What is read.
    #[inline(always)]
    pub(super) fn source(&self) -> &[u8] {
        // SAFETY: the invariant; `&self` keeps everything that writes away.
        unsafe { std::slice::from_raw_parts(self.from, self.len) }
    }

    /// What was written.
    #[inline(always)]
    pub(super) fn written(&mut self) -> &mut [u8] {
        // SAFETY: the invariant; `&mut self` is the only way to these bytes.
        unsafe { std::slice::from_raw_parts_mut(self.to, self.len) }
    }

    /// The sum of a whole vector at `at` and `stream` goes to the other side.
    #[inline(always)]
    pub(super) fn add<L: Lanes>(&mut self, has: Has<L>, at: usize, stream: L) {
        assert!(at <= self.len && self.len - at >= L::WIDTH);
        // SAFETY: `at + WIDTH <= len`.
        unsafe { L::read(has, self.from.add(at)).xor(stream).write(self.to.add(at)) }
    }

    /// The same for the end of the text, which is shorter than a vector.
    #[inline(always)]
    pub(super) fn add_rest(&mut self, at: usize, stream: &[Block; 4]) {
        let rest = self.len.saturating_sub(at).min(64);
        for i in 0..rest {
            let byte = stream[i / 16].0[i % 16];
            // SAFETY: `at + i < len`.
            unsafe { *self.to.add(at + i) = *self.from.add(at + i) ^ byte }
        }
    }
}

#[allow(unsafe_code)]
impl<'a> Units<'a> {
    #[inline(always)]
    pub(super) fn count(self) -> usize {
        self.count
    }

    #[inline(always)]
    pub(super) fn at<L: Lanes>(self, index: usize) -> Unit<'a> {
        assert!(index < self.count);
        let at = index * L::UNIT;
        // SAFETY: `index` is one of the units that fit, so `at + UNIT <= len` of the text.
        unsafe { Unit { from: self.from.add(at), to: self.to.add(at), borrow: PhantomData } }
    }
}

#[allow(unsafe_code)]
impl<'a> Unit<'a> {
    /// Vector `k` of what is read.
    #[inline(always)]
    pub(super) fn read<L: Lanes>(self, has: Has<L>, k: usize) -> L {
        self.source().read(has, k)
    }

    /// Writes vector `k` of the other side.
    #[inline(always)]
    pub(super) fn write<L: Lanes>(self, k: usize, vector: L) {
        assert!(k < L::V);
        // SAFETY: the unit has `V` vectors.
        unsafe { vector.write(self.to.add(k * L::WIDTH)) }
    }

    /// The side that is read.
    #[inline(always)]
    pub(super) fn source(self) -> Source<'a> {
        Source { from: self.from, borrow: PhantomData }
    }

    /// The side that was written.
    #[inline(always)]
    pub(super) fn written(self) -> Source<'a> {
        Source { from: self.to.cast_const(), borrow: PhantomData }
    }
}

#[allow(unsafe_code)]
impl<'a> Source<'a> {
    /// A unit of bytes. Panics where there is none.
    #[inline(always)]
    pub(super) fn of<L: Lanes>(bytes: &'a [u8], index: usize) -> Self {
        assert!(index < bytes.len() / L::UNIT);
        // SAFETY: so `(index + 1) * UNIT <= len`.
        unsafe { Self { from: bytes.as_ptr().add(index * L::UNIT), borrow: PhantomData } }
    }

    /// Vector `k`.
    #[inline(always)]
    pub(super) fn read<L: Lanes>(self, has: Has<L>, k: usize) -> L {
        assert!(k < L::V);
        // SAFETY: the unit has `V` vectors.
        unsafe { L::read(has, self.from.add(k * L::WIDTH)) }
    }
}
