//! Envelope mode: one call of the provider for many files, compact headers, renewal, recipients.

use super::*;

fn list(home: &Home) -> String {
    std::fs::read_to_string(home.vault.join(".envelopefs/keks.toml")).unwrap()
}

/// A row as somebody has it who is about to add a recovery key.
fn paper_row(ring: &Keyring, index: u8) -> Arc<Row> {
    let uri = RecoveryKey::random().uri().unwrap();
    let provider = ring.shared().home.as_ref().unwrap().providers.open(&uri).unwrap();
    Arc::new(Row::new(index, uri, true, Ok(provider)))
}

fn init(home: &Home) {
    init_vault_as(&home.vault, DEFAULT_URI, &home.unlock, Mode::Envelope).unwrap();
}

fn open_with(home: &Home, renewal: Renewal) -> Keyring {
    let tuning = Tuning { renewal, pool_size: 4, ..Tuning::default() };
    open_vault_tuned(&home.vault, &home.unlock, &tuning).unwrap()
}

fn decoded(file: &NewFile) -> FileHeader {
    FileHeader::decode(&file.header).unwrap()
}

fn number(file: &NewFile) -> u16 {
    match decoded(file).recipients[0].wrapped {
        Wrapped::Compact { version, .. } => version,
        Wrapped::Blob(_) => panic!("not compact"),
    }
}

/// A hundred files cost one unwrap when they are opened again, and their headers are as short as any.
#[test]
fn many_files_cost_one_call() {
    let home = home();
    init(&home);
    let ring = home.open();
    let files: Vec<_> = (0..100).map(|_| ring.new_file().unwrap()).collect();
    assert!(files.iter().all(|f| f.header.len() == 64 && number(f) == 1 && f.header[1] == 1));
    drop(ring);
    let ring = home.open();
    for file in &files {
        assert!(same(&ring.open_file(&decoded(file)).unwrap(), &file.keys));
    }
    let calls = ring.provider_calls().0;
    assert_eq!(calls, 100 + 1, "one for each header that the row itself opened, and one of the KMS");
    // Bound to file and vault as any wrap.
    let swapped = FileHeader { file_id: files[0].file_id, recipients: decoded(&files[1]).recipients };
    assert!(matches!(ring.open_file(&swapped), Err(KeyError::Foreign)));
}

/// The key is renewed when it has wrapped as many keys as it may, and when it is old; files under older ones open.
#[test]
fn the_key_is_renewed_by_count_and_age() {
    let home = home();
    init(&home);
    let ring = open_with(&home, Renewal { age: Duration::from_secs(3600), count: 20 });
    let files: Vec<_> = (0..100).map(|_| ring.new_file().unwrap()).collect();
    let newest = files.iter().map(number).max().unwrap();
    assert!(newest >= 3, "100 files and only {newest} keys of 20 each");
    for n in 1..=newest {
        assert!(files.iter().filter(|f| number(f) == n).count() <= 40, "key {n} wrapped too many");
    }
    let ring = open_with(&home, Renewal { age: Duration::from_secs(1), count: 1 << 20 });
    std::thread::sleep(Duration::from_millis(2100));
    let later = (0..20).map(|_| ring.new_file().unwrap()).map(|f| number(&f)).max().unwrap();
    assert!(later > newest, "it did not grow old");
    for file in [&files[0], &files[99]] {
        assert!(same(&ring.open_file(&decoded(file)).unwrap(), &file.keys));
    }
}

