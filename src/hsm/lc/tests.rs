//! Known answers and refusals of the borrowed primitives.

use super::*;

fn unhex(text: &str) -> Vec<u8> {
    hex::decode(text.replace(' ', "")).unwrap()
}

/// RFC 3394 4.6 and RFC 5649 6: the published vectors; a changed bit does not unwrap.
#[test]
fn key_wrap_is_that_of_the_rfcs() {
    let kek = unhex("000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F");
    let key = unhex("00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F");
    let wrapped = kw_wrap(&kek, &key, false).unwrap();
    assert_eq!(
        wrapped,
        unhex("28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21")
    );
    assert_eq!(*kw_unwrap(&kek, &wrapped, false).unwrap(), key);
    let kek = unhex("5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8");
    let key = unhex("c37b7e6492584340bed12207808941155068f738");
    let mut wrapped = kw_wrap(&kek, &key, true).unwrap();
    assert_eq!(wrapped, unhex("138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a"));
    assert_eq!(*kw_unwrap(&kek, &wrapped, true).unwrap(), key);
    wrapped[3] ^= 1;
    assert_eq!(kw_unwrap(&kek, &wrapped, true), Err(Failed));
}

/// RSA keys survive the way through their numbers; signatures and OAEP work on the copy.
#[test]
fn rsa_keys_are_made_of_their_numbers() {
    let key = Rsa::generate(2048, &[1, 0, 1]).unwrap();
    let copy = Rsa::from_parts(&key.parts()).unwrap();
    let digest = Md::Sha256.digest(b"message");
    let signature = copy.sign(Md::Sha256, &digest).unwrap();
    key.verify(Md::Sha256, &digest, &signature).unwrap();
    assert!(key.verify(Md::Sha256, &Md::Sha256.digest(b"massage"), &signature).is_err());
    let pss = copy.sign_pss(&digest, Md::Sha256, Md::Sha256, 32).unwrap();
    key.verify_pss(&digest, Md::Sha256, Md::Sha256, 32, &pss).unwrap();
    let sealed = key.oaep(true, b"secret", Md::Sha256, Md::Sha1, b"label").unwrap();
    assert_eq!(*copy.oaep(false, &sealed, Md::Sha256, Md::Sha1, b"label").unwrap(), b"secret");
    assert!(copy.oaep(false, &sealed, Md::Sha256, Md::Sha1, b"lable").is_err());
    let again = Rsa::from_pkcs8(&key.pkcs8().unwrap()).unwrap();
    assert_eq!(again.parts().n, key.parts().n);
    let mut wrong = key.parts();
    wrong.secret[0][5] ^= 1;
    assert!(Rsa::from_parts(&wrong).is_err(), "a private key is checked");
}

/// Every curve signs and agrees; a point off the curve is refused.
#[test]
fn curves_sign_and_agree() {
    for curve in Curve::ALL {
        let (a, b) = (Ec::generate(curve).unwrap(), Ec::generate(curve).unwrap());
        let signature = a.sign(b"any bytes of any length").unwrap();
        assert_eq!(signature.len(), 2 * curve.len());
        let public = Ec::public(curve, &a.point().unwrap()).unwrap();
        public.verify(b"any bytes of any length", &signature).unwrap();
        assert!(public.verify(b"other bytes", &signature).is_err());
        assert!(public.sign(b"x").is_err());
        assert_eq!(a.agree(&b.point().unwrap()).unwrap(), b.agree(&a.point().unwrap()).unwrap());
        let mut off = b.point().unwrap();
        *off.last_mut().unwrap() ^= 1;
        assert_eq!(a.agree(&off), Err(Failed));
        // P-192 has no PKCS#8 here: it is for old public keys and agreements.
        if curve != Curve::P192 {
            let again = Ec::from_pkcs8(&a.pkcs8().unwrap()).unwrap();
            assert_eq!(again.scalar().unwrap(), a.scalar().unwrap());
        }
    }
}

