//! Several wrapping keys: added, retired, removed, recovered with; headers brought to them.

use super::*;

fn unlock_with(home: &Home, key: &Arc<RecoveryKey>) -> Unlock {
    Unlock { kms_dir: home.unlock.kms_dir.clone(), recovery: Some(key.clone()), ..Unlock::default() }
}

/// An unlock for which the KMS does not exist.
fn paper_only(home: &Home, key: &Arc<RecoveryKey>) -> Unlock {
    let nowhere = home.vault.with_file_name("burnt");
    Unlock { kms_dir: Some(nowhere), recovery: Some(key.clone()), ..Unlock::default() }
}

fn decoded(file: &NewFile) -> FileHeader {
    FileHeader::decode(&file.header).unwrap()
}

fn second_key(home: &Home) -> String {
    let key = home.kms().create_key("second").unwrap();
    format!("kms:embedded/{}", key.key_id)
}

/// With the paper key alone, no KMS anywhere, the vault opens, and so does each file made since it was added; another
/// paper key does not open it.
#[test]
fn a_recovery_key_opens_without_the_kms() {
    let home = home();
    home.init();
    let paper = Arc::new(RecoveryKey::random());
    let ring = home.open();
    let before = ring.new_file().unwrap();
    let row = ring.add_recipient(&paper.uri().unwrap(), false).unwrap();
    assert_eq!(row, 1);
    let start = Instant::now();
    let after = loop {
        let file = ring.new_file().unwrap();
        if decoded(&file).recipients.len() == 2 {
            break file;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "new files are not wrapped for it");
        std::thread::sleep(Duration::from_millis(20));
    };
    let rescued = open_vault(&home.vault, &paper_only(&home, &paper)).unwrap();
    assert!(same(&rescued.open_file(&decoded(&after)).unwrap(), &after.keys));
    assert!(rescued.open_file(&decoded(&before)).is_err(), "it was wrapped for the KMS alone");
    let stranger = Arc::new(RecoveryKey::random());
    let refused = open_vault(&home.vault, &paper_only(&home, &stranger));
    assert!(matches!(refused, Err(OpenError::Key(_))), "{refused:?}");
    // Without it, and with both.
    assert!(same(&home.open().open_file(&decoded(&after)).unwrap(), &after.keys));
    open_vault(&home.vault, &unlock_with(&home, &paper)).unwrap();
}

/// What cannot be one is refused, and the config stays as it was.
#[test]
fn wrong_recipients_are_refused() {
    let home = home();
    home.init();
    let ring = home.open();
    let before = std::fs::read(home.config_file()).unwrap();
    let own = ring.config().keys[0].uri.clone();
    let refused = |uri: &str| ring.add_recipient(uri, false).unwrap_err();
    assert!(matches!(refused(&own), RecipientError::Exists(_)));
    assert!(matches!(refused("kms:embedded/alias/nobody"), RecipientError::Open(_)));
    assert!(matches!(refused("recovery:AAAA"), RecipientError::Open(_)));
    assert!(matches!(refused("envelope:"), RecipientError::Open(_)));
    let second = second_key(&home);
    home.kms().disable_key(second.strip_prefix("kms:embedded/").unwrap()).unwrap();
    assert!(matches!(refused(&second), RecipientError::Open(OpenError::Key(KeyError::Disabled(_)))));
    assert!(matches!(ring.retire_recipient(0), Err(RecipientError::Last(_))));
    assert!(matches!(ring.remove_recipient(9), Err(RecipientError::Unknown(_))));
    assert!(matches!(ring.find_recipient("kms:embedded/x"), Err(RecipientError::Unknown(_))));
    assert_eq!(std::fs::read(home.config_file()).unwrap(), before);
    assert_eq!((ring.find_recipient(&own).unwrap(), ring.find_recipient("0").unwrap()), (0, 0));
}

/// A header goes to another key without its content key changing; one that is good is left alone; then the old key
/// can go.
#[test]
fn headers_move_to_another_key() {
    let home = home();
    home.init();
    let ring = home.open();
    let file = ring.new_file().unwrap();
    assert_eq!(ring.add_recipient(&second_key(&home), true).unwrap(), 1);
    let target = ring.rewrap_target(None).unwrap();
    let Rewrapped::New(moved) = ring.rewrap(&decoded(&file), &target, false).unwrap() else {
        panic!("it is under the old key")
    };
    assert_eq!(moved.recipients.iter().map(|r| r.key_index).collect::<Vec<_>>(), [1]);
    assert_eq!(moved.encode().unwrap().len(), 64);
    assert_eq!(ring.rewrap(&moved, &target, false).unwrap(), Rewrapped::Good);
    ring.remove_recipient(0).unwrap();
    let fresh = home.open();
    assert!(same(&fresh.open_file(&moved).unwrap(), &file.keys));
    assert!(matches!(fresh.open_file(&decoded(&file)), Err(KeyError::NoSuchRow(0))));
}

