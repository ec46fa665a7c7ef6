//! Headers in one file: taken out of the xattrs of a vault, and put back where a copy lost them.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;
use serde::Serialize;

use super::error::{BackupError, Result};
use super::walk::{Entry, Missed, Walk, open_top};
use crate::format::header::{DIR_XATTR, HEADER_XATTR};
use crate::format::headers::{self, Kept, Line, MAX_LINE};
use crate::format::names::{TMP_PREFIX, VAULT_DIR};
use crate::vault::stat::{S_IFDIR, S_IFREG, stat_fd};
use crate::vault::{entry, proc_path};

/// Regular files that [`look`] looks at.
const LOOK: usize = 256;
/// From so many files without a header on, where they are most, a vault has lost its headers.
const MANY: usize = 3;
/// Faults that a report names.
const NAMED: usize = 1000;

/// What an export did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// Entries in the file.
    pub entries: u64,
    /// Entries that lack what is to be kept, with the reason; the first thousand.
    pub faults: Vec<(String, String)>,
}

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// Entries to which something was put back.
    pub put_back: u64,
    /// Entries that had all of it.
    pub had_it: u64,
    /// Entries of the file that are not in the vault.
    pub gone: u64,
    /// Files whose length is not what it was at the export: what was put back may be another file's.
    pub changed: Vec<String>,
    /// Entries that have something else than the file says; theirs was left.
    pub differ: Vec<String>,
    /// Entries that could not be given theirs, with the reason; the first thousand.
    pub faults: Vec<(String, String)>,
}

/// Whether a vault looks as if a copy had lost its headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Regular files that were looked at.
    pub files: usize,
    /// Those without a header.
    pub bare: usize,
    /// The top has no id.
    pub top_is_bare: bool,
    /// There is a file of headers to put them back from.
    pub exported: bool,
}

impl Look {
    /// Whether to say so.
    pub fn lost(&self) -> bool {
        self.top_is_bare || (self.bare >= MANY && self.bare * 2 > self.files)
    }
}

fn note(faults: &mut Vec<(String, String)>, path: &Path, why: String) {
    if faults.len() < NAMED {
        faults.push((shown(path), why));
    }
}

fn shown(path: &Path) -> String {
    if path.as_os_str().is_empty() { ".".into() } else { path.display().to_string() }
}

/// Writes `.envelopefs/headers` anew, durably, in the place of the one that is there. Follows no symlink: whoever may
/// write the vault may not have another file written by this.
pub fn export(vault: &Path) -> Result<Exported> {
    let path = vault.join(VAULT_DIR);
    let own = entry::open_dir_path(open_top(vault)?, VAULT_DIR)
        .and_then(|own| entry::open_dir_read(own, false))
        .map_err(BackupError::errno(&path))?;
    let temporary = format!("{TMP_PREFIX}headers.{}", std::process::id());
    let written = write(vault, &own, &temporary);
    let report = match written {
        Ok(report) => report,
        Err(e) => {
            let _ = entry::unlink(&own, &temporary);
            return Err(e);
        }
    };
    entry::rename(&own, &temporary, &own, headers::FILE, RenameFlags::empty())
        .and_then(|()| rustix::fs::fsync(&own))
        .map_err(BackupError::errno(&path.join(headers::FILE)))?;
    Ok(report)
}

/// Makes a file that nobody else reads or has open.
fn make(own: &OwnedFd, name: &str) -> rustix::io::Result<File> {
    match entry::unlink(own, name) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(own, name, flags, Mode::RUSR | Mode::WUSR)?.into())
}

