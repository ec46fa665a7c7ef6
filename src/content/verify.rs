//! Opening everything a file has, and naming every place that does not open.

use super::file::{File, Form};
use super::{ContentError, Fault, Result};
use crate::format::layout::{
    BLOCK, BlockIndex, GROUP_BLOCKS, GROUP_PLAIN, GroupIndex, LEADER_SPAN, disk_len, groups_in,
};
use crate::pipeline::{self, Piece};

impl File {
    /// Opens every page and block; calls `fault` for each place that does not hold what was written, `progress`
    /// with the bytes done so far now and then; `progress` returning false stops. Gives the bytes read. An error is
    /// only what the lower filesystem says.
    pub fn verify(&self, fault: &mut dyn FnMut(Fault), progress: &mut dyn FnMut(u64) -> bool) -> Result<u64> {
        let form = self.gate.read();
        let len = self.len();
        let (found, expected) = (self.lower().len()?, disk_len(len));
        if found > expected {
            fault(Fault::Overlong { found, expected });
        }
        // `open` and every change opened the record of an inline file.
        if matches!(*form, Form::Inline(_)) {
            return Ok(len);
        }
        let mut done = 0;
        for leader in (0..groups_in(len)).step_by(LEADER_SPAN as usize).map(GroupIndex) {
            let Some(groups) = noted(self.existing(leader), fault)? else { continue };
            for group in groups {
                done += noted(self.verify_group(group, fault), fault)?.unwrap_or(0);
                if !progress(done) {
                    return Ok(done);
                }
            }
        }
        Ok(done)
    }

    fn verify_group(&self, group: GroupIndex, fault: &mut dyn FnMut(Fault)) -> Result<u64> {
        let guard = self.entries(group)?;
        let entries = guard.as_ref().expect("`entries` loads the slot before it gives the guard");
        let len = self.len();
        let mut buf = vec![0; GROUP_PLAIN as usize];
        let read = self.lower().read_at(&mut buf, group.first_block().disk_start())?;
        let mut pieces = Vec::with_capacity(GROUP_BLOCKS);
        for (slot, chunk) in buf.chunks_exact_mut(BLOCK).enumerate() {
            let block = BlockIndex(group.first_block().0 + slot as u64);
            let want = block.len_in(len);
            if entries[slot].is_hole() || want == 0 {
                continue;
            }
            if slot * BLOCK + want > read {
                fault(Fault::Block(block));
                continue;
            }
            pieces.push(Piece::new(block, entries[slot], &mut chunk[..want]));
        }
        pipeline::open(self.keys(), &mut pieces);
        pieces.iter().filter(|p| p.failed).for_each(|p| fault(Fault::Block(p.index)));
        Ok(pieces.iter().map(|p| p.buf.len() as u64).sum())
    }
}

/// Hands a fault on and goes on; other errors end the check.
fn noted<T>(outcome: Result<T>, fault: &mut dyn FnMut(Fault)) -> Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(ContentError::Damaged(what)) => {
            fault(what);
            Ok(None)
        }
        Err(other) => Err(other),
    }
}