/// A rotation makes headers of the old version due, and only those of the version that is asked for.
#[test]
fn headers_follow_a_rotation() {
    let home = home();
    home.init();
    let ring = home.open();
    let file = ring.new_file().unwrap();
    home.kms().rotate_key_on_demand("alias/envelopefs").unwrap();
    let other = ring.rewrap_target(Some(7)).unwrap();
    assert_eq!(ring.rewrap(&decoded(&file), &other, false).unwrap(), Rewrapped::Good);
    let target = ring.rewrap_target(Some(1)).unwrap();
    let Rewrapped::New(new) = ring.rewrap(&decoded(&file), &target, false).unwrap() else { panic!("due") };
    assert!(matches!(new.recipients[0].wrapped, Wrapped::Compact { version: 2, .. }));
    assert!(same(&home.open().open_file(&new).unwrap(), &file.keys));
}

/// A mount that was opened before reads the config again when a header names a row it does not know; a config that
/// somebody else wrote is not taken.
#[test]
fn an_open_vault_learns_of_new_rows() {
    let home = home();
    home.init();
    let mounted = home.open();
    let ring = home.open();
    let file = ring.new_file().unwrap();
    ring.add_recipient(&second_key(&home), true).unwrap();
    let target = ring.rewrap_target(None).unwrap();
    let Rewrapped::New(moved) = ring.rewrap(&decoded(&file), &target, false).unwrap() else { panic!("due") };
    assert!(same(&mounted.open_file(&moved).unwrap(), &file.keys));
    let text = std::fs::read_to_string(home.config_file()).unwrap();
    std::fs::write(home.config_file(), text.replace("index = 1", "index = 3")).unwrap();
    let forged =
        FileHeader { recipients: vec![Recipient { key_index: 3, ..moved.recipients[0].clone() }], ..moved };
    assert!(matches!(mounted.open_file(&forged), Err(KeyError::NoSuchRow(3))));
}

/// With a cache of no time each open asks the provider, so a key that is disabled opens nothing from then on.
#[test]
fn without_a_cache_a_disabled_key_opens_nothing() {
    let home = home();
    home.init();
    let made = home.open().new_file().unwrap();
    let mut tuning = Tuning { cache_age: Duration::ZERO, ..Tuning::default() };
    let ring = open_vault_tuned(&home.vault, &home.unlock, &tuning).unwrap();
    tuning.cache_age = Duration::from_secs(60);
    let patient = open_vault_tuned(&home.vault, &home.unlock, &tuning).unwrap();
    for ring in [&ring, &patient] {
        ring.open_file(&decoded(&made)).unwrap();
    }
    home.kms().disable_key("alias/envelopefs").unwrap();
    assert!(matches!(ring.open_file(&decoded(&made)), Err(KeyError::Disabled(_))));
    patient.open_file(&decoded(&made)).expect("it is remembered for its time");
    home.kms().enable_key("alias/envelopefs").unwrap();
    ring.open_file(&decoded(&made)).expect("it works again by itself");
}

/// The number of a row that was removed goes to no other key: old headers name it.
#[test]
fn a_removed_number_is_not_used_again() {
    let home = home();
    home.init();
    let ring = home.open();
    let papers: Vec<String> = (0..3).map(|_| RecoveryKey::random().uri().unwrap()).collect();
    assert_eq!(ring.add_recipient(&papers[0], false).unwrap(), 1);
    assert_eq!(ring.add_recipient(&papers[1], false).unwrap(), 2);
    ring.remove_recipient(2).unwrap();
    assert_eq!(home.open().add_recipient(&papers[2], false).unwrap(), 3);
    home.open().remove_recipient(1).unwrap();
    home.open().remove_recipient(3).unwrap();
    let ring = home.open();
    assert_eq!(ring.config().next_row, 4);
    assert_eq!(ring.add_recipient(&papers[1], false).unwrap(), 4, "it comes back as another row");
}

/// A mount takes a replaced config in when the replacement is whole, not the moment before: who asks meanwhile gets
/// the new rows.
#[test]
fn all_who_ask_get_the_new_rows() {
    let home = home();
    home.init();
    let mounted = home.open();
    let ring = home.open();
    let files: Vec<_> = (0..8).map(|_| ring.new_file().unwrap()).collect();
    ring.add_recipient(&second_key(&home), true).unwrap();
    let target = ring.rewrap_target(None).unwrap();
    let moved = |file: &NewFile| match ring.rewrap(&decoded(file), &target, false).unwrap() {
        Rewrapped::New(moved) => moved,
        Rewrapped::Good => panic!("it is under the old key"),
    };
    let moved: Vec<_> = files.iter().map(moved).collect();
    let start = Barrier::new(files.len());
    std::thread::scope(|scope| {
        for (file, moved) in files.iter().zip(&moved) {
            let (start, mounted) = (&start, &mounted);
            scope.spawn(move || {
                start.wait();
                assert!(same(&mounted.open_file(moved).unwrap(), &file.keys));
            });
        }
    });
}
