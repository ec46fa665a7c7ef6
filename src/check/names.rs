//! Names, symlink targets and xattrs of one directory entry.

use std::collections::HashSet;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::io::Errno;

use crate::crypto::{DirKey, VaultKey, XattrKey};
use crate::format::header::{DIR_XATTR, HEADER_XATTR};
use crate::format::ids::DirId;
use crate::format::names::{LONG_XATTR_PREFIX, LowerName, XATTR_PREFIX, long_name, parse, sidecar_name};

/// The longest sidecar that is read; a valid one has 16 + 255 bytes.
const MAX_SIDECAR: u64 = 4096;
/// The longest list or value of xattrs (Linux).
const MAX_XATTR: usize = 64 << 10;

/// What a lower name turned out to be.
pub(super) enum Name {
    /// An entry of the mount, with its plaintext name, or why it does not decode.
    Entry(Result<Vec<u8>, String>),
    /// The sidecar of a long name that is there.
    Sidecar,
    /// The vault's own directory.
    Vault,
    /// Left by a crash, in words.
    Leftover(&'static str),
    /// Not ours.
    Foreign,
}

/// Judges one name of a directory whose names are `siblings`.
pub(super) fn judge(dir: &Path, lower: &[u8], siblings: &HashSet<Vec<u8>>, key: Option<&DirKey>) -> Name {
    let decode = |open: &dyn Fn(&DirKey) -> Result<Vec<u8>, String>| match key {
        Some(key) => Name::Entry(open(key)),
        None => Name::Entry(Err("its directory has no id to decode it with".into())),
    };
    match parse(lower) {
        LowerName::Short(sealed) => decode(&|key| {
            key.decode(&sealed)
                .map_err(|_| "the name does not decode: changed, or moved from elsewhere".into())
        }),
        LowerName::Long(hash) => decode(&|key| {
            let sealed = sidecar(&dir.join(sidecar_name(&hash)))?;
            let bad =
                |_| "the long name does not decode: its sidecar was changed, or moved from elsewhere".into();
            key.decode_long(&hash, &sealed).map_err(bad)
        }),
        LowerName::Sidecar(hash) if siblings.contains(long_name(&hash).as_bytes()) => Name::Sidecar,
        LowerName::Sidecar(_) => Name::Leftover("a sidecar whose long name is gone"),
        LowerName::Temporary => Name::Leftover("a temporary name that a crash left"),
        LowerName::Vault => Name::Vault,
        LowerName::Foreign => Name::Foreign,
    }
}

fn sidecar(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    open(path)
        .and_then(|file| file.take(MAX_SIDECAR).read_to_end(&mut bytes))
        .map_err(|e| format!("the long name's sidecar: {e}"))?;
    Ok(bytes)
}

/// Opens for reading; a symlink or FIFO in the place of a file is refused rather than followed or waited for.
pub(super) fn open(path: &Path) -> std::io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// The id in a directory's xattr.
pub(super) fn dir_id(dir: &File) -> Result<DirId, String> {
    let mut bytes = [0; 17];
    match rustix::fs::fgetxattr(dir, DIR_XATTR, &mut bytes) {
        Ok(16) => Ok(DirId(bytes[..16].try_into().expect("16 bytes"))),
        Ok(n) => Err(format!("xattr {DIR_XATTR} has {n} bytes instead of 16")),
        Err(Errno::NODATA) => {
            Err(format!("no xattr {DIR_XATTR}: a tool dropped it; its names cannot be decoded"))
        }
        Err(Errno::RANGE) => Err(format!("xattr {DIR_XATTR} has more than 16 bytes")),
        Err(e) => Err(format!("xattr {DIR_XATTR}: {e}")),
    }
}

/// Opens every encrypted xattr of an inode whose id is `id`; calls `fault` for each that does not.
pub(super) fn xattrs(file: &File, vault_key: &VaultKey, id: &[u8], fault: &mut dyn FnMut(String)) {
    let mut list = vec![0; MAX_XATTR];
    let len = match rustix::fs::flistxattr(file, &mut list) {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => return,
        Err(e) => return fault(format!("list of xattrs: {e}")),
    };
    let key = XattrKey::derive(vault_key, id);
    let names = list.get(..len).unwrap_or_default().split(|b| *b == 0).filter(|n| !n.is_empty());
    for name in names {
        let Ok(text) = std::str::from_utf8(name) else { continue };
        if text == HEADER_XATTR || text == DIR_XATTR {
            continue;
        }
        if text.starts_with(XATTR_PREFIX) || text.starts_with(LONG_XATTR_PREFIX) {
            if let Err(why) = xattr(file, &key, text) {
                fault(format!("xattr {text}: {why}"));
            }
        } else if text.starts_with("user.") {
            fault(format!("xattr {text}: not written by this program"));
        }
    }
}

fn xattr(file: &File, key: &XattrKey, lower: &str) -> Result<(), String> {
    let name = CString::new(lower).expect("xattr names were split at NUL");
    let mut value = vec![0; MAX_XATTR];
    let len = rustix::fs::fgetxattr(file, name.as_c_str(), &mut value).map_err(|e| e.to_string())?;
    value.truncate(len);
    let plain = key
        .decode_name(lower, || Some(value.clone()))
        .map_err(|_| "the name does not decode: changed, or of another file".to_owned())?;
    key.decode_value(&plain, &value).map(|_| ()).map_err(|_| "the value does not open: changed".to_owned())
}

/// A plaintext name as a path's component.
pub(super) fn component(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}
