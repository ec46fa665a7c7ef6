//! A vault's lower entries in the order in which a repository keeps them, each with its attributes and xattrs.
//!
//! Works on descriptors: an entry that someone swaps for a symlink meanwhile leads nowhere else. A directory's names are those
//! that it had when it was entered; when all of them were given it is looked at again, and what has come to a new name since is
//! told.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::error::{BackupError, Result};
use crate::format::config::CONFIG_FILE;
use crate::format::header::{FileHeader, HEADER_XATTR};
use crate::format::ids::DirId;
use crate::format::keks::KEKS_FILE;
use crate::format::names::{LOST_FOUND, LowerName, SIDECAR_SUFFIX, VAULT_DIR, parse};
use crate::format::{headers, journal};
use crate::vault::stat::{S_IFDIR, S_IFLNK, S_IFREG, TICK, between, stat_fd};
use crate::vault::{Listing, LowerStat, entry, proc_path};

/// The most that Linux keeps in a value or a list of names.
const XATTR_MOST: usize = 65536;

/// Name and value of an xattr.
pub type Xattr = (String, Vec<u8>);

/// One lower entry.
#[derive(Debug)]
pub struct Entry {
    /// Path below the vault's top; empty for the top itself.
    pub path: PathBuf,
    /// Attributes.
    pub stat: LowerStat,
    /// Its xattrs that belong into a backup, by name.
    pub xattrs: Vec<Xattr>,
    /// Target of a symlink.
    pub target: Option<Vec<u8>>,
    /// What of it could not be read, or what a header lacks. The entry is whole otherwise.
    pub fault: Option<String>,
    /// Stands for it, also when it is renamed.
    pub fd: OwnedFd,
}

impl Entry {
    /// Looks at the same inode again.
    pub(super) fn look_again(&mut self) -> rustix::io::Result<()> {
        self.stat = stat_fd(&self.fd)?;
        (self.xattrs, self.target, self.fault) = (Vec::new(), None, None);
        let kind = match (self.path.parent(), self.path.file_name()) {
            (Some(dir), Some(name)) => kind_of(dir, name.as_bytes(), true).unwrap_or(Kind::Bare),
            _ => Kind::Ours,
        };
        look_at(self, kind);
        Ok(())
    }

    /// Opens a regular file for reading, which leaves the time of its last access as it is where that may be.
    pub(super) fn open(&self) -> rustix::io::Result<OwnedFd> {
        let path = proc_path(&self.fd);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags | OFlags::NOATIME, Mode::empty()) {
            Err(Errno::PERM) => rustix::fs::open(&path, flags, Mode::empty()),
            other => other,
        }
    }
}

/// What there is to say of an entry that is not given. Paths are below the vault's top.
#[derive(Debug)]
pub enum Missed {
    /// It could not be looked at.
    Unread {
        /// The entry.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// It is older than the walk's look at its directory and has come to this name since: it may have been given under none.
    Moved(PathBuf),
    /// A directory that was there is gone. If it was moved, it may have been given under no name.
    Gone(PathBuf),
}

/// Walks a vault: the top first, each directory before what is in it, names in byte order.
#[derive(Debug)]
pub struct Walk {
    open: Vec<Dir>,
    first: Option<Entry>,
    journal: bool,
}

#[derive(Debug)]
struct Dir {
    fd: OwnedFd,
    path: PathBuf,
    /// In byte order.
    names: Vec<Listed>,
    /// Those that were given, or not to be.
    done: usize,
    /// As it was before it was listed, and when that was.
    before: LowerStat,
    at: (i64, u32),
    /// What the second look found, to be told.
    looked_again: bool,
    moved: Vec<PathBuf>,
}

/// A name in a directory.
#[derive(Debug)]
struct Listed {
    name: Vec<u8>,
    ino: u64,
    /// `S_IFMT` bits; 0 where the filesystem does not tell.
    kind: u32,
}

impl Dir {
    fn list(fd: OwnedFd, path: PathBuf) -> rustix::io::Result<Self> {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        let at = (now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or(0));
        let before = stat_fd(&fd)?;
        let names = listed(&fd)?;
        Ok(Self { fd, path, names, done: 0, before, at, looked_again: false, moved: Vec::new() })
    }

