//! The engine against its promises. What needs a second process stands in `tests/kms_store.rs`.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::table::View as _;
use super::*;
use crate::crypto::Secret;

fn context(pairs: &[(&str, &str)]) -> EncryptionContext {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn phrase(text: &str) -> Protection {
    Protection::Passphrase(Zeroizing::new(text.to_owned()))
}

/// A store in a temporary directory; the directory goes with the first field.
fn store() -> (tempfile::TempDir, Engine) {
    let tmp = tempfile::tempdir().unwrap();
    let engine = Engine::create(&tmp.path().join("kms"), &Protection::KeyFile).unwrap();
    (tmp, engine)
}

fn code<T: std::fmt::Debug>(result: Result<T, KmsError>) -> &'static str {
    result.unwrap_err().code()
}

/// What was encrypted under version 1 opens after rotations, and new blobs use the new material.
#[test]
fn old_blobs_open_after_rotation() {
    let (_tmp, kms) = store();
    let key = kms.create_key("").unwrap();
    let ctx = context(&[("a", "b")]);
    let old = kms.encrypt(&key.key_id, b"one", &ctx).unwrap();
    let rotated = kms.rotate_key_on_demand(&key.key_id).unwrap();
    assert_eq!((key.version, rotated.version), (1, 2));
    assert_ne!(key.current_key_material_id, rotated.current_key_material_id);
    let new = kms.encrypt(&key.key_id, b"two", &ctx).unwrap();
    assert_eq!(old.key_material_id, key.current_key_material_id);
    assert_eq!(new.key_material_id, rotated.current_key_material_id);
    // An engine that has never seen the key reads both.
    let fresh = Engine::open(kms.dir(), None).unwrap();
    for engine in [&kms, &fresh] {
        assert_eq!(engine.decrypt(&old.blob, &ctx, None).unwrap().plaintext.as_slice(), b"one");
        assert_eq!(engine.decrypt(&new.blob, &ctx, Some(&key.arn)).unwrap().plaintext.as_slice(), b"two");
    }
    let rotations = kms.list_key_rotations(&key.key_id).unwrap();
    assert_eq!(rotations.len(), 1);
    assert_eq!(rotations[0].key_material_state, "CURRENT");
}

/// The compact wrap opens with its version, nonce and context, and with no other; rotation keeps it opening.
#[test]
fn the_compact_wrap_is_bound_to_version_nonce_and_context() {
    let (_tmp, kms) = store();
    let key = kms.create_key("").unwrap().key_id;
    let (ctx, nonce) = (context(&[("file", "1")]), [7; 12]);
    let (plain, wrapped) = kms.generate_compact(&key, [(&nonce, &ctx)]).unwrap().pop().unwrap();
    kms.rotate_key_on_demand(&key).unwrap();
    let again = kms.wrap_compact(&key, &nonce, &plain, &ctx).unwrap();
    assert_eq!((wrapped.version, again.version), (1, 2));
    for good in [wrapped, again] {
        assert_eq!(kms.unwrap_compact(&key, &nonce, &good, &ctx).unwrap().expose(), plain.expose());
    }
    let other = kms.create_key("").unwrap().key_id;
    let crossed = Compact { version: 2, ..wrapped };
    let unknown = Compact { version: 3, ..wrapped };
    let zero = Compact { version: 0, ..wrapped };
    let refused = "InvalidCiphertextException";
    assert_eq!(code(kms.unwrap_compact(&key, &[8; 12], &wrapped, &ctx)), refused);
    assert_eq!(code(kms.unwrap_compact(&key, &nonce, &wrapped, &context(&[("file", "2")]))), refused);
    assert_eq!(code(kms.unwrap_compact(&other, &nonce, &wrapped, &ctx)), refused);
    assert_eq!(code(kms.unwrap_compact(&key, &nonce, &crossed, &ctx)), refused);
    assert_eq!(code(kms.unwrap_compact(&key, &nonce, &unknown, &ctx)), "NotFoundException");
    assert_eq!(code(kms.unwrap_compact(&key, &nonce, &zero, &ctx)), "NotFoundException");
    for bit in 0..48 * 8 {
        let mut changed = wrapped;
        changed.bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(code(kms.unwrap_compact(&key, &nonce, &changed, &ctx)), refused, "bit {bit}");
    }
}

