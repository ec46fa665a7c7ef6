//! What a sync of a file sees to beside its journal.
//!
//! The kernel sets the time of a change before each `fsync`. Were that time made durable in the lower inode, every `fsync`
//! would cost a flush for the log and another one for the lower filesystem's journal. So the time is set in the lower inode
//! at once, for `stat`, and `fsync` writes it into the log as well, where one flush takes it along with the content.
//!
//! A replay sets the last time that a log has of a file; it must not take a newer one away that is durable in the lower
//! inode. Therefore:
//! - While a log has a time of a file, the file counts as pending: whoever opens its inode gets this `File`, and each
//!   later `fsync` writes the time of its moment behind the older one.
//! - Before a log goes, the lower files that it has times of are synced with their attributes; then a record in the next
//!   log says that those times count no more, since the old log stays readable until its space is used again.
//! - An `fsync` of one of these files, or of one that was opened later, waits until that record is durable.
//! - Times that were set and not synced may be older after a power cut, as anything else. After the end of a daemon alone
//!   the lower inodes have them all, and a replay sets none.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::Result;
use super::file::File;
use crate::format::journal::Draft;

/// What of a lower file may not be durable.
pub(super) struct Unsynced {
    /// Something was written to its place.
    places: AtomicBool,
    /// The time of the last change is newer than the journal's.
    modified: AtomicBool,
    /// Some attribute that no log has.
    attributes: AtomicBool,
    one: Mutex<()>,
    noting: Mutex<()>,
}

impl Default for Unsynced {
    fn default() -> Self {
        // What happened to the inode before this opening is not known.
        let attributes = AtomicBool::new(true);
        let (places, modified) = Default::default();
        Self { places, modified, attributes, one: Mutex::default(), noting: Mutex::default() }
    }
}

impl File {
    /// Makes everything written durable; unless `data_only`, also what else changed in the lower inode.
    pub fn sync(&self, data_only: bool) -> Result<()> {
        if !self.is_linked() {
            return Ok(self.lower().sync(data_only)?);
        }
        self.end_of_freshness()?;
        if !data_only {
            self.note_modified()?;
        }
        self.sync_lower(data_only)?;
        Ok(self.journal()?.sync(self.ticket())?)
    }

    /// Something was written to the lower file, which has another time of change now.
    pub(super) fn mark_unsynced(&self) {
        self.mark_places();
        self.mark_modified();
    }

    /// Something was written to the lower file, and the time set back.
    pub(super) fn mark_places(&self) {
        self.unsynced().places.store(true, Ordering::Release);
    }

    /// The lower inode has another time of change now.
    pub fn mark_modified(&self) {
        self.unsynced().modified.store(true, Ordering::Release);
    }

    /// Something else of the lower inode is different now.
    pub fn mark_attributes(&self) {
        self.unsynced().attributes.store(true, Ordering::Release);
    }

    /// Writes the time of the last change into the journal, if it is a new one and that is less work than a sync.
    fn note_modified(&self) -> Result<()> {
        let marks = self.unsynced();
        // Others that sync must not go on before the record has its place.
        let _noting = marks.noting.lock();
        if !marks.modified.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let noted =
            if self.is_pending() { self.with_room_beside_leases(|| self.append_modified()) } else { Ok(()) };
        if self.times_in() == 0 {
            // Whether it was too much or did not work: the lower inode is synced.
            self.mark_attributes();
            return Ok(());
        }
        noted.inspect_err(|_| self.mark_modified())
    }

    fn append_modified(&self) -> Result<()> {
        let modified = {
            let _still = self.hold_times();
            self.lower().modified()?
        };
        modified.map_or(Ok(()), |modified| self.record(Draft::times(self.id(), modified), 0).map(drop))
    }

    fn sync_lower(&self, data_only: bool) -> Result<()> {
        let marks = self.unsynced();
        let _one = marks.one.lock();
        let places = marks.places.swap(false, Ordering::AcqRel);
        let attributes = !data_only && marks.attributes.swap(false, Ordering::AcqRel);
        if !places && !attributes {
            return Ok(());
        }
        Ok(self.lower().sync(!attributes).inspect_err(|_| {
            marks.places.fetch_or(places, Ordering::AcqRel);
            marks.attributes.fetch_or(attributes, Ordering::AcqRel);
        })?)
    }

    /// Makes what was written to its place durable.
    pub(super) fn sync_places(&self) -> Result<()> {
        self.sync_lower(true)
    }

    /// As `sync_places`; with the times, if the journal has some.
    pub(super) fn sync_filled(&self) -> Result<()> {
        if self.times_in() != 0 {
            self.mark_attributes();
        }
        self.sync_lower(self.times_in() == 0)
    }
}
