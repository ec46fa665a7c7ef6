//! This program's kernels as contenders.

use super::batch::{Batch, Block};
use super::contenders::{Contender, Maker};
use crate::bench::error::BenchError;
use crate::crypto::kernel::{BlockKernel, Kernel, KernelError, Kind, available};
use crate::crypto::{Locked, Piece};
use crate::format::layout::BlockIndex;
use crate::format::map::Entry;

/// Makers of the wanted kernel, or of all that this processor can run.
pub(super) fn makers(wanted: Option<&str>) -> Result<Vec<Maker>, BenchError> {
    let refused = |e: KernelError| BenchError::NoKernel(e.to_string());
    let kinds = match wanted {
        None => available(),
        Some(name) => vec![name.parse::<Kind>().map_err(refused)?],
    };
    if let Some(lacking) = kinds.iter().find(|kind| !kind.is_available()) {
        return Err(refused(KernelError::Unavailable(*lacking)));
    }
    Ok(kinds.into_iter().map(maker).collect())
}

fn maker(kind: Kind) -> Maker {
    Box::new(move |key| {
        let kernel = Kernel::new(kind, key).map_err(|e| BenchError::NoKernel(e.to_string()))?;
        // As a file's keys stand in the daemon.
        Ok(Box::new(Ours(Locked::new(kernel))))
    })
}

struct Ours(Locked<Kernel>);

impl Contender for Ours {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn is_ours(&self) -> bool {
        true
    }

    fn seal(&self, block: &mut Block<'_>) {
        *block.tag = self.0.seal(block.nonce, block.ad, block.buf);
    }

    fn open(&self, block: &mut Block<'_>) -> bool {
        self.0.open(block.nonce, block.ad, block.buf, block.tag)
    }

    fn seal_span(&self, batch: &mut Batch) {
        let Batch { block, nonces, tags, data, .. } = batch;
        let mut pieces = pieces(*block, nonces, tags, data);
        self.0.seal_blocks(&mut pieces);
        let sealed: Vec<_> = pieces.iter().map(|p| p.entry.tag).collect();
        tags.copy_from_slice(&sealed);
    }

    fn open_span(&self, batch: &mut Batch) -> bool {
        let Batch { block, nonces, tags, data, .. } = batch;
        let mut pieces = pieces(*block, nonces, tags, data);
        self.0.open_blocks(&mut pieces);
        pieces.iter().all(|p| !p.failed)
    }
}

fn pieces<'a>(block: usize, nonces: &[[u8; 12]], tags: &[[u8; 16]], data: &'a mut [u8]) -> Vec<Piece<'a>> {
    let parts = data.chunks_mut(block).zip(nonces).zip(tags);
    let entry = |nonce: &[u8; 12], tag: &[u8; 16]| Entry { nonce: *nonce, tag: *tag };
    (0..)
        .map(BlockIndex)
        .zip(parts)
        .map(|(at, ((buf, nonce), tag))| Piece::new(at, entry(nonce, tag), buf))
        .collect()
}
