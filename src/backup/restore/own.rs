//! The vault's own files on the way back: the volume config, the key-encryption keys, the journal.
//!
//! A target that is a vault has its own, and they may be newer than what comes back: without them the files made since
//! then never open again. So nothing of another vault comes over a vault; what opens all that the snapshot's files
//! need, and more, stays as it is; whatever else is replaced is put aside first, durably.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::super::error::{BackupError, Result};
use super::super::repo::{Item, Reader, Snapshot};
use crate::format::config::{CONFIG_FILE, ConfigError, MAX_CONFIG, VolumeConfig};
use crate::format::header::{FileHeader, HEADER_XATTR, Wrapped};
use crate::format::journal::JOURNAL_DIR;
use crate::format::keks::{KEKS_FILE, KekFile, MAX_KEKS_FILE};
use crate::format::names::{LOST_FOUND, VAULT_DIR};
use crate::vault::entry;

/// URI of the row of the volume config that stands for the key-encryption keys.
const ENVELOPE: &str = "envelope:";
/// Names tried for a file that is put aside.
const TRIES: u32 = 100;

/// The texts of a vault's own files, as far as they are there.
#[derive(Clone, Debug, Default)]
pub(in crate::backup) struct Own {
    config: Option<Vec<u8>>,
    keks: Option<Vec<u8>>,
}

/// Which of the target's own files stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::backup) struct Kept {
    config: bool,
    keks: bool,
}

/// Lower path of one of the vault's own files.
pub(super) fn own_path(name: &str) -> PathBuf {
    Path::new(VAULT_DIR).join(name)
}

/// At most `most` bytes of a file; `None`: there is none.
fn read(path: &Path, most: usize) -> Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        other => std::fs::File::from(other.map_err(BackupError::errno(path))?),
    };
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(BackupError::io(path))?;
    Ok(Some(bytes))
}

/// The id of the vault at `dir`, from its own files; `None`: there is no vault, or one that no longer says which.
pub fn vault_at(dir: &Path) -> Result<Option<String>> {
    Own::of_vault(dir)?.vault_id(dir)
}

/// Whether a vault's journal holds what was not brought to its place.
pub(super) fn has_logs(vault: &Path) -> bool {
    let logs = std::fs::read_dir(vault.join(own_path(JOURNAL_DIR)));
    logs.into_iter().flatten().flatten().any(|entry| {
        is_log(Path::new(&entry.file_name())) && entry.metadata().is_ok_and(|m| !m.is_file() || m.len() > 0)
    })
}

/// Whether a name is that of a journal's log.
pub(super) fn is_log(name: &Path) -> bool {
    name.extension().is_some_and(|end| end == "log")
}

impl Own {
    pub(in crate::backup) fn new(config: Option<Vec<u8>>, keks: Option<Vec<u8>>) -> Self {
        Self { config, keks }
    }

    /// What the vault at `dir` has.
    pub(in crate::backup) fn of_vault(dir: &Path) -> Result<Self> {
        Ok(Self {
            config: read(&dir.join(own_path(CONFIG_FILE)), MAX_CONFIG)?,
            keks: read(&dir.join(own_path(KEKS_FILE)), MAX_KEKS_FILE)?,
        })
    }

    /// What a snapshot has. What is damaged in the repository goes to `damaged`, with the reason.
    pub(super) fn of_snapshot(
        reader: &Reader,
        snapshot: &Snapshot,
        damaged: &mut Vec<(PathBuf, String)>,
    ) -> Result<Self> {
        let mut text = |name: &str, most: usize| {
            let item = match reader.item(snapshot, &own_path(name)) {
                Err(BackupError::NoPath(..)) => return Ok(None),
                other => other?,
            };
            let mut bytes = Vec::new();
            for chunk in 0..item.content.chunks() {
                let part = match reader.chunk(&item.content, chunk) {
                    // A bit may have been flipped on the way.
                    Err(e) if !e.is_outage() => reader.chunk(&item.content, chunk),
                    other => other,
                };
                match part {
                    Ok(part) if bytes.len() <= most => bytes.extend_from_slice(&part),
                    Ok(_) => break,
                    Err(e) if e.is_outage() => return Err(e),
                    Err(e) => {
                        damaged.push((item.path, e.to_string()));
                        return Ok(None);
                    }
                }
            }
            Ok(Some(bytes))
        };
        Ok(Self { config: text(CONFIG_FILE, MAX_CONFIG)?, keks: text(KEKS_FILE, MAX_KEKS_FILE)? })
    }

    /// Whether there is a volume config, in whatever state.
    pub(super) fn is_vault(&self) -> bool {
        self.config.is_some()
    }

    fn config(&self) -> Option<VolumeConfig> {
        Some(VolumeConfig::parse(self.config.as_deref()?).ok()?.config)
    }

    fn keks(&self) -> Option<KekFile> {
        Some(KekFile::parse(self.keks.as_deref()?).ok()?.file)
    }