    /// Looks again for what was in the vault before this was listed, and was given another name in it since.
    fn look_again(&mut self, journal: bool) -> rustix::io::Result<()> {
        let now = stat_fd(&self.fd)?;
        if between(self.before.mtime, self.at) >= TICK
            && (now.mtime, now.ctime) == (self.before.mtime, self.before.ctime)
        {
            return Ok(());
        }
        for found in listed(&self.fd)? {
            let known = self.names.binary_search_by(|listed| listed.name.cmp(&found.name)).is_ok();
            if known || kind_of(&self.path, &found.name, journal).is_none() {
                continue;
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let born = match rustix::fs::openat(&self.fd, &found.name[..], flags, Mode::empty()) {
                Err(Errno::NOENT) => continue,
                other => stat_fd(&other?)?.btime,
            };
            let is_old = match born {
                Some(born) => born < self.at,
                None => self.names.iter().any(|listed| listed.ino == found.ino),
            };
            if is_old {
                self.moved.push(self.path.join(OsStr::from_bytes(&found.name)));
            }
        }
        Ok(())
    }
}

/// Opens a vault's top; refuses what is none.
pub(super) fn open_top(vault: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = match rustix::fs::open(vault, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Err(BackupError::NotAVault(vault.to_owned())),
        other => other.map_err(BackupError::errno(vault))?,
    };
    match rustix::fs::statat(
        &top,
        format!("{VAULT_DIR}/{CONFIG_FILE}"),
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    ) {
        Err(Errno::NOENT | Errno::NOTDIR) => Err(BackupError::NotAVault(vault.to_owned())),
        other => other.map(|_| top).map_err(BackupError::errno(vault)),
    }
}

impl Walk {
    /// Walks the vault at `vault`. `journal`: with its journal's logs, which say what is true only while nobody
    /// changes the vault.
    pub fn new(vault: &Path, journal: bool) -> Result<Self> {
        let top = open_top(vault)?;
        let stat = stat_fd(&top).map_err(BackupError::errno(vault))?;
        let mut first = Entry {
            path: PathBuf::new(),
            stat,
            xattrs: Vec::new(),
            target: None,
            fault: None,
            fd: top.try_clone().map_err(BackupError::io(vault))?,
        };
        look_at(&mut first, Kind::Ours);
        let open = vec![Dir::list(top, PathBuf::new()).map_err(BackupError::errno(vault))?];
        Ok(Self { open, first: Some(first), journal })
    }

    /// The next entry of the innermost open directory; `None` where it is not for a backup, or gone.
    fn entry(&mut self) -> std::result::Result<Option<Entry>, Missed> {
        let Some(dir) = self.open.last_mut() else { return Ok(None) };
        let Some(Listed { name, kind: listed, .. }) = dir.names.get(dir.done) else { return Ok(None) };
        dir.done += 1;
        let path = dir.path.join(OsStr::from_bytes(name));
        let Some(kind) = kind_of(&dir.path, name, self.journal) else { return Ok(None) };
        let missed = |e: Errno| Missed::Unread { path: path.clone(), why: e.to_string() };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&dir.fd, &name[..], flags, Mode::empty()) {
            // Removed or renamed since the directory was listed. What is renamed within it is found at its end.
            Err(Errno::NOENT) if matches!(*listed, 0 | S_IFDIR) => return Err(Missed::Gone(path)),
            Err(Errno::NOENT) => return Ok(None),
            other => other.map_err(missed)?,
        };
        let stat = stat_fd(&fd).map_err(missed)?;
        let mut entry = Entry { path: path.clone(), stat, xattrs: Vec::new(), target: None, fault: None, fd };
        look_at(&mut entry, kind);
        if stat.kind() == S_IFDIR {
            let opened = entry::open_dir_read(&entry.fd, true).and_then(|fd| Dir::list(fd, path));
            match opened {
                Ok(dir) => self.open.push(dir),
                Err(e) => entry.fault = Some(format!("not listed: {e}")),
            }
        }
        Ok(Some(entry))
    }
}

impl Iterator for Walk {
    type Item = std::result::Result<Entry, Missed>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        loop {
            let dir = self.open.last_mut()?;
            if let Some(moved) = dir.moved.pop() {
                return Some(Err(Missed::Moved(moved)));
            }
            if dir.done == dir.names.len() {
                // Once.
                if !std::mem::replace(&mut dir.looked_again, true)
                    && let Err(e) = dir.look_again(self.journal)
                {
                    let why = format!("not listed again: {e}");
                    return Some(Err(Missed::Unread { path: dir.path.clone(), why }));
                }
                if dir.moved.is_empty() {
                    self.open.pop();
                }
                continue;
            }
            match self.entry() {
                Ok(None) => {}
                Ok(Some(entry)) => return Some(Ok(entry)),
                Err(missed) => return Some(Err(missed)),
            }
        }
    }
}

/// A vault whose entries are asked for one by one.
#[derive(Debug)]
pub struct Tree {
    top: OwnedFd,
}

impl Tree {
    /// Opens the vault at `vault`.
    pub fn open(vault: &Path) -> Result<Self> {
        Ok(Self { top: open_top(vault)? })
    }

