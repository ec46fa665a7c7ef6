//! `docs/FORMAT.md` says enough and stays true: its worked example is built here from the document's rules alone,
//! then compared with the document, and opened by the library.

use std::collections::BTreeMap;
use std::fmt::Write;

use aes_gcm_siv::aead::{AeadInOut, KeyInit};
use aes_gcm_siv::{Aes256GcmSiv, Nonce};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envelopefs::crypto::{DataKey, DirKey, FileKeys, LinkKey, Secret, VaultKey, XattrKey, derive};
use envelopefs::format::config::VolumeConfig;
use envelopefs::format::header::{FileHeader, Wrapped};
use envelopefs::format::ids::{DirId, FileId};
use envelopefs::format::inline::InlineHead;
use envelopefs::format::keks::KekFile;
use envelopefs::format::layout::{BlockIndex, GroupIndex, disk_len, plain_len};
use envelopefs::keys::RecoveryKey;
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

const DOCUMENT: &str = include_str!("../docs/FORMAT.md");
const TEXT: &[u8] = b"EnvelopeFS block";
const LENGTH: u64 = 3 * 4096 + 16;

/// `N` bytes that count up from `first`.
fn count<const N: usize>(first: u8) -> [u8; N] {
    std::array::from_fn(|i| first + u8::try_from(i).expect("short"))
}

fn hkdf_sha256(key: &[u8], salt: &[u8], label: &str) -> [u8; 32] {
    let mut out = [0; 32];
    Hkdf::<Sha256>::new(Some(salt), key).expand(label.as_bytes(), &mut out).expect("short");
    out
}

/// Tag and ciphertext.
fn seal(key: &[u8; 32], nonce: &[u8; 12], ad: &[u8], text: &[u8]) -> ([u8; 16], Vec<u8>) {
    let mut buf = text.to_vec();
    let cipher = Aes256GcmSiv::new(key.into());
    let tag =
        cipher.encrypt_inout_detached(&Nonce::from(*nonce), ad, buf.as_mut_slice().into()).expect("short");
    (tag.into(), buf)
}

fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn record(key: &[u8; 32], nonce: [u8; 12], ad: &[u8], text: &[u8]) -> Vec<u8> {
    let (tag, sealed) = seal(key, &nonce, ad, text);
    [&nonce[..], &tag, &sealed].concat()
}

fn fixed(key: &[u8; 32], ad: &[u8], text: &[u8]) -> Vec<u8> {
    let (tag, sealed) = seal(key, &[0; 12], ad, text);
    [&tag[..], &sealed].concat()
}

/// The document's values by label, as this test makes them.
struct Example {
    values: BTreeMap<&'static str, String>,
    page: [u8; 4096],
    block: Vec<u8>,
    inline: Vec<u8>,
    header: Vec<u8>,
    long_sealed: Vec<u8>,
    link: String,
    long_link: Vec<u8>,
    xattr_value: Vec<u8>,
    body: String,
    mac: [u8; 32],
}

const VAULT_KEY: u8 = 0x00;
const DATA_KEY: u8 = 0x20;
const FILE_ID: u8 = 0x40;
const DIR_ID: u8 = 0x50;
const VAULT_ID: u8 = 0x60;

fn map_page(map_key: &[u8; 32], entry: &[u8]) -> [u8; 4096] {
    let mut page = [0; 4096];
    page[0..2].copy_from_slice(&[2, 3]);
    page[4..16].copy_from_slice(&count::<12>(0xa0));
    page[40..48].copy_from_slice(&LENGTH.to_le_bytes());
    page[256] = 1;
    page[512 + 3 * 28..][..28].copy_from_slice(entry);
    let (tag, _) = seal(map_key, &count(0xa0), &page, &[]);
    page[16..32].copy_from_slice(&tag);
    page
}

fn dense(record: &[u8]) -> Vec<u8> {
    let mut out = vec![1];
    for chunk in record.chunks(254) {
        let k = (1..=255).find(|k| !chunk.contains(k)).expect("254 values leave one");
        out.push(k);
        out.extend(chunk.iter().map(|b| b ^ k));
    }
    out.resize(record.len() - 28 + 71, 1);
    out
}

