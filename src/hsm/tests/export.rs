//! Keys in files under a password, and rotation.

use super::*;

const FILE: &str = "password of the file";

/// What a key is exported as opens with its password only, whole only, on another HSM too; what may not leave does not.
#[test]
fn a_key_leaves_under_a_password_if_it_may() {
    let (hsm, other) = (Hsm::new(), Hsm::new());
    let alice = hsm.user("alice");
    let key = alice.generate(&[(CKA_TOKEN, &[1]), (CKA_EXTRACTABLE, &[1]), (CKA_LABEL, b"k")]).unwrap();
    let sealed = alice.once(Op::Encrypt, gcm(&[1; 12]), key, b"data").unwrap();
    let owner = hsm.logged_in("alice", Role::CryptoUser);
    let file = owner.key_export(key, FILE).unwrap();
    let there = other.logged_in("bob", Role::CryptoUser);
    assert!(there.key_import(&file, "another password", None, &Sharing::default()).is_err());
    for at in [0, 9, 20, file.len() - 1] {
        let mut changed = file.clone();
        changed[at] ^= 1;
        assert!(there.key_import(&changed, FILE, None, &Sharing::default()).is_err(), "byte {at}");
        assert!(there.key_import(&file[..at], FILE, None, &Sharing::default()).is_err(), "cut at {at}");
    }
    let made = there.key_import(&file, FILE, Some("mine"), &Sharing::default()).unwrap();
    let made =
        u64::from_str_radix(made["key-reference"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
    let bob = other.user("bob");
    assert_eq!(*bob.once(Op::Decrypt, gcm(&[1; 12]), made, &sealed).unwrap(), b"data");
    let asked = vec![CKA_LABEL, CKA_LOCAL, CKA_NEVER_EXTRACTABLE];
    let shown: (u64, Vec<crate::hsm::keyops::Shown>) =
        bob.link.call(&Request::GetAttrs { s: bob.s, object: made, types: asked }).unwrap();
    let values: Vec<_> = shown.1.iter().map(|(_, v)| v.as_ref().unwrap().to_vec()).collect();
    assert_eq!(values, [b"mine".to_vec(), vec![0], vec![0]], "it was outside");
    // A sharee, an unextractable key, one for trusted keys only, a short password.
    owner.key_share(key, "bob", true).unwrap();
    assert!(hsm.logged_in("bob", Role::CryptoUser).key_export(key, FILE).is_err());
    assert!(owner.key_export(key, "short").is_err());
    let stays = alice.generate(&[(CKA_TOKEN, &[1])]).unwrap();
    assert!(owner.key_export(stays, FILE).is_err());
    alice.set(key, CKA_WRAP_WITH_TRUSTED, &[1]).unwrap();
    assert!(owner.key_export(key, FILE).is_err());
}

/// A rotated key's label, uses and shares are the new key's; the old key opens what it sealed, and the new one does not.
#[test]
fn a_rotated_key_leaves_its_label_to_a_new_one() {
    let hsm = Hsm::new();
    let alice = hsm.user("alice");
    let old =
        alice.generate(&[(CKA_TOKEN, &[1]), (CKA_LABEL, b"k"), (CKA_ENCRYPT, &[1]), (CKA_DECRYPT, &[1])]);
    let old = old.unwrap();
    let owner = hsm.logged_in("alice", Role::CryptoUser);
    owner.key_share(old, "bob", true).unwrap();
    let sealed = alice.once(Op::Encrypt, gcm(&[1; 12]), old, b"data").unwrap();
    let done = owner.key_rotate(old).unwrap();
    let label = |l: &[u8]| -> Vec<u64> {
        alice.link.call(&Request::Find { s: alice.s, attrs: vec![(CKA_LABEL, bytes(l))] }).unwrap()
    };
    let found = label(b"k");
    assert!(found.len() == 1 && found[0] != old);
    assert_eq!(label(done["old-label"].as_str().unwrap().as_bytes()), [old]);
    assert_eq!(*alice.once(Op::Decrypt, gcm(&[1; 12]), old, &sealed).unwrap(), b"data");
    assert!(alice.once(Op::Decrypt, gcm(&[1; 12]), found[0], &sealed).is_err());
    let bob = hsm.user("bob");
    bob.once(Op::Encrypt, gcm(&[2; 12]), found[0], b"x").unwrap();
    // A key that only encrypts and decrypts does not come to wrap.
    let kek = alice.wrap(plain(CKM_AES_KEY_WRAP), found[0], old).err();
    assert_eq!(kek, Some(CKR_KEY_FUNCTION_NOT_PERMITTED));
    assert!(hsm.logged_in("bob", Role::CryptoUser).key_rotate(found[0]).is_err());
}

/// A file that somebody made himself is no way around the rules of templates: flags are flags, attributes known ones, and not
/// without end.
#[test]
fn an_imported_file_is_looked_at_as_a_template() {
    let hsm = Hsm::new();
    let alice = hsm.logged_in("alice", Role::CryptoUser);
    let good = || {
        let mut attrs = crate::hsm::attrs::Attrs(std::collections::BTreeMap::new());
        attrs.set_number(CKA_CLASS, CKO_SECRET_KEY);
        attrs.set_number(CKA_KEY_TYPE, CKK_AES);
        attrs.set(CKA_VALUE, &[7; 32]);
        attrs
    };
    let import = |attrs: &crate::hsm::attrs::Attrs| {
        let file = crate::hsm::export::EXPORT.seal(FILE.as_bytes(), Cost::TESTS, &attrs.encode()).unwrap();
        alice.key_import(&file, FILE, None, &Sharing::default())
    };
    import(&good()).unwrap();
    for (name, value) in
        [(CKA_WRAP, vec![2]), (CKA_VENDOR_DEFINED | 9, vec![1]), (CKA_LABEL, vec![0; 65 << 10])]
    {
        let mut bad = good();
        bad.set(name, &value);
        assert!(import(&bad).is_err(), "{name:#x}");
    }
}
