//! What one client may take, and what is not told: bounds and the audit log.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use super::*;
use crate::hsm::keyops::Shown;

/// A PIN is split at its first colon, and a mistyped one has a piece of the password in front of it: that is no name
/// of a user, and is not logged. Nor is it where a command names a user that does not exist.
#[test]
fn the_audit_log_holds_no_piece_of_a_password() {
    let mut hsm = Hsm::new();
    {
        let link = Link::new(hsm.address(), None).unwrap();
        let s = link.call(&Request::OpenSession { rw: true }).unwrap();
        let nobody = User { link, s };
        assert_eq!(nobody.login(CKU_USER, "tr0ub4dor:and3"), Err(CKR_PIN_INCORRECT));
        assert_eq!(nobody.login(CKU_SO, "tr0ub4dor:and3"), Err(CKR_PIN_INCORRECT));
        assert_eq!(nobody.login(CKU_USER, "alice:tr0ub4dor:and3"), Err(CKR_PIN_INCORRECT));
        nobody.login(CKU_SO, ADMIN).unwrap();
        let pin = bytes(b"tr0ub4dor!:and3");
        let set: Ck<()> = nobody.link.call(&Request::InitPin { s, pin });
        assert_eq!(set, Err(CKR_PIN_INVALID));
        let admin = hsm.logged_in("admin", Role::Admin);
        assert!(admin.user_delete("tr0ub4dor", Role::CryptoUser).is_err());
        assert!(hsm.manager().login("tr0ub4dor", Role::Admin, "and3").is_err());
        let key = hsm.user("alice").generate(&[(CKA_TOKEN, &[1])]).unwrap();
        assert!(hsm.logged_in("alice", Role::CryptoUser).key_share(key, "tr0ub4dor", true).is_err());
    }
    hsm.stop();
    let log = std::fs::read_to_string(hsm.tmp.path().join("hsm/audit.log")).unwrap();
    assert!(log.contains("(no such user)"), "failed logins are logged: {log}");
    assert!(log.contains("\"object\":\"alice\""), "of a user that exists the name is: {log}");
    assert!(!log.contains("tr0ub4dor") && !log.contains("and3"), "{log}");
}

/// One request does not make the appliance copy without end: an attribute of 64 KiB asked for 512 times is refused, and
/// so are more names than any template has.
#[test]
fn a_value_is_not_shown_without_bound() {
    let hsm = Hsm::new();
    let alice = hsm.user("alice");
    let data = vec![(CKA_CLASS, number(CKO_DATA)), (CKA_VALUE, bytes(&vec![7; 64 << 10]))];
    let object: u64 = alice.link.call(&Request::Create { s: alice.s, attrs: data }).unwrap();
    let show = |count: usize| -> Ck<(u64, Vec<Shown>)> {
        alice.link.call(&Request::GetAttrs { s: alice.s, object, types: vec![CKA_VALUE; count] })
    };
    assert_eq!(show(3).unwrap().1.len(), 3);
    assert_eq!(show(512).err(), Some(CKR_DEVICE_MEMORY));
    assert_eq!(show(513).err(), Some(CKR_ARGUMENTS_BAD));
}

