//! The client against a server that speaks the protocol and misbehaves on demand.

#[path = "../../../tests/support/fake_kms.rs"]
mod fake_kms;

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::*;
use crate::format::ids::{FileId, VaultId};
use crate::keys::uri::KeyUri;
use fake_kms::{ARN, Mood, Server};

impl Server {
    fn key(&self) -> RemoteKey {
        match KeyUri::parse(&self.uri()) {
            Ok(KeyUri::Remote(key)) => key,
            other => panic!("{other:?}"),
        }
    }

    fn provider(&self) -> Remote {
        let credentials = aws_sdk_kms::config::Credentials::builder()
            .access_key_id("AKIDTEST")
            .secret_access_key("secret")
            .provider_name("test")
            .build();
        let clients = Clients { credentials: Some(credentials), ..Clients::default() };
        clients.provider(&self.key()).unwrap()
    }
}

fn context(n: u8) -> WrapContext {
    WrapContext::of_file(VaultId([1; 16]), FileId([n; 12]))
}

/// What was wrapped opens in its own context alone; the service's region is named to servers of ours.
#[test]
fn keys_are_wrapped_and_opened() {
    let server = Server::start();
    let kms = server.provider();
    assert_eq!(kms.describe().unwrap().uri, server.key().uri());
    let made = kms.generate(&[context(1), context(2)]).unwrap();
    for (n, (key, wrapped)) in (1..).zip(&made) {
        assert_eq!(kms.unwrap(wrapped, &context(n)).unwrap().expose(), key.0.expose());
        assert!(matches!(kms.unwrap(wrapped, &context(n + 1)), Err(KeyError::Foreign)));
    }
    let given = Secret::random();
    let wrapped = kms.wrap(&given, &WrapContext::of_vault(VaultId([1; 16]))).unwrap();
    let opened = kms.unwrap(&wrapped, &WrapContext::of_vault(VaultId([1; 16]))).unwrap();
    assert_eq!(opened.expose(), given.expose());
    let moved = kms.re_encrypt(ARN, &made[0].1, &context(1)).unwrap();
    assert_eq!(kms.unwrap(&moved, &context(1)).unwrap().expose(), made[0].0.0.expose());
    let compact = Wrapped::Compact { version: 1, bytes: [0; 48] };
    assert!(matches!(kms.unwrap(&compact, &context(1)), Err(KeyError::Foreign)));
    let via = server.state.calls.lock().iter().all(|(_, via)| via.as_deref() == Some("envelopefs"));
    assert!(via);
}

/// A batch asks for many keys at once, but not for more than its bound, and keeps their order.
#[test]
fn a_batch_is_parallel_and_bounded() {
    let server = Server::start();
    let kms = server.provider();
    server.set(Mood::Slow(Duration::from_millis(100)));
    let contexts: Vec<_> = (0..200).map(context).collect();
    let start = Instant::now();
    let made = kms.generate(&contexts).unwrap();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(8), "200 keys took {took:?}: one by one it would be 20 s");
    let most = server.state.most.load(SeqCst);
    assert!(most > 16 && most <= IN_FLIGHT, "{most} at once");
    server.set(Mood::Good);
    for at in [0, 99, 199] {
        assert!(kms.unwrap(&made[at].1, &contexts[at]).is_ok(), "key {at} is in another place");
    }
}

/// Whatever a service does, the call ends in time with the error that says whose trouble it is, and the next good
/// answer ends that.
#[test]
fn misbehaviour_has_a_bound_and_a_name() {
    let server = Server::start();
    let kms = server.provider();
    let (_, wrapped) = kms.generate(&[context(1)]).unwrap().remove(0);
    type Judge = fn(&KeyError) -> bool;
    let unreachable: Judge = |e| matches!(e, KeyError::Unreachable(_));
    let moods: [(Mood, Judge); 7] = [
        (Mood::Error(500, "KMSInternalException"), unreachable),
        (Mood::Error(400, "ThrottlingException"), unreachable),
        (Mood::Error(400, "AccessDeniedException"), |e| matches!(e, KeyError::Denied(_))),
        (Mood::Error(400, "DisabledException"), |e| matches!(e, KeyError::Disabled(_))),
        (Mood::Error(400, "NotFoundException"), |e| matches!(e, KeyError::NotFound(_))),
        (Mood::Drop, unreachable),
        (Mood::Slow(Duration::from_secs(4)), unreachable),
    ];
    for (mood, right) in moods {
        server.set(mood);
        let start = Instant::now();
        let error = kms.unwrap(&wrapped, &context(1)).unwrap_err();
        assert!(right(&error), "{mood:?}: {error}");
        assert!(start.elapsed() < OPERATION + Duration::from_secs(4), "{mood:?}: {:?}", start.elapsed());
        assert!(!error.to_string().contains('\n'), "{error}");
        server.set(Mood::Good);
        kms.unwrap(&wrapped, &context(1)).unwrap_or_else(|e| panic!("after {mood:?}: {e}"));
    }
}

/// A service that is down is not asked by everyone: after two failures calls fail at once, and it works by itself
/// when it is back.
#[test]
fn a_dead_service_is_left_alone() {
    let server = Server::start();
    let kms = server.provider();
    let (_, wrapped) = kms.generate(&[context(1)]).unwrap().remove(0);
    server.set(Mood::Drop);
    for _ in 0..2 {
        kms.unwrap(&wrapped, &context(1)).unwrap_err();
    }
    let asked = server.calls().len();
    let start = Instant::now();
    for _ in 0..100 {
        assert!(matches!(kms.unwrap(&wrapped, &context(1)), Err(KeyError::Unreachable(_))));
    }
    assert!(server.calls().len() <= asked + usize::try_from(ATTEMPTS).unwrap(), "all of them asked");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    server.set(Mood::Good);
    let until = Instant::now() + Duration::from_secs(15);
    while kms.unwrap(&wrapped, &context(1)).is_err() {
        assert!(Instant::now() < until, "it does not come back");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Threads that were ended come back with the next call.
#[test]
fn calls_go_on_after_the_threads_were_ended() {
    let server = Server::start();
    let kms = server.provider();
    let (key, wrapped) = kms.generate(&[context(1)]).unwrap().remove(0);
    for _ in 0..3 {
        kms.settle();
        assert_eq!(kms.unwrap(&wrapped, &context(1)).unwrap().expose(), key.0.expose());
    }
}