    /// The vault's top directory.
    pub fn top(&self) -> &OwnedFd {
        &self.top
    }

    /// The entry at a lower path, which a backup would store; ENOENT where it would not.
    pub fn entry(&self, path: &Path) -> rustix::io::Result<Entry> {
        let kind = match (path.parent(), path.file_name()) {
            (Some(dir), Some(name)) => kind_of(dir, name.as_bytes(), false).ok_or(Errno::NOENT)?,
            _ => Kind::Ours,
        };
        let fd = super::headers::reach(&self.top, path)?;
        let stat = stat_fd(&fd)?;
        let mut entry =
            Entry { path: path.to_owned(), stat, xattrs: Vec::new(), target: None, fault: None, fd };
        look_at(&mut entry, kind);
        Ok(entry)
    }

    /// Names and types of what a backup would store of a directory, in byte order.
    pub fn names(&self, dir: &Path) -> rustix::io::Result<Vec<(Vec<u8>, u32)>> {
        let fd = super::headers::reach(&self.top, dir)?;
        let names = listed(&fd)?.into_iter().map(|listed| listed.name);
        let kept = names.filter(|name| kind_of(dir, name, false).is_some());
        Ok(kept
            .map(|name| {
                let is_dir = rustix::fs::statat(&fd, &name[..], rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|s| s.st_mode & libc::S_IFMT == S_IFDIR);
                (name, if is_dir { S_IFDIR } else { S_IFREG })
            })
            .collect())
    }
}

/// Whose a name is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// A file, directory or symlink of the vault: has a header or an id.
    Ours,
    /// A sidecar, the vault's own directory, somebody else's: has none.
    Bare,
}

/// What an entry is, by its name and where it is; `None`: not for a backup.
fn kind_of(dir: &Path, name: &[u8], journal: bool) -> Option<Kind> {
    let own = Path::new(VAULT_DIR);
    if dir == own {
        let kept = [CONFIG_FILE, KEKS_FILE, headers::FILE, LOST_FOUND].iter().any(|n| n.as_bytes() == name)
            || (journal && name == journal::JOURNAL_DIR.as_bytes());
        return kept.then_some(Kind::Bare);
    }
    if dir.starts_with(own) {
        return Some(Kind::Bare);
    }
    match parse(name) {
        LowerName::Short(_) | LowerName::Long(_) => Some(Kind::Ours),
        LowerName::Temporary => None,
        LowerName::Sidecar(_) | LowerName::Vault | LowerName::Foreign => Some(Kind::Bare),
    }
}

/// Whether a lower path is one that has a header of its own: a file of the vault.
pub(super) fn has_header(path: &Path) -> bool {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return false };
    kind_of(dir, name.as_bytes(), false) == Some(Kind::Ours)
        && !name.as_bytes().ends_with(SIDECAR_SUFFIX.as_bytes())
}

/// The names in a directory, in byte order.
fn listed(dir: impl AsFd) -> rustix::io::Result<Vec<Listed>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut listing = Listing::new(rustix::fs::openat(dir, c".", flags, Mode::empty())?);
    let mut names = Vec::new();
    while let Some(entry) = listing.peek()? {
        if !matches!(&entry.name[..], b"." | b"..") {
            names.push(Listed { name: entry.name.clone(), ino: entry.ino, kind: entry.kind });
        }
        listing.advance();
    }
    names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(names)
}

/// Fills in xattrs and symlink target; judges the header.
fn look_at(entry: &mut Entry, kind: Kind) {
    if entry.stat.kind() == S_IFLNK {
        match entry::readlink(&entry.fd) {
            Ok(target) => entry.target = Some(target),
            Err(e) => entry.fault = Some(format!("the symlink's target is not read: {e}")),
        }
        return;
    }
    match xattrs_of(&entry.fd) {
        Ok(xattrs) => entry.xattrs = xattrs,
        Err(e) => {
            entry.fault = Some(format!("its xattrs are not read: {e}"));
            return;
        }
    }
    if kind == Kind::Ours {
        entry.fault = judge(entry.stat.kind(), &entry.xattrs);
    }
}

/// What is wrong with the header of a file, or the id of a directory.
pub(super) fn judge(kind: u32, xattrs: &[Xattr]) -> Option<String> {
    let value = |name: &str| xattrs.iter().find(|(n, _)| n == name).map(|(_, value)| &value[..]);
    match kind {
        S_IFREG => match value(HEADER_XATTR) {
            None => Some(format!("no header (xattr {HEADER_XATTR}): without it nothing opens the file")),
            Some(bytes) => FileHeader::decode(bytes).err().map(|e| e.to_string()),
        },
        S_IFDIR => match value(crate::format::header::DIR_XATTR) {
            None => Some("no directory id (xattr user.efs.dir): without it nothing opens its names".into()),
            Some(bytes) if bytes.len() != DirId::LEN => {
                Some(format!("directory id: {} bytes, expected {}", bytes.len(), DirId::LEN))
            }
            Some(_) => None,
        },
        _ => None,
    }
}

