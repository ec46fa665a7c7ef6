//! Random operations on a vault and on a plain directory beside it: answers, errnos, attributes, listings and
//! contents must agree, across renames, unlinked open files, hard links, long names and remounts.

#![allow(clippy::unwrap_used)]

mod fs_support;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use envelopefs::fs::{Caller, Fs, FsError, Ino, SetAttr};
use fs_support::{TOP, Vault, as_user, get, list, myself};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

/// xorshift64*: the same sequence for the same seed everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % n
    }

    fn name(&mut self) -> Vec<u8> {
        match self.below(8) {
            0 => vec![b'L'; 255],
            1 => vec![b'm'; 180],
            n => vec![b'a' + u8::try_from(n).unwrap()],
        }
    }
}

/// An inode that both sides hold without a name.
struct Known {
    ino: Ino,
    reference: OwnedFd,
}

/// An open file on both sides.
struct Handle {
    fh: u64,
    reference: std::fs::File,
    ino: Ino,
}

struct Pair {
    vault: Vault,
    fs: Fs,
    plain: PathBuf,
    random: Random,
    caller: Caller,
    known: Vec<Known>,
    handles: Vec<Handle>,
    numbers: BTreeMap<u64, Ino>,
    /// References to give back. As in the kernel, a directory is known for as long as something in it is.
    owed: RefCell<Vec<Ino>>,
}

fn code<T>(result: Result<T, FsError>) -> i32 {
    result.map_or_else(|e| e.errno(), |_| 0)
}

fn raw<T>(result: Result<T, Errno>) -> i32 {
    result.map_or_else(Errno::raw_os_error, |_| 0)
}

impl Pair {
    fn new(seed: u64) -> Self {
        let vault = Vault::new();
        let plain = vault.beside("plain");
        std::fs::create_dir(&plain).unwrap();
        let fs = vault.open();
        Self {
            vault,
            fs,
            plain,
            random: Random(seed),
            caller: myself(),
            known: vec![],
            handles: vec![],
            numbers: BTreeMap::new(),
            owed: RefCell::default(),
        }
    }

