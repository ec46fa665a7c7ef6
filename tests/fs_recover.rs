//! What a crash leaves, made by hand in the lower files: what is mended, what is kept, what is left alone.

#![allow(clippy::unwrap_used)]

mod fs_support;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use envelopefs::check::{self, Kind, Progress};
use envelopefs::format::header::HEADER_XATTR;
use envelopefs::fs::Fs;
use envelopefs::fs::recover::{self, Deed, Outcome, Watch};
use fs_support::{ROOT, TOP, Vault, get, list, put};

/// Before any file of these tests was born.
const LONG_AGO: (i64, u32) = (0, 0);
/// After every file of these tests was born.
const NEVER: (i64, u32) = (i64::MAX, 0);

fn mend_fresh(vault: &Vault, since: (i64, u32)) -> Outcome {
    recover::mend_fresh(&vault.lower(), &vault.keyring(), since, &()).unwrap()
}

fn mend(vault: &Vault) -> Outcome {
    recover::mend(&vault.lower(), &vault.keyring(), None, &()).unwrap()
}

fn close(fs: Fs) {
    fs.close();
}

/// The lower file with an inode number.
fn lower_of(dir: &Path, ino: u64) -> PathBuf {
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.metadata().unwrap().ino() == ino {
                return entry.path();
            }
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            }
        }
    }
    panic!("no lower file {ino}");
}

fn xattr(path: &Path, name: &str) -> Vec<u8> {
    let mut value = vec![0; 4096];
    let len = rustix::fs::getxattr(path, name, &mut value).unwrap();
    value.truncate(len);
    value
}

fn lost_found(vault: &Vault) -> Vec<PathBuf> {
    let dir = vault.lower().join(".envelopefs/lost+found");
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    found.sort();
    found
}

struct Quiet;

impl Progress for Quiet {
    fn read(&self, _bytes: u64) -> bool {
        true
    }

    fn file_done(&self) {}
}

fn assert_sound(vault: &Vault) {
    let report = check::check(&vault.lower(), &vault.keyring(), 2, &Quiet);
    assert!(report.faults.is_empty(), "{:?}", report.faults);
}

/// Content of the files that are torn: inline, and of two groups.
fn large() -> Vec<u8> {
    (0..700_000u32).map(|i| (i / 7 % 251) as u8).collect()
}

