//! One regular file: header, key, every page and block.

use std::fs::File;

use rustix::io::Errno;

use super::names;
use super::report::Kind;
use crate::content;
use crate::format::header::{FileHeader, HEADER_XATTR, MAX_HEADER};
use crate::keys::Keyring;
use crate::vault::DiskFile;

/// Verifies a lower file; calls `fault` for each fault, `progress` with bytes done now and then, which may stop it.
pub(super) fn verify(
    file: File,
    keyring: &Keyring,
    fault: &mut dyn FnMut(Kind, String),
    progress: &mut dyn FnMut(u64) -> bool,
) -> u64 {
    let header = match header(&file) {
        Ok(header) => header,
        Err((kind, why)) => {
            fault(kind, why);
            return 0;
        }
    };
    names::xattrs(&file, keyring.vault_key(), &header.file_id.0, &mut |why| fault(Kind::Xattr, why));
    let keys = match keyring.open_file(&header) {
        Ok(keys) => keys,
        Err(e) => {
            fault(Kind::Key, e.to_string());
            return 0;
        }
    };
    let opened = content::File::open(Box::new(DiskFile(file)), keys);
    let verified =
        opened.and_then(|f| f.verify(&mut |found| fault(kind_of(&found), found.to_string()), progress));
    verified.unwrap_or_else(|e| {
        let kind = match e {
            content::ContentError::Io(_) => Kind::Io,
            content::ContentError::Damaged(_) | content::ContentError::TooLong => Kind::Content,
        };
        fault(kind, e.to_string());
        0
    })
}

fn header(file: &File) -> Result<FileHeader, (Kind, String)> {
    let mut bytes = vec![0; MAX_HEADER];
    match rustix::fs::fgetxattr(file, HEADER_XATTR, &mut bytes) {
        Ok(len) => {
            bytes.truncate(len);
            FileHeader::decode(&bytes).map_err(|e| (Kind::Key, e.to_string()))
        }
        Err(Errno::NODATA) => Err((
            Kind::NoHeader,
            format!("no header (xattr {HEADER_XATTR}): a tool dropped it; restore it from a backup"),
        )),
        Err(Errno::RANGE) => Err((Kind::Key, format!("the header is longer than {MAX_HEADER} bytes"))),
        Err(e) => Err((Kind::Io, format!("xattr {HEADER_XATTR}: {e}"))),
    }
}

/// A lower file that is too long is what a crash leaves; everything else is damage.
fn kind_of(found: &content::Fault) -> Kind {
    if matches!(found, content::Fault::Overlong { .. }) { Kind::Leftover } else { Kind::Content }
}