/// `{"a":"bc"}` does not open what `{"ab":"c"}` sealed; order does not matter.
#[test]
fn the_context_is_unambiguous() {
    let (_tmp, kms) = store();
    let key = kms.create_key("").unwrap().key_id;
    let sealed = kms.encrypt(&key, b"x", &context(&[("ab", "c"), ("d", "")])).unwrap().blob;
    for wrong in
        [&[("a", "bc"), ("d", "")][..], &[("ab", "cd")], &[("ab", "c")], &[("AB", "c"), ("d", "")], &[]]
    {
        assert_eq!(
            code(kms.decrypt(&sealed, &context(wrong), None)),
            "InvalidCiphertextException",
            "{wrong:?}"
        );
    }
    kms.decrypt(&sealed, &context(&[("d", ""), ("ab", "c")]), None).unwrap();
}

/// Every changed bit and every cut of a blob is refused, with an exception and without a panic.
#[test]
fn a_changed_blob_does_not_open() {
    let (_tmp, kms) = store();
    let key = kms.create_key("").unwrap().key_id;
    let ctx = context(&[]);
    let sealed = kms.encrypt(&key, b"data", &ctx).unwrap().blob;
    for bit in 0..sealed.len() * 8 {
        let mut changed = sealed.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let error = code(kms.decrypt(&changed, &ctx, None));
        assert!(matches!(error, "InvalidCiphertextException" | "NotFoundException"), "bit {bit}: {error}");
    }
    for len in 0..sealed.len() {
        assert_eq!(code(kms.decrypt(&sealed[..len], &ctx, None)), "InvalidCiphertextException");
    }
    let other = kms.create_key("").unwrap().key_id;
    assert_eq!(code(kms.decrypt(&sealed, &ctx, Some(&other))), "IncorrectKeyException");
}

/// ReEncrypt moves a message to another key and context; GenerateDataKey's blob gives the same key back.
#[test]
fn messages_move_between_keys() {
    let (_tmp, kms) = store();
    let (one, two) = (kms.create_key("").unwrap(), kms.create_key("").unwrap());
    let (from, to) = (context(&[("k", "1")]), context(&[("k", "2")]));
    let (plain, sealed) = kms.generate_data_key(&one.arn, &from).unwrap();
    let moved = kms.re_encrypt(&sealed.blob, &from, &two.key_id, &to).unwrap();
    assert_eq!(moved.key_arn, two.arn);
    assert_eq!(kms.decrypt(&moved.blob, &to, Some(&two.arn)).unwrap().plaintext.as_slice(), plain.expose());
    assert_eq!(code(kms.re_encrypt(&sealed.blob, &to, &two.key_id, &to)), "InvalidCiphertextException");
}

/// Keys are found by id, ARN, alias and alias ARN; aliases follow AWS's rules.
#[test]
fn keys_are_found_by_every_name() {
    let (_tmp, kms) = store();
    let key = kms.create_key("payroll").unwrap();
    kms.create_alias("alias/pay", &key.arn).unwrap();
    for name in [&*key.key_id, &*key.arn, "alias/pay", "arn:aws:kms:us-east-1:000000000000:alias/pay"] {
        assert_eq!(kms.describe_key(name).unwrap().description, "payroll", "{name}");
    }
    let taken = kms.create_alias("alias/pay", &key.key_id).unwrap_err();
    assert_eq!(taken.code(), "AlreadyExistsException");
    assert!(taken.to_string().contains("arn:aws:kms:us-east-1:000000000000:alias/pay already exists"));
    assert_eq!(code(kms.create_alias("alias/b!", &key.key_id)), "ValidationException");
    assert_eq!(code(kms.create_alias("alias/new", "alias/none")), "NotFoundException");
    let missing = "01234567-89ab-4cde-8f01-23456789abcd";
    assert_eq!(
        kms.describe_key(missing).unwrap_err().to_string(),
        format!("Key 'arn:aws:kms:us-east-1:000000000000:key/{missing}' does not exist")
    );
    assert_eq!(kms.list_keys().unwrap().len(), 1);
    assert_eq!(kms.list_aliases().unwrap()[0].target_key_id, key.key_id);
    assert_eq!(kms.ensure_alias("alias/pay", "x").unwrap().key_id, key.key_id);
    let made = kms.ensure_alias("alias/other", "made").unwrap();
    assert_eq!(kms.describe_key("alias/other").unwrap().key_id, made.key_id);
}

