//! What must hold for any bytes. The fuzz targets and `tests/fuzz_smoke.rs` call these.
//!
//! Beside "no panic": what decodes is encoded to the same bytes again, so there is one spelling of everything.
#![allow(dead_code, reason = "each target calls one of them")]

use std::sync::LazyLock;

use envelopefs::crypto::{DirKey, FileKeys, LinkKey, Secret, VaultKey, XattrKey};
use envelopefs::format::config::VolumeConfig;
use envelopefs::format::header::{FileHeader, MAX_HEADER};
use envelopefs::format::ids::{DirId, FileId};
use envelopefs::format::inline::InlineHead;
use envelopefs::format::layout::{GroupIndex, INLINE_MAX, LEADER_SPAN, MAP_PAGE};
use envelopefs::format::map::{GROUP_AT, MapPage, NONCE_AT};
use envelopefs::format::names::{self, LowerName};
use envelopefs::format::{layout, links};

struct Keys {
    file: FileKeys,
    dir: DirKey,
    link: LinkKey,
    xattr: XattrKey,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let secret = || Secret::from_slice(&[7; 32]).expect("32 bytes");
    let vault = VaultKey(secret());
    Keys {
        file: FileKeys::derive(&envelopefs::crypto::DataKey(secret()), &FileId([1; 12])),
        dir: DirKey::derive(&vault, &DirId([2; 16])),
        link: LinkKey::derive(&vault),
        xattr: XattrKey::derive(&vault, &[1; 12]),
    }
});

/// The value of `user.efs.key`.
pub(crate) fn header(bytes: &[u8]) {
    if let Ok(header) = FileHeader::decode(bytes) {
        assert!(bytes.len() <= MAX_HEADER);
        assert_eq!(header.encode().as_deref(), Ok(bytes));
    }
}

/// A map page, of each kind of group; shorter inputs are filled up with zeros.
pub(crate) fn map_page(bytes: &[u8]) {
    let mut page = [0; MAP_PAGE];
    let len = bytes.len().min(MAP_PAGE);
    page[..len].copy_from_slice(&bytes[..len]);
    let named = u64::from_le_bytes(page[GROUP_AT..GROUP_AT + 8].try_into().expect("8 bytes"));
    for group in [0, 1, LEADER_SPAN, named] {
        assert!(KEYS.file.open_page(&page, GroupIndex(group)).is_err(), "nobody signed this");
        if let Ok(decoded) = MapPage::decode(&page, GroupIndex(group)) {
            let mut bare = page;
            bare[NONCE_AT..GROUP_AT].fill(0);
            assert_eq!(*decoded.encode(), bare);
        }
    }
}

/// The volume config.
pub(crate) fn config(bytes: &[u8]) {
    if let Ok(signed) = VolumeConfig::parse(bytes) {
        assert!(bytes.starts_with(signed.body));
        let text = VolumeConfig::join(&signed.config.encode_body(), &signed.mac);
        let again = VolumeConfig::parse(text.as_bytes()).expect("what was decoded can be encoded");
        assert_eq!((again.config, again.mac), (signed.config, signed.mac));
    }
}

/// Lower names, sealed names, lower symlink targets, lower xattrs.
pub(crate) fn names(bytes: &[u8]) {
    let again = match names::parse(bytes) {
        LowerName::Short(sealed) => Some(names::short_name(&sealed)),
        LowerName::Long(hash) => Some(names::long_name(&hash)),
        LowerName::Sidecar(hash) => Some(names::sidecar_name(&hash)),
        LowerName::Temporary | LowerName::Vault | LowerName::Foreign => None,
    };
    assert!(again.is_none_or(|name| name.as_bytes() == bytes));
    assert!(KEYS.dir.decode(bytes).is_err(), "nobody sealed this");
    if let Some(record) = links::decode(bytes) {
        assert_eq!(links::encode(&record).as_deref(), Some(bytes));
        assert_eq!(links::plain_len(bytes.len()), Some(record.len() - links::RECORD_HEAD));
    }
    assert!(KEYS.link.decode(bytes).is_err(), "nobody sealed this");
    assert!(KEYS.xattr.decode_value(b"user.colour", bytes).is_err(), "nobody sealed this");
    if let Ok(name) = std::str::from_utf8(bytes) {
        assert!(KEYS.xattr.decode_name(name, || Some(bytes.to_vec())).is_err(), "nobody sealed this");
    }
}

/// A lower file that is taken for an inline one.
pub(crate) fn inline(bytes: &[u8]) {
    let _ = layout::plain_len(bytes.len() as u64);
    if let Ok(head) = InlineHead::decode(bytes) {
        assert!(u64::from(head.plain_len) <= INLINE_MAX);
        assert_eq!(head.encode()[..], bytes[..layout::INLINE_HEAD]);
        let mut text = bytes[layout::INLINE_HEAD..].to_vec();
        assert!(KEYS.file.open_inline(&head, &mut text).is_err(), "nobody sealed this");
        assert!(text.iter().all(|b| *b == 0), "a refused record leaves nothing in the buffer");
    }
}