    /// Refuses the config of a newer format, which may mean anything.
    pub(in crate::backup) fn vault_id(&self, at: &Path) -> Result<Option<String>> {
        let text = self.config.as_deref().unwrap_or_default();
        if let Err(e @ ConfigError::Newer { .. }) = VolumeConfig::parse(text) {
            return Err(BackupError::Format { path: at.join(own_path(CONFIG_FILE)), why: e.to_string() });
        }
        let id = self.config().map(|config| config.vault_id).or_else(|| Some(self.keks()?.vault_id));
        Ok(id.map(|id| id.to_string()))
    }

    /// Refuses to put what comes from the vault `from` over the vault at `target`.
    pub(in crate::backup) fn refuse_another(&self, target: &Path, from: &str) -> Result<()> {
        match self.vault_id(target)? {
            Some(there) if there != from => {
                Err(BackupError::OtherVault { path: target.to_owned(), there, comes: from.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Which of these files open whatever those that come open, and more, and so stay.
    pub(in crate::backup) fn kept(&self, comes: &Self) -> Kept {
        let (mine, other) = (self.config(), comes.config());
        let config = mine.as_ref().zip(other.as_ref()).is_some_and(|(a, b)| config_covers(a, b));
        let stands = if config { mine } else { other.or(mine) };
        let rows: BTreeSet<u8> = stands.iter().flat_map(|c| &c.keys).map(|key| key.index).collect();
        let keks = self.keks().zip(comes.keks()).is_some_and(|(mine, other)| {
            let opens = |copies: &[(u8, Vec<u8>)]| copies.iter().any(|(row, _)| rows.contains(row));
            keks_cover(&mine, &other) && mine.keks.iter().all(|kek| opens(&kek.wrapped))
        });
        Kept { config, keks }
    }

    /// Puts aside what will be replaced by something else. Gives what is to be said about that.
    pub(in crate::backup) fn put_aside(
        &self,
        top: &OwnedFd,
        comes: &Self,
        kept: Kept,
    ) -> rustix::io::Result<Vec<String>> {
        let mut notes = Vec::new();
        let files = [
            (CONFIG_FILE, &self.config, &comes.config, kept.config),
            (KEKS_FILE, &self.keks, &comes.keks, kept.keks),
        ];
        for (name, mine, comes, stays) in files {
            let (Some(mine), Some(comes)) = (mine, comes) else { continue };
            if mine == comes {
                continue;
            }
            notes.push(if stays {
                format!(
                    "{VAULT_DIR}/{name} stays as it is: it is newer than the one that would come, and opens all \
                     that that one opens. If it does not open, move it away and begin again"
                )
            } else {
                let aside = aside(top, name, mine)?;
                format!(
                    "{VAULT_DIR}/{name} was another one: it is kept as {VAULT_DIR}/{LOST_FOUND}/{aside}. Files that were \
                     made since may need it, and wrapping keys that were removed since are back"
                )
            });
        }
        Ok(notes)
    }

    /// Why a file's header opens with none of the keys that these files name.
    pub(super) fn lacks(&self, item: &Item) -> Option<String> {
        let (_, header) = item.xattrs.iter().find(|(name, _)| name == HEADER_XATTR)?;
        let header = FileHeader::decode(header).ok()?;
        let (config, keks) = (self.config()?, self.keks());
        let opens = header.recipients.iter().any(|r| {
            let row = config.keys.iter().find(|key| key.index == r.key_index);
            row.is_some_and(|row| match &r.wrapped {
                Wrapped::Compact { version, .. } if row.uri == ENVELOPE => {
                    keks.as_ref().is_some_and(|keks| keks.find(*version).is_some())
                }
                _ => true,
            })
        });
        let why = "its header names no key that the vault still has: restore it to another directory, where the \
                   snapshot's volume config comes with it";
        (!opens).then(|| why.to_owned())
    }
}

impl Kept {
    /// Whether the file at a lower path stays as it is.
    pub(in crate::backup) fn stays(self, path: &Path) -> bool {
        let Some(name) = path.parent().filter(|dir| *dir == Path::new(VAULT_DIR)).and(path.file_name())
        else {
            return false;
        };
        (self.config && name == CONFIG_FILE) || (self.keks && name == KEKS_FILE)
    }
}

/// Whether `a` has every row of `b`, and rows that `b` has not, or had not yet.
fn config_covers(a: &VolumeConfig, b: &VolumeConfig) -> bool {
    let has = |key: &crate::format::config::WrappingKey| {
        a.keys.iter().any(|mine| mine.index == key.index && mine.uri == key.uri)
    };
    a.vault_id == b.vault_id
        && b.keys.iter().all(has)
        && (a.keys.len() > b.keys.len() || a.next_row > b.next_row)
}

/// Whether `a` has every key of `b`, and newer ones, or has wrapped more with them.
fn keks_cover(a: &KekFile, b: &KekFile) -> bool {
    let reserved = |file: &KekFile| file.keks.iter().map(|kek| u128::from(kek.reserved)).sum::<u128>();
    let has = |kek: &crate::format::keks::Kek| {
        a.find(kek.number).is_some_and(|mine| mine.created == kek.created && mine.reserved >= kek.reserved)
    };
    a.vault_id == b.vault_id
        && b.keks.iter().all(has)
        && (a.keks.len() > b.keks.len() || reserved(a) > reserved(b))
}

/// Writes a file into `lost+found`, durably. Gives its name there.
fn aside(top: &OwnedFd, name: &str, bytes: &[u8]) -> rustix::io::Result<String> {
    let own = entry::open_dir_path(top, VAULT_DIR)?;
    let lost = lost_found(&own)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for n in 0..TRIES {
        let pid = std::process::id();
        let aside = if n == 0 { format!("{name}-{pid}") } else { format!("{name}-{pid}.{n}") };
        let mut file = match rustix::fs::openat(&lost, &aside, flags, Mode::RUSR | Mode::WUSR) {
            Err(Errno::EXIST) => continue,
            other => std::fs::File::from(other?),
        };
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(crate::vault::sidecar::errno)?;
        rustix::fs::fsync(entry::open_dir_read(&lost, false)?)?;
        rustix::fs::fsync(entry::open_dir_read(&own, false)?)?;
        return Ok(aside);
    }
    Err(Errno::EXIST)
}

/// Opens `lost+found`, which is made where it is missing.
pub(super) fn lost_found(own: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    match rustix::fs::mkdirat(own, LOST_FOUND, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e),
    }
    entry::open_dir_path(own, LOST_FOUND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::config::WrappingKey;
    use crate::format::ids::VaultId;
    use crate::format::keks::Kek;

    fn own(id: u8, rows: &[(u8, &str)], keks: &[(u16, u64, u8)]) -> Own {
        let key = |(index, uri): &(u8, &str)| WrappingKey {
            index: *index,
            uri: (*uri).into(),
            wrapped_vault_key: vec![7],
            active: false,
        };
        let mut config = VolumeConfig {
            format: 1,
            vault_id: VaultId([id; 16]),
            created: 5,
            keys: rows.iter().map(key).collect(),
            next_row: 0,
        };
        config.note_rows();
        let kek = |(number, reserved, row): &(u16, u64, u8)| Kek {
            number: *number,
            created: u64::from(*number),
            reserved: *reserved,
            wrapped: vec![(*row, vec![1])],
        };
        let file = KekFile { vault_id: VaultId([id; 16]), keks: keks.iter().map(kek).collect() };
        Own::new(
            Some(VolumeConfig::join(&config.encode_body(), &[0; 32]).into_bytes()),
            Some(KekFile::join(&file.encode_body(), &[0; 32]).into_bytes()),
        )
    }

    /// What opens more than what comes stays; what opens less, or is merely another one, does not; keys that the config
    /// which will stand does not open do not stay either.
    #[test]
    fn the_files_that_open_more_stay() {
        let then = own(1, &[(0, "a")], &[(1, 10, 0)]);
        let kept = |now: &Own| now.kept(&then);
        assert_eq!(kept(&then), Kept::default());
        assert_eq!(kept(&own(1, &[(0, "a")], &[(1, 10, 0), (2, 5, 0)])), Kept { config: false, keks: true });
        assert_eq!(kept(&own(1, &[(0, "a")], &[(1, 11, 0)])), Kept { config: false, keks: true });
        assert_eq!(kept(&own(1, &[(0, "a")], &[(1, 9, 0), (2, 5, 0)])), Kept::default());
        assert_eq!(
            kept(&own(1, &[(0, "a"), (1, "b")], &[(1, 10, 1), (2, 5, 1)])),
            Kept { config: true, keks: true }
        );
        // Row 0 was removed since: the config that comes stands, and opens no key that only row 1 wraps.
        assert_eq!(kept(&own(1, &[(1, "b")], &[(1, 10, 1), (2, 5, 1)])), Kept::default());
        assert_eq!(kept(&own(2, &[(0, "a"), (1, "b")], &[(1, 10, 0), (2, 5, 0)])), Kept::default());
        assert_eq!(kept(&Own::default()), Kept::default());
    }

    /// Another vault is refused; one that no longer says which it is, is not.
    #[test]
    fn another_vault_is_refused() {
        let at = Path::new("v");
        let one = own(1, &[], &[]);
        let id = one.vault_id(at).unwrap().unwrap();
        assert!(one.refuse_another(at, &id).is_ok());
        assert!(matches!(own(2, &[], &[]).refuse_another(at, &id), Err(BackupError::OtherVault { .. })));
        let broken = Own::new(Some(b"mac".to_vec()), None);
        assert!(broken.refuse_another(at, &id).is_ok());
        let by_keks = Own::new(None, own(2, &[], &[]).keks);
        assert!(by_keks.refuse_another(at, &id).is_err());
        let newer = Own::new(Some(b"format = 99\n".to_vec()), None);
        assert!(matches!(newer.refuse_another(at, &id), Err(BackupError::Format { .. })));
    }
}