/// A key has AWS's number of on-demand rotations, or the limit its store was opened with.
#[test]
fn rotations_have_a_limit() {
    let (_tmp, kms) = store();
    let kms = kms.with_limits(Limits { on_demand_rotations: 2, ..Limits::default() });
    let key = kms.create_key("").unwrap().key_id;
    for _ in 0..2 {
        kms.rotate_key_on_demand(&key).unwrap();
    }
    assert_eq!(code(kms.rotate_key_on_demand(&key)), "LimitExceededException");
    assert_eq!(kms.describe_key(&key).unwrap().version, 3);
    assert_eq!(Limits::default().on_demand_rotations, 25);
}

/// A disabled key does nothing, at once, also for an engine that had used it before.
#[test]
fn a_disabled_key_does_nothing() {
    let (_tmp, kms) = store();
    let other = Engine::open(kms.dir(), None).unwrap();
    let key = kms.create_key("").unwrap().key_id;
    let ctx = context(&[]);
    let sealed = other.encrypt(&key, b"x", &ctx).unwrap().blob;
    kms.disable_key(&key).unwrap();
    let disabled = "DisabledException";
    assert_eq!(code(other.decrypt(&sealed, &ctx, None)), disabled);
    assert_eq!(code(other.encrypt(&key, b"x", &ctx)), disabled);
    assert_eq!(code(other.rotate_key_on_demand(&key)), disabled);
    assert_eq!(code(other.generate_compact(&key, [(&[0; 12], &ctx)])), disabled);
    assert_eq!(other.describe_key(&key).unwrap().key_state, "Disabled");
    kms.enable_key(&key).unwrap();
    other.decrypt(&sealed, &ctx, None).unwrap();
}

/// The sizes AWS allows, and no others.
#[test]
fn plaintext_has_a_size() {
    let (_tmp, kms) = store();
    let key = kms.create_key("").unwrap().key_id;
    let ctx = context(&[]);
    assert_eq!(code(kms.encrypt(&key, b"", &ctx)), "ValidationException");
    assert_eq!(code(kms.encrypt(&key, &[0; 4097], &ctx)), "ValidationException");
    let sealed = kms.encrypt(&key, &[1; 4096], &ctx).unwrap().blob;
    assert!(sealed.len() <= 6144);
    assert_eq!(kms.decrypt(&sealed, &ctx, None).unwrap().plaintext.len(), 4096);
}

/// Right passphrase opens, wrong one and none are denied with words that tell them apart.
#[test]
fn a_passphrase_protects_the_store() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("kms");
    let kms = Engine::create_with_cost(&dir, &phrase("correct horse"), Cost::for_tests()).unwrap();
    let key = kms.create_key("").unwrap().key_id;
    assert_eq!(protection(&dir).unwrap(), ProtectionKind::Passphrase);
    assert!(!dir.join("root.key").exists());
    Engine::open(&dir, Some("correct horse")).unwrap().describe_key(&key).unwrap();
    let none = Engine::open(&dir, None).unwrap_err().to_string();
    assert!(none.contains("is protected by a passphrase; give it"), "{none}");
    let wrong = Engine::open(&dir, Some("battery staple")).unwrap_err();
    assert_eq!(wrong.code(), "AccessDeniedException");
    assert!(wrong.to_string().contains("wrong passphrase"), "{wrong}");
    let empty = Engine::create_with_cost(&tmp.path().join("e"), &phrase(""), Cost::for_tests());
    assert_eq!(code(empty), "ValidationException");
    assert!(!tmp.path().join("e").exists());
}

