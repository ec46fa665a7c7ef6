//! A tree that a tool copied out of the ciphertext view becomes a vault again.
//!
//! Each file of such a tree begins with a frame that says what it was (`format::view`). A file that is none, that is cut
//! or that was changed on the way is named, and the import ends incomplete. A frame is not authenticated: whoever could
//! write the copy could write it. So set-id bits of files, capabilities and device nodes are not taken from it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::error::{BackupError, Result};
use super::meter::Meter;
use super::repo::{ContentRef, Item};
use super::restore::own::Own;
use super::restore::place::{Contents, Placer, Step};
use super::restore::{Items, Restored, begin, keep_own, probe, refuse_pending};
use super::walk::is_kept;
use crate::format::config::{CONFIG_FILE, MAX_CONFIG};
use crate::format::journal::JOURNAL_DIR;
use crate::format::keks::{KEKS_FILE, MAX_KEKS_FILE};
use crate::format::layout::GROUP_DISK;
use crate::format::names::VAULT_DIR;
use crate::format::view::{DIR_FILE, FRAME, Frame};
use crate::vault::DiskFile;
use crate::vault::file::LowerFile;

/// Rights of a program: not taken from a copy that nobody vouches for.
const CAPABILITY: &str = "security.capability";
/// Files that are written at once.
const JOBS: usize = 4;
/// The longest symlink target on Linux.
const MAX_TARGET: u64 = 4096;

/// The files of a tree.
struct Tree<'t>(&'t Path);

/// Makes a vault, or completes one, at `target` from the tree at `tree`.
pub fn import(tree: &Path, target: &Path, meter: &Arc<Meter>) -> Result<Restored> {
    if !tree.join(DIR_FILE).is_file() {
        return Err(BackupError::Format {
            path: tree.to_owned(),
            why: format!("no copy of a ciphertext view: it has no {DIR_FILE}"),
        });
    }
    let (mut bytes, mut header) = (0u64, 0);
    let mut faults = Vec::new();
    each_item(tree, &mut faults, &mut |item| {
        bytes = bytes.saturating_add(item.size);
        header = item.xattrs.iter().map(|(_, value)| value.len()).max().unwrap_or(0).max(header);
        Ok(())
    })?;
    let comes = Own::new(text_of(tree, CONFIG_FILE, MAX_CONFIG), text_of(tree, KEKS_FILE, MAX_KEKS_FILE));
    let there = Own::of_vault(target)?;
    there.refuse_another(target, &comes.vault_id(tree)?.unwrap_or_default())?;
    refuse_pending(target)?;
    probe(target, bytes, header)?;
    let (top, _lock) = begin(target)?;
    let (kept, notes) = keep_own(&top, target, &comes)?;
    let contents = Tree(tree);
    let placer = Placer::new(&contents, top, meter);
    let items: Items<'_> = &mut |each| {
        each_item(tree, &mut Vec::new(), &mut |item| if kept.stays(&item.path) { Ok(()) } else { each(item) })
    };
    placer.place_all(JOBS, items)?;
    let mut done = placer.done.into_inner();
    done.notes = notes;
    done.problems.extend(faults);
    done.problems.sort();
    Ok(done)
}

/// The text of one of the vault's own files in a tree.
fn text_of(tree: &Path, name: &str, most: usize) -> Option<Vec<u8>> {
    let path = Path::new(VAULT_DIR).join(name);
    let item = framed(&tree.join(&path), path).ok().filter(|item| item.size <= most as u64)?;
    let mut text = Vec::new();
    let read = Tree(tree).each(&item, &mut |piece| {
        text.extend_from_slice(piece);
        Ok(())
    });
    read.ok().map(|()| text)
}

