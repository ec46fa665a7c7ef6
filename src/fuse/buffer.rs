//! A reusable page-aligned buffer for each event loop, so that a read allocates nothing and touches warm memory.

use std::cell::RefCell;

/// Alignment of the buffer: lets `fs` read whole blocks straight into it.
const ALIGN: usize = 4096;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `len` aligned bytes of unspecified content. Bounded: the kernel asks for at most `max_pages`.
pub(super) fn with<T>(len: usize, f: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with(|cell| {
        let mut buffer = cell.borrow_mut();
        if buffer.len() < len + ALIGN {
            buffer.resize(len + ALIGN, 0);
        }
        let skip = buffer.as_ptr().align_offset(ALIGN).min(ALIGN);
        let bytes =
            buffer.get_mut(skip..skip + len).expect("the buffer is one alignment longer than asked for");
        f(bytes)
    })
}

#[cfg(test)]
mod tests {
    /// Every length is served, aligned to a page, also after a longer one.
    #[test]
    fn buffers_are_aligned_and_as_long_as_asked_for() {
        for len in [1_usize, 4096, 1 << 20, 0, 17] {
            super::with(len, |b| {
                assert_eq!(b.len(), len);
                assert_eq!(b.as_ptr().align_offset(4096), 0);
            });
        }
    }
}