/// The default price of a guess is the one the documentation states.
#[test]
fn the_default_cost_is_64_mib_and_three_passes() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("kms");
    Engine::create(&dir, &phrase("p")).unwrap();
    let text = std::fs::read_to_string(dir.join("root.toml")).unwrap();
    for field in ["memory_kib = 65536", "passes = 3", "lanes = 1"] {
        assert!(text.contains(field), "{text}");
    }
}

/// Protection can be changed both ways; the old secret then opens nothing, and the keys are the same.
#[test]
fn protection_changes_without_touching_keys() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("kms");
    let kms = Engine::create(&dir, &Protection::KeyFile).unwrap();
    let key = kms.create_key("").unwrap().key_id;
    let sealed = kms.encrypt(&key, b"x", &context(&[])).unwrap().blob;
    let change = |old, new: &Protection| {
        root::reprotect(&dir, &RootSecrets { passphrase: old, tokens: None }, new, Cost::for_tests())
    };
    change(None, &phrase("one")).unwrap();
    assert!(!dir.join("root.key").exists());
    change(Some("one"), &phrase("two")).unwrap();
    assert_eq!(code(change(Some("one"), &phrase("three"))), "AccessDeniedException");
    assert_eq!(code(Engine::open(&dir, Some("one"))), "AccessDeniedException");
    Engine::open(&dir, Some("two")).unwrap().decrypt(&sealed, &context(&[]), None).unwrap();
    change(Some("two"), &Protection::KeyFile).unwrap();
    Engine::open(&dir, None).unwrap().decrypt(&sealed, &context(&[]), None).unwrap();
}

/// A token with one key.
struct FakeToken(Arc<FakeKey>);

struct FakeKey(crate::crypto::SealKey);

impl RootSealer for FakeKey {
    fn uri(&self) -> &str {
        "pkcs11:object=root?module-path=/m.so"
    }
    fn wrap(&self, key: &Secret<32>, context: &[u8]) -> Result<Vec<u8>, KmsError> {
        Ok(self.0.seal(context, key.expose()))
    }
    fn unwrap(&self, wrapped: &[u8], context: &[u8]) -> Result<Secret<32>, KmsError> {
        let opened = self.0.open(context, wrapped).map_err(|_| KmsError::Denied("another key".into()))?;
        Secret::from_slice(&opened).ok_or_else(|| KmsError::Denied("no key".into()))
    }
}

impl RootTokens for FakeToken {
    fn find(&self, _uri: &str) -> Result<Arc<dyn RootSealer>, KmsError> {
        Ok(self.0.clone())
    }
}