/// An application has its share of memory for session objects and for messages that are collected; at its end
/// another's is untouched, and what is closed comes back.
#[test]
fn an_application_has_its_share_of_memory_and_no_more() {
    let hsm = Hsm::new();
    let (alice, bob) = (hsm.user("alice"), hsm.user("bob"));
    let create = |user: &User, s: u64| -> Ck<u64> {
        let value = bytes(&vec![7; 64 << 10]);
        user.link.call(&Request::Create { s, attrs: vec![(CKA_CLASS, number(CKO_DATA)), (CKA_VALUE, value)] })
    };
    let s = alice.link.call(&Request::OpenSession { rw: true }).unwrap();
    let made = (0..2000).map_while(|_| create(&alice, s).ok()).count();
    assert!((500..1024).contains(&made), "64 MiB hold {made} objects of 64 KiB");
    assert_eq!(create(&alice, s).err(), Some(CKR_DEVICE_MEMORY));
    create(&bob, bob.s).unwrap();
    alice.link.call::<()>(&Request::CloseSession { s }).unwrap();
    create(&alice, alice.s).unwrap();

    let key = alice.generate(&[]).unwrap();
    let mut refused = None;
    for _ in 0..8 {
        let s: u64 = alice.link.call(&Request::OpenSession { rw: true }).unwrap();
        let begin = Request::Begin { s, op: Op::Encrypt, mech: gcm(&[1; 12]), key };
        alice.link.call::<()>(&begin).unwrap();
        for _ in 0..4 {
            let piece = Request::Update { s, op: Op::Encrypt, data: bytes(&vec![0; 4 << 20]) };
            refused = refused.or(alice.link.call::<Bytes>(&piece).err());
        }
    }
    assert_eq!(refused, Some(CKR_DEVICE_MEMORY), "8 messages of 16 MiB are held");
    alice.link.call::<()>(&Request::CloseAll {}).unwrap();
    alice.link.call::<u64>(&Request::OpenSession { rw: true }).unwrap();
}

