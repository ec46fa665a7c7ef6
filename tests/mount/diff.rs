//! Random operations on a mount and on a plain directory: the same results, errors and trees, remounts included.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    CWD, FallocateFlags, RenameFlags, XattrFlags, copy_file_range, fallocate, listxattr, removexattr,
    renameat_with, setxattr,
};

use crate::harness::{Vault, can_mount, pattern};

/// Small repeatable random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }

    /// Offsets and lengths that like the edges of inline records, blocks and groups.
    fn offset(&mut self) -> u64 {
        let edge = *self.pick(&[0, 4064, 4096, 8192, 65_536, 524_288, 528_384, 1_048_576]);
        match self.below(3) {
            0 => edge,
            1 => (edge + self.below(40)).saturating_sub(20),
            _ => self.below(1_300_000),
        }
    }

    fn len(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(100),
            1 => 4096 * (1 + self.below(4)),
            2 => self.below(10_000),
            _ => self.below(300_000),
        }
    }
}

/// One operation, on paths relative to the top.
#[derive(Clone, Debug)]
enum Op {
    Create(PathBuf, u32),
    Write { slot: usize, at: u64, len: u64, seed: u64 },
    Read { slot: usize, at: u64, len: u64 },
    Truncate { slot: usize, len: u64 },
    Allocate { slot: usize, flags: u32, at: u64, len: u64 },
    Copy { from: usize, to: usize, at: u64, into: u64, len: u64 },
    Open { slot: usize, path: PathBuf, flags: i32 },
    Sync { slot: usize },
    Mkdir(PathBuf),
    Rmdir(PathBuf),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, u32),
    Link(PathBuf, PathBuf),
    Symlink(String, PathBuf),
    Chmod(PathBuf, u32),
    SetXattr(PathBuf, String, u64),
    RemoveXattr(PathBuf, String),
}

const SLOTS: usize = 4;

fn path(random: &mut Random) -> PathBuf {
    let long = "long-name-".repeat(22);
    let names = ["a", "b", "c", "d", &long];
    (0..1 + random.below(3)).map(|_| *random.pick(&names)).collect()
}

fn random_op(r: &mut Random) -> Op {
    let slot = |r: &mut Random| usize::try_from(r.below(SLOTS as u64)).unwrap();
    match r.below(34) {
        0..=2 => Op::Create(path(r), 0o600 + u32::try_from(r.below(64)).unwrap()),
        3..=8 => Op::Write { slot: slot(r), at: r.offset(), len: r.len(), seed: r.next() },
        9..=11 => Op::Read { slot: slot(r), at: r.offset(), len: r.len() },
        12..=13 => Op::Truncate { slot: slot(r), len: r.offset() },
        // KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE, plain allocation
        14..=15 => Op::Allocate {
            slot: slot(r),
            flags: *r.pick(&[1, 3, 16, 17, 0]),
            at: r.offset(),
            len: 1 + r.len(),
        },
        16 => Op::Copy { from: slot(r), to: slot(r), at: r.offset(), into: r.offset(), len: r.len() },
        17..=20 => {
            let flags = *r.pick(&[0, 0, libc::O_APPEND, libc::O_DIRECT, libc::O_TRUNC]);
            Op::Open { slot: slot(r), path: path(r), flags }
        }
        21 => Op::Sync { slot: slot(r) },
        22..=24 => Op::Mkdir(path(r)),
        25 => Op::Rmdir(path(r)),
        26 => Op::Unlink(path(r)),
        27..=28 => Op::Rename(path(r), path(r), *r.pick(&[0, 0, 1, 2])),
        29 => Op::Link(path(r), path(r)),
        30 => Op::Symlink("target".repeat(1 + usize::try_from(r.below(30)).unwrap()), path(r)),
        31 => Op::Chmod(path(r), u32::try_from(r.below(0o1000)).unwrap() | 0o600),
        32 => Op::SetXattr(path(r), format!("user.{}", r.below(4)), r.next()),
        _ => Op::RemoveXattr(path(r), format!("user.{}", r.below(4))),
    }
}

/// A tree under test and its open files.
struct Tree {
    top: PathBuf,
    /// Flags of `open` that are left out: disk filesystems want aligned memory for O_DIRECT, FUSE does not.
    without: i32,
    open: [Option<File>; SLOTS],
}

impl Tree {
    fn new(top: &Path, without: i32) -> Self {
        Self { top: top.to_owned(), without, open: Default::default() }
    }