/// A token's key opens the store: this one and no other, and only as `root.toml` was written.
#[test]
fn a_token_protects_the_store() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("kms");
    let token = || FakeToken(Arc::new(FakeKey(crate::crypto::SealKey::new(Secret::random()))));
    let (ours, other) = (token(), token());
    let by = |token: &FakeToken| {
        Engine::open_by(&dir, &RootSecrets { tokens: Some(token), ..RootSecrets::default() })
    };
    let kms = Engine::create(&dir, &Protection::Token(ours.0.clone())).unwrap();
    let key = kms.create_key("").unwrap().key_id;
    assert_eq!(protection(&dir).unwrap(), ProtectionKind::Token);
    assert_eq!(root_uri(&dir).unwrap().as_deref(), Some(ours.0.uri()));
    assert!(!dir.join("root.key").exists());
    by(&ours).unwrap().describe_key(&key).unwrap();
    assert_eq!(code(by(&other)), "AccessDeniedException");
    let none = Engine::open(&dir, Some("phrase")).unwrap_err().to_string();
    assert!(none.contains("sealed by pkcs11:object=root"), "{none}");
    let path = dir.join("root.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let wrapped = text.replace("wrapped_key = \"", "wrapped_key = \"00");
    for changed in [text.replace("/m.so", "/x.so"), wrapped] {
        assert_ne!(changed, text);
        std::fs::write(&path, changed).unwrap();
        assert_eq!(code(by(&ours)), "AccessDeniedException");
    }
    std::fs::write(&path, &text).unwrap();
    let secrets = RootSecrets { tokens: Some(&ours), ..RootSecrets::default() };
    reprotect(&dir, &secrets, &Protection::KeyFile).unwrap();
    assert_eq!(root_uri(&dir).unwrap(), None);
    reprotect(&dir, &RootSecrets::default(), &Protection::Token(other.0.clone())).unwrap();
    assert!(!dir.join("root.key").exists());
    assert_eq!(code(by(&ours)), "AccessDeniedException");
    by(&other).unwrap().describe_key(&key).unwrap();
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The store is made private, and refused when others could read any part of it.
#[test]
fn a_store_that_others_can_read_is_refused() {
    let (_tmp, kms) = store();
    let dir: PathBuf = kms.dir().into();
    assert_eq!(dir.metadata().unwrap().mode() & 0o7777, 0o700);
    for name in ["root.toml", "root.key", "store.redb"] {
        assert_eq!(dir.join(name).metadata().unwrap().mode() & 0o7777, 0o600, "{name}");
    }
    for (path, wide, right) in [
        (dir.clone(), 0o750, 0o700),
        (dir.join("root.key"), 0o640, 0o600),
        (dir.join("root.toml"), 0o604, 0o600),
    ] {
        chmod(&path, wide);
        let error = Engine::open(&dir, None).unwrap_err();
        assert!(matches!(error, KmsError::Permissions { .. }), "{error}");
        assert!(error.to_string().contains("chmod"), "{error}");
        chmod(&path, right);
        Engine::open(&dir, None).unwrap();
    }
    std::os::unix::fs::symlink(dir.join("root.key"), dir.join("x")).unwrap();
    std::fs::rename(dir.join("root.key"), dir.join("real")).unwrap();
    std::os::unix::fs::symlink("real", dir.join("root.key")).unwrap();
    assert!(Engine::open(&dir, None).is_err(), "a key file behind a symlink was read");
}

/// A missing store, a directory that is none, and a place that is taken have their messages.
#[test]
fn places_without_a_store_are_told_apart() {
    let (tmp, kms) = store();
    assert!(matches!(Engine::open(&tmp.path().join("none"), None), Err(KmsError::NoStore(_))));
    let empty = tmp.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    chmod(&empty, 0o700);
    assert!(matches!(protection(&empty), Err(KmsError::NoStore(_))));
    assert!(matches!(Engine::create(kms.dir(), &Protection::KeyFile), Err(KmsError::StoreExists(_))));
    Engine::create(&empty, &Protection::KeyFile).unwrap();
    std::fs::remove_file(empty.join("store.redb")).unwrap();
    assert!(matches!(Engine::open(&empty, None), Err(KmsError::NoStore(_))));
}

/// No byte of `root.toml` can be changed: the store is then refused, or (white space) means the same.
#[test]
fn a_changed_root_file_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("kms");
    Engine::create_with_cost(&dir, &phrase("p"), Cost::for_tests()).unwrap();
    let path = dir.join("root.toml");
    let text = std::fs::read(&path).unwrap();
    for at in 0..text.len() {
        let mut changed = text.clone();
        changed[at] ^= 1;
        std::fs::write(&path, &changed).unwrap();
        assert!(Engine::open(&dir, Some("p")).is_err(), "byte {at}");
        // Without its last line end it is the same text.
        if at + 1 < text.len() {
            std::fs::write(&path, &text[..at]).unwrap();
            assert!(Engine::open(&dir, Some("p")).is_err(), "cut at {at}");
        }
    }
    std::fs::write(&path, String::from_utf8_lossy(&text).replace("format = 1", "format = 2")).unwrap();
    assert!(matches!(protection(&dir), Err(KmsError::Newer { found: 2, .. })));
}