    /// Every directory of the plain side, relative to its top.
    fn dirs(&self) -> Vec<PathBuf> {
        let mut found = vec![PathBuf::new()];
        let mut at = 0;
        while at < found.len() {
            for entry in std::fs::read_dir(self.plain.join(&found[at])).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    let path = found[at].join(entry.file_name());
                    found.push(path);
                }
            }
            at += 1;
        }
        found
    }

    fn some_dir(&mut self) -> PathBuf {
        let dirs = self.dirs();
        let shallow: Vec<_> = dirs.into_iter().filter(|d| d.components().count() < 4).collect();
        let at = self.random.below(shallow.len());
        shallow[at].clone()
    }

    /// Looks a path up, one reference for each step; gives what to forget.
    fn resolve(&self, path: &Path) -> Result<(Ino, Vec<Ino>), FsError> {
        let mut at = TOP;
        let mut references = Vec::new();
        for part in path {
            match self.fs.lookup(at, part.as_bytes()) {
                Ok(found) => at = found.attr.ino,
                Err(e) => {
                    self.forget(&references);
                    return Err(e);
                }
            }
            references.push(at);
        }
        Ok((at, references))
    }

    fn forget(&self, references: &[Ino]) {
        self.owed.borrow_mut().extend_from_slice(references);
    }

    /// A random place on both sides: inode of the directory, name, plain path.
    fn place(&mut self) -> (Ino, Vec<Ino>, Vec<u8>, PathBuf) {
        let dir = self.some_dir();
        let name = self.random.name();
        let (ino, references) = self.resolve(&dir).unwrap();
        let path = self.plain.join(dir).join(OsStr::from_bytes(&name));
        (ino, references, name, path)
    }

    fn make(&mut self) -> (i32, i32) {
        let (dir, references, name, path) = self.place();
        let which = self.random.below(6);
        let (ours, theirs) = match which {
            0 | 1 => {
                let made = self.fs.create(&self.caller, dir, &name, 0o664, libc::O_RDWR | libc::O_EXCL);
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
                let reference =
                    usual().and_then(|()| rustix::fs::open(&path, flags, Mode::from_raw_mode(0o664)));
                let codes = (
                    made.as_ref().map_or_else(FsError::errno, |_| 0),
                    raw(reference.as_ref().map_err(|e| *e)),
                );
                if let (Ok((found, fh)), Ok(reference)) = (made, reference) {
                    self.handles.push(Handle { fh, reference: reference.into(), ino: found.attr.ino });
                }
                codes
            }
            2 | 3 => (
                self.entered(|fs| fs.mkdir(&self.caller, dir, &name, 0o775)),
                raw(usual().and_then(|()| rustix::fs::mkdirat(CWD, &path, Mode::from_raw_mode(0o775)))),
            ),
            4 => (
                self.entered(|fs| fs.symlink(&self.caller, dir, &name, b"../some/target")),
                raw(rustix::fs::symlinkat("../some/target", CWD, &path)),
            ),
            _ => (
                self.entered(|fs| fs.mknod(&self.caller, dir, &name, libc::S_IFIFO | 0o666, 0)),
                raw(usual().and_then(|()| {
                    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o666), 0)
                })),
            ),
        };
        self.forget(&references);
        (ours, theirs)
    }

    fn entered(&self, make: impl FnOnce(&Fs) -> Result<envelopefs::fs::Found, FsError>) -> i32 {
        let made = make(&self.fs);
        if let Ok(found) = &made {
            self.fs.forget(found.attr.ino, 1);
        }
        code(made)
    }

    fn remove(&mut self) -> (i32, i32) {
        let (dir, references, name, path) = self.place();
        // The kernel knows what it removes.
        let known = self.fs.lookup(dir, &name);
        let codes = if self.random.below(2) == 0 {
            (code(self.fs.unlink(dir, &name)), raw(rustix::fs::unlinkat(CWD, &path, AtFlags::empty())))
        } else {
            (code(self.fs.rmdir(dir, &name)), raw(rustix::fs::unlinkat(CWD, &path, AtFlags::REMOVEDIR)))
        };
        if let Ok(found) = known {
            self.fs.forget(found.attr.ino, 1);
        }
        self.forget(&references);
        codes
    }

    fn rename(&mut self) -> (i32, i32) {
        let (dir, references, name, path) = self.place();
        let (dir2, references2, name2, path2) = self.place();
        let flags = [0, 0, 0, 1, 2][self.random.below(5)];
        let known = (self.fs.lookup(dir, &name), self.fs.lookup(dir2, &name2));
        let ours = code(self.fs.rename(dir, &name, dir2, &name2, flags));
        let flags = RenameFlags::from_bits_retain(flags);
        let theirs = raw(rustix::fs::renameat_with(CWD, &path, CWD, &path2, flags));
        for found in [known.0, known.1].into_iter().flatten() {
            self.fs.forget(found.attr.ino, 1);
        }
        self.forget(&references);
        self.forget(&references2);
        (ours, theirs)
    }

    fn link(&mut self) -> (i32, i32) {
        let (dir, references, name, path) = self.place();
        let (dir2, references2, name2, path2) = self.place();
        let codes = match self.fs.lookup(dir, &name) {
            Ok(found) => {
                let made = self.fs.link(found.attr.ino, dir2, &name2);
                if made.is_ok() {
                    self.fs.forget(found.attr.ino, 1);
                }
                self.fs.forget(found.attr.ino, 1);
                if found.attr.mode & libc::S_IFMT == libc::S_IFDIR {
                    // Whether EPERM or EEXIST comes first is the kernel's business.
                    (code(made), libc::EPERM)
                } else {
                    (code(made), raw(rustix::fs::linkat(CWD, &path, CWD, &path2, AtFlags::empty())))
                }
            }
            Err(e) => (e.errno(), raw(rustix::fs::linkat(CWD, &path, CWD, &path2, AtFlags::empty()))),
        };
        self.forget(&references);
        self.forget(&references2);
        codes
    }

    fn open(&mut self) -> (i32, i32) {
        let (dir, references, name, path) = self.place();
        let found = self.fs.lookup(dir, &name);
        self.forget(&references);
        let Ok(found) = found else { return (0, 0) };
        let ino = found.attr.ino;
        let reference = rustix::fs::open(&path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).unwrap();
        if found.attr.mode & libc::S_IFMT == libc::S_IFREG && self.random.below(2) == 0 {
            let fh = self.fs.open_file(ino, libc::O_RDWR).unwrap();
            let reference = std::fs::File::options().read(true).write(true).open(&path).unwrap();
            self.handles.push(Handle { fh, reference, ino });
        } else {
            self.known.push(Known { ino, reference });
        }
        (0, 0)
    }

    fn change_open(&mut self) -> (i32, i32) {
        if self.handles.is_empty() {
            return (0, 0);
        }
        let at = self.random.below(self.handles.len());
        let offset = self.random.next() % 20_000;
        let byte = self.random.next().to_le_bytes()[0];
        let data = vec![byte; self.random.below(9000)];
        let Handle { fh, reference, ino } = &self.handles[at];
        match byte % 4 {
            0 => {
                let set = SetAttr { size: Some(offset), ..SetAttr::default() };
                self.fs.setattr(&self.caller, *ino, &set).unwrap();
                reference.set_len(offset).unwrap();
            }
            1 if self.handles.len() > 4 => {
                let Handle { fh, ino, .. } = self.handles.swap_remove(at);
                self.fs.release(fh);
                self.fs.forget(ino, 1);
            }
            _ => {
                self.fs.write(*fh, offset, &data, false).unwrap();
                reference.write_all_at(&data, offset).unwrap();
            }
        }
        (0, 0)
    }

    fn change_known(&mut self) -> (i32, i32) {
        if self.known.is_empty() {
            return (0, 0);
        }
        let at = self.random.below(self.known.len());
        let which = self.random.below(4);
        let mode = u32::try_from(self.random.below(0o1000)).unwrap() | 0o700;
        let Known { ino, reference } = &self.known[at];
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(reference));
        let kind = self.fs.getattr(*ino).unwrap().mode & libc::S_IFMT;
        let keeps = kind == libc::S_IFREG || kind == libc::S_IFDIR;
        match which {
            0 if self.known.len() > 6 => {
                let gone = self.known.swap_remove(at);
                self.fs.forget(gone.ino, 1);
            }
            1 if kind != libc::S_IFLNK => {
                let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
                self.fs.setattr(&self.caller, *ino, &set).unwrap();
                rustix::fs::chmodat(CWD, &path, Mode::from_raw_mode(mode), AtFlags::empty()).unwrap();
            }
            2 if keeps => {
                let flags = i32::try_from(mode % 3).unwrap();
                let ours = code(self.fs.setxattr(*ino, b"user.test", b"some value", flags));
                let flags = XattrFlags::from_bits_retain(flags.cast_unsigned());
                return (ours, raw(rustix::fs::setxattr(&path, "user.test", b"some value", flags)));
            }
            3 if keeps => {
                let ours = code(self.fs.removexattr(*ino, b"user.test"));
                return (ours, raw(rustix::fs::removexattr(&path, "user.test")));
            }
            _ => {}
        }
        (0, 0)
    }

    fn step(&mut self) -> (i32, i32) {
        match self.random.below(20) {
            0..6 => self.make(),
            6..9 => self.remove(),
            9..13 => self.rename(),
            13 => self.link(),
            14..16 => self.open(),
            16..18 => self.change_open(),
            _ => self.change_known(),
        }
    }

    /// What is held without a name is the same on both sides.
    fn compare_held(&self) {
        let same = |ino: Ino, reference: &dyn AsFd| {
            let ours = self.fs.getattr(ino).unwrap();
            let theirs = rustix::fs::statx(
                reference.as_fd(),
                c"",
                AtFlags::EMPTY_PATH,
                rustix::fs::StatxFlags::BASIC_STATS,
            )
            .unwrap();
            assert_eq!((ours.mode, ours.nlink), (u32::from(theirs.stx_mode), theirs.stx_nlink));
            if ours.mode & libc::S_IFMT != libc::S_IFDIR {
                assert_eq!(ours.size, theirs.stx_size);
            }
        };
        self.known.iter().for_each(|k| same(k.ino, &k.reference));
        for handle in &self.handles {
            same(handle.ino, &handle.reference);
            let len = usize::try_from(self.fs.getattr(handle.ino).unwrap().size).unwrap();
            let (mut ours, mut theirs) = (vec![1; len], vec![2; len]);
            assert_eq!(self.fs.read(handle.fh, 0, &mut ours).unwrap(), len);
            handle.reference.read_exact_at(&mut theirs, 0).unwrap();
            assert!(ours == theirs, "content of inode {}", handle.ino);
        }
    }

    /// Both trees are the same.
    fn compare_trees(&mut self) {
        let mut numbers = BTreeMap::new();
        for dir in self.dirs() {
            let (ino, references) = self.resolve(&dir).unwrap();
            let ours = list(&self.fs, ino);
            let mut theirs: Vec<Vec<u8>> = std::fs::read_dir(self.plain.join(&dir))
                .unwrap()
                .map(|e| e.unwrap().file_name().as_bytes().to_vec())
                .collect();
            theirs.sort();
            assert_eq!(ours.iter().map(|e| e.0.clone()).collect::<Vec<_>>(), theirs);
            for (name, listed) in ours {
                let path = self.plain.join(&dir).join(OsStr::from_bytes(&name));
                self.compare_entry(ino, &name, listed, &path, &mut numbers);
            }
            self.forget(&references);
        }
        self.numbers = numbers;
    }

    fn compare_entry(
        &self,
        dir: Ino,
        name: &[u8],
        listed: Ino,
        path: &Path,
        numbers: &mut BTreeMap<u64, Ino>,
    ) {
        use std::os::unix::fs::MetadataExt;
        let found = self.fs.lookup(dir, name).unwrap();
        let ours = found.attr;
        let theirs = std::fs::symlink_metadata(path).unwrap();
        assert_eq!(ours.ino, listed);
        assert_eq!(*numbers.entry(theirs.ino()).or_insert(ours.ino), ours.ino, "hard links are one inode");
        let summary = (ours.mode, u64::from(ours.nlink), ours.uid, ours.gid);
        assert_eq!(summary, (theirs.mode(), theirs.nlink(), theirs.uid(), theirs.gid()), "{path:?}");
        match ours.mode & libc::S_IFMT {
            libc::S_IFREG => {
                assert_eq!(ours.size, theirs.size());
                assert!(get(&self.fs, ours.ino).unwrap() == std::fs::read(path).unwrap(), "{path:?}");
            }
            libc::S_IFLNK => {
                assert_eq!(ours.size, theirs.size());
                let target = self.fs.readlink(ours.ino).unwrap();
                assert_eq!(target, std::fs::read_link(path).unwrap().as_os_str().as_bytes());
            }
            _ => {}
        }
        let mut value = [0; 100];
        let theirs = rustix::fs::lgetxattr(path, "user.test", &mut value[..]);
        match (self.fs.getxattr(ours.ino, b"user.test"), theirs) {
            (Ok(ours), Ok(len)) => assert_eq!(ours, value[..len]),
            (ours, theirs) => assert_eq!(code(ours), raw(theirs)),
        }
        self.fs.forget(ours.ino, 1);
    }

    /// Lets go of everything; then nothing is known any more.
    fn forget_all(&mut self) {
        for known in self.known.drain(..) {
            self.fs.forget(known.ino, 1);
        }
        for handle in self.handles.drain(..) {
            self.fs.release(handle.fh);
            self.fs.forget(handle.ino, 1);
        }
        let owed = self.owed.take();
        owed.iter().for_each(|ino| self.fs.forget(*ino, 1));
        owed.iter().for_each(|ino| assert_eq!(code(self.fs.getattr(*ino)), libc::ESTALE));
    }

    fn remount(&mut self) {
        self.forget_all();
        self.fs.close();
        self.fs = self.vault.open();
    }
}

/// The umask of the callers: a create leaves this thread the one that it worked under last.
fn usual() -> rustix::io::Result<()> {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Ok(())
}

fn agree(seed: u64, steps: usize) {
    let mut pair = Pair::new(seed);
    for step in 0..steps {
        let (ours, theirs) = pair.step();
        assert_eq!(ours, theirs, "seed {seed}, step {step}");
        if step % 20 == 0 {
            pair.compare_held();
        }
        if step % 250 == 249 {
            pair.compare_trees();
        }
        if step % 500 == 499 {
            pair.forget_all();
        }
        if step % 500 == 499 {
            let before = pair.numbers.clone();
            pair.remount();
            pair.compare_trees();
            assert_eq!(before, pair.numbers, "inode numbers outlive the mount");
        }
    }
}

/// A thousand and more random operations have the same effect on a vault and on a plain directory.
#[test]
fn a_vault_behaves_like_a_plain_directory() {
    for seed in [1, 2, 3] {
        agree(seed, 1000);
    }
}

/// So does a vault of an ordinary user.
#[test]
fn an_ordinary_users_vault_behaves_the_same() {
    as_user(|| agree(4, 1000));
}