/// More connections that ask without a pause than the server has threads: each is answered, and so is who comes then.
#[test]
fn connections_that_never_pause_leave_room_for_others() {
    let hsm = Hsm::new();
    let stop = Arc::new(AtomicBool::new(false));
    let answered: Arc<Vec<AtomicU32>> = Arc::new((0..12).map(|_| AtomicU32::new(0)).collect());
    let chatty: Vec<_> = (0..answered.len())
        .map(|n| {
            let (stop, answered, at) = (stop.clone(), answered.clone(), hsm.address());
            std::thread::spawn(move || {
                let link = Link::new(at, None).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    link.call::<Bytes>(&Request::Random { len: 1 }).unwrap();
                    answered[n].fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let (done, waits) = std::sync::mpsc::channel();
    let (all, at) = (answered.clone(), hsm.address());
    std::thread::spawn(move || {
        while all.iter().any(|n| n.load(Ordering::Relaxed) == 0) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let link = Link::new(at, None).unwrap();
        let _ = done.send(link.call::<Bytes>(&Request::Random { len: 1 }).is_ok());
    });
    let served = waits.recv_timeout(Duration::from_secs(120));
    let answers: Vec<_> = answered.iter().map(|n| n.load(Ordering::Relaxed)).collect();
    stop.store(true, Ordering::Relaxed);
    assert_eq!(served, Ok(true), "answers of each: {answers:?}");
    chatty.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Begun messages, of which the rest never comes, and answers that nobody takes hold no thread: more of them than there
/// are threads, and another client is served while all of them are still there.
#[test]
fn clients_that_stop_in_the_middle_hold_nothing() {
    use std::io::{Read as _, Write as _};
    let hsm = Hsm::new();
    let Address::Unix(path) = hsm.address() else { panic!("a Unix socket") };
    let begun: Vec<_> = (0..300)
        .map(|n| {
            let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
            stream.write_all(&frame(&Request::Hello { version: VERSION, app: bytes(b"") })).unwrap();
            let mut hello = [0; 4 + 8 + 4 + 32];
            stream.read_exact(&mut hello).unwrap();
            let whole = frame(&Request::Random { len: 1 << 20 });
            stream.write_all(if n % 2 == 0 { &whole } else { &whole[..5] }).unwrap();
            stream
        })
        .collect();
    let link = Link::new(hsm.address(), None).unwrap();
    assert_eq!(link.call::<Bytes>(&Request::Random { len: 5 }).unwrap().len(), 5);
    drop(begun);
}

/// A search is bounded: no template repeats an attribute thousands of times. Two values of one attribute find nothing.
#[test]
fn a_search_has_a_bound() {
    let hsm = Hsm::new();
    let alice = hsm.user("alice");
    let key = alice.generate(&[(CKA_LABEL, b"k")]).unwrap();
    let find = |attrs: Template| -> Ck<Vec<u64>> { alice.link.call(&Request::Find { s: alice.s, attrs }) };
    assert_eq!(find(vec![(CKA_LABEL, bytes(b"k")); 128]), Ok(vec![key]));
    assert_eq!(find(vec![(CKA_LABEL, bytes(b"k")), (CKA_LABEL, bytes(b"l"))]), Ok(vec![]));
    assert_eq!(find(vec![(CKA_LABEL, bytes(b"k")); 129]), Err(CKR_ARGUMENTS_BAD));
    // What is no attribute here is no error of who searches.
    assert_eq!(find(vec![(CKA_VENDOR_DEFINED | 7, bytes(b"k"))]), Ok(vec![]));
}

/// Who has not said hello sends no long message, and who has said it holds a share of memory with begun ones, not all.
#[test]
fn begun_messages_have_a_bound_together() {
    use std::io::{Read as _, Write as _};
    let hsm = Hsm::new();
    let Address::Unix(path) = hsm.address() else { panic!("a Unix socket") };
    let connect = || std::os::unix::net::UnixStream::connect(&path).unwrap();
    let mut early = connect();
    early.write_all(&(1u32 << 20).to_le_bytes()).unwrap();
    assert_eq!(early.read(&mut [0; 1]).unwrap_or(0), 0, "it is closed");
    let begun: Vec<_> = (0..30)
        .filter_map(|_| {
            let mut stream = connect();
            stream.write_all(&frame(&Request::Hello { version: VERSION, app: bytes(b"") })).unwrap();
            let mut hello = [0; 4 + 8 + 4 + 32];
            stream.read_exact(&mut hello).unwrap();
            stream.write_all(&(8u32 << 20).to_le_bytes()).ok()?;
            stream.write_all(&vec![0; 5 << 20]).ok()?;
            Some(stream)
        })
        .collect();
    assert!((4..20).contains(&begun.len()), "48 MiB hold {} begun messages of 8 MiB", begun.len());
    let link = Link::new(hsm.address(), None).unwrap();
    assert_eq!(link.call::<Bytes>(&Request::Random { len: 5 }).unwrap().len(), 5);
}

/// A derivation makes 33 keys at most, and not more than its counter counts: keys would repeat.
#[test]
fn a_derivation_has_a_bound() {
    let hsm = Hsm::new();
    let alice = hsm.user("alice");
    let generic: Template = vec![(CKA_VALUE_LEN, number(32)), (CKA_DERIVE, bytes(&[1]))];
    let mech = plain(CKM_GENERIC_SECRET_KEY_GEN);
    let key: u64 = alice.link.call(&Request::Generate { s: alice.s, mech, attrs: generic }).unwrap();
    let derive = |more: usize, len: u64| -> Ck<Vec<u64>> {
        let wanted = || vec![(CKA_VALUE_LEN, number(len)), (CKA_KEY_TYPE, number(CKK_GENERIC_SECRET))];
        let counter = [&0u64.to_le_bytes()[..], &8u64.to_le_bytes()].concat();
        let data = vec![(CK_SP800_108_ITERATION_VARIABLE, bytes(&counter))];
        let params = Params::Kdf { prf: CKM_SHA256_HMAC, data, iv: bytes(b""), more: vec![wanted(); more] };
        let mech = Mech { kind: CKM_SP800_108_COUNTER_KDF, params };
        alice.link.call(&Request::Derive { s: alice.s, mech, key, attrs: wanted() })
    };
    assert_eq!(derive(32, 16).unwrap().len(), 33);
    assert_eq!(derive(33, 16), Err(CKR_MECHANISM_PARAM_INVALID));
    assert_eq!(derive(1, 255 * 16).unwrap().len(), 2);
    assert_eq!(derive(2, 255 * 16), Err(CKR_KEY_SIZE_RANGE));
}

/// A key is not told piece by piece: from a hidden one no piece, and nothing short, is derived, what is derived for trusted
/// keys only stays so, and the base's own template holds.
#[test]
fn a_derivation_tells_no_piece_of_its_base() {
    let mut hsm = Hsm::new();
    hsm.stop();
    hsm.start_with(Config { legacy: true, ..config() });
    let alice = hsm.user("alice");
    let derive = |base: u64, kind: u64, params: Params, more: &[(u64, &[u8])]| -> Ck<Vec<u64>> {
        let mut attrs: Template = vec![(CKA_KEY_TYPE, number(CKK_GENERIC_SECRET))];
        attrs.extend(more.iter().map(|(n, v)| (*n, bytes(v))));
        alice.link.call(&Request::Derive { s: alice.s, mech: Mech { kind, params }, key: base, attrs })
    };
    let data = |len: usize| Params::Data { iv: bytes(b""), data: bytes(&vec![1; len]) };
    let len = |n: u64| n.to_le_bytes();
    let base = alice
        .generate(&[(CKA_DERIVE, &[1]), (CKA_EXTRACTABLE, &[1]), (CKA_WRAP_WITH_TRUSTED, &[1])])
        .unwrap();
    let cut = Err(CKR_KEY_SIZE_RANGE);
    assert_eq!(derive(base, CKM_CONCATENATE_BASE_AND_DATA, data(4), &[(CKA_VALUE_LEN, &len(1))]), cut);
    assert_eq!(derive(base, CKM_CONCATENATE_DATA_AND_BASE, data(31), &[(CKA_VALUE_LEN, &len(32))]), cut);
    assert_eq!(derive(base, CKM_XOR_BASE_AND_DATA, data(1), &[]), cut);
    assert_eq!(derive(base, CKM_AES_ECB_ENCRYPT_DATA, data(16), &[(CKA_VALUE_LEN, &len(1))]), cut);
    let piece =
        derive(base, CKM_EXTRACT_KEY_FROM_KEY, Params::Number { value: 0 }, &[(CKA_VALUE_LEN, &len(16))]);
    assert_eq!(piece, Err(CKR_KEY_FUNCTION_NOT_PERMITTED));
    let extractable: (u64, &[u8]) = (CKA_EXTRACTABLE, &[1]);
    let child = derive(base, CKM_CONCATENATE_BASE_AND_DATA, data(4), &[extractable]).unwrap()[0];
    derive(base, CKM_XOR_BASE_AND_DATA, data(32), &[]).unwrap();
    let kek = alice.generate(&[(CKA_WRAP, &[1])]).unwrap();
    assert_eq!(alice.wrap(plain(CKM_AES_KEY_WRAP_KWP), kek, child).err(), Some(CKR_KEY_NOT_WRAPPABLE));

    let open = alice.generate(&[(CKA_DERIVE, &[1]), (CKA_SENSITIVE, &[0]), (CKA_EXTRACTABLE, &[1])]).unwrap();
    let piece =
        derive(open, CKM_EXTRACT_KEY_FROM_KEY, Params::Number { value: 0 }, &[(CKA_VALUE_LEN, &len(2))]);
    let asked = Request::GetAttrs { s: alice.s, object: piece.unwrap()[0], types: vec![CKA_CHECK_VALUE] };
    let shown: (u64, Vec<Shown>) = alice.link.call(&asked).unwrap();
    assert_eq!(shown.1[0].1.as_ref().map(|v| v.to_vec()), Some(vec![]), "no check value of two bytes");

    let template = crate::hsm::wire::encode(&vec![(CKA_SIGN, bytes(&[1])), (CKA_EXTRACTABLE, bytes(&[0]))]);
    let strict =
        alice.generate(&[(CKA_DERIVE, &[1]), (CKA_EXTRACTABLE, &[1]), (CKA_DERIVE_TEMPLATE, &template)]);
    let strict = strict.unwrap();
    assert_eq!(
        derive(strict, CKM_XOR_BASE_AND_DATA, data(32), &[extractable]),
        Err(CKR_TEMPLATE_INCONSISTENT)
    );
    derive(strict, CKM_XOR_BASE_AND_DATA, data(32), &[]).unwrap();
    let never = alice.generate(&[]).unwrap();
    assert_eq!(alice.set(never, CKA_DERIVE, &[1]), Err(CKR_ATTRIBUTE_READ_ONLY));
}
