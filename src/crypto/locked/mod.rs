//! Memory for secrets: locked (never swapped), left out of core dumps, wiped when freed.
//!
//! Secrets live in slots of an arena of locked pages, not on the heap. A child made by `fork` gets
//! zeros in their place, and is stopped when it uses one of its parent's: a daemon forks first and unwraps keys
//! afterwards.
//!
//! Where `RLIMIT_MEMLOCK` refuses, the memory is used unlocked and [`lock_status`] says so, once for the program
//! to tell its user.

mod arena;

use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use zeroize::Zeroize;

pub use arena::{LockStatus, lock_status};

/// A value in locked memory: an expanded key, or bytes. Wiped on drop, at most 4 KiB large.
///
/// Not `Clone`; `Debug` prints no content.
pub struct Locked<T> {
    place: NonNull<T>,
    epoch: u32,
}

// SAFETY: a `Locked<T>` owns its `T` alone, as `Box<T>` does, so it may move where `T` may.
#[allow(unsafe_code)]
unsafe impl<T: Send> Send for Locked<T> {}
// SAFETY: through `&Locked<T>` only `&T` can be had.
#[allow(unsafe_code)]
unsafe impl<T: Sync> Sync for Locked<T> {}

impl<T> Locked<T> {
    /// Moves a value into locked memory and wipes the place it is passed in.
    pub fn new(value: T) -> Self {
        let (slot, epoch) = arena::take(arena::Class::of::<T>());
        let place = slot.cast::<T>();
        let mut value = ManuallyDrop::new(value);
        let from: *mut T = &raw mut *value;
        // SAFETY: `take` gives a free slot of at least `size_of::<T>()` bytes, aligned for `T`, to nobody else.
        // `from` is a live `T` that is never used or dropped as one again; its bytes are then plain memory of
        // ours, which may be overwritten.
        #[allow(unsafe_code)]
        unsafe {
            place.copy_from_nonoverlapping(NonNull::new_unchecked(from), 1);
            wipe(from.cast(), size_of::<T>());
        }
        Self { place, epoch }
    }
}

impl<T> Deref for Locked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        arena::assert_alive(self.epoch);
        // SAFETY: the slot holds the `T` that `new` moved in, until `drop`; this is not a child in which the
        // kernel wiped it. `&self` keeps `&mut T` away.
        #[allow(unsafe_code)]
        unsafe {
            self.place.as_ref()
        }
    }
}

impl<T> DerefMut for Locked<T> {
    fn deref_mut(&mut self) -> &mut T {
        arena::assert_alive(self.epoch);
        // SAFETY: as for `deref`; `&mut self` is the only way to the slot.
        #[allow(unsafe_code)]
        unsafe {
            self.place.as_mut()
        }
    }
}

impl<T> Drop for Locked<T> {
    fn drop(&mut self) {
        // In a forked child the bytes are zeros and perhaps no `T`: there is nothing to drop.
        if arena::is_alive(self.epoch) {
            // SAFETY: the slot holds a live `T` that nobody borrows, and which is not used after this.
            #[allow(unsafe_code)]
            unsafe {
                self.place.drop_in_place();
            }
        }
        // SAFETY: the slot came from `take` with this class, holds no live value any more and goes back once.
        #[allow(unsafe_code)]
        unsafe {
            wipe(self.place.as_ptr().cast(), size_of::<T>());
            arena::give_back(arena::Class::of::<T>(), self.place.cast(), self.epoch);
        }
    }
}

impl<T> std::fmt::Debug for Locked<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Locked(..)")
    }
}

/// Overwrites memory with zeros, in a way that the compiler keeps.
///
/// # Safety
/// `at` must be valid for writes of `len` bytes, which belong to no live value.
#[allow(unsafe_code)]
unsafe fn wipe(at: *mut u8, len: usize) {
    // SAFETY: the caller's promise. Bytes that may be padding are written before they are borrowed as `u8`.
    unsafe {
        std::ptr::write_bytes(at, 0, len);
        std::slice::from_raw_parts_mut(at, len).zeroize();
    }
}

/// `N` secret bytes in locked memory. `Debug` prints `Secret(..)`; not `Clone`; wiped on drop.
pub struct Secret<const N: usize> {
    bytes: Locked<[u8; N]>,
}

