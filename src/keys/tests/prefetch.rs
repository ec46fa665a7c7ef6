//! Keys unwrapped ahead: each once, never more than were told, and not while the provider has trouble.

use super::*;

fn ring_ahead(provider: &Arc<Counting>, ahead: usize) -> Keyring {
    provider.far.store(true, SeqCst);
    ring(provider, Tuning { ahead, ..tuning(64, Duration::from_secs(60), 8) })
}

fn ahead(n: u8) -> Ahead {
    Box::new(move || Some(header(n)))
}

/// Files whose keys came ahead are opened without a call; those on their way are waited for, and no key is unwrapped
/// twice.
#[test]
fn no_key_is_unwrapped_twice() {
    let provider = Arc::new(Counting::default());
    provider.slow.store(true, SeqCst);
    let ring = ring_ahead(&provider, 32);
    let start = Instant::now();
    for _ in 0..2 {
        ring.prefetch((0..20).map(ahead));
        for n in 0..20 {
            ring.open_file(&header(n)).unwrap();
        }
    }
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}: one by one it takes 2 s", start.elapsed());
    assert_eq!(ring.held().0, 20);
    assert_eq!(provider.unwraps.load(SeqCst), 20);
}

/// Nothing is asked ahead where nobody told to, with a key that is near, without a cache, and in envelope mode; never for
/// more files than half of the cache holds.
#[test]
fn it_is_off_where_it_is_of_no_use() {
    let provider = Arc::new(Counting::default());
    assert_eq!(ring_ahead(&provider, 0).ahead(), 0);
    assert_eq!(ring_ahead(&provider, 10).ahead(), 10);
    assert_eq!(ring_ahead(&provider, 1000).ahead(), 32);
    let forgetful = ring(&provider, Tuning { ahead: 10, ..tuning(64, Duration::ZERO, 8) });
    assert_eq!(forgetful.ahead(), 0);
    provider.far.store(false, SeqCst);
    let near = ring(&provider, Tuning { ahead: 10, ..tuning(64, Duration::from_secs(60), 8) });
    assert_eq!(near.ahead(), 0);
}

/// A provider that gives no keys is left to those who wait for one: what waits is dropped, and nothing is asked ahead for
/// a while.
#[test]
fn it_rests_when_the_provider_gives_no_keys() {
    let provider = Arc::new(Counting::default());
    provider.fails.store(true, SeqCst);
    let ring = ring_ahead(&provider, 32);
    ring.prefetch((0..200).map(ahead));
    wait_until("it asks", || provider.unwraps.load(SeqCst) > 0);
    std::thread::sleep(Duration::from_millis(50));
    provider.fails.store(false, SeqCst);
    let asked = provider.unwraps.load(SeqCst);
    assert!(asked <= 16, "{asked} calls of a provider that is down");
    ring.prefetch((0..200).map(ahead));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(provider.unwraps.load(SeqCst), asked);
    ring.open_file(&header(1)).unwrap();
}

/// A keyring that is dropped does not unwrap what still waits, and its threads end.
#[test]
fn what_waits_ends_with_the_keyring() {
    let provider = Arc::new(Counting::default());
    provider.slow.store(true, SeqCst);
    let ring = ring_ahead(&provider, 32);
    ring.prefetch((0..200).map(ahead));
    let start = Instant::now();
    drop(ring);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(provider.unwraps.load(SeqCst) <= 16);
    assert_eq!(Arc::strong_count(&provider), 1, "a thread still holds the provider");
}
