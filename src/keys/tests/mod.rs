//! Vaults and keyrings on a real embedded KMS, and cache and pool on a provider that counts.

mod envelope;
mod prefetch;
mod recipients;

use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use super::table::{Row, Table};
use super::*;
use crate::crypto::VaultKey;
use crate::format::config::{FORMAT_VERSION, VolumeConfig, WrappingKey};
use crate::format::header::{FileHeader, Recipient};
use crate::format::layout::BlockIndex;
use crate::kms::{Cost, Engine, Protection};

struct Home {
    _tmp: tempfile::TempDir,
    vault: PathBuf,
    unlock: Unlock,
}

/// A store with the default key, and a place for a vault.
fn home() -> Home {
    let tmp = tempfile::tempdir().unwrap();
    let kms = tmp.path().join("kms");
    Engine::create(&kms, &Protection::KeyFile).unwrap();
    let unlock = Unlock { kms_dir: Some(kms), ..Unlock::default() };
    ensure_embedded_key(DEFAULT_URI, &unlock).unwrap();
    Home { vault: tmp.path().join("vault"), _tmp: tmp, unlock }
}

impl Home {
    fn init(&self) -> VolumeConfig {
        init_vault(&self.vault, DEFAULT_URI, &self.unlock).unwrap()
    }

    fn open(&self) -> Keyring {
        open_vault(&self.vault, &self.unlock).unwrap()
    }

    fn kms(&self) -> Engine {
        Engine::open(self.unlock.kms_dir.as_ref().unwrap(), None).unwrap()
    }

    fn config_file(&self) -> PathBuf {
        self.vault.join(".envelopefs/vault.toml")
    }
}

/// Whether two file keys are the same: what one seals the other opens.
fn same(one: &FileKeys, two: &FileKeys) -> bool {
    let mut block = [5; 100];
    let entry = one.seal_block(BlockIndex(3), [9; 12], &mut block);
    two.open_block(BlockIndex(3), &entry, &mut block).is_ok() && block == [5; 100]
}

/// A vault that was made opens; its config names the key by its id, and files made in one session open in the next.
#[test]
fn a_vault_opens_with_the_key_it_was_made_with() {
    let home = home();
    let made = home.init();
    let key = home.kms().describe_key("alias/envelopefs").unwrap();
    assert_eq!(made.keys[0].uri, format!("kms:embedded/{}", key.key_id));
    assert_eq!(read_config(&home.vault).unwrap(), made);
    let file = {
        let ring = home.open();
        assert_eq!(ring.config(), made);
        assert!(matches!(ring.describe().as_slice(), [(0, Ok(info))] if info.version == Some(1)));
        ring.new_file().unwrap()
    };
    assert_eq!(file.header.len(), 64);
    let header = FileHeader::decode(&file.header).unwrap();
    assert_eq!(header.file_id, file.file_id);
    let ring = home.open();
    assert!(same(&ring.open_file(&header).unwrap(), &file.keys));
    assert_eq!(ring.provider_calls(), (1, 0));
}

/// What `init` leaves: private files, a root directory id of 16 bytes, nothing temporary.
#[test]
fn init_leaves_a_private_vault_and_a_root_id() {
    let home = home();
    home.init();
    let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
    assert_eq!(mode(&home.vault.join(".envelopefs")), 0o700);
    assert_eq!(mode(&home.config_file()), 0o600);
    let mut id = [0; 17];
    assert_eq!(rustix::fs::getxattr(&home.vault, "user.efs.dir", &mut id), Ok(16));
    let names: Vec<_> = std::fs::read_dir(&home.vault).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, [".envelopefs"]);
}

/// Only an empty directory, or one where an earlier `init` was killed, becomes a vault.
#[test]
fn init_refuses_what_is_not_empty() {
    let home = home();
    home.init();
    let again = init_vault(&home.vault, DEFAULT_URI, &home.unlock);
    assert!(matches!(again, Err(OpenError::Exists(_))), "{again:?}");
    let other = home.vault.with_file_name("other");
    std::fs::create_dir_all(other.join("sub")).unwrap();
    let full = init_vault(&other, DEFAULT_URI, &home.unlock);
    assert!(matches!(full, Err(OpenError::NotEmpty(_))), "{full:?}");
    std::fs::rename(other.join("sub"), other.join(".efs.tmp.0123456789abcdef")).unwrap();
    std::fs::write(other.join(".efs.tmp.ffff"), "probe").unwrap();
    init_vault(&other, DEFAULT_URI, &home.unlock).unwrap();
    open_vault(&other, &home.unlock).unwrap();
    assert_eq!(std::fs::read_dir(&other).unwrap().count(), 1);
    let on_file = init_vault(&home.config_file(), DEFAULT_URI, &home.unlock);
    assert!(matches!(on_file, Err(OpenError::Io { .. })), "{on_file:?}");
}

