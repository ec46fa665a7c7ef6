//! The pages behind secrets: regions of 64 KiB, cut into slots of one size class each.
//!
//! A region is mapped, locked, kept out of core dumps, cleared in forked children, and never unmapped: its slots
//! are used again. Bookkeeping stands outside the regions, so that they hold nothing but secrets. Free slots are
//! zero. Beyond [`MAX_REGIONS`] slots come one by one from the heap, unlocked, and go back to the free list too.

use std::alloc::{Layout, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Bytes of a region: 64 of the 1 KiB slots that hold one file's expanded keys.
const REGION: usize = 64 << 10;
/// The most regions: 256 MiB, a quarter of a million open files. The key cache is bounded far below.
const MAX_REGIONS: usize = 4096;
/// Slots of 32 bytes to 4 KiB.
const CLASSES: usize = 8;
const SMALLEST: usize = 32;

static FREE: [Mutex<Vec<Slot>>; CLASSES] = [const { Mutex::new(Vec::new()) }; CLASSES];
static REGIONS: AtomicUsize = AtomicUsize::new(0);
static LOCKED: AtomicUsize = AtomicUsize::new(0);
static UNLOCKED: AtomicUsize = AtomicUsize::new(0);

/// A free slot. Its bytes are zero.
struct Slot(NonNull<u8>);

// SAFETY: a free slot is memory that only the holder of the `Slot` may touch; no thread owns it specially.
#[allow(unsafe_code)]
unsafe impl Send for Slot {}

/// How much memory for secrets is locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LockStatus {
    /// Bytes that cannot be swapped out.
    pub locked: usize,
    /// Bytes that `mlock` refused (`RLIMIT_MEMLOCK`), or that are beyond the arena's bound.
    pub unlocked: usize,
}

/// How much memory for secrets is locked by now.
pub fn lock_status() -> LockStatus {
    LockStatus { locked: LOCKED.load(Ordering::Relaxed), unlocked: UNLOCKED.load(Ordering::Relaxed) }
}

/// Size and alignment of a slot: a power of two from 32 to 4096.
#[derive(Clone, Copy)]
pub(super) struct Class(usize);

impl Class {
    /// The class whose slots hold a `T`. Types that are too large do not compile.
    pub(super) const fn of<T>() -> Self {
        const {
            let bytes = if size_of::<T>() > align_of::<T>() { size_of::<T>() } else { align_of::<T>() };
            let size = if bytes < SMALLEST { SMALLEST } else { bytes.next_power_of_two() };
            assert!(size <= SMALLEST << (CLASSES - 1), "secrets of more than 4 KiB have no slot");
            Self((size / SMALLEST).trailing_zeros() as usize)
        }
    }

    const fn size(self) -> usize {
        SMALLEST << self.0
    }

    fn free_list(self) -> &'static Mutex<Vec<Slot>> {
        &FREE[self.0]
    }
}

/// Takes a slot of zeros, aligned to its size, and tells the epoch it belongs to.
pub(super) fn take(class: Class) -> (NonNull<u8>, u32) {
    let epoch = enter_epoch();
    let free = class.free_list().lock().pop();
    (free.map_or_else(|| first_of_more(class), |slot| slot.0), epoch)
}

/// Adds a region's slots to the free list, all but the first, which it gives.
fn first_of_more(class: Class) -> NonNull<u8> {
    // Mapped without the lock: two threads may each add a region, which is no harm.
    let Some(region) = map_region() else { return heap_slot(class) };
    let mut free = class.free_list().lock();
    free.reserve(REGION / class.size());
    for offset in (class.size()..REGION).step_by(class.size()) {
        // SAFETY: `offset` lies inside the region.
        #[allow(unsafe_code)]
        free.push(Slot(unsafe { region.add(offset) }));
    }
    region
}

/// Gives a slot back. One of an earlier epoch is forgotten: its region is not locked in this process.
///
/// # Safety
/// `at` came from [`take`] with this class and epoch, is not used again by the caller, and its bytes are zero.
#[allow(unsafe_code)]
pub(super) unsafe fn give_back(class: Class, at: NonNull<u8>, epoch: u32) {
    if is_alive(epoch) {
        class.free_list().lock().push(Slot(at));
    }
}