/// The root file of one store does not open another's, though both use key files.
#[test]
fn key_files_do_not_open_other_stores() {
    let (_a, one) = store();
    let (_b, two) = store();
    std::fs::copy(one.dir().join("root.key"), two.dir().join("root.key")).unwrap();
    assert_eq!(code(Engine::open(two.dir(), None)), "AccessDeniedException");
    std::fs::copy(one.dir().join("root.toml"), two.dir().join("root.toml")).unwrap();
    let key = two.create_key("").unwrap().key_id;
    let opened = Engine::open(two.dir(), None).unwrap();
    assert!(matches!(opened.describe_key(&key), Err(KmsError::Damaged { .. })));
}

/// Damage of the store file gives an error, never a panic or a wrong answer.
#[test]
fn a_damaged_store_is_an_error() {
    let (_tmp, kms) = store();
    let key = kms.create_key("").unwrap().key_id;
    let path = kms.dir().join("store.redb");
    let whole = std::fs::read(&path).unwrap();
    let fresh = || Engine::open(kms.dir(), None).unwrap();
    for at in (0..whole.len()).step_by(997) {
        let mut changed = whole.clone();
        changed[at..(at + 64).min(whole.len())].fill(0xff);
        std::fs::write(&path, &changed).unwrap();
        // Unused pages may be changed without harm; then the answer is the right one.
        if let Ok(found) = fresh().describe_key(&key) {
            assert_eq!(found.key_id, key);
        }
    }
    for len in [0, 100, 4096, whole.len() - 1] {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert!(fresh().describe_key(&key).is_err(), "cut to {len}");
    }
    std::fs::write(&path, &whole).unwrap();
    fresh().describe_key(&key).unwrap();
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

/// Neither key material nor metadata stands in the store's bytes, and no secret in a debug line.
#[test]
fn the_store_shows_nothing() {
    let (_tmp, kms) = store();
    let key = kms.create_key("salaries of the board").unwrap();
    let material = kms
        .store
        .read(|r| r.bytes(super::table::MATERIALS, &key.current_key_material_id))
        .unwrap()
        .expect("the key has material");
    assert_eq!(material.len(), 32);
    let root_key = std::fs::read_to_string(kms.dir().join("root.key")).unwrap();
    for name in ["store.redb", "root.toml"] {
        let bytes = std::fs::read(kms.dir().join(name)).unwrap();
        assert!(!contains(&bytes, &material) && !contains(&bytes, b"salaries"), "{name}");
        assert!(!contains(&bytes, root_key.trim().as_bytes()), "{name}");
    }
    let (plain, sealed) = kms.generate_data_key(&key.key_id, &context(&[])).unwrap();
    let opened = kms.decrypt(&sealed.blob, &context(&[]), None).unwrap();
    let lines = format!("{kms:?} {opened:?} {plain:?} {:?}", phrase("hunter2"));
    assert!(!lines.contains("hunter2"), "{lines}");
    assert!(
        !lines.contains(&hex::encode(plain.expose())) && !lines.contains(&format!("{:?}", plain.expose()))
    );
}

/// Records of one key do not open in the place of another's.
#[test]
fn records_do_not_stand_in_for_each_other() {
    let (_tmp, kms) = store();
    let (one, two) = (kms.create_key("").unwrap(), kms.create_key("").unwrap());
    use redb::ReadableTable as _;
    let table: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("materials");
    let db = redb::Database::open(kms.dir().join("store.redb")).unwrap();
    let txn = db.begin_write().unwrap();
    {
        let mut rows = txn.open_table(table).unwrap();
        let moved = rows.get(&*one.current_key_material_id).unwrap().unwrap().value().to_vec();
        rows.insert(&*two.current_key_material_id, &*moved).unwrap();
    }
    txn.commit().unwrap();
    drop(db);
    let fresh = Engine::open(kms.dir(), None).unwrap();
    fresh.encrypt(&one.key_id, b"x", &context(&[])).unwrap();
    assert!(matches!(fresh.encrypt(&two.key_id, b"x", &context(&[])), Err(KmsError::Damaged { .. })));
}

/// An unwrap that was done before costs no opening of the store; a change by another engine is seen.
#[test]
fn the_store_is_opened_only_when_it_changed() {
    let (_tmp, kms) = store();
    let key = kms.create_key("").unwrap().key_id;
    std::thread::sleep(std::time::Duration::from_millis(120));
    let (ctx, nonce) = (context(&[]), [1; 12]);
    let plain = Secret::random();
    let wrapped = kms.wrap_compact(&key, &nonce, &plain, &ctx).unwrap();
    kms.unwrap_compact(&key, &nonce, &wrapped, &ctx).unwrap();
    {
        let path = kms.dir().join("store.redb");
        let modified = path.metadata().unwrap().modified().unwrap();
        let _locked = redb::Database::open(&path).unwrap();
        // As if the other had only taken the lock so far.
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        let start = std::time::Instant::now();
        kms.unwrap_compact(&key, &nonce, &wrapped, &ctx).unwrap();
        assert!(start.elapsed().as_secs() < 2, "the store was opened, and waited for");
    }
    Engine::open(kms.dir(), None).unwrap().rotate_key_on_demand(&key).unwrap();
    assert_eq!(kms.wrap_compact(&key, &nonce, &plain, &ctx).unwrap().version, 2);
}

/// Many threads use one engine, and others rotate meanwhile: every wrap opens.
#[test]
fn threads_share_an_engine() {
    let (_tmp, kms) = store();
    let kms = kms.with_limits(Limits { on_demand_rotations: 1000, ..Limits::default() });
    let key = kms.create_key("").unwrap().key_id;
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let (kms, key) = (&kms, &key);
            scope.spawn(move || {
                let ctx = context(&[("thread", &thread.to_string())]);
                for round in 0..20 {
                    let nonce = [thread * 20 + round; 12];
                    let (plain, wrapped) =
                        kms.generate_compact(key, [(&nonce, &ctx)]).unwrap().pop().unwrap();
                    if thread == 0 {
                        kms.rotate_key_on_demand(key).unwrap();
                    }
                    assert_eq!(
                        kms.unwrap_compact(key, &nonce, &wrapped, &ctx).unwrap().expose(),
                        plain.expose()
                    );
                }
            });
        }
    });
    assert_eq!(kms.describe_key(&key).unwrap().version, 21);
}

