//! The store's directory: private to its owner, and made whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use super::error::KmsError;

/// Any access for group or others.
const FOREIGN_ACCESS: u32 = 0o077;
/// The longest file that is read here: `root.toml` and `root.key` take a few hundred bytes.
const MAX_SMALL_FILE: u64 = 64 << 10;

/// Where the store is by default: `$XDG_DATA_HOME/envelopefs/kms`, else `~/.local/share/envelopefs/kms`.
pub fn default_dir() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")))?;
    Some(data.join("envelopefs/kms"))
}

/// Refuses a directory that is missing, or that others may enter.
pub(super) fn check(dir: &Path) -> Result<(), KmsError> {
    let meta = match fs::metadata(dir) {
        Ok(meta) if meta.is_dir() => meta,
        Ok(_) => return Err(KmsError::NoStore(dir.into())),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Err(KmsError::NoStore(dir.into()));
        }
        Err(e) => return Err(KmsError::io(dir)(e)),
    };
    check_private(dir, &meta, "chmod 700")
}

/// Reads a small file that nobody else may read.
pub(super) fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, KmsError> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(flags.bits()).expect("open flags fit an int"))
        .open(path)
        .map_err(KmsError::io(path))?;
    let meta = file.metadata().map_err(KmsError::io(path))?;
    if !meta.is_file() || meta.len() > MAX_SMALL_FILE {
        return Err(KmsError::Damaged { path: path.into(), why: "not a small regular file".into() });
    }
    check_private(path, &meta, "chmod 600")?;
    // Room for the whole file, so that the vector never grows and leaves a copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0) + 32));
    (&mut file).take(MAX_SMALL_FILE).read_to_end(&mut bytes).map_err(KmsError::io(path))?;
    Ok(bytes)
}

/// Replaces a file of `dir` at one stroke: temporary file, fsync, rename, fsync of the directory.
pub(super) fn replace_private(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), KmsError> {
    let tmp = dir.join(format!(".{name}.{}", suffix()));
    let written = new_private(&tmp)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&tmp, dir.join(name)));
    if let Err(e) = written {
        // The write's error is the one to report; a file that stays behind holds nothing that opens anything.
        let _ = fs::remove_file(&tmp);
        return Err(KmsError::io(dir.join(name))(e));
    }
    sync(dir)
}

/// A new file of mode 0600.
pub(super) fn new_private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Makes a directory with all that `fill` puts into it, durable when it returns; a crash leaves all or nothing at
/// `dir`. An empty directory in its place is replaced.
pub(super) fn create_whole(
    dir: &Path,
    fill: impl FnOnce(&Path) -> Result<(), KmsError>,
) -> Result<(), KmsError> {
    if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(KmsError::StoreExists(dir.into()));
    }
    let dir = std::path::absolute(dir).map_err(KmsError::io(dir))?;
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
        return Err(KmsError::StoreExists(dir));
    };
    make_above(parent)?;
    let tmp = parent.join(format!(".{}.{}", name.to_string_lossy(), suffix()));
    fs::DirBuilder::new().mode(0o700).create(&tmp).map_err(KmsError::io(&tmp))?;
    let made = fill(&tmp).and_then(|()| sync(&tmp)).and_then(|()| {
        fs::rename(&tmp, &dir).map_err(|e| match e.kind() {
            ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
                KmsError::StoreExists(dir.clone())
            }
            _ => KmsError::io(&dir)(e),
        })
    });
    if made.is_err() {
        // Best effort: the first error is the one to report, and the leftover has a name of its own.
        let _ = fs::remove_dir_all(&tmp);
    }
    made?;
    sync(parent)
}

/// Makes the directories that are missing above a new one, each durable before anything goes into it.
fn make_above(dir: &Path) -> Result<(), KmsError> {
    let Some(parent) = dir.parent().filter(|_| !dir.is_dir()) else { return Ok(()) };
    make_above(parent)?;
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => sync(parent),
        // Another process was faster.
        Err(e) if e.kind() == ErrorKind::AlreadyExists && dir.is_dir() => sync(parent),
        Err(e) => Err(KmsError::io(dir)(e)),
    }
}

/// Makes a directory's entries durable.
pub(super) fn sync(dir: &Path) -> Result<(), KmsError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(KmsError::io(dir))
}

fn check_private(path: &Path, meta: &fs::Metadata, cure: &str) -> Result<(), KmsError> {
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != me {
        let why = format!("it belongs to user {}, this process runs as user {me}", meta.uid());
        let cure = "run as its owner, or change the owner".into();
        return Err(KmsError::Permissions { path: path.into(), why, cure });
    }
    if meta.mode() & FOREIGN_ACCESS != 0 {
        let why = format!("mode {:04o} gives access to group or others", meta.mode() & 0o7777);
        let cure = format!("{cure} {}", path.display());
        return Err(KmsError::Permissions { path: path.into(), why, cure });
    }
    Ok(())
}

/// What makes a temporary name unique.
fn suffix() -> String {
    super::hex::encode(&crate::crypto::random::array::<8>())
}