/// A config that is a FIFO or a link is refused; nothing waits for it.
#[test]
fn a_config_that_is_no_file_is_refused() {
    let home = home();
    home.init();
    let config = home.config_file();
    std::fs::rename(&config, config.with_file_name("real")).unwrap();
    std::os::unix::fs::symlink("real", &config).unwrap();
    assert!(matches!(open_vault(&home.vault, &home.unlock), Err(OpenError::Io { .. })));
    std::fs::remove_file(&config).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &config, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert!(matches!(open_vault(&home.vault, &home.unlock), Err(OpenError::Config { .. })));
}

/// Any changed byte of the config, and any cut, is refused before a key is used for files.
#[test]
fn a_changed_config_is_refused() {
    let home = home();
    home.init();
    let whole = std::fs::read(home.config_file()).unwrap();
    for at in 0..whole.len() {
        for flip in [0x01, 0x20, 0x80] {
            let mut changed = whole.clone();
            changed[at] ^= flip;
            std::fs::write(home.config_file(), &changed).unwrap();
            assert!(open_vault(&home.vault, &home.unlock).is_err(), "byte {at} ^ {flip:#x}");
        }
        std::fs::write(home.config_file(), &whole[..at]).unwrap();
        assert!(open_vault(&home.vault, &home.unlock).is_err(), "cut at {at}");
    }
    let text = String::from_utf8(whole.clone()).unwrap();
    let edited = text.replace("created = ", "created = 1");
    std::fs::write(home.config_file(), edited).unwrap();
    assert!(matches!(open_vault(&home.vault, &home.unlock), Err(OpenError::Tampered(_))));
    std::fs::write(home.config_file(), [&whole[..], b"\n"].concat()).unwrap();
    assert!(open_vault(&home.vault, &home.unlock).is_err(), "a line was added");
    std::fs::write(home.config_file(), whole).unwrap();
    home.open();
}

/// Every reason why a vault does not open has its own error.
#[test]
fn reasons_are_told_apart() {
    let home = home();
    assert!(matches!(open_vault(&home.vault, &home.unlock), Err(OpenError::NotAVault(_))));
    home.init();
    let text = std::fs::read_to_string(home.config_file()).unwrap();
    let open = |unlock: &Unlock| open_vault(&home.vault, unlock).unwrap_err();

    std::fs::write(home.config_file(), text.replace("format = 1", "format = 2")).unwrap();
    assert!(matches!(
        open(&home.unlock),
        OpenError::Config { source: crate::format::config::ConfigError::Newer { found: 2 }, .. }
    ));
    std::fs::write(home.config_file(), text.replace("kms:embedded/", "vault:")).unwrap();
    let later = open(&home.unlock);
    assert!(matches!(&later, OpenError::Key(KeyError::Uri { .. })), "{later}");
    assert!(later.to_string().contains("unknown provider"), "{later}");
    std::fs::write(home.config_file(), &text).unwrap();

    let nowhere = Unlock { kms_dir: Some(home.vault.with_file_name("none")), ..Unlock::default() };
    assert!(matches!(open(&nowhere), OpenError::Key(KeyError::Unreachable(_))));
    let stranger = home.vault.with_file_name("stranger");
    Engine::create(&stranger, &Protection::KeyFile).unwrap();
    let foreign = Unlock { kms_dir: Some(stranger), ..Unlock::default() };
    assert!(matches!(open(&foreign), OpenError::Key(KeyError::NotFound(_))));
    home.kms().disable_key("alias/envelopefs").unwrap();
    assert!(matches!(open(&home.unlock), OpenError::Key(KeyError::Disabled(_))));
}

