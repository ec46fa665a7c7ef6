//! On vaults with lower files that were written here, a real embedded KMS beneath.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::*;
use crate::content;
use crate::crypto::XattrKey;
use crate::format::header::{FileHeader, HEADER_XATTR};
use crate::format::names::short_name;
use crate::keys::{self, DEFAULT_URI, Keyring, RecoveryKey, Unlock};
use crate::kms::{Engine, Protection};
use crate::vault::{DiskFile, FreshFile};

const PACE: Pace = Pace { jobs: 3, rate: None };

struct Home {
    _tmp: tempfile::TempDir,
    vault: PathBuf,
    unlock: Unlock,
}

impl Home {
    fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let kms = tmp.path().join("kms");
        Engine::create(&kms, &Protection::KeyFile).unwrap();
        let unlock = Unlock { kms_dir: Some(kms), ..Unlock::default() };
        keys::ensure_embedded_key(DEFAULT_URI, &unlock).unwrap();
        let vault = tmp.path().join("vault");
        keys::init_vault(&vault, DEFAULT_URI, &unlock).unwrap();
        std::fs::create_dir(vault.join(short_name(&[7; 20]))).unwrap();
        Self { vault, _tmp: tmp, unlock }
    }

    fn kms(&self) -> Engine {
        Engine::open(self.unlock.kms_dir.as_ref().unwrap(), None).unwrap()
    }

    fn open(&self) -> Keyring {
        keys::open_vault(&self.vault, &self.unlock).unwrap()
    }

    fn path(n: u8) -> PathBuf {
        let name = short_name(&[n + 10; 20]);
        if n.is_multiple_of(2) { name.into() } else { Path::new(&short_name(&[7; 20])).join(name) }
    }

    fn write(&self, ring: &Keyring, n: u8, text: &[u8]) {
        let path = self.vault.join(Self::path(n));
        let dir = std::fs::File::open(path.parent().unwrap()).unwrap();
        let new = ring.new_file().unwrap();
        let fresh = FreshFile::make(dir.as_fd(), (0o640, 0), || ".efs.tmp.1".into()).unwrap();
        fresh.set_xattr(HEADER_XATTR, &new.header).unwrap();
        let file = content::File::create(Box::new(Arc::clone(fresh.file())), new.keys).unwrap();
        file.write(0, text).unwrap();
        file.sync(false).unwrap();
        fresh.publish(path.file_name().unwrap().to_str().unwrap()).unwrap();
    }

    fn header(&self, n: u8) -> FileHeader {
        let mut bytes = vec![0; 4096];
        let len = rustix::fs::getxattr(self.vault.join(Self::path(n)), HEADER_XATTR, &mut bytes).unwrap();
        FileHeader::decode(&bytes[..len]).unwrap()
    }

    fn read(&self, ring: &Keyring, n: u8) -> Vec<u8> {
        let lower = std::fs::File::open(self.vault.join(Self::path(n))).unwrap();
        let keys = ring.open_file(&self.header(n)).unwrap();
        let file = content::File::open(Box::new(DiskFile(lower)), keys).unwrap();
        let mut text = vec![0; usize::try_from(file.len()).unwrap()];
        assert_eq!(file.read(0, &mut text).unwrap(), text.len());
        text
    }
}

/// A rewrap that takes the lock for itself.
fn rewrapped(home: &Home, ring: &Keyring, pace: Pace, watch: &dyn Watch) -> Outcome {
    rewrap(&WorkLock::take(&home.vault).unwrap(), ring, None, pace, watch, &()).unwrap()
}

/// Stops after so many files.
struct After(AtomicU64);

impl Watch for After {
    fn file_done(&self) -> bool {
        self.0.fetch_sub(1, SeqCst) > 1
    }
}

/// After a rotation every header comes to the new version, contents stay byte for byte, and a second run does nothing.
#[test]
fn headers_follow_and_contents_stay() {
    let home = Home::new();
    let ring = home.open();
    for n in 0..30 {
        home.write(&ring, n, &vec![n; 5000]);
    }
    std::fs::write(home.vault.join(short_name(&[200; 20])), b"bare").unwrap();
    let before = std::fs::read(home.vault.join(Home::path(3))).unwrap();
    home.kms().rotate_key_on_demand("alias/envelopefs").unwrap();
    let done = rewrapped(&home, &home.open(), PACE, &());
    assert_eq!((done.files, done.changed, done.bare, done.failed.count), (31, 30, 1, 0));
    assert_eq!(std::fs::read(home.vault.join(Home::path(3))).unwrap(), before);
    let seen = inventory(&home.vault, PACE, &()).unwrap();
    assert_eq!(seen.copies.into_iter().collect::<Vec<_>>(), [(Used { row: 0, version: Some(2) }, 30)]);
    assert_eq!((seen.files, seen.bare), (31, 1));
    let again = rewrapped(&home, &home.open(), PACE, &());
    assert_eq!(again.changed, 0);
    for n in 0..30 {
        assert_eq!(home.read(&home.open(), n), vec![n; 5000]);
    }
    assert_eq!(interrupted(&home.vault), None);
}

