//! What a file may hold after a power cut: the versions that its blocks had since the last sync.

const BLOCK: usize = 4096;

/// Every content since the last sync, the synced one first.
pub(crate) struct Model {
    versions: Vec<Vec<u8>>,
}

impl Default for Model {
    /// An empty file, synced.
    fn default() -> Self {
        Self { versions: vec![Vec::new()] }
    }
}

impl Model {
    /// The content now.
    pub(crate) fn newest(&self) -> &[u8] {
        self.versions.last().expect("there is always one")
    }

    /// The file was found like this after a kill: it may be lost again.
    pub(crate) fn found(&mut self, content: Vec<u8>) {
        self.versions.push(content);
    }

    /// Notes a change that was made.
    pub(crate) fn changed(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut next = self.newest().to_vec();
        change(&mut next);
        self.versions.push(next);
    }

    /// Everything is durable.
    pub(crate) fn synced(&mut self) {
        self.versions.drain(..self.versions.len().saturating_sub(1));
    }

    /// Whether nothing was changed since the last sync.
    pub(crate) fn is_synced(&self) -> bool {
        self.versions.len() < 2
    }

    /// The file holds this, durably.
    pub(crate) fn restart(&mut self, content: Vec<u8>) {
        self.versions = vec![content];
    }

    /// Refuses a content that no power cut may leave.
    pub(crate) fn check(&self, found: &[u8]) {
        self.check_last(found, self.versions.len());
    }

    /// Refuses a content that is not made of the last `count` versions.
    pub(crate) fn check_last(&self, found: &[u8], count: usize) {
        let versions = &self.versions[self.versions.len().saturating_sub(count)..];
        let lengths: Vec<usize> = versions.iter().map(Vec::len).collect();
        // A long change is made in steps, which may raise the length one after the other.
        let between = |pair: &[usize]| (pair[0].min(pair[1])..=pair[0].max(pair[1])).contains(&found.len());
        let known = lengths.contains(&found.len()) || lengths.windows(2).any(between);
        assert!(known, "length {} is none of {lengths:?}", found.len());
        for (at, block) in found.chunks(BLOCK).enumerate() {
            let fits = |version: &Vec<u8>| {
                let from = version.len().min(at * BLOCK);
                let part = &version[from..version.len().min(at * BLOCK + block.len())];
                block[..part.len()] == *part && block[part.len()..].iter().all(|b| *b == 0)
            };
            assert!(
                versions.iter().any(fits),
                "block {at} of {} bytes is none of {} versions: {:02x?}",
                found.len(),
                versions.len(),
                &block[..block.len().min(16)]
            );
        }
    }
}