impl<const N: usize> Secret<N> {
    /// Zero bytes, to be filled in place.
    pub fn zeroed() -> Self {
        Self { bytes: Locked::new([0; N]) }
    }

    /// Random bytes from the operating system.
    pub fn random() -> Self {
        let mut secret = Self::zeroed();
        super::random::fill(secret.expose_mut());
        secret
    }

    /// Copies from a slice of exactly `N` bytes; the caller wipes his copy.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; N] = bytes.try_into().ok()?;
        let mut secret = Self::zeroed();
        secret.expose_mut().copy_from_slice(bytes);
        Some(secret)
    }

    /// The bytes.
    pub fn expose(&self) -> &[u8; N] {
        &self.bytes
    }

    /// The bytes, to fill.
    pub fn expose_mut(&mut self) -> &mut [u8; N] {
        &mut self.bytes
    }

    /// A second copy, for the one place that needs it; named so that it is seen in review.
    pub fn duplicate(&self) -> Self {
        let mut copy = Self::zeroed();
        copy.expose_mut().copy_from_slice(self.expose());
        copy
    }
}

impl<const N: usize> std::fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A type of a size class that no other test uses, so that its slots are this test's alone.
    type Big = [u8; 3000];

    #[test]
    fn a_slot_is_wiped_when_freed_and_used_again() {
        let secret: Locked<Big> = Locked::new([0xa5; 3000]);
        let place = secret.place.as_ptr();
        assert_eq!(place.addr() % 4096, 0);
        assert!(secret.iter().all(|b| *b == 0xa5));
        drop(secret);
        // SAFETY: regions stay mapped, and no other thread takes slots of this class.
        #[allow(unsafe_code)]
        let left = unsafe { place.read_volatile() };
        assert!(left.iter().all(|b| *b == 0), "a freed slot keeps its secret");
        let next: Locked<Big> = Locked::new([1; 3000]);
        assert_eq!(next.place.as_ptr(), place, "a freed slot is used again");
    }

    #[test]
    fn slots_are_aligned_and_disjoint() {
        #[repr(align(64))]
        struct Aligned([u8; 70]);
        let all: Vec<_> = (0..2000u32).map(|i| Locked::new(Aligned([i as u8; 70]))).collect();
        let mut places: Vec<_> = all.iter().map(|l| l.place.as_ptr().addr()).collect();
        places.sort_unstable();
        assert!(places.windows(2).all(|w| w[1] - w[0] >= size_of::<Aligned>()));
        assert!(places.iter().all(|at| at % 64 == 0));
        assert!(all.iter().enumerate().all(|(i, l)| l.0 == [i as u8; 70]));
        assert!(lock_status().locked + lock_status().unlocked >= 2000 * 128);
    }

    #[test]
    fn a_locked_value_is_dropped_once() {
        struct Counts(Arc<AtomicUsize>);
        impl Drop for Counts {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let drops = Arc::new(AtomicUsize::new(0));
        let locked = Locked::new(Counts(drops.clone()));
        assert_eq!(drops.load(Ordering::Relaxed), 0);
        drop(locked);
        assert_eq!(drops.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn many_threads_share_the_arena() {
        std::thread::scope(|scope| {
            for t in 0..8u8 {
                scope.spawn(move || {
                    for round in 0..500u32 {
                        let mine: Vec<_> = (0..8).map(|_| Locked::new([t; 100])).collect();
                        assert!(mine.iter().all(|l| **l == [t; 100]), "round {round}");
                    }
                });
            }
        });
    }

    #[test]
    fn secrets_are_copied_only_at_their_size() {
        assert!(Secret::<32>::from_slice(&[1; 31]).is_none());
        assert!(Secret::<32>::from_slice(&[1; 33]).is_none());
        let secret = Secret::<32>::from_slice(&[7; 32]).unwrap();
        assert_eq!(secret.duplicate().expose(), &[7; 32]);
        assert_eq!(Secret::<32>::zeroed().expose(), &[0; 32]);
        assert_ne!(Secret::<32>::random().expose(), Secret::<32>::random().expose());
    }
}
