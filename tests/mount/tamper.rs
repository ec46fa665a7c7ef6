//! The tamper matrix: whatever is changed in the ciphertext, no other plaintext is shown for it.
//!
//! Each case changes lower files while the vault is not mounted, then reads through a mount. What was hit gives EIO (a
//! header: also ENOKEY or EKEYREJECTED), what was not stays readable, the log names the fault, and `check` finds it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use envelopefs::format::header::{DIR_XATTR, HEADER_XATTR};
use envelopefs::format::layout::{
    BLOCK, BlockIndex, GROUP_DISK, GROUP_PLAIN, GroupIndex, MAP_PAGE, disk_len,
};
use envelopefs::format::map::{ENTRIES_AT, ENTRY, NONCE_AT, TAG_AT};
use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};

use crate::harness::{Vault, can_mount, pattern, run, said, sh, text};

/// Three groups and a bit: the last block is short.
const BIG: usize = 3 * GROUP_PLAIN as usize + 10 * BLOCK + 1234;
/// Where the sparse file has data again: behind a second leader.
const FAR: u64 = 1 << 30;

/// A plain file of the vault and its lower file.
struct Sealed {
    name: &'static str,
    lower: PathBuf,
    pristine: PathBuf,
}

impl Sealed {
    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        File::open(&self.pristine).unwrap().read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        File::options().write(true).open(&self.lower).unwrap().write_all_at(bytes, at).unwrap();
    }

    fn flip(&self, at: u64) {
        self.put(at, &[self.bytes(at, 1)[0] ^ 0x10]);
    }

    fn zero(&self, at: u64, len: usize) {
        self.put(at, &vec![0; len]);
    }

    fn cut(&self, len: u64) {
        File::options().write(true).open(&self.lower).unwrap().set_len(len).unwrap();
    }

    fn header(&self) -> Vec<u8> {
        xattr(&self.pristine, HEADER_XATTR)
    }

    fn set_header(&self, header: &[u8]) {
        setxattr(&self.lower, HEADER_XATTR, header, XattrFlags::empty()).unwrap();
    }

    fn restore(&self) {
        run(Command::new("cp").args(["-a", "--sparse=always"]).arg(&self.pristine).arg(&self.lower));
    }
}

/// A vault with files of every form.
struct Sample {
    vault: Vault,
    big: Sealed,
    other: Sealed,
    small: Sealed,
    sparse: Sealed,
}

impl Sample {
    fn new() -> Self {
        let vault = Vault::new();
        let mount = vault.mount();
        fs::write(mount.path("big"), pattern(BIG, 1)).unwrap();
        fs::write(mount.path("other"), pattern(BIG, 2)).unwrap();
        fs::write(mount.path("small"), pattern(1000, 3)).unwrap();
        let sparse = File::create(mount.path("sparse")).unwrap();
        sparse.write_all_at(&pattern(3 * BLOCK, 4), 0).unwrap();
        sparse.write_all_at(&pattern(3 * BLOCK, 5), FAR + 5 * GROUP_PLAIN).unwrap();
        drop(sparse);
        let lower = ["big", "other", "small", "sparse"].map(|n| vault.lower(&mount.path(n)));
        mount.unmount();
        let sealed = |name: &'static str, lower: &Path| {
            let pristine = vault.scratch.join(name);
            run(Command::new("cp").args(["-a", "--sparse=always"]).arg(lower).arg(&pristine));
            Sealed { name, lower: lower.to_owned(), pristine }
        };
        let [big, other, small, sparse] = lower;
        let big = sealed("big", &big);
        let other = sealed("other", &other);
        let small = sealed("small", &small);
        let sparse = sealed("sparse", &sparse);
        vault.assert_sound();
        Self { vault, big, other, small, sparse }
    }

    /// Tampers, then expects `broken` places to give EIO and `intact` ones their old content.
    fn case(
        &self,
        what: &str,
        tamper: impl FnOnce(&Self),
        broken: &[(&Sealed, u64)],
        intact: &[(&Sealed, u64)],
    ) {
        tamper(self);
        let logged = self.vault.log().len();
        let mount = self.vault.mount();
        for (file, at) in broken {
            let errno = read_at(&mount.path(file.name), *at).err();
            let expected = [libc::EIO, libc::ENOKEY, libc::EKEYREJECTED];
            assert!(
                errno.is_some_and(|e| expected.contains(&e)),
                "{what}: {} at {at} gave {errno:?}",
                file.name
            );
        }
        for (file, at) in intact {
            let seen = read_at(&mount.path(file.name), *at);
            assert!(seen.as_deref() == Ok(&content(file.name, *at)[..]), "{what}: {} at {at}", file.name);
        }
        mount.unmount();
        assert!(self.vault.log().len() > logged, "{what}: nothing in the log");
        let (code, said) = self.vault.check();
        assert!(code != 0 && !said.contains("panicked"), "{what}: check gave {code}: {said}");
        for (file, _) in broken {
            assert!(said.contains(file.name), "{what}: check does not name {}: {said}", file.name);
            file.restore();
        }
    }
}