/// GCM refuses an empty nonce, a cut tag and a changed bit.
#[test]
fn gcm_opens_only_what_it_sealed() {
    let key = [7; 32];
    let sealed = gcm_seal(&key, &[1; 12], b"ad", b"plain", 16).unwrap();
    assert_eq!(*gcm_open(&key, &[1; 12], b"ad", &sealed, 16).unwrap(), b"plain");
    assert!(gcm_open(&key, &[1; 12], b"da", &sealed, 16).is_err());
    assert!(gcm_open(&key, &[1; 12], b"ad", &sealed[..20], 16).is_err());
    assert!(gcm_open(&key, &[1; 12], b"ad", &[], 16).is_err());
    assert!(gcm_seal(&key, &[], b"", b"", 16).is_err());
    assert!(gcm_seal(&key[..5], &[1; 12], b"", b"", 16).is_err());
}

/// Ciphers in pieces give what they give at once; CMAC is that of RFC 4493.
#[test]
fn pieces_and_wholes_agree() {
    let data: Vec<u8> = (0..100u8).collect();
    let run = |encrypt, data: &[u8], cut: usize| {
        let mut cipher = Cipher::new(Block::Cbc, false, &[3; 16], &[4; 16], encrypt, true).unwrap();
        let mut out = cipher.update(&data[..cut]).unwrap().to_vec();
        out.extend_from_slice(&cipher.update(&data[cut..]).unwrap());
        out.extend_from_slice(&cipher.finish().unwrap());
        out
    };
    let sealed = run(true, &data, 100);
    assert_eq!(sealed, run(true, &data, 17));
    assert_eq!(run(false, &sealed, 33), data);
    let key = unhex("2b7e151628aed2a6abf7158809cf4f3c");
    assert_eq!(Cmac::mac(&key, b"").unwrap(), unhex("bb1d6929e95937287fa37d129b756746"));
}

/// RFC 8032 7.1, 7.4 and 7.5: the published vectors of Ed25519 (test 2), Ed448 ("1 octet (with context)") and Ed448ph.
#[test]
fn edwards_signatures_are_those_of_the_rfc() {
    let seed = unhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb");
    let key = Edwards::from_seed(EdCurve::Ed25519, &seed).unwrap();
    assert_eq!(key.public(), unhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"));
    let signature = key.sign(&[0x72], &EdMode::default()).unwrap();
    assert_eq!(
        signature,
        unhex(
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aee\
             b00d291612bb0c00"
        )
    );
    let seed = unhex(
        "c4eab05d357007c632f3dbb48489924d552b08fe0c353a0d4a1f00acda2c463afbea67c5e8d2877c5e3bc397a659949ef8021e954e0a12274e",
    );
    let key = Edwards::from_seed(EdCurve::Ed448, &seed).unwrap();
    let mode = EdMode { prehash: false, context: unhex("666f6f") };
    let signature = key.sign(&[3], &mode).unwrap();
    assert_eq!(
        signature,
        unhex(
            "d4f8f6131770dd46f40867d6fd5d5055de43541f8c5e35abbcd001b32a89f7d2151f7647f11d8ca2ae279fb842d607217fce6e042f6815ea\
             000c85741de5c8da1144a6a1aba7f96de42505d7a7298524fda538fccbbb754f578c1cad10d54d0d5428407e85dcbc98a49155c13764e66c\
             3c00"
        )
    );
    for (curve, len) in [(EdCurve::Ed25519, 32), (EdCurve::Ed448, 57)] {
        let key = Edwards::from_seed(curve, &vec![9; len]).unwrap();
        let public = Edwards::from_public(curve, key.public()).unwrap();
        for (prehash, context) in [(false, &b""[..]), (false, b"c"), (true, b""), (true, b"c")] {
            let mode = EdMode { prehash, context: context.to_vec() };
            let signature = key.sign(b"m", &mode).unwrap();
            assert_eq!(signature.len(), key.signature_len());
            public.verify(b"m", &mode, &signature).unwrap();
            assert!(public.verify(b"n", &mode, &signature).is_err());
            let other = EdMode { prehash, context: b"d".to_vec() };
            assert!(public.verify(b"m", &other, &signature).is_err());
            assert!(public.sign(b"m", &mode).is_err());
        }
    }
}