/// A store with a passphrase opens vaults with it, and says what is missing without.
#[test]
fn a_passphrase_opens_the_vault() {
    let tmp = tempfile::tempdir().unwrap();
    let (kms, vault) = (tmp.path().join("kms"), tmp.path().join("vault"));
    let phrase = |text: &str| zeroize::Zeroizing::new(text.to_owned());
    Engine::create_with_cost(&kms, &Protection::Passphrase(phrase("secret")), Cost::for_tests()).unwrap();
    let unlock = |text: Option<&str>| Unlock {
        kms_dir: Some(kms.clone()),
        passphrase: text.map(phrase),
        ..Unlock::default()
    };
    ensure_embedded_key(DEFAULT_URI, &unlock(Some("secret"))).unwrap();
    init_vault(&vault, DEFAULT_URI, &unlock(Some("secret"))).unwrap();
    open_vault(&vault, &unlock(Some("secret"))).unwrap();
    for wrong in [None, Some("Secret")] {
        let error = open_vault(&vault, &unlock(wrong)).unwrap_err();
        assert!(matches!(error, OpenError::Key(KeyError::Denied(_))), "{error}");
        assert!(error.to_string().contains("passphrase"), "{error}");
    }
    assert!(!format!("{:?}", unlock(Some("secret"))).contains("secret"));
}

/// The default key is made once; any other URI must name a key that exists.
#[test]
fn only_the_default_key_is_made() {
    let home = home();
    assert!(!ensure_embedded_key(DEFAULT_URI, &home.unlock).unwrap().created);
    let missing = ensure_embedded_key("kms:embedded/alias/typo", &home.unlock);
    assert!(matches!(missing, Err(KeyError::NotFound(_))), "{missing:?}");
    for (uri, word) in [
        ("kms:embedded/", "names no key"),
        ("pkcs11:token=a", "names no key"),
        ("pkcs11:object=a?module-path=/m.so", "no key of the embedded KMS"),
        ("gpg:me", "unknown provider"),
    ] {
        let error = ensure_embedded_key(uri, &home.unlock).unwrap_err().to_string();
        assert!(error.contains(uri) && error.contains(word), "{error}");
    }
}

/// A wrapped key opens in its own vault and file only, whatever else is changed.
#[test]
fn wraps_are_bound_to_vault_and_file() {
    let home = home();
    home.init();
    let ring = home.open();
    let (one, two) = (ring.new_file().unwrap(), ring.new_file().unwrap());
    let one = FileHeader::decode(&one.header).unwrap();
    let two = FileHeader::decode(&two.header).unwrap();
    let swapped = FileHeader { file_id: one.file_id, recipients: two.recipients.clone() };
    assert!(matches!(ring.open_file(&swapped), Err(KeyError::Foreign)));
    let lost = FileHeader {
        recipients: vec![Recipient { key_index: 9, ..one.recipients[0].clone() }],
        ..one.clone()
    };
    assert!(matches!(ring.open_file(&lost), Err(KeyError::NoSuchRow(9))));
    // A second vault under the same key.
    let other = home.vault.with_file_name("other");
    init_vault(&other, DEFAULT_URI, &home.unlock).unwrap();
    let stranger = open_vault(&other, &home.unlock).unwrap();
    assert!(matches!(stranger.open_file(&one), Err(KeyError::Foreign)));
    // The config of one vault in the place of the other's: its vault key is bound to its vault id.
    let text = std::fs::read_to_string(home.config_file()).unwrap();
    let (id, theirs) = (ring.config().vault_id.to_string(), stranger.config().vault_id.to_string());
    std::fs::write(other.join(".envelopefs/vault.toml"), text.replace(&id, &theirs)).unwrap();
    assert!(matches!(open_vault(&other, &home.unlock), Err(OpenError::Key(KeyError::Foreign))));
}

/// The encryption context names vault, purpose and file, as an auditor of AWS KMS would see it.
#[test]
fn the_context_names_vault_purpose_and_file() {
    let (vault, file) = (VaultId([0xab; 16]), FileId([1; 12]));
    let of_file = WrapContext::of_file(vault, file).encryption_context();
    let pairs: Vec<_> = of_file.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(
        pairs,
        [
            ("envelopefs:file", "010101010101010101010101"),
            ("envelopefs:purpose", "file"),
            ("envelopefs:vault", "abababababababababababababababab"),
        ]
    );
    let of_vault = WrapContext::of_vault(vault).encryption_context();
    assert_eq!(of_vault.len(), 2);
    assert_eq!(of_vault["envelopefs:purpose"], "vault");
}