/// What a file of the sample holds at an offset, up to 1,000 bytes of one block.
fn content(name: &str, at: u64) -> Vec<u8> {
    let (bytes, start) = match name {
        "big" => (pattern(BIG, 1), 0),
        "other" => (pattern(BIG, 2), 0),
        "small" => (pattern(1000, 3), 0),
        "sparse" if at >= FAR => (pattern(3 * BLOCK, 5), FAR + 5 * GROUP_PLAIN),
        _ => (pattern(3 * BLOCK, 4), 0),
    };
    let from = usize::try_from(at - start).unwrap();
    bytes[from..bytes.len().min(from + 1000)].to_vec()
}

/// Reads up to 1,000 bytes; the errno of opening or reading.
fn read_at(path: &Path, at: u64) -> Result<Vec<u8>, i32> {
    let mut bytes = vec![0; 1000];
    let errno = |e: std::io::Error| e.raw_os_error().unwrap_or(0);
    let file = File::open(path).map_err(errno)?;
    let n = file.read_at(&mut bytes, at).map_err(errno)?;
    bytes.truncate(n);
    Ok(bytes)
}

fn xattr(path: &Path, name: &str) -> Vec<u8> {
    let mut value = vec![0; 4096];
    let n = getxattr(path, name, &mut value).unwrap();
    value.truncate(n);
    value
}

/// Plaintext offset of a block, and offset of its ciphertext.
fn block(index: u64) -> (u64, u64) {
    (BlockIndex(index).plain_start(), BlockIndex(index).disk_start())
}

/// Offset in the lower file of a block's map entry.
fn entry(index: u64) -> u64 {
    BlockIndex(index).group().disk_start() + (ENTRIES_AT + BlockIndex(index).slot() * ENTRY) as u64
}

/// One bit flipped in any part of a block: that block is lost, the ones beside it are not.
#[test]
fn a_flipped_bit_in_a_block_is_refused() {
    if !can_mount() {
        return;
    }
    let s = &Sample::new();
    let last = BIG as u64 / BLOCK as u64;
    for (index, within) in [(0, 0), (5, 2048), (127, 4095), (128, 0), (200, 17), (last, 0), (last, 1233)] {
        let (plain, disk) = block(index);
        let beside = if index == 0 { 1 } else { index - 1 };
        let what = format!("block {index} byte {within}");
        let intact = [(&s.big, block(beside).0), (&s.other, plain)];
        s.case(&what, |s| s.big.flip(disk + within), &[(&s.big, plain)], &intact);
        assert!(
            s.vault.log().contains(&format!("block {index}:")),
            "the log names block {index}: {}",
            s.vault.log()
        );
    }
}

/// One bit flipped in any field of a map page: its group is lost, the others are not (group 0 also carries the length).
#[test]
fn a_flipped_bit_in_a_map_page_is_refused() {
    if !can_mount() {
        return;
    }
    let s = &Sample::new();
    let fields = [0, 1, 2, NONCE_AT, TAG_AT, 32, 40, 48, 256, ENTRIES_AT, ENTRIES_AT + 127 * ENTRY + 27];
    for at in fields {
        let page = GroupIndex(1).disk_start();
        let (before, lost, behind) = (0, GROUP_PLAIN + 100, 2 * GROUP_PLAIN);
        let what = format!("map page 1 byte {at}");
        let intact = [(&s.big, before), (&s.big, behind)];
        s.case(&what, |s| s.big.flip(page + at as u64), &[(&s.big, lost)], &intact);
        let what = format!("map page 0 byte {at}");
        s.case(&what, |s| s.big.flip(at as u64), &[(&s.big, 0)], &[(&s.other, 0), (&s.small, 0)]);
    }
    // A later leader, whose bitmap tells which groups exist.
    let leader = GroupIndex(2048).disk_start();
    for at in [0, TAG_AT as u64, 256, 511] {
        s.case(
            "second leader",
            |s| s.sparse.flip(leader + at),
            &[(&s.sparse, FAR + 5 * GROUP_PLAIN)],
            &[(&s.sparse, 0)],
        );
    }
}