fn write(vault: &Path, own: &OwnedFd, temporary: &str) -> Result<Exported> {
    let walk = Walk::new(vault, false)?;
    let path = vault.join(VAULT_DIR).join(temporary);
    let mut out = BufWriter::new(make(own, temporary).map_err(BackupError::errno(&path))?);
    let mut report = Exported::default();
    let mut put = |line: &str| out.write_all(line.as_bytes()).map_err(BackupError::io(&path));
    put(&Line::Magic.encode())?;
    for found in walk {
        let found = match found {
            Ok(found) => found,
            Err(Missed::Unread { path, why }) => {
                note(&mut report.faults, &path, why);
                continue;
            }
            Err(Missed::Moved(path)) => {
                note(&mut report.faults, &path, "it was moved meanwhile: export again".into());
                continue;
            }
            Err(Missed::Gone(_)) => continue,
        };
        if let Some(kept) = kept_of(&found) {
            let line = Line::Kept(kept).encode();
            if line.len() > MAX_LINE {
                let why =
                    format!("its xattrs take {} bytes, of which an import reads {MAX_LINE}", line.len());
                note(&mut report.faults, &found.path, why);
            } else {
                put(&line)?;
                report.entries += 1;
            }
        }
        if let Some(why) = found.fault {
            note(&mut report.faults, &found.path, why);
        }
    }
    put(&Line::End(report.entries).encode())?;
    let file = out.into_inner().map_err(|e| BackupError::io(&path)(e.into_error()))?;
    file.sync_all().map_err(BackupError::io(&path))?;
    Ok(report)
}

/// What an entry has that is kept; `None` where it has nothing, or is none of this program's.
fn kept_of(found: &Entry) -> Option<Kept> {
    let path = if found.path.as_os_str().is_empty() { "." } else { found.path.to_str()? };
    let xattrs: Vec<_> = found.xattrs.iter().filter(|(name, _)| headers::keeps(name)).cloned().collect();
    if xattrs.is_empty() || !headers::is_plain(path) {
        return None;
    }
    let len = (found.stat.kind() == S_IFREG).then_some(found.stat.size);
    Some(Kept { len, path: path.to_owned(), xattrs })
}

/// Whether headers were exported before.
pub fn is_exported(vault: &Path) -> bool {
    vault.join(VAULT_DIR).join(headers::FILE).is_file()
}

/// Puts back what `.envelopefs/headers`, or `from`, says, wherever it is missing.
///
/// What an entry has already is never changed: an entry that is newer than the export is right. The whole file is read
/// before anything is put back, so that a torn one changes nothing.
pub fn import(vault: &Path, from: Option<&Path>) -> Result<Imported> {
    let top = open_top(vault)?;
    let own = vault.join(VAULT_DIR).join(headers::FILE);
    let path = from.unwrap_or(&own);
    read(path, |_| Ok(()))?;
    let mut report = Imported::default();
    read(path, |kept| {
        put_back(&top, kept, &mut report);
        Ok(())
    })?;
    Ok(report)
}

/// Reads a file of headers, entry by entry.
fn read(path: &Path, mut each: impl FnMut(&Kept) -> Result<()>) -> Result<()> {
    let wrong = |why: String| BackupError::Format { path: path.to_owned(), why };
    let mut reader = BufReader::new(File::open(path).map_err(BackupError::io(path))?);
    let (mut count, mut ended, mut number) = (0, false, 0u64);
    let mut line = Vec::new();
    loop {
        line.clear();
        let len = reader.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line);
        if len.map_err(BackupError::io(path))? == 0 {
            break;
        }
        number += 1;
        let at = |why: String| wrong(format!("line {number}: {why}"));
        let text = line.strip_suffix(b"\n").ok_or_else(|| at("it has no end: the file is cut".into()))?;
        let text = std::str::from_utf8(text).map_err(|_| at("it is no text".into()))?;
        match (Line::decode(text).map_err(at)?, number) {
            (Line::Magic, 1) => {}
            (Line::Kept(kept), 2..) if !ended => {
                each(&kept)?;
                count += 1;
            }
            (Line::End(said), 2..) if !ended && said == count => ended = true,
            (Line::End(said), 2..) if !ended => {
                return Err(at(format!("{said} entries were written, {count} are there")));
            }
            (_, 1) => return Err(at("it is no file of exported headers".into())),
            _ => return Err(at("a line that does not belong here".into())),
        }
    }
    if ended { Ok(()) } else { Err(wrong("it has no end: the file is cut".into())) }
}