/// After a rotation new files use the new version within moments, and files of both versions open.
#[test]
fn new_files_follow_a_rotation() {
    let home = home();
    home.init();
    let ring = home.open();
    let version = |file: &NewFile| u16::from_le_bytes([file.header[2], file.header[3]]);
    let old = ring.new_file().unwrap();
    assert_eq!(version(&old), 1);
    // Another engine, as another process has one.
    home.kms().rotate_key_on_demand("alias/envelopefs").unwrap();
    let start = Instant::now();
    let new = loop {
        let file = ring.new_file().unwrap();
        if version(&file) == 2 {
            break file;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "the pool still hands out old versions");
        std::thread::sleep(Duration::from_millis(20));
    };
    let fresh = home.open();
    for file in [&old, &new] {
        assert!(same(&fresh.open_file(&FileHeader::decode(&file.header).unwrap()).unwrap(), &file.keys));
    }
}

/// A provider in memory that counts, can fail, and can be slow.
#[derive(Default)]
struct Counting {
    batches: AtomicUsize,
    unwraps: AtomicUsize,
    fails: AtomicBool,
    slow: AtomicBool,
    far: AtomicBool,
    version: AtomicU16,
}

impl Provider for Counting {
    fn describe(&self) -> Result<KeyInfo, KeyError> {
        Ok(KeyInfo { uri: "test:".into(), key_id: "test".into(), version: None })
    }

    fn generate(&self, contexts: &[WrapContext]) -> Result<Vec<(DataKey, Wrapped)>, KeyError> {
        self.batches.fetch_add(1, SeqCst);
        if self.fails.load(SeqCst) {
            return Err(KeyError::Unreachable("down".into()));
        }
        let version = self.version.load(SeqCst);
        let make = |context: &WrapContext| {
            let key = Secret::random();
            (DataKey(key.duplicate()), seal(&key, context, version))
        };
        Ok(contexts.iter().map(make).collect())
    }

    fn wrap(&self, key: &Secret<32>, context: &WrapContext) -> Result<Wrapped, KeyError> {
        Ok(seal(key, context, self.version.load(SeqCst)))
    }

    fn unwrap(&self, wrapped: &Wrapped, _context: &WrapContext) -> Result<Secret<32>, KeyError> {
        self.unwraps.fetch_add(1, SeqCst);
        if self.slow.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(100));
        }
        if self.fails.load(SeqCst) {
            return Err(KeyError::Unreachable("down".into()));
        }
        let Wrapped::Compact { bytes, .. } = wrapped else { return Err(KeyError::Foreign) };
        Ok(Secret::from_slice(&bytes[..32]).unwrap())
    }

    fn wrapping_version(&self) -> Option<u16> {
        Some(self.version.load(SeqCst))
    }

    fn is_far(&self) -> bool {
        self.far.load(SeqCst)
    }
}

fn seal(key: &Secret<32>, _context: &WrapContext, version: u16) -> Wrapped {
    let mut bytes = [0; 48];
    bytes[..32].copy_from_slice(key.expose());
    Wrapped::Compact { version, bytes }
}

fn ring(provider: &Arc<Counting>, tuning: Tuning) -> Keyring {
    let key = WrappingKey { index: 0, uri: "test:".into(), wrapped_vault_key: vec![], active: true };
    let config = VolumeConfig {
        format: FORMAT_VERSION,
        vault_id: VaultId([1; 16]),
        created: 0,
        keys: vec![key],
        next_row: 1,
    };
    let row = Row::new(0, "test:".into(), true, Ok(provider.clone() as Arc<dyn Provider>));
    let table = Table { config, rows: vec![Arc::new(row)], generation: 0 };
    Keyring::new(table, VaultKey(Secret::random()), None, &tuning)
}

fn tuning(count: usize, age: Duration, pool_size: usize) -> Tuning {
    Tuning {
        cache_count: NonZeroUsize::new(count).unwrap(),
        cache_age: age,
        pool_size,
        ahead: 0,
        renewal: Renewal::default(),
    }
}