/// One bit flipped anywhere in an inline record.
#[test]
fn a_flipped_bit_in_an_inline_record_is_refused() {
    if !can_mount() {
        return;
    }
    let s = &Sample::new();
    for at in [0, 1, 2, 3, 4, 16, 32, 1031] {
        s.case(&format!("inline byte {at}"), |s| s.small.flip(at), &[(&s.small, 0)], &[(&s.big, 0)]);
    }
    s.case("inline zeroed", |s| s.small.zero(0, 1032), &[(&s.small, 0)], &[]);
    s.case("inline cut to its head", |s| s.small.cut(32), &[(&s.small, 0)], &[]);
    s.case("inline cut by a byte", |s| s.small.cut(1031), &[(&s.small, 0)], &[]);
    s.case("inline cut to nothing", |s| s.small.cut(0), &[(&s.small, 0)], &[]);
}

/// Blocks moved, swapped or brought from another file, with and without their map entries.
#[test]
fn moved_blocks_are_refused() {
    if !can_mount() {
        return;
    }
    let s = &Sample::new();
    let (plain5, disk5) = block(5);
    let (plain9, disk9) = block(9);
    let between = [(&s.big, block(7).0), (&s.other, plain9)];
    s.case("5 over 9", |s| s.big.put(disk9, &s.big.bytes(disk5, BLOCK)), &[(&s.big, plain9)], &between);
    let swap = |s: &Sample| {
        s.big.put(disk9, &s.big.bytes(disk5, BLOCK));
        s.big.put(disk5, &s.big.bytes(disk9, BLOCK));
    };
    s.case("5 and 9 swapped", swap, &[(&s.big, plain5), (&s.big, plain9)], &between);
    let with_entries = |s: &Sample| {
        swap(s);
        s.big.put(entry(9), &s.big.bytes(entry(5), ENTRY));
        s.big.put(entry(5), &s.big.bytes(entry(9), ENTRY));
    };
    let elsewhere = [(&s.other, plain9)];
    s.case("swapped with their entries", with_entries, &[(&s.big, plain5), (&s.big, plain9)], &elsewhere);
    let foreign = |s: &Sample| s.big.put(disk9, &s.other.bytes(disk9, BLOCK));
    s.case("from another file", foreign, &[(&s.big, plain9)], &between);
    let group = |s: &Sample| s.big.put(GROUP_DISK, &s.other.bytes(GROUP_DISK, GROUP_DISK as usize));
    let around = [(&s.big, 0), (&s.big, 2 * GROUP_PLAIN)];
    s.case(
        "a group from another file",
        group,
        &[(&s.big, GROUP_PLAIN), (&s.big, GROUP_PLAIN + 50_000)],
        &around,
    );
    let groups = |s: &Sample| {
        s.big.put(GROUP_DISK, &s.big.bytes(2 * GROUP_DISK, GROUP_DISK as usize));
        s.big.put(2 * GROUP_DISK, &s.big.bytes(GROUP_DISK, GROUP_DISK as usize));
    };
    s.case("two groups swapped", groups, &[(&s.big, GROUP_PLAIN), (&s.big, 2 * GROUP_PLAIN)], &[(&s.big, 0)]);
    let whole = |s: &Sample| assert!(fs::copy(&s.other.pristine, &s.big.lower).is_ok());
    s.case("another file's content", whole, &[(&s.big, 0)], &[(&s.other, 0)]);
}