fn context() -> Vec<u8> {
    let file = hex::encode(count::<12>(FILE_ID));
    let vault = hex::encode(count::<16>(VAULT_ID));
    let pairs =
        [("envelopefs:file", &file[..]), ("envelopefs:purpose", "file"), ("envelopefs:vault", &vault)];
    let field = |s: &str| [&u32::try_from(s.len()).expect("short").to_le_bytes(), s.as_bytes()].concat();
    pairs.iter().flat_map(|(k, v)| [field(k), field(v)].concat()).collect()
}

fn config_body() -> String {
    format!(
        "format = 1\nvault_id = \"{}\"\ncreated = 1700000000\nkeys = [\n  {{ index = 0, active = true, \
         uri = \"kms:embedded/alias/envelopefs\", wrapped_vault_key = \"AAEC\" }},\n]\n",
        hex::encode(count::<16>(VAULT_ID))
    )
}

const KEK: u8 = 0xe0;

fn keks_body() -> String {
    format!(
        "vault_id = \"{}\"\nkeks = [\n  {{ number = 1, created = 1700000000, reserved = 65536, \
         keys = [{{ index = 0, wrapped = \"AAEC\" }}] }},\n]\n",
        hex::encode(count::<16>(VAULT_ID))
    )
}

fn hmac_sha256(key: &[u8], text: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any key");
    mac.update(text);
    mac.finalize().into_bytes().into()
}

/// What stands in the document about envelope mode and recovery keys.
fn keys_example() -> BTreeMap<&'static str, String> {
    let (vault, data, kek) = (count::<32>(VAULT_KEY), count::<32>(DATA_KEY), count::<32>(KEK));
    let file_id = count::<12>(FILE_ID);
    let wrapping = hkdf_sha256(&kek, &[], "envelopefs/v1/envelope");
    let (tag, wrapped) = seal(&wrapping, &file_id, &context(), &data);
    let header = [&[1, 1, 1, 0][..], &file_id, &wrapped, &tag].concat();
    let keks_key = hkdf_sha256(&vault, &[], "envelopefs/v1/keks");

    let secret = count::<32>(0);
    let check = Sha256::new().chain_update("envelopefs recovery key").chain_update(secret).finalize();
    let bits: String =
        secret.iter().chain(&check[..3]).map(|byte| format!("{byte:08b}")).collect::<Vec<_>>().concat();
    let digits: Vec<char> = bits
        .as_bytes()
        .chunks(5)
        .map(|five| {
            let value = usize::from_str_radix(std::str::from_utf8(five).expect("digits"), 2).expect("binary");
            "0123456789ABCDEFGHJKMNPQRSTVWXYZ".chars().nth(value).expect("five bits")
        })
        .collect();
    let groups: Vec<String> = digits.chunks(4).map(|four| four.iter().collect()).collect();

    let pair = |first| PrivateKey::from_private_key(&X25519, &count::<32>(first)).expect("any bytes");
    let public = |key: &PrivateKey| key.compute_public_key().expect("a point").as_ref().to_vec();
    let (paper, ephemeral) = (pair(0), pair(0x20));
    let salt = [public(&ephemeral), public(&paper)].concat();
    let peer = UnparsedPublicKey::new(&X25519, public(&paper));
    let shared = agree(&ephemeral, peer, (), |shared| Ok(shared.to_vec())).expect("agreement");
    let (tag, text) =
        seal(&hkdf_sha256(&shared, &salt, "envelopefs/v1/recovery"), &[0; 12], &context(), &data);

    BTreeMap::from([
        ("kek", hex::encode(kek)),
        ("envelope header", hex::encode(header)),
        ("keks mac", hex::encode(hmac_sha256(&keks_key, keks_body().as_bytes()))),
        ("recovery text", format!("EFS1-{}", groups.join("-"))),
        ("recovery uri", format!("recovery:{}", b64(&public(&paper)))),
        ("recovery wrap", hex::encode([public(&ephemeral), text, tag.to_vec()].concat())),
    ])
}