    fn file(&self, slot: usize) -> io::Result<&File> {
        self.open[slot].as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    /// Runs an operation; gives what it saw, in words that must agree.
    fn run(&mut self, op: &Op) -> String {
        match self.try_run(op) {
            Ok(seen) => seen,
            Err(e) => format!("errno {:?}", e.raw_os_error()),
        }
    }

    fn try_run(&mut self, op: &Op) -> io::Result<String> {
        let at = |path: &Path| self.top.join(path);
        let done = String::new();
        match op {
            Op::Write { .. }
            | Op::Read { .. }
            | Op::Truncate { .. }
            | Op::Allocate { .. }
            | Op::Copy { .. }
            | Op::Sync { .. } => {
                return self.on_open_file(op);
            }
            Op::Create(path, mode) => {
                File::options().write(true).create_new(true).mode(*mode).open(at(path))?;
            }
            Op::Open { slot, path, flags } => {
                let file = File::options()
                    .read(true)
                    .write(true)
                    .custom_flags(flags & !self.without)
                    .open(at(path))?;
                self.open[*slot] = Some(file);
            }
            Op::Mkdir(path) => fs::create_dir(at(path))?,
            Op::Rmdir(path) => fs::remove_dir(at(path))?,
            Op::Unlink(path) => fs::remove_file(at(path))?,
            Op::Rename(from, to, flags) => {
                renameat_with(CWD, at(from), CWD, at(to), RenameFlags::from_bits_retain(*flags))?;
            }
            Op::Link(from, to) => fs::hard_link(at(from), at(to))?,
            Op::Symlink(target, path) => symlink(target, at(path))?,
            Op::Chmod(path, mode) => fs::set_permissions(at(path), fs::Permissions::from_mode(*mode))?,
            Op::SetXattr(path, name, seed) => {
                let value = pattern(usize::try_from(seed % 200).unwrap(), *seed);
                setxattr(at(path), &**name, &value, XattrFlags::empty())?;
            }
            Op::RemoveXattr(path, name) => removexattr(at(path), &**name)?,
        }
        Ok(done)
    }

    fn on_open_file(&self, op: &Op) -> io::Result<String> {
        match op {
            Op::Write { slot, at, len, seed } => {
                let data = pattern(usize::try_from(*len).unwrap(), *seed);
                self.file(*slot)?.write_all_at(&data, *at)?;
            }
            Op::Read { slot, at, len } => {
                let mut buf = vec![0; usize::try_from(*len).unwrap()];
                let n = self.file(*slot)?.read_at(&mut buf, *at)?;
                return Ok(format!("{n} bytes, {:016x}", digest(&buf[..n])));
            }
            Op::Truncate { slot, len } => self.file(*slot)?.set_len(*len)?,
            Op::Allocate { slot, flags, at, len } => {
                fallocate(self.file(*slot)?, FallocateFlags::from_bits_retain(*flags), *at, *len)?;
            }
            Op::Copy { from, to, at, into, len } => {
                // How much one call copies is its own affair: copied to the end, or to an error.
                let (mut at, mut into, mut left) = (*at, *into, usize::try_from(*len).unwrap());
                while left > 0 {
                    let n = copy_file_range(
                        self.file(*from)?,
                        Some(&mut at),
                        self.file(*to)?,
                        Some(&mut into),
                        left,
                    )?;
                    if n == 0 {
                        break;
                    }
                    left -= n;
                }
            }
            Op::Sync { slot } => self.file(*slot)?.sync_all()?,
            _ => unreachable!("operations on open files only"),
        }
        Ok(String::new())
    }

    /// Every entry with what `stat`, `readlink`, `listxattr` and reading say of it.
    fn describe(&self) -> String {
        let mut lines = Vec::new();
        describe(&self.top, Path::new(""), &mut lines);
        lines.sort();
        lines.join("\n")
    }
}

fn describe(top: &Path, at: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(top.join(at)).unwrap() {
        let inner = at.join(entry.unwrap().file_name());
        let path = top.join(&inner);
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let what = if kind.is_dir() {
            describe(top, &inner, lines);
            "directory".to_owned()
        } else if kind.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else {
            let content = fs::read(&path).unwrap();
            assert_eq!(content.len() as u64, meta.len(), "{}", path.display());
            format!("{} bytes {:016x} links {}", content.len(), digest(&content), meta.nlink())
        };
        let mut names = Vec::new();
        if !kind.is_symlink() {
            let mut buf = vec![0_u8; 65_536];
            let n = listxattr(&path, &mut buf).unwrap();
            names =
                buf[..n].split(|b| *b == 0).filter(|n| n.starts_with(b"user.")).map(<[u8]>::to_vec).collect();
            names.sort();
        }
        let values: Vec<_> = names
            .iter()
            .map(|name| {
                let mut value = vec![0_u8; 65_536];
                let name = std::str::from_utf8(name).unwrap();
                let n = rustix::fs::getxattr(&path, name, &mut value).unwrap();
                format!("{name}={:x}", digest(&value[..n]))
            })
            .collect();
        lines.push(format!("{} {:o} {what} {values:?}", inner.display(), meta.mode()));
    }
}

fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

fn differential(seed: u64, rounds: usize, ops: usize) {
    let vault = Vault::new();
    let plain_dir = vault.scratch.join("plain");
    fs::create_dir(&plain_dir).unwrap();
    let mut random = Random(seed);
    let mut plain = Tree::new(&plain_dir, libc::O_DIRECT);
    for round in 0..rounds {
        let mount = vault.mount();
        let mut sealed = Tree::new(mount.top(), 0);
        plain.open = Default::default();
        for i in 0..ops {
            let op = random_op(&mut random);
            let (expected, seen) = (plain.run(&op), sealed.run(&op));
            assert_eq!(seen, expected, "seed {seed}, round {round}, operation {i}: {op:?}");
        }
        let (expected, seen) = (plain.describe(), sealed.describe());
        assert_eq!(seen, expected, "seed {seed}, round {round}");
        drop(sealed);
        mount.unmount();
        vault.assert_sound();
    }
    let mount = vault.mount_with("ro");
    assert_eq!(Tree::new(mount.top(), 0).describe(), plain.describe(), "seed {seed}, at the end");
    mount.unmount();
}

/// Three seeds of random operations, with remounts and checks between the rounds.
#[test]
fn a_mount_behaves_like_a_plain_directory_1() {
    if can_mount() {
        differential(1, 4, 600);
    }
}

/// As above.
#[test]
fn a_mount_behaves_like_a_plain_directory_2() {
    if can_mount() {
        differential(20_240, 4, 600);
    }
}

/// As above; EFS_DIFF_SEED and EFS_DIFF_OPS choose another seed and a longer run.
#[test]
fn a_mount_behaves_like_a_plain_directory_3() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    if can_mount() {
        let ops = usize::try_from(number("EFS_DIFF_OPS").unwrap_or(600)).unwrap();
        differential(number("EFS_DIFF_SEED").unwrap_or(987_654_321), 4, ops);
    }
}