/// A slot outside the arena. It joins the free list when it is given back, so the heap never grows twice for it.
fn heap_slot(class: Class) -> NonNull<u8> {
    let layout = Layout::from_size_align(class.size(), class.size()).expect("powers of two up to 4096");
    // SAFETY: the layout's size is not zero.
    #[allow(unsafe_code)]
    let at = unsafe { std::alloc::alloc_zeroed(layout) };
    UNLOCKED.fetch_add(class.size(), Ordering::Relaxed);
    NonNull::new(at).unwrap_or_else(|| handle_alloc_error(layout))
}

/// Maps a region, or `None` at the bound or where memory is short.
fn map_region() -> Option<NonNull<u8>> {
    if REGIONS.fetch_add(1, Ordering::Relaxed) >= MAX_REGIONS {
        REGIONS.fetch_sub(1, Ordering::Relaxed);
        return None;
    }
    let region = map(REGION)?;
    // SAFETY: the mapping of `REGION` bytes was just made and stays.
    #[allow(unsafe_code)]
    let locked = unsafe { rustix::mm::mlock(region.as_ptr().cast(), REGION) };
    let counter = if locked.is_ok() { &LOCKED } else { &UNLOCKED };
    counter.fetch_add(REGION, Ordering::Relaxed);
    advise(region, REGION, Advice::LinuxDontDump);
    if EPOCH.get().copied().flatten().is_some() {
        advise(region, REGION, Advice::LinuxWipeOnFork);
    }
    Some(region)
}

fn map(len: usize) -> Option<NonNull<u8>> {
    // SAFETY: a new private mapping at an address of the kernel's choice touches no memory in use.
    #[allow(unsafe_code)]
    let at = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
    };
    NonNull::new(at.ok()?.cast())
}

/// Gives the kernel advice, and tells whether it took it.
fn advise(at: NonNull<u8>, len: usize, advice: Advice) -> bool {
    debug_assert!(matches!(advice, Advice::LinuxDontDump | Advice::LinuxWipeOnFork));
    // SAFETY: a mapping of `len` bytes that this module made; neither advice changes its bytes in this process.
    #[allow(unsafe_code)]
    unsafe {
        rustix::mm::madvise(at.as_ptr().cast(), len, advice).is_ok()
    }
}

/// A page of its own that holds the number of the process's *epoch*: 1 where the arena was first used, zero in
/// a forked child, since `fork` wipes the page, and another number once the child takes secrets of its own.
/// `None` where the kernel does not wipe; then regions are not wiped either, and the epoch is always 0.
static EPOCH: OnceLock<Option<&'static AtomicU32>> = OnceLock::new();
/// How many epochs began in this process and in those it was forked from.
static EPOCHS: Mutex<u32> = Mutex::new(0);

/// The epoch that secrets made now belong to.
fn enter_epoch() -> u32 {
    let Some(epoch) = EPOCH.get_or_init(epoch_page) else { return 0 };
    let now = epoch.load(Ordering::Relaxed);
    if now != 0 {
        return now;
    }
    let mut epochs = EPOCHS.lock();
    if epoch.load(Ordering::Relaxed) == 0 {
        // Locks on memory are not inherited: a child starts with an arena of its own.
        FREE.iter().for_each(|free| free.lock().clear());
        [&REGIONS, &LOCKED, &UNLOCKED].into_iter().for_each(|n| n.store(0, Ordering::Relaxed));
        *epochs += 1;
        epoch.store(*epochs, Ordering::Relaxed);
    }
    epoch.load(Ordering::Relaxed)
}

fn epoch_page() -> Option<&'static AtomicU32> {
    let page = map(4096)?;
    // SAFETY: the page is never unmapped, zero is a valid `AtomicU32`, and it is only reached through this
    // reference.
    #[allow(unsafe_code)]
    advise(page, 4096, Advice::LinuxWipeOnFork).then(|| unsafe { page.cast().as_ref() })
}

/// Whether a secret of `epoch` is still there: `false` in a child forked since, where its bytes are zeros.
#[inline]
pub(super) fn is_alive(epoch: u32) -> bool {
    EPOCH.get().copied().flatten().is_none_or(|now| now.load(Ordering::Relaxed) == epoch)
}

/// Ends a forked child that uses a secret of its parent. Going on would encrypt under a key of zeros.
#[inline]
pub(super) fn assert_alive(epoch: u32) {
    if !is_alive(epoch) {
        dead_child();
    }
}

#[cold]
fn dead_child() -> ! {
    log::error!("a forked child used a key, which its parent keeps to itself: stopping");
    std::process::abort();
}