/// Zeros in the place of a block, of its entry, of a map page, a group, a leader: never a hole.
#[test]
fn injected_holes_are_refused() {
    if !can_mount() {
        return;
    }
    let s = &Sample::new();
    let (plain, disk) = block(130);
    let group = GroupIndex(1).disk_start();
    let around = [(&s.big, 0), (&s.big, 2 * GROUP_PLAIN)];
    s.case("block", |s| s.big.zero(disk, BLOCK), &[(&s.big, plain)], &[(&s.big, block(129).0)]);
    let with_entry = |s: &Sample| {
        s.big.zero(disk, BLOCK);
        s.big.zero(entry(130), ENTRY);
    };
    s.case("block and entry", with_entry, &[(&s.big, plain)], &around);
    s.case("map page", |s| s.big.zero(group, MAP_PAGE), &[(&s.big, plain)], &around);
    s.case(
        "group",
        |s| s.big.zero(group, GROUP_DISK as usize),
        &[(&s.big, GROUP_PLAIN), (&s.big, plain)],
        &around,
    );
    let punch = |s: &Sample| {
        let range = ["-p", "-o", &group.to_string(), "-l", &GROUP_DISK.to_string()].map(str::to_owned);
        run(Command::new("fallocate").args(range).arg(&s.big.lower));
    };
    s.case("punched group", punch, &[(&s.big, plain)], &around);
    s.case("leader", |s| s.big.zero(0, MAP_PAGE), &[(&s.big, 0)], &[(&s.other, 0)]);
    s.case("first group", |s| s.big.zero(0, GROUP_DISK as usize), &[(&s.big, 0)], &[(&s.other, 0)]);
    let all = |s: &Sample| s.big.zero(0, usize::try_from(disk_len(BIG as u64)).unwrap());
    s.case("whole file", all, &[(&s.big, 0)], &[(&s.other, 0)]);
    let far = FAR + 5 * GROUP_PLAIN;
    let leader = GroupIndex(2048).disk_start();
    s.case("second leader", |s| s.sparse.zero(leader, MAP_PAGE), &[(&s.sparse, far)], &[(&s.sparse, 0)]);
    let group = GroupIndex(2048 + 5).disk_start();
    s.case(
        "far group",
        |s| s.sparse.zero(group, GROUP_DISK as usize),
        &[(&s.sparse, far)],
        &[(&s.sparse, 0)],
    );
}

/// A file cut at any kind of boundary is noticed on open or read.
#[test]
fn cuts_are_refused() {
    if !can_mount() {
        return;
    }
    let s = &Sample::new();
    let whole = disk_len(BIG as u64);
    let lengths = [
        ("a byte", whole - 1),
        ("the short last block", whole - 1234),
        ("a block", whole - 1234 - BLOCK as u64),
        ("the last group", 3 * GROUP_DISK),
        ("to a map page", 2 * GROUP_DISK + MAP_PAGE as u64),
        ("inside a map page", 2 * GROUP_DISK + 100),
        ("two groups", 2 * GROUP_DISK),
        ("to one group", GROUP_DISK),
        ("to one block", 2 * BLOCK as u64),
        ("to the leader", BLOCK as u64),
        ("to what looks inline", 1000),
        ("to an inline head", 32),
        ("to a byte", 1),
        ("to nothing", 0),
    ];
    for (what, len) in lengths {
        s.case(what, |s| s.big.cut(len), &[(&s.big, BIG as u64 - 500)], &[(&s.other, BIG as u64 - 500)]);
    }
    let len = disk_len(FAR + 5 * GROUP_PLAIN + 3 * BLOCK as u64);
    s.case(
        "a sparse file",
        |s| s.sparse.cut(len / 2),
        &[(&s.sparse, FAR + 5 * GROUP_PLAIN)],
        &[(&s.small, 0)],
    );
}

