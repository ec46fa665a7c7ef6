//! What a file may read as after a crash.

use std::sync::Arc;

/// Crashes leave each of these whole, old or new.
pub(crate) const BLOCK: usize = 4096;

/// The contents that a file has had since its last acknowledged state: the first is that state, the last is what the
/// operation under way makes of it.
#[derive(Clone, Debug)]
pub(crate) struct Versions(Vec<Arc<Vec<u8>>>);

impl Versions {
    /// Exactly this.
    pub(crate) fn of(content: Vec<u8>) -> Self {
        Self(vec![Arc::new(content)])
    }

    /// What the file has when everything that was begun is done.
    pub(crate) fn newest(&self) -> &[u8] {
        self.0.last().expect("never empty")
    }

    /// An operation begins that will make this of the file.
    pub(crate) fn begin(&mut self, content: Vec<u8>) {
        self.0.push(Arc::new(content));
    }

    /// All that was begun is acknowledged.
    pub(crate) fn acknowledged(&mut self) {
        self.0.drain(..self.0.len() - 1);
    }

    /// Operations that were begun and are not acknowledged.
    pub(crate) fn open(&self) -> usize {
        self.0.len() - 1
    }

    /// Whether the file may have this content; `mine` picks the blocks that are looked at, `grain` is how many bytes
    /// stay together.
    pub(crate) fn check(
        &self,
        found: &[u8],
        grain: usize,
        mine: impl Fn(usize) -> bool,
    ) -> Result<(), String> {
        if !self.length_fits(found.len()) {
            let known: Vec<_> = self.0.iter().map(|v| v.len()).collect();
            return Err(format!("has {} bytes, may have {known:?}", found.len()));
        }
        for (i, piece) in found.chunks(grain).enumerate() {
            let at = i * grain;
            if mine(at / BLOCK) && !self.piece_fits(at, piece) {
                return Err(format!("{} (of {} bytes)", self.what_is_there(at, piece), found.len()));
            }
        }
        Ok(())
    }

    /// A growing operation may have come part of its way; a cut is done or not.
    fn length_fits(&self, len: usize) -> bool {
        let grown = |pair: &[Arc<Vec<u8>>]| (pair[0].len()..=pair[1].len()).contains(&len);
        self.0.iter().any(|v| v.len() == len) || self.0.windows(2).any(grown)
    }

    fn piece_fits(&self, at: usize, piece: &[u8]) -> bool {
        let end = at + piece.len();
        self.0.iter().enumerate().any(|(i, version)| {
            // What a file did not have yet is zeros when it has grown; what it has no more is not to be seen.
            let grew = self.0[i..].iter().any(|later| later.len() >= end);
            let known = version.get(at.min(version.len())..end.min(version.len())).unwrap_or_default();
            grew && piece[..known.len()] == *known && piece[known.len()..].iter().all(|b| *b == 0)
        })
    }

    fn what_is_there(&self, at: usize, piece: &[u8]) -> String {
        let differing = |version: &Arc<Vec<u8>>| {
            let byte = |i: usize| version.get(at + i).copied().unwrap_or(0);
            let wrong: Vec<_> = (0..piece.len()).filter(|i| piece[*i] != byte(*i)).collect();
            (wrong.first().copied(), wrong.last().copied(), wrong.len())
        };
        let against: Vec<_> = self.0.iter().map(differing).collect();
        let zeros = if piece.iter().all(|b| *b == 0) { ", all zero" } else { "" };
        format!(
            "block {} is in no known version{zeros}: differs (first, last, bytes) {against:?}",
            at / BLOCK
        )
    }
}

/// The harness itself: what must be found is found.
#[test]
fn versions_tell_old_new_and_wrong() {
    let all = |_| true;
    let mut versions = Versions::of(vec![1; 2 * BLOCK]);
    assert!(versions.check(&[1; 2 * BLOCK], BLOCK, all).is_ok());
    assert!(versions.check(&[1; BLOCK], BLOCK, all).is_err(), "a lost length");
    versions.begin([vec![2; 2 * BLOCK], vec![3; 100]].concat());
    let mixed = [vec![1; BLOCK], vec![2; BLOCK]].concat();
    assert!(versions.check(&mixed, BLOCK, all).is_ok());
    let torn = [vec![1; BLOCK], vec![1; 512], vec![2; BLOCK - 512]].concat();
    assert!(versions.check(&torn, BLOCK, all).is_err(), "a torn block");
    assert!(versions.check(&torn, 512, all).is_ok());
    assert!(versions.check(&[mixed, vec![0; 50]].concat(), BLOCK, all).is_ok(), "grown in part");
    versions.acknowledged();
    assert!(versions.check(&[1; 2 * BLOCK], BLOCK, all).is_err(), "an acknowledged write is lost");
    versions.begin(vec![2; BLOCK]);
    assert!(versions.check(&vec![2; BLOCK + 1], BLOCK, all).is_err(), "a cut that is half done");
    let hollow = [vec![2; BLOCK], vec![0; BLOCK + 100]].concat();
    assert!(versions.check(&hollow, BLOCK, all).is_err(), "the content is cut, the length is not");
}