/// Goes through a tree, directories before what is in them.
fn each_item(
    tree: &Path,
    faults: &mut Vec<(PathBuf, String)>,
    each: &mut dyn FnMut(Item) -> Result<()>,
) -> Result<()> {
    let mut open = vec![PathBuf::new()];
    while let Some(dir) = open.pop() {
        if dir == Path::new(VAULT_DIR).join(JOURNAL_DIR) {
            faults.push((dir, "a journal; no copy of a view has one, and it would change files".into()));
            continue;
        }
        let at = tree.join(&dir);
        match framed(&at.join(DIR_FILE), dir.clone()) {
            Ok(item) if item.kind == libc::S_IFDIR => each(item)?,
            Ok(_) => {
                faults.push((dir, format!("its {DIR_FILE} is not that of a directory")));
                continue;
            }
            Err(why) => {
                faults.push((dir, format!("{DIR_FILE}: {why}; nothing in it is imported")));
                continue;
            }
        }
        let listed = std::fs::read_dir(&at).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        let mut listed = listed.map_err(BackupError::io(&at))?;
        listed.sort_by_key(std::fs::DirEntry::file_name);
        for entry in listed {
            let path = dir.join(entry.file_name());
            let kind = entry.file_type().map_err(BackupError::io(&path))?;
            if kind.is_dir() {
                open.push(path);
            } else if entry.file_name() != DIR_FILE {
                match framed(&entry.path(), path.clone()) {
                    Ok(item) if item.kind != libc::S_IFDIR => each(item)?,
                    Ok(_) => faults.push((path, "a directory's frame under a file's name".into())),
                    Err(why) => faults.push((path, why)),
                }
            }
        }
    }
    Ok(())
}

fn open(path: &Path) -> Step<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty()).map_err(|e| e.to_string())?.into())
}

/// What a file of the tree says it is. Its length must be what the frame says.
fn framed(file: &Path, path: PathBuf) -> Step<Item> {
    let file = open(file)?;
    let (frame, at) = frame_of(&file)?;
    let len = file.metadata().map_err(|e| e.to_string())?.len();
    let said = at.checked_add(frame.content).ok_or("its frame says a length that no file has")?;
    if len != said {
        return Err(format!("{len} bytes, its frame says {said}: it was cut on the way"));
    }
    let kind = frame.mode & libc::S_IFMT;
    if matches!(kind, libc::S_IFBLK | libc::S_IFCHR) {
        return Err("a device node; nobody vouches for the copy, so make it by mknod in the mount".into());
    }
    let target = if kind == libc::S_IFLNK {
        let mut target = vec![0; usize::try_from(frame.content.min(MAX_TARGET)).unwrap_or(0)];
        file.read_exact_at(&mut target, at).map_err(|e| e.to_string())?;
        Some(target)
    } else {
        None
    };
    Ok(Item {
        path,
        kind,
        mode: frame.mode & if kind == libc::S_IFDIR { 0o7777 } else { 0o777 },
        owner: frame.owner,
        modified: Some(frame.modified),
        size: if kind == libc::S_IFREG { frame.content } else { 0 },
        xattrs: frame.xattrs.into_iter().filter(|(name, _)| is_kept(name) && name != CAPABILITY).collect(),
        target,
        device: frame.rdev.into(),
        inode: (frame.inode != 0).then_some((0, frame.inode)),
        content: ContentRef::default(),
    })
}

/// The frame, and where the content begins.
fn frame_of(file: &File) -> Step<(Frame, u64)> {
    let mut bytes = Vec::with_capacity(FRAME);
    file.take(FRAME as u64).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    let len = Frame::len_of(&bytes).map_err(|e| e.to_string())?;
    file.take((len - FRAME) as u64).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    Ok((Frame::decode(&bytes).map_err(|e| e.to_string())?, len as u64))
}

impl Contents for Tree<'_> {
    fn is_there(&self, file: &DiskFile, item: &Item) -> Step<bool> {
        let mut at = 0;
        let mut same = true;
        self.each(item, &mut |bytes| {
            let mut there = vec![0; bytes.len()];
            let read = file.read_at(&mut there, at).map_err(|e| e.to_string())?;
            same &= read == bytes.len() && there == bytes;
            at += bytes.len() as u64;
            Ok(())
        })?;
        Ok(same)
    }

    fn each(&self, item: &Item, piece: &mut dyn FnMut(&[u8]) -> Step<()>) -> Step<()> {
        let file = DiskFile(open(&self.0.join(&item.path))?);
        let (_, mut at) = frame_of(&file.0)?;
        let mut left = item.size;
        let mut bytes = vec![0; usize::try_from(GROUP_DISK.min(left)).unwrap_or(0)];
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            let read = file.read_at(&mut bytes[..want], at).map_err(|e| e.to_string())?;
            if read == 0 {
                return Err("it ends early".into());
            }
            piece(&bytes[..read])?;
            at += read as u64;
            left -= read as u64;
        }
        Ok(())
    }
}