fn header(n: u8) -> FileHeader {
    let wrapped = Wrapped::Compact { version: 0, bytes: [n; 48] };
    FileHeader { file_id: FileId([n; 12]), recipients: vec![Recipient { key_index: 0, wrapped }] }
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Reading a file again costs no unwrap; a header with other bytes is another key; the count bound holds.
#[test]
fn the_cache_is_bounded_by_count() {
    let provider = Arc::new(Counting::default());
    let ring = ring(&provider, tuning(4, Duration::from_secs(60), 8));
    for _ in 0..3 {
        ring.open_file(&header(1)).unwrap();
    }
    assert_eq!(ring.provider_calls().0, 1);
    let mut exchanged = header(1);
    exchanged.recipients = header(2).recipients;
    ring.open_file(&exchanged).unwrap();
    assert_eq!(ring.provider_calls().0, 2);
    for n in 10..30 {
        ring.open_file(&header(n)).unwrap();
    }
    assert_eq!(ring.held().0, 4);
    ring.open_file(&header(1)).unwrap();
    assert_eq!(ring.provider_calls().0, 23);
}

/// An old key is forgotten, also one that is asked for all the time.
#[test]
fn the_cache_is_bounded_by_age() {
    let provider = Arc::new(Counting::default());
    let ring = ring(&provider, tuning(4, Duration::from_millis(50), 8));
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(80) {
        ring.open_file(&header(1)).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(ring.provider_calls().0 >= 2);
    let cache = super::cache::Cache::new(NonZeroUsize::new(9).unwrap(), Duration::from_millis(5));
    cache.keys(&header(1), || Ok(DataKey(Secret::random()))).unwrap();
    std::thread::sleep(Duration::from_millis(10));
    cache.sweep();
    assert_eq!(cache.len(), 0);
}

/// Eight threads that open one file at once cause one unwrap; a failed unwrap is each caller's own.
#[test]
fn opens_of_one_file_share_an_unwrap() {
    let provider = Arc::new(Counting::default());
    provider.slow.store(true, SeqCst);
    let ring = ring(&provider, tuning(16, Duration::from_secs(60), 8));
    let barrier = Barrier::new(8);
    let open_all = |n: u8| {
        std::thread::scope(|scope| {
            let run = || {
                barrier.wait();
                ring.open_file(&header(n)).is_ok()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(run)).collect();
            threads.into_iter().filter_map(|t| t.join().ok()).filter(|ok| *ok).count()
        })
    };
    assert_eq!(open_all(1), 8);
    assert_eq!(provider.unwraps.load(SeqCst), 1);
    provider.slow.store(false, SeqCst);
    provider.fails.store(true, SeqCst);
    assert_eq!(open_all(2), 0);
    provider.fails.store(false, SeqCst);
    ring.open_file(&header(2)).unwrap();
}

/// Different files do not wait for each other's unwraps.
#[test]
fn unwraps_of_different_files_overlap() {
    let provider = Arc::new(Counting::default());
    provider.slow.store(true, SeqCst);
    let ring = ring(&provider, tuning(16, Duration::from_secs(60), 8));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for n in 0..6 {
            let ring = &ring;
            scope.spawn(move || ring.open_file(&header(n)).unwrap());
        }
    });
    assert!(start.elapsed() < Duration::from_millis(400), "{:?}", start.elapsed());
}

/// A thousand creates cost a few batches, every file has its own id, and a new file is in the cache.
#[test]
fn creates_come_from_the_pool() {
    let provider = Arc::new(Counting::default());
    let ring = ring(&provider, tuning(8192, Duration::from_secs(60), 500));
    assert_eq!(ring.provider_calls(), (0, 0), "nothing happens before the first create");
    let mut ids = std::collections::BTreeSet::new();
    ring.new_file().unwrap();
    wait_until("the pool fills", || ring.held().1 > 450);
    for _ in 0..1000 {
        if ring.held().1 < 100 {
            wait_until("the pool fills again", || ring.held().1 > 350);
        }
        let file = ring.new_file().unwrap();
        assert!(ids.insert(file.file_id));
        assert!(Arc::ptr_eq(
            &file.keys,
            &ring.open_file(&FileHeader::decode(&file.header).unwrap()).unwrap()
        ));
    }
    let (unwraps, generates) = ring.provider_calls();
    assert_eq!(unwraps, 0);
    assert!(generates <= 6, "{generates} batches for 1000 files");
}

