//! Randomness from the operating system.

/// Fills a buffer from `getrandom(2)`. The kernel's generator does not fail once seeded; if it does, there is
/// no safe way on, so this aborts the process with a message.
pub fn fill(buf: &mut [u8]) {
    if let Err(error) = getrandom::fill(buf) {
        log::error!("no randomness from the operating system ({error}): stopping");
        std::process::abort();
    }
}

/// A random array.
pub fn array<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    fill(&mut out);
    out
}