fn put_back(top: &OwnedFd, kept: &Kept, report: &mut Imported) {
    let path = Path::new(&kept.path);
    let fd = match reach(top, path) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
            report.gone += 1;
            return;
        }
        Err(e) => return note(&mut report.faults, path, e.to_string()),
    };
    match give(&fd, kept) {
        Ok(Given { put: 0, differ: 0 }) => report.had_it += 1,
        Ok(Given { put, differ }) => {
            report.put_back += u64::from(put > 0);
            if differ > 0 && report.differ.len() < NAMED {
                report.differ.push(kept.path.clone());
            }
            let len = stat_fd(&fd).ok().filter(|s| s.kind() == S_IFREG).map(|s| s.size);
            if put > 0 && len != kept.len && report.changed.len() < NAMED {
                report.changed.push(kept.path.clone());
            }
        }
        Err(e) => note(&mut report.faults, path, e.to_string()),
    }
}

struct Given {
    put: usize,
    differ: usize,
}

fn give(fd: &OwnedFd, kept: &Kept) -> rustix::io::Result<Given> {
    let stat = stat_fd(fd)?;
    let is_file = stat.kind() == S_IFREG;
    if is_file != kept.len.is_some() {
        // Something else has the name now.
        return Ok(Given { put: 0, differ: 1 });
    }
    let path = proc_path(fd);
    let mut given = Given { put: 0, differ: 0 };
    for (name, value) in &kept.xattrs {
        match crate::vault::xattr::get(fd, name) {
            Ok(there) if there == *value => {}
            Ok(_) => given.differ += 1,
            Err(Errno::NODATA) => {
                rustix::fs::setxattr(&path, name, value, XattrFlags::CREATE)?;
                given.put += 1;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(given)
}

/// Opens a lower path step by step, following nothing.
pub(super) fn reach(top: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let mut at = entry::open_dir_path(top, ".")?;
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        let std::path::Component::Normal(name) = part else { continue };
        let middle = if parts.peek().is_some() { OFlags::DIRECTORY } else { OFlags::empty() };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC | middle;
        at = rustix::fs::openat(&at, name.as_bytes(), flags, Mode::empty())?;
    }
    Ok(at)
}

/// Looks at the vault's first files, a bounded number of them: did a copy lose the headers?
pub fn look(vault: &Path) -> Result<Look> {
    let mut seen = Look { exported: is_exported(vault), ..Look::default() };
    for found in Walk::new(vault, false)?.take(4 * LOOK).flatten() {
        let has = |name: &str| found.xattrs.iter().any(|(n, _)| n == name);
        if found.path.as_os_str().is_empty() {
            seen.top_is_bare = found.stat.kind() == S_IFDIR && !has(DIR_XATTR);
        } else if found.stat.kind() == S_IFREG && super::walk::has_header(&found.path) {
            seen.files += 1;
            seen.bare += usize::from(!has(HEADER_XATTR));
        }
        if seen.files == LOOK {
            break;
        }
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::names::b64;

    fn setx(path: &Path, name: &str, value: &[u8]) {
        rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
    }

    fn getx(path: &Path, name: &str) -> Option<Vec<u8>> {
        let mut value = vec![0; 4096];
        let len = rustix::fs::getxattr(path, name, &mut value[..]).ok()?;
        value.truncate(len);
        Some(value)
    }

    fn header(byte: u8) -> Vec<u8> {
        [&[1, 0, 1, 0][..], &[byte; 60]].concat()
    }

    /// A vault as the walk sees it: a directory with a file, and a file at the top.
    fn vault(with: bool) -> tempfile::TempDir {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join(b64(&[1; 20]));
        std::fs::create_dir(base.path().join(VAULT_DIR)).unwrap();
        std::fs::write(base.path().join(VAULT_DIR).join("vault.toml"), "x").unwrap();
        std::fs::create_dir(&dir).unwrap();
        for (n, file) in [dir.join(b64(&[2; 20])), base.path().join(b64(&[3; 20]))].iter().enumerate() {
            std::fs::write(file, vec![0; 40 + n]).unwrap();
            if with {
                setx(file, HEADER_XATTR, &header(n as u8));
            }
        }
        if with {
            setx(base.path(), DIR_XATTR, &[8; 16]);
            setx(&dir, DIR_XATTR, &[9; 16]);
        }
        base
    }

    /// What a copy without xattrs loses comes back from the file, which the copy has; a second import changes nothing.
    #[test]
    fn headers_come_back_after_a_copy_that_lost_them() {
        let (whole, copy) = (vault(true), vault(false));
        let exported = export(whole.path()).unwrap();
        assert_eq!(exported, Exported { entries: 4, faults: vec![] });
        let own = |base: &tempfile::TempDir| base.path().join(VAULT_DIR).join(headers::FILE);
        std::fs::copy(own(&whole), own(&copy)).unwrap();
        let seen = look(copy.path()).unwrap();
        assert!(seen.lost() && seen.exported && seen.bare == 2, "{seen:?}");
        let done = import(copy.path(), None).unwrap();
        assert_eq!(done, Imported { put_back: 4, ..Imported::default() });
        assert!(!look(copy.path()).unwrap().lost());
        assert_eq!(getx(&copy.path().join(b64(&[3; 20])), HEADER_XATTR), Some(header(1)));
        let again = import(copy.path(), None).unwrap();
        assert_eq!(again, Imported { had_it: 4, ..Imported::default() });
    }

    /// A header that is there stays; a file of another length is named; one that is gone is counted.
    #[test]
    fn what_is_there_is_not_overwritten() {
        let (whole, copy) = (vault(true), vault(false));
        export(whole.path()).unwrap();
        let from = whole.path().join(VAULT_DIR).join(headers::FILE);
        let (name, other) = (b64(&[3; 20]), b64(&[1; 20]));
        setx(&copy.path().join(&name), HEADER_XATTR, &header(77));
        std::fs::write(copy.path().join(&other).join(b64(&[2; 20])), "longer than it was, or shorter")
            .unwrap();
        let done = import(copy.path(), Some(&from)).unwrap();
        assert_eq!((done.put_back, done.had_it, done.gone), (3, 0, 0));
        assert_eq!(
            (done.differ, done.changed),
            (vec![name.clone()], vec![format!("{other}/{}", b64(&[2; 20]))])
        );
        assert_eq!(getx(&copy.path().join(&name), HEADER_XATTR), Some(header(77)));
        std::fs::remove_dir_all(copy.path().join(&other)).unwrap();
        assert_eq!(import(copy.path(), Some(&from)).unwrap().gone, 2);
    }

    /// Neither the vault's own directory nor the file that is written may be a symlink to somewhere else; nobody but the
    /// owner reads what is written.
    #[test]
    fn an_export_follows_no_symlink() {
        use std::os::unix::fs::{MetadataExt, symlink};
        let (whole, aside) = (vault(true), tempfile::tempdir().unwrap());
        let own = whole.path().join(VAULT_DIR);
        let target = aside.path().join("target");
        std::fs::write(&target, "theirs").unwrap();
        symlink(&target, own.join(format!("{TMP_PREFIX}headers.{}", std::process::id()))).unwrap();
        symlink(&target, own.join(headers::FILE)).unwrap();
        assert_eq!(export(whole.path()).unwrap().entries, 4);
        assert_eq!(std::fs::read(&target).unwrap(), b"theirs");
        let made = std::fs::symlink_metadata(own.join(headers::FILE)).unwrap();
        assert!(made.is_file() && made.mode() & 0o777 == 0o600, "{:o}", made.mode());
        std::fs::rename(&own, aside.path().join("own")).unwrap();
        symlink(aside.path().join("own"), &own).unwrap();
        std::fs::remove_file(aside.path().join("own").join(headers::FILE)).unwrap();
        assert!(matches!(export(whole.path()), Err(BackupError::Io { .. })));
        assert!(!aside.path().join("own").join(headers::FILE).exists());
    }

    /// A file of headers that is cut changes nothing; a file without a header is named by the export.
    #[test]
    fn a_cut_file_changes_nothing() {
        let (whole, copy) = (vault(true), vault(false));
        export(whole.path()).unwrap();
        let from = whole.path().join(VAULT_DIR).join(headers::FILE);
        let text = std::fs::read(&from).unwrap();
        for keep in [0, 5, text.len() / 2, text.len() - 1] {
            std::fs::write(&from, &text[..keep]).unwrap();
            assert!(matches!(import(copy.path(), Some(&from)), Err(BackupError::Format { .. })), "{keep}");
        }
        assert!(look(copy.path()).unwrap().top_is_bare);
        let told = export(copy.path()).unwrap();
        assert_eq!((told.entries, told.faults.len()), (0, 4));
    }
}
