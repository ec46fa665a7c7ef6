//! Every spec makes keys that do what its algorithms say, and refuse what was changed.

use super::*;
use crate::kms::spec::KeyUsage;

const SPECS: [KeySpec; 11] = [
    KeySpec::Rsa2048,
    KeySpec::P256,
    KeySpec::P384,
    KeySpec::P521,
    KeySpec::Secp256k1,
    KeySpec::Ed25519,
    KeySpec::MlDsa44,
    KeySpec::MlDsa65,
    KeySpec::MlDsa87,
    KeySpec::MlKem512,
    KeySpec::MlKem768,
];

/// A signature verifies under its own key, algorithm and message only; a digest signs as its message does.
#[test]
fn signatures_verify_and_changed_ones_do_not() {
    for spec in SPECS {
        let private = generate(spec).unwrap();
        let public = public(spec, &private).unwrap();
        for algorithm in spec.algorithms(KeyUsage::SignVerify).iter().filter(|a| **a != "ED25519_PH_SHA_512")
        {
            let message = Digestible::Raw(b"message");
            let mut signature = sign(spec, &private, algorithm, &message).unwrap();
            verify(spec, &public, algorithm, &message, &signature).unwrap();
            assert!(verify(spec, &public, algorithm, &Digestible::Raw(b"massage"), &signature).is_err());
            if let Some(hash) = digest_len(algorithm).filter(|_| spec != KeySpec::Ed25519) {
                let digest = match hash {
                    32 => aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"message"),
                    48 => aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA384, b"message"),
                    _ => aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA512, b"message"),
                };
                let digest = Digestible::Digest(digest.as_ref());
                verify(spec, &public, algorithm, &digest, &signature).unwrap();
                let again = sign(spec, &private, algorithm, &digest).unwrap();
                verify(spec, &public, algorithm, &message, &again).unwrap();
            }
            let last = signature.len() - 1;
            signature[last] ^= 1;
            assert!(verify(spec, &public, algorithm, &message, &signature).is_err(), "{algorithm}");
        }
    }
}

/// Both sides of ECDH get the same secret; a key of another curve is refused.
#[test]
fn both_sides_agree() {
    for spec in [KeySpec::P256, KeySpec::P384, KeySpec::P521] {
        let (a, b) = (generate(spec).unwrap(), generate(spec).unwrap());
        let one = agree(spec, &a, &public(spec, &b).unwrap()).unwrap();
        assert_eq!(*one, *agree(spec, &b, &public(spec, &a).unwrap()).unwrap());
        let foreign = public(KeySpec::Secp256k1, &generate(KeySpec::Secp256k1).unwrap()).unwrap();
        assert!(agree(spec, &a, &foreign).is_err());
        assert!(agree(spec, &a, b"junk").is_err());
    }
}

/// ML-KEM: decapsulation gives the encapsulated secret; a changed ciphertext gives another.
#[test]
fn encapsulated_secrets_come_back() {
    for spec in [KeySpec::MlKem512, KeySpec::MlKem768, KeySpec::MlKem1024] {
        let private = generate(spec).unwrap();
        let (mut ciphertext, shared) = encapsulate(spec, &private).unwrap();
        assert_eq!(*decapsulate(spec, &private, &ciphertext).unwrap(), *shared);
        ciphertext[0] ^= 1;
        assert_ne!(*decapsulate(spec, &private, &ciphertext).unwrap(), *shared);
        assert!(decapsulate(spec, &private, &ciphertext[1..]).is_err());
        assert_eq!(public(spec, &private).unwrap()[0], 0x30);
    }
}

/// OAEP: what the public key sealed the private one opens, up to the documented length and not beyond.
#[test]
fn oaep_has_the_documented_lengths() {
    let private = generate(KeySpec::Rsa2048).unwrap();
    let public = public(KeySpec::Rsa2048, &private).unwrap();
    for (algorithm, max) in [("RSAES_OAEP_SHA_1", 214), ("RSAES_OAEP_SHA_256", 190)] {
        assert_eq!(max_plaintext(KeySpec::Rsa2048, algorithm), max);
        let sealed = encrypt(&public, algorithm, &vec![7; max]).unwrap();
        assert_eq!(*decrypt(&private, algorithm, &sealed).unwrap(), vec![7; max]);
        assert!(encrypt(&public, algorithm, &vec![7; max + 1]).is_err());
        assert!(decrypt(&private, algorithm, &sealed[1..]).is_err());
    }
}

/// A private key of one spec is not taken for another's.
#[test]
fn a_key_of_another_spec_is_refused() {
    let p256 = generate(KeySpec::P256).unwrap();
    for other in [
        KeySpec::P384,
        KeySpec::Secp256k1,
        KeySpec::Rsa2048,
        KeySpec::Ed25519,
        KeySpec::MlDsa44,
        KeySpec::MlKem512,
    ] {
        assert_eq!(public(other, &p256), Err(Refused), "{}", other.name());
    }
}
