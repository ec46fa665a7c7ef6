//! The few DER structures that the crypto library does not write.

/// A DER element.
pub(super) fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let len = content.len();
    match u8::try_from(len) {
        Ok(short) if short < 0x80 => out.push(short),
        Ok(one) => out.extend([0x81, one]),
        Err(_) => {
            let two = u16::try_from(len).expect("keys are far below 64 KiB").to_be_bytes();
            out.push(0x82);
            out.extend(two);
        }
    }
    out.extend_from_slice(content);
    out
}

/// `SEQUENCE { OID }`: an algorithm without parameters. `oid` without its tag.
pub(super) fn algorithm(oid: &[u8]) -> Vec<u8> {
    element(0x30, &element(0x06, oid))
}

/// SubjectPublicKeyInfo.
pub(super) fn spki(oid: &[u8], key: &[u8]) -> Vec<u8> {
    let mut bits = vec![0];
    bits.extend_from_slice(key);
    let mut body = algorithm(oid);
    body.extend(element(0x03, &bits));
    element(0x30, &body)
}
