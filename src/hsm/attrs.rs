//! Attributes: what there is, how long a value is, which are secret, and who may set them.

use std::collections::BTreeMap;

use cryptoki_sys::*;
use zeroize::Zeroizing;

use super::Ck;
use super::wire::{Bytes, Template};

/// What a value looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// CK_BBOOL: one byte, 0 or 1.
    Flag,
    /// CK_ULONG: 8 bytes.
    Number,
    /// Any bytes, at most [`MAX_VALUE`].
    Bytes,
    /// CK_DATE, or empty.
    Date,
    /// Several CK_ULONG.
    Numbers,
    /// A template in the encoding of `wire`.
    Nested,
}

/// The longest value of an attribute.
const MAX_VALUE: usize = 64 << 10;
/// The most bytes of all values of one object.
const MAX_TOTAL: usize = 256 << 10;
/// The longest template.
const MAX_TEMPLATE: usize = 128;

/// The kind of an attribute; `None` for one that is not known here.
pub(super) fn kind(of: u64) -> Option<Kind> {
    Some(match of {
        CKA_TOKEN
        | CKA_PRIVATE
        | CKA_TRUSTED
        | CKA_SENSITIVE
        | CKA_ENCRYPT
        | CKA_DECRYPT
        | CKA_WRAP
        | CKA_UNWRAP
        | CKA_SIGN
        | CKA_SIGN_RECOVER
        | CKA_VERIFY
        | CKA_VERIFY_RECOVER
        | CKA_DERIVE
        | CKA_EXTRACTABLE
        | CKA_LOCAL
        | CKA_NEVER_EXTRACTABLE
        | CKA_ALWAYS_SENSITIVE
        | CKA_MODIFIABLE
        | CKA_COPYABLE
        | CKA_DESTROYABLE
        | CKA_ALWAYS_AUTHENTICATE
        | CKA_WRAP_WITH_TRUSTED => Kind::Flag,
        CKA_CLASS
        | CKA_KEY_TYPE
        | CKA_CERTIFICATE_TYPE
        | CKA_CERTIFICATE_CATEGORY
        | CKA_MODULUS_BITS
        | CKA_VALUE_LEN
        | CKA_KEY_GEN_MECHANISM
        | CKA_JAVA_MIDP_SECURITY_DOMAIN
        | CKA_NAME_HASH_ALGORITHM => Kind::Number,
        CKA_START_DATE | CKA_END_DATE => Kind::Date,
        CKA_ALLOWED_MECHANISMS => Kind::Numbers,
        CKA_WRAP_TEMPLATE | CKA_UNWRAP_TEMPLATE | CKA_DERIVE_TEMPLATE => Kind::Nested,
        CKA_LABEL
        | CKA_ID
        | CKA_APPLICATION
        | CKA_OBJECT_ID
        | CKA_VALUE
        | CKA_ISSUER
        | CKA_SERIAL_NUMBER
        | CKA_SUBJECT
        | CKA_URL
        | CKA_CHECK_VALUE
        | CKA_HASH_OF_SUBJECT_PUBLIC_KEY
        | CKA_HASH_OF_ISSUER_PUBLIC_KEY
        | CKA_MODULUS
        | CKA_PUBLIC_EXPONENT
        | CKA_PRIVATE_EXPONENT
        | CKA_PRIME_1
        | CKA_PRIME_2
        | CKA_EXPONENT_1
        | CKA_EXPONENT_2
        | CKA_COEFFICIENT
        | CKA_EC_PARAMS
        | CKA_EC_POINT
        | CKA_PUBLIC_KEY_INFO => Kind::Bytes,
        _ => return None,
    })
}

/// Key material of private and secret keys.
pub(super) const SECRET: [u64; 7] = [
    CKA_VALUE,
    CKA_PRIVATE_EXPONENT,
    CKA_PRIME_1,
    CKA_PRIME_2,
    CKA_EXPONENT_1,
    CKA_EXPONENT_2,
    CKA_COEFFICIENT,
];

