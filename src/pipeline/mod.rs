//! Many blocks on many threads. Knows no file: callers bring buffers and take them back sealed or opened.
//!
//! A small piece of work never leaves the calling thread: a queue hop costs more than sealing a block. A large
//! one is cut into parts which the caller and the workers take in turn, so that a busy pool costs nothing: the
//! caller then does all parts itself.

mod pool;

use crate::crypto::FileKeys;

pub use crate::crypto::Piece;
pub use pool::Pool;

/// Blocks in one part of a split request: 7 to 40 us of sealing, by kernel; short enough that a request of 1 MiB has
/// eight, and no processor waits long for the last one.
pub const BLOCKS_PER_PART: usize = 32;

/// Seals every piece.
pub fn seal(keys: &FileKeys, pieces: &mut [Piece<'_>]) {
    spans(None, pieces, |span| keys.seal_blocks(span));
}

/// As [`seal`], with the workers of `pool` instead of the process's.
pub fn seal_on(pool: &Pool, keys: &FileKeys, pieces: &mut [Piece<'_>]) {
    spans(Some(pool), pieces, |span| keys.seal_blocks(span));
}

/// Opens every piece in place; those that do not open have `failed` set.
pub fn open(keys: &FileKeys, pieces: &mut [Piece<'_>]) {
    spans(None, pieces, |span| keys.open_blocks(span));
}

/// As [`open`], with the workers of `pool` instead of the process's.
pub fn open_on(pool: &Pool, keys: &FileKeys, pieces: &mut [Piece<'_>]) {
    spans(Some(pool), pieces, |span| keys.open_blocks(span));
}

/// As [`open`], on this thread alone: for a caller that shares the work out in parts of its own.
pub fn open_here(keys: &FileKeys, pieces: &mut [Piece<'_>]) {
    keys.open_blocks(pieces);
}

fn spans(pool: Option<&Pool>, pieces: &mut [Piece<'_>], work: impl Fn(&mut [Piece<'_>]) + Sync) {
    if pieces.len() <= BLOCKS_PER_PART {
        work(pieces);
        return;
    }
    share_on(pool, pieces.chunks_mut(BLOCKS_PER_PART).collect(), |part| work(part));
}

/// Does the work of every part, on this thread and on workers that are free. A single part stays here.
pub fn share<T: Send>(parts: Vec<T>, work: impl Fn(&mut T) + Sync) {
    share_on(None, parts, work);
}

/// As [`share`], with the workers of `pool` instead of the process's.
pub fn share_on<T: Send>(pool: Option<&Pool>, mut parts: Vec<T>, work: impl Fn(&mut T) + Sync) {
    if parts.len() <= 1 {
        parts.iter_mut().for_each(work);
        return;
    }
    // One lock a part, taken once by whoever runs it: the borrow checker's proof that parts do not overlap.
    let parts: Vec<_> = parts.into_iter().map(parking_lot::Mutex::new).collect();
    let run = |i: usize| {
        if let Some(part) = parts.get(i) {
            work(&mut part.lock());
        }
    };
    pool.unwrap_or_else(|| Pool::shared()).run(parts.len(), &run);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{DataKey, Secret, random};
    use crate::format::ids::FileId;
    use crate::format::layout::BlockIndex;
    use crate::format::map::Entry;

    fn keys() -> FileKeys {
        FileKeys::derive(&DataKey(Secret::random()), &FileId([7; 12]))
    }

    fn sealed(keys: &FileKeys, plain: &[u8]) -> (Vec<u8>, Vec<Entry>) {
        let mut disk = plain.to_vec();
        let mut pieces: Vec<_> = (0..)
            .zip(disk.chunks_mut(4096))
            .map(|(i, buf)| Piece::new(BlockIndex(i), Entry { nonce: random::array(), tag: [0; 16] }, buf))
            .collect();
        seal(keys, &mut pieces);
        let entries = pieces.iter().map(|p| p.entry).collect();
        (disk, entries)
    }

    fn opened<'a>(keys: &FileKeys, disk: &'a mut [u8], entries: &[Entry]) -> Vec<Piece<'a>> {
        let mut pieces: Vec<_> = (0..)
            .zip(disk.chunks_mut(4096).zip(entries))
            .map(|(i, (buf, entry))| Piece::new(BlockIndex(i), *entry, buf))
            .collect();
        open(keys, &mut pieces);
        pieces
    }

    /// What many threads sealed, one thread opens block by block, and the other way round.
    #[test]
    fn a_large_request_is_sealed_like_its_blocks() {
        let keys = keys();
        let plain: Vec<u8> = (0..1_000_003u32).map(|i| (i % 251) as u8).collect();
        let (mut disk, entries) = sealed(&keys, &plain);
        assert_ne!(disk, plain);
        for (i, (buf, entry)) in (0..).zip(disk.clone().chunks_mut(4096).zip(&entries)) {
            keys.open_block(BlockIndex(i), entry, buf).expect("opens alone");
        }
        assert!(opened(&keys, &mut disk, &entries).iter().all(|p| !p.failed));
        assert_eq!(disk, plain);
    }

    /// One changed block fails, is zeroed, and takes no other with it.
    #[test]
    fn a_changed_block_fails_alone() {
        let keys = keys();
        let plain = vec![9u8; 300 * 4096];
        let (mut disk, entries) = sealed(&keys, &plain);
        disk[200 * 4096 + 17] ^= 1;
        let failed: Vec<_> =
            opened(&keys, &mut disk, &entries).iter().filter(|p| p.failed).map(|p| p.index.0).collect();
        assert_eq!(failed, [200]);
        assert!(disk[200 * 4096..201 * 4096].iter().all(|&b| b == 0));
        assert!(disk[201 * 4096..].iter().all(|&b| b == 9));
    }
}
