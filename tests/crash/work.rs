//! File operations that are done on a mount and written down in a model.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, FallocateFlags};

use crate::content::Read;
use crate::disk::Disk;
use crate::model::{BLOCK, Entry, Model, Tree};

/// Works below one directory of a mount.
pub(crate) struct Work<'a> {
    disk: &'a Disk,
    top: PathBuf,
    pub(crate) model: Model,
    open: HashMap<PathBuf, File>,
}

impl<'a> Work<'a> {
    /// Makes its directory.
    pub(crate) fn new(disk: &'a Disk, top: PathBuf) -> Self {
        fs::create_dir(&top).unwrap();
        Self { disk, top, model: Model::default(), open: HashMap::new() }
    }

    fn id(&self, path: &str) -> usize {
        match self.model.entry(Path::new(path)) {
            Entry::File(id) => id,
            other => panic!("{path} is {other:?}"),
        }
    }

    fn handle(&mut self, path: &str) -> &File {
        let full = self.top.join(path);
        let open = || File::options().read(true).write(true).open(&full).unwrap();
        self.open.entry(PathBuf::from(path)).or_insert_with(open)
    }

    /// The length of a file.
    pub(crate) fn len(&self, path: &str) -> usize {
        self.model.files[self.id(path)].now().len()
    }

    /// The names of all files.
    pub(crate) fn names(&self) -> Vec<String> {
        let files = self.model.entries().filter(|(_, e)| matches!(e, Entry::File(_)));
        files.map(|(p, _)| p.to_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn create(&mut self, path: &str) {
        let at = self.disk.now();
        let file = File::options().read(true).write(true).create_new(true).open(self.top.join(path)).unwrap();
        self.open.insert(path.into(), file);
        self.model.create(at, Path::new(path));
    }

    pub(crate) fn mkdir(&mut self, path: &str) {
        let at = self.disk.now();
        fs::create_dir(self.top.join(path)).unwrap();
        self.model.mkdir(at, Path::new(path));
    }

    pub(crate) fn write(&mut self, path: &str, offset: usize, bytes: &[u8]) {
        let at = self.disk.now();
        let id = self.id(path);
        self.handle(path).write_all_at(bytes, offset as u64).unwrap();
        let end = offset + bytes.len();
        let file = &mut self.model.files[id];
        file.change(at, offset..end, |now| {
            now.resize(now.len().max(end), 0);
            now[offset..end].copy_from_slice(bytes);
        });
    }

    pub(crate) fn truncate(&mut self, path: &str, len: usize) {
        let at = self.disk.now();
        let id = self.id(path);
        self.handle(path).set_len(len as u64).unwrap();
        let before = self.len(path);
        self.model.files[id].change(at, len.min(before)..before, |now| now.resize(len, 0));
    }

    /// Punches a hole.
    pub(crate) fn punch(&mut self, path: &str, offset: usize, len: usize) {
        let at = self.disk.now();
        let id = self.id(path);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(self.handle(path), flags, offset as u64, len as u64).unwrap();
        let touched = offset.min(self.len(path))..(offset + len).min(self.len(path));
        self.model.files[id].change(at, touched.clone(), |now| now[touched].fill(0));
    }

    /// Fsyncs a file.
    pub(crate) fn sync(&mut self, path: &str) {
        let id = self.id(path);
        self.handle(path).sync_all().unwrap();
        self.model.files[id].ack(self.disk.now());
    }

    /// Fsyncs a directory.
    pub(crate) fn sync_dir(&mut self, path: &str) {
        File::open(self.top.join(path)).unwrap().sync_all().unwrap();
        self.model.ack_dir(self.disk.now(), Path::new(path), false);
    }

    /// Fsyncs a directory and the one above it, into which it was renamed with all that was known to be in it.
    pub(crate) fn sync_renamed_dir(&mut self, path: &str) {
        let above = Path::new(path).parent().unwrap();
        File::open(self.top.join(above)).unwrap().sync_all().unwrap();
        self.model.ack_dir(self.disk.now(), above, false);
        self.model.ack_dir(self.disk.now(), Path::new(path), true);
    }

    pub(crate) fn close(&mut self, path: &str) {
        self.open.remove(Path::new(path));
    }

    pub(crate) fn close_all(&mut self) {
        self.open.clear();
    }

    /// Starts writing back what is dirty, as the kernel does after half a minute.
    pub(crate) fn nudge(&mut self, path: &str) {
        rustix::fs::fadvise(self.handle(path), 0, None, Advice::DontNeed).unwrap();
    }

    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        let at = self.disk.now();
        fs::rename(self.top.join(from), self.top.join(to)).unwrap();
        self.model.rename(at, Path::new(from), Path::new(to));
        self.open.remove(Path::new(to));
        let moved: Vec<_> = self.open.keys().filter(|p| p.starts_with(from)).cloned().collect();
        for path in moved {
            let file = self.open.remove(&path).unwrap();
            let below = path.strip_prefix(from).unwrap();
            let new = if below.as_os_str().is_empty() { to.into() } else { Path::new(to).join(below) };
            self.open.insert(new, file);
        }
    }

    pub(crate) fn link(&mut self, from: &str, to: &str) {
        let at = self.disk.now();
        fs::hard_link(self.top.join(from), self.top.join(to)).unwrap();
        self.model.link(at, Path::new(from), Path::new(to));
    }

    pub(crate) fn unlink(&mut self, path: &str) {
        let at = self.disk.now();
        fs::remove_file(self.top.join(path)).unwrap();
        self.model.remove(at, Path::new(path));
        self.open.remove(Path::new(path));
    }

    /// Everything so far is on the platter.
    pub(crate) fn settle(&mut self) {
        self.model.ack_all(self.disk.now());
    }

    /// Where it works.
    pub(crate) fn top(&self) -> &Path {
        &self.top
    }
}

/// Reads a whole tree, with the blocks that do not read.
pub(crate) fn read_tree(top: &Path) -> Tree {
    let mut tree = Tree::default();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        let mut list = || -> io::Result<()> {
            for entry in fs::read_dir(top.join(&dir))? {
                let entry = entry?;
                let path = dir.join(entry.file_name());
                if entry.file_type()?.is_dir() {
                    todo.push(path);
                } else if entry.file_type()?.is_file() {
                    tree.files.insert(path.clone(), read_file(&top.join(&path)));
                }
            }
            Ok(())
        };
        let listed = list().map_err(|e| e.to_string());
        tree.dirs.insert(dir, listed);
    }
    tree
}

fn read_file(path: &Path) -> Read {
    match fs::read(path) {
        Ok(bytes) => return Read { bytes, ..Read::default() },
        Err(e) if e.raw_os_error() != Some(libc::EIO) => {
            return Read { refused: Some(e.to_string()), ..Read::default() };
        }
        Err(_) => {}
    }
    read_blocks(path).unwrap_or_else(|e| Read { refused: Some(e.to_string()), ..Read::default() })
}

fn read_blocks(path: &Path) -> io::Result<Read> {
    let file = File::open(path)?;
    let len = usize::try_from(file.metadata()?.len()).unwrap();
    let mut read = Read { bytes: vec![0; len], ..Read::default() };
    for (i, block) in read.bytes.chunks_mut(BLOCK).enumerate() {
        if file.read_exact_at(block, (i * BLOCK) as u64).is_err() {
            block.fill(0);
            read.failed.insert(i);
        }
    }
    Ok(read)
}