/// The uses of a key.
pub(super) const USES: [u64; 9] = [
    CKA_ENCRYPT,
    CKA_DECRYPT,
    CKA_SIGN,
    CKA_SIGN_RECOVER,
    CKA_VERIFY,
    CKA_VERIFY_RECOVER,
    CKA_WRAP,
    CKA_UNWRAP,
    CKA_DERIVE,
];

/// That a key had a use which was switched off since. Only the appliance sets these, and shows them to nobody.
const HAD: [(u64, u64); 4] = [
    (CKA_WRAP, CKA_VENDOR_DEFINED | 0x4546_5301),
    (CKA_DECRYPT, CKA_VENDOR_DEFINED | 0x4546_5302),
    (CKA_UNWRAP, CKA_VENDOR_DEFINED | 0x4546_5303),
    (CKA_ENCRYPT, CKA_VENDOR_DEFINED | 0x4546_5304),
];

/// Whether an attribute is the appliance's own note.
pub(super) fn is_note(name: u64) -> bool {
    HAD.iter().any(|(_, note)| *note == name)
}

/// Facts that the appliance alone states (PKCS#11 4.1, footnotes 4 and 6).
pub(super) const STATED: [u64; 4] =
    [CKA_LOCAL, CKA_ALWAYS_SENSITIVE, CKA_NEVER_EXTRACTABLE, CKA_KEY_GEN_MECHANISM];

/// The attributes of one object. Values are wiped when dropped.
#[derive(Clone, Default)]
pub(super) struct Attrs(pub(super) BTreeMap<u64, Bytes>);

impl Attrs {
    /// Reads a template: known attributes, values of their kind, none twice.
    pub(super) fn of(template: Template) -> Ck<Self> {
        if template.len() > MAX_TEMPLATE {
            return Err(CKR_ARGUMENTS_BAD);
        }
        if template.iter().map(|(_, value)| value.len()).sum::<usize>() > MAX_TOTAL {
            return Err(CKR_DEVICE_MEMORY);
        }
        let mut all = BTreeMap::new();
        for (name, value) in template {
            check(name, &value)?;
            if let Some(before) = all.insert(name, value.clone())
                && before != value
            {
                return Err(CKR_TEMPLATE_INCONSISTENT);
            }
        }
        Ok(Self(all))
    }

    /// Takes a template over that a key has for what comes of it; a conflict is refused.
    pub(super) fn join(&mut self, template: Option<Self>) -> Ck<()> {
        for (name, value) in template.map(|t| t.0).unwrap_or_default() {
            if self.0.get(&name).is_some_and(|other| *other != value) {
                return Err(CKR_TEMPLATE_INCONSISTENT);
            }
            self.0.insert(name, value);
        }
        Ok(())
    }

    pub(super) fn bytes(&self, name: u64) -> Option<&[u8]> {
        self.0.get(&name).map(|v| v.as_slice())
    }

    /// A flag; false where it is missing.
    pub(super) fn flag(&self, name: u64) -> bool {
        self.bytes(name) == Some(&[1])
    }

    /// Whether a key has a use, or had it once.
    pub(super) fn ever(&self, usage: u64) -> bool {
        self.flag(usage) || HAD.iter().any(|(name, note)| *name == usage && self.flag(*note))
    }

    /// Remembers the uses that another version of this key has or had, and this one has not.
    pub(super) fn remember(&mut self, other: &Self) {
        for (name, note) in HAD {
            if other.ever(name) && !self.flag(name) {
                self.set_flag(note, true);
            }
        }
    }