fn example() -> Example {
    let (vault, data) = (count::<32>(VAULT_KEY), count::<32>(DATA_KEY));
    let (file_id, dir_id) = (count::<12>(FILE_ID), count::<16>(DIR_ID));
    let block_key = hkdf_sha256(&data, &file_id, "envelopefs/v1/block");
    let map_key = hkdf_sha256(&data, &file_id, "envelopefs/v1/map");
    let name_key = hkdf_sha256(&vault, &dir_id, "envelopefs/v1/dir-names");
    let xattr_key = hkdf_sha256(&vault, &file_id, "envelopefs/v1/xattr");
    let link_key = hkdf_sha256(&vault, &[], "envelopefs/v1/symlink");
    let config_key = hkdf_sha256(&vault, &[], "envelopefs/v1/config");

    let (wrap_tag, wrapped) = seal(&count(0x80), &file_id, &context(), &data);
    let header = [&[1, 0, 1, 0][..], &file_id, &wrapped, &wrap_tag].concat();

    let (tag, block) = seal(&block_key, &count(0x90), &[&b"B"[..], &3u64.to_le_bytes()].concat(), TEXT);
    let entry = [&count::<12>(0x90)[..], &tag].concat();
    let page = map_page(&map_key, &entry);
    let mut lower = page.to_vec();
    lower.resize(4096 + 3 * 4096, 0);
    lower.extend_from_slice(&block);

    let inline = {
        let head = [1, 0, 6, 0];
        let (tag, sealed) = seal(&block_key, &count(0xb0), &[&b"I"[..], &head].concat(), b"hello\n");
        [&head[..], &count::<12>(0xb0), &tag, &sealed].concat()
    };
    let long_sealed = fixed(&name_key, &[], &[b'n'; 255]);
    let long_hash = b64(&Sha256::digest(&long_sealed));
    let link = b64(&record(&link_key, count(0xc0), &[], b"../target"));
    let long_link = dense(&record(&link_key, count(0xc0), &[], &[b'y'; 300]));
    let xattr_value = record(&xattr_key, count(0xd0), b"vuser.colour", b"blue");
    let body = config_body();
    let mut mac = Hmac::<Sha256>::new_from_slice(&config_key).expect("any key");
    mac.update(body.as_bytes());
    let mac: [u8; 32] = mac.finalize().into_bytes().into();

    let mut values = BTreeMap::from([
        ("vault key", hex::encode(vault)),
        ("data key", hex::encode(data)),
        ("file id", hex::encode(file_id)),
        ("directory id", hex::encode(dir_id)),
        ("vault id", hex::encode(count::<16>(VAULT_ID))),
        ("block key", hex::encode(block_key)),
        ("map key", hex::encode(map_key)),
        ("name key", hex::encode(name_key)),
        ("xattr key", hex::encode(xattr_key)),
        ("symlink key", hex::encode(link_key)),
        ("config key", hex::encode(config_key)),
        ("canonical context", hex::encode(context())),
        ("provider's key", hex::encode(count::<32>(0x80))),
        ("header", hex::encode(&header)),
        ("block 3", hex::encode(&block)),
        ("entry 3", hex::encode(&entry)),
        ("page 0..48", hex::encode(&page[..48])),
        ("page 596..624", hex::encode(&page[596..624])),
        ("page sha256", hex::encode(Sha256::digest(page))),
        ("lower length", lower.len().to_string()),
        ("lower sha256", hex::encode(Sha256::digest(&lower))),
        ("inline", hex::encode(&inline)),
        ("short name", b64(&fixed(&name_key, &[], b"letter.txt"))),
        ("long name", format!("~{long_hash}")),
        ("sidecar name", format!("~{long_hash}.n")),
        ("sidecar sha256", hex::encode(Sha256::digest(&long_sealed))),
        ("symlink", link.clone()),
        ("long symlink length", long_link.len().to_string()),
        ("long symlink 0..48", hex::encode(&long_link[..48])),
        ("long symlink sha256", hex::encode(Sha256::digest(&long_link))),
        ("xattr name", format!("user.efs.x.{}", b64(&fixed(&xattr_key, b"n", b"user.colour")))),
        ("xattr value", hex::encode(&xattr_value)),
        ("config mac", hex::encode(mac)),
    ]);
    values.extend(keys_example());
    Example { values, page, block, inline, header, long_sealed, link, long_link, xattr_value, body, mac }
}

/// The `label: value` lines of the document's example fences; indented lines continue a value.
fn documented() -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let mut label = String::new();
    let fences = DOCUMENT.split("```").skip(1).step_by(2).filter_map(|f| f.strip_prefix("example\n"));
    for line in fences.flat_map(str::lines) {
        match line.split_once(": ") {
            Some((name, value)) if !line.starts_with(' ') => {
                label = name.to_owned();
                assert!(
                    values.insert(label.clone(), value.trim().to_owned()).is_none(),
                    "{label} stands twice"
                );
            }
            _ => values.get_mut(&label).expect("a label comes first").push_str(line.trim()),
        }
    }
    values
}