/// An old version of a block, with or without its old map entry, beside the new rest of its group.
#[test]
fn old_blocks_are_refused() {
    if !can_mount() {
        return;
    }
    let s = &Sample::new();
    let mount = s.vault.mount();
    let file = File::options().write(true).open(mount.path("big")).unwrap();
    file.write_all_at(&pattern(2 * BLOCK, 99), block(130).0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    mount.unmount();
    s.vault.assert_sound();
    let newer = s.vault.scratch.join("newer");
    fs::copy(&s.big.lower, &newer).unwrap();
    let (plain, disk) = block(130);
    let around = [(&s.big, 0), (&s.big, 2 * GROUP_PLAIN)];
    // `put` takes old bytes from the first version, which `pristine` still is.
    s.case("old block", |s| s.big.put(disk, &s.big.bytes(disk, BLOCK)), &[(&s.big, plain)], &around);
    fs::copy(&newer, &s.big.lower).unwrap();
    let with_entry = |s: &Sample| {
        s.big.put(disk, &s.big.bytes(disk, BLOCK));
        s.big.put(entry(130), &s.big.bytes(entry(130), ENTRY));
    };
    s.case("old block and entry", with_entry, &[(&s.big, plain)], &around);
    fs::copy(&newer, &s.big.lower).unwrap();
    let group = GroupIndex(1).disk_start();
    s.case("old page", |s| s.big.put(group, &s.big.bytes(group, MAP_PAGE)), &[(&s.big, plain)], &around);
}

/// Headers that are another file's, another vault's, changed in any field, cut, or lost.
#[test]
fn foreign_headers_are_refused() {
    if !can_mount() {
        return;
    }
    let s = &Sample::new();
    let stranger = Vault::new();
    let mount = stranger.mount();
    fs::write(mount.path("f"), pattern(1000, 3)).unwrap();
    let lower = stranger.lower(&mount.path("f"));
    mount.unmount();
    let strange = xattr(&lower, HEADER_XATTR);
    let intact = [(&s.other, 0)];
    for file in [&s.big, &s.small] {
        let broken = [(file, 0)];
        s.case("another file's header", |s| file.set_header(&s.other.header()), &broken, &intact);
        s.case("another vault's header", |_| file.set_header(&strange), &broken, &intact);
        let with_content = |_: &Sample| {
            fs::copy(&lower, &file.lower).unwrap();
            file.set_header(&strange);
        };
        s.case("another vault's file", with_content, &broken, &intact);
        for at in [0, 1, 2, 4, 15, 16, 47, 63] {
            let mut header = file.header();
            header[at] ^= 0x40;
            s.case(&format!("header byte {at}"), |_| file.set_header(&header), &broken, &intact);
        }
        s.case("cut header", |_| file.set_header(&file.header()[..63]), &broken, &intact);
        s.case("empty header", |_| file.set_header(b""), &broken, &intact);
        s.case("no header", |_| removexattr(&file.lower, HEADER_XATTR).unwrap(), &broken, &intact);
    }
}

/// The volume config: any changed byte, a cut, another vault's: the mount refuses.
#[test]
fn a_changed_config_is_refused() {
    if !can_mount() {
        return;
    }
    let (vault, stranger) = (Vault::new(), Vault::new());
    let path = vault.dir.join(".envelopefs/vault.toml");
    let good = fs::read(&path).unwrap();
    let mut forged: Vec<(String, Vec<u8>)> = (0..good.len())
        .step_by(good.len() / 24 + 1)
        .chain([good.len() - 3])
        .map(|at| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            (format!("byte {at}"), bytes)
        })
        .collect();
    forged.push(("no last line".into(), good[..good.len() - 20].to_vec()));
    forged.push(("cut in two".into(), good[..good.len() / 2].to_vec()));
    forged.push(("empty".into(), Vec::new()));
    forged.push(("a line more".into(), [b"x = 1\n".to_vec(), good.clone()].concat()));
    forged.push(("a line behind".into(), [good.clone(), b"x = 1\n".to_vec()].concat()));
    forged.push(("another vault's".into(), fs::read(stranger.dir.join(".envelopefs/vault.toml")).unwrap()));
    for (what, bytes) in forged {
        fs::write(&path, bytes).unwrap();
        let output = vault.command(&["mount", text(&vault.dir), text(&vault.mnt)]).output().unwrap();
        if output.status.success() {
            sh(Path::new("/"), &format!("fusermount3 -uz {}", text(&vault.mnt)));
            panic!("{what}: mounted");
        }
        assert!(!said(&output).contains("panicked"), "{what}: {}", said(&output));
        assert_ne!(vault.check().0, 0, "{what}: check finds nothing");
    }
    fs::write(&path, &good).unwrap();
    vault.mount().unmount();
}

/// A directory's id exchanged or lost: its names do not show as others, and `check` finds it.
#[test]
fn foreign_directory_ids_are_refused() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    sh(mount.top(), "mkdir a b; echo x > a/f; echo y > b/f");
    let (a, b) = (vault.lower(&mount.path("a")), vault.lower(&mount.path("b")));
    mount.unmount();
    let good = xattr(&a, DIR_XATTR);
    let set = |value: &[u8]| setxattr(&a, DIR_XATTR, value, XattrFlags::empty()).unwrap();
    for (what, forged) in
        [("another's", xattr(&b, DIR_XATTR)), ("short", good[..15].to_vec()), ("empty", Vec::new())]
    {
        set(&forged);
        let mount = vault.mount();
        assert!(fs::read(mount.path("a/f")).is_err(), "{what}");
        let listed = fs::read_dir(mount.path("a")).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
        assert!(listed.as_ref().map_or(true, Vec::is_empty), "{what}: {listed:?}");
        assert_eq!(fs::read_to_string(mount.path("b/f")).unwrap(), "y\n");
        mount.unmount();
        assert_ne!(vault.check().0, 0, "{what}");
    }
    removexattr(&a, DIR_XATTR).unwrap();
    let mount = vault.mount();
    assert!(fs::read(mount.path("a/f")).is_err());
    assert_eq!(fs::read_to_string(mount.path("b/f")).unwrap(), "y\n");
    mount.unmount();
    assert_ne!(vault.check().0, 0);
    set(&good);
    vault.assert_sound();
}

