//! Memory for secrets: locked (never swapped), left out of core dumps, wiped when freed.

/// `N` secret bytes in locked memory. `Debug` prints `Secret(..)`; not `Clone`; wiped on drop.
pub struct Secret<const N: usize> {
    bytes: Box<[u8; N]>,
}

impl<const N: usize> Secret<N> {
    /// Zero bytes, to be filled in place.
    pub fn zeroed() -> Self {
        todo!()
    }

    /// Random bytes from the operating system.
    pub fn random() -> Self {
        todo!()
    }

    /// Copies from a slice of exactly `N` bytes; the caller wipes his copy.
    pub fn from_slice(_bytes: &[u8]) -> Option<Self> {
        todo!()
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
        todo!()
    }
}

impl<const N: usize> std::fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}