    pub(super) fn number(&self, name: u64) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(name)?.try_into().ok()?))
    }

    pub(super) fn has(&self, name: u64) -> bool {
        self.0.contains_key(&name)
    }

    pub(super) fn set(&mut self, name: u64, value: &[u8]) {
        self.0.insert(name, Zeroizing::new(value.to_vec()));
    }

    pub(super) fn set_flag(&mut self, name: u64, value: bool) {
        self.set(name, &[u8::from(value)]);
    }

    pub(super) fn set_number(&mut self, name: u64, value: u64) {
        self.set(name, &value.to_le_bytes());
    }

    /// Sets what is not set.
    pub(super) fn default(&mut self, name: u64, value: &[u8]) {
        self.0.entry(name).or_insert_with(|| Zeroizing::new(value.to_vec()));
    }

    pub(super) fn class(&self) -> u64 {
        self.number(CKA_CLASS).unwrap_or(CKO_DATA)
    }

    pub(super) fn key_type(&self) -> Option<u64> {
        self.number(CKA_KEY_TYPE)
    }

    /// Whether it is a key at all.
    pub(super) fn is_key(&self) -> bool {
        matches!(self.class(), CKO_PUBLIC_KEY | CKO_PRIVATE_KEY | CKO_SECRET_KEY)
    }

    /// Whether it holds secret material.
    pub(super) fn is_secret(&self) -> bool {
        matches!(self.class(), CKO_PRIVATE_KEY | CKO_SECRET_KEY)
    }

    /// Whether a value may never be shown in plaintext.
    pub(super) fn hides(&self, name: u64) -> bool {
        self.is_secret()
            && SECRET.contains(&name)
            && (self.flag(CKA_SENSITIVE) || !self.flag(CKA_EXTRACTABLE))
    }

    /// What a search asks for: each attribute once. `None`: it asks for two values of one, which nothing has.
    pub(super) fn wanted(template: Template) -> Ck<Option<Self>> {
        if template.len() > MAX_TEMPLATE {
            return Err(CKR_ARGUMENTS_BAD);
        }
        let mut all = BTreeMap::new();
        for (name, value) in template {
            if all.insert(name, value.clone()).is_some_and(|before| before != value) {
                return Ok(None);
            }
        }
        Ok(Some(Self(all)))
    }

    /// Whether every attribute of a search template is there with that value.
    pub(super) fn matches(&self, template: &Self) -> bool {
        template.0.iter().all(|(name, value)| !self.hides(*name) && self.0.get(name) == Some(value))
    }

    /// A nested template.
    pub(super) fn nested(&self, name: u64) -> Ck<Option<Self>> {
        let Some(bytes) = self.bytes(name) else { return Ok(None) };
        let template: Template = super::wire::decode(bytes).ok_or(CKR_ATTRIBUTE_VALUE_INVALID)?;
        Self::of(template).map(Some)
    }

    /// Bytes of memory that an object of these takes, its key made ready included.
    pub(super) fn weight(&self) -> usize {
        512 + self.0.values().map(|v| 64 + v.len()).sum::<usize>()
    }

    /// For the store.
    pub(super) fn encode(&self) -> Bytes {
        let all: Template = self.0.iter().map(|(k, v)| (*k, v.clone())).collect();
        super::wire::encode(&all)
    }

    /// From the store.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let all: Template = super::wire::decode(bytes)?;
        Some(Self(all.into_iter().collect()))
    }
}

fn check(name: u64, value: &[u8]) -> Ck<()> {
    let fits = match kind(name).ok_or(CKR_ATTRIBUTE_TYPE_INVALID)? {
        Kind::Flag => matches!(value, [0 | 1]),
        Kind::Number => value.len() == 8,
        Kind::Bytes => value.len() <= MAX_VALUE,
        Kind::Date => value.is_empty() || (value.len() == 8 && value.iter().all(u8::is_ascii_digit)),
        Kind::Numbers => value.len().is_multiple_of(8) && value.len() <= MAX_VALUE,
        // One level: a template inside a nested template is refused.
        Kind::Nested => super::wire::decode::<Template>(value).is_some_and(|t| {
            t.len() <= MAX_TEMPLATE
                && t.iter().all(|(n, v)| kind(*n) != Some(Kind::Nested) && check(*n, v).is_ok())
        }),
    };
    if fits { Ok(()) } else { Err(CKR_ATTRIBUTE_VALUE_INVALID) }
}