/// Field names of an answer as JSON, sorted.
fn of(answer: &impl serde::Serialize) -> Vec<String> {
    let json = serde_json::to_value(answer).unwrap();
    let mut names: Vec<_> = json.as_object().expect("an object").keys().cloned().collect();
    names.sort();
    names
}

/// Answers have AWS's field names, so that what reads `aws kms` output reads ours.
#[test]
fn answers_have_the_field_names_of_aws() {
    let (_tmp, kms) = store();
    let key = kms.create_key("d").unwrap();
    kms.create_alias("alias/a", &key.key_id).unwrap();
    kms.rotate_key_on_demand(&key.key_id).unwrap();
    assert_eq!(
        of(&key),
        [
            "AWSAccountId",
            "Arn",
            "CreationDate",
            "CurrentKeyMaterialId",
            "CustomerMasterKeySpec",
            "Description",
            "Enabled",
            "EncryptionAlgorithms",
            "KeyId",
            "KeyManager",
            "KeySpec",
            "KeyState",
            "KeyUsage",
            "MultiRegion",
            "Origin",
        ]
    );
    assert_eq!(of(&kms.list_keys().unwrap()[0]), ["KeyArn", "KeyId"]);
    assert_eq!(
        of(&kms.list_aliases().unwrap()[0]),
        ["AliasArn", "AliasName", "CreationDate", "LastUpdatedDate", "TargetKeyId"]
    );
    assert_eq!(
        of(&kms.list_key_rotations(&key.key_id).unwrap()[0]),
        ["KeyId", "KeyMaterialId", "KeyMaterialState", "RotationDate", "RotationType"]
    );
    assert_eq!(key.current_key_material_id.len(), 64);
}

