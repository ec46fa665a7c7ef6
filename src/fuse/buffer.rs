//! A reusable buffer for each event loop: its body begins on a page, so that content can be opened straight into it
//! and sealed straight out of it; what goes before the body (headers) ends where the body begins.

/// Alignment of the body.
const ALIGN: usize = 4096;

/// Memory that is touched only as far as it is used.
pub(super) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    lead: usize,
    len: usize,
}

impl Buffer {
    /// `lead` bytes before the page, `len` from it on.
    pub(super) fn new(lead: usize, len: usize) -> Self {
        // Zeroed memory of this size is mapped, not written.
        let memory = vec![0; lead + len + ALIGN];
        let start = memory.get(lead..).map_or(0, |body| body.as_ptr().align_offset(ALIGN)).min(ALIGN);
        Self { memory, start, lead, len }
    }

    /// Lead and body.
    pub(super) fn whole(&mut self) -> &mut [u8] {
        self.memory.get_mut(self.start..self.start + self.lead + self.len).unwrap_or_default()
    }

    /// The lead and the body apart.
    pub(super) fn parts(&mut self) -> (&mut [u8], &mut [u8]) {
        let lead = self.lead;
        self.whole().split_at_mut(lead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every body is as long as asked for and begins on a page, with the lead right before it.
    #[test]
    fn bodies_begin_on_a_page() {
        for (lead, len) in [(16, 1), (80, 4096), (0, 1 << 20), (4096, 0), (80, 17)] {
            let mut buffer = Buffer::new(lead, len);
            assert_eq!(buffer.whole().len(), lead + len);
            let (before, body) = buffer.parts();
            assert_eq!((before.len(), body.len()), (lead, len));
            assert_eq!(body.as_ptr().align_offset(4096), 0);
        }
    }
}