/// A run that is stopped says so; the next one does what is left, and no file is ever without a header that opens.
#[test]
fn a_stopped_run_goes_on() {
    let home = Home::new();
    let ring = home.open();
    for n in 0..40 {
        home.write(&ring, n, b"text");
    }
    home.kms().rotate_key_on_demand("alias/envelopefs").unwrap();
    let ring = home.open();
    let part = rewrapped(&home, &ring, PACE, &After(AtomicU64::new(10)));
    assert!(part.interrupted && part.changed >= 10 && part.changed < 40, "{part:?}");
    assert!(interrupted(&home.vault).is_some_and(|target| target.contains("version 2")));
    for n in 0..40 {
        assert_eq!(home.read(&home.open(), n), b"text");
    }
    let rest = rewrapped(&home, &ring, PACE, &());
    assert_eq!(rest.changed, 40 - part.changed);
    assert_eq!(interrupted(&home.vault), None);
}

/// Headers whose bytes tell no version are known again by the run that wrote them, and by no other; a mark that
/// somebody else wrote counts nothing.
#[test]
fn opaque_headers_are_known_by_their_marks() {
    let home = Home::new();
    let ring = home.open();
    home.write(&ring, 0, b"x");
    let target = ring.rewrap_target(None).unwrap();
    let state = state::State::begin(&home.vault, &target.describe(), [1; 16]).unwrap();
    let mark = ring.mark(&target, b"header");
    state.note(&mark);
    state.flush();
    drop(state);
    let file = home.vault.join(".envelopefs/rewrap.state");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes.extend_from_slice(b"torn");
    std::fs::write(&file, bytes).unwrap();
    let next = state::State::begin(&home.vault, &target.describe(), [2; 16]).unwrap();
    assert_eq!((next.run(), next.earlier()), ([1; 16], 1));
    assert!(next.is_done(&mark) && !next.is_done(&[0; 16]));
    let other = state::State::begin(&home.vault, "0 another key", [3; 16]).unwrap();
    assert_eq!((other.run(), other.earlier()), ([3; 16], 0));
}

/// One at a time.
#[test]
fn two_do_not_work_at_once() {
    let home = Home::new();
    let held = WorkLock::take(&home.vault).unwrap();
    let refused = WorkLock::take(&home.vault).map(drop);
    assert!(matches!(refused, Err(UpkeepError::Busy)), "{refused:?}");
    let refused = rekey_vault(&home.vault, &home.open(), PACE, &());
    assert!(matches!(refused, Err(UpkeepError::Busy)), "{refused:?}");
    drop(held);
    WorkLock::take(&home.vault).unwrap();
}

/// A rate is kept.
#[test]
fn a_rate_is_kept() {
    let home = Home::new();
    let ring = home.open();
    for n in 0..20 {
        home.write(&ring, n, b"");
    }
    let start = std::time::Instant::now();
    let pace = Pace { rate: NonZeroU32::new(50), ..PACE };
    rewrapped(&home, &ring, pace, &());
    assert!(start.elapsed() > std::time::Duration::from_millis(300), "{:?}", start.elapsed());
}