/// With the provider down creates use what is ready and then say so; when it is back they go on.
#[test]
fn a_provider_that_is_down_stops_creates_only_when_the_pool_is_empty() {
    let provider = Arc::new(Counting::default());
    let ring = ring(&provider, tuning(16, Duration::from_secs(60), 20));
    ring.new_file().unwrap();
    wait_until("the pool fills", || ring.held().1 > 6);
    provider.fails.store(true, SeqCst);
    for _ in 0..7 {
        ring.new_file().unwrap();
    }
    while ring.held().1 > 0 {
        ring.new_file().unwrap();
    }
    assert!(matches!(ring.new_file(), Err(KeyError::Unreachable(_))));
    let asked = provider.batches.load(SeqCst);
    std::thread::sleep(Duration::from_millis(100));
    assert!(provider.batches.load(SeqCst) <= asked + 2, "the thread pauses between attempts");
    provider.fails.store(false, SeqCst);
    wait_until("the pool fills by itself", || ring.held().1 == 20);
    ring.new_file().unwrap();
}

/// A rotation empties the pool: at most a second later no new file has the old version.
#[test]
fn a_rotation_drains_the_pool() {
    let provider = Arc::new(Counting::default());
    let ring = ring(&provider, tuning(16, Duration::from_secs(60), 100));
    ring.new_file().unwrap();
    wait_until("the pool fills", || ring.held().1 > 0);
    provider.version.store(1, SeqCst);
    std::thread::sleep(Duration::from_millis(1050));
    for _ in 0..50 {
        assert_eq!(ring.new_file().unwrap().header[2], 1);
    }
}

/// Dropping the keyring ends its thread.
#[test]
fn the_thread_ends_with_the_keyring() {
    let provider = Arc::new(Counting::default());
    let ring = ring(&provider, tuning(16, Duration::from_secs(60), 100));
    ring.new_file().unwrap();
    drop(ring);
    assert_eq!(Arc::strong_count(&provider), 1, "the thread still holds the provider");
}

/// A create takes microseconds, not a call to the provider. The bound is wide: test machines are shared.
#[test]
fn a_create_is_cheap() {
    let home = home();
    home.init();
    let ring = home.open();
    ring.new_file().unwrap();
    wait_until("the pool fills", || ring.held().1 > 490);
    let start = Instant::now();
    for _ in 0..300 {
        ring.new_file().unwrap();
    }
    let each = start.elapsed() / 300;
    assert!(each < Duration::from_millis(1), "{each:?} for each create");
}

/// Of several recipients any one opens the file; the error told is the one an operator can act on.
#[test]
fn any_recipient_opens() {
    let provider = Arc::new(Counting::default());
    let ring = ring(&provider, Tuning::default());
    let lost = Recipient { key_index: 7, wrapped: Wrapped::Blob(vec![1]) };
    let foreign = Recipient { key_index: 0, wrapped: Wrapped::Blob(vec![1]) };
    let good = header(1).recipients.remove(0);
    let with = |recipients: &[&Recipient]| FileHeader {
        file_id: FileId([1; 12]),
        recipients: recipients.iter().map(|r| (*r).clone()).collect(),
    };
    ring.open_file(&with(&[&lost, &foreign, &good])).unwrap();
    assert!(matches!(ring.open_file(&with(&[&foreign, &lost])), Err(KeyError::NoSuchRow(7))));
    provider.fails.store(true, SeqCst);
    assert!(matches!(ring.open_file(&with(&[&lost, &foreign, &good, &good])), Err(KeyError::Unreachable(_))));
}

/// No secret shows in a debug line.
#[test]
fn debug_lines_hold_no_key() {
    let home = home();
    home.init();
    let ring = home.open();
    let file = ring.new_file().unwrap();
    let lines = format!("{ring:?} {file:?} {:?}", home.unlock);
    let key = ring.vault_key().0.expose();
    assert!(!lines.contains(&format!("{key:?}")) && !lines.contains(&::hex::encode(key)), "{lines}");
}
