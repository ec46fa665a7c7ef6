//! How a file's blocks lie, for people who look.

use super::Result;
use super::file::{File, Form};
use super::groups::bit;
use crate::format::layout::{GroupIndex, LEADER_SPAN, groups_in};

/// How the blocks of a file lie, for `inspect`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapReport {
    /// Authenticated length.
    pub plain_len: u64,
    /// Whether the file is one inline record.
    pub inline: bool,
    /// Groups that exist, with their count of sealed blocks.
    pub groups: Vec<(GroupIndex, usize)>,
}

impl File {
    /// How the blocks lie.
    pub fn map(&self) -> Result<MapReport> {
        let form = self.gate.read();
        let mut report =
            MapReport { plain_len: self.len(), inline: matches!(*form, Form::Inline(_)), groups: Vec::new() };
        if report.inline {
            return Ok(report);
        }
        for leader in (0..groups_in(report.plain_len)).step_by(LEADER_SPAN as usize).map(GroupIndex) {
            for group in self.existing(leader)? {
                let guard = self.entries(group)?;
                let sealed = guard.iter().flat_map(|e| e.iter()).filter(|e| !e.is_hole()).count();
                report.groups.push((group, sealed));
            }
        }
        Ok(report)
    }

    /// The groups of a leader's span that exist and lie within the file.
    pub(super) fn existing(&self, leader: GroupIndex) -> Result<Vec<GroupIndex>> {
        let Some(bitmap) = self.bitmap(leader)? else { return Ok(Vec::new()) };
        let end = groups_in(self.len()).min(leader.0 + LEADER_SPAN);
        Ok((leader.0..end).map(GroupIndex).filter(|g| bit(&bitmap, *g)).collect())
    }
}