/// Whether an xattr belongs into a backup: what this program keeps, what users keep, and who may do what.
pub(super) fn is_kept(name: &str) -> bool {
    name.starts_with("user.")
        || matches!(name, "system.posix_acl_access" | "system.posix_acl_default" | "security.capability")
}

/// The xattrs of an inode that belong into a backup, by name.
fn xattrs_of(fd: impl AsFd) -> rustix::io::Result<Vec<Xattr>> {
    let path = proc_path(&fd);
    let mut names = crate::vault::xattr::list(&fd)?;
    names.retain(|name| is_kept(name));
    names.sort_unstable();
    let mut found = Vec::with_capacity(names.len());
    for name in names {
        let mut value = vec![0; 512];
        let read = match rustix::fs::getxattr(&path, &name, &mut value[..]) {
            Err(Errno::RANGE) => {
                value.resize(XATTR_MOST, 0);
                rustix::fs::getxattr(&path, &name, &mut value[..])
            }
            other => other,
        };
        match read {
            Ok(len) => value.truncate(len),
            // Removed since it was listed.
            Err(Errno::NODATA) => continue,
            Err(e) => return Err(e),
        }
        found.push((name, value));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::time::Duration;

    use super::*;

    /// A vault with directories of a file each, and nothing that opens.
    fn vault(dirs: &[&str]) -> tempfile::TempDir {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join(VAULT_DIR)).unwrap();
        fs::write(base.path().join(VAULT_DIR).join(CONFIG_FILE), b"").unwrap();
        for dir in dirs {
            fs::create_dir(base.path().join(dir)).unwrap();
            fs::write(base.path().join(dir).join("file"), b"").unwrap();
        }
        std::thread::sleep(Duration::from_millis(50));
        base
    }

    /// What a walk gives: paths, what has moved, what is gone. `meanwhile` happens when it has come to `at`.
    fn walk(base: &Path, at: &str, meanwhile: impl Fn()) -> [BTreeSet<PathBuf>; 3] {
        let mut seen: [BTreeSet<PathBuf>; 3] = Default::default();
        for found in Walk::new(base, false).unwrap() {
            match found {
                Ok(entry) => {
                    if entry.path == Path::new(at) {
                        meanwhile();
                    }
                    seen[0].insert(entry.path);
                }
                Err(Missed::Moved(path)) => drop(seen[1].insert(path)),
                Err(Missed::Gone(path)) => drop(seen[2].insert(path)),
                Err(Missed::Unread { path, why }) => panic!("{path:?}: {why}"),
            }
        }
        seen
    }

    fn paths(names: &[&str]) -> BTreeSet<PathBuf> {
        names.iter().map(PathBuf::from).collect()
    }

    /// A directory that is renamed before the walk comes to it is told, under its new name; a new one is not, nor one that was
    /// removed under a new name.
    #[test]
    fn a_rename_within_a_directory_is_told() {
        let base = vault(&["b", "d", "f"]);
        let at = |name: &str| base.path().join(name);
        let [given, moved, gone] = walk(base.path(), "b", || {
            fs::rename(at("d"), at("a")).unwrap();
            fs::create_dir(at("new")).unwrap();
            fs::remove_dir_all(at("f")).unwrap();
        });
        assert!(!given.contains(Path::new("a/file")) && !given.contains(Path::new("d/file")));
        assert_eq!(moved, paths(&["a"]));
        assert_eq!(gone, paths(&["d", "f"]));
        let [given, moved, gone] = walk(base.path(), "b", || {});
        assert!(given.contains(Path::new("a/file")) && moved.is_empty() && gone.is_empty());
    }

    /// So are a file, one that was moved in from elsewhere, and what was given already; a file that was rewritten is not.
    #[test]
    fn files_that_move_are_told() {
        let base = vault(&["b", "c", "d"]);
        let at = |name: &str| base.path().join(name);
        let [_, moved, gone] = walk(base.path(), "c", || {
            fs::rename(at("c/file"), at("c/other")).unwrap();
            fs::rename(at("d/file"), at("c/second")).unwrap();
            fs::rename(at("b/file"), at("c/third")).unwrap();
            fs::write(at("d/new"), b"new").unwrap();
        });
        assert!(gone.is_empty());
        // What is renamed before its directory is listed is simply there.
        assert_eq!(moved, paths(&["c/other", "c/second", "c/third"]));
    }
}
