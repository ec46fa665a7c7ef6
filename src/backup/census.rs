//! Packs and the indexes that name them, compared. Of what is not there nothing is believed: a run stores again what it held.

use std::collections::HashMap;

use rustic_core::repofile::IndexFile;
use rustic_core::{
    Credentials, FileType, Id, IndexedFullStatus, IndexedIdsStatus, OpenStatus, ReadBackend,
    RepairIndexOptions, Repository, RepositoryOptions, RusticResult,
};

use super::backend::Shown;
use super::error::{BackupError, Result};
use super::repo::Repo;

/// The packs of a repository.
#[derive(Debug, Default)]
pub(super) struct Census {
    /// Those that are there as an index names them, with their lengths.
    pub(super) there: Vec<(Id, u32)>,
    /// Those that no index names.
    pub(super) unknown: Vec<(Id, u32)>,
    /// How many an index names that are not there.
    pub(super) lost: usize,
}

impl Repo {
    /// Compares the packs that indexes name with those that are there.
    pub(super) fn census(&self) -> Result<Census> {
        // In this order: a pack is there before an index names it.
        let mut named = HashMap::new();
        for file in self.repo.stream_files::<IndexFile>().map_err(self.failed())? {
            let (_, file) = file.map_err(self.failed())?;
            let packs = file.packs.iter().chain(&file.packs_to_delete);
            named.extend(packs.map(|pack| (*pack.id, pack.pack_size())));
        }
        let mut census = Census::default();
        for (id, len) in self.backend.list_with_size(FileType::Pack).map_err(self.failed())? {
            match named.get(&id) {
                Some(known) if *known == len => {
                    named.remove(&id);
                    census.there.push((id, len));
                }
                // Cut off, in a place that was not synced: what it held is not there.
                Some(_) => {}
                None => census.unknown.push((id, len)),
            }
        }
        census.lost = named.len();
        if census.lost > 0 {
            log::warn!(
                "{}: its index names {} packs that are not there, or not whole; what they held is taken for lost",
                self.location(),
                census.lost
            );
        }
        Ok(census)
    }

    /// Puts packs that no index names into one. Removes nothing, needs no right to.
    pub(super) fn index_packs(&self, packs: Vec<(Id, u32)>) -> Result<()> {
        if packs.is_empty() {
            return Ok(());
        }
        // Without the cache, which would forget the indexes that are not shown.
        let options = RepositoryOptions::default().no_cache(true);
        let repo = Repository::new(&options, &self.closed.backends).map_err(self.failed())?;
        let repo = repo.open(&Credentials::Masterkey(self.repo.key())).map_err(self.failed())?;
        let index = || repo.repair_index(&RepairIndexOptions::default(), false);
        self.backend.showing(Shown { packs, indexes: false }, index).map_err(self.failed())
    }

    /// For writing, with an index of what is there: of packs that `census` lacks nothing is believed.
    pub(super) fn indexed_ids(&self, census: Option<Census>) -> Result<Repository<IndexedIdsStatus>> {
        self.indexed(census, Repository::to_indexed_ids, Repository::to_indexed_ids_checked)
    }

    /// For reading.
    pub(super) fn indexed_whole(&self) -> Result<Repository<IndexedFullStatus>> {
        let census = self.census()?;
        self.indexed(Some(census), Repository::to_indexed, Repository::to_indexed_checked)
    }

    /// Takes packs that are not there out of the index. `alone`: nothing else uses the repository; the library takes what a
    /// run stores meanwhile for such packs, too.
    pub(super) fn mend_index(&self, alone: bool) -> Result<()> {
        match self.census()?.lost {
            0 => Ok(()),
            _ if alone => {
                self.repo.repair_index(&RepairIndexOptions::default(), false).map_err(self.failed())
            }
            lost => Err(BackupError::Repository {
                location: self.location().to_owned(),
                why: format!(
                    "the index names {lost} packs that are not there: `prune --at-once` mends it when no run goes on"
                ),
            }),
        }
    }

    fn indexed<S>(
        &self,
        census: Option<Census>,
        plain: impl FnOnce(Repository<OpenStatus>) -> RusticResult<S>,
        checked: impl FnOnce(Repository<OpenStatus>) -> RusticResult<S>,
    ) -> Result<S> {
        let repo = self.again()?;
        let made = match census.filter(|census| census.lost > 0) {
            None => plain(repo),
            // Packs without an index are not shown: nobody else would find what they hold.
            Some(Census { there: packs, .. }) => {
                self.backend.showing(Shown { packs, indexes: true }, || checked(repo))
            }
        };
        made.map_err(self.failed())
    }
}
