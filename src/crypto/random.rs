//! Randomness from the operating system.

/// Fills a buffer from `getrandom(2)`. The kernel's generator does not fail once seeded; if it does, there is
/// no safe way on, so this aborts the process with a message.
pub fn fill(_buf: &mut [u8]) {
    todo!()
}

/// A random array.
pub fn array<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    fill(&mut out);
    out
}