#[test]
fn the_worked_example_is_what_the_rules_give() {
    let (documented, example) = (documented(), example());
    let mut wrong = String::new();
    for (label, value) in &example.values {
        if documented.get(*label) != Some(value) {
            writeln!(wrong, "{label}: {value}").expect("strings take all");
        }
    }
    assert!(wrong.is_empty(), "the document should say\n{wrong}");
    let unknown: Vec<_> = documented.keys().filter(|l| !example.values.contains_key(&l[..])).collect();
    assert!(unknown.is_empty(), "nothing checks {unknown:?}");
    assert!(DOCUMENT.contains(&keks_body()), "the document should hold\n{}", keks_body());
    assert!(DOCUMENT.contains(&example.body), "the document should hold the config\n{}", example.body);
}

#[test]
fn the_library_reads_the_worked_example() {
    let e = example();
    let secret = |first| Secret::from_slice(&count::<32>(first)).unwrap();
    let vault_key = VaultKey(secret(VAULT_KEY));
    let file = FileKeys::derive(&DataKey(secret(DATA_KEY)), &FileId(count(FILE_ID)));

    let header = FileHeader::decode(&e.header).unwrap();
    assert_eq!(header.file_id, FileId(count(FILE_ID)));
    assert!(matches!(header.recipients[0].wrapped, Wrapped::Compact { version: 1, .. }));

    let page = file.open_page(&e.page, GroupIndex(0)).unwrap();
    assert_eq!(page.leader.unwrap().plain_len, Some(LENGTH));
    assert!(page.entries[..3].iter().chain(&page.entries[4..]).all(|entry| entry.is_hole()));
    let mut block = e.block.clone();
    file.open_block(BlockIndex(3), &page.entries[3], &mut block).unwrap();
    assert_eq!(block, TEXT);
    assert_eq!((disk_len(LENGTH), plain_len(16_400)), (16_400, Some(LENGTH)));
    assert_eq!(BlockIndex(3).disk_start(), 16_384);

    let mut inline = e.inline[32..].to_vec();
    file.open_inline(&InlineHead::decode(&e.inline).unwrap(), &mut inline).unwrap();
    assert_eq!(inline, b"hello\n");

    let dir = DirKey::derive(&vault_key, &DirId(count(DIR_ID)));
    assert_eq!(dir.encode(b"letter.txt").lower, e.values["short name"]);
    let long = dir.encode(&[b'n'; 255]);
    assert_eq!(long.lower, e.values["long name"]);
    assert_eq!(long.sidecar, Some((e.values["sidecar name"].clone(), e.long_sealed)));

    let link = LinkKey::derive(&vault_key);
    assert_eq!(link.decode(e.link.as_bytes()).unwrap(), b"../target");
    assert_eq!(link.decode(&e.long_link).unwrap(), [b'y'; 300]);

    let xattr = XattrKey::derive(&vault_key, &count::<12>(FILE_ID));
    assert_eq!(xattr.encode_name(b"user.colour"), e.values["xattr name"]);
    assert_eq!(xattr.decode_value(b"user.colour", &e.xattr_value).unwrap(), b"blue");

    let paper = RecoveryKey::parse(&e.values["recovery text"]).unwrap();
    assert_eq!(paper.uri().unwrap(), e.values["recovery uri"]);
    let keks = KekFile::join(&keks_body(), &derive::keks_mac(&vault_key, keks_body().as_bytes()));
    let keks = KekFile::parse(keks.as_bytes()).unwrap();
    assert_eq!(hex::encode(keks.mac), e.values["keks mac"]);
    assert_eq!(keks.file.newest().unwrap().wrapped, [(0, vec![0, 1, 2])]);

    assert_eq!(derive::config_mac(&vault_key, e.body.as_bytes()), e.mac);
    let text = VolumeConfig::join(&e.body, &e.mac);
    let signed = VolumeConfig::parse(text.as_bytes()).unwrap();
    assert_eq!((signed.body, signed.mac), (e.body.as_bytes(), e.mac));
    assert_eq!(signed.config.active().unwrap().wrapped_vault_key, [0, 1, 2]);
}