/// What is torn, whether the file is inline, and how.
type Tear = (&'static str, bool, fn(&fs::File));

/// Ways in which a power cut tears a file that nobody synced.
fn tears() -> Vec<Tear> {
    vec![
        ("nothing was written", true, |f| f.set_len(0).unwrap()),
        ("cut within the record", true, |f| f.set_len(40).unwrap()),
        ("the record is zeros", true, |f| f.write_all_at(&[0; 64], 0).unwrap()),
        ("cut within a group", false, |f| f.set_len(300_000).unwrap()),
        ("nothing was written", false, |f| f.set_len(0).unwrap()),
        ("all is zeros", false, |f| {
            let len = f.metadata().unwrap().len();
            f.set_len(0).unwrap();
            f.set_len(len).unwrap();
        }),
        ("the first page is torn at 512 bytes", false, |f| f.write_all_at(&[0; 512], 1024).unwrap()),
        ("a later page is zeros", false, |f| f.write_all_at(&[0; 4096], 528_384).unwrap()),
        ("a block is torn", false, |f| f.write_all_at(&[0; 512], 4096 * 9 + 512).unwrap()),
    ]
}

/// Each kind of tear of a fresh file: what it was is kept whole with its header, mode and time; the file is empty and
/// can be written; its neighbours are as they were.
#[test]
fn a_torn_fresh_file_is_kept_and_emptied() {
    for (what, inline, tear) in tears() {
        let vault = Vault::new();
        let vfs = vault.open();
        let dir = vfs.mkdir(&ROOT, TOP, b"directory", 0o755).unwrap().attr.ino;
        let content = if inline { b"a few bytes, and some more of them".to_vec() } else { large() };
        let victim = put(&vfs, dir, b"victim", &content).attr.ino;
        put(&vfs, dir, b"neighbour", &large());
        close(vfs);
        let lower = lower_of(&vault.lower(), victim);
        tear(&fs::File::options().write(true).open(&lower).unwrap());
        let (torn, before) = (fs::read(&lower).unwrap(), fs::metadata(&lower).unwrap());

        let outcome = mend_fresh(&vault, LONG_AGO);
        assert_eq!(outcome.failed, [], "{what}");
        assert_eq!(outcome.files, 2);
        let [mended] = &outcome.mended[..] else { panic!("{what}: {:?}", outcome.mended) };
        assert_eq!(mended.deed, Deed::Emptied, "{what}");
        assert_eq!(mended.plain.as_deref(), Some(Path::new("directory/victim")));
        assert_eq!(vault.lower().join(&mended.lower), lower);

        let kept = vault.lower().join(mended.kept.as_ref().unwrap());
        let note = PathBuf::from(format!("{}.json", kept.display()));
        assert_eq!(lost_found(&vault), [kept.clone(), note.clone()]);
        assert_eq!(fs::read(&kept).unwrap(), torn, "{what}");
        assert_eq!(xattr(&kept, HEADER_XATTR), xattr(&lower, HEADER_XATTR));
        let copy = fs::metadata(&kept).unwrap();
        assert_eq!((copy.mode(), copy.uid(), copy.mtime()), (before.mode(), before.uid(), before.mtime()));
        let note = fs::read_to_string(note).unwrap();
        assert!(note.contains(mended.lower.to_str().unwrap()) && !note.contains("victim"), "{note}");

        let after = fs::metadata(&lower).unwrap();
        assert_eq!((after.ino(), after.len()), (before.ino(), 32), "{what}");
        assert_sound(&vault);
        assert_eq!(mend_fresh(&vault, LONG_AGO).mended, [], "a second time finds nothing to mend");
        let vfs = vault.open();
        let dir = vfs.lookup(TOP, b"directory").unwrap().attr.ino;
        let ino = vfs.lookup(dir, b"victim").unwrap().attr.ino;
        assert_eq!(get(&vfs, ino).unwrap(), b"");
        let fh = vfs.open_file(ino, libc::O_RDWR).unwrap();
        vfs.write(fh, 0, b"again", false).unwrap();
        vfs.release(fh);
        assert_eq!(get(&vfs, ino).unwrap(), b"again");
        let neighbour = vfs.lookup(dir, b"neighbour").unwrap().attr.ino;
        assert_eq!(get(&vfs, neighbour).unwrap(), large());
        close(vfs);
    }
}

/// The same tears in a file that was there before: nothing is touched, neither by a mount nor by a full repair.
#[test]
fn a_torn_settled_file_is_left_alone() {
    for (what, inline, tear) in tears() {
        let vault = Vault::new();
        let vfs = vault.open();
        let content = if inline { b"a few bytes, and some more of them".to_vec() } else { large() };
        let victim = put(&vfs, TOP, b"victim", &content).attr.ino;
        close(vfs);
        let lower = lower_of(&vault.lower(), victim);
        tear(&fs::File::options().write(true).open(&lower).unwrap());
        let torn = fs::read(&lower).unwrap();
        assert_eq!(mend_fresh(&vault, NEVER).mended, [], "{what}");
        assert_eq!(mend(&vault).mended, [], "{what}");
        assert_eq!(fs::read(&lower).unwrap(), torn, "{what}");
        assert!(lost_found(&vault).is_empty());
        let report = check::repair(&vault.lower(), &vault.keyring(), 2, None, &Quiet);
        assert!(!report.is_clean() && report.mended.is_empty(), "{what}: {report:?}");
        assert!(report.faults.iter().all(|f| f.kind == Kind::Content), "{what}: {:?}", report.faults);
    }
}

/// A lower file that is longer than its authenticated length is cut, and nothing of its content goes.
#[test]
fn overlong_files_are_cut() {
    let vault = Vault::new();
    let vfs = vault.open();
    let small = put(&vfs, TOP, b"small", b"a few bytes").attr.ino;
    let big = put(&vfs, TOP, b"big", &large()).attr.ino;
    close(vfs);
    for ino in [small, big] {
        let file = fs::File::options().write(true).open(lower_of(&vault.lower(), ino)).unwrap();
        let len = file.metadata().unwrap().len();
        file.write_all_at(&[7; 600_000], len).unwrap();
    }
    // A mount after a power cut looks at files of the last minutes only.
    assert_eq!(mend_fresh(&vault, NEVER).mended, []);
    let deeds: Vec<_> = mend(&vault).mended.into_iter().map(|m| m.deed).collect();
    assert_eq!(deeds, [Deed::Cut, Deed::Cut]);
    assert_sound(&vault);
    let vfs = vault.open();
    for (name, content) in [(&b"small"[..], b"a few bytes".to_vec()), (b"big", large())] {
        let found = vfs.lookup(TOP, name).unwrap();
        assert_eq!(get(&vfs, found.attr.ino).unwrap(), content);
    }
    close(vfs);
}

/// Temporary names and lone sidecars go, wherever they are; what holds something moves to `lost+found`.
#[test]
fn leftover_names_go_and_their_content_stays() {
    let vault = Vault::new();
    let vfs = vault.open();
    let dir = vfs.mkdir(&ROOT, TOP, b"directory", 0o755).unwrap().attr.ino;
    let long = [b'n'; 255];
    put(&vfs, dir, &long, b"long");
    let other = [b'm'; 255];
    put(&vfs, dir, &other, b"goes");
    let full = put(&vfs, TOP, b"full", b"content").attr.ino;
    let empty = put(&vfs, TOP, b"empty", b"").attr.ino;
    let gone = vfs.lookup(dir, &other).unwrap().attr.ino;
    close(vfs);
    let top = vault.lower();
    let inner = lower_of(&top, dir);
    fs::write(inner.join(".efs.tmp.1"), b"").unwrap();
    fs::create_dir(inner.join(".efs.tmp.2")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", inner.join(".efs.tmp.3")).unwrap();
    fs::write(top.join(".efs.tmp.4"), b"sidecar").unwrap();
    fs::write(top.join(".envelopefs/.efs.tmp.5"), b"config").unwrap();
    fs::rename(lower_of(&top, full), top.join(".efs.tmp.full")).unwrap();
    fs::rename(lower_of(&top, empty), inner.join(".efs.tmp.empty")).unwrap();
    fs::create_dir(top.join(".efs.tmp.tree")).unwrap();
    fs::write(top.join(".efs.tmp.tree/inside"), b"kept").unwrap();
    fs::remove_file(lower_of(&top, gone)).unwrap();

    let outcome = mend_fresh(&vault, NEVER);
    assert_eq!(outcome.failed, []);
    let of = |deed| outcome.mended.iter().filter(|m| m.deed == deed).count();
    assert_eq!((of(Deed::Removed), of(Deed::Kept), outcome.mended.len()), (7, 2, 9), "{:?}", outcome.mended);
    let kept: Vec<_> = outcome.mended.iter().filter_map(|m| m.kept.as_ref()).map(|k| top.join(k)).collect();
    for path in &kept {
        let note = fs::read_to_string(format!("{}.json", path.display())).unwrap();
        assert!(note.contains(".efs.tmp."), "{note}");
        if path.is_dir() {
            assert_eq!(fs::read(path.join("inside")).unwrap(), b"kept");
        } else {
            assert_eq!(fs::metadata(path).unwrap().ino(), full);
            assert_eq!(xattr(path, HEADER_XATTR).len(), 64);
        }
    }
    assert!(Path::new("/etc/passwd").exists());
    assert_sound(&vault);
    let vfs = vault.open();
    let dir = vfs.lookup(TOP, b"directory").unwrap().attr.ino;
    assert_eq!(list(&vfs, dir).len(), 1);
    let found = vfs.lookup(dir, &long).unwrap();
    assert_eq!(get(&vfs, found.attr.ino).unwrap(), b"long");
    close(vfs);
}

/// A file with two names is mended once; a symlink out of the vault is not followed; what is no vault's is not touched.
#[test]
fn the_walk_stays_in_the_vault() {
    let vault = Vault::new();
    let vfs = vault.open();
    let victim = put(&vfs, TOP, b"victim", &large()).attr.ino;
    for n in 0..20 {
        vfs.link(victim, TOP, format!("link {n}").as_bytes()).unwrap();
    }
    close(vfs);
    let lower = lower_of(&vault.lower(), victim);
    fs::File::options().write(true).open(&lower).unwrap().set_len(5000).unwrap();
    let outside = vault.beside("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join(".efs.tmp.x"), b"").unwrap();
    // A name that decodes, of a symlink to a directory elsewhere.
    let name = lower.file_name().unwrap().to_owned();
    let fake = vault.lower().join("directory");
    std::os::unix::fs::symlink(&outside, vault.lower().join("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")).unwrap();
    fs::create_dir(&fake).unwrap();
    fs::write(fake.join(&name), b"").unwrap();
    let outcome = mend_fresh(&vault, LONG_AGO);
    assert_eq!(outcome.failed, []);
    assert_eq!(outcome.mended.len(), 1, "{:?}", outcome.mended);
    assert_eq!(lost_found(&vault).len(), 2);
    assert!(outside.join(".efs.tmp.x").exists());
    assert_eq!(fs::read(fake.join(&name)).unwrap(), b"", "nothing below a foreign name is touched");
}

/// A fresh file that cannot be kept is not touched.
#[test]
fn what_cannot_be_kept_is_not_emptied() {
    let vault = Vault::new();
    let vfs = vault.open();
    let victim = put(&vfs, TOP, b"victim", &large()).attr.ino;
    close(vfs);
    let lower = lower_of(&vault.lower(), victim);
    fs::File::options().write(true).open(&lower).unwrap().set_len(5000).unwrap();
    // In the place of the directory there is something else.
    fs::write(vault.lower().join(".envelopefs/lost+found"), b"").unwrap();
    let outcome = mend_fresh(&vault, LONG_AGO);
    assert_eq!((outcome.mended.len(), outcome.failed.len()), (0, 1), "{outcome:?}");
    assert_eq!(fs::metadata(&lower).unwrap().len(), 5000);
    assert_eq!(outcome.failed[0].1.as_deref(), Some(Path::new("victim")));
}

struct StopAt(AtomicU64);

impl StopAt {
    fn go_on(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) > 1
    }
}

impl Watch for StopAt {
    fn looked_at(&self) -> bool {
        self.go_on()
    }
}

impl Progress for StopAt {
    fn read(&self, bytes: u64) -> bool {
        bytes == 0 || self.go_on()
    }

    fn file_done(&self) {}
}

/// A repair that was stopped while it checked goes on where it was, looks again at what had faults, and is not
/// misled by a state that somebody else wrote.
#[test]
fn a_stopped_repair_goes_on() {
    let vault = Vault::new();
    let vfs = vault.open();
    let mut victim = 0;
    for n in 0..40 {
        let name = format!("directory {n}");
        let dir = vfs.mkdir(&ROOT, TOP, name.as_bytes(), 0o755).unwrap().attr.ino;
        victim = put(&vfs, dir, b"file", &[n; 9000]).attr.ino;
        put(&vfs, dir, b"other", &[n; 9000]);
    }
    close(vfs);
    let (top, keyring) = (vault.lower(), vault.keyring());
    let state = top.join(".envelopefs/repair.state");
    let lower = lower_of(&top, victim);
    fs::File::options().write(true).open(&lower).unwrap().write_all_at(&[9; 10], 5000).unwrap();

    let stopped = check::repair(&top, &keyring, 2, None, &StopAt(AtomicU64::new(60)));
    assert!(stopped.interrupted && state.exists());
    let kept = fs::read(&state).unwrap();
    let resumed = check::repair(&top, &keyring, 2, None, &Counting::default());
    assert!(resumed.resumed && !resumed.interrupted && !state.exists());
    assert_eq!((resumed.counts.files, resumed.counts.directories), (80, 41));
    assert_eq!(resumed.faults.len(), 1, "{:?}", resumed.faults);

    fs::write(&state, &kept).unwrap();
    let counting = Counting::default();
    check::repair(&top, &keyring, 2, None, &counting);
    let looked_at = counting.0.load(Ordering::Relaxed);
    // What is known to be done ends before the slower of the two, which may have come far less than half the way.
    assert!((1..80).contains(&looked_at), "{looked_at} of 80 files were looked at again");

    let mut forged = kept;
    *forged.last_mut().unwrap() ^= 1;
    fs::write(&state, &forged).unwrap();
    let counting = Counting::default();
    let anew = check::repair(&top, &keyring, 2, None, &counting);
    assert!(!anew.resumed);
    assert_eq!(counting.0.load(Ordering::Relaxed), 80);
}

/// Counts the files that were opened.
#[derive(Default)]
struct Counting(AtomicU64);

impl Progress for Counting {
    fn read(&self, _bytes: u64) -> bool {
        true
    }

    fn file_done(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A walk that is stopped says so, and what it did is still whole.
#[test]
fn a_stopped_walk_says_so() {
    let vault = Vault::new();
    let vfs = vault.open();
    for n in 0..50 {
        put(&vfs, TOP, format!("{n}").as_bytes(), b"content");
    }
    close(vfs);
    let outcome =
        recover::mend_fresh(&vault.lower(), &vault.keyring(), LONG_AGO, &StopAt(AtomicU64::new(5))).unwrap();
    assert!(outcome.interrupted && outcome.files < 50, "{outcome:?}");
    assert_sound(&vault);
}