/// Changed symlink targets and xattr values give EIO, not another target or value; moved ones neither.
#[test]
fn changed_symlinks_and_xattrs_are_refused() {
    if !can_mount() {
        return;
    }
    let vault = Vault::new();
    let mount = vault.mount();
    sh(
        mount.top(),
        "ln -s target1 l1; ln -s target2 l2; echo x > f; setfattr -n user.a -v one f; setfattr -n user.b -v two f",
    );
    let (l1, l2, f) =
        (vault.lower(&mount.path("l1")), vault.lower(&mount.path("l2")), vault.lower(&mount.path("f")));
    mount.unmount();
    let (target1, target2) = (fs::read_link(&l1).unwrap(), fs::read_link(&l2).unwrap());
    let relink = |link: &Path, target: &Path| {
        fs::remove_file(link).unwrap();
        std::os::unix::fs::symlink(target, link).unwrap();
    };
    relink(&l1, Path::new("/etc/passwd"));
    let mut changed = target2.to_str().unwrap().as_bytes().to_vec();
    let middle = changed.len() / 2;
    changed[middle] = if changed[middle] == b'A' { b'B' } else { b'A' };
    relink(&l2, Path::new(std::str::from_utf8(&changed).unwrap()));
    let names = sh(&vault.dir, &format!("getfattr -m 'user.efs.[xy]' {} | grep '^user'", text(&f)));
    let names: Vec<_> = names.lines().collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let (one, two) = (xattr(&f, names[0]), xattr(&f, names[1]));
    setxattr(&f, names[0], &two, XattrFlags::empty()).unwrap();
    setxattr(&f, names[1], &one, XattrFlags::empty()).unwrap();
    let mount = vault.mount();
    for link in ["l1", "l2"] {
        assert_eq!(fs::read_link(mount.path(link)).unwrap_err().raw_os_error(), Some(libc::EIO), "{link}");
    }
    for name in ["user.a", "user.b"] {
        let seen = getxattr(mount.path("f"), name, &mut [0_u8; 100][..]);
        assert_eq!(seen, Err(rustix::io::Errno::IO), "{name}");
    }
    assert_eq!(fs::read_to_string(mount.path("f")).unwrap(), "x\n");
    mount.unmount();
    let (code, said) = vault.check();
    assert_ne!(code, 0, "{said}");
    relink(&l1, &target1);
    relink(&l2, &target2);
    setxattr(&f, names[0], &one, XattrFlags::empty()).unwrap();
    setxattr(&f, names[1], &two, XattrFlags::empty()).unwrap();
    vault.assert_sound();
}

/// A lower file longer than its authenticated length is what a crash leaves: readable, and `check` tells it.
#[test]
fn overlong_files_are_readable_and_told() {
    if !can_mount() {
        return;
    }
    let s = &Sample::new();
    let file = File::options().write(true).open(&s.big.lower).unwrap();
    file.write_all_at(&pattern(10_000, 7), disk_len(BIG as u64)).unwrap();
    drop(file);
    assert!(s.vault.check().1.contains("overlong"), "{}", s.vault.check().1);
    for options in ["ro", ""] {
        let mount = s.vault.mount_with(options);
        let big = mount.path("big");
        fs::metadata(&big).unwrap();
        assert!(fs::read(&big).unwrap() == pattern(BIG, 1));
        assert_eq!(fs::metadata(&big).unwrap().len(), BIG as u64);
        mount.unmount();
    }
}

/// What is appended to a file after a crash stands behind what it holds, not behind what the crash left.
#[test]
fn appending_after_a_crash_leaves_no_gap() {
    if !can_mount() {
        return;
    }
    let s = &Sample::new();
    let file = File::options().write(true).open(&s.big.lower).unwrap();
    file.write_all_at(&pattern(10_000, 7), disk_len(BIG as u64)).unwrap();
    drop(file);
    let mount = s.vault.mount();
    let mut file = File::options().append(true).open(mount.path("big")).unwrap();
    file.write_all(b"behind").unwrap();
    drop(file);
    mount.unmount();
    let mount = s.vault.mount();
    assert!(fs::read(mount.path("big")).unwrap() == [&pattern(BIG, 1), &b"behind"[..]].concat());
    mount.unmount();
    s.vault.assert_sound();
}