/// A backup gives back every key under another root key; a wrong passphrase, a changed byte and a cut file do not, and
/// leave nothing behind.
#[test]
fn a_backup_brings_everything_back() {
    let (tmp, kms) = store();
    let key = kms.create_key("payroll").unwrap().key_id;
    kms.create_alias("alias/pay", &key).unwrap();
    let sealed = kms.encrypt(&key, b"x", &context(&[])).unwrap().blob;
    kms.rotate_key_on_demand(&key).unwrap();
    kms.create_principal(NewPrincipal { name: "bob".into(), ..NewPrincipal::default() }).unwrap();
    let file = tmp.path().join("backup");
    let written = kms.backup_with_cost(&file, "phrase", Cost::for_tests()).unwrap();
    assert!(kms.backup_with_cost(&file, "phrase", Cost::for_tests()).is_err(), "it overwrote a file");
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o600);
    let to = tmp.path().join("new");
    let restore = |phrase| Engine::restore(&file, phrase, &to, &Protection::KeyFile);
    assert_eq!(code(restore("other")), "AccessDeniedException");
    let (back, restored) = restore("phrase").unwrap();
    assert_eq!(written, restored);
    assert_eq!(back.decrypt(&sealed, &context(&[]), None).unwrap().plaintext.as_slice(), b"x");
    assert_eq!(back.describe_key("alias/pay").unwrap().version, 2);
    assert_eq!(back.list_principals().unwrap().len(), 1);
    let report = back.check().unwrap();
    assert_eq!((report.keys, report.materials, report.faults.len()), (1, 2, 0), "{:?}", report.faults);
    let whole = std::fs::read(&file).unwrap();
    std::fs::remove_dir_all(&to).unwrap();
    for at in (0..whole.len()).step_by(61) {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        std::fs::write(&file, &changed).unwrap();
        assert!(restore("phrase").is_err() && !to.exists(), "byte {at}");
        std::fs::write(&file, &whole[..at]).unwrap();
        assert!(restore("phrase").is_err() && !to.exists(), "cut to {at}");
    }
    assert!(!contains(&whole, b"payroll"));
}

/// `check` finds a material that is gone.
#[test]
fn a_check_finds_what_is_missing() {
    let (_tmp, kms) = store();
    let key = kms.create_key("").unwrap();
    assert!(kms.check().unwrap().faults.is_empty());
    kms.store.write(|w| w.remove(super::table::MATERIALS, &key.current_key_material_id)).unwrap();
    let faults = kms.check().unwrap().faults;
    assert_eq!(faults, [format!("key material {} is missing", key.current_key_material_id)]);
}

/// A store as the first cut wrote it, without index and without the new fields, is read and listed.
#[test]
fn a_store_of_the_first_cut_is_read() {
    let (_tmp, kms) = store();
    let (id, material) = (arn::new_key_id(), hex::encode(&[7; 32]));
    let record = serde_json::json!({
        "id": id, "description": "old", "created_ms": 1, "enabled": true,
        "materials": [{ "id": material, "created_ms": 1 }],
    });
    let alias = serde_json::json!({ "target": id, "created_ms": 1, "updated_ms": 1 });
    kms.store
        .write(|w| {
            w.put(super::table::KEYS, &id, &record)?;
            w.put(super::table::ALIASES, "alias/old", &alias)?;
            w.put_bytes(super::table::MATERIALS, &material, &[9; 32])
        })
        .unwrap();
    assert_eq!(kms.describe_key("alias/old").unwrap().description, "old");
    let sealed = kms.encrypt("alias/old", b"x", &context(&[])).unwrap().blob;
    kms.decrypt(&sealed, &context(&[]), Some(&id)).unwrap();
    assert_eq!(kms.list_keys().unwrap()[0].key_id, id);
    assert_eq!(kms.list_aliases().unwrap()[0].alias_name, "alias/old");
    assert!(kms.check().unwrap().faults.is_empty());
}