/// The list of keys is authenticated: no changed byte is taken, nor the list of another vault.
#[test]
fn a_changed_list_opens_nothing() {
    let home = home();
    init(&home);
    let file = home.open().new_file().unwrap();
    let path = home.vault.join(".envelopefs/keks.toml");
    let whole = std::fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(7) {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        std::fs::write(&path, &changed).unwrap();
        assert!(home.open().open_file(&decoded(&file)).is_err(), "byte {at}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(home.open().open_file(&decoded(&file)), Err(KeyError::NotFound(_))));
    std::fs::write(&path, &whole).unwrap();
    home.open().open_file(&decoded(&file)).unwrap();
}

/// A recovery key that is added opens all files at once, also those made before it; a key that is removed is followed
/// by a new one that it never wrapped.
#[test]
fn recipients_share_the_keys() {
    let home = home();
    init(&home);
    let ring = home.open();
    let file = ring.new_file().unwrap();
    let paper = Arc::new(RecoveryKey::random());
    let row = ring.add_recipient(&paper.uri().unwrap(), false).unwrap();
    let nowhere = Some(home.vault.with_file_name("burnt"));
    let unlock = Unlock { kms_dir: nowhere, recovery: Some(paper), ..Unlock::default() };
    let rescued = open_vault(&home.vault, &unlock).unwrap();
    assert!(same(&rescued.open_file(&decoded(&file)).unwrap(), &file.keys));
    ring.remove_recipient(row).unwrap();
    assert!(open_vault(&home.vault, &unlock).is_err());
    let fresh = home.open();
    assert_eq!(number(&fresh.new_file().unwrap()), 2);
    assert!(same(&fresh.open_file(&decoded(&file)).unwrap(), &file.keys));
    let list = list(&home);
    assert!(!list.contains(&format!("index = {row},")), "{list}");
}

/// A key that is disabled stops opens when the unwrapped key has had its time, as without envelopes.
#[test]
fn a_disabled_key_stops_opens() {
    let home = home();
    init(&home);
    let file = home.open().new_file().unwrap();
    let tuning = Tuning { cache_age: Duration::ZERO, ..Tuning::default() };
    let ring = open_vault_tuned(&home.vault, &home.unlock, &tuning).unwrap();
    ring.open_file(&decoded(&file)).unwrap();
    home.kms().disable_key("alias/envelopefs").unwrap();
    assert!(matches!(ring.open_file(&decoded(&file)), Err(KeyError::Disabled(_))));
}

/// Whoever stays opens every file when a recipient is removed, also one whose key-encryption key was not shared with
/// him yet; where that cannot be done nothing is removed, and nothing lost.
#[test]
fn removing_a_recipient_leaves_no_key_behind() {
    let home = home();
    init(&home);
    let ring = home.open();
    let file = ring.new_file().unwrap();
    let second = home.kms().create_key("second").unwrap().key_id;
    let row = ring.add_recipient(&format!("kms:embedded/{second}"), false).unwrap();
    // As a mount leaves it that renewed the key just before it knew of the new recipient.
    ring.envelope().unwrap().share(&[], |kept| kept == 0).unwrap();
    home.kms().disable_key("alias/envelopefs").unwrap();
    ring.remove_recipient(0).unwrap_err();
    home.kms().enable_key("alias/envelopefs").unwrap();
    assert!(home.open().config().keys.iter().any(|key| key.index == 0), "it went, and its keys with it");
    assert!(same(&home.open().open_file(&decoded(&file)).unwrap(), &file.keys));
    home.open().remove_recipient(0).unwrap();
    let fresh = home.open();
    assert_eq!(fresh.config().keys.iter().filter(|key| key.uri != "envelope:").count(), 1);
    assert!(same(&fresh.open_file(&decoded(&file)).unwrap(), &file.keys));
    let list = list(&home);
    assert!(!list.contains("index = 0,") && list.contains(&format!("index = {row},")), "{list}");
    // Nobody drops the last copy.
    let refused = fresh.envelope().unwrap().share(&[], |_| false);
    assert!(matches!(refused, Err(KeyError::Denied(_))), "{refused:?}");
    assert!(same(&home.open().open_file(&decoded(&file)).unwrap(), &file.keys));
}

/// A key that is renewed by a mount that knows the old recipients is wrapped for the new ones, too.
#[test]
fn a_renewal_knows_the_newest_recipients() {
    let home = home();
    init(&home);
    let mounted = home.open();
    mounted.new_file().unwrap();
    let second = home.kms().create_key("second").unwrap().key_id;
    let row = home.open().add_recipient(&format!("kms:embedded/{second}"), false).unwrap();
    mounted.envelope().unwrap().renew_now().unwrap();
    let list = list(&home);
    assert_eq!(list.matches(&format!("index = {row},")).count(), 2, "{list}");
}

/// A mount that is told of changed keys wraps the very next file under the newest key-encryption key, not under the one
/// that it knew, of which it has thousands of data keys reserved.
#[test]
fn a_mount_that_follows_wraps_under_the_newest_key() {
    let home = home();
    init(&home);
    let mounted = home.open();
    for round in 1..=5 {
        assert_eq!(number(&mounted.new_file().unwrap()), round);
        home.open().envelope().unwrap().renew_now().unwrap();
        mounted.follow().unwrap();
    }
    let files: Vec<_> = (0..50).map(|_| mounted.new_file().unwrap()).collect();
    assert!(files.iter().all(|file| number(file) == 6), "{:?}", files.iter().map(number).collect::<Vec<_>>());
}

/// A number that another one's copies stand under is refused, and his copies stay; whoever is removed takes his own
/// copies with him, not those of somebody who is just being added.
#[test]
fn copies_under_a_number_are_of_one_key() {
    let home = home();
    init(&home);
    let ring = home.open();
    ring.new_file().unwrap();
    let row = ring.add_recipient(&RecoveryKey::random().uri().unwrap(), false).unwrap();
    let envelope = ring.envelope().unwrap();
    let next = u8::try_from(envelope.next_row().unwrap()).unwrap();
    assert!(envelope.share_with_new(&paper_row(&ring, next)).unwrap());
    let before = list(&home);
    assert!(!envelope.share_with_new(&paper_row(&ring, next)).unwrap());
    assert_eq!(list(&home), before);
    ring.remove_recipient(row).unwrap();
    let after = list(&home);
    assert!(!after.contains(&format!("index = {row},")), "{after}");
    assert!(after.contains(&format!("index = {next},")), "{after}");
}

/// Of many who add recovery keys at once each is told that he did, or that another one was faster; every key that was
/// added opens every file.
#[test]
fn recipients_that_are_added_at_once_open_all_files() {
    let home = home();
    init(&home);
    let file = home.open().new_file().unwrap();
    let papers: Vec<_> = (0..6).map(|_| Arc::new(RecoveryKey::random())).collect();
    let start = Barrier::new(papers.len());
    let added = std::thread::scope(|scope| {
        let adding = papers.iter().map(|paper| {
            let (start, ring) = (&start, home.open());
            scope.spawn(move || {
                start.wait();
                match ring.add_recipient(&paper.uri().unwrap(), false) {
                    Ok(_) => Some(paper.clone()),
                    Err(RecipientError::Overtaken) => None,
                    Err(error) => panic!("{error}"),
                }
            })
        });
        let adding: Vec<_> = adding.collect();
        adding.into_iter().filter_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(!added.is_empty());
    for paper in added {
        let nowhere = Some(home.vault.with_file_name("burnt"));
        let unlock = Unlock { kms_dir: nowhere, recovery: Some(paper), ..Unlock::default() };
        let rescued = open_vault(&home.vault, &unlock).unwrap();
        assert!(same(&rescued.open_file(&decoded(&file)).unwrap(), &file.keys));
    }
}