/// A rekeyed file has another id and other ciphertext, the same plaintext, attributes and user xattrs; one with two
/// names is left alone.
#[test]
fn rekeyed_files_are_the_same_to_their_readers() {
    let home = Home::new();
    let ring = home.open();
    let text: Vec<u8> = (0..2_000_000_u32).map(|n| (n % 251) as u8).collect();
    for (n, text) in [(0, &text[..]), (1, b"small"), (2, b"")] {
        home.write(&ring, n, text);
    }
    home.write(&ring, 3, b"linked");
    std::fs::hard_link(home.vault.join(Home::path(3)), home.vault.join(short_name(&[99; 20]))).unwrap();
    let old = home.header(0);
    let key = XattrKey::derive(ring.vault_key(), &old.file_id.0);
    let path = home.vault.join(Home::path(0));
    let flags = rustix::fs::XattrFlags::empty();
    let name = key.encode_name(b"user.colour");
    rustix::fs::setxattr(&path, &name, &key.encode_value(b"user.colour", b"blue"), flags).unwrap();
    let before = path.metadata().unwrap();
    let sealed = std::fs::read(&path).unwrap();

    let done = rekey_vault(&home.vault, &home.open(), PACE, &()).unwrap();
    assert_eq!((done.files, done.changed, done.skipped.count, done.failed.count), (5, 3, 2, 0), "{done:?}");
    let fresh = home.open();
    for (n, text) in [(0, &text[..]), (1, b"small"), (2, b""), (3, b"linked")] {
        assert_eq!(home.read(&fresh, n), text, "file {n}");
    }
    assert_ne!(home.header(0).file_id, old.file_id);
    assert_ne!(std::fs::read(&path).unwrap(), sealed);
    let after = path.metadata().unwrap();
    assert_eq!(
        (after.mode(), after.mtime(), after.mtime_nsec()),
        (before.mode(), before.mtime(), before.mtime_nsec())
    );
    let key = XattrKey::derive(fresh.vault_key(), &home.header(0).file_id.0);
    let mut value = vec![0; 4096];
    let len = rustix::fs::getxattr(&path, key.encode_name(b"user.colour"), &mut value).unwrap();
    assert_eq!(key.decode_value(b"user.colour", &value[..len]).unwrap(), b"blue");

    let id = home.header(1).file_id;
    rekey_file(&home.vault, &Home::path(1), &fresh).unwrap();
    assert_ne!(home.header(1).file_id, id);
    assert_eq!(home.read(&fresh, 1), b"small");
    assert!(rekey_file(&home.vault, Path::new("../x"), &fresh).is_err());
    assert!(rekey_file(&home.vault, &Home::path(3), &fresh).is_err());
}

/// Holes stay holes.
#[test]
fn holes_stay_holes() {
    let home = Home::new();
    let ring = home.open();
    home.write(&ring, 0, b"");
    {
        let lower =
            std::fs::File::options().read(true).write(true).open(home.vault.join(Home::path(0))).unwrap();
        let keys = ring.open_file(&home.header(0)).unwrap();
        let file = content::File::open(Box::new(DiskFile(lower)), keys).unwrap();
        file.write(5 << 20, b"end").unwrap();
        file.set_len(9 << 20).unwrap();
        file.sync(false).unwrap();
    }
    let plain = home.read(&ring, 0);
    let blocks = home.vault.join(Home::path(0)).metadata().unwrap().blocks();
    rekey_vault(&home.vault, &ring, PACE, &()).unwrap();
    assert!(home.read(&ring, 0) == plain);
    assert!(home.vault.join(Home::path(0)).metadata().unwrap().blocks() <= blocks + 16);
}

/// With a recovery key added, a rewrap makes every file open without the KMS.
#[test]
fn a_rewrap_brings_new_recipients_to_old_files() {
    let home = Home::new();
    let ring = home.open();
    home.write(&ring, 0, b"old");
    let paper = Arc::new(RecoveryKey::random());
    ring.add_recipient(&paper.uri().unwrap(), false).unwrap();
    let done = rewrapped(&home, &ring, PACE, &());
    assert_eq!((done.changed, done.failed.count), (1, 0));
    let unlock = Unlock { kms_dir: Some("/nowhere".into()), recovery: Some(paper), ..Unlock::default() };
    let rescued = keys::open_vault(&home.vault, &unlock).unwrap();
    assert_eq!(home.read(&rescued, 0), b"old");
    let again = rewrapped(&home, &ring, PACE, &());
    assert_eq!(again.changed, 0, "a recovery key has no versions");
}

/// A header that does not decode may hold a copy of any key: it is counted apart from files that have none.
#[test]
fn an_unreadable_header_is_counted() {
    let home = Home::new();
    let ring = home.open();
    for n in 0..3 {
        home.write(&ring, n, b"x");
    }
    let torn = home.vault.join(Home::path(1));
    rustix::fs::setxattr(&torn, HEADER_XATTR, b"no header", rustix::fs::XattrFlags::empty()).unwrap();
    rustix::fs::removexattr(home.vault.join(Home::path(2)), HEADER_XATTR).unwrap();
    let seen = inventory(&home.vault, PACE, &()).unwrap();
    assert_eq!((seen.files, seen.of_row(0), seen.bare, seen.unread), (3, 1, 1, 1));
}
